"""Shows what long waits wait for: a status line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import pytest
from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table

PLAIN_SECONDS = 15.0
# Nobody waits any more for what was not heard of for this long.
FRESH_SECONDS = 10.0


class LiveProgress:
    """Reads ``progress.jsonl`` from a thread; every process of the run writes to it."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self._path = path
        self._config = config
        self._offset = 0
        self._steps: dict[str, dict[str, Any]] = {}
        self._read_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        self._said: dict[str, float] = {}
        self._terminal = _own_terminal()

    def start(self) -> None:
        """Begin, unless there is no terminal reporter."""
        reporter = self._reporter()
        if reporter is None or self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="osgates-progress", daemon=True)
        self._thread.start()

    def _reporter(self) -> Any:  # noqa: ANN401  (pytest's TerminalReporter)
        return self._config.pluginmanager.getplugin("terminalreporter")

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            self._read()
            try:
                with self._lock:
                    self._show()
            except OSError:
                # The terminal is gone, or nobody reads any more.
                return

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(1 << 20)
        except OSError:
            return
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                step = json.loads(line)
            except ValueError:
                continue
            if step.get("done"):
                self._steps.pop(step["who"], None)
            else:
                self._steps[step["who"]] = step
                # Not by the time in it: somebody may set the clock.
                self._read_at[step["who"]] = time.monotonic()

    def _show(self) -> None:
        now = time.monotonic()
        fresh = {who: step for who, step in self._steps.items() if now - self._read_at[who] < FRESH_SECONDS}
        if not fresh:
            self._end_live()
            return
        terminal = self._terminal
        if terminal is None:
            return
        if terminal.isatty():
            if self._live is None:
                self._fresh_line()
                self._live = Live(
                    console=RichConsole(file=terminal, force_terminal=True), transient=True, auto_refresh=False
                )
                self._live.start()
            self._live.update(_table(fresh), refresh=True)
            return
        for who, step in fresh.items():
            if time.monotonic() - self._said.get(who, 0.0) >= PLAIN_SECONDS:
                self._said[who] = time.monotonic()
                self._fresh_line()
                terminal.write(f"  {_line(step)}\n")
                terminal.flush()

    def _fresh_line(self) -> None:
        """Start a new line where pytest has begun one with dots, and let it begin another afterwards."""
        reporter = self._reporter()
        if getattr(reporter, "currentfspath", None) and self._terminal is not None:
            self._terminal.write("\n")
            self._terminal.flush()
            reporter.currentfspath = None

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def pause(self) -> None:
        """Clear the status line: somebody else is about to write."""
        with self._lock, contextlib.suppress(OSError):
            self._end_live()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None
        self.pause()
        if self._terminal is not None:
            with contextlib.suppress(OSError):
                self._terminal.close()
            self._terminal = None


def _own_terminal() -> TextIO | None:
    """Standard output as it is before pytest captures it: steps are shown while a test runs. None: there is none."""
    try:
        return os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    except (OSError, ValueError, AttributeError):
        return None


def _counts(step: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in step["counts"].items())


def _times(step: dict[str, Any]) -> str:
    expected = "" if step["expected"] is None else f" of about {step['expected']:.0f} s"
    return f"{step['elapsed']:.0f} s{expected}"


def _line(step: dict[str, Any]) -> str:
    counts = f" ({_counts(step)})" if step["counts"] else ""
    return f"{step['who']}: {step['stage']}, {_times(step)}{counts}"


def _table(steps: dict[str, dict[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for who, step in steps.items():
        table.add_row(f"[bold]{who}[/bold]", step["stage"], _times(step), f"[dim]{_counts(step)}[/dim]")
    return table
