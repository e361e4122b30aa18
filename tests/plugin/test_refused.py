"""What cannot be judged is refused before anything is booted or written, with the remedy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from .conftest import PROFILE, Bench

DISTRO = ["--iso-distro", "bench.toml"]
# Name, arguments, what is said of it.
REFUSED: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "no such file": (lambda iso: ["--iso", "none.iso"], ["--iso 'none.iso' does not exist", "-> give the path"]),
    "a directory": (lambda iso: ["--iso", "."], ["--iso '.' is not a regular file"]),
    "an empty file": (lambda iso: ["--iso", "empty.iso"], ["empty"]),
    "a text file": (lambda iso: ["--iso", "text.iso"], ["text.iso", "-> "]),
    "half an ISO": (lambda iso: ["--iso", "half.iso"], ["half.iso", "cut short"]),
    "two ISOs": (lambda iso: ["--iso", str(iso), "--iso", "text.iso"], ["--iso was given 2 times", "text.iso"]),
    "no profile fits": (lambda iso: ["--iso", str(iso)], ["ID='osgates-test'", "--iso-distro NAME|FILE.toml"]),
    "no such profile": (lambda iso: ["--iso", str(iso), "--iso-distro", "demmo"], ["did you mean 'demo'?"]),
    "a broken profile": (
        lambda iso: ["--iso", str(iso), "--iso-distro", "broken.toml"],
        ["unknown key machine.memory (did you mean 'memory_mib'?)", "docs/profiles.md"],
    ),
    "no such disk": (
        lambda iso: ["--iso", str(iso), *DISTRO, "--iso-disk", "none.qcow2"],
        ["--iso-disk 'none.qcow2' does not exist"],
    ),
    "no such tool": (
        lambda iso: ["--iso", str(iso), *DISTRO, "--iso-tool", "checker"],
        ["--iso-tool 'checker' is not NAME=PATH"],
    ),
    "evidence in a file": (
        lambda iso: ["--iso", str(iso), *DISTRO, "--iso-evidence", "text.iso"],
        ["evidence directory", "cannot be made", "-> choose a writable directory with --iso-evidence DIR"],
    ),
    "a name that hides": (lambda iso: ["--iso", "x\x1b[2J\u202e.iso"], ["does not exist"]),
}

# All of them in one process: what takes long is to import.
DRIVER = """
import contextlib, io, json, sys
import pytest

said = {}
for name, arguments in json.load(open("refused.json")).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = pytest.main(["-p", "no:hypothesispytest", *arguments, "test_rows.py"])
    said[name] = [int(status), out.getvalue(), err.getvalue()]
json.dump(said, open("said.json", "w"))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, tuple[int, str, str]]:
    """Filled by the first test that needs it."""
    return {}


@pytest.fixture
def refusals(bench: Bench, said: dict[str, tuple[int, str, str]]) -> Mapping[str, tuple[int, str, str]]:
    """For each name above: exit status, standard output, standard error."""
    if not said:
        (bench.path / "empty.iso").write_bytes(b"")
        (bench.path / "text.iso").write_text("This is no ISO.\n" * 5000)
        whole = bench.iso.read_bytes()
        (bench.path / "half.iso").write_bytes(whole[: len(whole) // 2])
        (bench.path / "broken.toml").write_text(PROFILE.replace("[machine]", "[machine]\nmemory = 1"))
        arguments = {name: make(bench.iso) for name, (make, _) in REFUSED.items()}
        (bench.path / "refused.json").write_text(json.dumps(arguments))
        done = bench.pytester.run(sys.executable, "-c", DRIVER, timeout=90)
        assert done.ret == 0
        assert not (bench.path / "osgates-evidence").exists()
        said.update(
            {name: tuple(found) for name, found in json.loads((bench.path / "said.json").read_text()).items()}
        )
    return said


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_as_a_usage_error_with_its_remedy(
    refusals: Mapping[str, tuple[int, str, str]], name: str
) -> None:
    status, out, err = refusals[name]
    assert status == pytest.ExitCode.USAGE_ERROR
    assert out.strip() == ""
    assert err.startswith("ERROR: ")
    for words in REFUSED[name][1]:
        assert words in err
    assert "Traceback" not in err
    assert re.search(r"[\x1b\u202e]", err) is None


def test_a_host_without_qemu_is_told_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bench.path))
    done = bench.plain(*bench.options(), "test_rows.py")
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "qemu-system-x86_64 is not installed" in done.errors
    assert "apt-get install qemu-system-x86" in done.errors


def test_settings_that_pytest_did_not_read_are_not_lost_in_silence(bench: Bench) -> None:
    """Where no test is named, the path after `--iso` makes pytest look for its ini-file above the ISO, not here."""
    (bench.path / "pytest.ini").write_text("[pytest]\nosgates_distro = bench.toml\n")
    done = bench.plain("--iso", bench.iso)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "pytest.ini, which has osgates_* settings" in done.errors
    assert "write --iso=FILE" in done.errors
