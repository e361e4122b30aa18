"""Long waits say what they wait for. Any process of the run appends to one file; the terminal's owner shows it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One moment of one activity: what, seconds so far of seconds expected (None: unknown), live counts."""

    who: str
    stage: str
    elapsed: float
    expected: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    done: bool = False


class ProgressLog:
    """Appends steps to ``progress.jsonl``, at most one a second and stage. Losing one (a full disk) harms nobody."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, tuple[str, float]] = {}

    def step(self, step: Step) -> None:
        """Note `step`."""
        stage, at = self._last.get(step.who, ("", 0.0))
        now = time.monotonic()
        if not step.done and stage == step.stage and now - at < 1.0:
            return
        self._last[step.who] = (step.stage, now)
        record = json.dumps({"t": round(time.time(), 2), "pid": os.getpid(), **asdict(step)})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(record + "\n")
        except OSError:
            return
