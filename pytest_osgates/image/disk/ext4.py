"""ext2, ext3 and ext4, as far as to list their regular files and to read them: where many put kernels and initrds.

After the kernel's Documentation/filesystems/ext4 (super.rst, group_descr.rst, inodes.rst, ifork.rst, directory.rst).
Refused, each by its name: a journal that has to be replayed, and features under which files lie elsewhere.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.image.diff.found import quoted
from pytest_osgates.image.diff.ranges import Content
from pytest_osgates.vm.errors import ImageError

_ROOT = 2
_MAX_FILES = 200_000
_MAX_DIRECTORY = 64 << 20
_MAX_RUNS = 200_000
_MAX_DEPTH = 5
_MAX_NODES = 200_000
_MAX_PATH = 4096
# Incompatible features: what is read here, and names for what is not.
_READ = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x2000 | 0x4000
_NAMES = {
    0x1: "compression",
    0x4: "a journal that has to be replayed",
    0x8: "a journal device",
    0x10: "meta block groups",
    0x400: "values in inodes",
    0x8000: "inline data",
    0x10000: "encryption",
    0x20000: "case folding",
}
_EXTENTS = 0x80000
_FOREIGN_INODE = 0x4 | 0x800 | 0x10000000


@dataclass(frozen=True, slots=True)
class _Inode:
    number: int
    mode: int
    size: int
    flags: int
    block: bytes


@dataclass(frozen=True, slots=True)
class ExtFile:
    """A regular file. `runs`: (offset in the file, bytes, offset in the file system), in their order; what lies
    between them are zeros."""

    path: str
    size: int
    runs: tuple[tuple[int, int, int], ...]
    content: Content

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end."""
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        made = bytearray(end - offset)
        for start, length, at in self.runs:
            first, last = max(start, offset), min(start + length, end)
            if first < last:
                data = self.content.read(at + first - start, last - first)
                if len(data) != last - first:
                    raise ImageError(f"{quoted(self.path.encode())} reaches beyond the end of the file system")
                made[first - offset : last - offset] = data
        return bytes(made)


class Ext4:
    """A file system over `content`.

    :raise ImageError: it is malformed, or has features that are not read here.
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        raw = content.read(1024, 1024)
        if len(raw) < 1024 or raw[56:58] != b"\x53\xef":
            raise ImageError("no superblock of ext4")
        self._inodes, _, _, _, first, log = struct.unpack_from("<IIIIxxxxII", raw)
        (self._per_group,) = struct.unpack_from("<I", raw, 40)
        (revision,) = struct.unpack_from("<I", raw, 76)
        (self._inode_size,) = struct.unpack_from("<H", raw, 88) if revision else (128,)
        (features,) = struct.unpack_from("<I", raw, 96)
        (descriptor,) = struct.unpack_from("<H", raw, 254)
        if foreign := features & ~_READ:
            names = [name for bit, name in _NAMES.items() if foreign & bit] or [f"unknown features ({foreign:#x})"]
            raise ImageError(f"an ext4 file system with {', '.join(names)}")
        if log > 4 or not 128 <= self._inode_size <= 1024 << log or not 0 < self._per_group <= 1 << 20:
            raise ImageError("the sizes of an ext4 file system contradict one another")
        self._block = 1024 << log
        self._wide = bool(features & 0x80)
        self._descriptor = descriptor if self._wide else 32
        if self._wide and not 64 <= descriptor <= 1024:
            raise ImageError(f"group descriptors of {descriptor} bytes")
        self._table = (first + 1) * self._block
        (blocks,) = struct.unpack_from("<I", raw, 4)
        if self._wide:
            blocks |= struct.unpack_from("<I", raw, 0x150)[0] << 32
        # Where the file system says that it ends, in bytes.
        self.end = blocks * self._block
        self._blocks = -(-content.size // self._block)
        # Nodes of trees that may still be read, over all files: one block can be a node of many.
        self._left = _MAX_NODES

    def _inode(self, number: int) -> _Inode:
        if not 0 < number <= self._inodes:
            raise ImageError(f"inode {number} of {self._inodes}")
        group, index = divmod(number - 1, self._per_group)
        raw = self._content.read(self._table + group * self._descriptor, self._descriptor)
        if len(raw) != self._descriptor:
            raise ImageError(f"no descriptor of group {group}")
        (table,) = struct.unpack_from("<I", raw, 8)
        if self._wide:
            table |= struct.unpack_from("<I", raw, 40)[0] << 32
        at = table * self._block + index * self._inode_size
        raw = self._content.read(at, self._inode_size) if at < self._content.size else b""
        if len(raw) != self._inode_size:
            raise ImageError(f"inode {number} lies beyond the end")
        mode, _, low = struct.unpack_from("<HHI", raw)
        (flags,) = struct.unpack_from("<I", raw, 32)
        (high,) = struct.unpack_from("<I", raw, 108)
        if flags & _FOREIGN_INODE:
            raise ImageError(f"inode {number} is compressed, encrypted, or holds its data itself")
        return _Inode(number, mode, low | high << 32, flags, raw[40:100])

    def _run(self, inode: _Inode, first: int, count: int, at: int) -> tuple[int, int, int]:
        if at + count > self._blocks or first > 1 << 32:
            raise ImageError(f"inode {inode.number} refers to block {at + count} of {self._blocks}")
        return first * self._block, count * self._block, at * self._block

    def _runs(self, inode: _Inode) -> tuple[tuple[int, int, int], ...]:
        walk = self._extents(inode, inode.block, None) if inode.flags & _EXTENTS else self._mapped(inode)
        found: list[tuple[int, int, int]] = []
        for run in walk:
            if found and run[0] < found[-1][0] + found[-1][1]:
                raise ImageError(f"the extents of inode {inode.number} overlap, or are out of order")
            found.append(run)
            if len(found) > _MAX_RUNS:
                raise ImageError(f"inode {inode.number} has more than {_MAX_RUNS} runs")
        return tuple(found)

    def _extents(self, inode: _Inode, raw: bytes, wanted: int | None) -> Iterator[tuple[int, int, int]]:
        """`wanted`: how deep the tree below here has to be, which bounds it; None at its root."""
        magic, entries, _, depth = struct.unpack_from("<HHHH", raw)
        if magic != 0xF30A or depth > _MAX_DEPTH or wanted not in (None, depth) or 12 + entries * 12 > len(raw):
            raise ImageError(f"the extents of inode {inode.number} are damaged")
        for number in range(entries):
            at = 12 + number * 12
            if depth:
                _, low, high = struct.unpack_from("<IIH", raw, at)
                block = low | high << 32
                if block >= self._blocks:
                    raise ImageError(f"the extents of inode {inode.number} lie beyond the end")
                self._spend(inode)
                node = self._content.read(block * self._block, self._block)
                if len(node) != self._block:
                    raise ImageError(f"the extents of inode {inode.number} break off")
                yield from self._extents(inode, node, depth - 1)
                continue
            first, count, high, low = struct.unpack_from("<IHHI", raw, at)
            # More than 32768 blocks: reserved and never written, so that they read as zeros.
            if 0 < count <= 32768:
                yield self._run(inode, first, count, low | high << 32)

    def _mapped(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        """Block maps, as ext2 and ext3 have them: twelve blocks, then one, two and three levels of indirection."""
        last = -(-inode.size // self._block)
        if last > _MAX_RUNS * 64:
            raise ImageError(f"inode {inode.number} has {inode.size} bytes in single blocks")
        per_block = self._block // 4
        first = 0
        for number, block in enumerate(struct.unpack("<15I", inode.block)):
            level = max(0, number - 11)
            if first < last and block:
                yield from self._level(inode, block, level, first, last)
            first += per_block**level

    def _level(self, inode: _Inode, block: int, level: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        if level == 0:
            yield self._run(inode, first, 1, block)
            return
        per_block = self._block // 4
        if block >= self._blocks:
            raise ImageError(f"the blocks of inode {inode.number} lie beyond the end")
        self._spend(inode)
        raw = self._content.read(block * self._block, self._block).ljust(self._block, b"\x00")
        for below in struct.unpack(f"<{per_block}I", raw):
            if first >= last:
                return
            if below:
                yield from self._level(inode, below, level - 1, first, last)
            first += per_block ** (level - 1)

    def _spend(self, inode: _Inode) -> None:
        self._left -= 1
        if self._left < 0:
            raise ImageError(f"more than {_MAX_NODES} nodes, at inode {inode.number}")

    def _file(self, path: str, inode: _Inode) -> ExtFile:
        return ExtFile(path, inode.size, self._runs(inode), self._content)

    def files(self) -> Iterator[ExtFile]:
        """Every regular file, by every name that it has.

        :raise ImageError: a structure is damaged, or there are too many.
        """
        pending = [("", _ROOT)]
        seen: set[int] = set()
        count = 0
        while pending:
            parent, number = pending.pop()
            if number in seen:
                raise ImageError(f"the directory {quoted(parent.encode())} is reached twice")
            seen.add(number)
            for name, child in self._entries(parent, number):
                path = f"{parent}/{name}"
                count += 1
                if count > _MAX_FILES or len(path) > _MAX_PATH:
                    raise ImageError(f"more than {_MAX_FILES} files, or a path that is too long")
                inode = self._inode(child)
                if stat.S_ISDIR(inode.mode):
                    pending.append((path, child))
                elif stat.S_ISREG(inode.mode):
                    yield self._file(path, inode)

    def _entries(self, path: str, number: int) -> Iterator[tuple[str, int]]:
        """Names and inodes. The inner nodes of hashed directories look like entries without a name."""
        inode = self._inode(number)
        if not stat.S_ISDIR(inode.mode) or inode.size > _MAX_DIRECTORY or inode.size % self._block:
            raise ImageError(f"{quoted(path.encode()) or '/'} is no directory, or a very large one")
        directory = self._file(path, inode)
        for start in range(0, inode.size, self._block):
            raw = directory.read(start, self._block)
            at = 0
            while at < len(raw):
                child, length, size = struct.unpack_from("<IHB", raw, at)
                if length < 8 or length % 4 or at + length > len(raw) or size + 8 > length:
                    raise ImageError(f"the directory {quoted(path.encode()) or '/'} is damaged")
                name = raw[at + 8 : at + 8 + size]
                if child and name not in (b"", b".", b".."):
                    yield quoted(name).replace("/", "_"), child
                at += length
