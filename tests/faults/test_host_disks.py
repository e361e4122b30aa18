"""Disks that are full, and temporary directories that go away, at several points of a run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates, Outcome, until
from tests.faults.points import POINTS, wait_for_point
from tests.faults.quick_guest import write_profile
from tests.faults.table import Fault, check, proves
from tests.faults.table import rows as table_rows

pytestmark = pytest.mark.boots

SELECTION = ("-m", "boot or asks", "-k", "channel or asks")
# Mounts a small file system for this run alone, and becomes the run.
MOUNT = 'mount -t tmpfs -o size="$1" none "$2"; shift 2; exec "$@"'
DISK_BYTES = 24 << 20
# Which points are in the quick tier, of each row.
QUICK = {"evidence-full": "kernel-log", "tmpdir-full-later": "loading", "tmpdir-removed-later": "channel"}
SLOW = [
    *(("evidence-full", point) for point in POINTS),
    *(("tmpdir-full-later", point) for point in ("powered-on", "kernel", "channel", "watching")),
    *(("tmpdir-removed-later", point) for point in ("powered-on", "kernel", "watching")),
]


@contextlib.contextmanager
def on_a_small_disk(
    gates: Gates, folder: Path, *arguments: str | Path, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run for which `folder` is a file system of its own. That can be seen here under the path that is given, also
    after the run has ended."""
    folder.mkdir(exist_ok=True)
    unshare = [
        "unshare",
        "-m" if os.getuid() == 0 else "-Urm",
        "sh",
        "-ec",
        MOUNT,
        "sh",
        str(DISK_BYTES),
        str(folder),
    ]
    process = gates.start(*arguments, env=env, prefix=unshare)
    inside = Path(f"/proc/{process.pid}/root{folder}")
    until(
        lambda: process.poll() is not None or inside.stat().st_dev != folder.stat().st_dev, 30, "the disk is mounted"
    )
    descriptor = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield process, Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def fill(folder: Path) -> None:
    """To the last page."""
    for size in (1 << 16, 4096):
        with contextlib.suppress(OSError), (folder / "filler").open("ab", buffering=0) as file:
            while file.write(bytes(size)):
                pass
    assert os.statvfs(folder).f_bavail == 0


def with_full_evidence(
    gates: Gates, moment: Callable[[subprocess.Popen[str]], object], *given: str | Path
) -> Outcome:
    """A run whose disk with the evidence gets full when `moment` returns; with the evidence as it was left."""
    with on_a_small_disk(gates, gates.evidence, *given) as (process, disk):
        gates.evidence = disk
        moment(process)
        fill(disk)
        outcome = gates.finish(process)
        assert outcome.root is not None
        kept = outcome.root
        outcome.root = gates.directory / "kept"
        shutil.copytree(kept, outcome.root)
    return outcome


def evidence_full(gates: Gates, iso: Path, point: str) -> Outcome:
    """The disk with the evidence."""
    given = ("--iso", iso, "--iso-distro", write_profile(gates.directory), *SELECTION)
    return with_full_evidence(gates, lambda process: wait_for_point(gates, process, point), *given)


def tmpdir_full(gates: Gates, iso: Path, point: str) -> Outcome:
    """The disk with the temporary files."""
    given = ("--iso", iso, "--iso-distro", write_profile(gates.directory), *SELECTION)
    folder = gates.directory / "tmp"
    with on_a_small_disk(gates, folder, *given, env={"TMPDIR": str(folder)}) as (process, disk):
        wait_for_point(gates, process, point)
        fill(disk)
        return gates.finish(process)


def tmpdir_removed(gates: Gates, iso: Path, point: str) -> Outcome:
    """Somebody cleans up."""
    given = ("--iso", iso, "--iso-distro", write_profile(gates.directory), *SELECTION)
    folder = gates.directory / "tmp"
    folder.mkdir()
    process = gates.start(*given, env={"TMPDIR": str(folder)})
    wait_for_point(gates, process, point)
    until(lambda: shutil.rmtree(folder, ignore_errors=True) or not folder.exists(), 10, "it is gone")
    return gates.finish(process)


MAKE = {
    "evidence-full": evidence_full,
    "tmpdir-full-later": tmpdir_full,
    "tmpdir-removed-later": tmpdir_removed,
}


@proves(*MAKE)
def test_a_disk_is_full(fault: Fault, gates: Gates, quick_iso: Path) -> None:
    """NOT PROVEN, the remedy, and what is there says that there is more to come."""
    check(fault, MAKE[fault.name](gates, quick_iso, QUICK[fault.name]), "asks")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "point"), SLOW)
def test_a_disk_is_full_at_any_time(name: str, point: str, gates: Gates, quick_iso: Path) -> None:
    """The same at the other points."""
    check(table_rows()[name], MAKE[name](gates, quick_iso, point), "asks")
