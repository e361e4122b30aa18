"""``osgates rejudge DIR``: judge a run's observations again, without booting anything."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, cast

from rich.console import Console

from pytest_osgates.commands.evidence_dir import (
    absence,
    another_version,
    open_run,
    profile_of,
    read_row,
    record_of,
    rows_of,
)
from pytest_osgates.evidence import Evidence
from pytest_osgates.fixtures.gate import why
from pytest_osgates.judging import judge
from pytest_osgates.ledger import GateRecord, RowRecord
from pytest_osgates.model import AnyGate, Policy, Verdict
from pytest_osgates.profiles.schema import GateSection
from pytest_osgates.report.terminal import finding_lines, gate_line
from pytest_osgates.vm.errors import HostError, OsgatesError
from pytest_osgates.vm.text import one_line


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "rejudge",
        help="judge a run's observations again",
        description="Exit status 0 if every observed gate passes, 1 with a FAIL, 10 with only NOT PROVEN.",
    )
    parser.add_argument("directory", metavar="DIR", help="evidence of a run")
    parser.add_argument("--iso-distro", metavar="NAME|FILE", help="judge by another profile than that of the run")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Judge and print a line for each gate.

    :raise UsageError: no evidence there.
    """
    evidence, verdicts = open_run(options.directory)
    profile = profile_of(evidence, options.iso_distro)
    worst: set[Verdict] = set()
    for name, section in profile.gates.items():
        recorded = record_of(verdicts, name)
        record = GateRecord(name, section.required, section.states, section.promise, section.rows)
        why_not = absence(recorded, section)
        for case, row in rows_of(recorded).items():
            if row.get("observation") and not why_not:
                record.rows[case] = _judged(evidence, section, case, row)
        if why_not and (section.required or rows_of(recorded)):
            record.rows[""] = RowRecord(name, "", Verdict.NOT_PROVEN, why_not)
        if not record.rows and not section.required:
            continue
        worst.add(record.verdict)
        console.print(gate_line(record), markup=False)
        for reason in record.reasons:
            console.print(f"    {one_line(reason, 600)}", markup=False, soft_wrap=True)
        if remark := another_version(recorded, section):
            console.print(f"    i {remark}", markup=False, soft_wrap=True)
        for rows, finding in record.findings:
            if finding.severity in {"violation", "unproven"}:
                for line in finding_lines(rows, finding):
                    console.print(f"    {line}", markup=False, soft_wrap=True)
    if Verdict.FAIL in worst:
        return 1
    return 10 if Verdict.NOT_PROVEN in worst or not worst else 0


def _judged(evidence: Evidence, section: GateSection, case: str, row: Mapping[str, Any]) -> RowRecord:
    gate = cast("AnyGate", section.gate)
    try:
        seen = read_row(evidence, row, gate)
        state = section.state_of(case)
        if getattr(seen, "state", state) != state:
            # What was seen on one state says nothing of another.
            raise HostError(f"it was observed on another state than {state}, which the profile wants")
        judgement = judge(gate, seen, cast("Policy", section.policy))
    except OsgatesError as error:
        return RowRecord(section.name, case, Verdict.NOT_PROVEN, str(error))
    except Exception as error:  # noqa: BLE001
        # A gate's own code may raise anything; the other gates are judged all the same.
        return RowRecord(section.name, case, Verdict.NOT_PROVEN, f"the gate broke: {type(error).__name__}: {error}")
    return RowRecord(
        section.name,
        case,
        judgement.verdict,
        reason=why(judgement),
        findings=judgement.findings,
        considered=judgement.considered,
    )
