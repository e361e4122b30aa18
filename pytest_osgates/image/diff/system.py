"""The system area and what boots from it: MBR, GPT (both copies), Apple partition map, El Torito catalog.

Sources: ECMA-119 6.2.1 (the first 16 sectors are the system's); UEFI 2.10, 5.2 and 5.3 for MBR and GPT; Inside
Macintosh, Devices, 3-12 for the Apple map; "El Torito" 1.0; isohybrid.c of syslinux and libisofs'
doc/boot_sectors.txt
for what stands in the boot code.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from pytest_osgates.image.diff.found import Difference, Findings, Layer, hexed, quoted
from pytest_osgates.image.diff.ranges import BytesContent, differing_ranges, shown_bytes
from pytest_osgates.image.iso9660 import SECTOR
from pytest_osgates.image.source import Source

SYSTEM_AREA = 16 * SECTOR
LBA = 512
_MAX_ENTRIES = 512
# Field, offset in the header, bytes, whether it only follows from the partitions' places or from the rest.
_GPT_HEADER = (
    ("signature", 0, 8, False),
    ("revision", 8, 4, False),
    ("header size", 12, 4, False),
    ("header CRC", 16, 4, True),
    ("reserved field", 20, 4, False),
    ("own LBA", 24, 8, True),
    ("other header's LBA", 32, 8, True),
    ("first usable LBA", 40, 8, True),
    ("last usable LBA", 48, 8, True),
    ("disk GUID", 56, 16, False),
    ("LBA of the entries", 72, 8, True),
    ("number of entries", 80, 4, False),
    ("size of an entry", 84, 4, False),
    ("CRC of the entries", 88, 4, True),
    ("rest of the sector", 92, 420, False),
)
_GPT_ENTRY = (
    ("type GUID", 0, 16, False),
    ("partition GUID", 16, 16, False),
    ("first LBA", 32, 8, True),
    ("last LBA", 40, 8, True),
    ("attributes", 48, 8, False),
    ("name", 56, 72, False),
)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition: `start` and `size` in bytes; `name` for the reader; `hfs`: HFS+, as libisofs adds for Apple."""

    name: str
    start: int
    size: int
    hfs: bool = False


@dataclass(slots=True)
class Gpt:
    """One copy of a GPT: where its header and its entries are."""

    name: str
    header_at: int
    header: bytes
    entries_at: int
    entries: bytes


@dataclass
class SystemArea:
    """What one image has before its volume descriptors, and its backup GPT."""

    raw: bytes
    partitions: list[Partition] = field(default_factory=list)
    gpts: list[Gpt] = field(default_factory=list)
    apple: list[tuple[int, int]] = field(default_factory=list)


def read_system_area(source: Source) -> SystemArea:
    """Whatever can be made out; what cannot is left to be compared as bytes."""
    raw = source.read_at(0, min(SYSTEM_AREA, source.size))
    area = SystemArea(raw)
    if raw[510:512] == b"\x55\xaa":
        for number in range(4):
            kind, start, size = struct.unpack_from("<4xB3xII", raw, 446 + 16 * number)
            if kind and size and start:
                area.partitions.append(Partition(f"MBR partition {number + 1}", start * LBA, size * LBA))
    if raw[LBA : LBA + 8] == b"EFI PART":
        _read_gpt(source, area)
    _read_apple(source, area)
    return area


def _read_gpt(source: Source, area: SystemArea) -> None:
    primary = _gpt(source, "primary GPT", LBA)
    if primary is None:
        return
    area.gpts.append(primary)
    (backup_at,) = struct.unpack_from("<Q", primary.header, 32)
    backup = _gpt(source, "backup GPT", backup_at * LBA)
    if backup is not None:
        area.gpts.append(backup)
    for number in range(len(primary.entries) // 128):
        entry = primary.entries[128 * number : 128 * number + 128]
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and first <= last:
            hfs = entry[:16] == uuid.UUID("48465300-0000-11aa-aa11-00306543ecac").bytes_le
            area.partitions.append(
                Partition(f"GPT partition {number + 1}", first * LBA, (last - first + 1) * LBA, hfs)
            )


def _gpt(source: Source, name: str, at: int) -> Gpt | None:
    if at + LBA > source.size:
        return None
    header = source.read_at(at, LBA)
    if header[:8] != b"EFI PART":
        return None
    entries_at, count, size = struct.unpack_from("<QII", header, 72)
    length = min(count, _MAX_ENTRIES) * 128 if size == 128 else 0
    if entries_at * LBA + length > source.size:
        length = 0
    return Gpt(name, at, header, entries_at * LBA, source.read_at(entries_at * LBA, length) if length else b"")


def _read_apple(source: Source, area: SystemArea) -> None:
    for block in (2048, 512):
        for number in range(1, 16):
            at = block * number
            if at + 80 > len(area.raw) or area.raw[at : at + 2] != b"PM":
                break
            start, count = struct.unpack_from(">II", area.raw, at + 8)
            kind = area.raw[at + 48 : at + 80].rstrip(b"\x00")
            area.apple.append((at, block))
            area.partitions.append(
                Partition(
                    f"Apple partition {number} ({quoted(kind)})", start * block, count * block, kind == b"Apple_HFS"
                )
            )
        if area.apple:
            return


def compare_system_areas(a: SystemArea, b: SystemArea, out: Findings) -> None:
    """The first 32 KiB of both images, and the two copies of each GPT."""
    named: list[tuple[int, int]] = []
    if len(a.gpts) != len(b.gpts):
        shown = [", ".join(gpt.name for gpt in area.gpts) or "none" for area in (a, b)]
        out.add(Difference(Layer.GPT, "", "GPT", "copies", shown[0], shown[1]))
    for one, other in zip(a.gpts, b.gpts, strict=False):
        _compare_gpt(one, other, out)
    for gpt in (*a.gpts[:1], *b.gpts[:1]):
        named += [(gpt.header_at, LBA), (gpt.entries_at, len(gpt.entries))]
    _compare_mbr(a.raw, b.raw, out)
    named.append((0, LBA))
    for number, ((at, _), (other_at, _)) in enumerate(zip(a.apple, b.apple, strict=False), 1):
        if at == other_at:
            x, y = a.raw[at : at + LBA], b.raw[at : at + LBA]
            if x != y:
                places = x[8:16] != y[8:16] and x[:8] + x[16:] == y[:8] + y[16:]
                out.add(
                    Difference(
                        Layer.SYSTEM_AREA,
                        "",
                        f"Apple partition map entry {number}",
                        "entry",
                        hexed(x[:96]),
                        hexed(y[:96]),
                        (at, at),
                        follows=places,
                    )
                )
            named.append((at, LBA))
    rests = bytearray(a.raw), bytearray(b.raw)
    for rest in rests:
        for start, size in named:
            rest[start : start + size] = bytes(len(rest[start : start + size]))
    if rests[0] != rests[1]:
        left, right = BytesContent(bytes(rests[0])), BytesContent(bytes(rests[1]))
        for start, size in differing_ranges(left, right).found:
            out.add(
                Difference(
                    Layer.SYSTEM_AREA,
                    "",
                    "system area",
                    "bytes",
                    shown_bytes(left.read(start, min(size, 32))),
                    shown_bytes(right.read(start, min(size, 32))),
                    (start, start),
                    differing=size,
                )
            )


def _compare_mbr(a: bytes, b: bytes, out: Findings) -> None:
    def add(what: str, x: str, y: str, at: int, *, follows: bool = False) -> None:
        out.add(Difference(Layer.MBR, "", "MBR", what, x, y, (at, at), follows=follows))

    # 432: where isohybrid writes the block of the boot loader; 440: the disk's signature, also isohybrid's "id".
    for what, start, size, follows in (
        ("boot code", 0, 432, False),
        ("place of the boot loader", 432, 8, True),
        ("disk signature", 440, 4, False),
        ("reserved bytes", 444, 2, False),
        ("boot signature", 510, 2, False),
    ):
        x, y = a[start : start + size], b[start : start + size]
        if x == y:
            continue
        if size > 16:
            ranges = differing_ranges(BytesContent(x), BytesContent(y))
            for first, length in ranges.found[:4]:
                add(what, hexed(x[first : first + length]), hexed(y[first : first + length]), start + first)
        else:
            values = [f"0x{int.from_bytes(value, 'little'):0{2 * size}x}" for value in (x, y)]
            add(what, values[0], values[1], start, follows=follows)
    for number in range(4):
        at = 446 + 16 * number
        x, y = a[at : at + 16], b[at : at + 16]
        if x != y:
            # The type and the flag are a decision, places and sizes (in sectors and in CHS) follow from it.
            decided = (x[0], x[4]) != (y[0], y[4])
            shown = [_mbr_entry(entry) for entry in (x, y)]
            add(f"partition {number + 1}", shown[0], shown[1], at, follows=not decided)


def _mbr_entry(entry: bytes) -> str:
    start, size = struct.unpack_from("<II", entry, 8)
    geometry = f"CHS {entry[1:4].hex()}-{entry[5:8].hex()}"
    return f"type {entry[4]:#04x}, flag {entry[0]:#04x}, {size} sectors from {start}, {geometry}"


def _compare_gpt(one: Gpt, other: Gpt, out: Findings) -> None:
    for what, start, size, follows in _GPT_HEADER:
        x, y = one.header[start : start + size], other.header[start : start + size]
        if x != y:
            at = (one.header_at + start, other.header_at + start)
            out.add(
                Difference(
                    Layer.GPT, "", one.name, what, _gpt_value(what, x), _gpt_value(what, y), at, follows=follows
                )
            )
    for number in range(max(len(one.entries), len(other.entries)) // 128):
        p, q = (gpt.entries[128 * number : 128 * number + 128].ljust(128, b"\x00") for gpt in (one, other))
        if p == q:
            continue
        for what, start, size, follows in _GPT_ENTRY:
            x, y = p[start : start + size], q[start : start + size]
            if x != y:
                at = (one.entries_at + 128 * number + start, other.entries_at + 128 * number + start)
                out.add(
                    Difference(
                        Layer.GPT,
                        "",
                        f"{one.name}, partition {number + 1}",
                        what,
                        _gpt_value(what, x),
                        _gpt_value(what, y),
                        at,
                        follows=follows,
                    )
                )


def _gpt_value(what: str, raw: bytes) -> str:
    if what.endswith("GUID"):
        return str(uuid.UUID(bytes_le=raw))
    if what == "name":
        return quoted(raw.decode("utf-16-le", "replace").rstrip("\x00").encode())
    if "LBA" in what or what.startswith(("number", "size")):
        return str(int.from_bytes(raw, "little"))
    return hexed(raw)


# El Torito, sections 2.1 to 2.4: name, offset in the entry, bytes, whether it only follows.
_VALIDATION = (
    ("header id", 0, 1),
    ("platform", 1, 1),
    ("reserved bytes", 2, 2),
    ("id string", 4, 24),
    ("checksum", 28, 2),
    ("key bytes", 30, 2),
)
_ENTRY = (
    ("boot indicator", 0, 1),
    ("media type", 1, 1),
    ("load segment", 2, 2),
    ("system type", 4, 1),
    ("unused byte", 5, 1),
    ("sector count", 6, 2),
    ("load LBA", 8, 4),
    ("selection criteria", 12, 20),
)


def compare_catalogs(a: bytes, b: bytes, at: tuple[int, int], out: Findings) -> None:
    """Two boot catalogs, entry by entry of 32 bytes."""
    for number in range(max(len(a), len(b)) // 32):
        x, y = (
            a[32 * number : 32 * number + 32].ljust(32, b"\x00"),
            b[32 * number : 32 * number + 32].ljust(32, b"\x00"),
        )
        if x == y:
            continue
        name = "validation entry" if number == 0 else f"entry {number}"
        for what, start, size in _VALIDATION if number == 0 else _ENTRY:
            p, q = x[start : start + size], y[start : start + size]
            if p != q:
                values = [hexed(v) if size > 4 else str(int.from_bytes(v, "little")) for v in (p, q)]
                place = (at[0] + 32 * number + start, at[1] + 32 * number + start)
                out.add(
                    Difference(
                        Layer.EL_TORITO,
                        "",
                        name,
                        what,
                        values[0],
                        values[1],
                        place,
                        follows=what in ("load LBA", "checksum"),
                    )
                )


def gpt_ranges(area: SystemArea) -> Iterator[tuple[int, int]]:
    """The bytes that the copies of the GPT take."""
    for gpt in area.gpts:
        yield gpt.header_at, LBA
        yield gpt.entries_at, len(gpt.entries)
