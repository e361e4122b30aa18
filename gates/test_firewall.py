"""Gate `firewall`: nothing comes in that the profile does not name, tried from outside while it boots and after."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pytest_osgates.checks.firewall import FirewallObservation, FirewallPolicy
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.model import State
from pytest_osgates.observers import firewall
from pytest_osgates.run import Run
from pytest_osgates.states import Booted, boot
from pytest_osgates.vm.errors import OsgatesError

pytestmark = pytest.mark.firewall


@pytest.fixture
def state(os_run: Run) -> State:
    """What the profile wants tried. Not `os_gate_state`, whose users share a machine without a network."""
    return os_run.profile.gates["firewall"].state


@pytest.fixture
def tried(os_run: Run, state: State) -> Iterator[tuple[Booted, float]]:
    """A machine of its own, with the prober at the other end of its card from power-on; and when it was ready."""
    policy: FirewallPolicy = os_run.profile.policy("firewall")
    with ExitStack() as stack:
        try:
            booted = boot(
                *(os_run, stack, "firewall", os_run.profile.machine.firmware[0]),
                channel=True,
                state=state,
                network=firewall.settings_for(policy),
            )
            yield booted, time.monotonic()
        except OsgatesError as error:
            raise NotProven(f"the state {state} was not reached: {error}") from error


@pytest.fixture
def observation(tried: tuple[Booted, float], os_run: Run, state: State) -> FirewallObservation:
    """All that it answers, and its rules."""
    booted, ready_at = tried
    if not booted.ready:
        raise NotProven(f"the state {state} was not reached: {booted.boot.outcome}: {booted.boot.detail}")
    policy: FirewallPolicy = os_run.profile.policy("firewall")
    try:
        siege = firewall.Siege(booted.machine, state, policy, os_run.progress, ready_at, pace=os_run.host.pace)
        return firewall.observe(siege)
    except OsgatesError as error:
        raise NotProven(str(error)) from error


def test_firewall(os_judge: Judge, observation: FirewallObservation) -> None:
    """What answers is allowed with a reason, every probe arrived, and the rules say the same."""
    os_judge(observation)
