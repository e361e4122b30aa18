"""``osgates compare OLD NEW [GATE]``: what changed between two runs, gate by gate and row by row."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from pytest_osgates.commands.evidence_dir import absence, open_run, profile_of, read_row, record_of, rows_of
from pytest_osgates.evidence import Evidence
from pytest_osgates.profiles.schema import GateSection, Profile
from pytest_osgates.vm.errors import OsgatesError, UsageError
from pytest_osgates.vm.text import one_line

NOT_THERE = "not there"


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="what changed between two runs",
        description="Verdicts, findings and acceptances of two runs as they were recorded, and what else their gates"
        " know to compare. Exit status 0 if nothing differs, 1 if something does, 2 if they cannot be compared.",
    )
    parser.add_argument("old", metavar="OLD", help="evidence of the earlier run")
    parser.add_argument("new", metavar="NEW", help="evidence of the later run")
    parser.add_argument("gate", metavar="GATE", nargs="?", help="this gate alone")
    parser.add_argument(
        "--iso-distro", metavar="NAME|FILE", help="where gates of your own are (see docs/profiles.md)"
    )
    # As diff(1) has it; 1 means something else here than elsewhere.
    parser.set_defaults(run=run, trouble=2)


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    evidence: Evidence
    verdicts: Mapping[str, Any]

    @classmethod
    def open(cls, directory: str) -> Side:
        """:raise UsageError: there is no evidence."""
        return cls(*open_run(directory))

    @property
    def named(self) -> str:
        """Run, image and profile, for the reader."""
        image, distro = (_table(self.verdicts.get(key)) for key in ("image", "distro"))
        text = f"{self.verdicts.get('run')}, image {str(image.get('sha256'))[:12]}, profile {distro.get('name')}"
        return one_line(f"{text} {str(distro.get('sha256'))[:12]}", 200)


def run(options: argparse.Namespace, console: Console) -> int:
    """Print what differs; 0 if nothing does, else 1.

    :raise UsageError: no evidence, or none of this gate.
    """
    old, new = Side.open(options.old), Side.open(options.new)
    profile = profile_of(new.evidence, options.iso_distro)
    names = list(dict.fromkeys([*old.verdicts["gates"], *new.verdicts["gates"]]))
    if options.gate is not None:
        if options.gate not in names:
            raise UsageError(f"neither run has a gate {options.gate!r}", remedy=f"one of: {', '.join(names)}")
        names = [options.gate]
    console.print(f"--- {old.named}\n+++ {new.named}", markup=False, soft_wrap=True)
    differs = False
    for name in names:
        lines = list(gate_lines(name, old, new, profile))
        head = _verdict(record_of(new.verdicts, name))
        differs = differs or bool(lines)
        console.print(f"{one_line(name, 60)}: {'as before: ' + head if not lines else ''}".rstrip(), markup=False)
        for line in lines:
            console.print(f"    {line}", markup=False, soft_wrap=True)
    return 1 if differs else 0


def gate_lines(name: str, old: Side, new: Side, profile: Profile) -> Iterator[str]:
    """What differs in one gate; nothing if nothing does."""
    before, now = (record_of(side.verdicts, name) for side in (old, new))
    if not before or not now:
        yield f"{_verdict(before)} -> {_verdict(now)}"
        return
    for key in ("verdict", "state", "required"):
        if before.get(key) != now.get(key):
            head = "" if key == "verdict" else f"{key}: "
            yield one_line(f"{head}{before.get(key)} -> {now.get(key)}", 200)
    rows = [rows_of(record) for record in (before, now)]
    for case in dict.fromkeys([*rows[0], *rows[1]]):
        then, since = (_verdict(side.get(case, {})) for side in rows)
        if then != since and case:
            yield f"[{one_line(case, 80)}] {then} -> {since}"
    yield from _findings(before, now)
    yield from _own(name, old, new, profile)


def _findings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Findings that were added (+), are gone (-), or have another weight or reason (!)."""
    then, since = _by_key(before), _by_key(now)
    for key in dict.fromkeys([*then, *since]):
        rule, subject, row = (one_line(part, 200) for part in key)
        what = f"{rule}: {subject}{f' [{row}]' if row else ''}"
        if key not in then:
            yield from (f"+ {_weight(finding)} {what}: {_said(finding)}" for finding in since[key])
        elif key not in since:
            yield from (f"- {_weight(finding)} {what}" for finding in then[key])
        elif (one := _weights(then[key])) != (other := _weights(since[key])):
            yield f"! {what}: {one} -> {other}"


def _by_key(record: Mapping[str, Any]) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """The findings by rule, subject and row; there may be several, as two warnings of one test."""
    found = record.get("findings")
    keyed: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for finding in found if isinstance(found, list) else []:
        if isinstance(finding, dict):
            for row in str(finding.get("rows") or "").split(", "):
                keyed.setdefault((str(finding.get("rule")), str(finding.get("subject")), row), []).append(finding)
    return keyed


def _weight(finding: Mapping[str, Any]) -> str:
    reason = str(finding.get("reason") or "")
    return one_line(f"{finding.get('severity')}" + (f" ({reason})" if reason else ""), 200)


def _weights(findings: Iterable[Mapping[str, Any]]) -> str:
    return " and ".join(sorted(map(_weight, findings)))


def _said(finding: Mapping[str, Any]) -> str:
    return one_line(str(finding.get("seen")), 240)


def _own(name: str, old: Side, new: Side, profile: Profile) -> Iterator[str]:
    """What the gate itself knows to compare."""
    section = profile.gates.get(name)
    sides = [record_of(side.verdicts, name) for side in (old, new)]
    rows = [rows_of(record) for record in sides]
    shared = [
        case for case in rows[0] if rows[0][case].get("observation") and rows[1].get(case, {}).get("observation")
    ]
    if section is None or not shared:
        return
    if why_not := next((reason for side in sides if (reason := absence(side, section))), ""):
        yield f"? only what was recorded is compared: {why_not}"
        return
    for case in shared:
        yield from _row(section, case, [(old.evidence, rows[0][case]), (new.evidence, rows[1][case])])


def _row(section: GateSection, case: str, sides: Iterable[tuple[Evidence, Mapping[str, Any]]]) -> Iterator[str]:
    gate = section.gate
    if gate is None or gate.compare is None:
        return
    where = f"[{case}] " if case else ""
    try:
        before, now = (read_row(evidence, row, gate) for evidence, row in sides)
        for line in gate.compare(before, now):
            yield where + one_line(str(line), 600)
    except OsgatesError as error:
        yield f"? {where}{one_line(str(error), 300)}"
    except Exception as error:  # noqa: BLE001
        # A gate's own code may raise anything; the others are compared all the same.
        yield f"? {where}the gate broke: {one_line(f'{type(error).__name__}: {error}', 300)}"


def _verdict(record: Mapping[str, Any]) -> str:
    return one_line(str(record.get("verdict", NOT_THERE)), 40)


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
