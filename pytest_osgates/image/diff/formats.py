"""Inside two files that differ: which part of their format it is, so that the cause can be seen.

Each inspector gets both contents and the ranges that differ, and names places. What a file says of its own sizes is
taken with care: whatever does not fit is shown as bytes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from itertools import zip_longest

from pytest_osgates.image.diff.found import Spot, hexed, quoted
from pytest_osgates.image.diff.ranges import BytesContent, Content, Ranges, differing_ranges, spots
from pytest_osgates.image.diff.squashfs_walk import shown_time
from pytest_osgates.image.diff.streams import Stream, method_of
from pytest_osgates.vm.errors import ImageError

MAX_WHOLE = 4 << 20
_MAX_TEXT = 1 << 20
_MAX_LINES = 6
_LOCUSES = 8

Places = list[tuple[int, int, str]]
"""Parts of a file: start, end, name."""


def inspect(path: str, a: Content, b: Content, ranges: Ranges, depth: int = 0) -> tuple[str, tuple[Spot, ...]]:
    """The format that both have, and the places that differ."""
    heads = a.read(0, 2048), b.read(0, 2048)
    for kind, tells, look in _FORMATS:
        if all(tells(head, path) for head in heads):
            try:
                found = look(path, a, b, ranges)
            except (ImageError, struct.error, ValueError, IndexError, OverflowError):
                continue
            return kind, found or spots(a, b, ranges)
    method = method_of(heads[0])
    if method is not None and method is method_of(heads[1]) and depth < 3:
        found = _compressed(path, a, b, ranges, depth)
        if found:
            return method.label, found
    if a.size <= _MAX_TEXT and b.size <= _MAX_TEXT:
        texts = a.read(0, a.size), b.read(0, b.size)
        if all(b"\x00" not in text for text in texts):
            return "text", _text(*texts, ranges)
    return "data", spots(a, b, ranges)


def _named(a: Content, b: Content, ranges: Ranges, places: Places) -> tuple[Spot, ...]:
    """The differing ranges by the part that they begin in."""
    places = sorted(places)
    starts = [place[0] for place in places]
    found: dict[str, Spot] = {}
    for spot, (start, _) in zip(spots(a, b, ranges, 64), ranges.found, strict=False):
        index = bisect_right(starts, start) - 1
        while index >= 0 and places[index][1] <= start:
            index -= 1
            if index < bisect_right(starts, start) - 8:
                index = -1
        name = places[index][2] if index >= 0 else "bytes"
        if name not in found and len(found) < _LOCUSES:
            found[name] = Spot(name, spot.offset, spot.size, spot.a, spot.b)
    return tuple(found.values())


# -- text ------------------------------------------------------------------------------------------------------------


def _text(x: bytes, y: bytes, ranges: Ranges) -> tuple[Spot, ...]:
    left, right = x.splitlines(keepends=True), y.splitlines(keepends=True)
    if sorted(left) == sorted(right):
        first = next(i for i, (p, q) in enumerate(zip(left, right, strict=True)) if p != q)
        return (
            Spot(
                "same lines in another order",
                ranges.first,
                ranges.differing,
                quoted(left[first].rstrip()),
                quoted(right[first].rstrip()),
            ),
        )
    if len(left) != len(right):
        # One line more or less shifts the others: what only one of them has says more.
        gone, come = _only(left, right), _only(right, left)
        lines = zip_longest(gone[:_MAX_LINES], come[:_MAX_LINES], fillvalue=(None, b""))
        found = []
        for (p, one), (q, other) in lines:
            number = p if p is not None else q
            found.append(
                Spot(
                    f"line {(number or 0) + 1}",
                    ranges.first,
                    ranges.differing,
                    quoted(one.rstrip()),
                    quoted(other.rstrip()),
                )
            )
        return tuple(found)
    found, offset = [], 0
    for number, (one, other) in enumerate(zip(left, right, strict=True), 1):
        if one != other:
            found.append(
                Spot(
                    f"line {number}", offset, max(len(one), len(other)), quoted(one.rstrip()), quoted(other.rstrip())
                )
            )
            if len(found) == _MAX_LINES:
                break
        offset += len(one)
    return tuple(found)


def _only(lines: list[bytes], others: list[bytes]) -> list[tuple[int | None, bytes]]:
    known = set(others)
    return [(number, line) for number, line in enumerate(lines) if line not in known]


# -- compressed ------------------------------------------------------------------------------------------------------


def _compressed(path: str, a: Content, b: Content, ranges: Ranges, depth: int) -> tuple[Spot, ...]:
    method = method_of(a.read(0, 8))
    if method is None:
        return ()
    found: list[Spot] = []
    x, y = a.read(0, 10), b.read(0, 10)
    if method.label == "gzip":
        for what, start, size in (("flags", 3, 1), ("mtime", 4, 4), ("extra flags", 8, 1), ("system", 9, 1)):
            p, q = x[start : start + size], y[start : start + size]
            if p != q:
                shown = [shown_time(int.from_bytes(v, "little")) if what == "mtime" else hexed(v) for v in (p, q)]
                found.append(Spot(f"gzip header: {what}", start, size, shown[0], shown[1]))
        if x[3] & 8 and y[3] & 8:
            names = [c.read(10, 256).split(b"\x00")[0] for c in (a, b)]
            if names[0] != names[1]:
                found.append(Spot("gzip header: name", 10, len(names[0]), *map(quoted, names)))
    try:
        inner = [Stream(content, method).read(MAX_WHOLE) for content in (a, b)]
    except ImageError as error:
        return (*found, Spot(f"compressed data: {error.what}", ranges.first, ranges.differing, "", ""))
    one, other = BytesContent(inner[0]), BytesContent(inner[1])
    below = differing_ranges(one, other)
    if below.differing:
        kind, spots_inside = inspect(path.rpartition(".")[0] or path, one, other, below, depth + 1)
        found += [Spot(f"uncompressed {kind}: {s.locus}", s.offset, s.size, s.a, s.b) for s in spots_inside]
    elif not found:
        found.append(Spot("the same contents, compressed otherwise", ranges.first, ranges.differing, "", ""))
    return tuple(found)


# -- programs --------------------------------------------------------------------------------------------------------


def _elf_places(content: Content) -> Places:
    """Sections by their names (elf(5)); the notes of build ids by what they are."""
    head = content.read(0, 64)
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    if wide:
        table, size, count, names = (
            *struct.unpack_from(order + "Q", head, 40),
            *struct.unpack_from(order + "HHH", head, 58),
        )
    else:
        table, size, count, names = (
            *struct.unpack_from(order + "I", head, 32),
            *struct.unpack_from(order + "HHH", head, 46),
        )
    if not 0 < count <= 4096 or size not in (40, 64):
        return [(0, 64 if wide else 52, "ELF header")]
    raw = content.read(table, size * count)
    layout = order + ("II8x8xQQ" if wide else "II4x4xII")
    headers = [struct.unpack_from(layout, raw, size * number) for number in range(len(raw) // size)]
    strings_at, strings_size = headers[names][2], min(headers[names][3], 1 << 20)
    strings = content.read(strings_at, strings_size)
    places: Places = [(0, 64 if wide else 52, "ELF header"), (table, table + size * count, "ELF section headers")]
    for name_at, kind, start, length in headers:
        if kind in (0, 8) or not length:
            continue
        name = quoted(strings[name_at : strings.find(b"\x00", name_at)])
        label = "ELF build id" if name == ".note.gnu.build-id" else f"ELF section {name}"
        places.append((start, start + length, label))
    return places


def _elf(path: str, a: Content, b: Content, ranges: Ranges) -> tuple[Spot, ...]:
    return _named(a, b, ranges, _elf_places(a))


def _pyc(path: str, a: Content, b: Content, ranges: Ranges) -> tuple[Spot, ...]:
    """PEP 552: a magic number, flags, and either the source's time and size, or its hash."""
    x, y = a.read(0, 16), b.read(0, 16)
    found = []
    parts = (("magic number", 0, 4), ("flags", 4, 4), ("source mtime", 8, 4), ("source size", 12, 4))
    if x[4] & 1 or y[4] & 1:
        parts = (("magic number", 0, 4), ("flags", 4, 4), ("source hash", 8, 8), ("source hash", 8, 0))
    for what, start, size in parts:
        p, q = x[start : start + size], y[start : start + size]
        if p != q:
            shown = [shown_time(int.from_bytes(v, "little")) if what == "source mtime" else hexed(v) for v in (p, q)]
            found.append(Spot(f"pyc header: {what}", start, size, shown[0], shown[1]))
    if ranges.last > 16:
        code = Ranges([(max(start, 16), size) for start, size in ranges.found if start + size > 16], ranges.differing)
        found += [Spot("pyc code", s.offset, s.size, s.a, s.b) for s in spots(a, b, code, 3)]
    return tuple(found)


# -- archives --------------------------------------------------------------------------------------------------------


def _ar_places(content: Content) -> Places:
    places: Places = []
    at = 8
    while at + 60 <= content.size and len(places) < 4000:
        header = content.read(at, 60)
        if header[58:60] != b"`\n":
            break
        name = quoted(header[:16].rstrip(b" /")) or "symbols"
        size = int(header[48:58])
        for what, start, length in (
            ("name", 0, 16),
            ("mtime", 16, 12),
            ("owner", 28, 6),
            ("group", 34, 6),
            ("mode", 40, 8),
            ("size", 48, 10),
        ):
            places.append((at + start, at + start + length, f"ar member {name}: {what}"))
        places.append((at + 60, at + 60 + size, f"ar member {name}"))
        at += 60 + size + (size & 1)
    return places


def _ar(path: str, a: Content, b: Content, ranges: Ranges) -> tuple[Spot, ...]:
    return _named(a, b, ranges, _ar_places(a))


def _zip_places(content: Content) -> Places:
    """Local headers by the order of the file (APPNOTE 4.3.7), as long as they can be followed."""
    places: Places = []
    at = 0
    while at + 30 <= content.size and len(places) < 4000:
        header = content.read(at, 30)
        if header[:4] != b"PK\x03\x04":
            break
        size, name_size, extra = *struct.unpack_from("<I", header, 18), *struct.unpack_from("<HH", header, 26)
        name = quoted(content.read(at + 30, min(name_size, 200)))
        body = at + 30 + name_size + extra
        places += [
            (at + 10, at + 14, f"zip member {name}: mtime"),
            (at + 30 + name_size, body, f"zip member {name}: extra field"),
            (body, body + size, f"zip member {name}"),
        ]
        if struct.unpack_from("<H", header, 6)[0] & 8:
            break
        at = body + size
    places.append((at, content.size, "zip central directory"))
    return places


def _zip(path: str, a: Content, b: Content, ranges: Ranges) -> tuple[Spot, ...]:
    return _named(a, b, ranges, _zip_places(a))


def _tar_places(content: Content) -> Places:
    places: Places = []
    at = 0
    while at + 512 <= content.size and len(places) < 4000:
        header = content.read(at, 512)
        if not header.rstrip(b"\x00"):
            break
        name = quoted(header[:100].rstrip(b"\x00"))
        size = int(header[124:136].rstrip(b"\x00 ") or b"0", 8)
        for what, start, length in (
            ("mode", 100, 8),
            ("owner", 108, 8),
            ("group", 116, 8),
            ("size", 124, 12),
            ("mtime", 136, 12),
            ("owner name", 265, 32),
            ("group name", 297, 32),
        ):
            places.append((at + start, at + start + length, f"tar member {name}: {what}"))
        places.append((at + 512, at + 512 + size, f"tar member {name}"))
        at += 512 + -(-size // 512) * 512
    return places


def _tar(path: str, a: Content, b: Content, ranges: Ranges) -> tuple[Spot, ...]:
    return _named(a, b, ranges, _tar_places(a))


# -- data bases, pictures, file systems
# --------------------------------------------------------------------------------


def _sqlite(path: str, a: Content, b: Content, ranges: Ranges) -> tuple[Spot, ...]:
    """The header's fields (sqlite.org/fileformat2), and pages by their numbers."""
    page = struct.unpack(">H", a.read(16, 2))[0]
    page = 65536 if page == 1 else page
    places: Places = [
        (24, 28, "SQLite header: change counter"),
        (92, 96, "SQLite header: valid for"),
        (96, 100, "SQLite header: version"),
    ]
    found = _named(a, b, Ranges([r for r in ranges.found if r[0] < 100]), places)
    if page < 512:
        return found
    pages: dict[int, Spot] = {}
    for spot in spots(a, b, ranges, 32):
        number = spot.offset // page + 1
        if spot.offset >= 100 and number not in pages and len(pages) < _LOCUSES:
            pages[number] = Spot(f"SQLite page {number}", spot.offset, spot.size, spot.a, spot.b)
    return (*found, *pages.values())


def _png_places(content: Content) -> Places:
    places: Places = []
    at = 8
    while at + 12 <= content.size and len(places) < 4000:
        length, kind = struct.unpack(">I4s", content.read(at, 8))
        places.append((at, at + 12 + length, f"PNG chunk {quoted(kind)}"))
        at += 12 + length
    return places


def _jpeg_places(content: Content) -> Places:
    places: Places = []
    at = 2
    while at + 4 <= content.size and len(places) < 4000:
        marker, kind, length = struct.unpack(">BBH", content.read(at, 4))
        if marker != 0xFF or kind == 0xDA:
            break
        label = {0xE1: "JPEG metadata (Exif or XMP)", 0xFE: "JPEG comment"}.get(kind, f"JPEG segment {kind:#04x}")
        places.append((at, at + 2 + length, label))
        at += 2 + length
    places.append((at, content.size, "JPEG picture"))
    return places


def _picture(places_of: Callable[[Content], Places]) -> Look:
    return lambda path, a, b, ranges: _named(a, b, ranges, places_of(a))


# The superblock of ext2/3/4 lies at 1024 (Documentation/filesystems/ext4/super.rst), that of EROFS too
# (fs/erofs/erofs_fs.h).
_EXT4 = (
    ("mount time", 0x2C, 4),
    ("write time", 0x30, 4),
    ("mount count", 0x34, 2),
    ("last checked", 0x40, 4),
    ("UUID", 0x68, 16),
    ("volume name", 0x78, 16),
    ("last mounted on", 0x88, 64),
    ("hash seed", 0xEC, 16),
    ("creation time", 0x108, 4),
    ("KiB written", 0x178, 8),
    ("checksum", 0x3FC, 4),
)
_EROFS = (
    ("checksum", 4, 4),
    ("build time", 24, 8),
    ("build time, nanoseconds", 32, 4),
    ("UUID", 48, 16),
    ("volume name", 64, 16),
)


def _filesystem(label: str, fields: tuple[tuple[str, int, int], ...]) -> Look:
    def look(path: str, a: Content, b: Content, ranges: Ranges) -> tuple[Spot, ...]:
        found = []
        x, y = a.read(1024, 1024), b.read(1024, 1024)
        for what, start, size in fields:
            p, q = x[start : start + size], y[start : start + size]
            if p != q:
                shown = [
                    shown_time(int.from_bytes(v[:4], "little")) if "time" in what and size in (4, 8) else hexed(v)
                    for v in (p, q)
                ]
                found.append(Spot(f"{label} superblock: {what}", 1024 + start, size, shown[0], shown[1]))
        rest = [s for s in spots(a, b, ranges, 12) if not 1024 <= s.offset < 2048]
        return (*found, *(Spot(f"{label}, compared as bytes", s.offset, s.size, s.a, s.b) for s in rest))

    return look


# -- boot loaders
# ------------------------------------------------------------------------------------------------------


def _boot_info(path: str, a: Content, b: Content, ranges: Ranges) -> tuple[Spot, ...]:
    """mkisofs(8), -boot-info-table: 56 bytes from the eighth on; GRUB's own (-grub2-boot-info) at 2548."""
    places: Places = [
        (8, 12, "boot info table: volume descriptor"),
        (12, 16, "boot info table: place of the file"),
        (16, 20, "boot info table: length"),
        (20, 24, "boot info table: checksum"),
        (24, 64, "boot info table: reserved"),
        (2548, 2556, "GRUB boot info: place of the file"),
    ]
    return _named(a, b, ranges, places)


def _is_eltorito(head: bytes, path: str) -> bool:
    # Its first word is where the volume descriptor is: block 16.
    return head[8:12] == b"\x10\x00\x00\x00" and len(head) >= 64


Tells = Callable[[bytes, str], bool]
Look = Callable[[str, Content, Content, Ranges], tuple[Spot, ...]]


def _magic(magic: bytes, at: int = 0) -> Tells:
    return lambda head, path: head.startswith(magic, at)


_FORMATS: tuple[tuple[str, Tells, Look], ...] = (
    ("ELF", _magic(b"\x7fELF"), _elf),
    ("pyc", lambda head, path: path.endswith(".pyc") and head[2:4] == b"\r\n", _pyc),
    ("ar", _magic(b"!<arch>\n"), _ar),
    ("SQLite", _magic(b"SQLite format 3\x00"), _sqlite),
    ("PNG", _magic(b"\x89PNG\r\n\x1a\n"), _picture(_png_places)),
    ("JPEG", _magic(b"\xff\xd8\xff"), _picture(_jpeg_places)),
    ("zip", _magic(b"PK\x03\x04"), _zip),
    ("tar", _magic(b"ustar", 257), _tar),
    ("ext4", _magic(b"\x53\xef", 1080), _filesystem("ext4", _EXT4)),
    ("EROFS", _magic(b"\xe2\xe1\xf5\xe0", 1024), _filesystem("EROFS", _EROFS)),
    ("El Torito boot image", _is_eltorito, _boot_info),
)
