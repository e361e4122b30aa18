"""Known failures, noticed in whatever the guest shows: serial console, kernel log, screen, QEMU's events."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_osgates.vm.text import strip_escapes

LONGEST_LINE = 8192
# Of a line that was too long, what is looked at again with its next piece: a message may be cut in two.
CARRY = 256
# Seconds after which a line without its newline is taken for what it says so far, such as a prompt.
SETTLED = 1.0


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
    """Collects alarms from several threads. One alarm per pattern and source: a flood is one finding.

    What a line means may only be known at its end ("BUG: " may go on with "soft lockup"), so an unfinished one counts
    once nothing has come for a second, and only until more comes: how the wire cuts a line changes nothing.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = tuple(patterns)
        self._lock = threading.Lock()
        self._alarms: dict[tuple[str, str], Alarm] = {}
        # For each source: since when its last line is as it is, and what it matches.
        self._unfinished: dict[str, tuple[float, tuple[Alarm, ...]]] = {}
        self._epoch = time.monotonic()

    def power_on(self) -> None:
        """From now on `at` counts."""
        self._epoch = time.monotonic()

    def scan(self, source: str, line: str, *, finished: bool = True) -> None:
        """Match one line (of at most `LONGEST_LINE` + `CARRY` characters; the rest is not looked at).

        `finished`: nothing can be added to it any more."""
        text = strip_escapes(line[: LONGEST_LINE + CARRY + 3])
        now = time.monotonic()
        found = tuple(
            Alarm(pattern.name, source, _quoted(text, match), now - self._epoch, pattern.fatal)
            for pattern in self._patterns
            if (match := pattern.regex.search(text))
        )
        with self._lock:
            self._unfinished.pop(source, None)
            if not finished:
                self._unfinished[source] = (now, found)
                return
            for alarm in found:
                self._alarms.setdefault((alarm.name, source), alarm)

    def raise_alarm(self, name: str, source: str, line: str, *, fatal: bool) -> None:
        """Record an alarm that did not come from a pattern, such as one of QEMU's own events."""
        alarm = Alarm(name, source, line.strip()[:1000], time.monotonic() - self._epoch, fatal)
        with self._lock:
            self._alarms.setdefault((name, source), alarm)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """All alarms so far, oldest first."""
        now = time.monotonic()
        with self._lock:
            found = dict(self._alarms)
            for since, alarms in self._unfinished.values():
                if now - since >= SETTLED:
                    for alarm in alarms:
                        found.setdefault((alarm.name, alarm.source), alarm)
            return tuple(sorted(found.values(), key=lambda alarm: alarm.at))

    @property
    def fatal(self) -> Alarm | None:
        """The first alarm after which waiting makes no sense."""
        return next((alarm for alarm in self.alarms if alarm.fatal), None)


def _quoted(text: str, match: re.Match[str]) -> str:
    """At most 1000 characters of `text`, the match among them."""
    return text[max(0, min(match.start() - 200, len(text) - 1000)) if match.end() > 1000 else 0 :].strip()[:1000]
