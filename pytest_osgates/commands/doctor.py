"""``osgates doctor``: what this host has and lacks, each lack with the command that mends it."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_osgates import tools
from pytest_osgates.paths import cache_dir
from pytest_osgates.run import free_bytes
from pytest_osgates.vm import host, variables
from pytest_osgates.vm.errors import OsgatesError
from pytest_osgates.vm.process import which
from pytest_osgates.vm.spec import Firmware

NEEDED_MEMORY_MIB = 2048 + 512
NEEDED_DISK_MIB = 2048
# commit deba78709ae8, "accel/tcg: Always lock pages before translation"
RACELESS_QEMU = (8, 1)
# What `osgates demo-iso` and `demo-disk` need; gates do without.
BUILDERS = (
    *(("mmdebstrap", "mmdebstrap"), ("mksquashfs", "squashfs-tools"), ("xorriso", "xorriso")),
    *(("mcopy", "mtools"), ("mkfs.vfat", "dosfstools"), ("apt-get", "apt")),
    *(("sfdisk", "fdisk"), ("mke2fs", "e2fsprogs")),
)


@dataclass(frozen=True)
class Line:
    """One thing: whether it is there, what was found or why not, how to mend it, whether gates need it."""

    what: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="say what this host has and lacks",
        description="Exit status 0 only if all gates can run here.",
    )
    parser.add_argument("--fetch", action="store_true", help="fetch the pinned judging tools that are not cached")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the table; 0 if nothing that gates need is missing, else 1."""
    lines = list(examine(fetch=options.fetch))
    table = Table(box=None, padding=(0, 2), show_header=False)
    for line in lines:
        mark = (
            Text("ok", "green")
            if line.ok
            else Text("LACKS" if line.needed else "lacks", "red" if line.needed else "yellow")
        )
        table.add_row(mark, line.what, Text(line.found))
        if not line.ok and line.remedy:
            table.add_row("", "", Text(f"-> {line.remedy}"))
    console.print(table, soft_wrap=True)
    lacking = [line.what for line in lines if line.needed and not line.ok]
    if lacking:
        console.print(f"Gates cannot run here yet: {', '.join(lacking)}.", style="red")
        return 1
    console.print("All gates of this version can run here.", style="green")
    return 0


def examine(*, fetch: bool) -> Iterator[Line]:
    """Everything, in the order in which it matters."""
    yield _tried("QEMU", lambda: host.find_qemu().banner)
    yield _accelerator()
    for firmware in Firmware:
        yield _tried(f"firmware {firmware}", lambda firmware=firmware: _firmware(firmware))  # type: ignore[misc]
    yield _tried("swtpm", host.swtpm_version)
    yield _tried("qemu-img", lambda: which("qemu-img", remedy="apt-get install qemu-utils"), needed=False)
    yield _tried(
        "cryptsetup (for luks)", lambda: which("cryptsetup", remedy="apt-get install cryptsetup-bin"), needed=False
    )
    yield _tried("virt-fw-vars (for tpm)", lambda: " ".join(variables.program()), needed=False)
    for name, package in (("qemu-io", "qemu-utils"), ("mcopy", "mtools")):
        yield _tried(
            f"{name} (for tpm)",
            lambda name=name, package=package: which(name, remedy=f"apt-get install {package}"),  # type: ignore[misc]
            needed=False,
        )
    for name, pin in tools.pins().items():
        yield _tried(f"{name} {pin.version}", lambda name=name: tools.find(name, {}, fetch=fetch).source)  # type: ignore[misc]
    memory = host.memory_available_mib()
    yield Line(
        "memory",
        memory >= NEEDED_MEMORY_MIB,
        f"{memory} MiB available, {NEEDED_MEMORY_MIB} needed for one machine",
        "end other programs, or lower memory_mib in [machine] of the distro profile",
    )
    yield _room("disk, temporary", lambda: Path(tempfile.gettempdir()))
    yield _room("disk, cache", cache_dir)
    for program, package in BUILDERS:
        yield _tried(
            f"{program} (for the demo)",
            lambda program=program, package=package: which(program, remedy=f"apt-get install {package}"),  # type: ignore[misc]
            needed=False,
        )


def _tried(what: str, attempt: Callable[[], str], *, needed: bool = True) -> Line:
    try:
        return Line(what, True, attempt(), needed=needed)
    except OsgatesError as error:
        return Line(what, False, error.what, error.remedy or "", needed)


def _room(what: str, where: Callable[[], Path]) -> Line:
    try:
        path = where()
        free = free_bytes(path) >> 20
    except OsgatesError as error:
        return Line(what, False, error.what, error.remedy or "")
    except OSError as error:
        return Line(what, False, str(error), "set TMPDIR to a directory that you can write to")
    return Line(
        what,
        free >= NEEDED_DISK_MIB,
        f"{free} MiB free in {path}, {NEEDED_DISK_MIB} needed",
        "free some space, or set TMPDIR / XDG_CACHE_HOME to another file system",
    )


def _accelerator() -> Line:
    try:
        qemu = host.find_qemu()
        probe = host.probe_kvm(qemu, None)
    except OsgatesError as error:
        return Line("accelerator", False, error.what, error.remedy or "")
    if probe.usable:
        return Line("accelerator", True, "KVM: it ran a test guest")
    found = f"TCG (slower); KVM was refused: {probe.reason}"
    if qemu.version[:2] < RACELESS_QEMU:
        found += (
            f"; QEMU before {'.'.join(map(str, RACELESS_QEMU))} now and then breaks a guest's kernel where it"
            " emulates several processors: write cpus = 1 into [machine] of the distro profile"
        )
    return Line("accelerator", True, found)


def _firmware(firmware: Firmware) -> str:
    files = host.find_firmware(firmware)
    return "comes with QEMU" if files is None else f"{files.code.path} (from {files.descriptor})"
