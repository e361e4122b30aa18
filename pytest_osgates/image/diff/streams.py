"""Compressed data read as a stream, bounded: what an initrd, or a `.gz` in the image, holds."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Iterator
from enum import Enum
from typing import IO, cast

import lz4.block
import lz4.frame
import zstandard

from pytest_osgates.image.diff.ranges import Content
from pytest_osgates.vm.errors import ImageError

_READ = 256 << 10
_MEMORY = 160 << 20
# Of the compressed size; text of one letter reaches a thousand.
_RATIO = 1100
_SPARE = 64 << 20
_LZ4_BLOCK = 8 << 20


class Method(Enum):
    """How a stream is compressed, by its first bytes."""

    GZIP = b"\x1f\x8b"
    XZ = b"\xfd7zXZ\x00"
    ZSTD = b"\x28\xb5\x2f\xfd"
    LZ4_LEGACY = b"\x02\x21\x4c\x18"
    LZ4 = b"\x04\x22\x4d\x18"
    BZIP2 = b"BZh"
    LZMA = b"\x5d\x00\x00"

    @property
    def label(self) -> str:
        return self.name.lower().replace("_legacy", "")


def method_of(head: bytes) -> Method | None:
    """How something that begins with `head` is compressed; None: it is not."""
    return next((method for method in Method if head.startswith(method.value)), None)


_FAILURES = (
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    lz4.block.LZ4BlockError,
)


class Stream:
    """`content` uncompressed, read from its beginning on."""

    def __init__(self, content: Content, method: Method) -> None:
        self._limit = content.size * _RATIO + _SPARE
        self._chunks = _chunks(content, method)
        self._left = b""
        self.position = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end.

        :raise ImageError: the stream is damaged, or far larger than can be.
        """
        parts = [self._left[:size]]
        self._left = self._left[size:]
        have = len(parts[0])
        while have < size:
            try:
                chunk = next(self._chunks, b"")
            except _FAILURES as error:
                raise ImageError(
                    f"a compressed stream breaks off after {self.position + have} bytes: {error}"
                ) from error
            if not chunk:
                break
            part = chunk[: size - have]
            parts.append(part)
            have += len(part)
            self._left = chunk[len(part) :]
        self.position += have
        if self.position > self._limit:
            raise ImageError(f"a compressed stream has more than {self._limit} bytes")
        return b"".join(parts)


def stored_size(content: Content, method: Method) -> int:
    """How many bytes of `content`, from its beginning, are the compressed stream: something else may follow.

    :raise ImageError: it is damaged, or breaks off.
    """
    try:
        match method:
            case Method.ZSTD:
                return _zstd_size(content)
            case Method.LZ4_LEGACY:
                return _lz4_legacy_size(content)
            case Method.LZ4:
                return _consumed(content, lz4.frame.LZ4FrameDecompressor())
            case Method.BZIP2:
                return _consumed(content, bz2.BZ2Decompressor())
            case Method.XZ:
                return _consumed(content, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))
            case Method.LZMA:
                return _consumed(content, lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY))
            case Method.GZIP:
                return _zlib_consumed(content)
    except _FAILURES as error:
        raise ImageError(f"a compressed stream breaks off: {error}") from error


def _consumed(
    content: Content, stream: lzma.LZMADecompressor | bz2.BZ2Decompressor | lz4.frame.LZ4FrameDecompressor
) -> int:
    done, limit = 0, content.size * _RATIO + _SPARE
    for number, piece in enumerate(_pieces(content)):
        data = stream.decompress(piece, _READ)
        while not stream.eof and not stream.needs_input:
            done += len(data)
            if done > limit:
                raise EOFError(f"it has more than {limit} bytes")
            data = stream.decompress(b"", _READ)
        if stream.eof:
            return number * _READ + len(piece) - len(stream.unused_data or b"")
    raise EOFError("it is cut short")


def _zlib_consumed(content: Content) -> int:
    """Of the first member alone; the kernel takes a second one for another archive."""
    stream = zlib.decompressobj(31)
    done, limit = 0, content.size * _RATIO + _SPARE
    for number, piece in enumerate(_pieces(content)):
        left = piece
        while left and not stream.eof:
            done += len(stream.decompress(left, _READ))
            if done > limit:
                raise EOFError(f"it has more than {limit} bytes")
            left = stream.unconsumed_tail
        if stream.eof:
            return number * _READ + len(piece) - len(stream.unused_data)
    raise EOFError("it is cut short")


def _zstd_size(content: Content) -> int:
    """RFC 8878, 3.1.1: a header, blocks each with its size, a checksum. Nothing has to be uncompressed."""
    head = content.read(0, 5)
    if len(head) < 5:
        raise EOFError("it is cut short")
    flags = head[4]
    single = flags >> 5 & 1
    position = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
    while True:
        raw = content.read(position, 3)
        if len(raw) < 3:
            raise EOFError("it is cut short")
        block = int.from_bytes(raw, "little")
        kind, size = block >> 1 & 3, block >> 3
        # A block of one repeated byte stores that alone.
        position += 3 + (1 if kind == 1 else size)
        if kind == 3 or position > content.size:
            raise EOFError("a block of no known kind, or beyond the end")
        if block & 1:
            return position + 4 * (flags >> 2 & 1)


def _lz4_legacy_size(content: Content) -> int:
    position = 4
    while position + 4 <= content.size:
        size = int.from_bytes(content.read(position, 4), "little")
        if size == 0x184C2102:
            position += 4
        elif 0 < size <= 2 * _LZ4_BLOCK:
            position += 4 + size
        else:
            break
    return min(position, content.size)


def _chunks(content: Content, method: Method) -> Iterator[bytes]:
    """Pieces of bounded size, none of them empty."""
    match method:
        case Method.GZIP:
            yield from _zlib(content)
        case Method.ZSTD:
            yield from _zstd(content)
        case Method.LZ4_LEGACY:
            yield from _lz4_legacy(content)
        case Method.LZ4:
            yield from _fed(content, lz4.frame.LZ4FrameDecompressor())
        case Method.BZIP2:
            yield from _fed(content, bz2.BZ2Decompressor())
        case Method.XZ:
            yield from _fed(content, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))
        case Method.LZMA:
            yield from _fed(content, lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY))


def _pieces(content: Content) -> Iterator[bytes]:
    for offset in range(0, content.size, _READ):
        yield content.read(offset, _READ)


def _zlib(content: Content) -> Iterator[bytes]:
    stream = zlib.decompressobj(31)
    for piece in _pieces(content):
        left = piece
        while left:
            data = stream.decompress(left, _READ)
            if data:
                yield data
            left = stream.unconsumed_tail
            if stream.eof:
                if not stream.unused_data.startswith(b"\x1f\x8b"):
                    return
                # Members one after another are one file (RFC 1952, 2.2).
                left = stream.unused_data
                stream = zlib.decompressobj(31)
    if not stream.eof:
        raise EOFError("it is cut short")


def _fed(
    content: Content, stream: lzma.LZMADecompressor | bz2.BZ2Decompressor | lz4.frame.LZ4FrameDecompressor
) -> Iterator[bytes]:
    for piece in _pieces(content):
        data = stream.decompress(piece, _READ)
        while True:
            if data:
                yield data
            if stream.eof:
                return
            if stream.needs_input:
                break
            data = stream.decompress(b"", _READ)
    raise EOFError("it is cut short")


class _File(io.RawIOBase):
    """A content as the file that zstandard wants."""

    def __init__(self, content: Content) -> None:
        super().__init__()
        self._content = content
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        data = self._content.read(self._position, size)
        self._position += len(data)
        return data


def _zstd(content: Content) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor(max_window_size=128 << 20).stream_reader(cast("IO[bytes]", _File(content)))
    while data := reader.read(_READ):
        yield data


def _lz4_legacy(content: Content) -> Iterator[bytes]:
    """The kernel's own form: blocks of 8 MiB, each with its compressed size before it."""
    position = 4
    while position + 4 <= content.size:
        size = int.from_bytes(content.read(position, 4), "little")
        if size == 0x184C2102:
            position += 4
            continue
        if not 0 < size <= 2 * _LZ4_BLOCK:
            return
        data = lz4.block.decompress(content.read(position + 4, size), uncompressed_size=_LZ4_BLOCK)
        position += 4 + size
        yield data
