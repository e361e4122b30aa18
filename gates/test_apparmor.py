"""Gate `apparmor`: every networked program of the image is confined by the booted kernel, or documented."""

import pytest

from pytest_osgates.checks.apparmor_model import ApparmorObservation, ApparmorPolicy
from pytest_osgates.fixtures.gate import Judge
from pytest_osgates.fixtures.networked import begin
from pytest_osgates.model import State
from pytest_osgates.observers.confinement.observe import observe
from pytest_osgates.run import Run

pytestmark = pytest.mark.apparmor


@pytest.fixture
def observation(os_run: Run, os_gate_state: State, request: pytest.FixtureRequest) -> ApparmorObservation:
    """The programs of the image before any boot, then the machine."""
    policy: ApparmorPolicy = os_run.profile.policy("apparmor")
    watch = begin(os_run, os_gate_state, request)
    return observe(watch.place, watch.found, policy, watch.resolve)


def test_apparmor(os_judge: Judge, observation: ApparmorObservation) -> None:
    """No networked program runs or would run unconfined, unless the profile says why."""
    os_judge(observation)
