"""Gate `apparmor`: every networked program of the image is confined by the booted kernel, or documented."""

import pytest

from pytest_osgates.checks.apparmor_model import ApparmorObservation, ApparmorPolicy
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.model import State
from pytest_osgates.observers.confinement.observe import Place, observe
from pytest_osgates.observers.networked.scan import canonical, scan
from pytest_osgates.run import Run
from pytest_osgates.vm.errors import ImageError

pytestmark = pytest.mark.apparmor


@pytest.fixture
def observation(os_run: Run, os_gate_state: State, request: pytest.FixtureRequest) -> ApparmorObservation:
    """The programs of the image before any boot, then the machine."""
    if os_gate_state is not State.LIVE:
        raise NotProven(
            "this version finds the networked programs of a live image; those of an installed disk it cannot read"
        )
    policy: ApparmorPolicy = os_run.profile.policy("apparmor")
    view: RootView = request.getfixturevalue("os_image")
    try:
        found = scan(view)
    except ImageError as error:
        raise NotProven(str(error)) from error
    place = Place(request.getfixturevalue("os_shell"), os_gate_state, os_run.evidence, os_run.progress)
    return observe(place, found, policy, lambda path: canonical(view, path))


def test_apparmor(os_judge: Judge, observation: ApparmorObservation) -> None:
    """No networked program runs or would run unconfined, unless the profile says why."""
    os_judge(observation)
