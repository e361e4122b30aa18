"""Squashfs 4.0, read where it lies: inside an ISO, at an offset, without mounting or unpacking it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.image import squashfs_format as fmt
from pytest_osgates.image import tree
from pytest_osgates.image.source import GET_AGAIN, Source, damaged, shown
from pytest_osgates.image.squashfs_format import DirectoryLayout, FileLayout, Inode
from pytest_osgates.image.squashfs_metadata import Cache, Cursor, Metadata, Window
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError

MAX_ENTRIES = 2_000_000
MAX_DIRECTORY_ENTRIES = 250_000
MAX_DEPTH = 1024
MAX_TARGET = 4095
MAX_XATTR_BYTES = 64 << 10

_FRAGMENTS_CACHED = 8
_ENTRIES_CACHED = 100_000

_HEADER = struct.Struct("<HHHHII")
_XATTR_PREFIXES = {0: b"user.", 1: b"trusted.", 2: b"security."}


@dataclass(frozen=True, slots=True)
class DirEntry:
    """A name in a directory; `reference` leads to its inode."""

    name: str
    kind: FileKind
    reference: int


@dataclass(frozen=True, slots=True)
class DataBlock:
    """Where a piece of a file is stored: `length` of its bytes, found `skip` bytes into the block when uncompressed.

    `offset` is in bytes from the start of the source, `stored` the bytes there; 0 stored bytes are a hole, all zeros.
    `capacity` is the most that the block may uncompress to.
    """

    offset: int
    stored: int
    compressed: bool
    length: int
    skip: int
    capacity: int


class Squashfs:
    """The squashfs that fills at most `size` bytes of `source` from `offset`. Paths are absolute inside it.

    Every method raises :class:`ImageError` where the image contradicts itself.
    """

    def __init__(self, source: Source, offset: int = 0, size: int | None = None, *, name: str | None = None) -> None:
        """`name` is for messages.

        :raise ImageError: it is no squashfs, of another version or compression, or cut short.
        """
        self.source = source
        self.offset = offset
        self.name = name or f"the squashfs at byte {offset} of {source.name}"
        available = (source.size if size is None else min(source.size, offset + size)) - offset
        if available < fmt.SUPERBLOCK.size:
            raise ImageError(f"{self.name} is cut short: {max(0, available)} bytes", remedy=GET_AGAIN)
        try:
            self.superblock = fmt.parse_superblock(source.read_at(offset, fmt.SUPERBLOCK.size))
        except fmt.UnsupportedSquashfs as exc:
            raise ImageError(f"{self.name} is {exc}", remedy="name the distro with --iso-distro") from exc
        except fmt.MalformedSquashfs as exc:
            raise damaged(self.name, str(exc)) from exc
        self.size = self.superblock.bytes_used
        if self.size > available:
            raise ImageError(f"{self.name} is cut short: {available} of {self.size} bytes", remedy=GET_AGAIN)
        self._window = Window(source, offset, self.size, self.name)
        self._metadata = Metadata(self._window, self.superblock.compressor)
        self._fragments: Cache[int, bytes] = Cache(_FRAGMENTS_CACHED)
        # At most 65,536: their indexes have 16 bits.
        self._owners: dict[int, int] = {}
        self._listings: Cache[DirectoryLayout, dict[str, DirEntry]] = Cache(_ENTRIES_CACHED, len)
        self.root = self.inode(self.superblock.root)
        if not self.root.is_dir:
            raise self._window.damaged(f"its root is {self.root.kind.label}")

    def lookup(self, path: str, follow: bool = True) -> Inode | None:
        """The inode at `path`, symbolic links resolved inside the image; None: nothing is there.

        Without `follow` a link at the end of the path is returned itself.
        """
        return tree.resolve(self, path, follow=follow)

    def list_dir(self, directory: Inode) -> tuple[DirEntry, ...]:
        """The entries of `directory`, in their stored order (by name)."""
        return tuple(self._listing(directory).values())

    def walk(self, limit: int = MAX_ENTRIES) -> Iterator[tuple[str, Inode]]:
        """Every path below the root with its inode, a directory before its entries.

        :raise ImageError: more than `limit` of them, or a directory that contains itself.
        """
        pending = [("", self.root, 0)]
        seen = {self.root.number}
        count = 0
        while pending:
            parent, directory, depth = pending.pop()
            for entry in self._listing(directory).values():
                count += 1
                if count > limit:
                    raise ImageError(f"{self.name} has more than {limit} files")
                inode = self.inode(entry.reference)
                path = f"{parent}/{entry.name}"
                yield path, inode
                if inode.is_dir:
                    if inode.number in seen or depth >= MAX_DEPTH:
                        raise self._window.damaged(f"{shown(path)} is a directory reached twice, or too deep")
                    seen.add(inode.number)
                    pending.append((path, inode, depth + 1))

    def read_file(self, inode: Inode, limit: int) -> bytes:
        """The contents of the regular file `inode`.

        :raise ImageError: it is not a regular file, or larger than `limit` bytes.
        """
        if inode.size > limit and inode.kind is FileKind.FILE:
            raise ImageError(f"{self.name}: a file of {inode.size} bytes, more than the {limit} expected")
        return b"".join(self.read_block(block) for block in self.blocks(inode))

    def blocks(self, inode: Inode) -> Iterator[DataBlock]:
        """Where the contents of the regular file `inode` are stored, piece by piece in their order.

        :raise ImageError: it is not a regular file.
        """
        layout = inode.layout
        if not isinstance(layout, FileLayout):
            raise ImageError(f"{self.name}: {inode.kind.label} has no contents to read")
        block_size = self.superblock.block_size
        tail = inode.size % block_size if layout.fragment is not None else 0
        sizes = self._metadata.cursor(*layout.sizes)
        position, left = layout.start, inode.size - tail
        while left:
            stored, compressed = _data_size(sizes.number())
            if stored > block_size:
                raise self._window.damaged(f"a data block of {stored} bytes at {position}")
            length = min(left, block_size)
            yield DataBlock(position, stored, compressed, length, 0, length)
            position += stored
            left -= length
        if layout.fragment is not None and tail:
            yield self._fragment(layout.fragment, layout.fragment_offset, tail)

    def read_block(self, block: DataBlock) -> bytes:
        """The `length` bytes that `block` describes."""
        if block.stored == 0:
            return bytes(block.length)
        method = self.superblock.compressor if block.compressed else None
        position = block.offset - self.offset

        def uncompressed() -> bytes:
            return self._window.uncompressed(position, block.stored, method, block.capacity)

        # A fragment holds the tails of many files, which are often read one after another.
        is_fragment = block.length < block.capacity
        data = self._fragments.get(block.offset, uncompressed) if is_fragment else uncompressed()
        piece = data[block.skip : block.skip + block.length]
        if len(piece) != block.length:
            raise self._window.damaged(f"the data block at byte {block.offset} has only {len(data)} bytes")
        return piece

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """The extended attributes of `inode`, by their full names (`trusted.overlay.opaque`)."""
        table = self.superblock.xattr_table
        if inode.xattr is None or table == fmt.NOT_THERE:
            return {}
        start, count = struct.unpack("<QI", self._window.read(table, 12))
        if inode.xattr >= count:
            raise self._window.damaged(f"there are no extended attributes with index {inode.xattr}")
        where, pairs, _size = struct.unpack("<QII", self._metadata.indexed(table + 16, inode.xattr, 16))
        cursor = self._metadata.cursor(start + (where >> 16), where & 0xFFFF)
        found: dict[bytes, bytes] = {}
        budget = MAX_XATTR_BYTES
        for _ in range(pairs):
            kind, name_size = struct.unpack("<HH", cursor.read(4))
            name = _XATTR_PREFIXES.get(kind & 0xFF, b"unknown.") + cursor.read(name_size)
            size = cursor.number()
            value_at = cursor
            if kind & 0x100:
                # Stored once for many inodes, elsewhere in the same table.
                (where,) = struct.unpack("<Q", cursor.read(8))
                value_at = self._metadata.cursor(start + (where >> 16), where & 0xFFFF)
                size = value_at.number()
            budget -= size + name_size + 8
            if budget < 0:
                raise self._window.damaged(f"an inode with more than {MAX_XATTR_BYTES} bytes of extended attributes")
            found[name] = value_at.read(size)
        return found

    def inode(self, reference: int) -> Inode:
        """The inode at `reference`: the metadata block in the inode table, times 65536, plus the offset in it."""
        block = self.superblock.inode_table + (reference >> 16)
        if block >= self.superblock.directory_table:
            raise self._window.damaged(f"inode reference {reference:#x} is outside of the inode table")
        cursor = self._metadata.cursor(block, reference & 0xFFFF)
        kind, mode, uid, gid, mtime, number = _HEADER.unpack(cursor.read(_HEADER.size))
        extended = kind > fmt.EXTENDED
        try:
            file_kind = fmt.BASIC_KINDS[kind - fmt.EXTENDED if extended else kind]
        except KeyError:
            raise self._window.damaged(f"inode {number} is of unknown type {kind}") from None
        return self._inode_body(
            cursor,
            file_kind,
            extended,
            (number, file_kind.value | mode & 0o7777, self._id(uid), self._id(gid), mtime),
        )

    def _inode_body(
        self, cursor: Cursor, kind: FileKind, extended: bool, head: tuple[int, int, int, int, int]
    ) -> Inode:
        number, mode, uid, gid, mtime = head
        size, xattr = 0, fmt.NO_XATTR
        device: tuple[int, int] | None = None
        target: str | None = None
        layout: FileLayout | DirectoryLayout | None = None
        if kind is FileKind.DIRECTORY:
            if extended:
                nlink, size, block, _parent, _indexes, offset, xattr = cursor.unpack("<IIIIHHI")
            else:
                block, nlink, size, offset, _parent = cursor.unpack("<IIHHI")
            # The listing is three bytes shorter than it says, for the . and .. that are not stored.
            layout = DirectoryLayout(block, offset, max(0, size - 3))
        elif kind is FileKind.FILE:
            if extended:
                start, size, _sparse, nlink, fragment, offset, xattr = cursor.unpack("<QQQIIII")
            else:
                nlink = 1
                start, fragment, offset, size = cursor.unpack("<IIII")
            layout = FileLayout(
                self.offset + start, None if fragment == fmt.NO_FRAGMENT else fragment, offset, cursor.position
            )
        elif kind is FileKind.SYMLINK:
            nlink, size = cursor.unpack("<II")
            if not 0 < size <= MAX_TARGET:
                raise self._window.damaged(f"the symbolic link with inode {number} points to a path of {size} bytes")
            target = _decode(cursor.read(size))
            if extended:
                xattr = cursor.number()
        else:
            nlink = cursor.number()
            if kind in (FileKind.BLOCK_DEVICE, FileKind.CHARACTER_DEVICE):
                device = fmt.device_numbers(cursor.number())
            if extended:
                xattr = cursor.number()
        return Inode(
            number, kind, mode, uid, gid, mtime, nlink, size,
            None if xattr == fmt.NO_XATTR else xattr, device, target, layout,
        )  # fmt: skip

    def root_node(self) -> Inode:
        """For :func:`tree.resolve`."""
        return self.root

    def child(self, node: Inode, name: str) -> Inode | None:
        """The inode called `name` in the directory `node`; None: there is none."""
        if not node.is_dir:
            return None
        entry = self._listing(node).get(name)
        return None if entry is None else self.inode(entry.reference)

    def is_directory(self, node: Inode) -> bool:
        """For :func:`tree.resolve`."""
        return node.is_dir

    def link_target(self, node: Inode) -> str | None:
        """For :func:`tree.resolve`."""
        return node.target

    def _id(self, index: int) -> int:
        if index >= self.superblock.ids:
            raise self._window.damaged(f"there is no owner with index {index}")
        if index not in self._owners:
            (number,) = struct.unpack("<I", self._metadata.indexed(self.superblock.id_table, index, 4))
            self._owners[index] = int(number)
        return self._owners[index]

    def _fragment(self, index: int, skip: int, length: int) -> DataBlock:
        if index >= self.superblock.fragments:
            raise self._window.damaged(f"there is no fragment {index}")
        start, word = struct.unpack("<QI4x", self._metadata.indexed(self.superblock.fragment_table, index, 16))
        stored, compressed = _data_size(word)
        block_size = self.superblock.block_size
        if not 0 < stored <= block_size:
            raise self._window.damaged(f"fragment {index} has {stored} bytes")
        return DataBlock(self.offset + start, stored, compressed, length, skip, block_size)

    def _listing(self, directory: Inode) -> dict[str, DirEntry]:
        layout = directory.layout
        if not isinstance(layout, DirectoryLayout):
            raise ImageError(f"{self.name}: {directory.kind.label} is not a directory")
        # The whole layout is the key: an empty directory has the place of the one that comes next.
        return self._listings.get(layout, lambda: self._read_listing(layout))

    def _read_listing(self, layout: DirectoryLayout) -> dict[str, DirEntry]:
        listing: dict[str, DirEntry] = {}
        for entry in self._entries(layout):
            if listing.setdefault(entry.name, entry) is not entry or len(listing) > MAX_DIRECTORY_ENTRIES:
                raise self._window.damaged(
                    f"{shown(entry.name)} stands twice in a directory, or it has too many entries"
                )
        return listing

    def _entries(self, layout: DirectoryLayout) -> Iterator[DirEntry]:
        cursor = self._metadata.cursor(self.superblock.directory_table + layout.block, layout.offset)
        left = layout.size
        while left > 0:
            count, block, _number = cursor.unpack("<III")
            left -= 12
            if count > 255:
                raise self._window.damaged(f"a directory header for {count + 1} entries")
            for _ in range(count + 1):
                offset, _delta, kind, name_size = cursor.unpack("<HhHH")
                if name_size > 255 or kind not in fmt.BASIC_KINDS:
                    raise self._window.damaged(
                        f"a directory entry of type {kind} with a name of {name_size + 1} bytes"
                    )
                raw = cursor.read(name_size + 1)
                left -= 8 + len(raw)
                if left < 0 or raw in (b".", b"..") or b"/" in raw or b"\x00" in raw:
                    raise self._window.damaged(f"an impossible directory entry, {shown(_decode(raw))}")
                yield DirEntry(_decode(raw), fmt.BASIC_KINDS[kind], block << 16 | offset)


def _data_size(word: int) -> tuple[int, bool]:
    """The stored bytes of a data block and whether it is compressed, from its size word (bit 24: it is not)."""
    return word & 0xFF_FFFF, not word & 0x100_0000


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
