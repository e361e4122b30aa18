"""What is waited for is noted, not too often, and never at the price of the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_osgates import progress
from pytest_osgates.progress import ProgressLog, Step


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test turns."""
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_step_is_a_line_of_json(tmp_path: Path, now: list[float]) -> None:
    path = tmp_path / "p.jsonl"
    ProgressLog(path).step(Step("uefi", "booting\n", 1.5, 60.0, {"bytes": 3}))
    (record,) = records(path)
    assert record["pid"] == os.getpid()
    assert {key: record[key] for key in ("who", "stage", "elapsed", "expected", "counts", "done")} == {
        "who": "uefi",
        "stage": "booting\n",
        "elapsed": 1.5,
        "expected": 60.0,
        "counts": {"bytes": 3},
        "done": False,
    }


def test_one_line_a_second_for_each_stage_of_each_activity(tmp_path: Path, now: list[float]) -> None:
    path = tmp_path / "p.jsonl"
    log = ProgressLog(path)
    for tenth in range(25):
        now[0] = 1000.0 + tenth / 10
        log.step(Step("uefi", "booting", tenth / 10))
        log.step(Step("bios", "booting", tenth / 10))
    assert [record["elapsed"] for record in records(path) if record["who"] == "uefi"] == [0.0, 1.0, 2.0]
    assert len(records(path)) == 6


def test_a_new_stage_and_the_end_are_noted_at_once(tmp_path: Path, now: list[float]) -> None:
    path = tmp_path / "p.jsonl"
    log = ProgressLog(path)
    for step in (Step("a", "1", 0), Step("a", "2", 0), Step("a", "2", 0), Step("a", "2", 0, done=True)):
        log.step(step)
    assert [(record["stage"], record["done"]) for record in records(path)] == [
        ("1", False),
        ("2", False),
        ("2", True),
    ]


def test_several_processes_append(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    for who in "ab":
        ProgressLog(path).step(Step(who, "x", 0))
    assert [record["who"] for record in records(path)] == ["a", "b"]


def test_a_full_disk_harms_nobody(tmp_path: Path) -> None:
    full, gone = ProgressLog(Path("/dev/full")), ProgressLog(tmp_path / "gone" / "p.jsonl")
    for log in (full, gone):
        log.step(Step("a", "x", 0))
    assert list(tmp_path.iterdir()) == []
