"""Gate `luks`: the installed disk, read as a file. Nothing is booted."""

import pytest

from pytest_osgates.checks.luks_model import LuksObservation, LuksPolicy
from pytest_osgates.fixtures.gate import Judge
from pytest_osgates.fixtures.states import os_disk
from pytest_osgates.observers import luks
from pytest_osgates.progress import Step
from pytest_osgates.run import Run

pytestmark = pytest.mark.luks


@pytest.fixture
def observation(os_run: Run) -> LuksObservation:
    """The disk of ``--iso-disk``, or of the profile's recipe."""
    disk = os_disk(os_run)
    policy: LuksPolicy = os_run.profile.policy("luks")

    def progress(stage: str, fraction: float | None) -> None:
        os_run.progress.step(Step("luks", stage, fraction or 0.0, 1.0))

    return luks.observe(disk.path, disk.sha256, luks.Wanted.of(policy), progress, os_run.host.pace)


def test_luks(os_judge: Judge, observation: LuksObservation) -> None:
    """Encrypted as the profile demands, and nothing beside it in the clear."""
    os_judge(observation)
