"""Gate `lynis`: the pinned Lynis, run in the guest."""

import pytest

from pytest_osgates import tools
from pytest_osgates.checks.lynis import LynisObservation
from pytest_osgates.fixtures.gate import Judge
from pytest_osgates.model import State
from pytest_osgates.observers import lynis
from pytest_osgates.run import Run
from pytest_osgates.tools import Tool
from pytest_osgates.vm.guest.channel import GuestShell

pytestmark = pytest.mark.lynis


@pytest.fixture
def lynis_package(os_run: Run) -> Tool:
    """Lynis, before any boot: a missing tool is known at once."""
    return tools.find("lynis", os_run.request.tools)


@pytest.fixture
def observation(lynis_package: Tool, os_run: Run, os_gate_state: State, os_shell: GuestShell) -> LynisObservation:
    """One run on the state that the profile names."""
    place = lynis.Place(os_shell, os_gate_state, os_run.evidence, os_run.progress)
    return lynis.observe(place, lynis_package, os_run.profile.policy("lynis").deadline_s * os_run.host.pace)


def test_lynis(os_judge: Judge, observation: LynisObservation) -> None:
    """The score is high enough, and rests on tests that really ran."""
    os_judge(observation)
