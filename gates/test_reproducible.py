"""Gate `reproducible`: the image and another build of it are the same bytes."""

import pytest

from pytest_osgates.checks.reproducible import ReproducibleObservation, ReproduciblePolicy
from pytest_osgates.fixtures.gate import Judge
from pytest_osgates.observers import reproducible
from pytest_osgates.report.divergence import html
from pytest_osgates.run import Run

pytestmark = pytest.mark.reproducible


@pytest.fixture
def observation(os_run: Run) -> ReproducibleObservation:
    """Nothing is booted."""
    policy: ReproduciblePolicy = os_run.profile.policy("reproducible")
    request = os_run.request
    wanted = reproducible.Wanted(
        rebuild=request.rebuild,
        command=request.build,
        output=request.build_output,
        sums=request.sums,
        deadline_s=policy.deadline_s,
        variations=policy.variations,
    )
    return reproducible.observe(request.iso, os_run.image_sha256, wanted, os_run.evidence, os_run.progress, html)


def test_reproducible(os_judge: Judge, observation: ReproducibleObservation) -> None:
    """Equal digests of two files that are not the same file."""
    os_judge(observation)
