"""The processor that a machine is moved to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pytest_osgates.vm import affinity
from pytest_osgates.vm.affinity import Berth


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


class Host:
    """Two processors, and what was used of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.busy, self.own = 100.0, {0: 0.0, 1: 0.0}, 0.0
        self.moves: list[set[int]] = []
        monkeypatch.setattr(affinity, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(affinity, "processors_busy", lambda: dict(self.busy))
        monkeypatch.setattr(affinity, "_used", lambda _pid: self.own)
        monkeypatch.setattr(
            affinity,
            "os",
            SimpleNamespace(
                sched_getaffinity=lambda _pid: {0, 1},
                sched_setaffinity=lambda _thread, processors: self.moves.append(set(processors)),
            ),
        )

    def passes(self, seconds: float, used: dict[int, float], own: float = 0.0) -> None:
        self.now += seconds
        self.own += own
        for number, share in used.items():
            self.busy[number] += share


def test_it_goes_where_others_do_least(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    berth = Berth(os.getpid())
    berth.settle()
    assert host.moves == []
    host.passes(1.0, {0: 0.4, 1: 0.1})
    berth.settle()
    assert berth.processor == 1
    # What it uses itself is no reason to leave.
    host.passes(6.0, {0: 0.6, 1: 6.0}, own=5.9)
    berth.settle()
    host.passes(6.0, {0: 0.0, 1: 6.0}, own=4.0)
    berth.settle()
    host.passes(6.0, {0: 6.0, 1: 6.0}, own=1.0)
    berth.settle()
    assert [sorted(move) for move in dict.fromkeys(map(frozenset, host.moves))] == [[1], [0], [0, 1]]


def test_not_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    berth = Berth(os.getpid())
    host.passes(0.1, {0: 0.1})
    berth.settle()
    assert host.moves == []


def test_all_threads_of_a_real_process(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(child.pid)
    if len(allowed) < 2:
        pytest.skip("this host has one processor")
    monkeypatch.setattr(affinity, "FIRST_S", 0.0)
    monkeypatch.setattr(affinity, "CROWDED", 100.0)
    berth = Berth(child.pid)
    berth.settle()
    assert berth.processor in allowed
    assert os.sched_getaffinity(child.pid) == {berth.processor}
    berth.leave()
    assert os.sched_getaffinity(child.pid) == allowed


def test_a_process_that_has_gone_is_no_error(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "FIRST_S", 0.0)
    berth = Berth(child.pid)
    child.kill()
    child.wait()
    berth.settle()
    berth.leave()
    Berth(child.pid).settle()


def test_this_host() -> None:
    busy = affinity.processors_busy()
    assert busy.keys() >= os.sched_getaffinity(0)
    assert all(seconds >= 0 for seconds in busy.values())
