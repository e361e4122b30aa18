"""What verdicts add up to, against a second, simpler model of the same rules."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pytest_osgates.ledger import Launch, Ledger, RowRecord
from pytest_osgates.model import Finding, Policy, Severity, State, Verdict
from pytest_osgates.profiles.schema import BootSection, GateSection, MachineSection, Profile

# Gate, whether it is required, its rows.
GATES = {"boot": (True, ("a", "b")), "kconfig": (True, ("",)), "lynis": (False, ("",))}
WORST_LAST = ["PASS", "NOT PROVEN", "FAIL"]


def profile(gates: dict[str, tuple[bool, tuple[str, ...]]]) -> Profile:
    return Profile(
        name="p",
        title="",
        os_release={},
        machine=MachineSection(),
        boot=BootSection(),
        login=None,
        gates={
            name: GateSection(name=name, required=required, state=State.LIVE, promise="", policy=Policy())
            for name, (required, _) in gates.items()
        },
        sha256="0" * 64,
        source="p.toml",
    )


def ledger(gates: dict[str, tuple[bool, tuple[str, ...]]] = GATES) -> Ledger:
    return Ledger(profile(gates), {name: rows for name, (_, rows) in gates.items()})


def row(gate: str, case: str = "", verdict: str = "PASS", reason: str = "", *findings: Finding) -> RowRecord:
    return RowRecord(gate, case, Verdict(verdict), reason, findings)


class Model(RuleBasedStateMachine):
    """Any order of selecting and recording; what to expect is worked out anew from all that was said."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ledger()
        self.said: list[tuple[str, str, str]] = []
        self.chosen: set[str] = set()

    @rule(name=st.sampled_from([*GATES, "foreign"]))
    def select(self, name: str) -> None:
        self.ledger.select([name])
        self.chosen |= {name} & set(GATES)

    @rule(
        where=st.sampled_from([(name, case) for name, (_, cases) in GATES.items() for case in cases]),
        verdict=st.sampled_from(WORST_LAST),
    )
    def record(self, where: tuple[str, str], verdict: str) -> None:
        self.ledger.record(row(*where, verdict), 1.0)
        self.said.append((*where, verdict))
        self.chosen.add(where[0])

    @rule(verdict=st.sampled_from(WORST_LAST))
    def record_a_foreign_gate(self, verdict: str) -> None:
        self.ledger.record(row("foreign", "", verdict), 1.0)

    def expected(self, name: str) -> str:
        worst = []
        for case in GATES[name][1]:
            words = [WORST_LAST.index(v) for gate, where, v in self.said if (gate, where) == (name, case)]
            worst.append(max(words, default=1))
        return WORST_LAST[max(worst)]

    @invariant()
    def agrees(self) -> None:
        wanted = {name: self.expected(name) for name in GATES}
        assert {name: str(verdict) for name, verdict in self.ledger.verdicts().items()} == wanted
        assert self.ledger.selected == self.chosen
        words = {wanted[name] for name in self.chosen}
        for status in range(7):
            if status > 1:
                expected = status
            elif "FAIL" in words:
                expected = 1
            elif "NOT PROVEN" in words:
                expected = 10
            else:
                expected = status
            assert self.ledger.exit_status(status) == expected
        if words - {"PASS"}:
            launch = "NOT READY"
        elif {"boot", "kconfig"} <= self.chosen:
            launch = "ALL REQUIRED PASS"
        else:
            launch = "PARTIAL"
        assert str(self.ledger.launch) == launch
        assert str(self.ledger.launch_at(2)) == "NOT READY"
        assert str(self.ledger.launch_at(1)) == ("PARTIAL" if launch == "PARTIAL" else "NOT READY")
        assert str(self.ledger.launch_at(0)) == launch


Model.TestCase.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None, derandomize=True, database=None
)


class TestModel(Model.TestCase):  # type: ignore[misc]
    """The machine above, for pytest."""


def test_everything_is_not_proven_before_anything_ran() -> None:
    fresh = ledger()
    assert set(fresh.verdicts().values()) == {Verdict.NOT_PROVEN}
    assert fresh.launch is Launch.PARTIAL
    assert [gate["verdict"] for gate in fresh.to_json().values()] == ["NOT PROVEN"] * 3
    assert [gate["reasons"] for gate in fresh.to_json().values()] == [["not run"]] * 3


def test_a_gate_whose_rows_are_unknown_never_passes() -> None:
    empty = ledger({"boot": (True, ())})
    empty.record(row("boot"), 0)
    assert empty.verdicts() == {"boot": Verdict.NOT_PROVEN}


def test_a_profile_without_required_gates_is_never_all_required() -> None:
    book = ledger({"lynis": (False, ("",))})
    book.record(row("lynis"), 0)
    assert book.launch is Launch.PARTIAL


def test_only_a_sign_off_says_ready() -> None:
    book = ledger()
    for name, (_, cases) in GATES.items():
        for case in cases:
            book.record(row(name, case), 0)
    assert book.launch is Launch.ALL_REQUIRED_PASS


def test_rows_that_did_not_run_are_named() -> None:
    book = ledger()
    book.record(row("boot", "a", "NOT PROVEN", "no answer"), 2.0)
    assert book.gates["boot"].reasons == ["a: no answer", "not run: b"]
    assert book.gates["boot"].missing == ("b",)


def finding(subject: str, severity: Severity) -> Finding:
    return Finding(rule="r", subject=subject, seen="s", wanted="w", severity=severity)


def test_a_finding_in_several_rows_is_told_once_with_its_rows() -> None:
    book = ledger()
    both, accepted = finding("x", Severity.VIOLATION), finding("y", Severity.ACCEPTED)
    book.record(row("boot", "a", "FAIL", "", both, accepted), 1.5)
    book.record(row("boot", "b", "FAIL", "", both), 2.25)
    gate = book.to_json()["boot"]
    assert [(entry["subject"], entry["rows"]) for entry in gate["findings"]] == [("x", "a, b"), ("y", "a")]
    assert gate["accepted"] == 1
    assert gate["duration_s"] == 3.75


def test_what_is_accepted_in_one_row_is_still_a_violation_in_another() -> None:
    book = ledger()
    book.record(row("boot", "a", "PASS", "", finding("x", Severity.ACCEPTED)), 1)
    book.record(row("boot", "b", "FAIL", "", finding("x", Severity.VIOLATION)), 1)
    assert [f["severity"] for f in book.to_json()["boot"]["findings"]] == ["accepted", "violation"]


TEXT = st.text(max_size=20)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    text=TEXT,
    verdict=st.sampled_from(list(Verdict)),
    severity=st.sampled_from(list(Severity)),
    considered=st.none() | st.integers(0, 10**6),
)
def test_a_row_survives_its_way_from_a_worker(
    text: str, verdict: Verdict, severity: Severity, considered: int | None
) -> None:
    record = RowRecord(
        gate="boot",
        case=text,
        verdict=verdict,
        reason=text,
        findings=(finding(text, severity),),
        controls=({"name": text, "caught": False, "why": text},),
        considered=considered,
        observation=text,
        observation_sha256="0" * 64,
    )
    assert RowRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize("missing", ["verdict", "findings", "controls", "reason"])
def test_a_row_that_is_incomplete_is_refused(missing: str) -> None:
    data = row("boot").to_json()
    del data[missing]
    with pytest.raises(KeyError, match=missing):
        RowRecord.from_json(data)
