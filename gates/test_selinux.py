"""Gate `selinux`: SELinux enforces, and every networked program of the image has a domain that confines it."""

import pytest

from pytest_osgates.checks.selinux import SelinuxObservation, SelinuxPolicy
from pytest_osgates.fixtures.gate import Judge
from pytest_osgates.fixtures.networked import begin
from pytest_osgates.model import State
from pytest_osgates.observers.confinement.selinux import observe
from pytest_osgates.run import Run

pytestmark = pytest.mark.selinux


@pytest.fixture
def observation(os_run: Run, os_gate_state: State, request: pytest.FixtureRequest) -> SelinuxObservation:
    """The programs of the image before any boot, then the machine."""
    policy: SelinuxPolicy = os_run.profile.policy("selinux")
    watch = begin(os_run, os_gate_state, request)
    return observe(watch.place, watch.found, policy, watch.resolve)


def test_selinux(os_judge: Judge, observation: SelinuxObservation) -> None:
    """No networked program runs or would run in a domain that confines nobody, unless the profile says why."""
    os_judge(observation)
