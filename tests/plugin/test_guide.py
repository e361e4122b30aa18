"""docs/writing-a-gate.md, followed to the letter, on an ISO that nobody has to boot."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from pytest_osgates.cli import main
from tests.guide import GUIDE, blocks, package, write_out

from .conftest import Bench, Done, make_iso

OPEN = "/etc/hosts.d/local"


@pytest.fixture(scope="session")
def open_iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the text plants: a file that everyone can write."""
    return make_iso(tmp_path_factory.mktemp("open-iso"), {OPEN[1:]: 0o666})


@pytest.fixture
def guide(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The text's files, in the directory where pytest is started."""
    # Subcommands are called in this process, whose pytest is strict about markers, as no other process of osgates is.
    monkeypatch.setattr(pytest.mark, "_config", None)
    write_out(bench.path)
    (bench.path / "test_rows.py").unlink()
    return bench


def judged(bench: Bench, iso: Path, *arguments: str) -> Done:
    """As the text starts it: no path is named."""
    junit = bench.path / "junit.xml"
    done = bench.plain("--iso", iso, "--iso-distro", "my.toml", "--junitxml", junit, *arguments)
    done.junit_path = junit
    return done.check().check_manifest()


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """What a subcommand of osgates ends with and prints."""
    capsys.readouterr()
    status = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_every_step_holds(
    guide: Bench, open_iso: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = judged(guide, guide.iso, "--strict-markers", "-W", "error")
    assert clean.status == 0, clean.output + clean.errors
    assert clean.verdicts == {"writable": "PASS"}
    assert "osgates: gates that are not built in: writable (gates/test_writable.py)" in clean.output
    assert re.search(r"^writable +image +PASS$", clean.output, re.MULTILINE)
    assert clean.lines[-1].startswith("LAUNCH: ALL REQUIRED PASS")
    assert [control["caught"] for control in clean.record["gates"]["writable"]["controls"]] == [True, True]
    assert clean.record["gates"]["writable"]["considered"] == 2
    came = clean.record["gates"]["writable"]["from"]
    assert came["path"] == "gates/test_writable.py"
    assert json.loads((clean.root / "manifest.json").read_text())["gates_from"] == [{"gate": "writable", **came}]
    assert clean.junit["test_writable"][1]["verdict"] == "PASS"

    bad = judged(guide, open_iso, "-m", "writable")
    assert bad.status == 1
    assert bad.verdicts == {"writable": "FAIL"}
    assert f"- world-writable: {OPEN}: mode 666" in bad.output
    assert bad.junit["test_writable"][0] == {"failure"}

    monkeypatch.chdir(guide.path)
    profile = ["--iso-distro", "my.toml"]
    status, text = said(capsys, "baseline", "writable", "--evidence", bad.root, *profile)
    assert status == 0
    assert tomllib.loads(text) == {"gate": {"writable": {"accept": [{"path": OPEN, "reason": ""}]}}}
    assert said(capsys, "rejudge", bad.root, *profile)[0] == 1
    with (guide.path / "my.toml").open("a") as file:
        file.write("\n" + blocks()["accepted.toml"])
    status, text = said(capsys, "rejudge", bad.root, *profile)
    assert (status, "PASS (1 of 4 accepted)" in text) == (0, True)
    accepted = judged(guide, open_iso)
    assert accepted.status == 0
    assert "PASS (1 of 4 accepted)" in accepted.output

    status, text = said(capsys, "compare", clean.root, bad.root, "writable", *profile)
    assert status == 1
    assert "PASS -> FAIL" in text
    assert f"+ violation world-writable: {OPEN}: mode 666" in text
    status, text = said(capsys, "compare", bad.root, accepted.root, *profile)
    assert status == 1
    assert f"! world-writable: {OPEN}: violation -> accepted (guests of the kiosk" in text
    status, text = said(capsys, "compare", clean.root, clean.root, *profile)
    assert (status, text.splitlines()[2:]) == (0, ["writable: as before: PASS"])


def test_evidence_of_a_gate_is_judged_again_only_with_its_code(
    guide: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = judged(guide, guide.iso)
    # Evidence may be anyone's: what lies beside the profile in it is not run.
    (done.root / "gates").mkdir()
    (done.root / "gates" / "test_writable.py").write_text("raise SystemExit('code out of the evidence was run')\n")
    monkeypatch.chdir(guide.path)
    status, text = said(capsys, "rejudge", done.root)
    assert status == 10
    assert re.search(r"^writable +image +NOT PROVEN$", text, re.MULTILINE)
    assert "its code is not here: gates/test_writable.py; name the profile that leads to it" in text
    status, text = said(capsys, "compare", done.root, done.root)
    assert status == 1
    assert "only what was recorded is compared" in text
    status, text = said(capsys, "baseline", "writable", "--evidence", done.root)
    assert status == 4
    assert "its code is not here" in text

    file = guide.path / "gates" / "test_writable.py"
    status, text = said(capsys, "rejudge", done.root, "--iso-distro", "my.toml")
    assert (status, "other code" in text) == (0, False)
    file.write_text(file.read_text() + "\n# mended\n")
    status, text = said(capsys, "rejudge", done.root, "--iso-distro", "my.toml")
    assert status == 0
    assert "i other code than in the run: test_writable.py (another SHA-256)" in text
    file.write_text(file.read_text().replace("if not seen.entries:", "if 1 / 0:"))
    status, text = said(capsys, "rejudge", done.root, "--iso-distro", "my.toml")
    assert status == 10
    assert "the gate broke: ZeroDivisionError" in text


def test_the_package_is_found_by_its_entry_point(
    guide: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metadata as pip would write it; that pip does is tested with the other packages."""
    package(guide.path)
    project = tomllib.loads((guide.path / "pyproject.toml").read_text())["project"]
    site = guide.path / "site"
    info = site / "my_gates-1.0.dist-info"
    info.mkdir(parents=True)
    (guide.path / "my_gates").rename(site / "my_gates")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-gates\nVersion: 1.0\n")
    entries = project["entry-points"]["osgates.gates"]
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[osgates.gates]", *lines, ""]))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    done = judged(guide, guide.iso, "--strict-markers", "-n", "1")
    assert done.status == 0, done.output + done.errors
    assert done.verdicts == {"writable": "PASS"}
    came = done.record["gates"]["writable"]["from"]
    assert (came["distribution"], came["path"]) == ("my-gates 1.0", "my_gates/test_writable.py")

    status, text = said(capsys, "rejudge", done.root)
    assert status == 10
    assert "its code is not here: install my-gates 1.0" in text
    monkeypatch.syspath_prepend(site)
    assert said(capsys, "rejudge", done.root)[0] == 0


def test_the_text_says_what_the_output_says() -> None:
    """Its samples are of the kind that is printed today."""
    text = GUIDE.read_text(encoding="utf-8")
    assert re.search(r"^writable       image      PASS$", text, re.MULTILINE)
    assert re.search(r"^writable       image      FAIL$", text, re.MULTILINE)
    assert "- world-writable: /etc/hosts.d/local: mode 666\n        wanted: not writable by others" in text
