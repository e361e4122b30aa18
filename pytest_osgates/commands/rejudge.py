"""``osgates rejudge DIR``: judge a run's observations again, without booting anything."""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

from rich.console import Console

from pytest_osgates.checks.registry import GATES
from pytest_osgates.commands.evidence_dir import open_run, profile_of
from pytest_osgates.judging import judge
from pytest_osgates.ledger import GateRecord, RowRecord
from pytest_osgates.model import Verdict
from pytest_osgates.report.terminal import finding_lines, gate_line
from pytest_osgates.vm.errors import HostError, OsgatesError


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
        gate = GATES.get(name)
        recorded = verdicts["gates"].get(name, {}).get("rows", {})
        expected = ("",) if gate is None or section.policy is None else gate.cases(section.policy, profile.firmwares)
        record = GateRecord(name, section.required, section.states, section.promise, tuple(expected))
        for case, row in recorded.items():
            if gate is None or not row.get("observation"):
                continue
            try:
                if not (evidence.root / row["observation"]).resolve().is_relative_to(evidence.root.resolve()):
                    raise HostError(f"{row['observation']} lies outside the evidence")
                data = (evidence.root / row["observation"]).read_bytes()
                if hashlib.sha256(data).hexdigest() != row["sha256"]:
                    raise HostError(f"{row['observation']} is not what the run recorded (another SHA-256)")
                seen = evidence.read_observation(row["observation"], gate.observation)
                state = section.state_of(case)
                if getattr(seen, "state", state) != state:
                    # What was seen on one state says nothing of another.
                    raise HostError(f"it was observed on the state {seen.state}, the profile wants {state}")
                judgement = judge(gate, seen, section.policy)  # type: ignore[arg-type]
                record.rows[case] = RowRecord(
                    name, case, judgement.verdict, findings=judgement.findings, considered=judgement.considered
                )
            except (OsgatesError, OSError) as error:
                record.rows[case] = RowRecord(name, case, Verdict.NOT_PROVEN, str(error))
        if not record.rows and not section.required:
            continue
        worst.add(record.verdict)
        console.print(gate_line(record), markup=False)
        for reason in record.reasons:
            console.print(f"    {reason}", markup=False)
        for rows, finding in record.findings:
            if finding.severity in {"violation", "unproven"}:
                for line in finding_lines(rows, finding):
                    console.print(f"    {line}", markup=False, soft_wrap=True)
    if Verdict.FAIL in worst:
        return 1
    return 10 if Verdict.NOT_PROVEN in worst or not worst else 0
