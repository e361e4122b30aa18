"""Gate `boot`: every firmware that the profile names, with and without the guest channel."""

from collections.abc import Callable

import pytest

from pytest_osgates.checks.boot import BootObservation
from pytest_osgates.fixtures.gate import Judge

pytestmark = pytest.mark.boot


@pytest.fixture
def observation(os_case: str, os_boot: Callable[[], BootObservation]) -> BootObservation:
    """One boot."""
    return os_boot()


def test_boot(os_judge: Judge, observation: BootObservation) -> None:
    """It gets ready, shows no known failure, and no unit fails."""
    os_judge(observation)
