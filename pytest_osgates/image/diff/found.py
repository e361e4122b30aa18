"""What a comparison finds: differences, and the account of the bytes that they explain. Plain data, no opinion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

MAX_DIFFERENCES = 400_000
_SHOWN = 240


class Layer(StrEnum):
    """The structure of an image that a difference was found in."""

    IMAGE = "image"
    SYSTEM_AREA = "system area"
    MBR = "MBR"
    GPT = "GPT"
    EL_TORITO = "El Torito"
    DESCRIPTOR = "volume descriptor"
    PATH_TABLE = "path table"
    DIRECTORY = "directory record"
    ROCK_RIDGE = "Rock Ridge"
    JOLIET = "Joliet"
    FILE = "file"
    FAT = "FAT"
    SQUASHFS = "squashfs"
    CPIO = "cpio"
    PE = "PE section"
    PADDING = "padding"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class Spot:
    """A place inside a file that differs: `locus` names it (`gzip header: mtime`), `offset` is in bytes from the
    start
    of the file, and `a` and `b` show both sides, with some context."""

    locus: str
    offset: int
    size: int
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs.

    `container` is the file that it is in, path by path (`/live/filesystem.squashfs`, with `!` before what is inside
    that), empty for the image itself; `path` the file or structure; `what` the field of it. `a` and `b` are the two
    values as text. `offsets` are bytes from the start of the images, None where the thing has no place of its own.
    `delta` is the difference of two times, in seconds. `follows`: it is there only because something else differs.
    """

    layer: Layer
    container: str
    path: str
    what: str
    a: str = ""
    b: str = ""
    offsets: tuple[int | None, int | None] = (None, None)
    delta: int | None = None
    follows: bool = False
    spots: tuple[Spot, ...] = ()
    kind: str = ""
    differing: int | None = None


@dataclass
class Findings:
    """Differences as they are found, at most :data:`MAX_DIFFERENCES`; what was left out is counted."""

    differences: list[Difference] = field(default_factory=list)
    left_out: int = 0
    unexplained: int = 0
    notes: list[str] = field(default_factory=list)
    nodes: int = 0

    def add(self, difference: Difference) -> None:
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(difference)
        else:
            self.left_out += 1

    def extend(self, differences: Iterable[Difference]) -> None:
        for difference in differences:
            self.add(difference)


class Extents:
    """Byte ranges of one side that belong to something named."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranges: list[tuple[int, int]] = []

    def claim(self, start: int, size: int) -> None:
        """`size` bytes from `start` were compared, or are named in a difference."""
        if size > 0:
            self._ranges.append((start, start + size))

    def merged(self) -> list[tuple[int, int]]:
        """The claimed ranges, joined, in their order."""
        joined: list[tuple[int, int]] = []
        self._ranges.sort()
        for start, end in self._ranges:
            if joined and start <= joined[-1][1]:
                if end > joined[-1][1]:
                    joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        self._ranges = joined
        return joined

    def gaps(self) -> list[tuple[int, int]]:
        """What nobody claimed."""
        gaps, position = [], 0
        for start, end in self.merged():
            if start > position:
                gaps.append((position, min(start, self.size)))
            position = max(position, end)
            if position >= self.size:
                break
        if position < self.size:
            gaps.append((position, self.size))
        return gaps


def quoted(value: bytes) -> str:
    """Bytes from an image as text: printable ASCII as it is, anything else escaped, and not endless."""
    text = value[:_SHOWN].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown + ("..." if len(value) > _SHOWN else "")


def hexed(value: bytes) -> str:
    """Bytes as hexadecimal digits, at most 32 of them."""
    return value[:32].hex() + ("..." if len(value) > 32 else "")
