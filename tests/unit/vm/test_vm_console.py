"""The console drains whatever comes, keeps it on disk with times, and bounds what it holds in memory."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pexpect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vm_fakes import wait_for

from pytest_osgates.checks.boot import patterns
from pytest_osgates.vm import console as module
from pytest_osgates.vm import watch
from pytest_osgates.vm.console import RECENT_LIMIT, Console, ConsoleSpawn
from pytest_osgates.vm.watch import CARRY, LONGEST_LINE, Pattern, Watcher

STAMP = re.compile(rb"^\[ {0,9}\d+\.\d{3}\] ")


class Guest:
    """A console and the guest's end of it."""

    def __init__(self, transcript: Path) -> None:
        ours, self.end = socket.socketpair()
        self.transcript = transcript
        self.watcher = Watcher([Pattern("panic", re.compile("Kernel panic"), fatal=True)])
        self.console = Console(ours, "serial", transcript, self.watcher)
        self.console.start()

    def say(self, data: bytes) -> None:
        self.end.sendall(data)

    def hang_up(self) -> list[bytes]:
        """Power off; the transcript's lines without their times."""
        self.end.close()
        wait_for(lambda: self.console.closed, "the console sees the end")
        self.console.close()
        lines = self.transcript.read_bytes().split(b"\n")
        assert lines.pop() == b""
        assert all(STAMP.match(line) for line in lines if not line.startswith(b"(")), lines
        return [STAMP.sub(b"", line) for line in lines]

    def heard(self, count: int) -> None:
        wait_for(lambda: self.console.spoken >= count, f"{count} bytes drained", 20.0)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path / "serial.log")
    yield guest
    guest.end.close()
    guest.console.close()


def test_a_line_of_the_guest_is_a_line_of_the_transcript(guest: Guest) -> None:
    guest.say(b"one\r\ntwo\n\nthree \xff\x00\r\r\n\x1b[31mred\x1b[0m\n")
    assert guest.hang_up() == [b"one", b"two", b"", b"three \xff\x00", b"\x1b[31mred\x1b[0m"]


def test_times_count_from_power_on(guest: Guest) -> None:
    guest.console._epoch -= 1000.0
    guest.say(b"before\n")
    guest.heard(7)
    wait_for(lambda: guest.transcript.read_bytes().endswith(b"before\n"), "the line is written")
    guest.console.power_on()
    guest.say(b"after\n")
    guest.heard(13)
    guest.hang_up()
    before, after = (float(line[1:11]) for line in guest.transcript.read_bytes().splitlines())
    assert before >= 1000.0
    assert after < 500.0


def test_no_newline_at_the_end(guest: Guest) -> None:
    guest.say(b"boot\nKernel panic - not syncing")
    wait_for(lambda: guest.watcher.fatal is not None, "the panic is seen before its newline")
    assert guest.hang_up() == [b"boot", b"Kernel panic - not syncing"]


def test_a_panic_cut_in_two_by_the_wire(guest: Guest) -> None:
    guest.say(b"Kernel pa")
    guest.heard(9)
    assert guest.watcher.alarms == ()
    guest.say(b"nic - not syncing\n")
    wait_for(lambda: guest.watcher.fatal is not None, "the panic is seen")


@pytest.mark.parametrize("length", [8191, 8192, 8193, 16384, 16385, 100_000])
@pytest.mark.parametrize("ending", [b"\n", b""])
def test_long_lines_are_split_and_nothing_of_them_is_lost(guest: Guest, length: int, ending: bytes) -> None:
    line = bytes(33 + at % 90 for at in range(length))
    guest.say(line + ending + b"next\n" * bool(ending))
    pieces = guest.hang_up()
    if ending:
        assert pieces.pop() == b"next"
    assert b"".join(pieces) == line
    assert all(len(piece) <= 8192 for piece in pieces)


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"\n", b"\r\n", b"x" * 9000, b"\xc3"])), max_size=12
    )
)
def test_the_transcript_holds_every_byte_in_whatever_pieces_it_came(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        console = Console(ours, "serial", tmp_path_factory.mktemp("console") / "serial.log", Watcher([]))
        taken: list[bytes] = []
        console._take = lambda line, whole=True: taken.append(line)  # type: ignore[method-assign]
        for chunk in chunks:
            console._lines(chunk)
        console._flush_line()
        console.close()
    text = b"".join(chunks)
    # Long lines are split: taken apart again, the pieces between two newlines make the line.
    assert b"".join(taken) == text.replace(b"\n", b"")
    assert all(len(line) <= 8192 for line in taken)


# Pieces of what a guest writes: messages that mean something else with their end, or with what stands before them.
PIECES = (
    *(b"Kernel panic - not syncing", b"watchdog: BUG: soft lockup - CPU#1", b"BUG: unable to handle", b"BUG: x"),
    *(b"\n", b"\r\n", b"grub> ", b"Shell> ", b"exit", b"\x1b[31m", b"\x1b]0;title\x07", b"\xc3\xa4", b"\xff", b"\0"),
    *(b"] general protection fault: ", b"x" * 8180, b"y" * 300, b"(initramfs) ", b" "),
)


def heard_in(chunks: list[bytes], directory: Path) -> tuple[object, bytes, str]:
    """Alarms, transcript without its times, and the newest text, of a console that got these `chunks` and its end."""
    ours, theirs = socket.socketpair()
    watcher = Watcher(patterns())
    path = directory / "serial.log"
    with theirs:
        console = Console(ours, "serial", path, watcher)
        for chunk in chunks:
            console._lines(chunk)
            assert len(console._line) <= LONGEST_LINE
            assert len(console._carried) <= CARRY + 3
        console._flush_line()
        console.close()
    alarms = sorted((alarm.name, alarm.source, alarm.line, alarm.fatal) for alarm in watcher.alarms)
    return alarms, re.sub(rb"(?m)^\[[ \d.]{10}\] ", b"", path.read_bytes()), console.tail()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=12)), max_size=10),
    cuts=st.lists(st.floats(0, 1, exclude_max=True), max_size=12),
    single=st.booleans(),
)
def test_how_the_wire_cuts_it_changes_nothing(
    tmp_path: Path, pieces: list[bytes], cuts: list[float], single: bool
) -> None:
    text = b"".join(pieces)
    at = sorted({0, len(text), *(int(cut * len(text)) for cut in cuts)})
    if single and len(text) < 400:
        at = list(range(len(text) + 1))
    chunks = [text[begin:end] for begin, end in pairwise(at)]
    assert heard_in(chunks, tmp_path) == heard_in([text], tmp_path)


def test_an_unfinished_line_counts_once_it_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    watcher = Watcher(patterns())
    watcher.scan("serial", "[ 12.3] watchdog: BUG: ", finished=False)
    now[0] += watch.SETTLED / 2
    assert watcher.fatal is None
    watcher.scan("serial", "[ 12.3] watchdog: BUG: soft lockup", finished=False)
    now[0] += watch.SETTLED / 2
    assert watcher.alarms == ()
    now[0] += watch.SETTLED / 2
    assert [alarm.name for alarm in watcher.alarms] == ["soft-lockup"]
    watcher.scan("serial", "[ 12.3] watchdog: BUG: soft lockup - CPU#0")
    assert [alarm.line for alarm in watcher.alarms] == ["[ 12.3] watchdog: BUG: soft lockup - CPU#0"]
    prompt = Watcher(patterns())
    prompt.scan("serial", "Shell> ", finished=False)
    now[0] += watch.SETTLED
    assert [alarm.fatal for alarm in prompt.alarms] == [True]
    prompt.scan("serial", "Shell> exit")
    assert prompt.alarms == ()


@pytest.mark.parametrize("before", [4000, 8170, 8192, 8200, 16_380])
def test_a_message_is_found_wherever_it_stands_in_an_endless_line(tmp_path: Path, before: int) -> None:
    guest = Guest(tmp_path / "serial.log")
    guest.say(b"x" * before + b"Kernel panic - not syncing: VFS\n")
    wait_for(lambda: guest.watcher.fatal is not None, "the panic is seen")
    guest.hang_up()


def test_the_middle_of_a_long_line_is_not_its_beginning(tmp_path: Path) -> None:
    alarms, _, _ = heard_in([b"x" * LONGEST_LINE + b"(initramfs) \n"], tmp_path)
    assert alarms == []


def test_a_flood_does_not_stay_in_memory(guest: Guest) -> None:
    block = (b"x" * 8000 + b"\n") * 131
    size = len(block) * 29
    assert size > 30_000_000
    sender = threading.Thread(target=lambda: [guest.say(block) for _ in range(29)])
    sender.start()
    largest = 0
    while guest.console.spoken < size:
        guest.console.wait_for_more(1.0)
        held = guest.console
        largest = max(largest, len(held._recent) + len(held._unread) + len(held._line))
    sender.join()
    assert largest <= 2 * RECENT_LIMIT + (1 << 18)
    assert len(guest.console.tail(1 << 30)) == RECENT_LIMIT
    assert guest.console.dropped == size - RECENT_LIMIT, "what nobody took in time is counted"
    assert len(guest.hang_up()) == 131 * 29


def test_an_endless_line_does_not_stay_in_memory(guest: Guest) -> None:
    sender = threading.Thread(target=lambda: guest.say(b"\0" * 4_000_000))
    sender.start()
    guest.heard(4_000_000)
    sender.join()
    assert len(guest.console._line) <= 8192 + (1 << 16)
    guest.hang_up()


def test_the_transcript_s_limit(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRANSCRIPT_LIMIT", 1000)
    for number in range(200):
        guest.say(b"line %d\n" % number)
    guest.say(b"Kernel panic\n")
    wait_for(lambda: guest.watcher.fatal is not None, "matching goes on beyond the limit")
    lines = guest.hang_up()
    assert lines[0] == b"line 0"
    assert lines[-1].startswith(b"(transcript ends here")
    assert 1000 <= guest.transcript.stat().st_size < 1100
    assert guest.console.tail().endswith("line 199\nKernel panic\n")
    assert guest.console.write_error is None


def test_a_full_disk_is_said_and_draining_goes_on(tmp_path: Path) -> None:
    full = tmp_path / "serial.log"
    full.symlink_to("/dev/full")
    guest = Guest(full)
    assert guest.console.write_error is None
    guest.say(b"x\n" * 40_000 + b"Kernel panic\n")
    wait_for(lambda: guest.watcher.fatal is not None, "draining and matching go on", 20.0)
    assert guest.console.write_error is not None
    assert "No space left" in guest.console.write_error
    assert guest.console.tail().endswith("Kernel panic\n")
    guest.end.close()
    guest.console.close()


def test_the_guest_is_spoken_to(guest: Guest) -> None:
    guest.console.send(b"root\r")
    assert guest.end.recv(100) == b"root\r"


def test_waiting_for_more(guest: Guest) -> None:
    guest.console.wait_for_more(0.01)
    assert guest.console.spoken == 0
    waited = threading.Thread(target=guest.console.wait_for_more, args=(30.0,))
    waited.start()
    # The last of several, in case that the first came before the wait began.
    while waited.is_alive():
        guest.say(b".")
        waited.join(0.01)
    assert guest.console.spoken > 0


def test_what_was_taken_is_not_taken_again(guest: Guest) -> None:
    guest.say(b"abcdef")
    guest.heard(6)
    assert guest.console.take_unread(4, 1.0) == b"abcd"
    assert guest.console.take_unread(4, 1.0) == b"ef"
    assert guest.console.take_unread(4, 0.01) == b""
    assert guest.console.tail(3) == "def"
    guest.end.close()
    assert guest.console.take_unread(4, 30.0) == b""


def test_closing_twice_and_before_the_start(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        console = Console(ours, "serial", tmp_path / "log", Watcher([]))
        console.close()
        console.close()
    assert (tmp_path / "log").read_bytes() == b""


def test_closing_ends_the_thread(guest: Guest) -> None:
    guest.say(b"unfinished")
    guest.heard(10)
    guest.console.close()
    assert not any(thread.name == "console-serial" and thread.is_alive() for thread in threading.enumerate())
    assert guest.transcript.read_bytes().endswith(b"unfinished\n")


def test_pexpect_finds_what_the_guest_says(guest: Guest) -> None:
    spawn = ConsoleSpawn(guest.console, timeout=10.0)
    guest.say(b"Welcome\r\ndebian login: ")
    assert spawn.expect(["Password: ", "login: "]) == 1
    assert spawn.before == "Welcome\r\ndebian "
    spawn.sendline("root")
    assert guest.end.recv(100) == b"root\r"
    assert spawn.isalive()


def test_pexpect_gives_up(guest: Guest) -> None:
    spawn = ConsoleSpawn(guest.console, timeout=10.0)
    guest.say(b"no such thing")
    with pytest.raises(pexpect.TIMEOUT):
        spawn.expect("login: ", timeout=0.05)
    guest.say(b" login: ")
    assert spawn.expect("login: ") == 0
    guest.end.close()
    with pytest.raises(pexpect.EOF):
        spawn.expect("login: ")
    assert not spawn.isalive()


def test_pexpect_reads_characters_that_a_read_cut_in_two(guest: Guest) -> None:
    spawn = ConsoleSpawn(guest.console, timeout=10.0)
    spawn.maxread = 1
    guest.say("Größe 日本\n".encode() + b"\xff!")
    assert spawn.expect("\n") == 0
    assert spawn.before == "Größe 日本"
    assert spawn.expect("!") == 0
    assert spawn.before == "\ufffd"


def test_a_listener_gets_every_line_and_cannot_stop_the_draining(guest: Guest) -> None:
    heard: list[str] = []

    def listen(line: str) -> None:
        heard.append(line)
        if line == "two":
            raise RecursionError("hostile line")

    guest.console.on_line = listen
    guest.say(b"one\r\ntwo\nthree\nKernel panic\n")
    assert guest.hang_up() == [b"one", b"two", b"three", b"Kernel panic"]
    assert heard == ["one", "two", "three", "Kernel panic"]
    assert isinstance(guest.console.listener_error, RecursionError)
    assert guest.watcher.fatal is not None


def test_a_console_that_nobody_searches(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    console = Console(ours, "journal", tmp_path / "journal.log", None)
    console.start()
    with theirs:
        theirs.sendall(b"Kernel panic\nrest")
    wait_for(lambda: console.closed, "the console sees the end")
    console.close()
    assert [STAMP.sub(b"", line) for line in (tmp_path / "journal.log").read_bytes().splitlines()] == [
        b"Kernel panic",
        b"rest",
    ]
