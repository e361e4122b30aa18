"""Known failures, noticed in whatever the guest shows: serial console, kernel log, screen, QEMU's events."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_osgates.vm.text import strip_escapes


@dataclass(frozen=True)
class Pattern:
    """One kind of failure: `name` for findings, `regex` searched in each line, `fatal`: no use in waiting on."""

    name: str
    regex: re.Pattern[str]
    fatal: bool
    meaning: str = ""


@dataclass(frozen=True)
class Alarm:
    """A pattern that matched: in which source, on which line, how many seconds after power-on."""

    name: str
    source: str
    line: str
    at: float
    fatal: bool


class Watcher:
    """Collects alarms from several threads. One alarm per pattern and source: a flood is one finding."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = tuple(patterns)
        self._lock = threading.Lock()
        self._alarms: dict[tuple[str, str], Alarm] = {}
        self._epoch = time.monotonic()

    def power_on(self) -> None:
        """From now on `at` counts."""
        self._epoch = time.monotonic()

    def scan(self, source: str, line: str) -> None:
        """Match one line (of at most 4096 characters; the rest is not looked at)."""
        text = strip_escapes(line[:4096])
        for pattern in self._patterns:
            if pattern.regex.search(text):
                self.raise_alarm(pattern.name, source, text, fatal=pattern.fatal)

    def raise_alarm(self, name: str, source: str, line: str, *, fatal: bool) -> None:
        """Record an alarm that did not come from a pattern, such as one of QEMU's own events."""
        alarm = Alarm(name, source, line.strip()[:1000], time.monotonic() - self._epoch, fatal)
        with self._lock:
            self._alarms.setdefault((name, source), alarm)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """All alarms so far, oldest first."""
        with self._lock:
            return tuple(sorted(self._alarms.values(), key=lambda alarm: alarm.at))

    @property
    def fatal(self) -> Alarm | None:
        """The first alarm after which waiting makes no sense."""
        return next((alarm for alarm in self.alarms if alarm.fatal), None)
