"""Files of an installed disk, changed in an overlay of it: no root, no mount, and the disk below stays what it is.

On FAT by mtools(1), on ext2 to ext4 by debugfs(8); both work on a copy of the partition.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

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
_REMEDY = "apt-get install mtools e2fsprogs"
# Of a /boot, and of a root that is not encrypted.
_EXT_DIRECTORIES = (
    *("/", "/grub", "/grub2", "/loader/entries", "/efi", "/EFI"),
    *("/boot", "/boot/grub", "/boot/grub2", "/boot/loader/entries"),
)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}")
_QEMU_IO = "apt-get install qemu-utils (Fedora: dnf install qemu-img)"


Changes = Sequence[tuple[re.Pattern[str], Callable[[bytes], bytes]]]


def change_files(disk: Path, overlay: Path, changes: Changes, scratch: Path) -> dict[str, tuple[str, str]]:
    """Change each file of the plain FAT and ext partitions of `disk` whose path fits a pattern, in `overlay` alone,
    which is as `disk` is. On ext only in the directories that boot loaders read (`_EXT_DIRECTORIES`).

    SHA-256 before and after, by path, of those that were changed.

    :raise ImageError: the disk cannot be read.
    :raise HostError: a tool is missing or fails, or there is no room.
    """
    found: dict[str, tuple[str, str]] = {}
    with open_disk(disk) as source:
        for partition in read_table(source).partitions:
            content = SourceContent(source, partition.start, partition.size)
            kind = contents.identify(source, content, partition.start, partition.size)
            image = scratch / "partition.img"
            files: Files
            if contents.FAT in (kind.kind, *kind.also):
                files = _Fat(image)
            elif contents.EXT in (kind.kind, *kind.also):
                files = _Ext(image)
            else:
                continue
            if partition.size > _MOST:
                raise ImageError(
                    f"partition {partition.number} of {disk.name} is a plain {kind.kind} of {partition.size} bytes",
                    remedy=f"this version changes files on partitions of up to {_MOST >> 30} GiB",
                )
            with temporary("a copy of a partition"):
                _extract(source, partition, image)
            changed = _change_in(files, changes, scratch)
            if changed:
                _write_back(source, partition, image, overlay, scratch)
                found |= changed
    return found


def add_files(
    disk: Path, overlay: Path, number: int, added: Mapping[str, bytes], scratch: Path
) -> dict[str, tuple[str, str]]:
    """Put files that are not there yet on the FAT partition `number` of `disk`, in `overlay` alone.

    What they were, and their SHA-256, by path.

    :raise ImageError: there is no such partition, or a file of that name.
    :raise HostError: a tool is missing or fails, or there is no room.
    """
    with open_disk(disk) as source:
        partition = next((part for part in read_table(source).partitions if part.number == number), None)
        if partition is None or partition.size > _MOST:
            raise ImageError(f"no partition {number} of at most {_MOST >> 30} GiB on {disk.name}")
        image = scratch / "partition.img"
        with temporary("a copy of a partition"):
            _extract(source, partition, image)
        files, local = _Fat(image), scratch / "file"
        known = {path.lower() for path in files.listed(scratch)}
        for path, content in added.items():
            if path.lower() in known:
                raise ImageError(f"{path} is there already, on partition {number} of {disk.name}")
            with temporary("a file for the disk"):
                local.write_bytes(content)
            files.make_directory(path.rpartition("/")[0])
            files.put(local, path)
            if _got(files, path, local) != content:
                raise HostError(f"{path} could not be put on a copy of its partition", remedy=_REMEDY)
        _write_back(source, partition, image, overlay, scratch)
    return {path: ("none", hashlib.sha256(content).hexdigest()) for path, content in added.items()}


def _extract(disk: Disk, partition: DiskPartition, image: Path) -> None:
    with image.open("wb") as out:
        for start, size in disk.written(partition.start, partition.size):
            out.seek(start - partition.start)
            for offset in range(start, start + size, _BLOCK):
                out.write(disk.read_at(offset, min(_BLOCK, start + size - offset)))
        out.truncate(partition.size)


class Files(Protocol):
    """The files of one partition's copy. Names of files on this host are relative to `scratch`."""

    def listed(self, scratch: Path) -> Sequence[str]:
        """Paths of files, each from the root."""
        ...

    def get(self, path: str, local: Path) -> None:
        """Copy one out of it."""
        ...

    def put(self, local: Path, path: str) -> None:
        """Copy one in its place."""
        ...


def _change_in(files: Files, changes: Changes, scratch: Path) -> dict[str, tuple[str, str]]:
    found = {}
    for path in files.listed(scratch):
        change = next((change for named, change in changes if named.search(path)), None)
        if change is None:
            continue
        local = scratch / "file"
        before = _got(files, path, local)
        after = change(before)
        if after == before:
            continue
        with temporary("a file of the disk"):
            local.write_bytes(after)
        files.put(local, path)
        if _got(files, path, local) != after:
            raise HostError(f"{path} could not be changed on a copy of its partition", remedy=_REMEDY)
        found[path] = (hashlib.sha256(before).hexdigest(), hashlib.sha256(after).hexdigest())
    return found


def _got(files: Files, path: str, local: Path) -> bytes:
    with temporary("a file of the disk"):
        local.unlink(missing_ok=True)
    files.get(path, local)
    with temporary("a file of the disk"):
        if not local.is_file() or local.stat().st_size > _MAX_FILE:
            raise ImageError(f"{path} cannot be read from its partition, or has more than {_MAX_FILE >> 20} MiB")
        return local.read_bytes()


class _Fat:
    """By mtools."""

    def __init__(self, image: Path) -> None:
        self._image = str(image)

    def listed(self, scratch: Path) -> Sequence[str]:
        """All of them."""
        return [path for path in self._paths() if not path.endswith("/")]

    def _paths(self) -> Sequence[str]:
        """Those of directories end by a slash."""
        said = self._run("mdir", "-/", "-b", "-a", "-i", self._image, "::/")
        return [line[2:] for line in said.splitlines() if line.startswith("::/") and line.isprintable()]

    def get(self, path: str, local: Path) -> None:
        self._run("mcopy", "-n", "-o", "-i", self._image, f"::{path}", str(local))

    def put(self, local: Path, path: str) -> None:
        self._run("mcopy", "-D", "o", "-i", self._image, str(local), f"::{path}")

    def make_directory(self, path: str) -> None:
        """Below one that is there; it may be there itself."""
        # Of one that is there, mmd fails, whatever it is told to do about that.
        if all(known.lower() != f"{path}/".lower() for known in self._paths()):
            self._run("mmd", "-i", self._image, f"::{path}")

    def _run(self, *argv: str) -> str:
        return run(argv, timeout=_SECONDS, max_output=_MAX_LISTING, remedy=_REMEDY).text


class _Ext:
    """By debugfs, which ends well whatever became of its commands, and takes names without spaces and quotes."""

    def __init__(self, image: Path) -> None:
        self._image = image

    def listed(self, scratch: Path) -> Sequence[str]:
        """Regular files in the directories that are looked into."""
        found = []
        for directory in _EXT_DIRECTORIES:
            for line in self._run("-R", f"ls -p {directory}").splitlines():
                # /INODE/MODE/UID/GID/NAME/SIZE/
                fields = line.split("/")
                if len(fields) == 8 and fields[2].startswith("100") and _PLAIN_NAME.fullmatch(fields[5]):
                    found.append(f"{directory.rstrip('/')}/{fields[5]}")
        return found

    def get(self, path: str, local: Path) -> None:
        self._run("-R", f"dump {path} {local.name}")

    def put(self, local: Path, path: str) -> None:
        directory, _, name = path.rpartition("/")
        commands = f"cd {directory or '/'}\nrm {name}\nwrite {local.name} {name}\n"
        self._run("-w", "-f", "-", given=commands)

    def _run(self, *argv: str, given: str = "") -> str:
        return run(
            ["debugfs", *argv, self._image.name],
            timeout=_SECONDS,
            input=given.encode(),
            cwd=self._image.parent,
            max_output=_MAX_LISTING,
            remedy=_REMEDY,
        ).text


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
        raise HostError(f"nothing changed in partition {partition.number}", remedy=_REMEDY)
    for offset, data in runs:
        with temporary("a changed piece of a disk"):
            (scratch / "piece").write_bytes(data)
        command = f"write -q -s piece {partition.start + offset} {len(data)}"
        run(["qemu-io", "-f", "qcow2", "-c", command, str(overlay.resolve())], timeout=_SECONDS, cwd=scratch)
