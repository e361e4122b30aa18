"""The state `installed`, made from the ISO by the profile's recipe: a command in the live system, or a dialogue.

An installation that says that it fails, or in which nothing happens any more, ends at once. What it said is evidence.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pytest_osgates.checks import boot as boot_check
from pytest_osgates.checks.install import FirstBoot, InstallObservation, InstallOutcome, Left
from pytest_osgates.data import load
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.image.disk.startable import startable
from pytest_osgates.observers.boot import Boot, Plan
from pytest_osgates.observers.secureboot import scratch_directory
from pytest_osgates.profiles.schema import (
    BootSection,
    FirstBootSection,
    InstallSection,
    InstallStep,
    LoginSection,
    MachineSection,
)
from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.vm.dialogue import Dialogue, Sign
from pytest_osgates.vm.errors import MORE_ROOM, GuestError, GuestFailed, HostError, ImageError, QmpFailed
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.guest.injection import Injection, new_nonce
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import Host
from pytest_osgates.vm.keyboard import keys_of
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.ocr import Reader, need
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.screen import Frame
from pytest_osgates.vm.spec import AccelKind, Firmware, MachineSpec
from pytest_osgates.vm.text import one_line, printable, strip_escapes
from pytest_osgates.vm.workdir import temporary

LOOK_SECONDS = 2.0
ASK_SECONDS = 5.0
_POWER_OFF_SECONDS = 120.0
_PIECE = 1 << 18
# Of the log, as evidence. All of it is searched.
_MOST_LOG = 16 << 20
# Of what was searched, what is searched once more with the next piece: a line may be cut in two.
_OVERLAP = 1 << 13
_LOG_LINES = 100
_LINE = 300
_QEMU_IMG = "apt-get install qemu-utils (Fedora: dnf install qemu-img)"
_START = "disk-starts"
_FIRST = "install-first-boot"
# Who asks for a passphrase throws away what was typed before it turned the echo off: typed again, where nothing at
# all came of it.
AGAIN_SECONDS = 60.0
_TIMES = 3


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


class _Over(Exception):
    """The installation has come to an end that is not the wanted one."""

    def __init__(self, outcome: InstallOutcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


def install(site: Site, home: Home) -> InstallObservation:
    """Install on a new disk in `home`, beside which its variables and TPM stay, and try whether it starts.

    An installation that does not end well leaves no disk there; nor does a first boot that does not.

    :raise HostError: QEMU, swtpm or a tool failed: nothing is known of the installer.
    """
    section = site.section
    with temporary("the machine to install on"):
        home.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    tool = which("qemu-img", remedy=_QEMU_IMG)
    run([tool, "create", "-q", "-f", "qcow2", str(home.disk), f"{section.disk_mib}M"], timeout=60, remedy=_QEMU_IMG)
    records = site.records("install")
    worker = _Script(site, records) if section.script else _Talk(site, records)
    begun = time.monotonic()
    outcome, detail = InstallOutcome.DONE, ""
    try:
        worker.work(home)
    except _Over as over:
        outcome, detail = over.outcome, over.detail
    seconds = time.monotonic() - begun
    left, unread = _left(home.disk)
    starts = ("", "")
    first = None if section.first_boot is None else FirstBoot(wanted_steps=len(section.first_boot.dialogue))
    if outcome is InstallOutcome.DONE and section.first_boot is not None:
        first = _first_boot(site, section.first_boot, home)
    if outcome is InstallOutcome.DONE and (first is None or first.outcome is InstallOutcome.DONE):
        starts = _starts(site, home)
    written = home.disk.stat().st_blocks * 512
    made = InstallObservation(
        way="script" if section.script else "dialogue",
        outcome=outcome,
        detail=one_line(detail, _LINE),
        steps=worker.steps,
        wanted_steps=worker.wanted,
        seconds=round(seconds, 1),
        log=tuple(printable(line, _LINE) for line in worker.said.splitlines()[-_LOG_LINES:]),
        logs=worker.logs,
        left=left,
        unread=unread,
        starts=starts[0],
        starts_detail=starts[1],
        lost=worker.lost,
        written=written,
        records=f"machines/{records.name}",
        first_boot=first,
    )
    if not made.complete:
        # Nobody judges half an installation.
        home.disk.unlink()
    return made


def _first_boot(site: Site, section: FirstBootSection, home: Home) -> FirstBoot:
    """Start the machine itself, as every later boot of it is started, and answer it.

    :raise HostError: QEMU or swtpm failed.
    """
    recipe = InstallSection(
        dialogue=section.dialogue,
        done=section.done,
        done_on_screen=section.done_on_screen,
        ends="text",
        failed=section.failed,
        deadline_s=section.deadline_s,
        stall_s=section.stall_s,
    )
    records = site.records(_FIRST)
    worker = _FirstTalk(replace(site, section=recipe), records)
    begun = time.monotonic()
    outcome, detail = InstallOutcome.DONE, ""
    try:
        worker.work(home)
    except _Over as over:
        outcome, detail = over.outcome, over.detail
    return FirstBoot(
        outcome=outcome,
        detail=one_line(detail, _LINE),
        steps=worker.steps,
        wanted_steps=worker.wanted,
        seconds=round(time.monotonic() - begun, 1),
        log=tuple(printable(line, _LINE) for line in worker.said.splitlines()[-_LOG_LINES:]),
        lost=worker.lost,
        records=f"machines/{records.name}",
    )


def _left(disk: Path) -> tuple[tuple[Left, ...] | None, str]:
    try:
        with open_disk(disk) as source:
            return tuple(Left(place=place, what=one_line(what, _LINE)) for place, what in startable(source)), ""
    except ImageError as error:
        return None, one_line(error.what, _LINE)


def _starts(site: Site, home: Home) -> tuple[str, str]:
    """What a copy of the machine comes to without the ISO: "started", "ended" or "silent", and why.

    :raise HostError: QEMU or swtpm failed.
    """
    emulated = site.host.accelerator.kind is AccelKind.TCG
    with scratch_directory() as scratch:
        copy = Home.at(scratch / "machine")
        if home.variables.exists() and home.tpm_state.exists():
            copy = home.copy(copy.directory)
            spec = _spec(site, _START, copy, None, cdrom=False)
        else:
            # Without UEFI, or without a TPM.
            spec = _spec(site, _START, None, None, cdrom=False, disks=(home.disk,))
        plan = Plan(f"install-{_START}", site.boot, None, site.live_deadline_s)
        patterns = boot_check.patterns(emulated=emulated)
        with Machine(spec, site.host, site.records(_START), patterns) as machine:
            boot = FromDisk(machine, plan, site.progress)
            ready = boot.run()
            came = "started" if ready else "silent" if boot.outcome is boot_check.Outcome.TIMEOUT else "ended"
            what = boot.shown if ready else boot.detail
            at = machine.elapsed
    return came, one_line(f"after {at:.0f} s: {what}", _LINE)


class FromDisk(Boot):
    """A boot without the guest channel that is over once its kernel has come to `[boot]` ready_text, or to a prompt
    for a passphrase: more than a kernel's first word, after which it may still panic."""

    shown = ""

    def _shows_ready(self) -> str:
        if self._kernel_at is None:
            return ""
        if by := super()._shows_ready():
            self.shown = f"ready, on the {by}"
            return by
        lines = strip_escapes(self.machine.serial.tail()).replace("\r", "\n").rstrip("\n").split("\n")[-3:]
        for by, shown in (("serial", lines), ("screen", self._screen.text.splitlines())):
            for line in shown:
                if any(regex.search(line) for regex in _prompts()):
                    self.shown = f"a prompt, on the {by}: {line}"
                    return by
        return ""


@cache
def _prompts() -> tuple[re.Pattern[str], ...]:
    """For a passphrase, by ``data/unlock_console.toml``."""
    return tuple(re.compile(row["regex"]) for row in load("unlock_console")["line"] if row["sign"] == "prompt")


def _spec(
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


class _Worker:
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
        """:raise _Over: it did not end well.
        :raise HostError: QEMU, swtpm or a tool failed.
        """
        raise NotImplementedError

    def alive(self, machine: Machine, *more: object) -> None:
        """That something still happens: writes to the disk, or any of `more`.

        :raise _Over: it does not, or the deadline is over.
        :raise GuestFailed: the machine ended, or its kernel gave up.
        """
        section = self.site.section
        machine.check_guest()
        if self._resets is not None and machine.resets > self._resets and not self._may_reset:
            raise _Over(InstallOutcome.ENDED, "the machine was started anew by its guest")
        now = machine.elapsed
        life = (machine.writes(), *more)
        if life != self._life:
            self._life, self._moved_at = life, now
        if now >= section.deadline_s * self.site.patience:
            raise _Over(InstallOutcome.TIMEOUT, f"not done after {now:.0f} s")
        if now - self._moved_at >= section.stall_s * self.site.patience:
            raise _Over(
                InstallOutcome.STALLED,
                f"nothing was written, shown or said for {now - self._moved_at:.0f} s; last: {self._last()}",
            )
        stage = f"{self.doing}, step {self.steps} of {self.wanted}"
        self.site.progress.step(Step("install", stage, now, section.deadline_s * self.site.patience))

    @property
    def _may_reset(self) -> bool:
        """Whether a new start is how it ends."""
        return self.site.section.ends == "reboot" and self.steps == self.wanted

    def _last(self) -> str:
        lines = self.said.splitlines()
        return next((one_line(line, _LINE) for line in reversed(lines) if line.strip()), "(nothing)")

    def failing(self, text: str) -> None:
        """:raise _Over: `text` says that it failed."""
        for regex in self._failures:
            if match := regex.search(text):
                raise _Over(InstallOutcome.FAILED, one_line(match[0], _LINE))

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


class _Script(_Worker):
    """A command in the live system, over the channel."""

    def __init__(self, site: Site, records: Path) -> None:
        super().__init__(site, records, 1)
        self._taken = 0
        # The end of what was searched, from the beginning of a line on.
        self._before = b""

    def work(self, home: Home) -> None:
        site = self.site
        spec = _spec(site, "install", home, new_nonce(), cdrom=True)
        emulated = site.host.accelerator.kind is AccelKind.TCG
        with Machine(spec, site.host, self.records, boot_check.patterns(emulated=emulated)) as machine:
            plan = Plan("install", site.boot, site.login, site.live_deadline_s)
            boot = Boot(machine, plan, site.progress)
            if not boot.run():
                raise _Over(InstallOutcome.FAILED, f"the live system: {boot.outcome}: {boot.detail}")
            with _ended_is_over(lambda: self.shoot(machine, "last")):
                status = self._run(machine, machine.shell)
                if status != "0":
                    raise _Over(InstallOutcome.FAILED, f"the script ended with {status}: {self._last()}")
                self.steps = 1
                machine.shell.run("sync", timeout=_POWER_OFF_SECONDS)
            self.shoot(machine, "last")
            machine.power_off(_POWER_OFF_SECONDS * site.patience)

    def _run(self, machine: Machine, shell: GuestShell) -> str:
        base = shell.directory
        shell.write_file(f"{base}/install.sh", self.site.section.script.encode(), mode=0o700)
        # As at a login: the channel's own limits and mask are not for what an installer writes.
        shell.run(
            f": >{base}/install.log; setsid sh -c '{{ ulimit -f unlimited && umask 022 && cd / &&"
            f" HOME=/root sh {base}/install.sh; }} >{base}/install.log 2>&1 </dev/null;"
            f" echo $? >{base}/install.end; mv {base}/install.end {base}/install.status' >/dev/null 2>&1 </dev/null &"
        ).check()
        self._moved_at = machine.elapsed
        self._resets = machine.resets
        while True:
            done = shell.run(f"cat {base}/install.status", timeout=60, shown="")
            # The status first, then the log: what is said before it ends is there when it has ended.
            while self._take(shell):
                self.alive(machine, self._taken)
            if done.status == 0:
                self._search(self._before)
                self._fetch(shell)
                return one_line(done.text, 20)
            self.alive(machine, self._taken)
            self._pause.wait(ASK_SECONDS)

    def _take(self, shell: GuestShell) -> bool:
        """The next piece of the log; whether there may be more.

        :raise _Over: it says that the installation failed, whatever it says later and ends with.
        """
        command = f"tail -c +{self._taken + 1} {shell.directory}/install.log | head -c {_PIECE}"
        piece = shell.run(command, timeout=60, max_output=_PIECE, shown="").stdout
        if room := max(0, _MOST_LOG - self._taken):
            self.keep("installer.log", piece[:room], more=True)
        self._taken += len(piece)
        self.said = (self.said + strip_escapes(piece.decode("utf-8", "replace")))[-_PIECE:]
        text = self._before + piece
        # What an unfinished line means may only be known at its end.
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        self._search(text if len(text) - end > _OVERLAP else text[:end])
        rest = text[-_OVERLAP:]
        # From the beginning of a line on, where there is one: what is cut there would begin with any of its words.
        self._before = rest if len(rest) == len(text) else rest[rest.find(b"\n") + 1 :]
        return len(piece) == _PIECE

    def _search(self, log: bytes) -> None:
        """:raise _Over: it says that the installation failed."""
        self.failing(re.sub(r"\r\n?", "\n", strip_escapes(log.decode("utf-8", "replace"))))

    def _fetch(self, shell: GuestShell) -> None:
        """The installer's own logs."""
        for number, path in enumerate(self.site.section.logs):
            with suppress(GuestError):
                data = shell.read_file(path, max_size=_MOST_LOG)
                self.keep(f"log-{number}.txt", data)
                self.logs[path] = hashlib.sha256(data).hexdigest()


@contextmanager
def _ended_is_over(before: Callable[[], None]) -> Iterator[None]:
    """Of a guest that goes away: `before` is done in any case where it does not end well."""
    try:
        yield
    except GuestError as error:
        before()
        raise _Over(InstallOutcome.ENDED, error.what) from error
    except _Over:
        before()
        raise


class _Talk(_Worker):
    """A dialogue on the serial console, or with the keyboard at what the screen shows.

    :raise MissingTool: the screen is to be read, and there is no OCR program.
    """

    def __init__(self, site: Site, records: Path) -> None:
        super().__init__(site, records, len(site.section.dialogue))
        self._screen = ""
        self._digest = ""
        # A graphical installer: by OCR, once its picture is one that has to be read.
        self._reader: Reader | None = None
        if site.section.done_on_screen or any(step.screen for step in site.section.dialogue):
            need()
            self._reader = Reader()

    def _machine(self, home: Home) -> Machine:
        return Machine(_spec(self.site, "install", home, None, cdrom=True), self.site.host, self.records)

    def work(self, home: Home) -> None:
        site, section = self.site, self.site.section
        signs = [Sign("failed", regex) for regex in self._failures]
        signs += [Sign(f"step {number}", re.compile(step.expect)) for number, step in enumerate(section.dialogue)]
        if section.done:
            signs.append(Sign("done", re.compile(section.done)))
        with self._machine(home) as machine:
            talk = Dialogue(machine.serial, signs, lambda: self._look(machine))
            with _ended_is_over(lambda: self.shoot(machine, "last")):
                for number, step in enumerate(section.dialogue):
                    self._await(machine, talk, f"step {number}", step.expect, on_screen=step.screen)
                    self.shoot(machine, f"step-{number + 1}")
                    if self._resets is None:
                        self._resets = machine.resets
                    # Before it is typed: what ends with the last word may end at once.
                    self.steps += 1
                    self._answer(machine, talk, step)
                if section.done:
                    self._await(machine, talk, "done", section.done, on_screen=section.done_on_screen)
                    self.shoot(machine, "last")
                    machine.power_off(_POWER_OFF_SECONDS * site.patience)
                    self._last_words(talk)
                    return
                if section.ends == "reboot":
                    self._until_reset(machine, talk)
                    self._last_words(talk)
                    return
            self._until_off(machine, talk)
            self._last_words(talk)

    def _last_words(self, talk: Dialogue) -> None:
        """:raise _Over: at any time it said that it failed: also just before it ended, or was answered."""
        talk.rest()
        self.lost = talk.lost
        if (heard := talk.ever.get("failed")) is not None:
            raise _Over(InstallOutcome.FAILED, heard.line)

    def _until_reset(self, machine: Machine, talk: Dialogue) -> None:
        """Ended before it starts from its disk: what that comes to is seen later, on a copy."""
        while machine.resets == self._resets:
            if (heard := talk.wait(("failed",), LOOK_SECONDS)) is not None:
                raise _Over(InstallOutcome.FAILED, heard.line)

    def _until_off(self, machine: Machine, talk: Dialogue) -> None:
        try:
            while True:
                if (heard := talk.wait(("failed",), LOOK_SECONDS)) is not None:
                    self.shoot(machine, "last")
                    raise _Over(InstallOutcome.FAILED, heard.line)
        except GuestFailed as error:
            if machine.ended != "guest-shutdown":
                raise _Over(InstallOutcome.ENDED, error.what) from error

    def _await(self, machine: Machine, talk: Dialogue, name: str, expect: str, *, on_screen: bool) -> None:
        """:raise _Over: it does not come."""
        while True:
            heard = talk.wait(("failed",) if on_screen else ("failed", name), LOOK_SECONDS)
            if heard is not None:
                if heard.name == "failed":
                    raise _Over(InstallOutcome.FAILED, heard.line)
                return
            if on_screen and re.search(expect, self._screen, re.MULTILINE):
                return
            if machine.serial.closed:
                machine.check_guest()
            self._still(machine, talk)

    def _still(self, machine: Machine, talk: Dialogue) -> None:
        """Nothing that is waited for has come yet."""

    def _look(self, machine: Machine) -> None:
        """Once a second, while it is waited for."""
        machine.check_guest()
        frame = machine.screen.grab()
        if frame.digest != self._digest:
            self._digest = frame.digest
            self._screen = self._text(frame) if machine.lit(frame) else ""
        self.said = strip_escapes(machine.serial.tail(_PIECE))
        self.failing(self._screen)
        self.alive(machine, machine.serial.spoken, self._digest)

    def _text(self, frame: Frame) -> str:
        if self._reader is None:
            return frame.text()
        reading = self._reader.read(frame)
        return frame.text() if reading.exact else "\n".join(reading.lines)

    def _type(self, talk: Dialogue, text: str) -> None:
        """:raise GuestFailed: nobody is there any more."""
        try:
            talk.say(text, forget=True)
        except OSError as error:
            raise GuestFailed(f"the console is gone: {error.strerror}") from error

    def _answer(self, machine: Machine, talk: Dialogue, step: InstallStep) -> None:
        if step.send is not None and not step.screen:
            self._type(talk, step.send)
            return
        for keys in (*keys_of(step.send or ""), *(tuple(key.split("-")) for key in step.keys)):
            machine.send_keys(*keys)
        # What comes next is not what was there before.
        self._screen = ""


class _FirstTalk(_Talk):
    """The first boot of what was installed: without medium and channel, as the boots that are judged later."""

    doing = "the first boot"

    def __init__(self, site: Site, records: Path) -> None:
        super().__init__(site, records)
        self._typed = ""
        self._typed_at = 0.0
        self._times = _TIMES

    def _machine(self, home: Home) -> Machine:
        emulated = self.site.host.accelerator.kind is AccelKind.TCG
        spec = _spec(self.site, _FIRST, home, None, cdrom=False)
        return Machine(spec, self.site.host, self.records, boot_check.patterns(emulated=emulated))

    def _answer(self, machine: Machine, talk: Dialogue, step: InstallStep) -> None:
        super()._answer(machine, talk, step)
        self._typed, self._typed_at = step.send or "", machine.elapsed
        self._times = 0 if step.screen or step.send is None else 1

    def _still(self, machine: Machine, talk: Dialogue) -> None:
        waited = machine.elapsed - self._typed_at >= AGAIN_SECONDS * self.site.patience
        if talk.lines or self._times in (0, _TIMES) or not waited:
            return
        self._times += 1
        self._typed_at = machine.elapsed
        self._type(talk, self._typed)


def remove(directory: Path) -> None:
    """Delete an installed machine."""
    shutil.rmtree(directory, ignore_errors=True)
