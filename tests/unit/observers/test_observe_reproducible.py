"""Two builds: made by the user's command, or given; and what is no second build."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_shell import gone

from pytest_osgates.checks import reproducible as gate
from pytest_osgates.checks.reproducible import ReproducibleObservation, ReproduciblePolicy
from pytest_osgates.evidence import Evidence
from pytest_osgates.image.digest import image_digest
from pytest_osgates.judging import judge
from pytest_osgates.model import Verdict
from pytest_osgates.observers.reproducible import Wanted, check, observe, published, same_file, varied_command, words
from pytest_osgates.progress import ProgressLog
from pytest_osgates.report.divergence import html
from pytest_osgates.vm.errors import MissingTool, UsageError


@pytest.fixture(scope="session")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ISO."""
    directory = tmp_path_factory.mktemp("iso")
    (directory / "tree").mkdir()
    (directory / "tree" / "file").write_bytes(b"contents\n" * 100)
    path = directory / "image.iso"
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-r", "-o", str(path), str(directory / "tree")]
    subprocess.run(command, check=True, timeout=60)
    return path


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    (tmp_path / "evidence").mkdir()
    return Evidence(tmp_path / "evidence")


def seen(iso: Path, wanted: Wanted, evidence: Evidence) -> ReproducibleObservation:
    return observe(iso, image_digest(iso), wanted, evidence, ProgressLog(evidence.root / "progress.jsonl"), html)


def verdict(found: ReproducibleObservation) -> tuple[Verdict, set[str]]:
    """The verdict, read back from what would be on disk."""
    again = ReproducibleObservation.model_validate_json(found.model_dump_json())
    judged = judge(gate.GATE, again, ReproduciblePolicy())
    return judged.verdict, {finding.rule for finding in judged.findings}


def copying(iso: Path, *, change: str = "") -> Wanted:
    """A build that copies; in `change`, `$OSGATES_BUILD` is its number."""
    script = f"mkdir out && cp {shlex.quote(str(iso))} out/new.iso && echo building >&2; {change}"
    return Wanted(command=f"sh -c {shlex.quote(script)}", output="out/*.iso", deadline_s=60)


def test_a_rebuild_of_the_same_bytes_passes(iso: Path, evidence: Evidence, tmp_path: Path) -> None:
    other = tmp_path / "other.iso"
    other.write_bytes(iso.read_bytes())
    found = seen(iso, Wanted(rebuild=other), evidence)
    assert verdict(found) == (Verdict.PASS, set())
    assert {probe.layer for probe in found.probes} >= set(gate.FEWEST_PROBES)


def test_one_flipped_bit_fails(iso: Path, evidence: Evidence, tmp_path: Path) -> None:
    raw = bytearray(iso.read_bytes())
    raw[raw.index(b"contents\n") + 3] ^= 1
    other = tmp_path / "other.iso"
    other.write_bytes(raw)
    found = seen(iso, Wanted(rebuild=other), evidence)
    assert verdict(found)[0] is Verdict.FAIL
    assert (evidence.root / "reproducible" / "iso-rebuild.json").stat().st_size > 500
    assert b"/file" in (evidence.root / "reproducible" / "iso-rebuild.html").read_bytes()


@pytest.mark.parametrize("how", ["itself", "symlink", "hardlink", "directory-link"])
def test_one_file_is_no_second_build(iso: Path, evidence: Evidence, tmp_path: Path, how: str) -> None:
    other = tmp_path / "other.iso"
    if how == "symlink":
        other.symlink_to(iso)
    elif how == "hardlink":
        os.link(iso, other)
    elif how == "directory-link":
        (tmp_path / "dir").symlink_to(iso.parent)
        other = tmp_path / "dir" / iso.name
    else:
        other = iso
    assert same_file(iso, other)
    assert verdict(seen(iso, Wanted(rebuild=other), evidence)) == (Verdict.NOT_PROVEN, {"same-file"})


def test_nothing_given_proves_nothing(iso: Path, evidence: Evidence) -> None:
    assert verdict(seen(iso, Wanted(), evidence)) == (Verdict.NOT_PROVEN, {"nothing-to-compare"})


def test_two_builds_are_made_and_kept_apart(iso: Path, evidence: Evidence) -> None:
    found = seen(iso, copying(iso), evidence)
    assert verdict(found) == (Verdict.PASS, set())
    assert [(build.number, build.status) for build in found.builds] == [(1, 0), (2, 0)]
    assert found.builds[0].directory == found.builds[1].directory
    assert [pair.second for pair in found.pairs] == ["build 1", "build 2"]
    assert (evidence.root / found.builds[1].log).read_text() == "building\n"
    assert not Path(found.builds[0].directory).exists()


def test_a_build_that_differs_from_the_first_fails(iso: Path, evidence: Evidence) -> None:
    change = 'test "$OSGATES_BUILD" = 1 || printf x | dd of=out/new.iso bs=1 seek=60000 conv=notrunc status=none'
    found = seen(iso, copying(iso, change=change), evidence)
    assert verdict(found)[0] is Verdict.FAIL


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        ("echo broken; exit 3", "broken"),
        ("true", "0 files like *.iso"),
        ("echo a > a.iso; echo b > b.iso", "2 files like *.iso"),
        ("ln -s {iso} a.iso", "symbolic link"),
        ("cp {iso} b; ln b a.iso", "2 names"),
        ("mkdir a.iso", "no regular file"),
        (": > a.iso", "empty"),
    ],
)
def test_a_build_without_one_file_proves_nothing(iso: Path, evidence: Evidence, script: str, detail: str) -> None:
    command = f"sh -c {shlex.quote(script.format(iso=iso))}"
    found = seen(iso, Wanted(command=command, output="*.iso", deadline_s=60), evidence)
    assert verdict(found)[0] is Verdict.NOT_PROVEN
    assert detail in found.builds[0].detail
    assert len(found.builds) == 1


def test_a_build_that_takes_too_long_is_killed_with_its_children(
    iso: Path, evidence: Evidence, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    command = f"sh -c {shlex.quote(f'sleep 600 & echo $! $$ > {pids}; wait')}"
    begun = time.monotonic()
    found = seen(iso, Wanted(command=command, output="*.iso", deadline_s=1), evidence)
    assert time.monotonic() - begun < 30
    assert verdict(found) == (Verdict.NOT_PROVEN, {"nothing-to-compare", "build-failed"})
    assert found.builds[0].status is None
    for pid in pids.read_text().split():
        assert gone(int(pid))


def test_variations(iso: Path, evidence: Evidence) -> None:
    script = f'cp {shlex.quote(str(iso))} a.iso; umask; date +%Z; echo "$LANG"; pwd'
    command = f"sh -c {shlex.quote(script)}"
    wanted = Wanted(
        command=command, output="*.iso", deadline_s=60, variations=("path", "umask", "timezone", "locale")
    )
    found = seen(iso, wanted, evidence)
    logs = [(evidence.root / build.log).read_text().split() for build in found.builds]
    assert logs[1][0] == "0077"
    assert logs[1][1] == "GMT"
    assert logs[1][2] == "fr_CH.UTF-8"
    assert all(one != other for one, other in zip(*logs, strict=True))
    assert found.builds[1].variations == wanted.variations
    assert found.builds[0].variations == ()


def test_a_variation_lacks_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingTool, match="install faketime"):
        varied_command(["make"], ("clock",))


def test_a_host_name_is_an_argument_of_a_constant_script() -> None:
    argv, env = varied_command(["make", "$(rm -rf /)"], ("hostname", "umask"))
    assert argv[-2:] == ["make", "$(rm -rf /)"]
    assert "rm -rf" not in " ".join(argv[:-1])
    assert env == {}


@pytest.mark.parametrize("as_root", [True, False])
def test_another_host_name_for_the_build_alone(
    iso: Path, evidence: Evidence, monkeypatch: pytest.MonkeyPatch, as_root: bool
) -> None:
    if os.geteuid() != 0 and as_root:
        pytest.skip("needs root")
    probe = ["unshare", *([] if as_root else ["--user", "--map-root-user"]), "--uts", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("this host lets this user make no such namespace")
    monkeypatch.setattr(os, "geteuid", lambda: 0 if as_root else 1000)
    before = os.uname().nodename
    script = f"cp {shlex.quote(str(iso))} a.iso; uname -n; : >owned; chown 65534 owned && echo given || echo kept"
    wanted = Wanted(command=f"sh -c {shlex.quote(script)}", output="*.iso", deadline_s=60, variations=("hostname",))
    found = seen(iso, wanted, evidence)
    first, second = ((evidence.root / build.log).read_text().split() for build in found.builds)
    assert (first[0], second[0]) == (before, "another-host-name")
    assert os.uname().nodename == before
    if as_root:
        assert second[-1] == "given"


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
def test_a_later_clock_for_the_build_alone(iso: Path, evidence: Evidence) -> None:
    script = f"cp {shlex.quote(str(iso))} a.iso; date +%s"
    wanted = Wanted(command=f"sh -c {shlex.quote(script)}", output="*.iso", deadline_s=60, variations=("clock",))
    found = seen(iso, wanted, evidence)
    first, second = (int((evidence.root / build.log).read_text().split()[-1]) for build in found.builds)
    assert 398 * 86400 <= second - first < 398 * 86400 + 60


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        (Wanted(command="make"), "--iso-build-output is missing"),
        (Wanted(output="*.iso"), "--iso-build is missing"),
        (Wanted(command="make", output="../*.iso"), "leads out"),
        (Wanted(command="make", output="/tmp/*.iso"), "leads out"),
        (Wanted(command="make 'x", output="*.iso"), "quotation"),
        (Wanted(command="  ", output="*.iso"), "is empty"),
    ],
)
def test_what_cannot_be_built_is_said_at_once(wanted: Wanted, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        words(wanted.command) if wanted.command.isspace() else check(wanted)


def test_lists_of_checksums(tmp_path: Path) -> None:
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{'a' * 64}  other.iso\n{'B' * 64} *dir/x.iso\nSHA256 (y.iso) = {'c' * 64}\nnonsense\n")
    assert published(sums, "x.iso").digest == "b" * 64
    assert published(sums, "y.iso").digest == "c" * 64
    assert published(sums, "z.iso").digest == ""
    sums.write_text(f"{'a' * 64}  x.iso\n{'b' * 64}  x.iso\n")
    with pytest.raises(UsageError, match="2 digests"):
        published(sums, "x.iso")


def test_the_interpreter_is_not_needed_by_a_build(iso: Path, evidence: Evidence) -> None:
    """A command of one word, without a shell."""
    found = seen(iso, Wanted(command=sys.executable, output="*.iso", deadline_s=60), evidence)
    assert found.builds[0].status == 0
    assert verdict(found)[0] is Verdict.NOT_PROVEN
