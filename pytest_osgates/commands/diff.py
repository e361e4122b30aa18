"""``osgates diff A B``: everything in which two images differ, by cause."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from pytest_osgates.image.diff.digests import Digests, digest_both
from pytest_osgates.vm.errors import HostError, UsageError
from pytest_osgates.vm.text import one_line

Progress = Callable[[str, float | None], None]


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "diff",
        help="everything in which two images differ, by cause",
        description="Compares two ISO images layer by layer, down to the files in their file systems and what is in"
        " those, and says why they differ and how to mend it. Exit status 0 if they are identical, 1 if they are not,"
        " 2 if they cannot be compared.",
    )
    parser.add_argument("a", metavar="A", help="the first image")
    parser.add_argument("b", metavar="B", help="the second image")
    parser.add_argument("--json", metavar="F", type=Path, help="write everything there (- is standard output)")
    parser.add_argument("--html", metavar="F", type=Path, help="write a page for a browser there")
    parser.add_argument(
        "--examples", metavar="N", type=int, default=5, help="differences shown of each cause (default: 5)"
    )
    # As diff(1) has it.
    parser.set_defaults(run=run, trouble=2)


def run(options: argparse.Namespace, console: Console) -> int:
    """Compare, print and write the report; 0 if they are identical, else 1.

    :raise OsgatesError: they cannot be compared, or the report cannot be written.
    """
    for path in (options.json, options.html):
        if path is not None and str(path) != "-" and not path.absolute().parent.is_dir():
            raise UsageError(f"the directory {path.absolute().parent} is not there")
    if options.json is not None and str(options.json) == "-":
        console = Console(stderr=True, highlight=False)
    with _progress(console) as progress:
        digests = digest_both(
            options.a, options.b, lambda done, size: progress("reading both images", done / size if size else None)
        )
        if digests.equal and options.json is None and options.html is None:
            # Whoever compares what is the same need not wait for what takes apart what is not.
            _same(options, digests, console)
            return 0
        from pytest_osgates.observers.divergence import compare_images

        seen = compare_images(options.a, options.b, progress, digests)
    from pytest_osgates.report import divergence as report

    for line in report.text_lines(seen, max(0, options.examples)):
        console.print(line, markup=False, soft_wrap=True)
    if options.json is not None:
        _write(options.json, seen.model_dump_json(indent=1) + "\n")
    if options.html is not None:
        _write(options.html, report.html(seen))
    return 0 if seen.equal else 1


def _same(options: argparse.Namespace, digests: Digests, console: Console) -> None:
    for name, path, digest in (("A", options.a, digests.a), ("B", options.b, digests.b)):
        console.print(f"{name}  {digest}  {one_line(path, 400)}", markup=False, soft_wrap=True)
    if Path(options.a).samefile(options.b):
        console.print("note: A and B are one and the same file", markup=False)
    console.print("identical", markup=False)


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        Console(highlight=False, soft_wrap=True).out(text, end="", highlight=False)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(
            f"{path} cannot be written: {error.strerror}", remedy="free some space, or name another file"
        ) from error


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar where there is a terminal; nothing elsewhere, for the report is all that a file wants."""
    if not console.is_terminal:
        yield lambda stage, fraction: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda stage, fraction: bar.update(
            task, description=one_line(stage, 80), total=None if fraction is None else 1.0, completed=fraction or 0.0
        )
