"""From findings and controls to a verdict."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pytest_osgates.judging import judge
from pytest_osgates.model import Control, Finding, Gate, Observation, Policy, Severity, State, Verdict


class Lamp(Observation):
    """Something to look at: each word is a finding of that severity."""

    words: tuple[str, ...] = ()


class Rules(Policy):
    """Nothing is asked for."""


def finding(severity: str, subject: str = "lamp") -> Finding:
    reason = "r" if severity == "accepted" else ""
    return Finding(rule=severity, subject=subject, seen="s", wanted="w", severity=Severity(severity), reason=reason)


def look(seen: Lamp, policy: Rules) -> list[Finding]:
    return [finding(word) for word in seen.words]


def adding(word: str) -> Callable[[Lamp], Lamp]:
    return lambda seen: Lamp(words=(*seen.words, word))


BREAKS = Control("it breaks", adding("violation"), "violation", "lamp")
HIDES = Control("it hides", adding("unproven"), "unproven", "lamp", Severity.UNPROVEN)


def gate(*controls: Control[Lamp], judge: Callable[[Lamp, Rules], list[Finding]] = look) -> Gate[Lamp, Rules]:
    return Gate("lamp", "it shines", (State.IMAGE,), Lamp, Rules, judge, controls)


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ((), Verdict.PASS),
        (("remark",), Verdict.PASS),
        (("accepted",), Verdict.PASS),
        (("accepted", "remark", "accepted"), Verdict.PASS),
        (("unproven",), Verdict.NOT_PROVEN),
        (("violation",), Verdict.FAIL),
        (("unproven", "violation", "remark"), Verdict.FAIL),
    ],
)
def test_the_worst_finding_decides(words: tuple[str, ...], verdict: Verdict) -> None:
    assert judge(gate(BREAKS), Lamp(words=words), Rules()).verdict is verdict


def test_a_gate_without_controls_proves_nothing() -> None:
    assert judge(gate(), Lamp(), Rules()).verdict is Verdict.NOT_PROVEN
    assert judge(gate(), Lamp(words=("violation",)), Rules()).verdict is Verdict.FAIL


def test_controls_may_be_made_for_what_was_seen_and_is_demanded() -> None:
    def fitting(seen: Lamp, rules: Rules) -> tuple[Control[Lamp], ...]:
        return () if "remark" in seen.words else (BREAKS, HIDES)

    made = Gate("lamp", "it shines", (State.IMAGE,), Lamp, Rules, look, fitting)
    judgement = judge(made, Lamp(), Rules())
    assert [(control.name, control.caught) for control in judgement.controls] == [
        ("it breaks", True),
        ("it hides", True),
    ]
    assert judgement.verdict is Verdict.PASS
    assert judge(made, Lamp(words=("remark",)), Rules()).verdict is Verdict.NOT_PROVEN


def test_one_uncaught_control_proves_nothing_but_hides_no_violation() -> None:
    blind = gate(BREAKS, HIDES, judge=lambda seen, rules: [f for f in look(seen, rules) if f.rule != "unproven"])
    judgement = judge(blind, Lamp(), Rules())
    assert [(control.name, control.caught) for control in judgement.controls] == [
        ("it breaks", True),
        ("it hides", False),
    ]
    assert "did not report unproven on lamp" in judgement.controls[1].why
    assert judgement.verdict is Verdict.NOT_PROVEN
    assert judge(blind, Lamp(words=("violation",)), Rules()).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "control",
    [
        Control("other rule", adding("violation"), "other", "lamp"),
        Control("other subject", adding("violation"), "violation", "other"),
        Control("other severity", adding("violation"), "violation", "lamp", Severity.UNPROVEN),
        Control("only accepted", adding("accepted"), "accepted", "lamp"),
        Control("only a remark", adding("remark"), "remark", "lamp"),
        Control("no sabotage", lambda seen: seen, "violation", "lamp"),
        # What decides nothing shows nothing.
        Control("content with a remark", adding("remark"), "remark", "lamp", Severity.REMARK),
        Control("content with an acceptance", adding("accepted"), "accepted", "lamp", Severity.ACCEPTED),
    ],
)
def test_a_control_is_caught_only_by_its_own_finding(control: Control[Lamp]) -> None:
    judgement = judge(gate(BREAKS, control), Lamp(), Rules())
    assert [result.caught for result in judgement.controls] == [True, False]
    assert judgement.verdict is Verdict.NOT_PROVEN


@pytest.mark.parametrize("severity", ["accepted", "violation", "unproven"])
def test_a_finding_that_was_there_before_catches_nothing(severity: str) -> None:
    def always(seen: Lamp, rules: Rules) -> list[Finding]:
        return [Finding(rule="violation", subject="lamp", seen="s", wanted="w", severity=Severity(severity))]

    judgement = judge(gate(BREAKS, judge=always), Lamp(), Rules())
    assert not judgement.controls[0].caught
    assert "before the sabotage" in judgement.controls[0].why
    assert judgement.verdict is not Verdict.PASS


def test_accepted_violations_are_counted() -> None:
    assert judge(gate(BREAKS), Lamp(words=("accepted", "remark", "accepted")), Rules()).accepted == 2


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    words=st.lists(st.sampled_from([str(severity) for severity in Severity]), max_size=5),
    count=st.integers(0, 2),
)
def test_a_pass_needs_controls_and_nothing_open(words: list[str], count: int) -> None:
    judgement = judge(gate(*[BREAKS] * count), Lamp(words=tuple(words)), Rules())
    allowed = count > 0 and not {"violation", "unproven"} & set(words)
    assert (judgement.verdict is Verdict.PASS) is allowed
    assert (judgement.verdict is Verdict.FAIL) is ("violation" in words)


class Counted(Lamp):
    """One that says how many things it looked at."""

    @property
    def considered(self) -> int | None:
        return len(self.words)


def test_a_gate_that_looked_at_nothing_proves_nothing() -> None:
    counting = Gate("lamp", "it shines", (State.IMAGE,), Counted, Rules, look, (_breaks(),))
    judgement = judge(counting, Counted(), Rules())
    assert judgement.verdict is Verdict.NOT_PROVEN
    assert [(found.rule, found.subject) for found in judgement.findings] == [("nothing-considered", "lamp")]
    assert judge(counting, Counted(words=("remark",)), Rules()).verdict is Verdict.PASS
    assert judge(counting, Counted(words=("violation",)), Rules()).verdict is Verdict.FAIL


def _breaks() -> Control[Counted]:
    return Control("it breaks", lambda seen: Counted(words=(*seen.words, "violation")), "violation", "lamp")


def test_what_is_accepted_without_a_reason_proves_nothing() -> None:
    def careless(seen: Lamp, rules: Rules) -> list[Finding]:
        return [found.model_copy(update={"reason": " "}) for found in look(seen, rules)]

    judgement = judge(gate(BREAKS, judge=careless), Lamp(words=("accepted",)), Rules())
    assert judgement.verdict is Verdict.NOT_PROVEN
    assert [found.rule for found in judgement.findings] == ["accepted", "accepted-without-a-reason"]
    assert judge(gate(BREAKS, judge=careless), Lamp(), Rules()).verdict is Verdict.PASS
