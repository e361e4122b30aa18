"""``osgates demo-disk``: the demo's installed disk, sound or weakened, made offline in seconds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pytest_osgates.commands.progress import bar
from pytest_osgates.demo import build_demo_disk, cached_demo_iso
from pytest_osgates.demo.disk_variants import load_disk_file
from pytest_osgates.run import existing_file
from pytest_osgates.vm.errors import UsageError


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "demo-disk",
        help="make the demo's installed disk",
        description="Makes a disk with the demo encrypted on it (LUKS2), without root and without booting anything;"
        " its passphrase is printed. With --weak, one that the gate `luks` must refuse.",
    )
    parser.add_argument(
        "-o", "--output", metavar="F", type=Path, default=Path("osgates-demo.qcow2"),
        help="where to; .qcow2, or any other name for a raw image (default: osgates-demo.qcow2)",
    )  # fmt: skip
    parser.add_argument("--weak", metavar="NAME", help="weaken it (see --list-weak)")
    parser.add_argument("--iso", metavar="F", help="the demo's ISO (default: the one in the cache, built if need be)")
    parser.add_argument("--list-weak", action="store_true", help="list the weakened disks and what must find them")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Make it, and print passphrase, digest and path.

    :raise OsgatesError: it cannot be made; the remedy is in the message.
    """
    spec = load_disk_file()
    if options.list_weak:
        table = Table("disk", "must be found by", "what is wrong with it", box=None)
        for variant in spec.variant:
            expects = variant.expects
            table.add_row(variant.name, f"{expects.gate}: {expects.rule} {expects.subject}", variant.title)
        console.print(table)
        return 0
    weak = spec.named(options.weak) if options.weak is not None else None
    output = options.output.absolute()
    if output.is_dir():
        raise UsageError(f"{output} is a directory", remedy="give the name of a file")
    if not output.parent.is_dir():
        raise UsageError(f"the directory {output.parent} is not there")
    given = existing_file(options.iso, "--iso") if options.iso else None
    with bar(console) as progress:
        iso = cached_demo_iso(progress) if given is None else given
        built = build_demo_disk(iso, output, progress, weak)
    try:
        shown = built.passphrase.decode("ascii")
    except UnicodeDecodeError:
        shown = f"(hexadecimal) {built.passphrase.hex()}"
    console.print(f"passphrase: {shown}", markup=False, soft_wrap=True)
    console.print(f"sha256: {built.sha256}", markup=False, soft_wrap=True)
    console.print(str(built.path), markup=False, soft_wrap=True)
    return 0
