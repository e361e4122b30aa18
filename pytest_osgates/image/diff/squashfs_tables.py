"""The metadata of one squashfs, uncompressed in one piece: what a walk over all of its inodes needs to be quick.

:class:`pytest_osgates.image.squashfs.Squashfs` uncompresses what it is asked for; a comparison looks at everything,
so
here each table is one run of bytes, and a map leads from the position of a metadata block to its place in it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pytest_osgates.image import squashfs_format as fmt
from pytest_osgates.image.source import Source, damaged
from pytest_osgates.image.squashfs_metadata import Window
from pytest_osgates.vm.errors import ImageError

# 2,000,000 inodes of an average size; beyond that it is an attack on our memory.
MAX_TABLE = 192 << 20
MAX_XATTRS = 1 << 16
_NO_BLOCKS: dict[int, int] = {}
_PREFIXES = {0: b"user.", 1: b"trusted.", 2: b"security."}


@dataclass(slots=True)
class Table:
    """A run of metadata blocks.

    `start` and `end` are positions in the squashfs; `data` all blocks uncompressed, `places` the offset in `data` of
    the block at a position counted from `start`.
    """

    start: int
    end: int
    data: bytes
    places: dict[int, int]

    def at(self, block: int, offset: int) -> int:
        """The place in `data` of `offset` bytes into the block at `block`.

        :raise KeyError: no block begins there.
        """
        return self.places[block] + offset


class Tables:
    """All tables of the squashfs at `offset` of `source`.

    :raise ImageError: it is damaged, foreign, or too large.
    """

    def __init__(self, source: Source, offset: int, size: int, name: str) -> None:
        self.name = name
        self.source = source
        self.offset = offset
        if size < fmt.SUPERBLOCK.size:
            raise damaged(name, f"a squashfs of {size} bytes")
        raw = source.read_at(offset, fmt.SUPERBLOCK.size)
        try:
            self.superblock = sb = fmt.parse_superblock(raw)
        except (fmt.MalformedSquashfs, fmt.UnsupportedSquashfs) as exc:
            raise damaged(name, str(exc)) from exc
        if not fmt.SUPERBLOCK.size <= sb.bytes_used <= size:
            raise damaged(name, f"it says that it has {sb.bytes_used} bytes, of {size}")
        self.raw_superblock = raw
        self.window = Window(source, offset, sb.bytes_used, name)
        fragments = self._first(sb.fragment_table, sb.fragments, 16)
        exports = self._first(sb.export_table, sb.inodes, 8)
        ids = self._first(sb.id_table, sb.ids, 4)
        self.inodes = self._table(sb.inode_table, sb.directory_table)
        ends = [first for first in (fragments, exports, ids) if first is not None and first >= sb.directory_table]
        if not ends:
            raise damaged(name, "its directory table has no end")
        self.directories = self._table(sb.directory_table, min(ends))
        self.ids = struct.unpack(f"<{sb.ids}I", self._indexed(sb.id_table, sb.ids, 4))
        self.fragments: tuple[tuple[int, int, int], ...] = tuple(
            struct.iter_unpack("<QII", self._indexed(sb.fragment_table, sb.fragments, 16))
        )
        self.exports = self._indexed(sb.export_table, sb.inodes, 8)
        self.block_log = sb.block_size.bit_length() - 1
        self._xattrs()
        self._sets: dict[int, dict[bytes, bytes]] = {}

    def _first(self, table: int, entries: int, size: int) -> int | None:
        """Where the metadata of an indexed table begins; None: it has no entries."""
        if table == fmt.NOT_THERE or not entries:
            return None
        return int.from_bytes(self.window.read(table, 8), "little")

    def _block(self, position: int) -> tuple[bytes, int]:
        header = int.from_bytes(self.window.read(position, 2), "little")
        stored = header & 0x7FFF
        if not 0 < stored <= fmt.METADATA_SIZE:
            raise damaged(self.name, f"a metadata block of {stored} bytes at {position}")
        method = None if header & 0x8000 else self.superblock.compressor
        return self.window.uncompressed(position + 2, stored, method, fmt.METADATA_SIZE), position + 2 + stored

    def _table(self, start: int, end: int) -> Table:
        parts: list[bytes] = []
        places: dict[int, int] = {}
        position, length = start, 0
        while position < end:
            places[position - start] = length
            data, position = self._block(position)
            parts.append(data)
            length += len(data)
            if length > MAX_TABLE:
                raise damaged(self.name, f"a table of more than {MAX_TABLE} bytes at {start}")
        if position != end:
            raise damaged(self.name, f"the table at {start} ends at {position}, not at {end}")
        return Table(start, end, b"".join(parts), places)

    def _indexed(self, table: int, entries: int, size: int) -> bytes:
        """All entries of a table that begins with the positions of its metadata blocks."""
        if table == fmt.NOT_THERE or not entries:
            return b""
        blocks = -(-entries * size // fmt.METADATA_SIZE)
        if entries * size > MAX_TABLE:
            raise damaged(self.name, f"a table of {entries} entries at {table}")
        pointers = struct.unpack(f"<{blocks}Q", self.window.read(table, 8 * blocks))
        data = b"".join(self._block(pointer)[0] for pointer in pointers)
        if len(data) < entries * size:
            raise damaged(self.name, f"the table at {table} has {len(data)} bytes, not {entries * size}")
        return data[: entries * size]

    def _xattrs(self) -> None:
        table = self.superblock.xattr_table
        self.xattr_ids: tuple[tuple[int, int, int], ...] = ()
        self.xattr_pairs = Table(0, 0, b"", _NO_BLOCKS)
        if table == fmt.NOT_THERE:
            return
        start, count = struct.unpack("<QI", self.window.read(table, 12))
        if not count:
            return
        self.xattr_ids = tuple(struct.iter_unpack("<QII", self._indexed(table + 16, count, 16)))
        first = int.from_bytes(self.window.read(table + 16, 8), "little")
        self.xattr_pairs = self._table(start, first)

    def xattrs(self, index: int) -> dict[bytes, bytes]:
        """The extended attributes with `index`, by their full names.

        :raise ImageError: there are none with it, or they are malformed.
        """
        if index == fmt.NO_XATTR:
            return {}
        if index not in self._sets:
            try:
                self._sets[index] = self._pairs(index)
            except (KeyError, IndexError, struct.error) as exc:
                raise damaged(self.name, f"malformed extended attributes {index}") from exc
        return self._sets[index]

    def _pairs(self, index: int) -> dict[bytes, bytes]:
        where, pairs, _size = self.xattr_ids[index]
        data = self.xattr_pairs.data
        position = self.xattr_pairs.at(where >> 16, where & 0xFFFF)
        found: dict[bytes, bytes] = {}
        budget = MAX_XATTRS
        for _ in range(pairs):
            kind, length = struct.unpack_from("<HH", data, position)
            name = _PREFIXES.get(kind & 0xFF, b"unknown.") + data[position + 4 : position + 4 + length]
            position += 4 + length
            (size,) = struct.unpack_from("<I", data, position)
            value_at = position + 4
            position = value_at + size
            if kind & 0x100:
                # Stored once for many inodes, elsewhere in the same table.
                (where,) = struct.unpack_from("<Q", data, value_at)
                value_at = self.xattr_pairs.at(where >> 16, where & 0xFFFF)
                (size,) = struct.unpack_from("<I", data, value_at)
                value_at += 4
            budget -= size + length + 8
            if budget < 0:
                raise damaged(self.name, f"more than {MAX_XATTRS} bytes of extended attributes")
            found[name] = data[value_at : value_at + size]
        return found

    def inode_at(self, reference: int) -> int:
        """The place of an inode in its table, from a reference to it.

        :raise ImageError: there is none.
        """
        try:
            return self.inodes.at(reference >> 16, reference & 0xFFFF)
        except KeyError:
            raise damaged(self.name, f"inode reference {reference:#x} leads nowhere") from None

    def owner(self, index: int) -> int:
        """The user or group with `index`; the index itself, negative, if there is none."""
        return self.ids[index] if index < len(self.ids) else -index - 1

    def stored(self, position: int, size: int) -> bytes:
        """Bytes as they are stored, from `position` in the squashfs."""
        return self.window.read(position, size)

    def block(self, position: int, word: int, length: int) -> bytes:
        """A data block, uncompressed: `word` as in a block list, `length` the most that it may have.

        :raise ImageError: it is damaged.
        """
        stored = word & 0xFF_FFFF
        if not stored:
            return bytes(length)
        if stored > self.superblock.block_size:
            raise damaged(self.name, f"a data block of {stored} bytes at {position}")
        method = None if word & 0x100_0000 else self.superblock.compressor
        return self.window.uncompressed(position, stored, method, length)


@dataclass(frozen=True, slots=True)
class Node:
    """An inode in the terms of both forms, basic and extended.

    `kind` is the basic type (1 directory, 2 file, 3 link, 4 and 5 devices, 6 pipe, 7 socket). `blocks`: the words of
    the block list. `target`: of a link. `length`: bytes that the inode takes in the table.
    """

    place: int
    kind: int
    extended: bool
    mode: int
    uid: int
    gid: int
    mtime: int
    number: int
    nlink: int
    xattr: int
    length: int
    size: int = 0
    start: int = 0
    fragment: int = fmt.NO_FRAGMENT
    offset: int = 0
    sparse: int = 0
    parent: int = 0
    blocks: bytes = b""
    target: bytes = b""
    device: int = 0


_HEAD = struct.Struct("<HHHHII")
_DIRECTORY = struct.Struct("<IIHHI")
_LONG_DIRECTORY = struct.Struct("<IIIIHHI")
_FILE = struct.Struct("<IIII")
_LONG_FILE = struct.Struct("<QQQIIII")
_PAIR = struct.Struct("<II")
_NUMBER = struct.Struct("<I")


def parse_node(tables: Tables, place: int) -> Node:
    """The inode at `place` of the inode table.

    :raise ImageError: it is malformed, or overruns the table.
    """
    try:
        node = _parse(tables, place)
    except struct.error:
        raise damaged(tables.name, f"an inode at {place} overruns its table") from None
    if place + node.length > len(tables.inodes.data):
        raise damaged(tables.name, f"an inode at {place} overruns its table")
    return node


def _parse(tables: Tables, place: int) -> Node:
    data = tables.inodes.data
    kind, mode, uid, gid, mtime, number = _HEAD.unpack_from(data, place)
    extended = kind > fmt.EXTENDED
    basic = kind - fmt.EXTENDED if extended else kind
    body = place + 16

    def node(nlink: int, xattr: int, length: int, **more: int | bytes) -> Node:
        return Node(
            place,
            basic,
            extended,
            mode,
            tables.owner(uid),
            tables.owner(gid),
            mtime,
            number,
            nlink,
            xattr,
            length,
            **more,  # type: ignore[arg-type]
        )

    match basic:
        case 1 if extended:
            nlink, size, block, parent, indexes, offset, xattr = _LONG_DIRECTORY.unpack_from(data, body)
            position = body + 24
            for _ in range(indexes):
                (length,) = _NUMBER.unpack_from(data, position + 8)
                position += 13 + length
            return node(nlink, xattr, position - place, size=size, start=block, offset=offset, parent=parent)
        case 1:
            block, nlink, size, offset, parent = _DIRECTORY.unpack_from(data, body)
            return node(nlink, fmt.NO_XATTR, 32, size=size, start=block, offset=offset, parent=parent)
        case 2:
            if extended:
                start, size, sparse, nlink, fragment, offset, xattr = _LONG_FILE.unpack_from(data, body)
                body += 40
            else:
                start, fragment, offset, size = _FILE.unpack_from(data, body)
                sparse, nlink, xattr = 0, 1, fmt.NO_XATTR
                body += 16
            log = tables.block_log
            blocks = size >> log if fragment != fmt.NO_FRAGMENT else (size + (1 << log) - 1) >> log
            if blocks * 4 > len(data) - body:
                raise damaged(tables.name, f"inode {number} is a file of {size} bytes")
            return node(
                nlink,
                xattr,
                body + 4 * blocks - place,
                size=size,
                start=start,
                fragment=fragment,
                offset=offset,
                sparse=sparse,
                blocks=data[body : body + 4 * blocks],
            )
        case 3:
            nlink, size = _PAIR.unpack_from(data, body)
            if size > 65535:
                raise damaged(tables.name, f"a symbolic link to {size} bytes")
            target = data[body + 8 : body + 8 + size]
            body += 8 + size
            xattr = _NUMBER.unpack_from(data, body)[0] if extended else fmt.NO_XATTR
            return node(nlink, xattr, body + 4 * extended - place, size=size, target=target)
        case 4 | 5:
            nlink, device = _PAIR.unpack_from(data, body)
            xattr = _NUMBER.unpack_from(data, body + 8)[0] if extended else fmt.NO_XATTR
            return node(nlink, xattr, 28 if extended else 24, device=device)
        case 6 | 7:
            (nlink,) = _NUMBER.unpack_from(data, body)
            xattr = _NUMBER.unpack_from(data, body + 4)[0] if extended else fmt.NO_XATTR
            return node(nlink, xattr, 24 if extended else 20)
        case _:
            raise damaged(tables.name, f"inode {number} is of unknown type {kind}")


__all__ = ["ImageError", "Node", "Table", "Tables", "parse_node"]
