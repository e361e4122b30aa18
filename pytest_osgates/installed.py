"""The installed disk of a run: given, or made once by the profile's recipe for all gates and workers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.checks.install import InstallObservation, InstallOutcome
from pytest_osgates.evidence import write_atomic
from pytest_osgates.observers import install
from pytest_osgates.observers.install_work import Site
from pytest_osgates.paths import alone
from pytest_osgates.run import DiskFile, Run
from pytest_osgates.states import deadline
from pytest_osgates.vm import workdir
from pytest_osgates.vm.errors import HostError, UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.workdir import temporary

_RESULT = "installation.json"
# One file for each time that this host failed.
_FAILED = "failed-{}.txt"
_TRIES = 2


@dataclass(frozen=True)
class Made:
    """An installation; `disk` is None where it did not end well."""

    observation: InstallObservation
    disk: Path | None


def disk(run: Run) -> DiskFile:
    """The disk of ``--iso-disk``, or the one that the profile's recipe makes, once.

    :raise UsageError: there is neither; or the installation did not end well.
    :raise HostError: it could not be made on this host.
    """
    if run.disk is not None:
        return run.disk
    if run.profile.install is None:
        raise UsageError(
            "the state installed was not reached: no disk with an installed system",
            remedy="give --iso-disk FILE (raw or qcow2; it is not written), or write [install] into the profile",
        )
    done = made(run)
    if done.disk is None:
        seen = done.observation
        first = seen.first_boot
        if seen.outcome is InstallOutcome.DONE and first is not None:
            what = f"its first boot {first.outcome or 'was not tried'} after {first.seconds:.0f} s: {first.detail}"
            records = first.records or seen.records
        else:
            what = f"the installation {seen.outcome} after {seen.seconds:.0f} s: {seen.detail}"
            records = seen.records
        raise UsageError(f"the state installed was not reached: {what}", remedy=f"see {records} in the evidence")
    try:
        run.disk = DiskFile.read(done.disk)
    except OSError as error:
        raise HostError(f"the installed disk cannot be read: {error.strerror}") from error
    return run.disk


def made(run: Run) -> Made:
    """The installation of this run, made by the first who asks; the others wait for it.

    :raise OsgatesError: nothing is known of the installer: the host's fault.
    """
    section = run.profile.install
    if section is None:
        raise UsageError("the profile has no recipe for an installation", remedy="write [install]")
    directory = place(run.run_id)
    home = Home.at(directory / "machine")
    result = directory / _RESULT
    with temporary("the installed machine"):
        directory.mkdir(mode=0o700, exist_ok=True)
    # As long as an installation may take, and the boot of the live system before it and of the disk after it.
    patience = section.deadline_s * run.host.pace + 3 * deadline(run)
    if section.first_boot is not None:
        patience += section.first_boot.deadline_s * run.host.pace + deadline(run)
    with alone(directory / ".lock", patience):
        if not result.exists():
            tried = sum((directory / _FAILED.format(number)).exists() for number in range(_TRIES))
            if tried == _TRIES:
                # Each of many gates and rows would install for as long, and come to the same.
                with temporary("what became of the installation"):
                    what = (directory / _FAILED.format(_TRIES - 1)).read_text()
                raise HostError(f"this host failed {_TRIES} times in this run to install: {what}")
            site = Site(
                section=section,
                machine=run.profile.machine,
                firmware=run.profile.machine.firmware[0],
                iso=run.request.iso,
                host=run.host,
                boot=run.profile.boot,
                login=run.profile.login,
                progress=run.progress,
                records=run.evidence.machine,
                live_deadline_s=deadline(run),
            )
            install.remove(home.directory)
            try:
                observation = install.install(site, home)
            except HostError as error:
                write_atomic(directory / _FAILED.format(tried), error.what.encode())
                raise
            write_atomic(result, observation.model_dump_json().encode())
        with temporary("the installation's result"):
            observation = InstallObservation.model_validate_json(result.read_bytes())
    return Made(observation, home.disk if observation.complete else None)


def place(run_id: str) -> Path:
    """The directory of a run's installed machine, named by the process that owns the run, so that it is swept when
    that is gone.

    :raise HostError: there is no place for temporary files.
    """
    owner = os.getppid() if os.environ.get("PYTEST_XDIST_WORKER") else os.getpid()
    return workdir.base_directory() / f"vm-{owner}-{workdir.start_time(owner)}-installed-{run_id}"


def forget(run_id: str) -> None:
    """Delete it, at the end of the run."""
    path = place(run_id)
    if path.exists():
        install.remove(path)
