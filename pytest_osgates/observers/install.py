"""The state `installed`, made from the ISO by the profile's recipe: a command in the live system, or a dialogue.

An installation that says that it fails, or in which nothing happens any more, ends at once. What it said is evidence.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from pytest_osgates.checks import boot as boot_check
from pytest_osgates.checks.install import FirstBoot, InstallObservation, InstallOutcome, Left
from pytest_osgates.data import load
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.image.disk.startable import startable
from pytest_osgates.observers.boot import Boot, Plan
from pytest_osgates.observers.install_talk import FIRST, FirstTalk, Talk, reads_screen
from pytest_osgates.observers.install_work import (
    LINE,
    PIECE,
    POWER_OFF_SECONDS,
    Over,
    Site,
    Worker,
    ended_is_over,
    machine_spec,
)
from pytest_osgates.observers.secureboot import scratch_directory
from pytest_osgates.profiles.schema import (
    FirstBootSection,
    InstallSection,
)
from pytest_osgates.vm.errors import GuestError, ImageError
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.guest.injection import new_nonce
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.ocr import need
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.spec import AccelKind
from pytest_osgates.vm.text import one_line, printable, strip_escapes
from pytest_osgates.vm.workdir import temporary

ASK_SECONDS = 5.0
# Of the log, as evidence. All of it is searched.
_MOST_LOG = 16 << 20
# Of what was searched, what is searched once more with the next piece: a line may be cut in two.
_OVERLAP = 1 << 13
_LOG_LINES = 100
_QEMU_IMG = "apt-get install qemu-utils (Fedora: dnf install qemu-img)"
_START = "disk-starts"


def install(site: Site, home: Home) -> InstallObservation:
    """Install on a new disk in `home`, beside which its variables and TPM stay, and try whether it starts.

    An installation that does not end well leaves no disk there; nor does a first boot that does not.

    :raise HostError: QEMU, swtpm or a tool failed: nothing is known of the installer.
    """
    section = site.section
    if section.first_boot is not None and reads_screen(section.first_boot):
        # Before anything is booted, as with the installer's own dialogue.
        need()
    with temporary("the machine to install on"):
        home.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    tool = which("qemu-img", remedy=_QEMU_IMG)
    run([tool, "create", "-q", "-f", "qcow2", str(home.disk), f"{section.disk_mib}M"], timeout=60, remedy=_QEMU_IMG)
    records = site.records("install")
    worker = _Script(site, records) if section.script else Talk(site, records)
    outcome, detail, seconds = _gone_through(worker, home)
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
        detail=one_line(worker.untyped(detail), LINE),
        steps=worker.steps,
        wanted_steps=worker.wanted,
        seconds=round(seconds, 1),
        log=tuple(printable(line, LINE) for line in worker.untyped(worker.said).splitlines()[-_LOG_LINES:]),
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


def _gone_through(worker: Worker, home: Home) -> tuple[InstallOutcome, str, float]:
    """What came of it, in which words, and after how many seconds."""
    begun = time.monotonic()
    outcome, detail = InstallOutcome.DONE, ""
    try:
        worker.work(home)
    except Over as over:
        outcome, detail = over.outcome, over.detail
    return outcome, detail, time.monotonic() - begun


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
    records = site.records(FIRST)
    worker = FirstTalk(replace(site, section=recipe), records)
    outcome, detail, seconds = _gone_through(worker, home)
    return FirstBoot(
        outcome=outcome,
        detail=one_line(worker.untyped(detail), LINE),
        steps=worker.steps,
        wanted_steps=worker.wanted,
        seconds=round(seconds, 1),
        log=tuple(printable(line, LINE) for line in worker.untyped(worker.said).splitlines()[-_LOG_LINES:]),
        lost=worker.lost,
        records=f"machines/{records.name}",
    )


def _left(disk: Path) -> tuple[tuple[Left, ...] | None, str]:
    try:
        with open_disk(disk) as source:
            return tuple(Left(place=place, what=one_line(what, LINE)) for place, what in startable(source)), ""
    except ImageError as error:
        return None, one_line(error.what, LINE)


def _starts(site: Site, home: Home) -> tuple[str, str]:
    """What a copy of the machine comes to without the ISO: "started", "ended" or "silent", and why.

    :raise HostError: QEMU or swtpm failed.
    """
    emulated = site.host.accelerator.kind is AccelKind.TCG
    with scratch_directory() as scratch:
        copy = Home.at(scratch / "machine")
        if home.variables.exists() and home.tpm_state.exists():
            copy = home.copy(copy.directory)
            spec = machine_spec(site, _START, copy, None, cdrom=False)
        else:
            # Without UEFI, or without a TPM.
            spec = machine_spec(site, _START, None, None, cdrom=False, disks=(home.disk,))
        plan = Plan(f"install-{_START}", site.boot, None, site.live_deadline_s)
        patterns = boot_check.patterns(emulated=emulated)
        with Machine(spec, site.host, site.records(_START), patterns) as machine:
            boot = FromDisk(machine, plan, site.progress)
            ready = boot.run()
            came = "started" if ready else "silent" if boot.outcome is boot_check.Outcome.TIMEOUT else "ended"
            what = boot.shown if ready else boot.detail
            at = machine.elapsed
    return came, one_line(f"after {at:.0f} s: {what}", LINE)


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


class _Script(Worker):
    """A command in the live system, over the channel."""

    def __init__(self, site: Site, records: Path) -> None:
        super().__init__(site, records, 1)
        self._taken = 0
        # The end of what was searched, from the beginning of a line on.
        self._before = b""

    def work(self, home: Home) -> None:
        site = self.site
        spec = machine_spec(site, "install", home, new_nonce(), cdrom=True)
        emulated = site.host.accelerator.kind is AccelKind.TCG
        with Machine(spec, site.host, self.records, boot_check.patterns(emulated=emulated)) as machine:
            plan = Plan("install", site.boot, site.login, site.live_deadline_s)
            boot = Boot(machine, plan, site.progress)
            if not boot.run():
                raise Over(InstallOutcome.FAILED, f"the live system: {boot.outcome}: {boot.detail}")
            with ended_is_over(lambda: self.shoot(machine, "last")):
                status = self._run(machine, machine.shell)
                if status != "0":
                    raise Over(InstallOutcome.FAILED, f"the script ended with {status}: {self._last()}")
                self.steps = 1
                machine.shell.run("sync", timeout=POWER_OFF_SECONDS)
            self.shoot(machine, "last")
            machine.power_off(POWER_OFF_SECONDS * site.patience)

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

        :raise Over: it says that the installation failed, whatever it says later and ends with.
        """
        command = f"tail -c +{self._taken + 1} {shell.directory}/install.log | head -c {PIECE}"
        piece = shell.run(command, timeout=60, max_output=PIECE, shown="").stdout
        if room := max(0, _MOST_LOG - self._taken):
            self.keep("installer.log", piece[:room], more=True)
        self._taken += len(piece)
        self.said = (self.said + strip_escapes(piece.decode("utf-8", "replace")))[-PIECE:]
        text = self._before + piece
        # What an unfinished line means may only be known at its end.
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        self._search(text if len(text) - end > _OVERLAP else text[:end])
        rest = text[-_OVERLAP:]
        # From the beginning of a line on, where there is one: what is cut there would begin with any of its words.
        self._before = rest if len(rest) == len(text) else rest[rest.find(b"\n") + 1 :]
        return len(piece) == PIECE

    def _search(self, log: bytes) -> None:
        """:raise Over: it says that the installation failed."""
        self.failing(re.sub(r"\r\n?", "\n", strip_escapes(log.decode("utf-8", "replace"))))

    def _fetch(self, shell: GuestShell) -> None:
        """The installer's own logs."""
        for number, path in enumerate(self.site.section.logs):
            with suppress(GuestError):
                data = shell.read_file(path, max_size=_MOST_LOG)
                self.keep(f"log-{number}.txt", data)
                self.logs[path] = hashlib.sha256(data).hexdigest()


def remove(directory: Path) -> None:
    """Delete an installed machine."""
    shutil.rmtree(directory, ignore_errors=True)
