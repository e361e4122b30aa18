"""Gate `firewall`: nothing comes in that the profile does not name, tried from outside and read from the rules."""

from __future__ import annotations

from pytest_osgates.checks.firewall.controls import baseline, compare, controls
from pytest_osgates.checks.firewall.judge import judge
from pytest_osgates.checks.firewall.policy import FirewallPolicy
from pytest_osgates.checks.firewall.seen import FirewallObservation
from pytest_osgates.model import Gate, State

GATE = Gate(
    name="firewall",
    title="nothing comes in that is not named: tried from outside, read from the rules",
    states=(State.LIVE, State.INSTALLED),
    observation=FirewallObservation,
    policy=FirewallPolicy,
    judge=judge,
    controls=controls,
    baseline=baseline,
    compare=compare,
)

__all__ = ["GATE", "FirewallObservation", "FirewallPolicy", "judge"]
