"""Stored data of two squashfs trees: compared as they are stored, uncompressed only where that differs.

Blocks and fragments are taken in their order on the disk. What follows one another in both images is one run, read
and
compared in large pieces, or not at all where :class:`~pytest_osgates.image.diff.digests.CleanMap` knows it to be
equal. Packing comes into step again after a difference, so that most runs match although their places differ.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pytest_osgates.image.diff.digests import CleanMap
from pytest_osgates.image.diff.found import Extents
from pytest_osgates.image.diff.ranges import Content, Ranges, differing_ranges
from pytest_osgates.image.diff.squashfs_tables import Node, Tables, parse_node
from pytest_osgates.image.diff.squashfs_walk import Blocks, Tail, Walk
from pytest_osgates.image.source import damaged
from pytest_osgates.vm.errors import ImageError

_PIECE = 1 << 20
_RUN = 4 << 20
_SEGMENT = 48
_STORED = 0xFF_FFFF
# How often over an image's own size its data may be read or uncompressed before the rest is left as it is: inodes
# that
# share blocks with thousands of others are an attack on our time.
_READ_FACTOR = 16
_UNCOMPRESS_FACTOR = 40


class SquashfsContent:
    """The contents of a regular file, read as they are asked for."""

    def __init__(self, tables: Tables, node: Node) -> None:
        self._tables = tables
        self._node = node
        self.size = node.size
        words = words_of(node.blocks)
        self._words = words
        positions = array("Q", bytes(8 * (len(words) + 1)))
        position = node.start
        for index, word in enumerate(words):
            positions[index] = position
            position += word & _STORED
        self._positions = positions
        self._last: tuple[int, bytes] = (-1, b"")

    def read(self, offset: int, size: int) -> bytes:
        """:raise ImageError: a block is damaged."""
        end = min(self.size, offset + size)
        log = self._tables.block_log
        parts = []
        while offset < end:
            number = offset >> log
            if self._last[0] != number:
                self._last = (number, self._block(number))
            within = offset - (number << log)
            part = self._last[1][within : within + end - offset]
            if not part:
                raise damaged(self._tables.name, f"block {number} of inode {self._node.number} is too short")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        node, tables = self._node, self._tables
        block_size = tables.superblock.block_size
        if number < len(self._words):
            length = min(block_size, node.size - number * block_size)
            return tables.block(self._positions[number], self._words[number], length)
        if node.fragment >= len(tables.fragments):
            raise damaged(tables.name, f"there is no fragment {node.fragment}")
        start, word, _ = tables.fragments[node.fragment]
        whole = tables.block(start, word, block_size)
        return whole[node.offset : node.offset + (node.size & (block_size - 1))]


def words_of(blocks: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blocks) // 4}I", blocks)


def stored_size(words: bytes) -> int:
    """The bytes that the blocks of a list take."""
    if len(words) == 4:
        return int.from_bytes(words, "little") & _STORED
    return sum(word & _STORED for word in words_of(words))


@dataclass(slots=True)
class FileChange:
    """A file whose contents differ, or cannot be read (`trouble`)."""

    parent: str
    name: bytes
    place_a: int
    place_b: int
    ranges: Ranges = field(default_factory=Ranges)
    trouble: str = ""


@dataclass
class Outcome:
    """`changes`: files whose contents differ, in no order. `repacked`: how many blocks are stored otherwise although
    their contents are the same, and their bytes; `moved`: how many stored runs have another place; `unread`: files
    that differ as they are stored and were not uncompressed, as that would have taken too long."""

    changes: list[FileChange] = field(default_factory=list)
    repacked: int = 0
    repacked_bytes: tuple[int, int] = (0, 0)
    moved: int = 0
    unread: int = 0


class _Item:
    """What is stored in one place of each image: the blocks of a file, or a fragment."""

    __slots__ = ("a", "b", "payload", "size")

    def __init__(self, a: int, b: int, size: int, payload: Blocks | tuple[int, int]) -> None:
        self.a, self.b, self.size, self.payload = a, b, size, payload


class DataComparison:
    """Compares what `walk` found, and claims the data of both squashfs in `extents`."""

    def __init__(self, walk: Walk, clean: CleanMap, extents: tuple[Extents, Extents]) -> None:
        self.walk = walk
        self.a, self.b = walk.a, walk.b
        self.clean = clean
        self.extents = extents
        self.outcome = Outcome()
        self._changes: dict[int, FileChange] = {}
        self._reads = _READ_FACTOR * max(self.a.window.size, self.b.window.size) + (1 << 30)
        self._budget = _UNCOMPRESS_FACTOR * max(self.a.window.size, self.b.window.size) + (1 << 30)
        self._same_method = (
            self.a.superblock.compressor == self.b.superblock.compressor
            and self.a.superblock.block_size == self.b.superblock.block_size
        )

    def run(self) -> Outcome:
        """:raise ImageError: the tables contradict themselves."""
        self._claim()
        with ThreadPoolExecutor(2, thread_name_prefix="osgates-diff") as pool:
            same, unequal = self._items()
            for items, equal in zip(*self._runs(pool, same), strict=True):
                if not equal:
                    unequal += items
            self._look_into(pool, unequal)
        self._odd()
        self.outcome.changes = list(self._changes.values())
        return self.outcome

    # -- what is stored where ---------------------------------------------------------------------------------------

    def _claim(self) -> None:
        for side, tables in enumerate((self.a, self.b)):
            extents = self.extents[side]
            for start, word, _ in tables.fragments:
                extents.claim(start, word & _STORED)
            for _path, node in self.walk.only[side]:
                extents.claim(node.start, stored_size(node.blocks) if node.kind == 2 else 0)
        for _parent, _name, one, other in self.walk.odd:
            self.extents[0].claim(one.start, stored_size(one.blocks))
            self.extents[1].claim(other.start, stored_size(other.blocks))

    def _items(self) -> tuple[list[_Item], list[_Item]]:
        """What has the same stored sizes in both, by its place in the first; and what has not."""
        same: list[_Item] = []
        unequal: list[_Item] = []
        claim_a, claim_b = self.extents[0].claim, self.extents[1].claim
        seen: set[tuple[int, int, bytes]] = set()
        for blocks in self.walk.blocks:
            size = stored_size(blocks.words_a)
            claim_a(blocks.start_a, size)
            if blocks.words_a == blocks.words_b and self._same_method:
                claim_b(blocks.start_b, size)
                # Files with the same contents share their blocks.
                key = (blocks.start_a, blocks.start_b, blocks.words_a)
                if size and key not in seen:
                    seen.add(key)
                    same.append(_Item(blocks.start_a, blocks.start_b, size, blocks))
                elif size:
                    self._shared.setdefault(key, []).append(blocks)
            else:
                claim_b(blocks.start_b, stored_size(blocks.words_b))
                unequal.append(_Item(blocks.start_a, blocks.start_b, size, blocks))
        for pair in self.walk.tails:
            one, other = self._fragment(pair)
            item = _Item(one[0], other[0], one[1] & _STORED, pair)
            (same if one[1] == other[1] and self._same_method else unequal).append(item)
        same.sort(key=lambda item: item.a)
        return same, unequal

    @property
    def _shared(self) -> dict[tuple[int, int, bytes], list[Blocks]]:
        found: dict[tuple[int, int, bytes], list[Blocks]] = self.__dict__.setdefault("_shared_blocks", {})
        return found

    def _fragment(self, pair: tuple[int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        for tables, index in zip((self.a, self.b), pair, strict=True):
            if index >= len(tables.fragments):
                raise damaged(tables.name, f"there is no fragment {index}")
        return self.a.fragments[pair[0]], self.b.fragments[pair[1]]

    def _runs(self, pool: ThreadPoolExecutor, items: list[_Item]) -> tuple[list[list[_Item]], Iterator[bool]]:
        """Items that follow one another in both, together; and whether each run is equal."""
        runs: list[list[_Item]] = []
        spans: list[tuple[int, int, int]] = []
        start_a = start_b = size = 0
        for item in items:
            if runs and item.a == start_a + size and item.b == start_b + size and size < _RUN:
                runs[-1].append(item)
                size += item.size
                spans[-1] = (start_a, start_b, size)
            else:
                start_a, start_b, size = item.a, item.b, item.size
                runs.append([item])
                spans.append((start_a, start_b, size))
        self.outcome.moved = sum(a + self.a.offset != b + self.b.offset for a, b, _ in spans)
        return runs, pool.map(self._equal, spans, chunksize=8)

    def _equal(self, span: tuple[int, int, int]) -> bool:
        """Whether a run is stored in the same bytes. Called in the pool."""
        a, b, size = span
        if self.a.offset + a == self.b.offset + b and self.clean.clean(self.a.offset + a, size):
            return True
        self._reads -= size
        if self._reads < 0:
            return False
        for done in range(0, size, _PIECE):
            length = min(_PIECE, size - done)
            if self.a.stored(a + done, length) != self.b.stored(b + done, length):
                return False
        return True

    # -- what differs as it is stored
    # ---------------------------------------------------------------------------------

    def _look_into(self, pool: ThreadPoolExecutor, items: list[_Item]) -> None:
        pairs = {item.payload for item in items if not isinstance(item.payload, Blocks)}
        tasks = [task for item in items if isinstance(item.payload, Blocks) for task in _segments(item.payload)]
        for (blocks, *_), (ranges, repacked, sizes, trouble) in zip(
            tasks, pool.map(self._blocks, tasks), strict=True
        ):
            self._repacked(repacked, sizes)
            if ranges.differing or trouble:
                for entry in (blocks, *self._shared.get((blocks.start_a, blocks.start_b, blocks.words_a), ())):
                    self._change(entry, ranges, trouble)
        # Where two tails lie at different places of one fragment, it must be uncompressed although it is equal.
        wanted = [
            pair
            for pair, tails in self.walk.tails.items()
            if pair in pairs or any(tail.offset_a != tail.offset_b for tail in tails)
        ]
        for pair, found in zip(wanted, pool.map(self._tails, wanted), strict=True):
            if not found and pair in pairs:
                one, other = self._fragment(pair)
                self._repacked(1, (one[1] & _STORED, other[1] & _STORED))
            for tail, ranges, trouble in found:
                self._change(tail, ranges, trouble)

    def _repacked(self, count: int, sizes: tuple[int, int]) -> None:
        self.outcome.repacked += count
        before = self.outcome.repacked_bytes
        self.outcome.repacked_bytes = (before[0] + sizes[0], before[1] + sizes[1])

    def _change(self, entry: Blocks | Tail, ranges: Ranges, trouble: str) -> None:
        key = entry.place_a
        change = self._changes.get(key)
        if change is None:
            change = FileChange(entry.parent, entry.name, entry.place_a, entry.place_b)
            self._changes[key] = change
        change.ranges.differing += ranges.differing
        for start, size in ranges.found:
            change.ranges._add(start, size)
        change.trouble = change.trouble or trouble

    def _blocks(self, task: tuple[Blocks, int, int, int, int]) -> tuple[Ranges, int, tuple[int, int], str]:
        """Compare some blocks of a file: (file, first block, last, where they begin in each). Called in the pool."""
        blocks, first, last, at_a, at_b = task
        ranges = Ranges()
        repacked, sizes = 0, [0, 0]
        block_size = self.a.superblock.block_size
        words_a, words_b = (
            words_of(blocks.words_a[4 * first : 4 * last]),
            words_of(blocks.words_b[4 * first : 4 * last]),
        )
        node_size = self._size(blocks)
        for number, (one, other) in enumerate(zip(words_a, words_b, strict=True), first):
            length = min(block_size, node_size - number * block_size)
            try:
                if not self._same_block(one, other, at_a, at_b):
                    if self._exhausted(2 * length):
                        return (
                            ranges,
                            repacked,
                            (sizes[0], sizes[1]),
                            "it was not uncompressed: too much to look into",
                        )
                    x, y = self.a.block(at_a, one, length), self.b.block(at_b, other, length)
                    if x == y:
                        repacked += 1
                        sizes[0] += one & _STORED
                        sizes[1] += other & _STORED
                    else:
                        ranges.add_chunk(number * block_size, x, y)
            except ImageError as error:
                return ranges, repacked, (sizes[0], sizes[1]), f"block {number}: {error.what}"
            at_a += one & _STORED
            at_b += other & _STORED
        return ranges, repacked, (sizes[0], sizes[1]), ""

    def _size(self, blocks: Blocks) -> int:
        return parse_node(self.a, blocks.place_a).size

    def _same_block(self, one: int, other: int, at_a: int, at_b: int) -> bool:
        if one != other or not self._same_method:
            return False
        size = one & _STORED
        if not size:
            return True
        if self.a.offset + at_a == self.b.offset + at_b and self.clean.clean(self.a.offset + at_a, size):
            return True
        return self.a.stored(at_a, size) == self.b.stored(at_b, size)

    def _exhausted(self, size: int) -> bool:
        self._budget -= size
        return self._budget < 0

    def _tails(self, pair: tuple[int, int]) -> list[tuple[Tail, Ranges, str]]:
        """The ends of files in a fragment of each that differ. Called in the pool."""
        one, other = self._fragment(pair)
        block_size = self.a.superblock.block_size
        tails = self.walk.tails[pair]
        try:
            if self._exhausted(2 * block_size):
                raise ImageError("it was not uncompressed: too much to look into")
            x = self.a.block(one[0], one[1], block_size)
            y = self.b.block(other[0], other[1], block_size)
        except ImageError as error:
            nothing = Ranges()
            return [(tail, nothing, f"fragments {pair[0]} and {pair[1]}: {error.what}") for tail in tails]
        found = []
        for tail in tails:
            p = x[tail.offset_a : tail.offset_a + tail.size_a]
            q = y[tail.offset_b : tail.offset_b + tail.size_b]
            trouble = "" if len(p) == tail.size_a and len(q) == tail.size_b else "it reaches beyond its fragment"
            if p != q or trouble:
                ranges = Ranges()
                size = parse_node(self.a, tail.place_a).size
                ranges.add_chunk(size - tail.size_a, p, q)
                found.append((tail, ranges, trouble))
        return found

    def _odd(self) -> None:
        """Files that are stored in different ways, or have different sizes, compared as streams."""
        for parent, name, one, other in self.walk.odd:
            change = FileChange(parent, name, one.place, other.place)
            if self._exhausted(one.size + other.size):
                change.trouble = "it was not uncompressed: too much to look into"
            else:
                left: Content = SquashfsContent(self.a, one)
                right: Content = SquashfsContent(self.b, other)
                try:
                    change.ranges = differing_ranges(left, right)
                except ImageError as error:
                    change.trouble = error.what
            if change.ranges.differing or change.trouble:
                self._changes[one.place] = change
            else:
                self._repacked(1, (stored_size(one.blocks), stored_size(other.blocks)))


def _segments(blocks: Blocks) -> Iterator[tuple[Blocks, int, int, int, int]]:
    """A file in pieces, so that both processors have something to do."""
    count = len(blocks.words_a) // 4
    at_a, at_b = blocks.start_a, blocks.start_b
    for first in range(0, count, _SEGMENT):
        last = min(count, first + _SEGMENT)
        yield blocks, first, last, at_a, at_b
        at_a += stored_size(blocks.words_a[4 * first : 4 * last])
        at_b += stored_size(blocks.words_b[4 * first : 4 * last])


__all__ = ["DataComparison", "FileChange", "Outcome", "SquashfsContent", "stored_size"]
