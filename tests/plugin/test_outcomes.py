"""What each outcome of a gate's test makes of the run: letter, word, exit status, JUnit report, evidence."""

from __future__ import annotations

import json
import re

import pytest

from .conftest import BOOT_ROWS, PROFILE, Bench, Done

NOT_READY = "LAUNCH: NOT READY"


def test_all_rows_pass_on_an_iso_with_an_awkward_name_that_the_ini_file_names(bench: Bench) -> None:
    awkward = bench.path / "dist dir" / "Größe [1] ü'$x.iso"
    awkward.parent.mkdir()
    awkward.write_bytes(bench.iso.read_bytes())
    (bench.path / "pytest.ini").write_text(
        f"[pytest]\nosgates_iso = {awkward}\nosgates_distro = bench.toml\nosgates_evidence = proof\n"
        "addopts = --strict-markers --strict-config\nfilterwarnings = error\n"
    )
    # What a gate's test sees of the verdicts while it runs: nothing is proven before it has been judged.
    bench.rows(
        """
import json
from pathlib import Path

@pytest.fixture(autouse=True)
def before(os_run, os_profile, request):
    data = json.loads((os_run.evidence.root / "verdicts.json").read_text())
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps([request.node.name, data]) + "\\n")
    assert os_profile is os_run.profile
"""
    )
    done = bench.plain("test_rows.py", "--junitxml", "junit.xml").check().check_manifest()
    assert done.status == 0, done.output
    assert done.lines[-1] == "LAUNCH: ALL REQUIRED PASS (not a sign-off: this version cannot sign)"
    assert done.verdicts == {"boot": "PASS", "kconfig": "PASS"}
    assert done.row_verdicts("boot") == dict.fromkeys(BOOT_ROWS, "PASS")
    assert all(control["caught"] for gate in done.record["gates"].values() for control in gate["controls"])
    assert len(done.record["gates"]["boot"]["controls"]) == 3 * len(BOOT_ROWS)
    assert done.root.is_relative_to(bench.path / "proof")
    assert done.record["image"]["path"] == str(awkward)
    assert done.record["image"]["size"] == awkward.stat().st_size
    assert done.root.parent.name == done.record["image"]["sha256"][:12]
    assert (done.root / "profile.toml").read_text() == PROFILE
    assert re.search(r"^osgates: Größe \[1\] ü'\$x\.iso, ", done.output, re.MULTILINE)

    seen = [json.loads(line) for line in (bench.path / "seen.jsonl").read_text().splitlines()]
    assert [name for name, _ in seen] == [*(f"test_boot[{row}]" for row in BOOT_ROWS), "test_kernel"]
    first = seen[0][1]
    assert {gate["verdict"] for gate in first["gates"].values()} == {"NOT PROVEN"}
    assert [data["launch"] for _, data in seen] == ["NOT READY"] * 5
    assert [data["gates"]["boot"]["verdict"] for _, data in seen] == ["NOT PROVEN"] * 4 + ["PASS"]

    done.junit_path = bench.path / "junit.xml"
    for elements, properties in done.junit.values():
        assert elements == set()
        assert properties["verdict"] == "PASS"


MIXED = """
def change(case, seen):
    if case == "uefi-channel":
        failed = UnitFailure(unit="ssh.service", result=HOSTILE, still_failed=True)
        return seen.model_copy(update={"failures": (failed,), "console": {"serial": (HOSTILE,)}})
    if case == "uefi-bare":
        gone = {"outcome": Outcome.TIMEOUT, "legible": False, "ready_s": None, "console": {}, "ready_target": HOSTILE}
        return seen.model_copy(update=gone)
    return seen
"""


def check_mixed(done: Done) -> None:
    """The verdicts of the rows above."""
    assert done.status == 1
    assert done.lines[-1] == NOT_READY
    assert done.verdicts == {"boot": "FAIL", "kconfig": "PASS"}
    assert done.row_verdicts("boot") == dict(zip(BOOT_ROWS, ("FAIL", "NOT PROVEN", "PASS", "PASS"), strict=True))
    findings = {entry["rule"]: entry for entry in done.record["gates"]["boot"]["findings"]}
    assert set(findings) == {"failed-unit", "unobservable"}
    assert findings["failed-unit"]["rows"] == "uefi-channel"
    done.check_manifest()


def test_a_fail_and_a_not_proven_are_told_apart(bench: Bench) -> None:
    bench.rows(MIXED)
    done = bench.run()
    check_mixed(done)
    assert re.search(r"^test_rows\.py FN\.\.\. +\[100%\]$", done.output, re.MULTILINE)
    assert re.search(r"1 failed, 3 passed, 1 not proven", done.output)
    assert re.search(r"^boot +live +FAIL$", done.output, re.MULTILINE)
    assert "\u202e" not in done.output
    assert "- failed-unit: ssh.service [uefi-channel]" in done.output
    assert done.junit["test_boot[uefi-channel]"][0] == {"failure"}
    assert done.junit["test_boot[uefi-bare]"][0] == {"error"}
    assert done.junit["test_boot[bios-bare]"][0] == set()
    failed, unproven = (done.junit[f"test_boot[{row}]"][1] for row in BOOT_ROWS[:2])
    assert (failed["verdict"], unproven["verdict"]) == ("FAIL", "NOT PROVEN")
    assert failed["finding.violation"].startswith("failed-unit: ssh.service: is failed")
    assert unproven["finding.unproven"].startswith("unobservable: ")
    assert "osgates_row" not in failed


def test_workers_come_to_the_same_verdicts(bench: Bench) -> None:
    bench.rows(MIXED)
    done = bench.run("-n", "2", "--dist", "loadgroup")
    check_mixed(done)
    assert done.junit["test_boot[uefi-channel]"][0] == {"failure"}
    assert done.junit["test_boot[uefi-bare]"][0] == {"error"}


def test_a_killed_worker_proves_nothing(bench: Bench) -> None:
    bench.rows(
        """
import os, signal

def change(case, seen):
    if case == "bios-channel":
        os.kill(os.getpid(), signal.SIGKILL)
    return seen
"""
    )
    done = bench.run("-n", "1", "--dist", "loadgroup").check_manifest()
    assert done.status == 10
    assert done.lines[-1] == NOT_READY
    assert done.verdicts == {"boot": "NOT PROVEN", "kconfig": "NOT PROVEN"}
    assert done.row_verdicts("boot") == dict.fromkeys(BOOT_ROWS[:2], "PASS")
    assert done.reasons("boot") == "not run: bios-channel, bios-bare"


CAUGHT = "    with pytest.raises(AssertionError):\n        os_judge(kernel(check('CONFIG_X', 'FAIL: y')))"
# Test, the verdict of its row, words of its reason, elements in JUnit.
ODD: dict[str, tuple[str, str, str, set[str]]] = {
    "nothing": ("", "NOT PROVEN", "ended without judging anything", {"error"}),
    "skip": ("    pytest.skip('no time')", "NOT PROVEN", "was skipped: ", {"error"}),
    "skip_after": ("    os_judge(kernel())\n    pytest.skip('x')", "NOT PROVEN", "was skipped", {"error"}),
    "importorskip": ("    pytest.importorskip('no_such_module')", "NOT PROVEN", "no_such_module", {"error"}),
    "xfail": ("    pytest.xfail('known')", "NOT PROVEN", "expected to fail", {"error"}),
    "xfail_after": ("    os_judge(kernel())\n    pytest.xfail('x')", "NOT PROVEN", "expected to fail", {"error"}),
    "raises": ("    {}['key']", "NOT PROVEN", "broke before it judged: KeyError: 'key'", {"error"}),
    "asserts": ("    assert 1 == 2", "NOT PROVEN", "broke before it judged: AssertionError", {"error"}),
    "breaks_after": ("    os_judge(kernel())\n    assert 0", "NOT PROVEN", "broke after it judged", {"error"}),
    "twice": ("    os_judge(kernel())\n    os_judge(kernel())", "NOT PROVEN", "more than once", {"error"}),
    "bad_type": ("    os_judge({'checks': []})", "NOT PROVEN", "broke before it judged: AttributeError", {"error"}),
    "other_gate": ("    os_judge(booted())", "NOT PROVEN", "cannot be read back", {"error"}),
    "marked_skip": ("    os_judge(kernel())", "NOT PROVEN", "was skipped: ", {"error"}),
    "marked_skipif": ("    os_judge(kernel())", "NOT PROVEN", "was skipped: ", {"error"}),
    "marked_xfail": ("    os_judge(kernel())", "NOT PROVEN", "expected to fail", {"error"}),
    "marked_strict": ("    os_judge(kernel())", "NOT PROVEN", "XPASS(strict)", {"error"}),
    "marked_norun": ("    os_judge(kernel())", "NOT PROVEN", "expected to fail", {"error"}),
    "fixture": ("    os_judge(kernel())", "NOT PROVEN", "broke before it judged: RuntimeError: set-up", {"error"}),
    "teardown": ("    os_judge(kernel())", "NOT PROVEN", "broke after it judged: RuntimeError: end", {"error"}),
    "caught_fail": (
        CAUGHT,
        "FAIL",
        "",
        {"failure"},
    ),
    "fail_then_pass": (
        f"{CAUGHT}\n    os_judge(kernel())",
        "FAIL",
        "",
        {"failure"},
    ),
    "fail_then_skip": (
        f"{CAUGHT}\n    pytest.skip('x')",
        "FAIL",
        "",
        {"failure"},
    ),
}
MARKS = {
    "marked_skip": "@pytest.mark.skip",
    "marked_skipif": "@pytest.mark.skipif(True, reason='never')",
    "marked_xfail": "@pytest.mark.xfail",
    "marked_strict": "@pytest.mark.xfail(strict=True)",
    "marked_norun": "@pytest.mark.xfail(run=False)",
    "fixture": "@pytest.mark.usefixtures('breaks')",
    "teardown": "@pytest.mark.usefixtures('ends')",
}


@pytest.fixture(scope="module")
def odd_text() -> str:
    """One test of the gate `kconfig` for each odd outcome."""
    text = """
pytestmark = pytest.mark.kconfig

@pytest.fixture
def breaks():
    raise RuntimeError("set-up")

@pytest.fixture
def ends():
    yield
    raise RuntimeError("end")
"""
    for name, (body, *_) in ODD.items():
        text += f"\n{MARKS.get(name, '')}\ndef test_{name}(os_judge):\n{body or '    pass'}\n"
    return text


def test_no_odd_outcome_is_a_pass(bench: Bench, odd_text: str) -> None:
    bench.tests(odd_text)
    done = bench.run("-rA").check_manifest()
    assert done.verdicts["kconfig"] == "FAIL"
    assert done.status == 1
    assert set(done.junit) == {f"test_{name}" for name in ODD}
    for name, (_, verdict, _, elements) in ODD.items():
        found, properties = done.junit[f"test_{name}"]
        assert (name, properties.get("verdict")) == (name, verdict)
        assert (name, found) == (name, elements)
    assert len(re.findall(r"\d+ skipped|\d+ xfailed|\d+ xpassed", done.lines[-3])) == 0


@pytest.mark.parametrize("name", ["marked_skipif"])
def test_an_odd_outcome_alone_ends_with_10_and_says_why(bench: Bench, odd_text: str, name: str) -> None:
    bench.tests(odd_text)
    done = bench.run("-v", tests=[f"test_rows.py::test_{name}"])
    assert done.status == 10
    assert done.lines[-1] == NOT_READY
    assert done.verdicts == {"boot": "NOT PROVEN", "kconfig": "NOT PROVEN"}
    assert ODD[name][2] in done.reasons("kconfig")
    assert ODD[name][2] in done.output
    assert re.search(rf"^test_rows\.py::test_{name} NOT PROVEN|^NOT PROVEN", done.output, re.MULTILINE)
