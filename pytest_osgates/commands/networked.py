"""``osgates networked IMAGE``: every program of an image that can talk on the network, and why."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from rich.console import Console

from pytest_osgates.checks.apparmor_model import Networked, StaticScan, Tier
from pytest_osgates.commands.progress import bar
from pytest_osgates.image.rootfs import open_root
from pytest_osgates.observers.networked.scan import scan

_TITLES = {
    Tier.A: "A: must be confined (listens, has capabilities of the network, or is set-uid and opens sockets)",
    Tier.B: "B: must be confined, or documented (uses the network itself)",
    Tier.C: "C: reported (reaches the network only through libraries of others)",
}


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "networked",
        help="list the programs of an image that can talk on the network, and why",
        description="Reads the live root of an ISO without booting it and lists its networked programs, scripts and"
        " Flatpak applications, with package and evidence. Exit status: 0, and 2 if a program could not be read.",
    )
    parser.add_argument("image", metavar="IMAGE", help="an ISO with a live root in squashfs")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.add_argument("--all", action="store_true", help="tier C, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """List the image; 2 where something in it could not be read.

    :raise UsageError: there is nothing at this path, or it may not be read.
    :raise ImageError: the image has no live root, or is damaged.
    """
    # The list alone is the output, as text and as JSON.
    with bar(Console(stderr=True, highlight=False)) as progress, open_root(options.image) as view:
        seen = scan(view, progress)
    if options.json:
        console.out(seen.model_dump_json(indent=1), highlight=False)
    else:
        _print(seen, console, everything=options.all)
    return 2 if seen.unreadable else 0


def _print(seen: StaticScan, console: Console, *, everything: bool) -> None:
    counts = Counter(entry.tier for entry in seen.entries)
    for tier in Tier:
        if not counts[tier] or (tier is Tier.C and not everything):
            continue
        console.print(f"{_TITLES[tier]}: {counts[tier]}", markup=False, soft_wrap=True)
        for entry in seen.entries:
            if entry.tier is tier:
                console.print(_line(entry), markup=False, soft_wrap=True)
    for file in seen.unreadable:
        console.print(f"unreadable: {file.path}: {file.why}", markup=False, soft_wrap=True)
    console.print(
        f"{seen.files} files, {seen.elves} ELF programs, {seen.scripts} scripts, {seen.libraries} libraries; "
        + ", ".join(f"{counts[tier]} in tier {tier}" for tier in Tier),
        markup=False,
        soft_wrap=True,
    )


def _line(entry: Networked) -> str:
    same = f"; the same bytes as {', '.join(entry.same[:3])}" if entry.same else ""
    return f"  {entry.path}  [{entry.package.partition(':')[2] or 'no package'}]  {entry.why}{same}"
