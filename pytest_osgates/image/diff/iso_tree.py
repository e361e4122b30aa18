"""All records of an ISO 9660 volume as they are stored: each directory record with its System Use entries, by path.

:class:`pytest_osgates.image.iso9660.IsoImage` says what the files are. A comparison wants every byte of every record,
those of `.` and `..` and of the Joliet tree too, and where it lies. Section numbers are those of ECMA-119.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from pytest_osgates.image.iso9660 import MAX_DEPTH, MAX_DIRECTORY_BYTES, MAX_ENTRIES, SECTOR, Extent
from pytest_osgates.image.rockridge import MAX_CONTINUATION_BYTES, MAX_CONTINUATIONS
from pytest_osgates.image.source import Source, damaged, shown

_FIRST = 16 * SECTOR
_MAX_DESCRIPTORS = 64
_JOLIET = (b"%/@", b"%/C", b"%/E")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A volume descriptor (8): its place, its 2048 bytes, and a name that tells it from the others.

    Logical blocks are counted from `base`: xorriso's -partition_offset writes a second volume, of the same files, for
    a medium that is mounted by its first partition.
    """

    offset: int
    raw: bytes
    name: str
    base: int = 0

    @property
    def has_tree(self) -> bool:
        return self.raw[0] in (1, 2)

    @property
    def joliet(self) -> bool:
        return self.raw[0] == 2 and self.raw[88:91] in _JOLIET

    @property
    def block_size(self) -> int:
        return int(struct.unpack_from("<H", self.raw, 128)[0])


@dataclass(frozen=True, slots=True)
class Use:
    """A System Use entry (SUSP 4.1): its signature, where it is in the image, and all of its bytes."""

    signature: bytes
    offset: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A directory record (9.1) and its System Use entries, those in continuation areas too."""

    offset: int
    raw: bytes
    uses: tuple[Use, ...]

    @property
    def extent(self) -> int:
        return int(struct.unpack_from("<I", self.raw, 2)[0])

    @property
    def size(self) -> int:
        return int(struct.unpack_from("<I", self.raw, 10)[0])

    @property
    def flags(self) -> int:
        return self.raw[25]

    @property
    def name(self) -> bytes:
        return self.raw[33 : 33 + self.raw[32]]


@dataclass(slots=True)
class IsoNode:
    """What is at one path: its records, more than one for a file in several sections, and its extents in bytes."""

    path: str
    records: list[Record]
    extents: list[Extent] = field(default_factory=list)

    @property
    def is_dir(self) -> bool:
        return bool(self.records[0].flags & 2)

    @property
    def size(self) -> int:
        return sum(extent.size for extent in self.extents)


@dataclass
class IsoTree:
    """The tree of one volume descriptor, `.` and `..` among its nodes as `path/.` and `path/..`."""

    descriptor: Descriptor
    nodes: dict[str, IsoNode] = field(default_factory=dict)
    continuations: list[Extent] = field(default_factory=list)
    rock_ridge: bool = False
    listed: dict[str, list[Record]] = field(default_factory=dict)

    def records_of(self, directory: IsoNode) -> list[Record]:
        """The records that stand in `directory`."""
        return self.listed.get(directory.path, [])


def descriptors(source: Source, base: int = 0) -> list[Descriptor]:
    """The volume descriptor set of the volume at `base`, its terminator included."""
    found: list[Descriptor] = []
    counts: dict[int, int] = {}
    for number in range(_MAX_DESCRIPTORS):
        offset = base + _FIRST + number * SECTOR
        if offset + SECTOR > source.size:
            break
        raw = source.read_at(offset, SECTOR)
        if raw[1:6] != b"CD001":
            break
        kind = {
            0: "boot record",
            1: "primary volume descriptor",
            2: "supplementary volume descriptor",
            3: "volume partition descriptor",
            255: "volume descriptor set terminator",
        }.get(raw[0], f"volume descriptor of type {raw[0]}")
        counts[raw[0]] = counts.get(raw[0], 0) + 1
        name = kind if counts[raw[0]] == 1 else f"{kind} {counts[raw[0]]}"
        found.append(Descriptor(offset, raw, f"{name} of the volume at {base}" if base else name, base))
        if raw[0] == 255:
            break
    return found


def read_tree(source: Source, descriptor: Descriptor) -> IsoTree:
    """Everything below the root that `descriptor` names.

    :raise ImageError: it contradicts itself, or loops.
    """
    return _Reader(source, descriptor).read()


class _Reader:
    def __init__(self, source: Source, descriptor: Descriptor) -> None:
        self.source = source
        self.descriptor = descriptor
        self.tree = IsoTree(descriptor)
        self.block = descriptor.block_size
        self.base = descriptor.base
        self.skip: int | None = None
        if self.block not in (512, 1024, 2048):
            raise self._damaged(f"logical blocks of {self.block} bytes")

    def _damaged(self, what: str) -> Exception:
        return damaged(self.source.name, f"{self.descriptor.name}: {what}")

    def read(self) -> IsoTree:
        raw = self.descriptor.raw[156:190]
        root = IsoNode("/", [Record(self.descriptor.offset + 156, raw, ())])
        root.extents = [self._extent(root.records[0])]
        self.tree.nodes["/"] = root
        pending = [(root, 0)]
        seen = {root.extents[0].offset}
        while pending:
            directory, depth = pending.pop()
            for node in self._entries(directory):
                if node.path in self.tree.nodes:
                    raise self._damaged(f"{shown(node.path)} is there twice")
                self.tree.nodes[node.path] = node
                if len(self.tree.nodes) > MAX_ENTRIES:
                    raise self._damaged(f"more than {MAX_ENTRIES} files")
                if node.is_dir and not node.path.endswith(("/.", "/..")):
                    if node.extents[0].offset in seen or depth > MAX_DEPTH:
                        raise self._damaged(f"{shown(node.path)} is a directory reached twice, or too deep")
                    seen.add(node.extents[0].offset)
                    pending.append((node, depth + 1))
        return self.tree

    def _extent(self, record: Record) -> Extent:
        return Extent(self.base + (record.extent + record.raw[1]) * self.block, record.size)

    def _entries(self, directory: IsoNode) -> Iterator[IsoNode]:
        extent = directory.extents[0]
        if extent.size > MAX_DIRECTORY_BYTES:
            raise self._damaged(f"a directory of {extent.size} bytes at {extent.offset}")
        data = self.source.read_at(extent.offset, extent.size)
        current: IsoNode | None = None
        for start in range(0, len(data), SECTOR):
            sector = data[start : start + SECTOR]
            position = 0
            while position < len(sector) and sector[position]:
                length = sector[position]
                at = extent.offset + start + position
                raw = sector[position : position + length]
                position += length
                if len(raw) < 34 or 33 + raw[32] > length or len(raw) != length:
                    raise self._damaged(f"a directory record of {length} bytes at {at}")
                record = Record(at, raw, self._uses(at, raw))
                self.tree.listed.setdefault(directory.path, []).append(record)
                if current is not None and current.records[-1].name == record.name:
                    current.records.append(record)
                else:
                    if current is not None:
                        yield current
                    current = IsoNode(self._path(directory.path, record), [record])
                if record.size:
                    current.extents.append(self._extent(record))
                if not record.flags & 0x80 and current is not None:
                    if current.is_dir and len(current.extents) != 1:
                        raise self._damaged(f"the directory with the record at {at} has no extent, or several")
                    yield current
                    current = None
        if current is not None:
            yield current

    def _path(self, parent: str, record: Record) -> str:
        name = {b"\x00": ".", b"\x01": ".."}.get(record.name)
        if name is None:
            parts = [use.raw[5:] for use in record.uses if use.signature == b"NM" and not use.raw[4] & 6]
            if parts:
                name = b"".join(parts).decode("utf-8", "surrogateescape")
            elif self.descriptor.joliet:
                name = record.name.decode("utf-16-be", "replace")
            else:
                name = record.name.decode("latin-1")
            if name in (".", "..", "") or "/" in name:
                raise self._damaged(f"an impossible file name, {shown(name)}")
        return f"{parent.rstrip('/')}/{name}"

    def _uses(self, at: int, raw: bytes) -> tuple[Use, ...]:
        # 9.1.12: the name is padded to an even length.
        begin = 33 + raw[32] + (not raw[32] & 1)
        if self.descriptor.raw[0] != 1:
            return ()
        if self.skip is None:
            area = raw[begin:]
            if area[:2] != b"SP" or area[4:6] != b"\xbe\xef":
                # The very first record, the root's own, says whether there is any.
                self.skip = -1
            else:
                self.skip = area[6]
                self.tree.rock_ridge = True
                return self._areas(at + begin, area)
        if self.skip < 0:
            return ()
        return self._areas(at + begin + self.skip, raw[begin + self.skip :])

    def _areas(self, at: int, area: bytes) -> tuple[Use, ...]:
        found: list[Use] = []
        budget = MAX_CONTINUATION_BYTES
        for _ in range(MAX_CONTINUATIONS + 1):
            following: tuple[int, int, int] | None = None
            position = 0
            while position + 4 <= len(area) and area[position]:
                signature, size = area[position : position + 2], area[position + 2]
                if size < 4 or position + size > len(area):
                    raise self._damaged(f"a System Use entry {signature!r} at {at + position} overruns its field")
                entry = area[position : position + size]
                found.append(Use(signature, at + position, entry))
                position += size
                if signature == b"ST":
                    break
                if signature == b"CE" and size >= 28:
                    following = struct.unpack_from("<I4xI4xI", entry, 4)
            if following is None:
                return tuple(found)
            block, offset, size = following
            budget -= size
            if budget < 0:
                break
            at = self.base + block * self.block + offset
            area = self.source.read_at(at, size)
            self.tree.continuations.append(Extent(at, size))
        raise self._damaged("a chain of continuation areas without an end")


__all__ = ["Descriptor", "IsoNode", "IsoTree", "Record", "Use", "descriptors", "read_tree"]
