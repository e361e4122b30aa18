"""What the terminal says: a header, a line for each gate, its findings, and one last line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_osgates.ledger import GateRecord, Launch, Ledger, RowRecord
from pytest_osgates.model import Finding, Severity, Verdict
from pytest_osgates.vm.spec import AccelKind
from pytest_osgates.vm.text import one_line, printable

if TYPE_CHECKING:
    from pytest_osgates.run import Run

MOST_FINDINGS = 20
_COLOUR = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.NOT_PROVEN: "yellow"}


def header(run: Run, swept: int) -> list[str]:
    """Lines for pytest's header."""
    accel = run.host.accelerator
    how = "KVM" if accel.kind is AccelKind.KVM else "TCG (emulated: slow)"
    if accel.kind is AccelKind.TCG and run.request.accel != "tcg":
        how += f"; KVM is not usable: {one_line(run.host.kvm.reason, 120)}"
    lines = [
        f"osgates: {run.request.iso.name}, {run.size / 1e6:.0f} MB, sha256 {run.image_sha256}",
        f"osgates: distro profile {run.profile.name!r}, {len(run.profile.required)} required gates",
        f"osgates: {run.host.qemu.banner.split(' (')[0]}, {how}",
        f"osgates: deadlines are multiplied by {run.host.pace:.1f}, this host's measured pace",
        f"osgates: evidence in {run.evidence.root}",
    ]
    outside = [
        f"{name} ({section.outside.origin.where})"
        for name, section in run.profile.gates.items()
        if section.outside is not None
    ]
    if run.disk is not None:
        lines.insert(1, f"osgates: disk {run.disk.path.name}, {run.disk.size / 1e6:.0f} MB, sha256 {run.disk.sha256}")
    if outside:
        lines.insert(2, f"osgates: gates that are not built in: {', '.join(outside)}")
    if swept:
        lines.append(f"osgates: removed what {swept} killed machines had left behind")
    return [one_line(line, 400) for line in lines]


def junit_properties(row: RowRecord) -> list[tuple[str, str]]:
    """A row as properties of its test case in JUnit XML."""
    properties = [("gate", row.gate), ("verdict", str(row.verdict))]
    if row.observation:
        properties += [("observation", row.observation), ("observation_sha256", row.observation_sha256)]
    properties += [
        (f"finding.{finding.severity}", one_line(f"{finding.rule}: {finding.subject}: {finding.seen}", 500))
        for finding in row.findings
        if finding.severity in {Severity.VIOLATION, Severity.UNPROVEN}
    ]
    properties += [
        ("control", f"{control['name']}: {'caught' if control['caught'] else 'NOT CAUGHT'}")
        for control in row.controls
    ]
    return properties


def gate_line(gate: GateRecord) -> str:
    """``boot  live  PASS (125 of 250 accepted)``."""
    text = f"{gate.name:<14} {gate.state:<10} {gate.verdict}"
    if gate.accepted:
        of = "" if gate.considered is None else f" of {gate.considered}"
        text += f" ({gate.accepted}{of} accepted)"
    if not gate.required:
        text += " [not required]"
    return text


def summary(reporter: Any, run: Run, ledger: Ledger) -> None:  # noqa: ANN401  (pytest's TerminalReporter)
    """The section of the gates: those that were selected with their findings, the others by name."""
    reporter.section(f"launch gates: {run.profile.name}", sep="=", bold=True)
    others = []
    for name, gate in ledger.gates.items():
        if name not in ledger.selected:
            others.append(f"{name}{'' if gate.required else ' [not required]'}")
            continue
        reporter.write_line(gate_line(gate), **{_COLOUR[gate.verdict]: True})
        _details(reporter, gate)
    if others:
        reporter.write_line(f"not selected: {', '.join(others)}")


def _details(reporter: Any, gate: GateRecord) -> None:  # noqa: ANN401
    if gate.verdict is not Verdict.PASS:
        for reason in gate.reasons:
            reporter.write_line(f"    {one_line(reason, 600)}")
    shown = [
        (rows, finding)
        for rows, finding in gate.findings
        if finding.severity in {Severity.VIOLATION, Severity.UNPROVEN, Severity.REMARK}
    ]
    shown.sort(key=lambda entry: entry[1].severity is Severity.REMARK)  # remarks push nothing off the end
    for rows, finding in shown[:MOST_FINDINGS]:
        for line in finding_lines(rows, finding):
            reporter.write_line(f"    {line}")
    if len(shown) > MOST_FINDINGS:
        reporter.write_line(f"    ... and {len(shown) - MOST_FINDINGS} more findings in verdicts.json")


def finding_lines(rows: str, finding: Finding) -> list[str]:
    """A finding, for a reader: what, on which rows, what was wanted, how to mend it. All of it made harmless."""
    mark = {Severity.VIOLATION: "-", Severity.UNPROVEN: "?", Severity.REMARK: "i"}.get(finding.severity, " ")
    where = f" [{rows}]" if rows else ""
    lines = [f"{mark} {finding.rule}: {finding.subject}{where}: {one_line(finding.seen, 240)}"]
    if finding.severity is not Severity.REMARK:
        lines.append(f"    wanted: {finding.wanted}")
    if finding.hint:
        lines.append(f"    hint: {finding.hint}")
    return [one_line_keeping_indent(line) for line in lines]


def one_line_keeping_indent(line: str) -> str:
    """`one_line`, but leading spaces stay."""
    body = line.lstrip(" ")
    return " " * (len(line) - len(body)) + one_line(body, 600)


def launch_line(run: Run, ledger: Ledger, launch: Launch) -> str:
    """``LAUNCH: ...``."""
    if launch is Launch.PARTIAL:
        required = [name for name, gate in ledger.gates.items() if gate.required]
        done = [name for name in required if name in ledger.selected]
        return f"LAUNCH: PARTIAL ({len(done)} of {len(required)} required gates)"
    if launch is Launch.ALL_REQUIRED_PASS:
        return "LAUNCH: ALL REQUIRED PASS (not a sign-off: this version cannot sign)"
    return f"LAUNCH: {launch}"


def last_lines(reporter: Any, run: Run, ledger: Ledger, launch: Launch, broken: Sequence[str]) -> None:  # noqa: ANN401
    """After pytest's own summary: where the evidence is, and the one last line."""
    if getattr(reporter, "_keyboardinterrupt_memo", None) is not None:
        # pytest.exit(..., returncode=0): pytest would tell of it behind the last line.
        reporter._report_keyboardinterrupt()
        reporter._keyboardinterrupt_memo = None
    for reason in broken:
        reporter.write_line(f"EVIDENCE INCOMPLETE: {one_line(reason, 400)}", red=True)
    reporter.write_line(f"evidence: {printable(str(run.evidence.root), 4096)}")
    colour = "green" if launch is Launch.ALL_REQUIRED_PASS else "yellow" if launch is Launch.PARTIAL else "red"
    reporter.write_line(launch_line(run, ledger, launch), bold=True, **{colour: True})
