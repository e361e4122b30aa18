"""From an observation to a verdict: the judge, then the controls that prove that the judge can fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_osgates.model import AnyGate, Control, Finding, Observation, Policy, Severity, Verdict

# What keeps a gate from a PASS.
_DECISIVE = frozenset({Severity.VIOLATION, Severity.UNPROVEN})


@dataclass(frozen=True)
class ControlResult:
    """Whether a sabotage was noticed, and why not."""

    name: str
    caught: bool
    why: str = ""


@dataclass(frozen=True)
class Judgement:
    """The outcome of one row of a gate."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    controls: tuple[ControlResult, ...]
    considered: int | None = None

    @property
    def accepted(self) -> int:
        """How many violations the profile accepts."""
        return sum(1 for finding in self.findings if finding.severity is Severity.ACCEPTED)


def judge(gate: AnyGate, observation: Observation, policy: Policy) -> Judgement:
    """Judge `observation` and run the gate's controls on it. Pure.

    A violation is a FAIL even where a control went uncaught: what was seen was seen.
    """
    findings = tuple(gate.judge(observation, policy))
    if observation.considered == 0 and not {finding.severity for finding in findings} & _DECISIVE:
        findings += (_nothing_considered(gate),)
    findings += tuple(_without_a_reason(finding) for finding in findings if _undocumented(finding))
    before = {finding.key for finding in findings if finding.severity is not Severity.REMARK}
    controls = tuple(
        _control(gate, control, observation, policy, before) for control in gate.controls_for(observation, policy)
    )
    severities = {finding.severity for finding in findings}
    if Severity.VIOLATION in severities:
        verdict = Verdict.FAIL
    elif Severity.UNPROVEN in severities or not controls or not all(result.caught for result in controls):
        verdict = Verdict.NOT_PROVEN
    else:
        verdict = Verdict.PASS
    return Judgement(verdict, findings, controls, observation.considered)


def _undocumented(finding: Finding) -> bool:
    return finding.severity is Severity.ACCEPTED and not finding.reason.strip()


def _without_a_reason(finding: Finding) -> Finding:
    """An empty reason counts as none, also where a gate forgets to look at it."""
    return finding.model_copy(
        update={
            "rule": f"{finding.rule}-without-a-reason",
            "wanted": "an acceptance with its reason",
            "severity": Severity.UNPROVEN,
        }
    )


def _nothing_considered(gate: AnyGate) -> Finding:
    return Finding(
        rule="nothing-considered",
        subject=gate.name,
        seen="the observation has nothing in it that the gate looks at",
        wanted="at least one thing: where nothing is looked at, nothing is proven",
        severity=Severity.UNPROVEN,
    )


def _control(
    gate: AnyGate, control: Control[Any], observation: Observation, policy: Policy, before: set[tuple[str, str]]
) -> ControlResult:
    if control.severity not in _DECISIVE:
        return ControlResult(control.name, False, f"a finding that is {control.severity} keeps no gate from a PASS")
    wanted = (control.rule, control.subject)
    if wanted in before:
        return ControlResult(
            control.name, False, f"{control.rule} on {control.subject} was there before the sabotage"
        )
    after = gate.judge(control.sabotage(observation), policy)
    if any(finding.key == wanted and finding.severity is control.severity for finding in after):
        return ControlResult(control.name, True)
    return ControlResult(control.name, False, f"the judge did not report {control.rule} on {control.subject}")
