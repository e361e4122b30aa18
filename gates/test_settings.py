"""Gate `settings`: what the profile demands of the system, each row a state."""

import pytest

from pytest_osgates.checks.settings import NOTHING_DEMANDED
from pytest_osgates.checks.settings.demand import Questions
from pytest_osgates.checks.settings.facts import SettingsObservation
from pytest_osgates.checks.settings.policy import SettingsPolicy
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.model import State
from pytest_osgates.observers import settings
from pytest_osgates.run import Run
from pytest_osgates.states import Booted
from pytest_osgates.vm.guest.injection import Injection

pytestmark = pytest.mark.settings


@pytest.fixture
def questions(os_case: str, os_run: Run, os_gate_state: State) -> Questions:
    """What to ask, before any boot: a profile that demands nothing is known at once."""
    policy: SettingsPolicy = os_run.profile.policy("settings")
    if not policy.demands(os_gate_state):
        raise NotProven(f"{NOTHING_DEMANDED}: see docs/profiles.md for what it may demand")
    return policy.questions(os_gate_state)


@pytest.fixture
def observation(questions: Questions, os_gate_state: State, os_machine: Booted) -> SettingsObservation:
    """The state of this row."""
    machine = os_machine.machine
    nonce = str(machine.spec.channel)
    return settings.observe(machine.shell, questions, os_gate_state, nonce, Injection(nonce).directory)


def test_settings(os_judge: Judge, observation: SettingsObservation) -> None:
    """Every demand of the profile on this state is met."""
    os_judge(observation)
