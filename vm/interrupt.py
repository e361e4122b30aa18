"""SIGINT, SIGTERM and SIGHUP: the first ends what runs as Ctrl-C does, the next ones hurry, and none of them comes in
between where something has to be whole: the end of a machine, the last lines of the evidence.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pytest_osgates.vm import process

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The one with this number is obeyed as if nobody had asked for it to be handled.
MOST = 4
# Virtual consoles and serial lines, /dev/tty and its kind, pseudo-terminals (Documentation/admin-guide/devices.txt).
_TERMINALS = {4, 5, *range(136, 144)}


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; the signal's name is its message."""


class Interrupts:
    """The handler of one process. Its signals reach the main thread, and only there can it be installed."""

    def __init__(self) -> None:
        self._count = 0
        self._depth = 0
        self._pending: KeyboardInterrupt | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Handle what is not ignored: somebody who says nohup(1) wants no SIGHUP."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN and number not in self._before:
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Handle no more."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    @property
    def held(self) -> KeyboardInterrupt | None:
        """What came while it had to wait."""
        return self._pending

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if number == signal.SIGHUP:
            detach_terminals()
        if self._count >= MOST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._count > 1:
            # It is ending already: whoever broke that off would leave it half done.
            process.hurry()
            return
        name = signal.Signals(number).name
        error = KeyboardInterrupt() if number == signal.SIGINT else Terminated(name)
        if self._depth:
            self._pending = error
            return
        raise error

    @contextlib.contextmanager
    def deferred(self, take: Callable[[KeyboardInterrupt], None] | None = None) -> Iterator[None]:
        """Nothing comes in between here. Afterwards what was held back is raised, or given to `take`."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth and self._pending is not None:
                error, self._pending = self._pending, None
                if take is None:
                    raise error
                take(error)


def name_of(error: BaseException) -> str:
    """What interrupted: ``KeyboardInterrupt``, ``SIGTERM``, ..."""
    return str(error) if isinstance(error, Terminated) else type(error).__name__


def detach_terminals() -> None:
    """Let every descriptor of a terminal that is gone lead nowhere: writing to it would fail from now on."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            with contextlib.suppress(OSError):
                status = os.fstat(number)
                if stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) in _TERMINALS:
                    os.dup2(nowhere, number, inheritable=number < 3)
    finally:
        os.close(nowhere)


INTERRUPTS = Interrupts()
