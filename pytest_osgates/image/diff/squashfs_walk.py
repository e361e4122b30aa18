"""Two squashfs trees walked side by side: names, attributes, and which stored data belong to which file.

Where a directory's listing has the same bytes in both, it is taken apart once. Of two plain files the inodes are
compared as the bytes that they are; only where those differ is an inode taken apart.
"""

from __future__ import annotations

import struct
from collections import Counter
from datetime import UTC, datetime
from typing import NamedTuple

from pytest_osgates.image import squashfs_format as fmt
from pytest_osgates.image.diff.found import Difference, Findings, Layer, hexed, quoted
from pytest_osgates.image.diff.squashfs_tables import Node, Tables, parse_node
from pytest_osgates.image.source import damaged
from pytest_osgates.vm.errors import ImageError

MAX_DEPTH = 1024
MAX_NODES = 2_000_000

_RUN = struct.Struct("<III")
_ENTRY = struct.Struct("<HhHH")
_FILE = struct.Struct("<IIII")
_KINDS = {
    1: "directory",
    2: "file",
    3: "symbolic link",
    4: "block device",
    5: "character device",
    6: "pipe",
    7: "socket",
}


class Run(NamedTuple):
    """Entries of a directory whose inodes begin in one metadata block: (name, type, offset in the block, number)."""

    start: int
    number: int
    begin: int
    end: int
    entries: list[tuple[bytes, int, int, int]]


class Blocks(NamedTuple):
    """The full blocks of a file in both images: where, and their words."""

    start_a: int
    start_b: int
    words_a: bytes
    words_b: bytes
    parent: str
    name: bytes
    place_a: int
    place_b: int


class Tail(NamedTuple):
    """The end of a file in a fragment of each image."""

    offset_a: int
    offset_b: int
    size_a: int
    size_b: int
    parent: str
    name: bytes
    place_a: int
    place_b: int


def path_of(parent: str, name: bytes) -> str:
    """A path, as text: bytes that are no UTF-8 are surrogates, as everywhere in this package."""
    return f"{parent}/{name.decode('utf-8', 'surrogateescape')}"


class Walk:
    """Compares the trees of `a` and `b`; what differs goes to `out`, what has contents to `blocks` and `tails`.

    `follows` counts what differs in the tables only because something else does: positions and numbers.
    `odd` are files that must be compared as streams (one has a fragment, the other has none, or another size).
    """

    def __init__(self, a: Tables, b: Tables, out: Findings, container: str) -> None:
        self.a, self.b, self.out, self.container = a, b, out, container
        self.blocks: list[Blocks] = []
        self.tails: dict[tuple[int, int], list[Tail]] = {}
        self.odd: list[tuple[str, bytes, Node, Node]] = []
        self.only: tuple[list[tuple[str, Node]], list[tuple[str, Node]]] = ([], [])
        self.follows: Counter[str] = Counter()
        self.nodes = 0
        self.renumbered = 0
        self.visited = [0, 0]
        self.listed = [0, 0]
        self._links: tuple[dict[int, str], dict[int, str]] = ({}, {})
        self._seen: set[tuple[int, int]] = set()
        self._same_form = a.superblock.block_size == b.superblock.block_size

    def run(self) -> None:
        """Walk both trees from their roots.

        :raise ImageError: one of them is damaged."""
        root_a = parse_node(self.a, self.a.inode_at(self.a.superblock.root))
        root_b = parse_node(self.b, self.b.inode_at(self.b.superblock.root))
        if root_a.kind != 1 or root_b.kind != 1:
            raise damaged((self.a if root_a.kind != 1 else self.b).name, "its root is no directory")
        self._count(root_a, root_b)
        self._compare("/", root_a, root_b)
        pending = [("", root_a, root_b, 0)]
        while pending:
            path, one, other, depth = pending.pop()
            if (one.place, -1) in self._seen or (-1, other.place) in self._seen or depth > MAX_DEPTH:
                raise damaged(self.a.name, f"{path!r} is a directory reached twice, or too deep, in one of them")
            self._seen |= {(one.place, -1), (-1, other.place)}
            for name, child_a, child_b in self._directory(path, one, other):
                pending.append((path_of(path, name), child_a, child_b, depth + 1))
        self.follows["inode numbers"] += self.renumbered

    # -- directories ----------------------------------------------------------------------------------------------

    def _listing(self, side: int, node: Node) -> list[Run]:
        tables = (self.a, self.b)[side]
        size = node.size - 3
        if size <= 0:
            return []
        data = tables.directories.data
        try:
            position = tables.directories.at(node.start, node.offset)
        except KeyError:
            raise damaged(tables.name, f"the directory with inode {node.number} has no listing") from None
        end = position + size
        if end > len(data):
            raise damaged(tables.name, f"the directory with inode {node.number} overruns its table")
        self.listed[side] += size
        runs = []
        try:
            while position < end:
                count, start, number = _RUN.unpack_from(data, position)
                if count > 255:
                    raise damaged(tables.name, f"a directory header for {count + 1} entries")
                position += 12
                begin = position
                entries = []
                for _ in range(count + 1):
                    offset, delta, kind, length = _ENTRY.unpack_from(data, position)
                    name_at = position + 8
                    position = name_at + length + 1
                    entries.append((data[name_at:position], kind, offset, number + delta))
                runs.append(Run(start, number, begin, position, entries))
        except struct.error:
            raise damaged(tables.name, f"the directory with inode {node.number} breaks off") from None
        if position != end:
            raise damaged(tables.name, f"the directory with inode {node.number} has odd entries")
        return runs

    def _aligned(self, runs: list[Run], one: Node, other: Node) -> list[int] | None:
        """Where the inodes of each run begin in the second image, if its listing has the same entries; else None."""
        if one.size != other.size:
            return None
        size = other.size - 3
        if size <= 0:
            return []
        try:
            begin = self.b.directories.at(other.start, other.offset)
        except KeyError:
            return None
        data_a, data_b = self.a.directories.data, self.b.directories.data
        if begin + size > len(data_b):
            return None
        shift = begin - self.a.directories.at(one.start, one.offset)
        starts = []
        for run in runs:
            count, start, number = _RUN.unpack_from(data_b, run.begin - 12 + shift)
            if count + 1 != len(run.entries):
                return None
            if data_a[run.begin : run.end] != data_b[run.begin + shift : run.end + shift]:
                return None
            if number != run.number:
                self.follows["inode numbers"] += 1
            if start != run.start:
                self.follows["inode positions"] += 1
            starts.append(start)
        self.listed[1] += size
        return starts

    def _directory(self, path: str, one: Node, other: Node) -> list[tuple[bytes, Node, Node]]:
        """Compare the entries of one directory. Its subdirectories."""
        runs = self._listing(0, one)
        starts = self._aligned(runs, one, other)
        below: list[tuple[bytes, Node, Node]] = []
        if starts is None:
            self._merge(path, runs, self._listing(1, other), below)
            return below
        places_a, places_b = self.a.inodes.places, self.b.inodes.places
        file = self._file
        for run, start_b in zip(runs, starts, strict=True):
            base_a, base_b = places_a.get(run.start), places_b.get(start_b)
            if base_a is None or base_b is None:
                raise damaged((self.a if base_a is None else self.b).name, f"an entry of {path!r} leads nowhere")
            for name, kind, offset, _number in run.entries:
                if kind == 2:
                    file(path, name, base_a + offset, base_b + offset)
                else:
                    self._pair(path, name, base_a + offset, base_b + offset, below)
        return below

    def _merge(self, path: str, left: list[Run], right: list[Run], below: list[tuple[bytes, Node, Node]]) -> None:
        sides = []
        for tables, runs in ((self.a, left), (self.b, right)):
            found = {entry[0]: (run.start, *entry[1:]) for run in runs for entry in run.entries}
            if len(found) != sum(len(run.entries) for run in runs):
                raise damaged(tables.name, f"a name stands twice in {path!r}")
            sides.append(found)
        for name in sorted({*sides[0], *sides[1]}):
            entries = [side.get(name) for side in sides]
            places = [
                None if entry is None else tables.inode_at(entry[0] << 16 | entry[2])
                for tables, entry in zip((self.a, self.b), entries, strict=True)
            ]
            one, other = places
            if one is None or other is None:
                self._one_sided(path, name, 0 if other is None else 1, places[0 if other is None else 1] or 0)
                continue
            self._pair(path, name, one, other, below)
            first, second = entries
            if first is not None and second is not None:
                self._entry(path, name, (first[1], first[3]), (second[1], second[3]), (one, other))

    def _entry(
        self, path: str, name: bytes, one: tuple[int, int], other: tuple[int, int], places: tuple[int, int]
    ) -> None:
        """What a directory says of an inode besides where it is: its type and number, which the inode says, too."""
        if one == other:
            return
        numbers = [
            int.from_bytes(tables.inodes.data[place + 12 : place + 16], "little")
            for tables, place in zip((self.a, self.b), places, strict=True)
        ]
        if one[0] != other[0] or one[1] - numbers[0] != other[1] - numbers[1]:
            self._add(
                path_of(path, name),
                "directory entry",
                f"type {one[0]}, inode {one[1]}",
                f"type {other[0]}, inode {other[1]}",
            )
        else:
            self.follows["inode numbers"] += 1

    def _one_sided(self, path: str, name: bytes, side: int, place: int) -> None:
        """A file that only one of them has, and all that is below it."""
        tables = (self.a, self.b)[side]
        pending = [(path_of(path, name), place, 0)]
        while pending:
            where, at, depth = pending.pop()
            node = parse_node(tables, at)
            self._visit(side, node)
            self.nodes += 1
            if self.nodes > MAX_NODES or depth > MAX_DEPTH:
                raise damaged(tables.name, "more files, or deeper directories, than can be")
            self.only[side].append((where, node))
            label = describe(node)
            values = (label, "") if side == 0 else ("", label)
            self._add(where, "only in A" if side == 0 else "only in B", values[0], values[1])
            if node.kind == 1:
                key = (at, -1) if side == 0 else (-1, at)
                if key in self._seen:
                    raise damaged(tables.name, f"{where!r} is a directory reached twice")
                self._seen.add(key)
                for run in self._listing(side, node):
                    for entry in run.entries:
                        child = tables.inode_at(run.start << 16 | entry[2])
                        pending.append((path_of(where, entry[0]), child, depth + 1))

    # -- inodes ---------------------------------------------------------------------------------------------------

    def _visit(self, side: int, node: Node) -> bool:
        """Count the bytes of an inode once, however many names it has. Whether it has others."""
        if node.nlink > 1 and node.kind != 1:
            links = self._links[side]
            if node.place in links:
                return True
            links[node.place] = ""
        self.visited[side] += node.length
        return False

    def _count(self, one: Node, other: Node) -> None:
        self._visit(0, one)
        self._visit(1, other)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise damaged(self.a.name, f"more than {MAX_NODES} files")

    def _file(self, parent: str, name: bytes, place_a: int, place_b: int) -> None:
        """Two plain files, the most frequent thing of all."""
        data_a, data_b = self.a.inodes.data, self.b.inodes.data
        try:
            if data_a[place_a] != 2 or data_b[place_b] != 2 or not self._same_form:
                self._pair(parent, name, place_a, place_b, None)
                return
            start_a, fragment_a, offset_a, size = _FILE.unpack_from(data_a, place_a + 16)
            start_b, fragment_b, offset_b, size_b = _FILE.unpack_from(data_b, place_b + 16)
        except (IndexError, struct.error):
            raise damaged(self.a.name, f"the inode of {path_of(parent, name)!r} overruns the table") from None
        if size != size_b or (fragment_a != fragment_b and fmt.NO_FRAGMENT in (fragment_a, fragment_b)):
            self._pair(parent, name, place_a, place_b, None)
            return
        self.nodes += 1
        log = self.a.block_log
        count = size >> log if fragment_a != fmt.NO_FRAGMENT else (size + (1 << log) - 1) >> log
        self.visited[0] += 32 + 4 * count
        self.visited[1] += 32 + 4 * count
        # Type, mode, owners and time; then the inode's number, which another file's coming or going shifts.
        if data_a[place_a : place_a + 12] != data_b[place_b : place_b + 12]:
            self._compare(path_of(parent, name), parse_node(self.a, place_a), parse_node(self.b, place_b))
        elif data_a[place_a + 12 : place_a + 16] != data_b[place_b + 12 : place_b + 16]:
            self.renumbered += 1
        if count:
            words_a = data_a[place_a + 32 : place_a + 32 + 4 * count]
            words_b = data_b[place_b + 32 : place_b + 32 + 4 * count]
            if len(words_a) != 4 * count or len(words_b) != 4 * count:
                raise damaged(self.a.name, f"the inode of {path_of(parent, name)!r} overruns the table")
            self.blocks.append(Blocks(start_a, start_b, words_a, words_b, parent, name, place_a, place_b))
        if fragment_a != fmt.NO_FRAGMENT:
            tail = size & ((1 << log) - 1)
            key = (fragment_a, fragment_b)
            entry = Tail(offset_a, offset_b, tail, tail, parent, name, place_a, place_b)
            if key in self.tails:
                self.tails[key].append(entry)
            else:
                self.tails[key] = [entry]

    def _pair(
        self, parent: str, name: bytes, place_a: int, place_b: int, below: list[tuple[bytes, Node, Node]] | None
    ) -> None:
        """Two inodes of one name, of whatever kind."""
        one, other = parse_node(self.a, place_a), parse_node(self.b, place_b)
        path = path_of(parent, name)
        again = [self._visit(0, one), self._visit(1, other)]
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise damaged(self.a.name, f"more than {MAX_NODES} files")
        self._sharing(path, one, other)
        if one.kind != other.kind:
            self._add(path, "type", describe(one), describe(other))
            for side, node in ((0, one), (1, other)):
                self.only[side].append((path, node))
                if node.kind == 1:
                    for run in self._listing(side, node):
                        for entry in run.entries:
                            child = (self.a, self.b)[side].inode_at(run.start << 16 | entry[2])
                            self._one_sided(path, entry[0], side, child)
            return
        if all(again):
            # Another name of two inodes that were compared under their first.
            return
        self._compare(path, one, other)
        if one.kind == 1:
            if below is None:
                raise damaged(self.a.name, f"{path!r} is a directory and was listed as a file")
            below.append((name, one, other))
        elif one.kind == 2:
            self._contents(parent, name, one, other)

    def _contents(self, parent: str, name: bytes, one: Node, other: Node) -> None:
        if one.size != other.size:
            self._add(path_of(parent, name), "size", str(one.size), str(other.size))
        split = fmt.NO_FRAGMENT in (one.fragment, other.fragment) and one.fragment != other.fragment
        if one.size != other.size or split or not self._same_form:
            self.odd.append((parent, name, one, other))
            return
        places = one.place, other.place
        if one.blocks:
            self.blocks.append(Blocks(one.start, other.start, one.blocks, other.blocks, parent, name, *places))
        if one.fragment != fmt.NO_FRAGMENT:
            mask = (1 << self.a.block_log) - 1
            tail = Tail(one.offset, other.offset, one.size & mask, other.size & mask, parent, name, *places)
            self.tails.setdefault((one.fragment, other.fragment), []).append(tail)

    def _sharing(self, path: str, one: Node, other: Node) -> None:
        """Hard links: a path leads to the inode of the same first path in both, or the sharing differs."""
        if one.kind == 1 or other.kind == 1 or (one.nlink <= 1 and other.nlink <= 1):
            return
        firsts = []
        for side, node in ((0, one), (1, other)):
            links = self._links[side]
            if node.nlink > 1 and not links.get(node.place):
                links[node.place] = path
            firsts.append(links[node.place] if node.nlink > 1 else path)
        if firsts[0] != firsts[1]:
            shown = [f"one file with {first}" if first != path else "a file of its own" for first in firsts]
            self._add(path, "hard link", shown[0], shown[1])

    def _compare(self, path: str, one: Node, other: Node) -> None:
        """Everything that two inodes of one kind say of themselves, but contents and size."""
        if one.mode != other.mode:
            self._add(path, "mode", f"{one.mode:04o}", f"{other.mode:04o}")
        if one.uid != other.uid:
            self._add(path, "owner", str(one.uid), str(other.uid))
        if one.gid != other.gid:
            self._add(path, "group", str(one.gid), str(other.gid))
        if one.mtime != other.mtime:
            self._add(path, "mtime", shown_time(one.mtime), shown_time(other.mtime), delta=other.mtime - one.mtime)
        if one.target != other.target:
            self._add(path, "link target", quoted(one.target), quoted(other.target))
        if one.device != other.device:
            numbers = [":".join(map(str, fmt.device_numbers(node.device))) for node in (one, other)]
            self._add(path, "device", numbers[0], numbers[1])
        if one.nlink != other.nlink:
            self._add(path, "link count", str(one.nlink), str(other.nlink), follows=True)
        if one.sparse != other.sparse:
            self._add(path, "bytes in holes", str(one.sparse), str(other.sparse), follows=True)
        if one.xattr != other.xattr or one.xattr != fmt.NO_XATTR:
            self._xattrs(path, one, other)
        if one.number != other.number:
            self.follows["inode numbers"] += 1
        if one.extended != other.extended:
            self.follows["form of the inode"] += 1
        if one.xattr != other.xattr:
            self.follows["indexes of extended attributes"] += 1
        if one.parent != other.parent:
            self.follows["inode numbers"] += 1

    def _xattrs(self, path: str, one: Node, other: Node) -> None:
        left, right = self.a.xattrs(one.xattr), self.b.xattrs(other.xattr)
        if left == right:
            return
        for key in sorted({*left, *right}):
            x, y = left.get(key), right.get(key)
            if x != y:
                shown = ["none" if v is None else shown_xattr(key, v) for v in (x, y)]
                self._add(path, f"xattr {quoted(key)}", shown[0], shown[1])

    def _add(
        self, path: str, what: str, a: str = "", b: str = "", *, delta: int | None = None, follows: bool = False
    ) -> None:
        self.out.add(Difference(Layer.SQUASHFS, self.container, path, what, a, b, delta=delta, follows=follows))


def describe(node: Node) -> str:
    """A file in a few words, for one that the other image has not."""
    text = _KINDS[node.kind]
    if node.kind == 2:
        text += f" of {node.size} bytes"
    if node.kind == 3:
        text += f" to {quoted(node.target)}"
    return f"{text}, mode {node.mode:04o}, {node.uid}:{node.gid}, {shown_time(node.mtime)}"


def shown_time(seconds: int) -> str:
    """A time in UTC, as ISO 8601 has it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown_xattr(name: bytes, value: bytes) -> str:
    """The value of an extended attribute: a capability set is binary, most others are text."""
    if name == b"security.capability" or not value.rstrip(b"\x00").isascii():
        return hexed(value)
    return quoted(value.rstrip(b"\x00"))


__all__ = ["Blocks", "ImageError", "Tail", "Walk", "describe", "path_of", "shown_time"]
