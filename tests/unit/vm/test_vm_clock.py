"""The governor of skipped time, and the machine's own clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from vm_fakes import wait_for

from pytest_osgates.vm import clock
from pytest_osgates.vm.argv import TICK
from pytest_osgates.vm.errors import MachineDied, QmpFailed
from pytest_osgates.vm.machine import Machine


class FakeMachine:
    """A monitor that remembers, and a sinkhole whose count is set by hand."""

    def __init__(self) -> None:
        self.frames = 0
        self.set: list[int] = []
        self.died = False
        self.date: dict[str, Any] = {}
        self.pid = None
        self.qmp = self
        self.sinkholes = [SimpleNamespace(stats=self.stats)]

    def stats(self) -> dict[str, Any]:
        if self.died:
            raise MachineDied("the sinkhole of net0 ended")
        return {"rx_frames": self.frames}

    def execute(self, command: str, **arguments: Any) -> Any:
        if command == "qom-get":
            return self.date
        assert (command, arguments["path"], arguments["property"]) == ("qom-set", f"/objects/{TICK}", "interval")
        self.set.append(arguments["value"])
        return {}


def test_jumps_are_short_while_frames_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LOOK_S", 0.001)
    monkeypatch.setattr(clock, "QUIET_S", 0.05)
    fake = FakeMachine()
    with clock.Governor(cast("Machine", fake)) as governor:
        wait_for(lambda: fake.set == [clock.BUSY_US, clock.QUIET_US], "quiet after the start")
        fake.frames = 7
        wait_for(lambda: fake.set[2:] == [clock.BUSY_US, clock.QUIET_US], "busy, then quiet")
    assert governor.failure is None
    assert governor.changes == 4


def test_a_machine_that_died_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LOOK_S", 0.001)
    fake = FakeMachine()
    fake.died = True
    with clock.Governor(cast("Machine", fake)) as governor:
        wait_for(lambda: governor.failure is not None, "the failure")


def test_the_machines_own_clock() -> None:
    fake = FakeMachine()
    fake.date = {"tm_year": 126, "tm_mon": 0, "tm_mday": 31, "tm_hour": 12, "tm_min": 5, "tm_sec": 7}
    assert clock.guest_time(cast("Machine", fake)) == 1769861107.0
    fake.date = {"tm_year": "x"}
    with pytest.raises(QmpFailed, match="clock says"):
        clock.guest_time(cast("Machine", fake))
