"""Gate `secureboot`: what is signed starts, what is not is refused; in the guest, lockdown and signed modules."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_osgates.checks.secureboot_model import GUEST, MODULES, SecureBootObservation, SecureBootPolicy
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.fixtures.states import os_disk
from pytest_osgates.model import State
from pytest_osgates.observers.secureboot import Asked, Observer, Place, asked, observe_guest
from pytest_osgates.observers.secureboot_medium import Medium
from pytest_osgates.run import Run
from pytest_osgates.states import deadline
from pytest_osgates.vm.errors import OsgatesError, UsageError
from pytest_osgates.vm.home import Home

pytestmark = pytest.mark.secureboot


@pytest.fixture(scope="module")
def place(os_run: Run) -> Place:
    """The ISO, or the disk of ``--iso-disk``, and the keys of the profile."""
    profile = os_run.profile
    section = profile.gates["secureboot"]
    policy: SecureBootPolicy = profile.policy("secureboot")
    installed = section.state is State.INSTALLED
    path = os_disk(os_run).path if installed else os_run.request.iso

    def records(role: str) -> Path:
        return os_run.evidence.machine(f"secureboot-{role}")

    return Place(
        policy=policy,
        state=section.state,
        medium=Medium(path, not installed),
        machine=profile.machine,
        boot=profile.boot,
        login=profile.login,
        host=os_run.host,
        progress=os_run.progress,
        records=records,
        directory=Path(profile.source).absolute().parent,
        guest_deadline_s=deadline(os_run),
        home=_home(path, policy) if installed else None,
    )


def _home(disk: Path, policy: SecureBootPolicy) -> Home | None:
    """What lies beside the disk; the row `guest` says what it comes to without."""
    try:
        return Home.beside(disk)
    except UsageError:
        if policy.keys == "machine":
            raise
        return None


@pytest.fixture(scope="module")
def observer(place: Place) -> Observer:
    """One key for whatever it signs."""
    return Observer(place)


@pytest.fixture(scope="module")
def guest(place: Place) -> Iterator[Asked]:
    """A machine of these rows' own: whatever becomes of its kernel, no other gate asks it."""
    try:
        with asked(place) as machine:
            yield machine
    except OsgatesError as error:
        raise NotProven(f"the machine with the profile's keys was not made: {error}") from error


@pytest.fixture
def observation(os_case: str, place: Place, request: pytest.FixtureRequest) -> SecureBootObservation:
    """The row's."""
    made: Observer = request.getfixturevalue("observer")
    if os_case in (GUEST, *MODULES):
        return observe_guest(place, os_case, request.getfixturevalue("guest"), made.signer)
    return made.observe(os_case)


def test_secureboot(os_judge: Judge, observation: SecureBootObservation) -> None:
    """What the profile trusts starts, and nothing else."""
    os_judge(observation)
