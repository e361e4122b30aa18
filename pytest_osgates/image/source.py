"""Random access to a regular file's bytes, every read exact and inside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pytest_osgates.vm.errors import ImageError, UsageError

GET_AGAIN = "get the image again and compare its SHA-256 with the published one"

_SHOWN_MAX = 200

KINDS = {
    stat.S_IFDIR: ("a directory", "give the ISO file inside it"),
    stat.S_IFBLK: ("a block device", "copy it to a file first: the shipped file is what is judged"),
    stat.S_IFCHR: ("a character device", "give an ISO file"),
    stat.S_IFIFO: ("a named pipe", "write its contents to a file first"),
    stat.S_IFSOCK: ("a socket", "give an ISO file"),
}


class Source(Protocol):
    """Bytes by offset. Offsets and sizes are in bytes; `name` is for messages."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        :raise ImageError: they do not all lie inside.
        """
        ...


class FileSource:
    """A :class:`Source` over an open file descriptor, which the caller owns. Its size is fixed at the start."""

    def __init__(self, descriptor: int, name: str, size: int) -> None:
        self._descriptor = descriptor
        self.name = name
        self.size = size

    def read_at(self, offset: int, size: int) -> bytes:
        check_range(self, offset, size)
        parts = []
        while size:
            try:
                part = os.pread(self._descriptor, size, offset)
            except OSError as exc:
                raise ImageError(
                    f"{self.name}: reading {size} bytes at {offset} failed: {exc.strerror}",
                    remedy="check the disk that holds the image",
                ) from exc
            if not part:
                raise ImageError(
                    f"{self.name} became shorter while it was read (nothing at byte {offset} of {self.size})",
                    remedy="let whatever writes it finish, then start again",
                )
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)


def check_range(source: Source, offset: int, size: int) -> None:
    """:raise ImageError: `size` bytes from `offset` do not all lie inside `source`."""
    if offset < 0 or size < 0 or offset + size > source.size:
        raise damaged(source.name, f"it refers to {size} bytes at {offset}, but is only {source.size} bytes long")


def damaged(name: str, what: str) -> ImageError:
    """The error for an image that contradicts itself."""
    return ImageError(f"{name} is damaged: {what}", remedy=GET_AGAIN)


def shown(name: str) -> str:
    """A name from an image, quoted for a message: no control characters, and not endless."""
    return repr(name if len(name) <= _SHOWN_MAX else f"{name[:_SHOWN_MAX]}...")


def open_regular(path: str | os.PathLike[str]) -> tuple[int, os.stat_result]:
    """A read-only descriptor of the regular, non-empty file at `path` (symbolic links followed), and its status.

    The caller closes the descriptor.

    :raise UsageError: there is nothing at `path`, or it may not be read.
    :raise ImageError: it is not a regular file, or it is empty.
    """
    try:
        # Looked at before it is opened: opening a device can have effects, opening a pipe can wait for ever.
        _check_regular(path, Path(path).stat())
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise UsageError(f"cannot open {path}: {why}", remedy="check the path and its permissions") from exc
    try:
        status = os.fstat(descriptor)
        _check_regular(path, status)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def _check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        what, remedy = KINDS.get(stat.S_IFMT(status.st_mode), ("not a regular file", "give an ISO file"))
        raise ImageError(f"{path} is {what}, not an image file", remedy=remedy)
    if status.st_size == 0:
        raise ImageError(f"{path} is empty", remedy="was its download or build interrupted? Get it again")


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[FileSource]:
    """The file at `path` as a :class:`Source`, for the length of the context.

    :raise UsageError: there is nothing at `path`, or it may not be read.
    :raise ImageError: it is not a regular file, or it is empty.
    """
    descriptor, status = open_regular(path)
    try:
        yield FileSource(descriptor, os.fspath(path), status.st_size)
    finally:
        os.close(descriptor)
