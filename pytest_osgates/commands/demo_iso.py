"""``osgates demo-iso``: a small hardened live distribution, with or without a planted fault."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pytest_osgates.commands.progress import bar
from pytest_osgates.demo import (
    add_fault,
    build_demo_iso,
    cached_demo_iso,
    fault_names,
    load_fault,
)
from pytest_osgates.vm.errors import HostError, UsageError


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "demo-iso",
        help="build the demo distribution's ISO",
        description="Builds a live Debian trixie ISO (BIOS, UEFI, Secure Boot) from locked packages; the lock is"
        " written beside it. The same lock gives the same bytes.",
    )
    parser.add_argument("-o", "--output", metavar="F", type=Path, help="where to (default: into the cache)")
    parser.add_argument("--fault", metavar="NAME|DIR", help="plant this fault (see --list-faults)")
    parser.add_argument("--lock", metavar="F", type=Path, help="build from exactly these packages")
    parser.add_argument("--refresh", action="store_true", help="take the packages that the mirror has now")
    parser.add_argument("--list-faults", action="store_true", help="list the faults and what must find them")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Build, and print the path and the digest.

    :raise OsgatesError: it cannot be built; the remedy is in the message.
    """
    if options.list_faults:
        table = Table("fault", "must be found by", "what it does", box=None)
        for name in fault_names():
            fault = load_fault(name)
            expects = fault.file.expects
            table.add_row(name, f"{expects.gate}: {expects.rule} {expects.subject}", fault.file.title)
        console.print(table)
        return 0
    if options.lock is not None and options.refresh:
        raise UsageError("--lock names the packages, --refresh asks for new ones", remedy="give one of them")
    if options.lock is not None and not options.lock.is_file():
        raise UsageError(f"the lock {options.lock} is not there")
    notes: tuple[str, ...] = ()
    with bar(console) as progress:
        if options.lock is None:
            base = cached_demo_iso(progress, refresh=options.refresh)
            path = base if options.fault is None else cached_demo_iso(progress, options.fault)
            if options.output is not None:
                progress("copying", None)
                path = _copy(path, options.output, base)
        else:
            output = options.output or Path("osgates-demo.iso")
            target = output if options.fault is None else output.with_name(f".{output.name}.base")
            built = build_demo_iso(target, lock=options.lock, progress=progress)
            path, notes = built.path, built.notes
            if options.fault is not None:
                path = add_fault(built.path, output.absolute(), load_fault(options.fault), progress).path
                built.lock_path.replace(output.with_name(f"{output.name}.lock.json"))
                built.path.unlink()
    for note in notes:
        console.print(f"note: {note}", markup=False)
    console.print(str(path), markup=False, soft_wrap=True)
    return 0


def _copy(path: Path, output: Path, base: Path) -> Path:
    """Copy the ISO and its lock to where the user wants them; never half of it."""
    output = output.absolute()
    if not output.parent.is_dir():
        raise UsageError(f"the directory {output.parent} is not there")
    if output.is_dir():
        raise UsageError(f"{output} is a directory", remedy="give the name of a file")
    for source, target in (
        (base.with_name(f"{base.name}.lock.json"), output.with_name(f"{output.name}.lock.json")),
        (path, output),
    ):
        partial = target.with_name(f".{target.name}.partial")
        try:
            shutil.copyfile(source, partial)
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise HostError(f"{target} cannot be written: {error.strerror}", remedy="free some space") from error
    return output
