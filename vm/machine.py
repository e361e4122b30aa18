"""One virtual machine from power-on to removal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pytest_osgates.vm import argv, process, workdir
from pytest_osgates.vm.console import Console
from pytest_osgates.vm.errors import (
    MORE_ROOM,
    TEMPORARY,
    GuestFailed,
    HostError,
    LaunchFailed,
    MachineDied,
    OsgatesError,
    QmpFailed,
)
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.guest.injection import Injection
from pytest_osgates.vm.home import TPM, VARIABLES
from pytest_osgates.vm.host import Host, create_overlay, find_firmware, memory_available_mib
from pytest_osgates.vm.interrupt import INTERRUPTS
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.nowhere import Nowhere
from pytest_osgates.vm.qmp import Event, Qmp
from pytest_osgates.vm.screen import Frame, Screen
from pytest_osgates.vm.spec import AccelKind, FirmwareFiles, FlashImage, MachineSpec
from pytest_osgates.vm.swtpm import Swtpm
from pytest_osgates.vm.text import one_line
from pytest_osgates.vm.watch import Pattern, Watcher

T = TypeVar("T")

# Besides the guest's memory: QEMU itself, and under TCG its cache of translated code (1 GiB, accel/tcg).
MEMORY_RESERVE_MIB = {AccelKind.KVM: 384, AccelKind.TCG: 1408}
CONNECT_SECONDS = 30.0
# What is to be seen is told within two seconds.
GLANCE_SECONDS = 1.0
# From when QEMU's sockets are closed, or it has said that it ends, to when its process has ended.
ENDING_SECONDS = 0.3
SHUTDOWN_SECONDS = 5.0


class Machine:
    """A context manager: entering powers the machine on, leaving removes every trace of it but `records`.

    `records` receives ``qemu.json`` (arguments), ``qemu.log``, ``serial.log``, ``kmsg.log``, ``events.jsonl`` and
    ``swtpm.log``, and for each card with a sinkhole ``netN.pcap`` and ``netN.events.jsonl``; they stay in any case.

    :raise LaunchFailed: QEMU did not come up; its own words are in the message.
    """

    def __init__(self, spec: MachineSpec, host: Host, records: Path, patterns: Sequence[Pattern] = ()) -> None:
        self.spec = spec
        self.host = host
        self.records = records
        self.watcher = Watcher(patterns)
        self.resets = 0
        self.ended: str | None = None
        self.arguments: tuple[str, ...] = ()
        self._unlit = ""
        self._glanced = ""
        self._glanced_at = 0.0
        self._event_error: str | None = None
        self._qmp: Qmp | None = None
        self._serial: Console | None = None
        self._kernel_log: Console | None = None
        self._journal: Console | None = None
        self.on_journal: Callable[[str], None] | None = None
        # Called about twice a second while a request to the guest is not answered.
        self.on_silence: Callable[[], None] | None = None
        self._shell: GuestShell | None = None
        self._swtpm: Swtpm | None = None
        self._link: Nowhere | None = None
        self.sinkholes: list[SinkholeLink] = []
        self.captures: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._work: Path | None = None
        self._epoch = time.monotonic()
        # Power-on by the clock that stamps captures: whole seconds of its start, then virtual time (net/dump.c).
        self.power_on_at = 0.0
        self._closing: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except OSError as error:
            self.close()
            raise self._no_place(error) from error
        except BaseException:
            self.close()
            raise
        return self

    def _no_place(self, error: OSError) -> HostError:
        """A full disk, most of the time: in the evidence or in TMPDIR, and each has its own remedy."""
        # Of a copy, the second name is where it goes.
        where = str(error.filename2 or error.filename or "")
        evidence = where.startswith(f"{self.records}/") or where == str(self.records)
        return HostError(
            f"machine {self.spec.name} cannot be made: {where or 'its files'}: {error.strerror}",
            remedy=MORE_ROOM if evidence else TEMPORARY,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- launch ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        free = memory_available_mib()
        reserve = MEMORY_RESERVE_MIB[self.host.accelerator.kind]
        if free < self.spec.memory_mib + reserve:
            raise HostError(
                f"machine {self.spec.name} needs {self.spec.memory_mib} MiB of memory and {reserve} beside it;"
                f" {free} MiB are available",
                remedy="end other programs, or lower memory_mib in [machine] of the distro profile",
            )
        self.records.mkdir(parents=True, exist_ok=True)
        work = self._work = workdir.make(self.spec.name)
        self._closing.append(lambda: workdir.remove(work))
        firmware = find_firmware(self.spec.firmware)
        theirs: list[socket.socket] = []
        try:
            wiring = self._wire(work, firmware, theirs)
            self.arguments = (
                self.host.qemu.path,
                *argv.build(self.spec, self.host.accelerator, firmware, wiring),
            )
            self._record_arguments()
            with (self.records / "qemu.log").open("wb") as sink:
                child = self._process = process.spawn(
                    self.arguments,
                    stdout=sink,
                    stderr=sink,
                    pass_fds=[sock.fileno() for sock in theirs],
                    # Captures are stamped by mktime(3), that is in local time.
                    env={**os.environ, "TZ": "UTC0"},
                )
            self.power_on_at = float(int(time.time()))
            if self.spec.rtc:
                self.power_on_at = datetime.fromisoformat(f"{self.spec.rtc}+00:00").timestamp()
        finally:
            for sock in theirs:
                sock.close()
        self._closing.append(lambda: self._note_end(process.end(child)))
        self._power_on()

    def _wire(self, work: Path, firmware: FirmwareFiles | None, theirs: list[socket.socket]) -> argv.Wiring:
        """`theirs` receives QEMU's ends, which the caller closes."""

        def pair() -> tuple[socket.socket, int]:
            ours, qemu = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            theirs.append(qemu)
            return ours, qemu.fileno()

        def console(name: str, watcher: Watcher | None) -> tuple[Console, int]:
            ours, number = pair()
            made = Console(ours, name, self.records / f"{name}.log", watcher)
            self._closing.append(made.close)
            return made, number

        monitor, qmp_fd = pair()
        self._qmp = qmp = Qmp(monitor, self.spec.name, self._on_event, self._still_there)
        self._closing.append(qmp.close)
        self._serial, serial_fd = console("serial", self.watcher)
        channel_fd = log_fd = journal_fd = None
        if self.spec.channel is not None:
            ours, channel_fd = pair()
            self._shell = shell = GuestShell(
                ours, Injection(self.spec.channel).directory, self.check_silent, self.host.pace
            )
            self._closing.append(shell.close)
            self._kernel_log, log_fd = console("kmsg", self.watcher)
            # Whoever runs in the guest writes to the journal: its text is evidence, not searched for failures.
            self._journal, journal_fd = console("journal", None)
            self._journal.on_line = self._journal_line
        variables, home = None, self.spec.home
        if firmware is not None:
            where = work / VARIABLES if home is None else home.variables
            variables = FlashImage(where, firmware.variables.format)
            if home is None or not where.exists():
                shutil.copyfile(self.spec.variables or firmware.variables.path, where)
        overlays = [] if home is None else [home.disk]
        for index, disk in enumerate(self.spec.disks):
            overlays.append(work / f"disk{index}.qcow2")
            create_overlay(disk, overlays[-1])
        swtpm_fd = None
        if self.spec.tpm:
            self._swtpm = swtpm = Swtpm(work / TPM if home is None else home.tpm, self.records / "swtpm.log")
            self._closing.append(swtpm.stop)
            theirs.append(swtpm.start())
            swtpm_fd = theirs[-1].fileno()
        cards = []
        for index, settings in enumerate(self.spec.network):
            capture = (self.records / f"net{index}.pcap").absolute()
            link = SinkholeLink(f"net{index}", settings, self.records)
            self._closing.append(link.close)
            theirs.append(link.start())
            self.sinkholes.append(link)
            self.captures.append(capture)
            cards.append((theirs[-1].fileno(), capture))
        nic_fd = None
        if self.spec.nic and not self.spec.network:
            ours, nic_fd = pair()
            self._link = Nowhere(ours)
            self._closing.append(self._link.close)
            self._link.start()
        return argv.Wiring(
            qmp_fd=qmp_fd,
            serial_fd=serial_fd,
            channel_fd=channel_fd,
            log_fd=log_fd,
            journal_fd=journal_fd,
            variables=variables,
            overlays=tuple(overlays),
            swtpm_fd=swtpm_fd,
            nic_fd=nic_fd,
            cards=tuple(cards),
        )

    def _record_arguments(self) -> None:
        record = {
            "qemu": self.host.qemu.banner,
            "accelerator": self.host.accelerator.kind,
            "arguments": list(self.arguments),
        }
        (self.records / "qemu.json").write_text(json.dumps(record, indent=1) + "\n")

    def _power_on(self) -> None:
        for console in (self._serial, self._kernel_log, self._journal):
            if console is not None:
                console.start()
        try:
            self.qmp.connect(CONNECT_SECONDS * self.host.pace)
            # What QEMU draws as long as no firmware has set a video mode.
            self._unlit = self.screen.grab().digest
            self.qmp.execute("cont")
        except QmpFailed as error:
            # The sockets of a QEMU that ends are closed a moment before its process has ended.
            if self._process is not None:
                process.await_exit(self._process, 1.0)
            self._raise_if_dead()
            raise LaunchFailed(
                f"QEMU did not come up: {error.what}", remedy="see qemu.log in the evidence; run: osgates doctor"
            ) from error
        self._epoch = time.monotonic()
        self.watcher.power_on()
        for console in (self._serial, self._kernel_log, self._journal):
            if console is not None:
                console.power_on()

    # -- while it runs --------------------------------------------------------------------------------------------

    @property
    def qmp(self) -> Qmp:
        """The monitor. :raise HostError: not powered on."""
        return _needed(self._qmp, "monitor", self.spec)

    @property
    def pid(self) -> int | None:
        """QEMU's; None: it was not started."""
        return None if self._process is None else self._process.pid

    @property
    def serial(self) -> Console:
        """The serial console. :raise HostError: not powered on."""
        return _needed(self._serial, "serial console", self.spec)

    @property
    def shell(self) -> GuestShell:
        """The framed root shell. :raise HostError: the machine has no guest channel."""
        return _needed(self._shell, "guest channel", self.spec)

    @property
    def kernel_log(self) -> Console | None:
        """The kernel log over the channel, None without one."""
        return self._kernel_log

    @property
    def frames_sent(self) -> int:
        """How many Ethernet frames the guest sent into nowhere."""
        return 0 if self._link is None else self._link.frames

    @property
    def screen(self) -> Screen:
        """The display."""
        return Screen(self.qmp, _needed(self._work, "work directory", self.spec))

    def lit(self, frame: Frame) -> bool:
        """Whether `frame` shows anything that the guest drew."""
        return frame.digest != self._unlit and any(frame.rgb)

    @property
    def elapsed(self) -> float:
        """Seconds since power-on."""
        return time.monotonic() - self._epoch

    def _journal_line(self, line: str) -> None:
        if self.on_journal is not None:
            self.on_journal(line)

    def _on_event(self, event: Event) -> None:
        name = str(event.get("event", ""))
        data = event.get("data") or {}
        if name == "VSERPORT_CHANGE" and data.get("id") == "channel" and self._shell is not None:
            self._shell.port_changed(bool(data.get("open")))
        elif name == "GUEST_PANICKED":
            self.watcher.raise_alarm("kernel-panic", "pvpanic", "the guest's kernel reported a panic", fatal=True)
        elif name == "RESET" and data.get("guest"):
            self.resets += 1
        elif name == "SHUTDOWN":
            self.ended = str(data.get("reason", "shutdown"))
        # Last: a full disk costs the record, never what follows from the event.
        path = self.records / "events.jsonl"
        try:
            with path.open("a") as log:
                log.write(json.dumps({"at": round(self.elapsed, 3), "event": name, "data": data}) + "\n")
        except OSError as error:
            self._event_error = self._event_error or f"{path}: {error.strerror}"

    def check(self) -> None:
        """That QEMU, swtpm and the sinkholes live.

        :raise MachineDied: one of them ended, or was stopped.
        :raise HostError: the machine's records cannot be written.
        :raise GuestFailed: the guest powered the machine off.
        """
        self._raise_if_dead()
        self._raise_if_unrecorded()
        for link in self.sinkholes:
            link.check()
        if self._swtpm is None:
            return
        # It ends with its machine, and may be a moment ahead.
        patience = ENDING_SECONDS if self.ended is None else SHUTDOWN_SECONDS
        if self._swtpm.ended == 0 and self._process is not None and process.await_exit(self._process, patience):
            self._raise_if_dead()
        self._swtpm.check()

    def _raise_if_unrecorded(self) -> None:
        """What is not on disk proves nothing to anyone else."""
        for console in (self._serial, self._kernel_log, self._journal):
            if console is not None and console.write_error is not None:
                raise HostError(f"evidence cannot be written to {console.write_error}", remedy=MORE_ROOM)
        if self._event_error is not None:
            raise HostError(f"evidence cannot be written to {self._event_error}", remedy=MORE_ROOM)

    def _still_there(self) -> None:
        """`check`, for the monitor: it is asked before there is a process, too."""
        if self._process is not None:
            self.check()

    def _raise_if_dead(self) -> None:
        child = self._process
        if child is None:
            raise HostError(f"machine {self.spec.name} is not running")
        if not process.await_exit(child, 0):
            if process.is_stopped(child):
                raise MachineDied(
                    f"QEMU was stopped (SIGSTOP) {self.elapsed:.1f} s after power-on: its guest stands still",
                    remedy="find out who stops processes on this host, and run again",
                )
            return
        self._note_end(process.end(child))
        status = child.returncode
        said = self._qemu_said()
        # Told to end by a signal, QEMU ends with status 0 as well: "host-signal" (qapi/run-state.json). Its log says
        # so too, and its process may be gone before that event was heard of.
        by_host = str(self.ended).startswith("host-") or "terminating on signal" in said
        if status == 0 and not by_host:
            raise GuestFailed(f"the machine was powered off by its guest after {self.elapsed:.0f} s ({self.ended})")
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if self._swtpm is not None and (self._swtpm.ended or (self._swtpm.ended == 0 and "tpm-emulator: " in said)):
            # A QEMU that cannot reach its TPM ends; one that ends takes its TPM along, which then ends well.
            self._swtpm.check()
        raise MachineDied(
            f"QEMU {how} {self.elapsed:.1f} s after power-on: {said or 'it said nothing'}",
            remedy="see qemu.log and qemu.json in the evidence; run: osgates doctor",
        )

    def _qemu_said(self) -> str:
        """The end of its log, on one line; empty if it said nothing."""
        try:
            return one_line((self.records / "qemu.log").read_text(errors="replace")[-2000:], 300)
        except OSError as error:
            return f"(its log cannot be read: {error.strerror})"

    def check_guest(self) -> None:
        """`check`, and that nothing known as fatal was seen.

        :raise GuestFailed: a panic, an emergency shell, ...
        """
        self.check()
        alarm = self.watcher.fatal
        if alarm is not None:
            raise GuestFailed(f"{alarm.name} after {alarm.at:.1f} s on {alarm.source}: {one_line(alarm.line)}")

    def check_silent(self) -> None:
        """`check_guest` for who waits for a silent guest: a kernel that stopped says so on the screen only.

        :raise GuestFailed: a panic, an emergency shell, ...
        """
        self.check_guest()
        if self.on_silence is not None:
            self.on_silence()
        if time.monotonic() - self._glanced_at < GLANCE_SECONDS:
            return
        frame = self.screen.grab()
        if frame.digest != self._glanced:
            self._glanced = frame.digest
            for line in frame.text().splitlines() if self.lit(frame) else ():
                self.watcher.scan("screen", line)
        self._glanced_at = time.monotonic()
        self.check_guest()

    def send_keys(self, *keys: str) -> None:
        """Press and release keys together (QMP ``send-key``, QKeyCode names such as ``ret``)."""
        self.qmp.execute("send-key", keys=[{"type": "qcode", "data": key} for key in keys])

    def reads(self) -> int:
        """How many read operations the CD drive and the disks have served."""
        return sum(
            int(device["stats"]["rd_operations"])
            for device in self.qmp.execute("query-blockstats")
            if str(device.get("device", "")).startswith(("cd", "disk"))
        )

    def writes(self) -> int:
        """How many write operations the disks have served."""
        return sum(
            int(device["stats"]["wr_operations"])
            for device in self.qmp.execute("query-blockstats")
            if str(device.get("device", "")).startswith("disk")
        )

    def kernel_runs(self) -> bool:
        """Whether a 64-bit Linux kernel has taken over: its descriptor table lies in the upper half of the address
        space (Documentation/arch/x86/x86_64/mm.rst), where firmware and boot loaders have nothing.
        """
        text = str(self.qmp.execute("human-monitor-command", command_line="info registers"))
        table = re.search(r"^GDT= *([0-9a-f]{16}) ", text, re.MULTILINE)
        return table is not None and int(table[1], 16) >= 0xFFFF_8000_0000_0000

    def power_off(self, timeout: float = 60.0) -> bool:
        """Press the power button and wait; whether the guest went down by itself."""
        self.qmp.execute("system_powerdown")
        child = self._process
        return child is not None and process.await_exit(child, timeout)

    def _note_end(self, status: int) -> None:
        if self.ended is None:
            self.ended = f"status {status}"

    def close(self) -> None:
        """End QEMU and swtpm, close all, delete the private directory. Safe to call twice. Raises nothing but an
        interruption that came meanwhile, once all is done."""
        with INTERRUPTS.deferred():
            self._close()

    def _close(self) -> None:
        while self._closing:
            # QEMU goes first, its peers after it: the newest entry is the newest resource.
            closer = self._closing.pop()
            try:
                closer()
            except (OSError, OsgatesError, RuntimeError, ValueError) as error:
                self._note(error)
        for listener in (self._qmp, self._serial, self._kernel_log, self._journal):
            if listener is not None and listener.listener_error is not None:
                self._note(listener.listener_error)
                listener.listener_error = None

    def _note(self, error: Exception) -> None:
        with contextlib.suppress(OSError), (self.records / "close.log").open("a") as log:
            log.write(f"{type(error).__name__}: {error}\n")


def _needed(value: T | None, what: str, spec: MachineSpec) -> T:
    if value is None:
        raise HostError(f"machine {spec.name} has no {what}")
    return value
