"""Gate `settings`: what the profile demands of a system, each demand with its state and its reason."""

from __future__ import annotations

from pytest_osgates.checks.settings.facts import SettingsObservation
from pytest_osgates.checks.settings.policy import SettingsPolicy
from pytest_osgates.model import Control, Finding, Gate, Severity, State

NOTHING_DEMANDED = "[gate.settings] has no entry"


def judge(seen: SettingsObservation, policy: SettingsPolicy) -> list[Finding]:
    """One finding for each demand on this state that is not met, or of which nothing is known."""
    demands = policy.demands(seen.state)
    if not demands:
        return [
            Finding(
                rule="nothing-demanded",
                subject=str(seen.state),
                seen=f"{NOTHING_DEMANDED} for the state {seen.state}",
                wanted="at least one demand: where nothing is demanded, nothing is proven",
                hint="write [[gate.settings.sysctl]], .unit, .file, ...; see docs/profiles.md",
                severity=Severity.UNPROVEN,
            )
        ]
    return [finding for demand in demands for finding in demand.findings(seen)]


def controls(seen: SettingsObservation, policy: SettingsPolicy) -> tuple[Control[SettingsObservation], ...]:
    """One for each demand that is met: without the fact that meets it, the judge must report it."""
    return tuple(demand.control() for demand in policy.demands(seen.state) if demand.met(seen))


def cases(policy: SettingsPolicy, firmwares: tuple[str, ...]) -> tuple[str, ...]:
    """A row for each state that is named. Without any entry there is one all the same: it is NOT PROVEN."""
    return tuple(str(state) for state in policy.states()) or (str(State.LIVE),)


GATE = Gate(
    name="settings",
    title="the system is set up as the profile demands",
    states=(State.LIVE, State.INSTALLED),
    observation=SettingsObservation,
    policy=SettingsPolicy,
    judge=judge,
    controls=controls,
    cases=cases,
    state_of_case=State,
)
