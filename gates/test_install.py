"""Gate `install`: the recipe of the profile, gone through once for all gates on the state `installed`."""

import pytest

from pytest_osgates.checks.install import InstallObservation
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.installed import made
from pytest_osgates.run import Run
from pytest_osgates.vm.errors import OsgatesError

pytestmark = pytest.mark.install


@pytest.fixture
def observation(os_run: Run) -> InstallObservation:
    """What became of the installation, whichever gate wanted it first."""
    if os_run.profile.install is None:
        raise NotProven("the profile has no recipe for an installation\n  -> write [install]: see docs/profiles.md")
    if os_run.request.disk is not None:
        raise NotProven("a disk was given with --iso-disk, so nothing was installed\n  -> leave --iso-disk out")
    try:
        return made(os_run).observation
    except OsgatesError as error:
        raise NotProven(f"the installation could not be observed: {error}") from error


def test_install(os_judge: Judge, observation: InstallObservation) -> None:
    """It ends well and starts, or leaves nothing that does."""
    os_judge(observation)
