"""What is shown of long waits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.report import live as module
from pytest_osgates.report.live import LiveProgress

YEAR = 365 * 86400.0


@pytest.mark.parametrize("ahead", [0.0, YEAR, -YEAR])
def test_progress_is_shown_whatever_somebody_does_to_the_clock(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "progress.jsonl"
    config: Any = SimpleNamespace(pluginmanager=SimpleNamespace(getplugin=lambda name: None))
    live = LiveProgress(path, config)
    terminal: Any = io.StringIO()
    live._terminal = terminal
    ProgressLog(path).step(Step("uefi-bare", "firmware", 3.0, 60.0, {"serial bytes": 7}))
    step = json.loads(path.read_text())
    path.write_text(json.dumps({**step, "t": step["t"] + ahead}) + "\n")
    live._read()
    live._show()
    assert terminal.getvalue() == "  uefi-bare: firmware, 3 s of about 60 s (serial bytes 7)\n"
    # Nothing more was heard: it is shown no longer.
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    live._show()
    assert terminal.getvalue().count("\n") == 1
