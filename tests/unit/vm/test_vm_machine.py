"""A machine that does not come up says why and leaves nothing; nothing here boots."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vm_fakes import wait_for

from pytest_osgates.vm import machine as module
from pytest_osgates.vm import process, workdir
from pytest_osgates.vm.console import Console
from pytest_osgates.vm.errors import GuestFailed, HostError, LaunchFailed, MachineDied, OsgatesError
from pytest_osgates.vm.host import KVM, TCG, Host, Probe, Qemu
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network.nowhere import Nowhere
from pytest_osgates.vm.spec import Firmware, MachineSpec
from pytest_osgates.vm.swtpm import Swtpm

Make = Callable[..., Machine]


def held() -> tuple[int, set[str]]:
    """How many descriptors are open, and which threads run."""
    names = {thread.name for thread in threading.enumerate()}
    return len(list(Path("/proc/self/fd").iterdir())), {
        name for name in names if not name.startswith("osgates-spawn")
    }


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A machine whose QEMU is a shell script; afterwards nothing may be left of it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "image.iso").write_bytes(b"iso")
    before = held()

    def machine(script: str = "exit 1", **changes: Any) -> Machine:
        qemu = tmp_path / "qemu"
        qemu.write_text(f"#!/bin/sh\n{script}\n")
        qemu.chmod(0o755)
        values: dict[str, Any] = {"cdrom": tmp_path / "image.iso", "tpm": False, "memory_mib": 128, **changes}
        host = Host(Qemu(str(qemu), (7, 2, 0), "QEMU emulator version 7.2.0"), TCG, Probe(KVM, False, "not asked"))
        return Machine(MachineSpec("test", Firmware.BIOS, **values), host, tmp_path / "records")

    yield machine
    assert list(workdir.base_directory().iterdir()) == []
    descriptors, threads = held()
    assert descriptors <= before[0]
    assert threads <= before[1]


def test_the_words_of_a_qemu_that_ends_at_once(make: Make, tmp_path: Path) -> None:
    machine = make("echo 'qemu: -cpu host: MSR(0x10a) \x1b[31mfailed' >&2; exit 3")
    with (
        pytest.raises(MachineDied, match=r"QEMU ended with status 3 .*: qemu: -cpu host: MSR\(0x10a\) failed"),
        machine,
    ):
        raise AssertionError("powered on")
    records = tmp_path / "records"
    assert "MSR" in (records / "qemu.log").read_text()
    assert json.loads((records / "qemu.json").read_text())["arguments"] == list(machine.arguments)
    assert (records / "serial.log").exists()


def test_a_qemu_killed_by_a_signal(make: Make) -> None:
    with pytest.raises(MachineDied, match=r"QEMU was killed by signal 9 .*: it said nothing"), make("kill -9 $$"):
        raise AssertionError("powered on")


def test_a_qemu_that_never_greets(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with pytest.raises(LaunchFailed, match="QEMU did not come up"), make("exec sleep 1000"):
        raise AssertionError("powered on")


def test_too_little_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_available_mib", lambda: 600)
    with pytest.raises(HostError, match=r"needs 128 MiB of memory and \d+ beside it; 600 MiB are available"), make():
        raise AssertionError("powered on")


def test_a_disk_that_is_none(make: Make, tmp_path: Path) -> None:
    """The last step before QEMU fails: the sockets and threads of the steps before it are gone as well."""
    machine = make(cdrom=None, disks=(tmp_path / "absent.raw",), channel="0123456789abcdef")
    before = held()
    with pytest.raises(OsgatesError, match="is not a disk image") as caught, machine:
        raise AssertionError("powered on")
    # Closed, not just left to the garbage collector: the error still holds all frames.
    assert caught.value.__traceback__ is not None
    descriptors, threads = held()
    assert descriptors <= before[0]
    assert threads <= before[1]


def test_a_tpm_that_does_not_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: object) -> None:
        raise LaunchFailed("no TPM today")

    monkeypatch.setattr(module.Swtpm, "start", start)
    with pytest.raises(LaunchFailed, match="no TPM today"), make(tpm=True):
        raise AssertionError("powered on")


@pytest.mark.parametrize(
    ("script", "reason", "kind", "words"),
    [
        ("exit 0", "guest-shutdown", GuestFailed, r"powered off by its guest after \d+ s \(guest-shutdown\)"),
        ("exit 0", None, GuestFailed, "powered off by its guest"),
        ("exit 0", "host-signal", MachineDied, "QEMU ended with status 0"),
        ("echo qemu: terminating on signal 15 >&2; exit 0", None, MachineDied, "status 0 .* on signal 15"),
        ("exit 1", "guest-shutdown", MachineDied, "QEMU ended with status 1"),
        ("kill -SEGV $$", None, MachineDied, "killed by signal 11"),
    ],
)
def test_whose_fault_an_end_is(
    make: Make, tmp_path: Path, script: str, reason: str | None, kind: type[OsgatesError], words: str
) -> None:
    machine = make(script)
    (tmp_path / "records").mkdir()
    with (tmp_path / "records" / "qemu.log").open("wb") as sink:
        child = machine._process = process.spawn([str(tmp_path / "qemu")], stderr=sink)
    assert process.await_exit(child, 10.0)
    if reason is not None:
        machine._on_event({"event": "SHUTDOWN", "data": {"guest": reason.startswith("guest"), "reason": reason}})
    with pytest.raises(kind, match=words):
        machine.check()


def test_a_qemu_that_was_stopped(make: Make, tmp_path: Path) -> None:
    machine = make("exec sleep 1000")
    child = machine._process = process.spawn([str(tmp_path / "qemu")])
    machine.check()
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(MachineDied, match=r"QEMU was stopped \(SIGSTOP\) .* after power-on.*\n  -> find out who"):
        wait_for(lambda: machine.check() is not None, "an exception")
    assert process.end(child) == -signal.SIGTERM


def test_a_qemu_that_is_stopped_before_it_greets(make: Make) -> None:
    """Noticed while the monitor is waited for, long before that wait's deadline."""
    begun = time.monotonic()
    with pytest.raises(MachineDied, match="QEMU was stopped"), make("kill -STOP $$; sleep 1000"):
        raise AssertionError("powered on")
    assert time.monotonic() - begun < 10.0


@pytest.mark.parametrize(("machine_ends", "kind"), [(True, GuestFailed), (False, MachineDied)])
def test_a_tpm_that_ends_with_its_machine_is_not_to_blame(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_ends: bool, kind: type[OsgatesError]
) -> None:
    """It is gone a moment before QEMU is."""
    monkeypatch.setattr(module, "SHUTDOWN_SECONDS", 5.0 if machine_ends else 0.2)
    machine = make("read line; exit 0")
    (tmp_path / "records").mkdir()
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin:
        child = machine._process = process.spawn([str(tmp_path / "qemu")], stdin=stdin)
    tpm = machine._swtpm = Swtpm(tmp_path / "tpm", tmp_path / "swtpm.log")
    tpm._process = process.spawn(["true"])
    assert process.await_exit(tpm._process, 10.0)
    machine._on_event({"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}})
    if machine_ends:
        threading.Timer(0.1, os.close, (writer,)).start()
    with pytest.raises(kind):
        machine.check()
    process.end(child)
    if not machine_ends:
        os.close(writer)


def test_closing_what_never_ran(make: Make) -> None:
    machine = make()
    machine.close()
    machine.close()
    for what in (lambda: machine.qmp, lambda: machine.serial, lambda: machine.shell, lambda: machine.screen):
        with pytest.raises(HostError, match="machine test has no "):
            what()
    with pytest.raises(HostError, match="is not running"):
        machine.check()


def test_what_events_mean(make: Make, tmp_path: Path) -> None:
    machine = make()
    (tmp_path / "records").mkdir()
    machine._on_event({"event": "RESET", "data": {"guest": True}})
    machine._on_event({"event": "RESET", "data": {"guest": False}})
    machine._on_event({"event": "GUEST_PANICKED", "data": {"action": "run"}})
    machine._on_event({"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}})
    machine._on_event({"event": "VSERPORT_CHANGE", "data": {"id": "channel", "open": True}})
    machine._on_event({"event": "STOP"})
    assert machine.resets == 1
    assert machine.ended == "guest-shutdown"
    assert [alarm.name for alarm in machine.watcher.alarms] == ["kernel-panic"]
    written = [json.loads(line) for line in (tmp_path / "records" / "events.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in written][::5] == ["RESET", "STOP"]


def test_an_event_is_heeded_even_if_it_cannot_be_written(make: Make, tmp_path: Path) -> None:
    machine = make()
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "events.jsonl").symlink_to("/dev/full")
    for event in ({"event": "GUEST_PANICKED"}, {"event": "SHUTDOWN", "data": {"reason": "guest-panic"}}):
        machine._on_event(event)
    assert machine.watcher.fatal is not None
    assert machine.ended == "guest-panic"


@pytest.mark.parametrize("name", ["events.jsonl", "serial.log"])
def test_a_machine_whose_records_cannot_be_written_proves_nothing(make: Make, tmp_path: Path, name: str) -> None:
    machine = make("exec sleep 1000")
    records = tmp_path / "records"
    records.mkdir()
    child = machine._process = process.spawn([str(tmp_path / "qemu")])
    (records / name).symlink_to("/dev/full")
    ours, theirs = socket.socketpair()
    console = machine._serial = Console(ours, "serial", records / "serial.log", None)
    console.start()
    machine.check()
    machine._on_event({"event": "STOP"})
    theirs.sendall(b"hello\n")
    with (
        theirs,
        pytest.raises(HostError, match=rf"evidence cannot be written to .*{name}: No space left.*\n  -> free"),
    ):
        wait_for(lambda: machine.check() is not None, "an exception")
    process.end(child)
    console.close()


def test_no_room_for_a_machine(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which disk is full decides what to do about it."""
    (tmp_path / "records").write_text("a file where a directory should be")
    with pytest.raises(HostError, match=r"machine test cannot be made: .*records.*\n  -> .*--iso-evidence"), make():
        raise AssertionError("powered on")
    (tmp_path / "records").unlink()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(HostError, match=r"no place for the files of machines: .*gone.*\n  -> .*TMPDIR"), make():
        raise AssertionError("powered on")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def test_the_link_to_nowhere_counts_and_answers_nothing() -> None:
    ours, theirs = socket.socketpair()
    link = Nowhere(ours)
    link.start()
    with theirs:
        frames = [b"x" * size for size in (60, 0, 1514, 65_000)]
        wire = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
        # In pieces, so that neither lengths nor frames arrive whole.
        for at in range(0, len(wire), 1001):
            theirs.sendall(wire[at : at + 1001])
        wait_for(lambda: link.frames == 4, "all frames are counted")
        assert link.size == sum(map(len, frames))
        theirs.sendall(b"\xff" * 100)
        wait_for(lambda: link.broken, "a length beyond all bounds is noticed")
        # Still drained: more than a socket holds goes through.
        theirs.sendall(bytes(4 << 20))
        assert link.frames == 4
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        link.close()
        link.close()
        assert theirs.recv(1) == b""


@pytest.mark.parametrize(
    ("tpm", "words", "blamed"),
    [
        ("kill -9 $$", "qemu: Input/output error", "swtpm was killed by signal 9"),
        ("exit 0", "qemu: tpm-emulator: Failed to send CMD_SET_DATAFD", "swtpm ended with status 0"),
        ("exit 0", "qemu: no such device", "QEMU ended with status 1"),
    ],
)
def test_who_is_to_blame_when_both_have_ended(make: Make, tmp_path: Path, tpm: str, words: str, blamed: str) -> None:
    machine = make(f"echo '{words}' >&2; exit 1")
    (tmp_path / "records").mkdir()
    with (tmp_path / "records" / "qemu.log").open("wb") as sink:
        child = machine._process = process.spawn([str(tmp_path / "qemu")], stderr=sink)
    swtpm = machine._swtpm = Swtpm(tmp_path / "tpm", tmp_path / "swtpm.log")
    swtpm._process = process.spawn(["sh", "-c", tpm])
    assert process.await_exit(child, 10.0)
    assert process.await_exit(swtpm._process, 10.0)
    with pytest.raises(MachineDied, match=blamed):
        machine.check()
