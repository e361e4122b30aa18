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
_START = struct.Struct("<4xI")
_NUMBER = struct.Struct("<I")
_KINDS = {
    1: "directory",
    2: "file",
    3: "symbolic link",
    4: "block device",
    5: "character device",
    6: "pipe",
    7: "socket",
}


Entry = tuple[bytes, int, int, int]
"""An entry of a directory: name, type, place of the inode in its table, number of the inode."""

Header = tuple[int, int, int]
"""Of entries whose inodes begin in one metadata block: its place in the table, the first entry, the base number."""


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
        # Inodes name their owners by places in a table: the same place may be another owner.
        self._same_owners = a.ids == b.ids

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

    def _range(self, side: int, node: Node) -> tuple[int, int]:
        """Where the listing of a directory begins and ends in its table."""
        tables = (self.a, self.b)[side]
        size = max(0, node.size - 3)
        if not size:
            return 0, 0
        try:
            begin = tables.directories.at(node.start, node.offset)
        except KeyError:
            raise damaged(tables.name, f"the directory with inode {node.number} has no listing") from None
        if begin + size > len(tables.directories.data):
            raise damaged(tables.name, f"the directory with inode {node.number} overruns its table")
        self.listed[side] += size
        return begin, begin + size

    def _listing(self, side: int, node: Node) -> list[Entry]:
        """The entries of a directory.

        :raise ImageError: it is malformed.
        """
        return self._parse(side, *self._range(side, node), node)[0]

    def _parse(self, side: int, position: int, end: int, node: Node) -> tuple[list[Entry], list[Header]]:
        tables = (self.a, self.b)[side]
        data, places = tables.directories.data, tables.inodes.places
        unpack = _ENTRY.unpack_from
        entries: list[Entry] = []
        headers: list[Header] = []
        try:
            while position < end:
                count, start, number = _RUN.unpack_from(data, position)
                if count > 255:
                    raise damaged(tables.name, f"a directory header for {count + 1} entries")
                headers.append((position, len(entries), number))
                base = places.get(start)
                if base is None:
                    raise damaged(tables.name, f"an entry of the directory with inode {node.number} leads nowhere")
                position += 12
                for _ in range(count + 1):
                    offset, delta, kind, length = unpack(data, position)
                    name_at = position + 8
                    position = name_at + length + 1
                    entries.append((data[name_at:position], kind, base + offset, number + delta))
        except struct.error:
            raise damaged(tables.name, f"the directory with inode {node.number} breaks off") from None
        if position != end:
            raise damaged(tables.name, f"the directory with inode {node.number} has odd entries")
        return entries, headers

    def _aligned(
        self, left: list[Entry], headers: list[Header], begin: int, end: int, other: int
    ) -> list[Entry] | None:
        """The entries of the second listing, which begins at `other`, if only its headers differ; else None."""
        data_a, data_b = self.a.directories.data, self.b.directories.data
        shift = other - begin
        places_a, places_b = self.a.inodes.places, self.b.inodes.places
        right: list[Entry] = []
        for index, (position, first, number) in enumerate(headers):
            last_position, last = headers[index + 1][:2] if index + 1 < len(headers) else (end, len(left))
            count, start_b, number_b = _RUN.unpack_from(data_b, position + shift)
            if count + 1 != last - first:
                return None
            if data_a[position + 12 : last_position] != data_b[position + 12 + shift : last_position + shift]:
                return None
            (start_a,) = _START.unpack_from(data_a, position)
            base_a, base_b = places_a.get(start_a, 0), places_b.get(start_b)
            if base_b is None:
                return None
            moved, renumbered = base_b - base_a, number_b - number
            if start_a != start_b:
                self.follows["inode positions"] += 1
            if moved or renumbered:
                right += [(name, kind, place + moved, n + renumbered) for name, kind, place, n in left[first:last]]
            else:
                right += left[first:last]
        return right

    def _directory(self, path: str, one: Node, other: Node) -> list[tuple[bytes, Node, Node]]:
        """Compare the entries of one directory. Its subdirectories."""
        below: list[tuple[bytes, Node, Node]] = []
        begin_a, end_a = self._range(0, one)
        begin_b, end_b = self._range(1, other)
        left, headers = self._parse(0, begin_a, end_a, one)
        right = None
        if end_a - begin_a == end_b - begin_b:
            right = self._aligned(left, headers, begin_a, end_a, begin_b)
        if right is None:
            right = self._parse(1, begin_b, end_b, other)[0]
            self.follows["inode positions"] += 1
        if len(left) != len(right) or [entry[0] for entry in left] != [entry[0] for entry in right]:
            self._merge(path, left, right, below)
            return below
        file = self._file
        data_a, data_b, number_at = self.a.inodes.data, self.b.inodes.data, _NUMBER.unpack_from
        try:
            for (name, kind, place_a, number_a), (_, kind_b, place_b, number_b) in zip(left, right, strict=True):
                if kind == 2 and kind_b == 2:
                    file(path, name, place_a, place_b)
                else:
                    self._pair(path, name, place_a, place_b, below)
                # A directory says the type and the number of an inode, too.
                own_a, own_b = number_at(data_a, place_a + 12)[0], number_at(data_b, place_b + 12)[0]
                odd = kind != kind_b and data_a[place_a] % fmt.EXTENDED == data_b[place_b] % fmt.EXTENDED
                if odd or number_a - own_a != number_b - own_b:
                    values = f"type {kind}, inode {number_a}", f"type {kind_b}, inode {number_b}"
                    self._add(path_of(path, name), "directory entry", values[0], values[1])
        except struct.error:
            raise damaged(self.a.name, f"an inode of {path!r} overruns its table, in one of them") from None
        if len({entry[0] for entry in left}) != len(left):
            raise damaged(self.a.name, f"a name stands twice in {path!r}")
        return below

    def _merge(self, path: str, left: list[Entry], right: list[Entry], below: list[tuple[bytes, Node, Node]]) -> None:
        sides = []
        for tables, entries in ((self.a, left), (self.b, right)):
            found = {entry[0]: entry for entry in entries}
            if len(found) != len(entries):
                raise damaged(tables.name, f"a name stands twice in {path!r}")
            sides.append(found)
        for name in sorted({*sides[0], *sides[1]}):
            one, other = sides[0].get(name), sides[1].get(name)
            if one is not None and other is not None:
                self._pair(path, name, one[2], other[2], below)
                numbers = [
                    int.from_bytes(tables.inodes.data[entry[2] + 12 : entry[2] + 16], "little")
                    for tables, entry in ((self.a, one), (self.b, other))
                ]
                kinds = [
                    tables.inodes.data[entry[2]] % fmt.EXTENDED for tables, entry in ((self.a, one), (self.b, other))
                ]
                odd = one[1] != other[1] and kinds[0] == kinds[1]
                if odd or one[3] - numbers[0] != other[3] - numbers[1]:
                    values = [f"type {entry[1]}, inode {entry[3]}" for entry in (one, other)]
                    self._add(path_of(path, name), "directory entry", values[0], values[1])
            elif one is not None:
                self._one_sided(path, name, 0, one[2])
            elif other is not None:
                self._one_sided(path, name, 1, other[2])

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
                for entry in self._listing(side, node):
                    pending.append((path_of(where, entry[0]), entry[2], depth + 1))

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
        if not self._same_owners or data_a[place_a : place_a + 12] != data_b[place_b : place_b + 12]:
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
                    for entry in self._listing(side, node):
                        self._one_sided(path, entry[0], side, entry[2])
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
