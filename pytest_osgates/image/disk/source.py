"""A disk image as bytes by offset, whatever it is stored as; and where in it there is nothing but zeros."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pytest_osgates.image.diff.ranges import Content
from pytest_osgates.image.disk.qcow2 import MAGIC, Qcow2Source
from pytest_osgates.image.source import FileSource, Source, open_regular
from pytest_osgates.vm.errors import ImageError

_PIECE = 1 << 20


class Disk(Source, Protocol):
    """A source that knows where it has never been written."""

    @property
    def format(self) -> str:
        """``raw`` or ``qcow2``."""
        ...

    def written(self, start: int, size: int) -> Iterator[tuple[int, int]]:
        """Ranges (offset, bytes), in their order, outside of which there are only zeros."""
        ...


class RawDisk(FileSource):
    """A raw image; holes are found by lseek(2)."""

    format = "raw"

    def written(self, start: int, size: int) -> Iterator[tuple[int, int]]:
        """:raise ImageError: it cannot be read."""
        end = min(start + size, self.size)
        while start < end:
            try:
                first = os.lseek(self._descriptor, start, os.SEEK_DATA)
                last = os.lseek(self._descriptor, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    # Nothing but a hole up to the end of the file.
                    return
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise ImageError(
                        f"{self.name}: looking for holes failed: {error.strerror}",
                        remedy="check the disk that holds the image",
                    ) from error
                first, last = start, end
            if first >= end:
                return
            last = min(max(last, first + 1), end)
            yield first, last - first
            start = last


@contextmanager
def open_disk(path: str | os.PathLike[str]) -> Iterator[Disk]:
    """The disk image at `path`, for the length of the context. Its first bytes say whether it is qcow2.

    :raise UsageError: there is nothing at `path`, or it may not be read.
    :raise ImageError: it is not a regular file, is empty, or a qcow2 that cannot be read by itself.
    """
    descriptor, status = open_regular(path)
    try:
        raw = RawDisk(descriptor, os.fspath(path), status.st_size)
        if raw.size >= len(MAGIC) and raw.read_at(0, len(MAGIC)) == MAGIC:
            yield Qcow2Source(raw)
        else:
            yield raw
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class SourceContent:
    """`size` bytes of a source, from `start`, as readers of files want them.

    Reading beyond the end gives fewer bytes, as of a file.
    """

    source: Source
    start: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        return self.source.read_at(self.start + offset, size) if size > 0 else b""


def first_byte(disk: Disk, start: int, size: int) -> int | None:
    """The offset in the disk of the first byte that is not zero; None: all of `size` bytes from `start` are."""
    for at, length in disk.written(start, size):
        for offset in range(at, at + length, _PIECE):
            piece = disk.read_at(offset, min(_PIECE, at + length - offset))
            if piece.count(0) != len(piece):
                return offset + len(piece) - len(piece.lstrip(b"\x00"))
    return None


__all__ = ["Content", "Disk", "RawDisk", "SourceContent", "first_byte", "open_disk"]
