"""The pieces of the squashfs 4.0 format: superblock, inodes, compression.

After the kernel's fs/squashfs/squashfs_fs.h and Documentation/filesystems/squashfs.rst. Numbers are little-endian.
"""

from __future__ import annotations

import lzma
import struct
import threading
import zlib
from dataclasses import dataclass
from enum import IntEnum

import lz4.block
import zstandard

from pytest_osgates.image import lzo
from pytest_osgates.image.tree import FileKind

SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")
MAGIC = 0x73717368
METADATA_SIZE = 8192
"""Every metadata block holds this many bytes, uncompressed; the last one of a table fewer."""
NOT_THERE = 0xFFFF_FFFF_FFFF_FFFF
NO_FRAGMENT = NO_XATTR = 0xFFFF_FFFF
# mksquashfs gives a dictionary of at most one block, 1 MiB, whose decoder fits well in this.
_XZ_MEMORY = 64 << 20


class MalformedSquashfs(ValueError):
    """Bytes that break the format; the caller says where."""


class UnsupportedSquashfs(ValueError):
    """A squashfs that is in order, but which this version cannot read."""


class Compressor(IntEnum):
    """How the blocks are compressed."""

    GZIP = 1
    LZMA = 2
    LZO = 3
    XZ = 4
    LZ4 = 5
    ZSTD = 6


@dataclass(frozen=True, slots=True)
class Superblock:
    """The superblock. Tables are at bytes from the start of the squashfs."""

    inodes: int
    modified: int
    block_size: int
    fragments: int
    compressor: Compressor
    flags: int
    ids: int
    root: int
    bytes_used: int
    id_table: int
    xattr_table: int
    inode_table: int
    directory_table: int
    fragment_table: int
    export_table: int


def parse_superblock(raw: bytes) -> Superblock:
    """:raise MalformedSquashfs: it is none, or contradicts itself.
    :raise UnsupportedSquashfs: another version.
    """
    magic, inodes, modified, block_size, fragments, compressor, block_log, flags, ids, major, minor, *rest = (
        SUPERBLOCK.unpack(raw)
    )
    if magic != MAGIC:
        raise MalformedSquashfs("it does not begin with the magic number of squashfs")
    if (major, minor) != (4, 0):
        raise UnsupportedSquashfs(f"squashfs version {major}.{minor}: only 4.0 is supported")
    if not 12 <= block_log <= 20 or block_size != 1 << block_log:
        raise MalformedSquashfs(f"impossible block size {block_size} (log {block_log})")
    try:
        method = Compressor(compressor)
    except ValueError:
        raise MalformedSquashfs(f"unknown compression {compressor}") from None
    superblock = Superblock(inodes, modified, block_size, fragments, method, flags, ids, *rest)
    end = superblock.bytes_used
    for name, position in (
        ("inode", superblock.inode_table),
        ("directory", superblock.directory_table),
        ("id", superblock.id_table),
    ):
        if not SUPERBLOCK.size <= position < end:
            raise MalformedSquashfs(f"its {name} table is at byte {position} of {end}")
    return superblock


def decompress(method: Compressor, data: bytes, limit: int) -> bytes:
    """`data` uncompressed, which is at most `limit` bytes.

    :raise MalformedSquashfs: it is not what `method` makes, breaks off, or is larger.
    """
    try:
        return _DECOMPRESSORS[method](data, limit)
    except (
        zlib.error,
        lzma.LZMAError,
        zstandard.ZstdError,
        lz4.block.LZ4BlockError,
        lzo.MalformedLzo,
        EOFError,
    ) as exc:
        raise MalformedSquashfs(f"bad {method.name.lower()} data ({exc})") from exc


def _complete(output: bytes, limit: int, ended: bool) -> bytes:
    if len(output) > limit:
        raise MalformedSquashfs(f"a block uncompresses to more than {limit} bytes")
    if not ended:
        raise MalformedSquashfs("a compressed block breaks off")
    return output


def _gzip(data: bytes, limit: int) -> bytes:
    # One byte more than allowed: with exactly `limit` the end of the stream could not be told from a longer one.
    stream = zlib.decompressobj()
    return _complete(stream.decompress(data, limit + 1), limit, stream.eof)


def _xz(data: bytes, limit: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    return _complete(stream.decompress(data, limit + 1), limit, stream.eof)


def _lzma(data: bytes, limit: int) -> bytes:
    # Once it knows the size, the decoder does not need the end marker; not all of them write one.
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_XZ_MEMORY)
    output = stream.decompress(data, limit + 1)
    return _complete(output, limit, stream.eof or len(output) == limit)


def _lz4(data: bytes, limit: int) -> bytes:
    return bytes(lz4.block.decompress(data, uncompressed_size=limit))


class _Reused(threading.local):
    """A decompressor for each thread: making one takes longer than a small block does."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_reused = _Reused()


def _zstd(data: bytes, limit: int) -> bytes:
    # The size that a frame claims is what gets allocated, whatever max_output_size says.
    claimed = zstandard.frame_content_size(data)
    if claimed > limit:
        raise MalformedSquashfs(f"a block claims {claimed} bytes, more than {limit}")
    return _complete(_reused.zstd.decompress(data, max_output_size=limit), limit, ended=True)


_DECOMPRESSORS = {
    Compressor.GZIP: _gzip,
    Compressor.LZMA: _lzma,
    Compressor.LZO: lzo.decompress,
    Compressor.XZ: _xz,
    Compressor.LZ4: _lz4,
    Compressor.ZSTD: _zstd,
}


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Where a file's contents are.

    `start` is its first block in bytes from the start of the source; `fragment` the index of the fragment with its
    tail, None without one, and `fragment_offset` where in that; `sizes` the place (metadata block, offset in it) of
    the list of its blocks' stored sizes.
    """

    start: int
    fragment: int | None
    fragment_offset: int
    sizes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class DirectoryLayout:
    """Where a directory's listing is: a metadata block (from the start of its table), an offset in it, its size."""

    block: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode. `mode` is a full `st_mode`; `mtime` seconds since 1970; `size` bytes.

    `xattr` is the index of its extended attributes, None without any; `device` the major and minor number of a
    device; `target` where a symbolic link points.
    """

    number: int
    kind: FileKind
    mode: int
    uid: int
    gid: int
    mtime: int
    nlink: int
    size: int
    xattr: int | None = None
    device: tuple[int, int] | None = None
    target: str | None = None
    layout: FileLayout | DirectoryLayout | None = None

    @property
    def is_dir(self) -> bool:
        return self.kind is FileKind.DIRECTORY

    @property
    def is_whiteout(self) -> bool:
        """Whether it removes the name from the layers below (Documentation/filesystems/overlayfs.rst)."""
        return self.kind is FileKind.CHARACTER_DEVICE and self.device == (0, 0)


BASIC_KINDS = {
    1: FileKind.DIRECTORY,
    2: FileKind.FILE,
    3: FileKind.SYMLINK,
    4: FileKind.BLOCK_DEVICE,
    5: FileKind.CHARACTER_DEVICE,
    6: FileKind.FIFO,
    7: FileKind.SOCKET,
}
"""The types of inodes; an extended inode has 7 more than the basic one of its kind."""

EXTENDED = 7


def device_numbers(encoded: int) -> tuple[int, int]:
    """Major and minor of a device number as stored (the kernel's new_decode_dev)."""
    return (encoded & 0xFFF00) >> 8, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00)
