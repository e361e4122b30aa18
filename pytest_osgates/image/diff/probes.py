"""One byte of each kind of layer, to be flipped: whether the comparison finds it shows that it can."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.image.diff import fat
from pytest_osgates.image.diff.compare import compare_sources
from pytest_osgates.image.diff.digests import CHUNK, CleanMap
from pytest_osgates.image.diff.found import Layer
from pytest_osgates.image.diff.iso import ImageContent
from pytest_osgates.image.diff.iso_tree import descriptors, read_tree
from pytest_osgates.image.diff.squashfs_tables import Tables
from pytest_osgates.image.diff.system import read_system_area
from pytest_osgates.image.iso9660 import SECTOR
from pytest_osgates.image.source import Source, damaged


@dataclass(frozen=True)
class Flipped:
    """A source with one byte of another value."""

    source: Source
    at: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def size(self) -> int:
        return self.source.size

    def read_at(self, offset: int, size: int) -> bytes:
        """As the source's own."""
        data = self.source.read_at(offset, size)
        if not offset <= self.at < offset + size:
            return data
        index = self.at - offset
        return data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :]


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of flipping the byte at `offset`, which belongs to `layer`."""

    layer: str
    offset: int
    found: bool
    said: str


def points(source: Source) -> dict[str, int]:
    """A byte for each kind of layer that the image has: the layer's name, and where.

    :raise ImageError: it is no ISO, or damaged.
    """
    found: dict[str, int] = {}
    for layer, offset in _points(source):
        if 0 <= offset < source.size:
            found.setdefault(layer, offset)
    if "volume descriptor" not in found:
        raise damaged(source.name, "it has no primary volume descriptor")
    return found


def _points(source: Source) -> Iterator[tuple[str, int]]:
    area = read_system_area(source)
    catalog = -1
    if any(area.raw):
        yield "system area", next(index for index, byte in enumerate(area.raw) if byte)
    if area.raw[510:512] == b"\x55\xaa":
        yield "MBR", 440
    for gpt in area.gpts:
        yield gpt.name, gpt.header_at + 56
    for descriptor in descriptors(source):
        if descriptor.raw[0] == 0:
            catalog = struct.unpack_from("<I", descriptor.raw, 71)[0] * SECTOR
            yield "El Torito", catalog + 32
        if not descriptor.has_tree or descriptor.base:
            continue
        tree = read_tree(source, descriptor)
        if descriptor.joliet:
            yield "Joliet descriptor", descriptor.offset + 813
        else:
            yield "volume descriptor", descriptor.offset + 813
            (table,) = struct.unpack_from("<I", descriptor.raw, 140)
            yield "path table", table * descriptor.block_size + 6
        for node in tree.nodes.values():
            if node.path == "/":
                continue
            yield "Joliet" if descriptor.joliet else "directory record", node.records[0].offset + 18 + 5
            for use in node.records[0].uses:
                if use.signature == b"TF":
                    yield "Rock Ridge", use.offset + 5
            if not node.is_dir and node.size and not descriptor.joliet and node.extents[0].offset != catalog:
                content = ImageContent(source, tuple(node.extents))
                yield from _file(source, content)


def _file(source: Source, content: ImageContent) -> Iterator[tuple[str, int]]:
    whole = content.contiguous
    if whole is None:
        return
    head = content.read(0, 512)
    if head.startswith(b"hsqs"):
        yield from _squashfs(source, whole.offset, whole.size)
    elif fat.is_fat(head):
        yield "FAT", whole.offset + 39
        entry = next((e for e in fat.read_fat(content).entries.values() if e.runs and not e.is_dir and e.size), None)
        if entry is not None:
            yield "FAT file", whole.offset + entry.runs[0][0]
    else:
        yield "file contents", whole.offset


def _squashfs(source: Source, offset: int, size: int) -> Iterator[tuple[str, int]]:
    tables = Tables(source, offset, size, source.name)
    yield "squashfs superblock", offset + 8
    yield "squashfs inode table", offset + tables.inodes.start + 2 + (tables.inodes.end - tables.inodes.start) // 2
    yield "squashfs directory table", offset + tables.directories.start + 2
    yield "squashfs id table", offset + tables.superblock.id_table - 1
    if tables.fragments:
        yield "squashfs fragment", offset + tables.fragments[0][0] + 16
        yield "squashfs fragment table", offset + tables.superblock.fragment_table - 1
    if tables.xattr_pairs.end:
        yield "squashfs xattr table", offset + tables.xattr_pairs.start + 2
    yield "squashfs data", offset + 256


def try_each(source: Source) -> Iterator[Tried]:
    """Flip one byte of each layer, compare with the image as it is, and say whether that was found and named.

    :raise ImageError: the image is no ISO, or damaged.
    """
    chunks = -(-source.size // CHUNK)
    for layer, offset in points(source).items():
        dirty = bytearray(chunks)
        dirty[offset // CHUNK] = 1
        findings = compare_sources(source, Flipped(source, offset), CleanMap(bytes(dirty)))
        named = [d for d in findings.differences if d.layer is not Layer.UNEXPLAINED]
        causes = [d for d in named if not d.follows] or named
        said = ""
        if causes:
            first = causes[0]
            said = f"{first.container}{'!' if first.container else ''}{first.path}: {first.what}"
        yield Tried(layer, offset, bool(causes) and not findings.unexplained, said)
