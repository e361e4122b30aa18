"""Whom to suspect of a flow: the owner of the socket if it is still there, and the units that were busy just then."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.vm.errors import GuestError
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line

MAX_JOURNAL = 64 << 20
MAX_SUSPECTS = 4
# A unit that spoke, or was started, this long before a packet (or a little after: clocks differ) may have sent it.
BEFORE_S, AFTER_S = 6.0, 1.5
# A job that never ends is suspected of what happens in its first hour.
ENDLESS_S = 3600.0
# sd-messages(3): SD_MESSAGE_UNIT_STARTING; UNIT_STARTED, UNIT_FAILED and UNIT_FAILURE_RESULT end it.
_STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"
_DONE = frozenset(
    {"39f53479d3a045ac8e11786248231fbf", "be02cf6855d2428ba40df7e9d022f03d", "d9b373ed55a64feb8242e02dbe79a49c"}
)
_USERS = re.compile(r'\("([^"]{1,64})",pid=(\d{1,9}),')
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,200}\.(?:service|timer|socket|scope|mount)")
# They speak of others, or of everything.
_NOISE = frozenset({"init.scope", "systemd-journald.service", "dbus.service", "systemd-logind.service"})


@dataclass(frozen=True)
class Owner:
    """A process with a socket."""

    protocol: str
    port: int
    text: str


def socket_owners(shell: GuestShell) -> dict[tuple[str, int], str]:
    """Local protocol and port, and who has it: ``NAME[PID] UNIT``. Empty where ss(8) is missing."""
    script = (
        "ss -Htunap 2>/dev/null; echo; "
        "for p in $(ss -Htunap 2>/dev/null | grep -o 'pid=[0-9]*' | sort -u | cut -d= -f2 | head -n 50); do "
        'printf "%s " "$p"; head -n 1 "/proc/$p/cgroup" 2>/dev/null || echo; done'
    )
    try:
        text = shell.run(script, timeout=30, max_output=1 << 18).text
    except GuestError:
        return {}
    sockets, _, groups = text.partition("\n\n")
    units = {}
    for line in groups.splitlines():
        pid, _, group = line.partition(" ")
        unit = group.rpartition("/")[2]
        units[pid] = unit if _UNIT.fullmatch(unit) else ""
    owners = {}
    for line in sockets.splitlines():
        words = line.split()
        user = _USERS.search(line)
        if len(words) < 6 or user is None:
            continue
        port = words[4].rpartition(":")[2]
        if port.isdecimal():
            unit = units.get(user[2], "")
            owners[words[0][:3], int(port)] = one_line(f"{user[1]}[{user[2]}] {unit}".strip(), 120)
    return owners


@dataclass(frozen=True)
class Entry:
    """A line of the journal: when, of which unit; whether the manager begins to start it or is done with that."""

    at: float
    unit: str
    starting: bool | None = None


class Journal:
    """Which units were busy when, by the guest's own clock (seconds since 1970)."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.at)
        self._jobs: list[tuple[float, float, str]] = []
        begun: dict[str, float] = {}
        for entry in self._entries:
            if entry.starting is True:
                begun[entry.unit] = entry.at
            elif entry.starting is False and entry.unit in begun:
                self._jobs.append((begun.pop(entry.unit), entry.at, entry.unit))
        self._jobs += [(at, at + ENDLESS_S, unit) for unit, at in begun.items()]

    @classmethod
    def read(cls, paths: Iterable[Path], ours: Iterable[str]) -> Journal:
        """Of the lines that the machine kept; units in `ours` are left out."""
        skip = {*_NOISE, *ours}
        entries = []
        size = 0
        for path in paths:
            try:
                with path.open("r", encoding="utf-8", errors="replace") as file:
                    for line in file:
                        size += len(line)
                        if size > MAX_JOURNAL:
                            break
                        entry = _entry(line)
                        if entry is not None and entry.unit not in skip:
                            entries.append(entry)
            except OSError:
                continue
        return cls(entries)

    def around(self, at: float) -> tuple[str, ...]:
        """Units that were being started at `at` (a program that runs once is until it ends), the newest first; then
        those that spoke around it, the nearest first.
        """
        near: dict[str, float] = {}
        for entry in self._entries:
            if at - BEFORE_S <= entry.at <= at + AFTER_S:
                near[entry.unit] = min(near.get(entry.unit, 99.0), abs(at - entry.at))
        jobs = sorted((job for job in self._jobs if job[0] - AFTER_S <= at <= job[1] + AFTER_S), reverse=True)
        found = dict.fromkeys((*(unit for _, _, unit in jobs), *sorted(near, key=lambda unit: near[unit])))
        return tuple(found)[:MAX_SUSPECTS]


def _entry(line: str) -> Entry | None:
    begin = line.find("{")
    if begin < 0:
        return None
    try:
        entry = json.loads(line[begin:])
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    # The manager speaks of the unit that it starts; everybody else of itself.
    unit = entry.get("UNIT") if entry.get("_PID") == "1" else entry.get("_SYSTEMD_UNIT")
    stamp = str(entry.get("__REALTIME_TIMESTAMP", ""))
    if not isinstance(unit, str) or not _UNIT.fullmatch(unit) or not re.fullmatch(r"[0-9]{1,18}", stamp):
        return None
    message = entry.get("MESSAGE_ID") if entry.get("_PID") == "1" else None
    return Entry(int(stamp) / 1e6, unit, True if message == _STARTING else False if message in _DONE else None)
