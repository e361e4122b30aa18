"""A root file system in memory, read as one out of an ISO is: for many small images without a tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pytest_osgates.image.layers import LiveSystem
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.source import damaged
from pytest_osgates.image.squashfs import DataBlock, DirEntry, Squashfs
from pytest_osgates.image.squashfs_format import Inode
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError

BLOCK = 4096


@dataclass(frozen=True)
class File:
    """A regular file. `link`: it is another name of the file at that path, which comes before it."""

    data: bytes = b""
    mode: int = 0o644
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    link: str = ""
    broken: bool = False


@dataclass(frozen=True)
class Link:
    target: str


@dataclass(frozen=True)
class Directory:
    opaque: bool = False


class Gone:
    """A whiteout."""


Entry = File | Link | Directory | Gone | bytes


def program(data: bytes, mode: int = 0o755, **more: Any) -> File:
    return File(data, mode, **more)


class MemoryTree:
    """What :class:`RootView` and those who read files ask of a :class:`Squashfs`."""

    def __init__(self, files: Mapping[str, Entry], offset: int = 0) -> None:
        self.offset = offset
        self.name = f"layer {offset}"
        self._inodes: dict[int, Inode] = {}
        self._entries: dict[int, Entry] = {}
        self._listings: dict[int, dict[str, int]] = {}
        self._numbers: dict[str, int] = {}
        self._data: dict[int, bytes] = {}
        self.root = self._inodes[self._add("", Directory())]
        for path, entry in files.items():
            self._put(path.strip("/"), entry)

    def _put(self, path: str, entry: Entry) -> None:
        parent, _, name = path.rpartition("/")
        if parent not in self._numbers:
            self._put(parent, Directory())
        if isinstance(entry, File) and entry.link:
            number = self._numbers[entry.link.strip("/")]
            self._numbers[path] = number
        elif path in self._numbers and isinstance(entry, Directory):
            return
        else:
            number = self._add(path, entry)
        self._listings[self._numbers[parent]][name] = number

    def _add(self, path: str, entry: Entry) -> int:
        number = len(self._inodes) + 1
        if isinstance(entry, bytes):
            entry = File(entry)
        self._numbers[path], self._entries[number] = number, entry
        kind, mode, size, target, device = FileKind.DIRECTORY, 0o755, 0, None, None
        if isinstance(entry, File):
            kind, mode, size = FileKind.FILE, entry.mode, len(entry.data)
        elif isinstance(entry, Link):
            kind, mode, size, target = FileKind.SYMLINK, 0o777, len(entry.target), entry.target
        elif isinstance(entry, Gone):
            kind, device = FileKind.CHARACTER_DEVICE, (0, 0)
        else:
            self._listings[number] = {}
        has_xattr = bool(isinstance(entry, File) and entry.xattrs)
        self._inodes[number] = Inode(
            *(number, kind, kind.value | mode, 0, 0, 0, 1, size), number if has_xattr else None, device, target
        )
        return number

    def child(self, node: Inode, name: str) -> Inode | None:
        number = self._listings.get(node.number, {}).get(name)
        return None if number is None else self._inodes[number]

    def list_dir(self, directory: Inode) -> tuple[DirEntry, ...]:
        listing = sorted(self._listings[directory.number].items())
        return tuple(DirEntry(name, self._inodes[number].kind, number) for name, number in listing)

    def inode(self, reference: int) -> Inode:
        return self._inodes[reference]

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        entry = self._entries[inode.number]
        if isinstance(entry, Directory):
            return {b"trusted.overlay.opaque": b"y"} if entry.opaque else {}
        return dict(entry.xattrs) if isinstance(entry, File) else {}

    def blocks(self, inode: Inode) -> Iterator[DataBlock]:
        for start in range(0, inode.size, BLOCK):
            size = min(BLOCK, inode.size - start)
            yield DataBlock(inode.number << 32 | start, size, False, size, 0, size)

    def read_block(self, block: DataBlock) -> bytes:
        entry = self._entries[block.offset >> 32]
        assert isinstance(entry, File)
        if entry.broken:
            raise damaged(self.name, "a broken block")
        start = block.offset & 0xFFFF_FFFF
        return entry.data[start : start + block.length]

    def read_file(self, inode: Inode, limit: int) -> bytes:
        if inode.size > limit:
            raise ImageError(f"{self.name}: a file of {inode.size} bytes, more than the {limit} expected")
        return b"".join(self.read_block(block) for block in self.blocks(inode))


def root(*layers: Mapping[str, Entry]) -> RootView:
    """The lowest layer first."""
    trees = tuple(MemoryTree(files, 1 << 20 << number) for number, files in enumerate(layers))
    return RootView(LiveSystem.LIVE_BOOT, (), cast("tuple[Squashfs, ...]", trees))
