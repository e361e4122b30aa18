"""All threads of a program on one processor.

While idle time is skipped, QEMU's processor thread and its main loop wake each other some ten thousand times a
second and never work at the same time; to wake a thread on another processor costs more than that processor brings.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# Seconds after which the choice is looked at again; of the first look.
AGAIN_S, FIRST_S = 5.0, 0.3
# Of a processor: what others may use of it, and how much less must be used of another to change.
CROWDED, BETTER = 0.5, 0.2


class Berth:
    """A process that is moved to the processor of which others use least, among those that it may use.

    Where all are used by others for more than half the time, it is left to the scheduler. Speed alone depends on
    this: where the host refuses it, nothing happens.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        try:
            self._allowed = os.sched_getaffinity(pid)
        except OSError:
            self._allowed = set()
        self.processor: int | None = None
        self._next = time.monotonic() + FIRST_S
        self._busy = processors_busy()
        self._own = _used(pid)
        self._looked = time.monotonic()

    def settle(self) -> None:
        """Choose anew if it is time to."""
        now = time.monotonic()
        if len(self._allowed) < 2 or now < self._next:
            return
        self._next = now + AGAIN_S
        busy, own, seconds = processors_busy(), _used(self._pid), max(1e-3, now - self._looked)
        others = {
            number: (busy[number] - self._busy[number]) / seconds
            for number in self._allowed & busy.keys() & self._busy.keys()
        }
        if self.processor in others:
            others[self.processor] -= (own - self._own) / seconds
        self._busy, self._own, self._looked = busy, own, now
        if not others:
            return
        best = min(others, key=lambda number: (others[number], number))
        if others[best] > CROWDED:
            self.leave()
        elif self.processor not in others or others[self.processor] > others[best] + BETTER:
            self._move({best})
            self.processor = best

    def leave(self) -> None:
        """To the scheduler again."""
        if self.processor is not None:
            self._move(self._allowed)
            self.processor = None

    def _move(self, processors: set[int]) -> None:
        try:
            threads = [int(entry.name) for entry in Path(f"/proc/{self._pid}/task").iterdir()]
        except OSError:
            return
        for thread in threads:
            try:
                os.sched_setaffinity(thread, processors)
            except OSError:
                # It has ended, or the host does not want it.
                continue


def processors_busy() -> dict[int, float]:
    """Of each processor the seconds since the host's start in which it worked (proc_stat(5)); empty: nobody knows."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, *words = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and len(words) >= 8:
            user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words[:8])
            found[int(name[3:])] = (user + nice + system + irq + softirq + steal) / ticks
    return found


def _used(pid: int) -> float:
    """Processor seconds of a process, all threads (proc_pid_stat(5)); 0 when it has gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
