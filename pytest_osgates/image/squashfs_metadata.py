"""Reading inside a squashfs: its bytes, its blocks uncompressed, and its metadata as streams."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from pytest_osgates.image import squashfs_format as fmt
from pytest_osgates.image.source import Source, damaged
from pytest_osgates.image.squashfs_format import Compressor
from pytest_osgates.vm.errors import ImageError

_BLOCKS_CACHED = 512

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Cache(Generic[K, T]):
    """What was used last, as much as weighs `capacity` together, but always the last one."""

    def __init__(self, capacity: int, weigh: Callable[[T], int] = lambda _: 1) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._weight = 0
        self._values: OrderedDict[K, T] = OrderedDict()

    def get(self, key: K, make: Callable[[], T]) -> T:
        """The value of `key`, made if it is not at hand."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._weight += self._weigh(value)
        while self._weight > self._capacity and len(self._values) > 1:
            _, dropped = self._values.popitem(last=False)
            self._weight -= self._weigh(dropped)
        return value


class Window:
    """`size` bytes of `source` from `offset`. Positions in it count from there."""

    def __init__(self, source: Source, offset: int, size: int, name: str) -> None:
        self.source = source
        self.offset = offset
        self.size = size
        self.name = name

    def read(self, position: int, size: int) -> bytes:
        """:raise ImageError: they are not all inside."""
        if position < 0 or position + size > self.size:
            raise self.damaged(f"it refers to {size} bytes at {position}, but has only {self.size}")
        return self.source.read_at(self.offset + position, size)

    def uncompressed(self, position: int, stored: int, method: Compressor | None, limit: int) -> bytes:
        """The block of `stored` bytes at `position`, which `method` compressed (None: nothing did).

        :raise ImageError: it is not inside, broken, or has more than `limit` bytes uncompressed.
        """
        data = self.read(position, stored)
        if method is not None:
            try:
                return fmt.decompress(method, data, limit)
            except fmt.MalformedSquashfs as exc:
                raise self.damaged(f"at byte {position}: {exc}") from exc
        if stored > limit:
            raise self.damaged(f"a block of {stored} bytes at {position}, more than {limit}")
        return data

    def damaged(self, what: str) -> ImageError:
        return damaged(self.name, what)


class Metadata:
    """The metadata blocks of a squashfs, uncompressed as they are needed."""

    def __init__(self, window: Window, method: Compressor) -> None:
        self._window = window
        self._method = method
        self._blocks: Cache[int, tuple[bytes, int]] = Cache(_BLOCKS_CACHED)

    def block(self, position: int) -> tuple[bytes, int]:
        """The metadata block at `position`, never empty, and the position of the next one.

        :raise ImageError: there is none.
        """
        return self._blocks.get(position, lambda: self._read(position))

    def cursor(self, block: int, offset: int) -> Cursor:
        """A reader from `offset` in the metadata block at `block` on."""
        return Cursor(self, block, offset)

    def indexed(self, table: int, index: int, size: int) -> bytes:
        """Entry `index`, of `size` bytes, of the table to whose metadata blocks the pointers at `table` lead."""
        per_block = fmt.METADATA_SIZE // size
        (block,) = struct.unpack("<Q", self._window.read(table + 8 * (index // per_block), 8))
        return self.cursor(block, index % per_block * size).read(size)

    def _read(self, position: int) -> tuple[bytes, int]:
        (header,) = struct.unpack("<H", self._window.read(position, 2))
        stored = header & 0x7FFF
        if not 0 < stored <= fmt.METADATA_SIZE:
            raise self._window.damaged(f"a metadata block of {stored} bytes at {position}")
        method = None if header & 0x8000 else self._method
        data = self._window.uncompressed(position + 2, stored, method, fmt.METADATA_SIZE)
        if not data:
            raise self._window.damaged(f"an empty metadata block at {position}")
        return data, position + 2 + stored


class Cursor:
    """Reads on through consecutive metadata blocks."""

    def __init__(self, metadata: Metadata, block: int, offset: int) -> None:
        self._metadata = metadata
        self._block = block
        self._offset = offset

    @property
    def position(self) -> tuple[int, int]:
        """Where it stands, as arguments of :meth:`Metadata.cursor`."""
        return self._block, self._offset

    def read(self, size: int) -> bytes:
        """The next `size` bytes, which the caller has bounded.

        :raise ImageError: there are not so many.
        """
        data, _ = self._metadata.block(self._block)
        if self._offset + size <= len(data):
            self._offset += size
            return data[self._offset - size : self._offset]
        parts = []
        while size:
            # Positions only grow, so this ends at the latest with the squashfs.
            data, following = self._metadata.block(self._block)
            if self._offset >= len(data):
                self._offset -= len(data)
                self._block = following
                continue
            part = data[self._offset : self._offset + size]
            parts.append(part)
            self._offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def unpack(self, layout: str) -> tuple[int, ...]:
        """The next numbers, laid out as `struct` says."""
        return struct.unpack(layout, self.read(struct.calcsize(layout)))

    def number(self) -> int:
        """The next 32-bit number."""
        return int.from_bytes(self.read(4), "little")
