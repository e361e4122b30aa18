"""The verdicts of one run: fail-closed from the first moment, and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pytest_osgates.model import Finding, Severity, Verdict
from pytest_osgates.profiles.schema import Profile

NOT_RUN = "not run"


class Launch(StrEnum):
    """The last line. READY is for a sign-off alone, which this version does not have."""

    READY = "READY"
    ALL_REQUIRED_PASS = "ALL REQUIRED PASS"  # noqa: S105  (not a password)
    NOT_READY = "NOT READY"
    PARTIAL = "PARTIAL"


@dataclass(frozen=True)
class RowRecord:
    """What one test said of one row of a gate, as it travels from worker to controller (JSON-serialisable)."""

    gate: str
    case: str
    verdict: Verdict
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    controls: tuple[Mapping[str, Any], ...] = ()
    considered: int | None = None
    observation: str = ""
    observation_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "gate": self.gate,
            "case": self.case,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "findings": [finding.model_dump(mode="json") for finding in self.findings],
            "controls": [dict(control) for control in self.controls],
            "considered": self.considered,
            "observation": self.observation,
            "observation_sha256": self.observation_sha256,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RowRecord:
        """Back from plain data."""
        return cls(
            gate=data["gate"],
            case=data["case"],
            verdict=Verdict(data["verdict"]),
            reason=data["reason"],
            findings=tuple(Finding.model_validate(finding) for finding in data["findings"]),
            controls=tuple(data["controls"]),
            considered=data["considered"],
            observation=data["observation"],
            observation_sha256=data["observation_sha256"],
        )


@dataclass
class GateRecord:
    """One gate: its expected rows and what was said of each."""

    name: str
    required: bool
    state: str
    promise: str
    expected: tuple[str, ...]
    rows: dict[str, RowRecord] = field(default_factory=dict)
    duration_s: float = 0.0

    @property
    def missing(self) -> tuple[str, ...]:
        """Rows of which nothing was said."""
        return tuple(case for case in self.expected if case not in self.rows)

    @property
    def verdict(self) -> Verdict:
        """FAIL if any row failed; PASS only if every expected row was said to pass."""
        verdicts = {row.verdict for row in self.rows.values()}
        if Verdict.FAIL in verdicts:
            return Verdict.FAIL
        if not self.expected or self.missing or verdicts != {Verdict.PASS}:
            return Verdict.NOT_PROVEN
        return Verdict.PASS

    @property
    def reasons(self) -> list[str]:
        """Why it is NOT PROVEN, or what else went wrong."""
        reasons = [f"{case}: {row.reason}" if case else row.reason for case, row in self.rows.items() if row.reason]
        if self.missing:
            names = ", ".join(case for case in self.missing if case)
            reasons.append(f"{NOT_RUN}: {names}" if self.rows and names else NOT_RUN)
        return reasons

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        """All findings with the rows that they stand in; one that stands in several rows comes once. Several of one
        row stay several, as two warnings of one test.
        """
        merged: dict[tuple[str, str, str, int], tuple[list[str], Finding]] = {}
        for case, row in self.rows.items():
            before: Counter[tuple[str, str, str]] = Counter()
            for finding in row.findings:
                key = (*finding.key, str(finding.severity))
                merged.setdefault((*key, before[key]), ([], finding))[0].append(case)
                before[key] += 1
        return [(", ".join(case for case in found if case), finding) for found, finding in merged.values()]

    @property
    def accepted(self) -> int:
        """How many violations the profile accepts."""
        return sum(1 for _, finding in self.findings if finding.severity is Severity.ACCEPTED)

    @property
    def considered(self) -> int | None:
        """How many things were looked at, if the gate counts them."""
        counts = [row.considered for row in self.rows.values() if row.considered is not None]
        return max(counts) if counts else None


class Ledger:
    """All gates of a profile, plus those that were run beyond it."""

    def __init__(self, profile: Profile, expected: Mapping[str, Sequence[str]]) -> None:
        self.gates: dict[str, GateRecord] = {
            name: GateRecord(
                name, section.required, section.states, section.promise, tuple(expected.get(name, ("",)))
            )
            for name, section in profile.gates.items()
        }
        self.selected: set[str] = set()

    def select(self, names: Iterable[str]) -> None:
        """These gates have at least one test that was chosen to run."""
        self.selected |= {name for name in names if name in self.gates}

    def record(self, row: RowRecord, duration_s: float) -> None:
        """Take a row's word. A row that speaks twice (a rerun) keeps its worse verdict."""
        gate = self.gates.get(row.gate)
        if gate is None:
            return
        self.selected.add(row.gate)
        before = gate.rows.get(row.case)
        order = [Verdict.PASS, Verdict.NOT_PROVEN, Verdict.FAIL]
        if before is None or order.index(row.verdict) >= order.index(before.verdict):
            gate.rows[row.case] = row
        gate.duration_s += duration_s

    def verdicts(self) -> dict[str, Verdict]:
        """Every gate's verdict; one that was not selected is NOT PROVEN."""
        return {name: gate.verdict for name, gate in self.gates.items()}

    @property
    def launch(self) -> Launch:
        """What the run adds up to."""
        verdicts = self.verdicts()
        required = [name for name, gate in self.gates.items() if gate.required]
        if any(verdicts[name] is not Verdict.PASS for name in self.selected):
            return Launch.NOT_READY
        if all(name in self.selected for name in required) and required:
            return Launch.ALL_REQUIRED_PASS
        return Launch.PARTIAL

    def launch_at(self, status: int) -> Launch:
        """`launch`, as far as the run's exit `status` bears it out: a run that broke off launches nothing."""
        launch = self.launch
        if status not in {0, 1, 5, 10} or (status != 0 and launch is Launch.ALL_REQUIRED_PASS):
            return Launch.NOT_READY
        return launch

    def exit_status(self, status: int) -> int:
        """pytest's exit status made to say what the verdicts say (0: all selected PASS; 1: a FAIL; 10)."""
        if status not in {0, 1}:
            return status
        verdicts = {self.gates[name].verdict for name in self.selected}
        if Verdict.FAIL in verdicts:
            return 1
        if Verdict.NOT_PROVEN in verdicts:
            return 10
        return status

    def to_json(self) -> dict[str, Any]:
        """The ``gates`` of ``verdicts.json``."""
        return {
            name: {
                "verdict": str(gate.verdict),
                "required": gate.required,
                "state": gate.state,
                "promise": gate.promise,
                "reasons": gate.reasons,
                "accepted": gate.accepted,
                "considered": gate.considered,
                "findings": [{**finding.model_dump(mode="json"), "rows": rows} for rows, finding in gate.findings],
                "controls": [{**control, "row": case} for case, row in gate.rows.items() for control in row.controls],
                "duration_s": round(gate.duration_s, 3),
                "observation": _only(gate),
                "rows": {
                    case: {
                        "verdict": str(row.verdict),
                        "observation": row.observation,
                        "sha256": row.observation_sha256,
                    }
                    for case, row in gate.rows.items()
                },
            }
            for name, gate in self.gates.items()
        }


def _only(gate: GateRecord) -> str:
    paths = [row.observation for row in gate.rows.values() if row.observation]
    if not paths:
        return ""
    return paths[0] if len(gate.expected) == 1 else paths[0].rpartition("/")[0]
