"""The SHA-256 of an image, by which everything that is said about it is bound to its bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from pytest_osgates.image.source import open_regular
from pytest_osgates.vm.errors import ImageError

BLOCK = 1 << 20
# Device, inode, size in bytes, time of the last change of its bytes in nanoseconds.
Identity = tuple[int, int, int, int]


def image_digest(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> str:
    """The SHA-256 of the file at `path`, in lower-case hexadecimal.

    `progress` is called with the bytes read so far and the bytes in all, after each MiB.

    :raise UsageError: there is nothing at `path`, or it may not be read.
    :raise ImageError: it is not a regular file, is empty, cannot be read, or changed while it was read.
    """
    descriptor, before = open_regular(path)
    try:
        digest = hashlib.sha256()
        block = memoryview(bytearray(BLOCK))
        done = 0
        while done <= before.st_size:
            try:
                count = os.readv(descriptor, [block])
            except OSError as exc:
                raise ImageError(
                    f"{path}: reading at byte {done} failed: {exc.strerror}",
                    remedy="check the disk that holds the image",
                ) from exc
            if count == 0:
                break
            digest.update(block[:count])
            done += count
            if progress is not None:
                progress(done, before.st_size)
        after = os.fstat(descriptor)
        # The name, too: a build that replaces its output by renaming leaves us with the bytes of the old one.
        try:
            named = os.stat(path)  # noqa: PTH116 - beside fstat, in the same terms
        except OSError:
            named = None
    finally:
        os.close(descriptor)
    if done != before.st_size or named is None or not identity(before) == identity(after) == identity(named):
        raise ImageError(
            f"{path} changed while it was read ({done} bytes read, {before.st_size} at the start)",
            remedy="let whatever writes it finish, then start again",
        )
    return digest.hexdigest()


def image_identity(path: str | os.PathLike[str]) -> Identity:
    """What tells that the file at `path` is still the one that was digested, without reading it again.

    :raise OSError: there is nothing at `path`.
    """
    return identity(os.stat(path))  # noqa: PTH116 - beside fstat, in the same terms


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
