"""Time that is skipped while the guest is idle: QEMU counts instructions, and an idle processor jumps to the next
timer.

Each jump is at most as long as the interval of one timer (see `argv.TICK`), so that answers that are on their way
still come in time. A governor makes it shorter while somebody talks, and longer when it is quiet.
"""

from __future__ import annotations

import re
import threading
import time
from datetime import UTC, datetime

from pytest_osgates.vm.affinity import Berth
from pytest_osgates.vm.argv import TICK, TICK_US
from pytest_osgates.vm.errors import HostError, QmpFailed
from pytest_osgates.vm.machine import Machine

# Microseconds of guest time a jump at most: when it is quiet, and while frames come and go.
QUIET_US, BUSY_US = 10_000, 500
LOOK_S = 0.02
# Host seconds without a frame after which it is quiet. A guest that works on an answer is not idle: it skips nothing.
QUIET_S = 0.1


class Governor:
    """A context manager: while it is open, it watches a machine that skips idle time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
        self._interval = TICK_US
        self._berth = None if machine.pid is None else Berth(machine.pid)
        self.changes = 0
        self.failure: HostError | None = None

    def __enter__(self) -> Governor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)
        if self._berth is not None:
            self._berth.leave()

    def _run(self) -> None:
        frames, heard = -1, 0.0
        while not self._stop.wait(LOOK_S):
            try:
                count = sum(_frames(link.stats()) for link in self._machine.sinkholes)
                if count != frames:
                    frames, heard = count, time.monotonic()
                if self._berth is not None:
                    self._berth.settle()
                self._set(BUSY_US if time.monotonic() - heard < QUIET_S else QUIET_US)
            except HostError as error:
                self.failure = error
                return

    def _set(self, interval: int) -> None:
        if interval != self._interval:
            self._machine.qmp.execute("qom-set", path=f"/objects/{TICK}", property="interval", value=interval)
            self._interval = interval
            self.changes += 1


def _frames(stats: dict[str, object]) -> int:
    return int(str(stats["rx_frames"]))


def guest_time(machine: Machine) -> float:
    """Seconds since 1970 by the machine's own battery-backed clock, to a second.

    :raise QmpFailed: the machine has none.
    """
    fields = machine.qmp.execute("qom-get", path="/machine", property="rtc-time")
    text = {key: str(value) for key, value in dict(fields).items()}
    if not all(re.fullmatch(r"\d{1,4}", text.get(key, "")) for key in _FIELDS):
        raise QmpFailed(f"the machine's clock says {text}")
    year, month, day, hour, minute, second = (int(text[key]) for key in _FIELDS)
    return datetime(year + 1900, month + 1, day, hour, minute, second, tzinfo=UTC).timestamp()


_FIELDS = ("tm_year", "tm_mon", "tm_mday", "tm_hour", "tm_min", "tm_sec")
