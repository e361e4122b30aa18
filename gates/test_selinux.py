"""Gate `selinux`: SELinux enforces, and every networked program of the image has a domain that confines it."""

import pytest

from pytest_osgates.checks.selinux import SelinuxObservation, SelinuxPolicy
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.model import State
from pytest_osgates.observers.confinement.observe import Place
from pytest_osgates.observers.confinement.selinux import observe
from pytest_osgates.observers.networked.scan import canonical, scan
from pytest_osgates.run import Run
from pytest_osgates.vm.errors import ImageError

pytestmark = pytest.mark.selinux


@pytest.fixture
def observation(os_run: Run, os_gate_state: State, request: pytest.FixtureRequest) -> SelinuxObservation:
    """The programs of the image before any boot, then the machine."""
    if os_gate_state is not State.LIVE:
        raise NotProven(
            "this version finds the networked programs of a live image; those of an installed disk it cannot read"
        )
    policy: SelinuxPolicy = os_run.profile.policy("selinux")
    view: RootView = request.getfixturevalue("os_image")
    try:
        found = scan(view)
    except ImageError as error:
        raise NotProven(str(error)) from error
    place = Place(request.getfixturevalue("os_shell"), os_gate_state, os_run.evidence, os_run.progress)
    return observe(place, found, policy, lambda path: canonical(view, path))


def test_selinux(os_judge: Judge, observation: SelinuxObservation) -> None:
    """No networked program runs or would run in a domain that confines nobody, unless the profile says why."""
    os_judge(observation)
