"""A progress bar for builders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pytest_osgates.demo import ProgressCallback


@contextmanager
def bar(console: Console) -> Iterator[ProgressCallback]:
    """One bar that names the stage; where no terminal is, a line for each new stage."""
    if not console.is_terminal:
        seen: list[str] = []
        begun = time.monotonic()

        def line(stage: str, fraction: float | None) -> None:
            if stage not in seen[-1:]:
                seen.append(stage)
                console.print(f"  {time.monotonic() - begun:6.1f} s  {stage}", markup=False)

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def show(stage: str, fraction: float | None) -> None:
            progress.update(
                task, description=stage, total=None if fraction is None else 1.0, completed=fraction or 0.0
            )

        yield show
