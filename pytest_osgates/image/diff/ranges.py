"""Which bytes of two runs differ: whole chunks compared as the machine does it, looked into only where they differ.

The exclusive-or of two chunks, made as one large integer, shows every differing byte at once; a regular expression
finds their ranges in it. Both run at memory speed, which a loop over bytes does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from pytest_osgates.image.diff.found import Spot, hexed, quoted

CHUNK = 1 << 20
MAX_RANGES = 64
_CONTEXT = 12
# Ranges with fewer equal bytes between them are one: a number that changed seldom changes in every byte.
_RUNS = re.compile(rb"[^\x00]+(?:\x00{1,7}[^\x00]+)*")


class Content(Protocol):
    """The bytes of one file, wherever they are."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end."""
        ...


@dataclass(frozen=True, slots=True)
class BytesContent:
    """Bytes in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes of another content, from `start`."""

    whole: Content
    start: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        return self.whole.read(self.start + offset, max(0, min(size, self.size - offset)))


@dataclass
class Ranges:
    """The differing ranges (offset, size) of two contents, the first :data:`MAX_RANGES`, and how many bytes differ in
    all; what one has beyond the end of the other differs."""

    found: list[tuple[int, int]] = field(default_factory=list)
    differing: int = 0

    @property
    def first(self) -> int:
        return self.found[0][0] if self.found else 0

    @property
    def last(self) -> int:
        return sum(self.found[-1]) if self.found else 0

    def add_chunk(self, offset: int, a: bytes, b: bytes) -> None:
        """Take in two chunks, both from `offset`."""
        if a == b:
            return
        shared = min(len(a), len(b))
        if shared:
            xor = xored(a[:shared], b[:shared])
            self.differing += shared - xor.count(0)
            for run in _RUNS.finditer(xor):
                if not self._add(offset + run.start(), run.end() - run.start()):
                    break
        if len(a) != len(b):
            more = max(len(a), len(b)) - shared
            self.differing += more
            self._add(offset + shared, more)

    def _add(self, start: int, size: int) -> bool:
        if self.found and start <= sum(self.found[-1]):
            begun = self.found[-1][0]
            self.found[-1] = (begun, start + size - begun)
            return True
        if len(self.found) >= MAX_RANGES:
            return False
        self.found.append((start, size))
        return True


def xored(a: bytes, b: bytes) -> bytes:
    """The exclusive-or of two runs of one length."""
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")


def differing_ranges(a: Content, b: Content) -> Ranges:
    """Compare two contents chunk by chunk."""
    ranges = Ranges()
    end = max(a.size, b.size)
    for offset in range(0, end, CHUNK):
        ranges.add_chunk(offset, a.read(offset, CHUNK), b.read(offset, CHUNK))
    return ranges


def spots(a: Content, b: Content, ranges: Ranges, limit: int = 6) -> tuple[Spot, ...]:
    """The first ranges, as bytes with some context."""
    found = []
    for start, size in ranges.found[:limit]:
        before = max(0, start - _CONTEXT)
        length = min(size, 32) + start - before + _CONTEXT
        x, y = a.read(before, length), b.read(before, length)
        found.append(Spot("bytes", start, size, shown_bytes(x), shown_bytes(y)))
    return tuple(found)


def shown_bytes(data: bytes) -> str:
    """Text if it is text, else hexadecimal digits."""
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in data)
    return quoted(data) if data and printable * 10 >= len(data) * 9 else hexed(data)
