"""Two squashfs compared: superblock, tree, stored data, and every table.

A table's bytes may differ for three reasons: what it says differs, and is named; it says the same of things that
moved
or were numbered otherwise, and follows; or it was compressed otherwise. Whatever is left is unexplained, and counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pytest_osgates.image import squashfs_format as fmt
from pytest_osgates.image.diff.digests import CleanMap
from pytest_osgates.image.diff.found import Difference, Extents, Findings, Layer, hexed
from pytest_osgates.image.diff.ranges import BytesContent, differing_ranges, spots
from pytest_osgates.image.diff.squashfs_data import DataComparison, FileChange, Outcome, SquashfsContent, stored_size
from pytest_osgates.image.diff.squashfs_tables import Node, Table, Tables, parse_node
from pytest_osgates.image.diff.squashfs_walk import Walk, path_of, shown_time
from pytest_osgates.image.source import Source

# Field of the superblock, and whether it differs only because something else does.
_FIELDS = (
    ("inodes", True),
    ("modified", False),
    ("block_size", False),
    ("fragments", True),
    ("compressor", False),
    ("flags", False),
    ("ids", True),
    ("root", True),
    ("bytes_used", True),
    ("id_table", True),
    ("xattr_table", True),
    ("inode_table", True),
    ("directory_table", True),
    ("fragment_table", True),
    ("export_table", True),
)


@dataclass(frozen=True)
class Place:
    """A squashfs: `size` bytes of `source` from `offset`."""

    source: Source
    offset: int
    size: int


# What to call for a file whose contents differ: path, size of both, and their contents.
Inspect = Callable[[str, str, SquashfsContent, SquashfsContent, FileChange], None]


class SquashfsComparison:
    """Compares the squashfs at `a` and `b`, which are called `container`; what differs goes to `out`.

    `extents` are the claims on the bytes of both, counted from their beginnings.
    """

    def __init__(self, a: Place, b: Place, container: str, out: Findings, clean: CleanMap) -> None:
        """:raise ImageError: one of them cannot be read as a squashfs."""
        self.a = Tables(a.source, a.offset, a.size, container)
        self.b = Tables(b.source, b.offset, b.size, container)
        self.places = (a, b)
        self.container = container
        self.out = out
        self.clean = clean
        self.extents = (Extents(self.a.window.size), Extents(self.b.window.size))

    def run(self, inspect: Inspect) -> None:
        """Compare them; `inspect` is called for each file whose contents differ.

        :raise ImageError: one of them is damaged beyond what can be attributed.
        """
        before = len(self.out.differences)
        walk = Walk(self.a, self.b, self.out, self.container)
        walk.run()
        self.out.nodes += walk.nodes
        outcome = DataComparison(walk, self.clean, self.extents).run()
        for change in outcome.changes:
            self._content(change, inspect)
        self._superblock()
        self._tables(walk)
        self._follows(walk, outcome, any_cause=len(self.out.differences) > before or outcome.repacked > 0)

    def _content(self, change: FileChange, inspect: Inspect) -> None:
        one, other = parse_node(self.a, change.place_a), parse_node(self.b, change.place_b)
        path = path_of(change.parent, change.name)
        if change.trouble:
            self._add(path, "content", "", change.trouble, kind="unreadable")
            return
        inspect(self.container, path, SquashfsContent(self.a, one), SquashfsContent(self.b, other), change)

    def _add(
        self,
        path: str,
        what: str,
        a: str,
        b: str,
        *,
        follows: bool = False,
        kind: str = "",
        offsets: tuple[int | None, int | None] = (None, None),
        delta: int | None = None,
        differing: int | None = None,
    ) -> None:
        self.out.add(
            Difference(
                Layer.SQUASHFS,
                self.container,
                path,
                what,
                a,
                b,
                offsets=offsets,
                delta=delta,
                follows=follows,
                kind=kind,
                differing=differing,
            )
        )

    # -- superblock and tables ------------------------------------------------------------------------------------

    def _superblock(self) -> None:
        offsets = (self.places[0].offset, self.places[1].offset)
        for name, follows in _FIELDS:
            one, other = (getattr(tables.superblock, name) for tables in (self.a, self.b))
            if one == other:
                continue
            if name == "modified":
                at = (offsets[0] + 8, offsets[1] + 8)
                self._add(
                    "superblock", "creation time", shown_time(one), shown_time(other), offsets=at, delta=other - one
                )
            elif name == "flags":
                self._add("superblock", "flags", f"{one:#06x}", f"{other:#06x}", offsets=offsets)
            elif name == "compressor":
                self._add("superblock", "compression", one.name.lower(), other.name.lower(), offsets=offsets)
            else:
                self._add(
                    "superblock", name.replace("_", " "), str(one), str(other), offsets=offsets, follows=follows
                )
        for side, tables in enumerate((self.a, self.b)):
            self.extents[side].claim(0, fmt.SUPERBLOCK.size)
            if tables.superblock.flags & 0x0400:
                header = int.from_bytes(tables.stored(fmt.SUPERBLOCK.size, 2), "little")
                self.extents[side].claim(fmt.SUPERBLOCK.size, 2 + (header & 0x7FFF))
        options = [self._options(tables) for tables in (self.a, self.b)]
        if options[0] != options[1]:
            self._add("superblock", "compression options", hexed(options[0]), hexed(options[1]), offsets=offsets)

    @staticmethod
    def _options(tables: Tables) -> bytes:
        if not tables.superblock.flags & 0x0400:
            return b""
        header = tables.stored(fmt.SUPERBLOCK.size, 2)
        return tables.stored(fmt.SUPERBLOCK.size, 2 + (int.from_bytes(header, "little") & 0x7FFF))

    def _tables(self, walk: Walk) -> None:
        pairs: list[tuple[str, Table, Table, bool]] = [
            (
                "inode table",
                self.a.inodes,
                self.b.inodes,
                walk.visited == [len(self.a.inodes.data), len(self.b.inodes.data)],
            ),
            (
                "directory table",
                self.a.directories,
                self.b.directories,
                walk.listed == [len(self.a.directories.data), len(self.b.directories.data)],
            ),
            ("xattr table", self.a.xattr_pairs, self.b.xattr_pairs, True),
        ]
        for name, one, other, covered in pairs:
            for side, table in enumerate((one, other)):
                self.extents[side].claim(table.start, table.end - table.start)
            if one.data == other.data:
                self._recompressed(name, one, other)
                continue
            ranges = differing_ranges(BytesContent(one.data), BytesContent(other.data))
            self._add(
                name,
                "contents",
                f"{len(one.data)} bytes",
                f"{len(other.data)} bytes",
                follows=True,
                offsets=self._offsets(one.start, other.start),
                differing=ranges.differing,
            )
            if name == "xattr table":
                self._xattr_table(one, other)
            elif not covered:
                self._uncovered(name, one, other, walk)
        self._rest(walk)

    def _recompressed(self, name: str, one: Table, other: Table) -> None:
        """The same metadata; are they stored in the same bytes?"""
        sizes = one.end - one.start, other.end - other.start
        if sizes[0] != sizes[1] or self.a.stored(one.start, sizes[0]) != self.b.stored(other.start, sizes[1]):
            self._add(
                name,
                "compressed bytes",
                f"{sizes[0]} bytes",
                f"{sizes[1]} bytes",
                kind="recompressed",
                offsets=self._offsets(one.start, other.start),
            )

    def _offsets(self, one: int, other: int) -> tuple[int, int]:
        return self.places[0].offset + one, self.places[1].offset + other

    def _uncovered(self, name: str, one: Table, other: Table, walk: Walk) -> None:
        """Metadata that no file refers to: it is there, it differs, and says nothing."""
        ranges = differing_ranges(BytesContent(one.data), BytesContent(other.data))
        seen = walk.visited if name == "inode table" else walk.listed
        left = [max(0, len(table.data) - size) for table, size in zip((one, other), seen, strict=True)]
        self.out.add(
            Difference(
                Layer.SQUASHFS,
                self.container,
                name,
                "unreferenced bytes",
                f"{left[0]} bytes that no file refers to",
                f"{left[1]} bytes that no file refers to",
                offsets=self._offsets(one.start, other.start),
                differing=ranges.differing,
                spots=spots(BytesContent(one.data), BytesContent(other.data), ranges),
            )
        )

    def _xattr_table(self, one: Table, other: Table) -> None:
        """Sets of attributes are compared by the files that have them; their order here follows, or is all."""
        sets = []
        for tables in (self.a, self.b):
            found = [tuple(sorted(tables.xattrs(index).items())) for index in range(len(tables.xattr_ids))]
            sets.append(found)
        same = sorted(sets[0]) == sorted(sets[1])
        how = "in another order or form" if same else ""
        self._add(
            "xattr table",
            "entries",
            f"{len(sets[0])} sets",
            f"{len(sets[1])} sets {how}".rstrip(),
            follows=not same,
            offsets=self._offsets(one.start, other.start),
        )

    def _rest(self, walk: Walk) -> None:
        """The tables that are indexed: owners, fragments, exports, ids of attributes; then their stored bytes."""
        if self.a.ids != self.b.ids:
            owners = [", ".join(map(str, tables.ids[:20])) for tables in (self.a, self.b)]
            self._add("id table", "owners", owners[0], owners[1], offsets=self._starts("id_table"))
        if self.a.fragments != self.b.fragments:
            unused = [sum(1 for entry in tables.fragments if entry[2]) for tables in (self.a, self.b)]
            shown = [f"{len(tables.fragments)} fragments" for tables in (self.a, self.b)]
            if unused != [0, 0]:
                shown = [f"{text}, {count} with unused bits set" for text, count in zip(shown, unused, strict=True)]
            self._add(
                "fragment table",
                "entries",
                shown[0],
                shown[1],
                follows=unused == [0, 0],
                offsets=self._starts("fragment_table"),
            )
        if self.a.exports != self.b.exports:
            wrong = [_wrong_exports(tables) for tables in (self.a, self.b)]
            shown = [
                f"{len(t.exports) // 8} entries" + (f", {n} wrong" if n else "")
                for t, n in zip((self.a, self.b), wrong, strict=True)
            ]
            self._add(
                "export table",
                "entries",
                shown[0],
                shown[1],
                follows=wrong == [0, 0],
                offsets=self._starts("export_table"),
            )
        ids = [[(count, size) for _, count, size in tables.xattr_ids] for tables in (self.a, self.b)]
        if self.a.xattr_ids != self.b.xattr_ids:
            self._add(
                "xattr id table",
                "entries",
                f"{len(ids[0])} sets",
                f"{len(ids[1])} sets",
                follows=True,
                offsets=self._starts("xattr_table"),
            )
        for name, equal in (
            ("fragment_table", self.a.fragments == self.b.fragments),
            ("export_table", self.a.exports == self.b.exports),
            ("id_table", self.a.ids == self.b.ids),
            ("xattr_table", self.a.xattr_ids == self.b.xattr_ids),
        ):
            self._indexed(name, equal)

    def _starts(self, name: str) -> tuple[int, int]:
        return self._offsets(getattr(self.a.superblock, name), getattr(self.b.superblock, name))

    def _indexed(self, name: str, equal: bool) -> None:
        """Claim an indexed table's blocks and pointers; say so if only their compression differs."""
        parts = []
        for side, tables in enumerate((self.a, self.b)):
            data = b""
            for start, size in _ranges_of(tables, name):
                self.extents[side].claim(start, size)
                data += tables.stored(start, size) if size < fmt.METADATA_SIZE * 2 else b""
            parts.append(data)
        if equal and parts[0] != parts[1]:
            moved = getattr(self.a.superblock, name) != getattr(self.b.superblock, name)
            self._add(
                name.replace("_", " "),
                "stored bytes",
                f"{len(parts[0])} bytes",
                f"{len(parts[1])} bytes",
                follows=moved,
                kind="recompressed",
                offsets=self._starts(name),
            )

    # -- what follows ---------------------------------------------------------------------------------------------

    def _follows(self, walk: Walk, outcome: Outcome, *, any_cause: bool) -> None:
        for what, count in sorted(walk.follows.items()):
            if count and what != "inode positions":
                self._add("inode table", what, "", f"other ones in {count} places", follows=True)
        if walk.follows["inode positions"]:
            self._add(
                "directory table",
                "positions of inodes",
                "",
                f"{walk.follows['inode positions']} listings",
                follows=True,
            )
        if outcome.repacked:
            sizes = outcome.repacked_bytes
            self._add(
                "data blocks",
                "compressed bytes",
                f"{outcome.repacked} blocks, {sizes[0]} bytes",
                f"{outcome.repacked} blocks with the same contents, {sizes[1]} bytes",
                kind="recompressed",
            )
        order = _orders(walk, outcome) if outcome.moved else [[], []]
        if order[0] != order[1]:
            self._add("data blocks", "order of files", "", "files are stored in another order", kind="order")
        elif self._moved(walk):
            self._add(
                "data blocks",
                "positions",
                "",
                f"{outcome.moved} runs of blocks have another place",
                follows=any_cause,
            )

    def _moved(self, walk: Walk) -> bool:
        return any(blocks.start_a != blocks.start_b for blocks in walk.blocks) or any(
            self.a.fragments[one][0] != self.b.fragments[other][0] for one, other in walk.tails
        )


def _wrong_exports(tables: Tables) -> int:
    """How many entries of the export table do not lead to the inode that they are for."""
    wrong = 0
    places, data = tables.inodes.places, tables.inodes.data
    for number, (reference,) in enumerate(struct.iter_unpack("<Q", tables.exports), 1):
        base = places.get(reference >> 16)
        at = -1 if base is None else base + (reference & 0xFFFF) + 12
        if at < 0 or data[at : at + 4] != number.to_bytes(4, "little"):
            wrong += 1
    return wrong


def _ranges_of(tables: Tables, name: str) -> Iterator[tuple[int, int]]:
    """Where an indexed table is: each metadata block, then the list of pointers to them."""
    table: int = getattr(tables.superblock, name)
    if table == fmt.NOT_THERE:
        return
    sb = tables.superblock
    entries, size = {
        "fragment_table": (sb.fragments, 16),
        "export_table": (sb.inodes, 8),
        "id_table": (sb.ids, 4),
        "xattr_table": (len(tables.xattr_ids), 16),
    }[name]
    blocks = -(-entries * size // fmt.METADATA_SIZE)
    if name == "xattr_table":
        yield table, 16
        table += 16
    for pointer in struct.unpack(f"<{blocks}Q", tables.stored(table, 8 * blocks)):
        yield pointer, 2 + (int.from_bytes(tables.stored(pointer, 2), "little") & 0x7FFF)
    yield table, 8 * blocks


def _orders(walk: Walk, outcome: Outcome) -> list[list[int]]:
    """On each side the files with blocks, as indexes, in the order in which they are stored.

    Without those that changed or are new, and those that share their blocks with one of them on a side: where these
    are stored follows from that file. Nor those of holes alone, which are stored nowhere.
    """
    changed = {change.place_a for change in outcome.changes}
    others = ({node.start for _, node in walk.only[0]}, {node.start for _, node in walk.only[1]})
    for _, _, one, other in walk.odd:
        others[0].add(one.start)
        others[1].add(other.start)
    for blocks in walk.blocks:
        if blocks.place_a in changed:
            others[0].add(blocks.start_a)
            others[1].add(blocks.start_b)
    kept = [
        index
        for index, blocks in enumerate(walk.blocks)
        if blocks.place_a not in changed
        and blocks.start_a not in others[0]
        and blocks.start_b not in others[1]
        and stored_size(blocks.words_a)
    ]
    return [sorted(kept, key=lambda index: (walk.blocks[index][side], index)) for side in (0, 1)]


__all__ = ["Inspect", "Node", "Place", "SquashfsComparison"]
