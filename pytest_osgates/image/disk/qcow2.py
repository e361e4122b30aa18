"""qcow2, versions 2 and 3, read only: what QEMU's docs/interop/qcow2.txt says.

Refused, each by its name: a backing file or an external data file (the digest of this file would not cover what they
hold, and a name in an image is not to be opened), snapshots (earlier contents, perhaps a memory), encryption by QEMU
itself, extended L2 entries, unknown incompatible features, and images marked as corrupt.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache

import zstandard

from pytest_osgates.image.source import Source, check_range, damaged
from pytest_osgates.vm.errors import ImageError

MAGIC = b"QFI\xfb"
_FLATTEN = "make one file of it: qemu-img convert -O qcow2 OLD NEW"
# Bits of the incompatible features.
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1
# QEMU's own bounds: 2 MiB clusters, an L1 table of 32 MiB.
_MAX_L1 = (32 << 20) // 8
_MAX_SIZE = 1 << 46
_L2_KEPT = 16
_CLUSTERS_KEPT = 16


class Qcow2Source:
    """The disk inside a qcow2 file.

    :raise ImageError: the file is malformed, or of a kind that is refused.
    """

    format = "qcow2"

    def __init__(self, file: Source) -> None:
        self._file = file
        self.name = file.name
        head = file.read_at(0, min(512, file.size)).ljust(512, b"\x00")
        if not head.startswith(MAGIC):
            raise damaged(self.name, "it is not a qcow2 image")
        version, backing, _backing_size, bits, self.size, crypt, l1_size, l1_at, _, _, snapshots = struct.unpack_from(
            ">IQIIQIIQQII", head, 4
        )
        if version not in (2, 3):
            raise ImageError(f"{self.name} is a qcow2 image of version {version}", remedy=_FLATTEN)
        features, compression = 0, 0
        if version == 3:
            (features,) = struct.unpack_from(">Q", head, 72)
            (header_size,) = struct.unpack_from(">I", head, 100)
            compression = head[104] if header_size > 104 else 0
        self._refuse(backing, crypt, features, compression)
        if snapshots:
            raise ImageError(f"{self.name} has {snapshots} snapshots, which are not the disk", remedy=_FLATTEN)
        if not 9 <= bits <= 21 or l1_size > _MAX_L1 or self.size > _MAX_SIZE:
            raise damaged(self.name, f"clusters of 2^{bits} bytes, {l1_size} tables, {self.size} bytes in all")
        self._bits = bits
        self._cluster = 1 << bits
        self._per_table = self._cluster // 8
        needed = -(-self.size // (self._cluster * self._per_table))
        if l1_size < needed:
            raise damaged(self.name, f"{l1_size} tables where its size needs {needed}")
        self._zstd = compression == 1
        self._l1 = struct.unpack(f">{needed}Q", self._read(l1_at, needed * 8))
        tables = [entry & _OFFSET for entry in self._l1 if entry & _OFFSET]
        if len(set(tables)) != len(tables):
            raise damaged(self.name, "two places of the disk share one table")
        self._table = lru_cache(maxsize=_L2_KEPT)(self._read_table)
        self._uncompressed = lru_cache(maxsize=_CLUSTERS_KEPT)(self._uncompress)

    def _refuse(self, backing: int, crypt: int, features: int, compression: int) -> None:
        if backing:
            raise ImageError(f"{self.name} refers to a backing file", remedy=_FLATTEN)
        if crypt:
            raise ImageError(f"{self.name} is encrypted by QEMU itself", remedy=_FLATTEN)
        if features & _CORRUPT:
            raise damaged(self.name, "QEMU has marked it as corrupt")
        if features & _DATA_FILE:
            raise ImageError(f"{self.name} keeps its data in another file", remedy=_FLATTEN)
        if features & ~(_DIRTY | _COMPRESSION):
            what = "extended L2 entries" if features & _EXTENDED_L2 else f"unknown features ({features:#x})"
            raise ImageError(f"{self.name} has {what}", remedy=_FLATTEN)
        if compression > 1:
            raise ImageError(f"{self.name}: unknown compression {compression}", remedy=_FLATTEN)

    def _read(self, at: int, size: int) -> bytes:
        check_range(self._file, at, size)
        return self._file.read_at(at, size)

    def _read_table(self, number: int) -> bytes:
        """The L2 table behind one entry of the L1 table; empty: there is none."""
        at = self._l1[number] & _OFFSET
        if at == 0:
            return b""
        if at % self._cluster:
            raise damaged(self.name, f"a table lies at byte {at}, not at the start of a cluster")
        return self._read(at, self._cluster)

    def _entry(self, cluster: int) -> int:
        """The L2 entry of a cluster of the disk; 0: it was never written."""
        table = self._table(cluster // self._per_table)
        return int.from_bytes(table[(at := cluster % self._per_table * 8) : at + 8], "big") if table else 0

    def _is_zero(self, entry: int) -> bool:
        return not entry & _COMPRESSED and (bool(entry & _ZERO) or entry & _OFFSET == 0)

    def _uncompress(self, entry: int) -> bytes:
        shift = 62 - (self._bits - 8)
        at = entry & ((1 << shift) - 1)
        sectors = (entry >> shift) & ((1 << (self._bits - 8)) - 1)
        # Up to the end of the last sector; the stream itself says where it ends.
        raw = self._read(at, min((sectors + 1) * 512 - at % 512, self._file.size - at) if at < self._file.size else 1)
        try:
            if self._zstd:
                with zstandard.ZstdDecompressor(max_window_size=1 << 23).stream_reader(raw) as stream:
                    data = stream.read(self._cluster)
            else:
                data = zlib.decompressobj(-12).decompress(raw, self._cluster)
        except (zlib.error, zstandard.ZstdError, MemoryError) as error:
            raise damaged(self.name, f"the compressed cluster at byte {at}: {error}") from error
        if len(data) != self._cluster:
            raise damaged(self.name, f"the compressed cluster at byte {at} has {len(data)} bytes")
        return data

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of the disk.

        :raise ImageError: they do not all lie inside, or the file is malformed.
        """
        check_range(self, offset, size)
        parts = []
        while size:
            inside = offset % self._cluster
            length = min(size, self._cluster - inside)
            entry = self._entry(offset // self._cluster)
            if self._is_zero(entry):
                parts.append(bytes(length))
            elif entry & _COMPRESSED:
                parts.append(self._uncompressed(entry & (_COMPRESSED - 1))[inside : inside + length])
            else:
                at = entry & _OFFSET
                if at % self._cluster:
                    raise damaged(self.name, f"a cluster lies at byte {at}, not at the start of one")
                # The last cluster of the file need not be there to its end.
                there = max(0, min(length, self._file.size - at - inside))
                if not there:
                    raise damaged(self.name, f"a cluster lies at byte {at}, beyond its end")
                parts.append(self._file.read_at(at + inside, there) + bytes(length - there))
            offset += length
            size -= length
        return b"".join(parts)

    def written(self, start: int, size: int) -> Iterator[tuple[int, int]]:
        """Ranges (offset, bytes) outside of which there are only zeros.

        :raise ImageError: the file is malformed.
        """
        end = min(start + size, self.size)
        begun = None
        while start < end:
            cluster = start // self._cluster
            number = cluster // self._per_table
            if not self._table(number):
                last, there = (number + 1) * self._per_table * self._cluster, False
            else:
                last, there = min((cluster + 1) * self._cluster, end), not self._is_zero(self._entry(cluster))
            if there and begun is None:
                begun = start
            elif not there and begun is not None:
                yield begun, start - begun
                begun = None
            start = last
        if begun is not None:
            yield begun, end - begun
