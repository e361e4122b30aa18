"""Files of an installed disk, changed in an overlay of it: no root, no mount, and the disk below stays what it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_osgates.image.disk import contents
from pytest_osgates.image.disk.partitions import DiskPartition, read_table
from pytest_osgates.image.disk.source import Disk, SourceContent, open_disk
from pytest_osgates.vm.errors import HostError, ImageError
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.workdir import temporary

# What is written at a time, and compared.
_BLOCK = 1 << 16
_MOST = 4 << 30
_MAX_FILE = 512 << 20
_MAX_LISTING = 4 << 20
_SECONDS = 300.0
_MTOOLS = "apt-get install mtools"
_QEMU_IO = "apt-get install qemu-utils (Fedora: dnf install qemu-img)"


def change_files(
    disk: Path, overlay: Path, named: re.Pattern[str], change: Callable[[bytes], bytes], scratch: Path
) -> dict[str, tuple[str, str]]:
    """Change each file of the plain FAT partitions of `disk` whose path fits `named`, in `overlay` alone.

    SHA-256 before and after, by path, of those that `change` changed.

    :raise ImageError: the disk cannot be read.
    :raise HostError: a tool is missing or fails, or there is no room.
    """
    found: dict[str, tuple[str, str]] = {}
    with open_disk(disk) as source:
        for partition in read_table(source).partitions:
            content = SourceContent(source, partition.start, partition.size)
            kind = contents.identify(source, content, partition.start, partition.size)
            if contents.FAT not in (kind.kind, *kind.also):
                continue
            if partition.size > _MOST:
                raise ImageError(f"partition {partition.number} of {disk.name} is a FAT of {partition.size} bytes")
            image = scratch / "partition.img"
            with temporary("a copy of a partition"):
                _extract(source, partition, image)
            changed = _change_in(image, named, change, scratch)
            if changed:
                _write_back(source, partition, image, overlay, scratch)
                found |= changed
    return found


def _extract(disk: Disk, partition: DiskPartition, image: Path) -> None:
    with image.open("wb") as out:
        for start, size in disk.written(partition.start, partition.size):
            out.seek(start - partition.start)
            for offset in range(start, start + size, _BLOCK):
                out.write(disk.read_at(offset, min(_BLOCK, start + size - offset)))
        out.truncate(partition.size)


def _change_in(
    image: Path, named: re.Pattern[str], change: Callable[[bytes], bytes], scratch: Path
) -> dict[str, tuple[str, str]]:
    found = {}
    for path in _listed(image):
        if not named.search(path):
            continue
        local = scratch / "file"
        _mtools("mcopy", "-n", "-o", "-i", str(image), f"::{path}", str(local))
        with temporary("a file of the disk"):
            if local.stat().st_size > _MAX_FILE:
                raise ImageError(f"{path} has {local.stat().st_size} bytes")
            before = local.read_bytes()
            after = change(before)
            if after == before:
                continue
            local.write_bytes(after)
        _mtools("mcopy", "-D", "o", "-i", str(image), str(local), f"::{path}")
        found[path] = (hashlib.sha256(before).hexdigest(), hashlib.sha256(after).hexdigest())
    return found


def _listed(image: Path) -> Iterator[str]:
    """Paths of all files, by mdir(1)."""
    said = _mtools("mdir", "-/", "-b", "-a", "-i", str(image), "::/")
    for line in said.splitlines():
        if line.startswith("::/") and line.isprintable() and not line.endswith("/"):
            yield line[2:]


def _mtools(*argv: str) -> str:
    done = run(argv, timeout=_SECONDS, max_output=_MAX_LISTING, remedy=_MTOOLS)
    return done.text


def _write_back(disk: Disk, partition: DiskPartition, image: Path, overlay: Path, scratch: Path) -> None:
    """Runs of blocks that differ, by qemu-io(1), which knows no other names than those without spaces."""
    which("qemu-io", remedy=_QEMU_IO)
    runs: list[tuple[int, bytearray]] = []
    with temporary("a changed partition"), image.open("rb") as file:
        for offset in range(0, partition.size, _BLOCK):
            new = file.read(min(_BLOCK, partition.size - offset))
            if new == disk.read_at(partition.start + offset, len(new)):
                continue
            if runs and runs[-1][0] + len(runs[-1][1]) == offset:
                runs[-1][1].extend(new)
            else:
                runs.append((offset, bytearray(new)))
    if not runs:
        raise HostError(f"mtools changed nothing in partition {partition.number}", remedy=_MTOOLS)
    for offset, data in runs:
        with temporary("a changed piece of a disk"):
            (scratch / "piece").write_bytes(data)
        command = f"write -q -s piece {partition.start + offset} {len(data)}"
        run(["qemu-io", "-f", "qcow2", "-c", command, str(overlay.resolve())], timeout=_SECONDS, cwd=scratch)
