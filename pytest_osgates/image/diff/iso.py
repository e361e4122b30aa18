"""Two ISO images compared: every structure, every record, every file; then the account of what nobody claimed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from pytest_osgates.image.diff import system
from pytest_osgates.image.diff.digests import CleanMap
from pytest_osgates.image.diff.found import Difference, Extents, Findings, Layer, hexed
from pytest_osgates.image.diff.iso_records import Field, descriptor_fields, record_fields
from pytest_osgates.image.diff.iso_tree import Descriptor, IsoNode, IsoTree, descriptors, read_tree
from pytest_osgates.image.diff.ranges import CHUNK, BytesContent, differing_ranges, shown_bytes
from pytest_osgates.image.iso9660 import SECTOR, Extent
from pytest_osgates.image.source import Source, damaged

_MAX_PATH_TABLE = 4 << 20
_GAP_SHOWN = 32
_MAX_BASE = 1 << 20


class ImageContent:
    """A file of the ISO: its extents, one after another."""

    def __init__(self, source: Source, extents: tuple[Extent, ...]) -> None:
        self.source = source
        self.extents = extents
        self.size = sum(extent.size for extent in extents)

    @property
    def contiguous(self) -> Extent | None:
        """The one run of bytes that it is; None: it lies in pieces."""
        if not self.extents:
            return None
        whole = self.extents[0]
        for extent in self.extents[1:]:
            if extent.offset != whole.offset + whole.size:
                return None
            whole = Extent(whole.offset, whole.size + extent.size)
        return whole

    def read(self, offset: int, size: int) -> bytes:
        """:raise ImageError: it lies outside the image."""
        parts = []
        size = min(size, self.size - offset)
        for extent in self.extents:
            if size <= 0:
                break
            if offset >= extent.size:
                offset -= extent.size
                continue
            length = min(size, extent.size - offset)
            parts.append(self.source.read_at(extent.offset + offset, length))
            offset = 0
            size -= length
        return b"".join(parts)


# Name, offset of its place in the volume descriptor, byte order (8.4.16 to 8.4.19).
_PATH_TABLES = (("L", 140, "<"), ("optional L", 144, "<"), ("M", 148, ">"), ("optional M", 152, ">"))

# Called for two files whose bytes may differ: path and both contents.
CompareFile = Callable[[str, ImageContent, ImageContent], None]


@dataclass
class _Side:
    source: Source
    extents: Extents
    area: system.SystemArea
    descriptors: list[Descriptor]


def _side(source: Source) -> _Side:
    area = system.read_system_area(source)
    # A volume of its own in a partition has its own descriptors, and counts blocks from there.
    bases = dict.fromkeys([0, *(partition.start for partition in area.partitions if partition.start < _MAX_BASE)])
    found = [descriptor for base in bases for descriptor in descriptors(source, base)]
    return _Side(source, Extents(source.size), area, found)


class IsoComparison:
    """Compares two images; files go to `compare_file`, which says itself what differs in them."""

    def __init__(self, a: Source, b: Source, out: Findings, clean: CleanMap, compare_file: CompareFile) -> None:
        """:raise ImageError: one is no ISO."""
        self.out = out
        self.clean = clean
        self.compare_file = compare_file
        self.sides = tuple(_side(source) for source in (a, b))
        for side in self.sides:
            if not any(descriptor.raw[0] == 1 for descriptor in side.descriptors):
                raise damaged(side.source.name, "it has no primary volume descriptor")
        self._compared: set[tuple[tuple[Extent, ...], tuple[Extent, ...]]] = set()
        self._names: tuple[list[tuple[int, str]], list[tuple[int, str]]] = ([], [])

    def run(self) -> None:
        """:raise ImageError: one of them is damaged beyond what can be attributed."""
        self._sizes()
        self._system_area()
        self._descriptors()
        self._catalogs()
        self._trees()
        self._partitions()
        self._gaps()

    def _claim(self, side: int, start: int, size: int, name: str) -> None:
        self.sides[side].extents.claim(start, size)
        if size:
            self._names[side].append((start, name))

    def _sizes(self) -> None:
        one, other = (side.source.size for side in self.sides)
        if one != other:
            self.out.add(Difference(Layer.IMAGE, "", "image", "size", str(one), str(other), follows=True))

    def _system_area(self) -> None:
        system.compare_system_areas(self.sides[0].area, self.sides[1].area, self.out)
        for number, side in enumerate(self.sides):
            self._claim(number, 0, len(side.area.raw), "system area")
            for start, size in system.gpt_ranges(side.area):
                self._claim(number, start, size, "GPT")

    # -- descriptors ------------------------------------------------------------------------------------------------

    def _descriptors(self) -> None:
        named: list[dict[str, Descriptor]] = []
        for number, side in enumerate(self.sides):
            named.append({descriptor.name: descriptor for descriptor in side.descriptors})
            for descriptor in side.descriptors:
                self._claim(number, descriptor.offset, SECTOR, descriptor.name)
        for name in dict.fromkeys((*named[0], *named[1])):
            one, other = named[0].get(name), named[1].get(name)
            if one is None or other is None:
                there = one or other
                at = there.offset if there is not None else None
                shown = ["there" if descriptor is not None else "" for descriptor in (one, other)]
                what = "only in B" if one is None else "only in A"
                self.out.add(Difference(Layer.DESCRIPTOR, "", name, what, shown[0], shown[1], (at, at)))
            elif one.raw != other.raw:
                for found in descriptor_fields(one.raw, other.raw, (one.offset, other.offset)):
                    self._field(Layer.DESCRIPTOR, name, found)

    def _field(self, layer: Layer, path: str, found: Field) -> None:
        if found.rock_ridge:
            layer = Layer.ROCK_RIDGE
        self.out.add(
            Difference(layer, "", path, found.what, found.a, found.b, found.offsets, found.delta, found.follows)
        )

    def _catalogs(self) -> None:
        found = []
        for number, side in enumerate(self.sides):
            record = next(
                (d for d in side.descriptors if d.raw[0] == 0 and d.raw[7:30] == b"EL TORITO SPECIFICATION"), None
            )
            if record is None:
                found.append((b"", 0))
                continue
            at = struct.unpack_from("<I", record.raw, 71)[0] * SECTOR
            found.append((side.source.read_at(at, SECTOR), at))
            self._claim(number, at, SECTOR, "boot catalog")
        (a, at_a), (b, at_b) = found
        if bool(a) != bool(b):
            shown = ["there" if raw else "none" for raw in (a, b)]
            self.out.add(Difference(Layer.EL_TORITO, "", "boot catalog", "presence", shown[0], shown[1]))
        elif a != b:
            system.compare_catalogs(a, b, (at_a, at_b), self.out)
        self._catalog_at = (at_a, at_b)

    # -- trees ------------------------------------------------------------------------------------------------------

    def _trees(self) -> None:
        pairs = []
        for name in dict.fromkeys(d.name for side in self.sides for d in side.descriptors if d.has_tree):
            trees: list[IsoTree | None] = []
            for number, side in enumerate(self.sides):
                descriptor = next((d for d in side.descriptors if d.name == name), None)
                trees.append(None if descriptor is None else self._tree(number, side, descriptor))
            pairs.append(trees)
        for one, other in pairs:
            if one is not None and other is not None:
                self._path_tables(one, other)
                self._nodes(one, other)

    def _tree(self, number: int, side: _Side, descriptor: Descriptor) -> IsoTree:
        tree = read_tree(side.source, descriptor)
        label = "Joliet directory" if descriptor.joliet else "directory"
        for node in tree.nodes.values():
            if node.path.endswith(("/.", "/..")):
                continue
            for extent in node.extents:
                if extent.size and extent.offset + extent.size > side.source.size:
                    raise damaged(side.source.name, f"{node.path!r} reaches beyond its end")
                # The rest of the last sector belongs to the file; what is in it is compared with the contents.
                size = min(-(-extent.size // SECTOR) * SECTOR, side.source.size - extent.offset)
                self._claim(number, extent.offset, size, f"{label} {node.path}" if node.is_dir else node.path)
        for extent in tree.continuations:
            self._claim(number, extent.offset, extent.size, "continuation area")
        for name, at, order in _PATH_TABLES:
            place = _path_table(side.source, descriptor, at, order)
            if place is not None:
                self._claim(number, place.offset, place.size, f"path table {name}")
        return tree

    def _path_tables(self, one: IsoTree, other: IsoTree) -> None:
        base = one.descriptor.base
        of = (" of Joliet" if one.descriptor.joliet else "") + (f" of the volume at {base}" if base else "")
        for name, at, order in _PATH_TABLES:
            raws, offsets, wrong = [b"", b""], [0, 0], [0, 0]
            for number, tree in enumerate((one, other)):
                source = self.sides[number].source
                place = _path_table(source, tree.descriptor, at, order)
                if place is not None:
                    raws[number] = source.read_at(place.offset, place.size)
                    offsets[number] = place.offset
                    wrong[number] = _wrong_path_table(raws[number], order, tree)
            if raws[0] == raws[1]:
                continue
            shown = [
                f"{len(raw)} bytes" + (f", {count} wrong entries" if count else "")
                for raw, count in zip(raws, wrong, strict=True)
            ]
            self.out.add(
                Difference(
                    Layer.PATH_TABLE,
                    "",
                    f"path table {name}{of}",
                    "entries",
                    shown[0],
                    shown[1],
                    (offsets[0], offsets[1]),
                    follows=wrong == [0, 0],
                )
            )

    def _nodes(self, one: IsoTree, other: IsoTree) -> None:
        layer = Layer.JOLIET if one.descriptor.joliet else Layer.DIRECTORY
        for path in dict.fromkeys((*one.nodes, *other.nodes)):
            left, right = one.nodes.get(path), other.nodes.get(path)
            if left is None or right is None:
                if not path.endswith(("/.", "/..")):
                    self._one_sided(layer, path, left, right)
                continue
            self.out.nodes += 1
            if (
                left.records[0].raw != right.records[0].raw
                or len(left.records) + len(right.records) > 2
                or left.records[0].uses != right.records[0].uses
            ):
                self._records(layer, path, left, right)
            if not left.is_dir and not right.is_dir:
                self._contents(path, left, right)
            elif left.is_dir and right.is_dir and not path.endswith(("/.", "/..")):
                self._unused(layer, path, (one, left), (other, right))

    def _unused(self, layer: Layer, path: str, one: tuple[IsoTree, IsoNode], other: tuple[IsoTree, IsoNode]) -> None:
        """What stands in a directory's sectors besides its records: zeros, or something hides there."""
        places = one[1].extents[0], other[1].extents[0]
        if places[0] == places[1] and self.clean.clean(places[0].offset, places[0].size):
            return
        rests = []
        for side, (tree, node), place in zip(self.sides, (one, other), places, strict=True):
            size = min(-(-place.size // SECTOR) * SECTOR, side.source.size - place.offset)
            rest = bytearray(side.source.read_at(place.offset, size))
            for record in tree.records_of(node):
                start = record.offset - place.offset
                rest[start : start + len(record.raw)] = bytes(len(record.raw))
            rests.append(bytes(rest).strip(b"\x00"))
        if rests[0] != rests[1]:
            self.out.add(
                Difference(
                    layer,
                    "",
                    path,
                    "bytes between records",
                    hexed(rests[0]),
                    hexed(rests[1]),
                    (places[0].offset, places[1].offset),
                )
            )

    def _one_sided(self, layer: Layer, path: str, left: IsoNode | None, right: IsoNode | None) -> None:
        node = left or right
        if node is None:
            return
        text = "directory" if node.is_dir else f"file of {node.size} bytes"
        at = node.records[0].offset
        what, shown = ("only in A", (text, "")) if right is None else ("only in B", ("", text))
        offsets = (at, None) if right is None else (None, at)
        self.out.add(Difference(layer, "", path, what, shown[0], shown[1], offsets))

    def _records(self, layer: Layer, path: str, left: IsoNode, right: IsoNode) -> None:
        if len(left.records) != len(right.records):
            self.out.add(
                Difference(
                    layer,
                    "",
                    path,
                    "sections",
                    str(len(left.records)),
                    str(len(right.records)),
                    (left.records[0].offset, right.records[0].offset),
                )
            )
        for one, other in zip(left.records, right.records, strict=False):
            for found in record_fields(one, other):
                # A directory is as long as its entries need.
                follows = found.follows or (found.what == "size" and left.is_dir)
                self._field(layer, path, found._replace(follows=follows))

    def _contents(self, path: str, left: IsoNode, right: IsoNode) -> None:
        self._content_of(path, tuple(left.extents), tuple(right.extents))

    def _content_of(self, path: str, left: tuple[Extent, ...], right: tuple[Extent, ...]) -> None:
        key = (left, right)
        if key in self._compared or (not left and not right):
            return
        self._compared.add(key)
        starts = tuple(extents[0].offset if extents else -1 for extents in key)
        if starts == self._catalog_at:
            return
        if left == right and all(
            self.clean.clean(extent.offset, -(-extent.size // SECTOR) * SECTOR) for extent in left
        ):
            return
        one, other = (ImageContent(side.source, key[n]) for n, side in enumerate(self.sides))
        self.compare_file(path, one, other)
        self._slack(path, left, right)

    def _slack(self, path: str, left: tuple[Extent, ...], right: tuple[Extent, ...]) -> None:
        tails = []
        for side, extents in zip(self.sides, (left, right), strict=True):
            end = extents[-1].offset + extents[-1].size if extents else 0
            tails.append(side.source.read_at(end, min(-end % SECTOR, side.source.size - end)))
        if tails[0].rstrip(b"\x00") != tails[1].rstrip(b"\x00"):
            ends = [extents[-1].offset + extents[-1].size if extents else None for extents in (left, right)]
            self.out.add(
                Difference(
                    Layer.PADDING,
                    "",
                    path,
                    "bytes after the end of the file",
                    hexed(tails[0].rstrip(b"\x00")),
                    hexed(tails[1].rstrip(b"\x00")),
                    (ends[0], ends[1]),
                )
            )

    # -- what is left
    # -------------------------------------------------------------------------------------------------

    def _partitions(self) -> None:
        """Partitions that hold no file of the tree, and boot images that only the catalog names."""
        known = [_unclaimed_partitions(side) for side in self.sides]
        for name in dict.fromkeys((*known[0], *known[1])):
            left, right = (tuple(filter(None, (found.get(name),))) for found in known)
            for number, extents in enumerate((left, right)):
                for extent in extents:
                    self._claim(number, extent.offset, extent.size, name)
            if left and right:
                self._content_of(f"[{name}]", left, right)
            else:
                text = [f"{extents[0].size} bytes" if extents else "" for extents in (left, right)]
                self.out.add(
                    Difference(Layer.IMAGE, "", f"[{name}]", "only in A" if left else "only in B", text[0], text[1])
                )

    def _gaps(self) -> None:
        gaps = [self._gap_contents(number) for number in (0, 1)]
        for key in gaps[0].keys() & gaps[1].keys():
            shared = min(len(gaps[0][key]), len(gaps[1][key]))
            for side in gaps:
                del side[key][:shared]
        left = [
            [piece for places in side.values() for place in places for piece in self._split(number, place)]
            for number, side in enumerate(gaps)
        ]
        # Two pieces are one finding only where they begin in one place.
        sides = [dict(pieces) for pieces in left]
        for start in sorted({*sides[0], *sides[1]}):
            one, other = (None if start not in side else (start, side[start]) for side in sides)
            self._gap(one, other)

    def _split(self, number: int, place: tuple[int, int]) -> list[tuple[int, int]]:
        """An unclaimed range, cut where the claims of the other image begin and end; what is all zeros is left
        out."""
        start, end = place[0], sum(place)
        cuts = {start, end}
        for claim in self.sides[1 - number].extents.merged():
            cuts |= {cut for cut in claim if start < cut < end}
        borders = sorted(cuts)
        pieces = []
        for first, last in pairwise(borders):
            for at in range(first, last, CHUNK):
                data = self.sides[number].source.read_at(at, min(CHUNK, last - at))
                body = data.strip(b"\x00")
                if body:
                    pieces.append((at + len(data) - len(data.lstrip(b"\x00")), len(body)))
        return pieces

    def _gap_contents(self, number: int) -> dict[bytes, list[tuple[int, int]]]:
        """Unclaimed ranges that hold anything but zeros, by the digest of what they hold."""
        side = self.sides[number]
        found: dict[bytes, list[tuple[int, int]]] = {}
        for start, end in side.extents.gaps():
            digest, first, last = hashlib.blake2b(digest_size=16), None, start
            # What both have in the same place needs no look.
            for at in range(start, end, CHUNK):
                data = side.source.read_at(at, min(CHUNK, end - at))
                body = data.rstrip(b"\x00")
                if first is None and body:
                    lead = len(data) - len(data.lstrip(b"\x00"))
                    first = at + lead
                    digest.update(body[lead:])
                elif first is not None and body:
                    digest.update(bytes(at - last) + body)
                if body:
                    last = at + len(body)
            if first is not None:
                found.setdefault(digest.digest(), []).append((first, last - first))
        return found

    def _gap(self, a: tuple[int, int] | None, b: tuple[int, int] | None) -> None:
        shown, heads = ["nothing", "nothing"], [b"", b""]
        for number, gap in enumerate((a, b)):
            if gap is not None:
                heads[number] = self.sides[number].source.read_at(gap[0], min(gap[1], CHUNK))
                shown[number] = f"{gap[1]} bytes: {shown_bytes(heads[number][:_GAP_SHOWN])}"
        size = max(gap[1] for gap in (a, b) if gap is not None)
        differing = size
        if a is not None and b is not None and size <= CHUNK:
            differing = differing_ranges(BytesContent(heads[0]), BytesContent(heads[1])).differing
        offsets = (a[0] if a else None, b[0] if b else None)
        number, at = (0, a[0]) if a is not None else (1, b[0] if b is not None else 0)
        name = self._structure(number, at, heads[number]) or self._claimed_by_other(number, at, size)
        if name:
            self.out.add(
                Difference(
                    Layer.IMAGE, "", name, "bytes", shown[0], shown[1], offsets, differing=differing, kind="as bytes"
                )
            )
            return
        self.out.unexplained += differing
        after = max((entry for entry in self._names[number] if entry[0] <= at), default=(0, "the beginning"))[1]
        self.out.add(
            Difference(
                Layer.UNEXPLAINED,
                "",
                f"after {after}",
                "bytes of no structure",
                shown[0],
                shown[1],
                offsets,
                differing=differing,
            )
        )

    def _claimed_by_other(self, number: int, at: int, size: int) -> str:
        """The structure that the other image has in this place: here, what leads to it is damaged."""
        other = 1 - number
        if not any(start <= at and at + size <= end for start, end in self.sides[other].extents.merged()):
            return ""
        return max((entry for entry in self._names[other] if entry[0] <= at), default=(0, ""))[1]

    def _structure(self, number: int, at: int, head: bytes) -> str:
        """The structure that unclaimed bytes belong to, if they say so or a partition does."""
        if head.startswith(b"libisofs_") or b"libisofs_checksum_tag" in head or b"libisofs_tree_checksum" in head:
            return "libisofs checksums"
        if any(head[index + 1 : index + 6] == b"CD001" for index in range(-at % SECTOR, len(head), SECTOR)):
            # xorriso leaves room for a later session, and keeps its start there.
            return "volume descriptors of another session"
        for partition in self.sides[number].area.partitions:
            if partition.hfs and partition.start <= at < partition.start + partition.size:
                return f"HFS+ in {partition.name}"
        return ""


def _unclaimed_partitions(side: _Side) -> dict[str, Extent]:
    """Partitions of which no byte is claimed, and hidden boot images, by their names."""
    found: dict[str, Extent] = {}
    gaps = side.extents.gaps()
    for partition in side.area.partitions:
        end = min(partition.start + partition.size, side.source.size)
        if any(start <= partition.start and end <= stop for start, stop in gaps) and end > partition.start:
            extent = Extent(partition.start, end - partition.start)
            if extent not in found.values():
                found[partition.name] = extent
    record = next((d for d in side.descriptors if d.raw[0] == 0 and d.raw[7:30] == b"EL TORITO SPECIFICATION"), None)
    if record is not None:
        catalog = side.source.read_at(struct.unpack_from("<I", record.raw, 71)[0] * SECTOR, SECTOR)
        for number in range(1, SECTOR // 32):
            indicator, sectors, lba = struct.unpack_from("<B5xHI", catalog, 32 * number)
            at, size = lba * SECTOR, sectors * 512
            if indicator == 0x88 and size and any(start <= at and at + size <= stop for start, stop in gaps):
                extent = Extent(at, size)
                if not any(other.offset <= at < other.offset + other.size for other in found.values()):
                    found[f"boot image of catalog entry {number}"] = extent
    return found


def _path_table(source: Source, descriptor: Descriptor, at: int, order: str) -> Extent | None:
    """Where a path table is; None: there is none, or it cannot be one."""
    (block,) = struct.unpack_from(f"{order}I", descriptor.raw, at)
    (size,) = struct.unpack_from("<I", descriptor.raw, 132)
    start = descriptor.base + block * descriptor.block_size
    if not block or size > _MAX_PATH_TABLE or start + size > source.size:
        return None
    return Extent(start, size)


def _wrong_path_table(raw: bytes, order: str, tree: IsoTree) -> int:
    """How many entries (9.4) lead to no directory of the tree."""
    block = tree.descriptor.block_size
    there = {
        (node.extents[0].offset - tree.descriptor.base) // block
        for node in tree.nodes.values()
        if node.is_dir and node.extents
    }
    position, wrong = 0, 0
    while position + 8 <= len(raw):
        length, skip, extent = struct.unpack_from(f"{order}BBI", raw, position)
        if not length:
            wrong += any(raw[position:])
            break
        wrong += extent + skip not in there
        position += 8 + length + (length & 1)
    return wrong


__all__ = ["ImageContent", "IsoComparison"]
