"""``osgates baseline GATE``: acceptances for what a run found, with empty reasons, which count as none."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from pytest_osgates.checks.registry import GATES
from pytest_osgates.commands.evidence_dir import absence, observations, open_run, profile_of, record_of
from pytest_osgates.vm.errors import HostError, UsageError


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "baseline",
        help="write acceptances for what a run found",
        description="Prints TOML for the distro profile. Every reason is empty, and an empty reason counts as none:"
        " fill them in, one by one.",
    )
    parser.add_argument("gate", metavar="GATE", help="one that knows acceptances, such as kconfig")
    parser.add_argument(
        "--evidence", metavar="DIR", default="osgates-evidence", help="of a run (default: the newest)"
    )
    parser.add_argument("--iso-distro", metavar="NAME|FILE", help="another profile than that of the run")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the acceptances that are missing.

    :raise UsageError: the run observed nothing of this gate.
    :raise HostError: its observation cannot be read, or the gate broke.
    """
    evidence, verdicts = open_run(options.evidence)
    profile = profile_of(evidence, options.iso_distro)
    section = profile.gates.get(options.gate)
    gate = GATES.get(options.gate) if section is None else section.gate
    if section is not None and (why_not := absence(record_of(verdicts, section.name), section)):
        raise UsageError(why_not)
    if gate is None or gate.baseline is None:
        known = [name for name, entry in profile.gates.items() if entry.gate is not None and entry.gate.baseline]
        how = "there is no gate" if gate is None else "no acceptances can be written for the gate"
        raise UsageError(f"{how} {options.gate!r}", remedy="one of: " + ", ".join(known) if known else None)
    paths = observations(evidence, gate.name)
    if not paths:
        raise UsageError(f"the run in {evidence.root} observed nothing for {gate.name}", remedy="run the gate first")
    policy = gate.policy() if section is None or section.policy is None else section.policy
    for path in paths:
        seen = evidence.read_observation(str(path.relative_to(evidence.root)), gate.observation)
        try:
            text = gate.baseline(seen, policy)
        except Exception as error:
            # A gate's own code may raise anything.
            raise HostError(f"the gate {gate.name!r} broke: {type(error).__name__}: {error}") from error
        console.print(text, markup=False, soft_wrap=True)
    return 0
