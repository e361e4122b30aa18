"""Signals that ask to end, sent to this very process."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pytest_osgates.vm import process
from pytest_osgates.vm.interrupt import Interrupts, Terminated, detach_terminals, name_of


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    """Installed for one test."""
    monkeypatch.setattr(process, "_hurried", type(process._hurried)())
    made = Interrupts()
    made.install()
    yield made
    made.restore()


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_the_first_signal_interrupts(interrupts: Interrupts, number: signal.Signals, name: str) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(number)
    assert name_of(caught.value) == name
    assert isinstance(caught.value, Terminated) == (number != signal.SIGINT)
    assert not process._hurried.is_set()


def test_the_next_ones_hurry_and_break_nothing_off(interrupts: Interrupts) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert process._hurried.is_set()
    signal.raise_signal(signal.SIGTERM)


def test_what_comes_while_something_has_to_be_whole_comes_afterwards(interrupts: Interrupts) -> None:
    steps = []

    def whole() -> None:
        with interrupts.deferred():
            with interrupts.deferred():
                signal.raise_signal(signal.SIGTERM)
                steps.append("inner")
            assert isinstance(interrupts.held, Terminated)
            steps.append("outer")

    with pytest.raises(Terminated):
        whole()
    assert steps == ["inner", "outer"]
    assert interrupts.held is None


def test_or_is_taken_by_whoever_held_it_back(interrupts: Interrupts) -> None:
    taken: list[KeyboardInterrupt] = []
    with interrupts.deferred(taken.append):
        signal.raise_signal(signal.SIGINT)
    assert [type(error) for error in taken] == [KeyboardInterrupt]


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    made = Interrupts()
    try:
        made.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        made.restore()
        signal.signal(signal.SIGHUP, before)


def test_restored_handlers_are_those_of_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    made = Interrupts()
    made.install()
    made.install()
    made.restore()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_the_fourth_is_obeyed() -> None:
    """Whatever hangs: somebody who asks four times is not asked for patience."""
    code = (
        "import signal\n"
        "from pytest_osgates.vm.interrupt import Interrupts\n"
        "made = Interrupts()\n"
        "made.install()\n"
        "for _ in range(4):\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    except KeyboardInterrupt:\n"
        "        print('once', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "once\n"


def test_nothing_that_is_to_end_is_given_time_once_in_a_hurry(interrupts: Interrupts) -> None:
    """A program that ignores SIGTERM is not waited for."""
    child = process.spawn(["sh", "-c", "trap '' TERM; echo x; while :; do sleep 1; done"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.read(1) == b"x"
        process.hurry()
        assert process.end(child, grace=3600.0) == -signal.SIGKILL


def test_descriptors_of_a_terminal_lead_nowhere_afterwards() -> None:
    ours, theirs = pty.openpty()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        detach_terminals()
        os.write(theirs, b"into nowhere")
        os.write(writing, b"x" if not os.isatty(theirs) else b"y")
        os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"x"
        assert os.waitpid(pid, 0)[1] == 0
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        for descriptor in (ours, theirs, reading):
            os.close(descriptor)
