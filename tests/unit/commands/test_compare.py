"""Two runs compared: verdicts, findings, acceptances, and what a gate itself knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gate_samples import HOSTILE, KCONFIG_POLICY, booted, check, kernel

from pytest_osgates.checks import kconfig
from pytest_osgates.cli import main
from pytest_osgates.evidence import Evidence, dump
from pytest_osgates.judging import judge
from pytest_osgates.ledger import Ledger, RowRecord
from pytest_osgates.model import Finding, Observation, Severity, Verdict
from pytest_osgates.profiles import loader

PROFILE = """
schema = 1
name = "p"
[machine]
firmware = ["uefi"]
[gate.boot]
[gate.kconfig]
parameters = ["BOOT_IMAGE=*", "quiet"]
[gate.house-rule]
"""


def run_of(
    base: Path, name: str, rows: Mapping[tuple[str, str], Observation], **findings: tuple[Finding, ...]
) -> Path:
    """Evidence as a run leaves it; the findings of `kconfig` are judged, those of others given."""
    evidence = Evidence.create(base / name, "ab" * 32, f"20261121T000000Z-{name}")
    evidence.write("profile.toml", PROFILE.encode())
    profile = loader.load(evidence.root / "profile.toml")
    ledger = Ledger(profile, {gate: section.rows for gate, section in profile.gates.items()})
    for (gate, case), seen in rows.items():
        stored = evidence.store_observation(gate, case, seen)
        found = findings.get(gate)
        if found is None and isinstance(seen, kconfig.KconfigObservation):
            found = judge(kconfig.GATE, seen, KCONFIG_POLICY).findings
        found = found or ()
        bad = any(finding.severity is Severity.VIOLATION for finding in found)
        verdict = Verdict.FAIL if bad else Verdict.PASS
        ledger.record(
            RowRecord(gate, case, verdict, findings=found, observation=stored.path, observation_sha256=stored.sha256),
            1.0,
        )
    facts = {
        "schema": 1,
        "run": name,
        "image": {"sha256": "ab" * 32},
        "distro": {"name": "p", "sha256": profile.sha256},
        "gates": ledger.to_json(),
    }
    evidence.write("verdicts.json", dump(facts))
    return evidence.root


def change(root: Path, function: Any) -> None:
    """Edit ``verdicts.json`` in place."""
    data = json.loads((root / "verdicts.json").read_text())
    function(data)
    (root / "verdicts.json").write_text(json.dumps(data))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    def compare(*arguments: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main(["compare", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out
        assert "\u202e" not in captured.out
        return status, (captured.out + captured.err).splitlines()

    return compare


ROWS = {("boot", "uefi-channel"): booted(), ("kconfig", ""): kernel()}


def test_equal_runs_are_equal_and_say_which_runs_they_are(tmp_path: Path, said: Any) -> None:
    """Whatever time they took."""
    old = run_of(tmp_path, "old", ROWS)
    new = run_of(tmp_path, "new", {**ROWS, ("boot", "uefi-channel"): booted(ready_s=99.0)})
    status, lines = said(old, new)
    assert status == 0
    assert lines[0].startswith("--- old, image abababababab, profile p ")
    assert lines[1].startswith("+++ new, image abababababab, profile p ")
    assert lines[2:] == [
        "boot: as before: NOT PROVEN",
        "kconfig: as before: PASS",
        "house-rule: as before: NOT PROVEN",
    ]
    assert said(old, old)[0] == 0


def test_of_two_findings_of_one_name_none_is_lost(tmp_path: Path, said: Any) -> None:
    def finding(seen: str, **more: Any) -> Finding:
        return Finding(rule="warning", subject="AUTH-1", seen=seen, wanted="none", **more)

    known = finding("old", severity=Severity.ACCEPTED, reason="known")
    runs = [
        run_of(tmp_path, name, ROWS, boot=found)
        for name, found in {
            "one": (finding("other"), known),
            "two": (finding("other"), finding("new"), known),
            "three": (known,),
        }.items()
    ]
    kept = json.loads((runs[1] / "verdicts.json").read_text())["gates"]["boot"]["findings"]
    assert [entry["seen"] for entry in kept] == ["other", "new", "old"]
    what, accepted = "    ! warning: AUTH-1 [uefi-channel]:", "accepted (known)"
    status, lines = said(runs[0], runs[1], "boot")
    assert (status, lines[-1]) == (1, f"{what} {accepted} and violation -> {accepted} and violation and violation")
    assert f"{what} {accepted} and violation -> {accepted}" in said(runs[0], runs[2], "boot")[1]
    assert said(runs[1], runs[1], "boot")[0] == 0


def test_what_changed_is_said_gate_by_gate_and_row_by_row(tmp_path: Path, said: Any) -> None:
    def finding(subject: str, **more: Any) -> Finding:
        return Finding(rule="failed-unit", subject=subject, seen=f"{subject} failed", wanted="none", **more)

    old = run_of(
        tmp_path,
        "old",
        ROWS,
        boot=(finding("a"), finding("b"), finding("c", severity=Severity.ACCEPTED, reason="known")),
    )
    new = run_of(
        tmp_path,
        "new",
        {
            ("boot", "uefi-channel"): booted(),
            ("kconfig", ""): kernel(check("CONFIG_X", "FAIL: n"), command_line="quiet ro"),
        },
        boot=(
            finding("b", severity=Severity.ACCEPTED, reason="why"),
            finding("c", severity=Severity.ACCEPTED),
            finding("d"),
        ),
    )
    status, lines = said(old, new)
    assert status == 1
    assert lines[2:] == [
        "boot:",
        "    - violation failed-unit: a [uefi-channel]",
        "    ! failed-unit: b [uefi-channel]: violation -> accepted (why)",
        "    ! failed-unit: c [uefi-channel]: accepted (known) -> accepted",
        "    + violation failed-unit: d [uefi-channel]: d failed",
        "kconfig:",
        "    PASS -> FAIL",
        "    + violation kconfig: CONFIG_X: FAIL: n",
        "    + violation unknown-parameter: ro: ro",
        "    kconfig CONFIG_X: not checked -> FAIL: n",
        "    parameter BOOT_IMAGE=/live/vmlinuz: gone",
        "    parameter ro: new",
        "house-rule: as before: NOT PROVEN",
    ]
    status, lines = said(new, old, "kconfig")
    assert status == 1
    assert lines[2:5] == ["kconfig:", "    FAIL -> PASS", "    - violation kconfig: CONFIG_X"]
    assert said(new, old, "house-rule")[0] == 0


def test_rows_and_gates_that_one_run_lacks_are_said(tmp_path: Path, said: Any) -> None:
    old = run_of(tmp_path, "old", ROWS)
    new = run_of(tmp_path, "new", {("boot", "uefi-bare"): booted()})
    change(new, lambda data: data["gates"].pop("house-rule"))
    change(new, lambda data: data["gates"]["kconfig"].update(state="installed"))
    status, lines = said(old, new)
    assert status == 1
    assert "    [uefi-channel] PASS -> not there" in lines
    assert "    [uefi-bare] not there -> PASS" in lines
    assert "    state: live -> installed" in lines
    assert lines[-2:] == ["house-rule:", "    NOT PROVEN -> not there"]


def test_a_difference_that_leads_to_no_finding_is_the_gates_to_say(tmp_path: Path, said: Any) -> None:
    old, new = (
        run_of(tmp_path, name, {("kconfig", ""): kernel(check("CONFIG_Y", result))})
        for name, result in (("old", "OK"), ("new", "OK: is not off"))
    )
    assert said(old, new, "kconfig") == (
        1,
        [*said(old, new)[1][:2], "kconfig:", "    kconfig CONFIG_Y: OK -> OK: is not off"],
    )


def test_an_observation_that_is_not_the_runs_makes_no_runs_equal(tmp_path: Path, said: Any) -> None:
    for number, spoil in enumerate(
        (
            lambda root: (root / "observations/kconfig.json").write_text("{}"),
            lambda root: (root / "observations/kconfig.json").unlink(),
            lambda root: change(
                root, lambda data: data["gates"]["kconfig"]["rows"][""].update(observation="../../x")
            ),
            lambda root: change(root, lambda data: data["gates"]["kconfig"]["rows"][""].update(sha256="0")),
        )
    ):
        old = run_of(tmp_path, f"old-{number}", ROWS)
        new = run_of(tmp_path, f"new-{number}", ROWS)
        spoil(new)
        status, lines = said(old, new, "kconfig")
        assert status == 1
        assert len(lines) >= 4
        assert lines[3].startswith("    ? ")


def test_evidence_of_others_is_only_text(tmp_path: Path, said: Any) -> None:
    """Nothing in it makes the terminal do something, and nothing that is missing breaks the comparison."""
    old = run_of(tmp_path, "old", ROWS)
    new = run_of(tmp_path, "new", ROWS)
    nasty = {"rule": HOSTILE, "subject": HOSTILE, "seen": HOSTILE, "severity": HOSTILE, "reason": HOSTILE, "rows": 3}

    def spoil(data: dict[str, Any]) -> None:
        data["run"] = data["image"] = data["distro"] = HOSTILE
        data["gates"]["boot"].update(verdict=HOSTILE, findings=[nasty, 3, None], rows=[1])
        data["gates"]["kconfig"].update(findings={"a": 1}, rows={"": 3, HOSTILE: {"verdict": HOSTILE}})
        data["gates"][HOSTILE] = {}
        data["gates"]["list"] = []

    change(new, spoil)
    status, lines = said(old, new)
    assert status == 1
    assert not any(line.startswith("LAUNCH") for line in lines)
    assert said(new, old)[0] == 1
    assert said(new, new)[0] == 1, "what makes no sense is equal to nothing"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none", "old"), "no evidence of a run in none"),
        (("old", "none"), "no evidence of a run in none"),
        (("old", "old", "kconfg"), "neither run has a gate 'kconfg'"),
        (("old", "old", "--iso-distro", "demmo"), "did you mean 'demo'?"),
        (("broken", "old"), "is not what a run writes"),
    ],
)
def test_what_cannot_be_compared_ends_with_2(
    tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    run_of(tmp_path, "old", ROWS)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "verdicts.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    status, lines = said(*arguments)
    assert status == 2
    assert words in "\n".join(lines)
    with pytest.raises(SystemExit) as caught:
        main(["compare", "old"])
    assert caught.value.code == 2


def test_kconfig_compares_kernels_checkers_and_each_check() -> None:
    before = kernel(check("A", "OK"), check("B", "FAIL"), check("A", "OK", "cmdline"), command_line='quiet "a b" x=1')
    now = kernel(
        check("B", "OK"),
        check("A", "FAIL", "cmdline"),
        command_line='x=2 quiet "a b"',
        release="7.0",
        tool_version="1",
        config=None,
    )
    assert kconfig.compare(before, before) == []
    assert kconfig.compare(before, now) == [
        f"kernel: {before.release} -> 7.0",
        f"config: image:/boot/config-{before.release} -> None",
        "kernel-hardening-checker: 0.6.17 -> 1",
        "kconfig A: OK -> not checked",
        "kconfig B: FAIL -> OK",
        "cmdline A: OK -> FAIL",
        "parameter x=1: gone",
        "parameter x=2: new",
    ]
