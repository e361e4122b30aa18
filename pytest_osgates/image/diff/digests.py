"""Both images read once, at the same time: their SHA-256, and which chunks are the same in both places.

Two threads hash, one for each image; hashlib lets go of the interpreter meanwhile. Whoever is
second to read a chunk compares the two, and neither gets more than a few chunks ahead. A chunk that is clean need
not be read again, as long as what lies there has the same
place in both images.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pytest_osgates.image.digest import identity
from pytest_osgates.image.source import open_regular
from pytest_osgates.vm.errors import ImageError

CHUNK = 1 << 20
SLOTS = 3


@dataclass(frozen=True)
class CleanMap:
    """Which chunks, of :data:`CHUNK` bytes, are equal at the same offset. `dirty` has a byte for each: 1, it
    differs."""

    dirty: bytes

    def clean(self, start: int, size: int) -> bool:
        """Whether `size` bytes from `start` are known to be the same in both."""
        end = -(-(start + size) // CHUNK)
        if end > len(self.dirty):
            return size == 0
        return self.dirty.find(1, start // CHUNK, end) < 0


NOTHING_KNOWN = CleanMap(b"")


@dataclass(frozen=True)
class Digests:
    """SHA-256 of both, in lower-case hexadecimal, and what is equal in place."""

    a: str
    b: str
    clean: CleanMap

    @property
    def equal(self) -> bool:
        return self.a == self.b


class _Reader:
    """One of the two threads."""

    def __init__(self, descriptor: int, name: str, size: int) -> None:
        self.descriptor = descriptor
        self.name = name
        self.size = size
        self.hash = hashlib.sha256()
        self.slots = [memoryview(bytearray(CHUNK)) for _ in range(SLOTS)]
        self.lengths = [0] * SLOTS
        self.filled = 0
        self.error: BaseException | None = None

    def fill(self, number: int) -> memoryview:
        """Read chunk `number` into its slot; empty beyond the end."""
        slot = self.slots[number % SLOTS]
        wanted = max(0, min(CHUNK, self.size - number * CHUNK))
        done = 0
        while done < wanted:
            count = os.preadv(self.descriptor, [slot[done:wanted]], number * CHUNK + done)
            if count == 0:
                raise ImageError(
                    f"{self.name} became shorter while it was read",
                    remedy="let whatever writes it finish, then start again",
                )
            done += count
        self.lengths[number % SLOTS] = done
        return slot[:done]


def digest_both(
    a: str | os.PathLike[str], b: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> Digests:
    """Read both files once. `progress` gets the bytes done of one image, and the larger one's size.

    :raise UsageError: one is not there, or may not be read.
    :raise ImageError: one is not a regular file, is empty, cannot be read, or changed meanwhile.
    """
    descriptors: list[int] = []
    try:
        readers, before = [], []
        for path in (a, b):
            descriptor, status = open_regular(path)
            descriptors.append(descriptor)
            before.append(status)
            readers.append(_Reader(descriptor, os.fspath(path), status.st_size))
        dirty = _run(readers[0], readers[1], progress)
        for path, descriptor, status in zip((a, b), descriptors, before, strict=True):
            _unchanged(path, descriptor, status)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return Digests(readers[0].hash.hexdigest(), readers[1].hash.hexdigest(), CleanMap(bytes(dirty)))


def _run(a: _Reader, b: _Reader, progress: Callable[[int, int], None] | None) -> bytearray:
    size = max(a.size, b.size)
    chunks = -(-size // CHUNK)
    dirty = bytearray(b"\x01" * chunks)
    changed = threading.Condition()
    compared = 0

    def compare(slot: int) -> bool:
        length = a.lengths[slot]
        if length != b.lengths[slot]:
            return False
        one, other = a.slots[slot], b.slots[slot]
        # Of two bytearrays the comparison is memcmp; of two memoryviews it goes item by item.
        return one.obj == other.obj if length == CHUNK else bytes(one[:length]) == bytes(other[:length])

    def work(own: _Reader, other: _Reader) -> None:
        nonlocal compared
        try:
            for number in range(chunks):
                with changed:
                    changed.wait_for(lambda: number - compared < SLOTS or other.error is not None)  # noqa: B023
                if other.error is not None:
                    return
                own.hash.update(own.fill(number))
                with changed:
                    own.filled = number + 1
                    second = other.filled > number
                if second:
                    # Chunks are compared in their order: whoever is behind is behind in every one of them.
                    dirty[number] = not compare(number % SLOTS)
                    with changed:
                        compared = number + 1
                        changed.notify()
                if progress is not None and own is a and number % 64 == 0:
                    progress(min(number * CHUNK, size), size)
        except BaseException as error:  # noqa: BLE001  (raised again below, in the caller's thread)
            with changed:
                own.error = error
                changed.notify()

    helper = threading.Thread(target=work, args=(b, a), name="osgates-digest")
    helper.start()
    try:
        work(a, b)
    finally:
        helper.join()
    for reader in (a, b):
        if isinstance(reader.error, OSError):
            raise ImageError(
                f"{reader.name}: reading failed: {reader.error.strerror}",
                remedy="check the disk that holds the image",
            ) from reader.error
        if reader.error is not None:
            raise reader.error
    return dirty


def _unchanged(path: str | os.PathLike[str], descriptor: int, before: os.stat_result) -> None:
    try:
        named = os.stat(path)  # noqa: PTH116 - beside fstat, in the same terms
    except OSError:
        named = None
    if named is None or not identity(before) == identity(os.fstat(descriptor)) == identity(named):
        raise ImageError(
            f"{path} changed while it was read", remedy="let whatever writes it finish, then start again"
        )


__all__ = ["CHUNK", "NOTHING_KNOWN", "CleanMap", "Digests", "digest_both"]
