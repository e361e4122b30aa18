"""The bytes of one regular file in an image, by offset or from beginning to end, without more of them in memory than
is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from pytest_osgates.image.source import check_range, damaged, shown
from pytest_osgates.image.squashfs import DataBlock, Squashfs
from pytest_osgates.image.squashfs_format import Inode

# A file up to this size is uncompressed once, however often it is read.
KEPT = 16 << 20
# Of the memory that a hostile image can claim by a file full of holes.
MAX_BLOCKS = 1 << 20


class FileContents:
    """The contents of `inode`, as a :class:`pytest_osgates.image.source.Source`.

    :raise ImageError: it is no regular file, or its image is damaged; likewise from every method.
    """

    def __init__(self, filesystem: Squashfs, inode: Inode, name: str) -> None:
        self.name = f"{filesystem.name}: {shown(name)}"
        self.size = inode.size
        self._filesystem = filesystem
        self._blocks: list[DataBlock] = []
        for block in filesystem.blocks(inode):
            self._blocks.append(block)
            if len(self._blocks) > MAX_BLOCKS:
                raise damaged(self.name, f"it has more than {MAX_BLOCKS} blocks")
        self._length = max((block.length for block in self._blocks), default=1)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._room = max(1, KEPT // self._length)

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`.

        :raise ImageError: they do not all lie inside.
        """
        check_range(self, offset, size)
        parts = []
        while size:
            index, skip = divmod(offset, self._length)
            part = self._block(index)[skip : skip + size]
            if not part:
                raise damaged(self.name, f"there is nothing at byte {offset}")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        """All of it, block by block."""
        for index in range(len(self._blocks)):
            yield self._block(index)

    def _block(self, index: int) -> bytes:
        data = self._kept.get(index)
        if data is None:
            data = self._kept[index] = self._filesystem.read_block(self._blocks[index])
            if len(self._kept) > self._room:
                self._kept.popitem(last=False)
        return data
