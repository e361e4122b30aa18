"""What a machine keeps while it is off: its disk, its firmware's variables, the state of its TPM."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.host import create_overlay
from pytest_osgates.vm.workdir import temporary

DISK = "disk.qcow2"
VARIABLES = "variables.fd"
TPM = "tpm"
# Of swtpm: what a TPM 2.0 keeps without power.
TPM_STATE = "tpm2-00.permall"


@dataclass(frozen=True)
class Home:
    """A directory with a disk, ``variables.fd`` and ``tpm/``. `disk` may have another name, and may be raw."""

    directory: Path
    disk: Path

    @classmethod
    def at(cls, directory: Path) -> Home:
        """The machine in `directory`, whether its files are there yet or not."""
        return cls(directory, directory / DISK)

    @classmethod
    def beside(cls, disk: Path) -> Home:
        """The machine that the installed `disk` belongs to: its other parts lie beside it.

        :raise UsageError: they do not.
        """
        home = cls(disk.parent, disk)
        for path in (home.variables, home.tpm_state):
            if not path.is_file():
                raise UsageError(
                    f"{path} is not there: the firmware's variables and the TPM that {disk.name} was installed with",
                    remedy=f"put them beside the disk, as {VARIABLES} and {TPM}/{TPM_STATE} (swtpm's state);"
                    " osgates demo-disk --tpm makes all three",
                )
        return home

    @property
    def variables(self) -> Path:
        """The firmware's variables, as a flash image."""
        return self.directory / VARIABLES

    @property
    def tpm(self) -> Path:
        """The directory of swtpm's state."""
        return self.directory / TPM

    @property
    def tpm_state(self) -> Path:
        """The file with it."""
        return self.tpm / TPM_STATE

    def copy(self, directory: Path) -> Home:
        """The same machine in a new `directory`, free to change: its disk is an overlay over this one's.

        :raise HostError: no room, or the disk is none.
        """
        made = Home.at(directory)
        with temporary("the copy of a machine"):
            directory.mkdir(mode=0o700)
        create_overlay(self.disk, made.disk)
        self.put_variables(made)
        self.put_tpm(made)
        return made

    def put_variables(self, other: Home) -> None:
        """Give `other` these variables instead of its own. :raise HostError: no room."""
        with temporary("a copy of the firmware's variables"):
            shutil.copyfile(self.variables, other.variables)

    def put_tpm(self, other: Home) -> None:
        """Give `other` this TPM instead of its own. :raise HostError: no room."""
        with temporary("a copy of a TPM's state"):
            other.remove_tpm()
            other.tpm.mkdir(mode=0o700)
            shutil.copyfile(self.tpm_state, other.tpm_state)

    def put_disk(self, other: Home) -> None:
        """Give `other` a new overlay over this disk instead of its own. :raise HostError: no room."""
        with temporary("a copy of a disk"):
            other.disk.unlink()
        create_overlay(self.disk, other.disk)

    def remove_tpm(self) -> None:
        """As if the board had a new one: its state is made when it is first switched on."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.tpm)

    def digests(self) -> dict[str, str]:
        """SHA-256 of variables and TPM state; empty text for what is not there.

        :raise HostError: they cannot be read.
        """
        with temporary("the files of a machine"):
            return {
                name: hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
                for name, path in (("variables", self.variables), ("tpm", self.tpm_state))
            }


@contextlib.contextmanager
def kept(home: Home) -> Iterator[None]:
    """Says when variables or TPM of `home` are no longer what they were at the start.

    :raise UsageError: somebody changed them meanwhile.
    """
    before = home.digests()
    yield
    if home.digests() != before:
        raise UsageError(
            f"the firmware's variables or the TPM in {home.directory} changed while copies of them were in use",
            remedy="let whatever writes them finish, then run again",
        )
