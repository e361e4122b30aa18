"""Gate `packages`: the packages and files of the image, read out of it. Nothing is booted."""

import pytest

from pytest_osgates.checks.packages import PackagesObservation, PackagesPolicy
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.observers import packages
from pytest_osgates.run import Run
from pytest_osgates.vm.errors import ImageError

pytestmark = pytest.mark.packages


@pytest.fixture
def observation(os_run: Run, os_image: RootView) -> PackagesObservation:
    """By the managers' data bases, and by looking for the files that the profile excludes."""
    policy: PackagesPolicy = os_run.profile.policy("packages")
    try:
        return packages.observe(os_image, policy.patterns)
    except ImageError as error:
        raise NotProven(str(error)) from error


def test_packages(os_judge: Judge, observation: PackagesObservation) -> None:
    """What is required is there, what is excluded is not."""
    os_judge(observation)
