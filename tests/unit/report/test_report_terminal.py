"""The terminal's words, compared with files; `OSGATES_WRITE_GOLDEN=1` writes those anew, to be read."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from gate_samples import HOSTILE
from hypothesis import given, settings

from pytest_osgates.ledger import Launch, Ledger, RowRecord
from pytest_osgates.model import Finding, Policy, Severity, State, Verdict
from pytest_osgates.profiles.schema import BootSection, GateSection, MachineSection, Profile
from pytest_osgates.report import terminal
from pytest_osgates.vm.host import KVM, TCG, Probe, Qemu

GOLDEN = Path(__file__).parents[2] / "golden" / "report"
BOOT_ROWS = ("uefi-channel", "uefi-bare")


class Recorder:
    """Stands in for pytest's terminal reporter."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.colours: list[str] = []

    def section(self, title: str, sep: str = "=", **markup: bool) -> None:
        self.lines.append(f" {title} ".center(80, sep))

    def write_line(self, line: str, **markup: bool) -> None:
        self.lines.append(line)
        self.colours.append(" ".join(sorted(markup)))

    @property
    def text(self) -> str:
        return "".join(line.rstrip() + "\n" for line in self.lines)


def profile() -> Profile:
    def gate(name: str, required: bool = True, state: State = State.LIVE) -> GateSection:
        return GateSection(name=name, required=required, state=state, promise="", policy=Policy())

    return Profile(
        name="p",
        title="",
        os_release={},
        machine=MachineSection(),
        boot=BootSection(),
        login=None,
        gates={
            "boot": gate("boot"),
            "kconfig": gate("kconfig", state=State.INSTALLED),
            "lynis": gate("lynis"),
            "privacy-review": gate("privacy-review", required=False, state=State.IMAGE),
        },
        sha256="0" * 64,
        source="p.toml",
    )


def ledger(*rows: RowRecord) -> Ledger:
    book = Ledger(profile(), {"boot": BOOT_ROWS})
    for row in rows:
        book.record(row, 1.0)
    return book


def run(**changes: Any) -> Any:
    """As much of a run as the terminal asks for."""
    fields = {
        "profile": profile(),
        "image_sha256": "ab" * 32,
        "size": 1_234_567_890,
        "evidence": SimpleNamespace(root=Path("/evidence/abababababab/run")),
        "request": SimpleNamespace(iso=Path("/images/p.iso"), accel="auto"),
        "disk": None,
        "host": SimpleNamespace(
            accelerator=TCG,
            pace=1.52,
            kvm=Probe(KVM, False, "/dev/kvm does not exist"),
            qemu=Qemu("/usr/bin/qemu-system-x86_64", (9, 2, 0), "QEMU emulator version 9.2.0 (Debian 1:9.2)"),
        ),
    }
    return SimpleNamespace(**{**fields, **changes})


def finding(rule: str, subject: str, severity: Severity = Severity.VIOLATION, **changes: str) -> Finding:
    fields = {"seen": "is failed", "wanted": "no unit fails", "hint": "in the guest: systemctl status"}
    return Finding(rule=rule, subject=subject, severity=severity, **{**fields, **changes})


def passed(gate: str, case: str = "", *findings: Finding, considered: int | None = None) -> RowRecord:
    return RowRecord(gate, case, Verdict.PASS, findings=findings, considered=considered)


ACCEPTED = tuple(finding("kconfig", f"CONFIG_{n}", Severity.ACCEPTED) for n in range(125))
REMARK = finding("unused-acceptance", "a.service", Severity.REMARK, seen="it did not happen", hint="remove it")

CASES: dict[str, Ledger] = {
    "nothing-ran": ledger(),
    "all-pass": ledger(
        passed("boot", "uefi-channel", REMARK),
        passed("boot", "uefi-bare"),
        passed("kconfig", "", *ACCEPTED, considered=250),
        passed("lynis"),
        passed("privacy-review"),
    ),
    "fail": ledger(
        RowRecord(
            "boot",
            "uefi-channel",
            Verdict.FAIL,
            findings=(finding("failed-unit", "ssh.service"), finding("late", "multi-user.target", hint="")),
        ),
        RowRecord("boot", "uefi-bare", Verdict.FAIL, findings=(finding("late", "multi-user.target", hint=""),)),
        passed("kconfig", "", *ACCEPTED[:1]),
    ),
    "not-proven": ledger(
        RowRecord(
            "boot",
            "uefi-channel",
            Verdict.NOT_PROVEN,
            "units-unknown: systemd: no answer",
            findings=(finding("units-unknown", "systemd", Severity.UNPROVEN, seen="no answer"),),
        ),
        RowRecord("privacy-review", "", Verdict.NOT_PROVEN, "this version has no gate 'privacy-review'"),
    ),
    "hostile": ledger(
        RowRecord(
            "boot",
            "uefi-channel",
            Verdict.FAIL,
            HOSTILE,
            findings=(
                finding("failed-unit", HOSTILE, seen=HOSTILE, wanted=HOSTILE, hint=HOSTILE),
                finding("long", "x" * 3000, seen="y" * 3000),
            ),
        ),
        RowRecord("kconfig", "", Verdict.NOT_PROVEN, HOSTILE),
    ),
    "many": ledger(
        RowRecord("lynis", "", Verdict.FAIL, findings=tuple(finding("r", f"s{n}", hint="") for n in range(25)))
    ),
}


def told(book: Ledger) -> Recorder:
    reporter = Recorder()
    terminal.summary(reporter, run(), book)
    terminal.last_lines(reporter, run(), book, book.launch, [])
    return reporter


@pytest.mark.parametrize("name", CASES)
def test_the_summary_is_as_agreed(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    text = told(CASES[name]).text
    if os.environ.get("OSGATES_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_last_line_and_only_it_says_launch(name: str) -> None:
    lines = told(CASES[name]).lines
    assert [line.startswith("LAUNCH: ") for line in lines].index(True) == len(lines) - 1


def test_remarks_do_not_push_a_violation_off_the_end() -> None:
    remarks = [finding("unused-acceptance", f"s{n}", Severity.REMARK) for n in range(terminal.MOST_FINDINGS)]
    row = RowRecord("lynis", "", Verdict.FAIL, findings=(*remarks, finding("late", "boot")))
    assert [line for line in told(ledger(row)).lines if "- late: boot" in line]


def harmless(text: str) -> bool:
    return all(unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} for char in text)


def test_nothing_that_a_guest_says_leaves_its_line() -> None:
    reporter = told(CASES["hostile"])
    assert all(harmless(line) for line in reporter.lines)
    assert max(len(line) for line in reporter.lines) < 700


TEXT = st.text(max_size=30) | st.sampled_from([HOSTILE, "\x1b[31", "\x9b", "\u2066", "\u2028"])


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(texts=st.lists(TEXT, min_size=6, max_size=6), severity=st.sampled_from(list(Severity)))
def test_no_text_of_a_finding_does_harm(texts: list[str], severity: Severity) -> None:
    one, two, three, four, five, reason = texts
    bad = Finding(rule=one, subject=two, seen=three, wanted=four, hint=five, severity=severity)
    book = ledger(RowRecord("boot", "uefi-channel", Verdict.FAIL, reason, (bad,)))
    lines = told(book).lines
    assert all(harmless(line) for line in lines)
    assert sum(line.startswith("LAUNCH") for line in lines) == 1


@pytest.mark.parametrize(
    ("launch", "line", "colour"),
    [
        (Launch.ALL_REQUIRED_PASS, "LAUNCH: ALL REQUIRED PASS (not a sign-off: this version cannot sign)", "green"),
        (Launch.PARTIAL, "LAUNCH: PARTIAL (1 of 3 required gates)", "yellow"),
        (Launch.NOT_READY, "LAUNCH: NOT READY", "red"),
    ],
)
def test_the_last_line(launch: Launch, line: str, colour: str) -> None:
    reporter = Recorder()
    terminal.last_lines(reporter, run(), ledger(passed("kconfig"), passed("privacy-review")), launch, [])
    assert reporter.lines == ["evidence: /evidence/abababababab/run", line]
    assert reporter.colours[-1] == f"bold {colour}"


def test_missing_evidence_is_told() -> None:
    reporter = Recorder()
    terminal.last_lines(reporter, run(), ledger(), Launch.NOT_READY, [f"disk full {HOSTILE}"])
    assert reporter.lines[0].startswith("EVIDENCE INCOMPLETE: disk full")
    assert harmless(reporter.lines[0])


def test_the_header_names_image_profile_accelerator_and_evidence() -> None:
    assert terminal.header(run(), 0) == [
        f"osgates: p.iso, 1235 MB, sha256 {'ab' * 32}",
        "osgates: distro profile 'p', 3 required gates",
        "osgates: QEMU emulator version 9.2.0, TCG (emulated: slow); KVM is not usable: /dev/kvm does not exist",
        "osgates: deadlines are multiplied by 1.5, this host's measured pace",
        "osgates: evidence in /evidence/abababababab/run",
    ]
    asked = terminal.header(run(request=SimpleNamespace(iso=Path("/a\x1b[31mb\n.iso"), accel="tcg")), 2)
    assert asked[0].startswith("osgates: ab .iso, ")
    assert asked[2].endswith("TCG (emulated: slow)")
    assert asked[-1] == "osgates: removed what 2 killed machines had left behind"


def test_junit_properties_hold_verdict_findings_and_controls() -> None:
    row = RowRecord(
        "boot",
        "uefi-bare",
        Verdict.FAIL,
        findings=(finding("late", HOSTILE), REMARK, finding("x", "y", Severity.UNPROVEN)),
        controls=({"name": "a", "caught": True, "why": ""}, {"name": "b", "caught": False, "why": "w"}),
        observation="observations/boot/uefi-bare.json",
        observation_sha256="0" * 64,
    )
    properties = terminal.junit_properties(row)
    assert ("verdict", "FAIL") in properties
    assert ("finding.unproven", "x: y: is failed") in properties
    assert [value for name, value in properties if name == "control"] == ["a: caught", "b: NOT CAUGHT"]
    assert not [name for name, _ in properties if name == "finding.remark"]
    assert all(harmless(value) for _, value in properties)
