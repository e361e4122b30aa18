"""ISO 9660 (ECMA-119, 3rd edition) with Rock Ridge names, and multi-extent files (level 3).

Section numbers are those of ECMA-119. Joliet and UDF are not read: Linux prefers Rock Ridge, which every live image
has; without it the plain ISO names are used, in lower case and without `;1`, as Linux shows them.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from pytest_osgates.image import eltorito, rockridge, sniff
from pytest_osgates.image.eltorito import BootEntry
from pytest_osgates.image.source import GET_AGAIN, Source, damaged, open_source, shown
from pytest_osgates.image.tree import FileKind, components
from pytest_osgates.vm.errors import ImageError

# 6.1.2: logical sectors have 2048 bytes on a CD; 6.2.1: the first 16 are for the system.
SECTOR = 2048
_FIRST_DESCRIPTOR = 16 * SECTOR
_MAX_DESCRIPTORS = 64

MAX_DIRECTORY_BYTES = 8 << 20
MAX_DEPTH = 64
MAX_ENTRIES = 500_000

# 7.3: numbers are recorded in both byte orders; the little-endian one is read here, as by Linux.
_RECORD = struct.Struct("<BBI4xI4x7sBBBH2xB")
_PRIMARY = struct.Struct("<8x32s32s8xI4x32x8xH")
_FLAG_DIRECTORY, _FLAG_ASSOCIATED, _FLAG_MORE_EXTENTS = 0x02, 0x04, 0x80


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes: `offset` from the start of the image file, and `size`."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class IsoFile:
    """A file, directory or link of the volume.

    `extents` hold its contents in their order; `record` is its (first) directory record; `recorded` the seven bytes
    of its recording date and time (9.1.5). `mode` is a full `st_mode`; it, `uid` and `gid` are None without Rock
    Ridge. `target` is where a symbolic link points; `compressed` says that zisofs was applied.
    """

    path: str
    kind: FileKind
    extents: tuple[Extent, ...]
    size: int
    record: Extent
    recorded: bytes
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    target: str | None = None
    compressed: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_dir(self) -> bool:
        return self.kind is FileKind.DIRECTORY


@dataclass(frozen=True, slots=True)
class Volume:
    """The primary volume descriptor (8.4): where it lies, in bytes, and what it says."""

    offset: int
    system_id: str
    volume_id: str
    block_size: int
    blocks: int

    @property
    def size(self) -> int:
        """Of the volume, in bytes. The file may be longer: partitions can be appended."""
        return self.block_size * self.blocks


@dataclass(frozen=True, slots=True)
class _Record:
    """A directory record (9.1), its extent still in bytes of one section."""

    at: Extent
    extent: Extent
    recorded: bytes
    flags: int
    name: bytes
    system_use: bytes


class IsoImage:
    """An ISO 9660 volume over a :class:`Source`. Paths are absolute inside it (`/live/vmlinuz`).

    Symbolic links are shown, not followed. Every method raises :class:`ImageError` where the image contradicts
    itself.
    """

    def __init__(self, source: Source) -> None:
        """:raise ImageError: it is no ISO 9660 image, or cut short."""
        self.source = source
        self._children: dict[Extent, tuple[IsoFile, ...]] = {}
        self._boot_catalog: int | None = None
        self._skip: int | None = None
        offset, primary = self._find_descriptors()
        self.volume = self._volume(offset, primary)
        root = self._record(primary[156:190], offset + 156)
        if not root.flags & _FLAG_DIRECTORY:
            raise self._damaged("its root is not a directory")
        first = next(self._records(root.extent), None)
        if first is None or first.name != b"\x00":
            raise self._damaged("its root directory does not begin with itself")
        self._skip = self._system_use(first, skip=0).skip
        self.root = IsoFile("/", FileKind.DIRECTORY, (root.extent,), root.extent.size, root.at, root.recorded)

    @classmethod
    @contextmanager
    def open(cls, path: str | os.PathLike[str]) -> Iterator[Self]:
        """The ISO at `path`, read-only, for the length of the context.

        :raise UsageError: there is nothing at `path`, or it may not be read.
        :raise ImageError: it is no ISO 9660 image (the message says what it looks like), or cut short.
        """
        with open_source(path) as source:
            yield cls(source)

    @property
    def rock_ridge(self) -> bool:
        """Whether names and modes are those of Rock Ridge (SUSP 5.3: an SP entry in the root directory)."""
        return self._skip is not None

    def boot_entries(self) -> tuple[BootEntry, ...]:
        """The entries of the El Torito boot catalog; empty: the image has none, and no firmware boots it as a CD."""
        if self._boot_catalog is None:
            return ()
        offset = self._boot_catalog * SECTOR
        try:
            return eltorito.parse_catalog(self.source.read_at(offset, SECTOR))
        except eltorito.MalformedCatalog as exc:
            raise self._damaged(f"the El Torito boot catalog at byte {offset}: {exc}") from exc

    def lookup(self, path: str) -> IsoFile | None:
        """What is at `path`; None: nothing. Without Rock Ridge the case does not matter."""
        here = self.root
        for name in components(path):
            if not here.is_dir:
                return None
            wanted = name if self.rock_ridge else name.lower()
            found = next((file for file in self._list(here) if file.name == wanted), None)
            if found is None:
                return None
            here = found
        return here

    def list_dir(self, path: str) -> tuple[IsoFile, ...] | None:
        """The entries of the directory at `path`, in their recorded order; None: there is no such directory."""
        here = self.lookup(path)
        return self._list(here) if here is not None and here.is_dir else None

    def walk(self, limit: int = MAX_ENTRIES) -> Iterator[IsoFile]:
        """Every file below the root, a directory before its entries.

        :raise ImageError: more than `limit` of them, or a directory that contains itself.
        """
        pending = [(self.root, 0)]
        seen = {self.root.extents}
        count = 0
        while pending:
            directory, depth = pending.pop()
            for file in self._list(directory):
                count += 1
                if count > limit:
                    raise ImageError(f"{self.source.name} has more than {limit} files", remedy=GET_AGAIN)
                yield file
                if file.is_dir:
                    if file.extents in seen or depth >= MAX_DEPTH:
                        raise self._damaged(f"{shown(file.path)} is a directory reached twice, or too deep")
                    seen.add(file.extents)
                    pending.append((file, depth + 1))

    def read(self, file: IsoFile, limit: int) -> bytes:
        """The contents of the regular `file`.

        :raise ImageError: it is not a regular file, larger than `limit` bytes, or lies outside the image.
        """
        if file.kind is not FileKind.FILE:
            raise ImageError(f"{self.source.name}: {shown(file.path)} is {file.kind.label}, not a regular file")
        if file.compressed:
            raise ImageError(f"{self.source.name}: {shown(file.path)} is zisofs-compressed, which is not supported")
        if file.size > limit:
            raise ImageError(
                f"{self.source.name}: {shown(file.path)} has {file.size} bytes, more than the {limit} expected"
            )
        return b"".join(self.source.read_at(extent.offset, extent.size) for extent in file.extents)

    def _damaged(self, what: str) -> ImageError:
        return damaged(self.source.name, what)

    def _find_descriptors(self) -> tuple[int, bytes]:
        """The primary volume descriptor and its offset; notes where the boot catalog is."""
        primary: tuple[int, bytes] | None = None
        for number in range(_MAX_DESCRIPTORS):
            offset = _FIRST_DESCRIPTOR + number * SECTOR
            if offset + SECTOR > self.source.size:
                break
            sector = self.source.read_at(offset, SECTOR)
            # 8.1: a type, "CD001", version 1. Type 255 ends the set.
            if sector[1:7] != b"CD001\x01" or sector[0] == 255:
                break
            if sector[0] == 1 and primary is None:
                primary = offset, sector
            elif sector[0] == 0 and sector[7:39].rstrip(b"\x00 ") == eltorito.SYSTEM_ID:
                (self._boot_catalog,) = struct.unpack_from("<I", sector, 71)
        if primary is None:
            raise sniff.not_an_iso(self.source)
        return primary

    def _volume(self, offset: int, sector: bytes) -> Volume:
        system_id, volume_id, blocks, block_size = _PRIMARY.unpack_from(sector)
        if block_size not in (512, 1024, 2048):
            raise self._damaged(f"logical blocks of {block_size} bytes")
        volume = Volume(offset, _text(system_id), _text(volume_id), block_size, blocks)
        if volume.size > self.source.size:
            raise ImageError(
                f"{self.source.name} is cut short: {self.source.size} of {volume.size} bytes", remedy=GET_AGAIN
            )
        return volume

    def _record(self, raw: bytes, offset: int) -> _Record:
        if len(raw) < _RECORD.size:
            raise self._damaged(f"a directory record of {len(raw)} bytes at {offset}")
        _length, attributes, block, size, recorded, flags, unit, gap, _volume, name_size = _RECORD.unpack_from(raw)
        name_end = _RECORD.size + name_size
        if not name_size or name_end > len(raw):
            raise self._damaged(f"the directory record at {offset} has a name of {name_size} bytes")
        if unit or gap:
            raise ImageError(
                f"{self.source.name}: interleaved files (directory record at {offset}) are not supported"
            )
        # 9.1.12: padded to an even number of bytes.
        system_use = raw[name_end + (not name_size & 1) :]
        # 9.1.3: the extended attribute record comes first in the extent.
        extent = Extent((block + attributes) * self.volume.block_size, size)
        return _Record(Extent(offset, len(raw)), extent, recorded, flags, raw[_RECORD.size : name_end], system_use)

    def _records(self, extent: Extent) -> Iterator[_Record]:
        """The records of the directory in `extent`. 6.8.1.1: none crosses a sector; zeros fill the rest of it."""
        if extent.size > MAX_DIRECTORY_BYTES:
            raise self._damaged(f"a directory of {extent.size} bytes at {extent.offset}")
        data = self.source.read_at(extent.offset, extent.size)
        for start in range(0, len(data), SECTOR):
            sector = data[start : start + SECTOR]
            position = 0
            while position < len(sector) and sector[position]:
                length = sector[position]
                offset = extent.offset + start + position
                if position + length > len(sector):
                    raise self._damaged(f"the directory record at {offset} overruns its sector")
                yield self._record(sector[position : position + length], offset)
                position += length
            if any(sector[position:]):
                raise self._damaged(
                    f"the directory at {extent.offset} goes on after its end in sector {start // SECTOR}"
                )

    def _system_use(self, record: _Record, skip: int) -> rockridge.SystemUse:
        try:
            return rockridge.parse(record.system_use[skip:], self._read_continuation)
        except rockridge.MalformedSystemUse as exc:
            raise self._damaged(f"the directory record at {record.at.offset}: {exc}") from exc

    def _read_continuation(self, block: int, offset: int, size: int) -> bytes:
        return self.source.read_at(block * self.volume.block_size + offset, size)

    def _list(self, directory: IsoFile) -> tuple[IsoFile, ...]:
        extent = directory.extents[0]
        if extent not in self._children:
            self._children[extent] = tuple(self._entries(directory, extent))
        return self._children[extent]

    def _entries(self, directory: IsoFile, extent: Extent) -> Iterator[IsoFile]:
        sections: list[_Record] = []
        for record in self._records(extent):
            # 9.1.11: 00 and 01 are the directory itself and its parent; an associated file is no file of its own.
            if record.name in (b"\x00", b"\x01") or record.flags & _FLAG_ASSOCIATED:
                continue
            if sections and record.name != sections[0].name:
                raise self._damaged(f"the file with the record at {sections[0].at.offset} lacks its last extent")
            sections.append(record)
            if not record.flags & _FLAG_MORE_EXTENTS:
                file = self._file(directory, sections)
                if file is not None:
                    yield file
                sections = []
        if sections:
            raise self._damaged(f"the file with the record at {sections[0].at.offset} lacks its last extent")

    def _file(self, directory: IsoFile, sections: list[_Record]) -> IsoFile | None:
        first = sections[0]
        use = rockridge.SystemUse() if self._skip is None else self._system_use(first, self._skip)
        if use.relocated:
            return None
        kind = FileKind.DIRECTORY if first.flags & _FLAG_DIRECTORY else FileKind.FILE
        extents = tuple(section.extent for section in sections if section.extent.size)
        if use.child_block is not None:
            kind, extents = FileKind.DIRECTORY, (self._relocated(use.child_block),)
        elif use.attributes is not None:
            claimed = FileKind(stat.S_IFMT(use.attributes.mode))
            if (claimed is FileKind.DIRECTORY) != (kind is FileKind.DIRECTORY):
                raise self._damaged(
                    f"the record at {first.at.offset} is for {kind.label}, its mode for {claimed.label}"
                )
            kind = claimed
        if kind is FileKind.DIRECTORY and len(extents) != 1:
            raise self._damaged(f"the directory with the record at {first.at.offset} has {len(extents)} extents")
        name = self._name(first, use)
        attributes = use.attributes
        return IsoFile(
            path=f"{directory.path.rstrip('/')}/{name}",
            kind=kind,
            extents=extents,
            size=sum(extent.size for extent in extents),
            record=first.at,
            recorded=first.recorded,
            mode=attributes.mode if attributes else None,
            uid=attributes.uid if attributes else None,
            gid=attributes.gid if attributes else None,
            target=_decode(use.target) if kind is FileKind.SYMLINK and use.target is not None else None,
            compressed=use.compressed,
        )

    def _name(self, record: _Record, use: rockridge.SystemUse) -> str:
        if use.name is not None:
            return _decode(use.name)
        # 7.5.1: NAME.EXT;VERSION, where the dot stands even without an extension.
        name = record.name.split(b";")[0].rstrip(b".").lower()
        try:
            rockridge.check_name(name)
        except rockridge.MalformedSystemUse as exc:
            raise self._damaged(f"the directory record at {record.at.offset}: {exc}") from exc
        return _decode(name)

    def _relocated(self, block: int) -> Extent:
        """The extent of the directory that RRIP's CL says begins at `block`: its own first record knows."""
        offset = block * self.volume.block_size
        length = self.source.read_at(offset, 1)[0]
        record = self._record(self.source.read_at(offset, length), offset)
        if record.name != b"\x00" or not record.flags & _FLAG_DIRECTORY or not record.extent.size:
            raise self._damaged(f"no directory at block {block}, where one was moved to")
        return Extent(offset, record.extent.size)


def _text(field: bytes) -> str:
    return field.decode("latin-1").rstrip(" \x00")


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
