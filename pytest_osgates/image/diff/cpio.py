"""initrds: archives in cpio's "newc" form, one after another, the last one compressed.

Formats: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Each archive is read as a stream,
twice: once for what its members are, and again for the contents of those that differ, so that it is never whole in
memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pytest_osgates.image.diff.found import Difference, Findings, Layer
from pytest_osgates.image.diff.ranges import BytesContent, Content, Part
from pytest_osgates.image.diff.squashfs_walk import shown_time
from pytest_osgates.image.diff.streams import Method, Stream, method_of, stored_size
from pytest_osgates.vm.errors import ImageError

MAGICS = (b"070701", b"070702")
_FIELDS = (
    "inode",
    "mode",
    "owner",
    "group",
    "link count",
    "mtime",
    "size",
    "device major",
    "device minor",
    "rdev major",
    "rdev minor",
    "name size",
    "checksum",
)
_HEADER = 110
_MAX_NAME = 4096
_MAX_MEMBERS = 500_000
_MAX_MEMBER = 8 << 20
_MAX_KEPT = 32 << 20
_PIECE = 1 << 20
_MAX_ARCHIVES = 64


class _Reader(Protocol):
    position: int

    def read(self, size: int) -> bytes: ...


class _Plain:
    """An archive that is not compressed, as a stream."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._content.read(self.position, size)
        self.position += len(data)
        return data


@dataclass(frozen=True)
class Archive:
    """One archive of an initrd: `part` of it as stored, and how that is compressed."""

    name: str
    part: Part
    method: Method | None

    def stream(self) -> _Reader:
        return _Plain(self.part) if self.method is None else Stream(self.part, self.method)


@dataclass(frozen=True, slots=True)
class Member:
    """A member: the thirteen numbers of its header, and the digest of its contents."""

    name: str
    numbers: tuple[int, ...]
    digest: bytes

    @property
    def size(self) -> int:
        return self.numbers[6]


def is_initrd(content: Content) -> bool:
    """Whether `content` begins with a cpio archive, compressed or not."""
    head = content.read(0, 8)
    if head.startswith(MAGICS):
        return True
    method = method_of(head)
    if method is None:
        return False
    try:
        return Stream(content, method).read(6).startswith(MAGICS)
    except ImageError:
        return False


def archives(content: Content, *, to_end: bool = False) -> list[Archive]:
    """The archives that `content` is made of, up to the first that is compressed; `to_end`: those after it, too, as
    the kernel unpacks them (init/initramfs.c), and nothing may follow that is none.

    :raise ImageError: it is malformed.
    """
    found: list[Archive] = []
    position = 0
    while position < content.size:
        head = content.read(position, 8)
        if not head.strip(b"\x00"):
            position += 4 - position % 4
            # Only zeros up to the next archive: GRUB and the kernel pad with them.
            while position < content.size and not content.read(position, 4096).strip(b"\x00"):
                position += 4096
            continue
        if not head.startswith(MAGICS) and head[:1] == b"\x00":
            position += len(head) - len(head.lstrip(b"\x00"))
            continue
        method = method_of(head)
        whole = Part(content, position, content.size - position)
        if method is None and not head.startswith(MAGICS):
            raise ImageError(f"no archive begins at byte {position}")
        name = f"archive {len(found) + 1}" + (f" ({method.label})" if method else "")
        if method is not None:
            if not to_end:
                found.append(Archive(name, whole, method))
                return found
            size = stored_size(whole, method)
            found.append(Archive(name, Part(content, position, size), method))
            position += size
            if len(found) > _MAX_ARCHIVES:
                raise ImageError(f"more than {_MAX_ARCHIVES} archives")
            continue
        reader = _Plain(whole)
        for _ in _members(reader, lambda name, numbers: None):
            pass
        found.append(Archive(name, Part(content, position, reader.position), None))
        position += reader.position
        if len(found) > _MAX_ARCHIVES:
            raise ImageError(f"more than {_MAX_ARCHIVES} archives")
    return found


Keep = Callable[[str, tuple[int, ...]], bytearray | None]


def _members(reader: _Reader, keep: Keep) -> Iterator[Member]:
    """The members of one archive. What `keep` returns a buffer for is written into it.

    :raise ImageError: it is malformed, or breaks off.
    """
    for _ in range(_MAX_MEMBERS):
        header = reader.read(_HEADER)
        if not header.startswith(MAGICS) or len(header) != _HEADER:
            raise ImageError(f"no member of the archive begins at byte {reader.position - len(header)}")
        try:
            numbers = tuple(int(header[at : at + 8], 16) for at in range(6, _HEADER, 8))
        except ValueError:
            raise ImageError(f"a malformed header at byte {reader.position - _HEADER}") from None
        length = numbers[11]
        if not 0 < length <= _MAX_NAME:
            raise ImageError(f"a name of {length} bytes at {reader.position}")
        raw = reader.read(length + (-(_HEADER + length) % 4))[:length]
        name = raw.rstrip(b"\x00").decode("utf-8", "surrogateescape")
        buffer = keep(name, numbers)
        digest = hashlib.blake2b(digest_size=16)
        left = numbers[6]
        while left:
            data = reader.read(min(left, _PIECE))
            if not data:
                raise ImageError(f"the archive breaks off in {name!r}")
            left -= len(data)
            digest.update(data)
            if buffer is not None:
                buffer += data
        reader.read(-numbers[6] % 4)
        if name == "TRAILER!!!":
            return
        yield Member(name, numbers, digest.digest())
    raise ImageError(f"more than {_MAX_MEMBERS} members")


class _Ahead:
    """A stream that can be asked whether anything but zeros is left."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._left = b""
        self.position = 0

    def read(self, size: int) -> bytes:
        data, self._left = self._left[:size], self._left[size:]
        if len(data) < size:
            data += self._reader.read(size - len(data))
        self.position += len(data)
        return data

    def more(self) -> bool:
        while not (rest := self._left.lstrip(b"\x00")):
            self.position += len(self._left)
            self._left = self._reader.read(_PIECE)
            if not self._left:
                return False
        self.position += len(self._left) - len(rest)
        self._left = rest
        return True


def _all_members(archive: Archive, keep: Keep) -> Iterator[Member]:
    """Members of `archive`. In one compressed stream several can stand one after another, which the kernel unpacks
    all (init/initramfs.c, flush_buffer()); those that are not compressed are archives of their own.

    :raise ImageError: it is malformed, or breaks off.
    """
    reader = _Ahead(archive.stream())
    for _ in range(_MAX_ARCHIVES):
        yield from _members(reader, keep)
        if archive.method is None or not reader.more():
            return
    raise ImageError(f"more than {_MAX_ARCHIVES} archives in one compressed stream")


def members(archive: Archive, most: int) -> Iterator[tuple[Member, bytes | None]]:
    """The members of an archive, each with its contents if these are not above `most` bytes.

    :raise ImageError: it is malformed, or breaks off.
    """
    last = bytearray()

    def keep(name: str, numbers: tuple[int, ...]) -> bytearray | None:
        last.clear()
        return last if numbers[6] <= most else None

    for member in _all_members(archive, keep):
        yield member, bytes(last) if member.size <= most else None


# What to call for a member whose contents differ: container, path, both contents.
Inside = Callable[[str, str, Content, Content], None]


def compare_initrds(a: Content, b: Content, container: str, out: Findings, inside: Inside) -> None:
    """Compare two initrds, archive by archive and member by member.

    :raise ImageError: one is malformed.
    """
    left, right = archives(a), archives(b)
    if len(left) != len(right):
        shown = [", ".join(archive.name for archive in side) for side in (left, right)]
        out.add(Difference(Layer.CPIO, container, "archives", "number", shown[0], shown[1]))
    for one, other in zip(left, right, strict=False):
        _compare_archives(one, other, f"{container}!{one.name}", out, inside)


def _compare_archives(one: Archive, other: Archive, container: str, out: Findings, inside: Inside) -> None:
    def add(
        path: str, what: str, a: str, b: str, *, delta: int | None = None, follows: bool = False, kind: str = ""
    ) -> None:
        out.add(Difference(Layer.CPIO, container, path, what, a, b, delta=delta, follows=follows, kind=kind))

    before = len(out.differences)
    if one.method is not other.method:
        labels = [archive.method.label if archive.method else "none" for archive in (one, other)]
        add("archive", "compression", labels[0], labels[1])
    if one.method is Method.GZIP and other.method is Method.GZIP:
        x, y = one.part.read(0, 10), other.part.read(0, 10)
        if x[4:8] != y[4:8]:
            times = [int.from_bytes(head[4:8], "little") for head in (x, y)]
            add("archive", "gzip header: mtime", *map(shown_time, times), delta=times[1] - times[0])
        if x[8:10] != y[8:10]:
            add("archive", "gzip header: flags and system", x[8:10].hex(), y[8:10].hex())
    sides: list[dict[tuple[str, int], Member]] = []
    for archive in (one, other):
        sides.append(_numbered(_all_members(archive, lambda name, numbers: None)))
    left, right = sides
    out.nodes += len(left)
    changed: set[tuple[str, int]] = set()
    for key in dict.fromkeys((*left, *right)):
        p, q = left.get(key), right.get(key)
        path = "/" + key[0].lstrip("/")
        if p is None or q is None:
            there = p or q
            text = f"{there.size} bytes, mode {there.numbers[1]:o}" if there else ""
            add(path, "only in A" if q is None else "only in B", *((text, "") if q is None else ("", text)))
            continue
        for field, m, n in zip(_FIELDS, p.numbers, q.numbers, strict=True):
            if m == n or field == "name size":
                continue
            if field == "mtime":
                add(path, field, shown_time(m), shown_time(n), delta=n - m)
            else:
                shown = [f"{value:o}" if field == "mode" else str(value) for value in (m, n)]
                add(path, field, shown[0], shown[1], follows=field in ("checksum", "link count"))
        if p.digest != q.digest:
            changed.add(key)
    if [key for key in left if key in right] != [key for key in right if key in left]:
        add("archive", "order of members", "", "the members are in another order", kind="order")
    _contents(one, other, changed, (left, right), container, inside, add)
    if len(out.differences) == before and _bytes_differ(one.part, other.part):
        add(
            "archive",
            "compressed bytes",
            f"{one.part.size} bytes",
            f"{other.part.size} bytes with the same members",
            kind="recompressed",
        )


def _bytes_differ(a: Content, b: Content) -> bool:
    return a.size != b.size or any(a.read(at, _PIECE) != b.read(at, _PIECE) for at in range(0, a.size, _PIECE))


def _numbered(members: Iterator[Member]) -> dict[tuple[str, int], Member]:
    """By name, and by how often the name came before: an archive may have a name twice."""
    found: dict[tuple[str, int], Member] = {}
    counts: dict[str, int] = {}
    for member in members:
        counts[member.name] = counts.get(member.name, 0) + 1
        found[member.name, counts[member.name]] = member
    return found


def _contents(
    one: Archive,
    other: Archive,
    changed: set[tuple[str, int]],
    members: tuple[dict[tuple[str, int], Member], dict[tuple[str, int], Member]],
    container: str,
    inside: Inside,
    add: Callable[..., None],
) -> None:
    """Look into the members whose contents differ, as far as they fit in memory together."""
    wanted: set[tuple[str, int]] = set()
    budget = _MAX_KEPT
    for key in sorted(changed):
        size = max(side[key].size for side in members)
        if size <= _MAX_MEMBER and size <= budget:
            wanted.add(key)
            budget -= size
        else:
            path = "/" + key[0].lstrip("/")
            shown = [f"{side[key].size} bytes, BLAKE2 {side[key].digest.hex()}" for side in members]
            add(path, "content", shown[0], shown[1])
    if not wanted:
        return
    kept: list[dict[tuple[str, int], bytearray]] = [{}, {}]
    for side, archive in zip(kept, (one, other), strict=True):
        counts: dict[str, int] = {}

        def keep(
            name: str,
            numbers: tuple[int, ...],
            counts: dict[str, int] = counts,
            side: dict[tuple[str, int], bytearray] = side,
        ) -> bytearray | None:
            counts[name] = counts.get(name, 0) + 1
            return side.setdefault((name, counts[name]), bytearray()) if (name, counts[name]) in wanted else None

        for _ in _all_members(archive, keep):
            pass
    for key in sorted(wanted):
        contents = [BytesContent(bytes(side[key])) for side in kept]
        inside(container, "/" + key[0].lstrip("/"), contents[0], contents[1])


__all__ = ["Archive", "Inside", "Member", "archives", "compare_initrds", "is_initrd", "members"]
