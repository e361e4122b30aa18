"""What is common to all that installs: where it happens, and whether anything still does."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.checks.install import InstallOutcome
from pytest_osgates.profiles.schema import BootSection, InstallSection, LoginSection, MachineSection
from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.vm.errors import MORE_ROOM, GuestError, GuestFailed, HostError, QmpFailed
from pytest_osgates.vm.guest.injection import Injection
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import Host
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.spec import Firmware, MachineSpec
from pytest_osgates.vm.text import one_line

POWER_OFF_SECONDS = 120.0
PIECE = 1 << 18
LINE = 300
# A shorter one is in other words.
_SHORTEST_SECRET = 4


@dataclass(frozen=True)
class Site:
    """What an installation needs. `records`: a directory for one boot's; `live_deadline_s`: for the live system."""

    section: InstallSection
    machine: MachineSection
    firmware: Firmware
    iso: Path
    host: Host
    boot: BootSection
    login: LoginSection | None
    progress: ProgressLog
    records: Callable[[str], Path]
    live_deadline_s: float

    @property
    def patience(self) -> float:
        return self.host.pace


class Over(Exception):
    """The installation has come to an end that is not the wanted one."""

    def __init__(self, outcome: InstallOutcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


def machine_spec(
    site: Site, name: str, home: Home | None, nonce: str | None, *, cdrom: bool, disks: tuple[Path, ...] = ()
) -> MachineSpec:
    return MachineSpec(
        name=name,
        firmware=site.firmware,
        # The disk comes first: an empty one is passed over, and an installed one is what a reboot leads to.
        cdrom=site.iso if cdrom else None,
        home=home,
        disks=disks,
        memory_mib=site.machine.memory_mib,
        cpus=site.machine.cpus,
        cpu_model=site.machine.cpu_model,
        tpm=site.machine.tpm,
        channel=nonce,
        smbios_strings=() if nonce is None else Injection(nonce).smbios_strings(),
    )


class Worker:
    """Goes through one recipe."""

    doing = "installing"

    def __init__(self, site: Site, records: Path, wanted: int) -> None:
        self.site = site
        self.records = records
        self.wanted = wanted
        self.steps = 0
        self.said = ""
        # Bytes of the serial console that nobody looked at.
        self.lost = 0
        self.logs: dict[str, str] = {}
        self._pause = threading.Event()
        self._life: tuple[object, ...] = ()
        self._moved_at = 0.0
        # How often the machine had been started anew before the recipe began; None: it has not begun.
        self._resets: int | None = None
        self._failures = tuple(re.compile(text, re.MULTILINE) for text in site.section.failed)

    def work(self, home: Home) -> None:
        """:raise Over: it did not end well.
        :raise HostError: QEMU, swtpm or a tool failed.
        """
        raise NotImplementedError

    def alive(self, machine: Machine, *more: object) -> None:
        """That something still happens: writes to the disk, or any of `more`.

        :raise Over: it does not, or the deadline is over.
        :raise GuestFailed: the machine ended, or its kernel gave up.
        """
        section = self.site.section
        machine.check_guest()
        if self._resets is not None and machine.resets > self._resets and not self._may_reset:
            raise Over(InstallOutcome.ENDED, "the machine was started anew by its guest")
        now = machine.elapsed
        life = (machine.writes(), *more)
        if life != self._life:
            self._life, self._moved_at = life, now
        if now >= section.deadline_s * self.site.patience:
            raise Over(InstallOutcome.TIMEOUT, f"not done after {now:.0f} s")
        if now - self._moved_at >= section.stall_s * self.site.patience:
            raise Over(
                InstallOutcome.STALLED,
                f"nothing was written, shown or said for {now - self._moved_at:.0f} s; last: {self._last()}",
            )
        stage = f"{self.doing}, step {self.steps} of {self.wanted}"
        self.site.progress.step(Step("install", stage, now, section.deadline_s * self.site.patience))

    @property
    def _may_reset(self) -> bool:
        """Whether a new start is how it ends."""
        return self.site.section.ends == "reboot" and self.steps == self.wanted

    def untyped(self, text: str) -> str:
        """Without what was typed on the serial console: it may be a passphrase that was echoed."""
        typed = {step.send for step in self.site.section.dialogue if step.send is not None and not step.screen}
        for word in sorted(typed, key=len, reverse=True):
            if len(word) >= _SHORTEST_SECRET:
                text = text.replace(word, "(typed)")
        return text

    def _last(self) -> str:
        lines = self.said.splitlines()
        return next((one_line(line, LINE) for line in reversed(lines) if line.strip()), "(nothing)")

    def failing(self, text: str) -> None:
        """:raise Over: `text` says that it failed."""
        for regex in self._failures:
            if match := regex.search(text):
                raise Over(InstallOutcome.FAILED, one_line(match[0], LINE))

    def shoot(self, machine: Machine, name: str) -> None:
        """A picture of the screen as evidence; a machine that is gone has none."""
        with suppress(QmpFailed, GuestFailed):
            self.keep(f"screen-{name}.png", machine.screen.grab().png())

    def keep(self, name: str, data: bytes, *, more: bool = False) -> None:
        """:raise HostError: evidence cannot be written."""
        path = self.records / name
        try:
            with path.open("ab" if more else "wb") as file:
                file.write(data)
        except OSError as error:
            raise HostError(f"evidence cannot be written to {path}: {error.strerror}", remedy=MORE_ROOM) from error


@contextmanager
def ended_is_over(before: Callable[[], None]) -> Iterator[None]:
    """Of a guest that goes away: `before` is done in any case where it does not end well."""
    try:
        yield
    except GuestError as error:
        before()
        raise Over(InstallOutcome.ENDED, error.what) from error
    except Over:
        before()
        raise
