"""FAT12, FAT16 and FAT32, as EFI system partitions have them: every structure, every entry, every file.

After Microsoft's "FAT: General Overview of On-Disk Format", 1.03. Long names are those of VFAT.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pytest_osgates.image.diff.found import Difference, Extents, Findings, Layer, hexed, quoted
from pytest_osgates.image.diff.ranges import BytesContent, Content, Part, differing_ranges, shown_bytes
from pytest_osgates.vm.errors import ImageError

_MAX_ENTRIES = 100_000
_MAX_DEPTH = 64
_MAX_FAT = 32 << 20
_MAX_DIRECTORY = 4 << 20
# Field of the boot sector, offset, bytes; FAT12 and FAT16 first, FAT32 where it differs.
_COMMON = (
    ("jump", 0, 3),
    ("OEM name", 3, 8),
    ("bytes per sector", 11, 2),
    ("sectors per cluster", 13, 1),
    ("reserved sectors", 14, 2),
    ("number of FATs", 16, 1),
    ("root entries", 17, 2),
    ("sectors (16 bit)", 19, 2),
    ("media", 21, 1),
    ("sectors per FAT", 22, 2),
    ("sectors per track", 24, 2),
    ("heads", 26, 2),
    ("hidden sectors", 28, 4),
    ("sectors (32 bit)", 32, 4),
)
_SMALL = (
    ("drive number", 36, 1),
    ("reserved byte", 37, 1),
    ("boot signature", 38, 1),
    ("volume serial number", 39, 4),
    ("volume label", 43, 11),
    ("file system type", 54, 8),
    ("boot code", 62, 450),
)
_LARGE = (
    ("sectors per FAT (32 bit)", 36, 4),
    ("flags", 40, 2),
    ("version", 42, 2),
    ("root cluster", 44, 4),
    ("FSInfo sector", 48, 2),
    ("backup boot sector", 50, 2),
    ("reserved bytes", 52, 12),
    ("drive number", 64, 1),
    ("reserved byte", 65, 1),
    ("boot signature", 66, 1),
    ("volume serial number", 67, 4),
    ("volume label", 71, 11),
    ("file system type", 82, 8),
    ("boot code", 90, 422),
)


def is_fat(head: bytes) -> bool:
    """Whether 512 bytes are the boot sector of a FAT file system."""
    if len(head) < 512 or head[510:512] != b"\x55\xaa":
        return False
    sector, cluster, reserved, fats = struct.unpack_from("<HBHB", head, 11)
    return (
        sector in (512, 1024, 2048, 4096)
        and cluster in (1, 2, 4, 8, 16, 32, 64, 128)
        and reserved > 0
        and fats in (1, 2)
        and head[21] in (0xF0, *range(0xF8, 0x100))
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory entry: its path, its 32 bytes and those of the long name before it, and its clusters as runs."""

    path: str
    raw: bytes
    long_name: bytes
    offset: int
    runs: tuple[tuple[int, int], ...]

    @property
    def is_dir(self) -> bool:
        return bool(self.raw[11] & 0x10)

    @property
    def size(self) -> int:
        return int.from_bytes(self.raw[28:32], "little")


class RunContent:
    """A file of the FAT: its clusters, one run after another."""

    def __init__(self, content: Content, entry: Entry) -> None:
        self._content = content
        self._runs = entry.runs
        self.size = entry.size

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        parts = []
        for start, length in self._runs:
            if size <= 0:
                break
            if offset >= length:
                offset -= length
                continue
            part = self._content.read(start + offset, min(size, length - offset))
            parts.append(part)
            size -= len(part)
            offset = 0
        return b"".join(parts)


@dataclass
class Fat:
    """One FAT file system, read whole but for its files."""

    content: Content
    boot: bytes
    bits: int
    sector: int
    cluster: int
    fat_at: int
    fat_size: int
    fats: int
    root_at: int
    root_size: int
    data_at: int
    table: list[int]
    entries: dict[str, Entry] = field(default_factory=dict)
    extents: Extents = field(default_factory=lambda: Extents(0))

    @property
    def size(self) -> int:
        """Of all sectors that the boot sector counts, in bytes."""
        count: int = struct.unpack_from("<H", self.boot, 19)[0] or struct.unpack_from("<I", self.boot, 32)[0]
        return count * self.sector

    @property
    def end(self) -> int:
        return self.data_at + (len(self.table) - 2) * self.cluster

    def chain(self, first: int) -> tuple[tuple[int, int], ...]:
        """The runs (offset, bytes) of a chain of clusters.

        :raise ImageError: it loops, or leads outside.
        """
        runs: list[tuple[int, int]] = []
        limit = 1 << self.bits if self.bits < 32 else 1 << 28
        here, steps = first, 0
        while 2 <= here < len(self.table):
            at = self.data_at + (here - 2) * self.cluster
            if runs and sum(runs[-1]) == at:
                runs[-1] = (runs[-1][0], runs[-1][1] + self.cluster)
            else:
                runs.append((at, self.cluster))
            here = self.table[here]
            steps += 1
            if steps > len(self.table):
                raise ImageError(f"the chain of clusters from {first} has no end")
        if here < limit - 8 and first:
            raise ImageError(f"the chain of clusters from {first} leads to cluster {here}")
        return tuple(runs)


def read_fat(content: Content) -> Fat:
    """:raise ImageError: it is malformed."""
    boot = content.read(0, 512)
    if not is_fat(boot):
        raise ImageError("no FAT boot sector")
    sector, per_cluster, reserved, fats, root_entries, sectors16 = struct.unpack_from("<HBHBHH", boot, 11)
    (fat16,) = struct.unpack_from("<H", boot, 22)
    (sectors32,) = struct.unpack_from("<I", boot, 32)
    (fat32,) = struct.unpack_from("<I", boot, 36)
    sectors = sectors16 or sectors32
    fat_sectors = fat16 or fat32
    root_size = -(-root_entries * 32 // sector) * sector
    data_at = (reserved + fats * fat_sectors) * sector + root_size
    cluster = per_cluster * sector
    count = (sectors * sector - data_at) // cluster
    if count <= 0 or data_at > content.size or fat_sectors * sector > _MAX_FAT:
        raise ImageError("its sizes contradict one another")
    # The count of clusters alone decides (page 14).
    bits = 12 if count < 4085 else 16 if count < 65525 else 32
    raw = content.read(reserved * sector, fat_sectors * sector)
    table = _table(raw, bits, count + 2)
    fat = Fat(
        content,
        boot,
        bits,
        sector,
        cluster,
        reserved * sector,
        fat_sectors * sector,
        fats,
        data_at - root_size,
        root_size,
        data_at,
        table,
    )
    fat.extents = Extents(min(content.size, sectors * sector))
    if bits == 32:
        (first,) = struct.unpack_from("<I", boot, 44)
        runs = fat.chain(first)
    else:
        runs = ((fat.root_at, root_size),)
    _read_directory(fat, "", runs)
    return fat


def _table(raw: bytes, bits: int, count: int) -> list[int]:
    if bits == 16:
        table = list(struct.unpack(f"<{len(raw) // 2}H", raw[: len(raw) // 2 * 2]))
    elif bits == 32:
        table = [word & 0x0FFF_FFFF for word in struct.unpack(f"<{len(raw) // 4}I", raw[: len(raw) // 4 * 4])]
    else:
        table = []
        for at in range(0, len(raw) - 2, 3):
            word = int.from_bytes(raw[at : at + 3], "little")
            table += [word & 0xFFF, word >> 12]
    if len(table) < count:
        raise ImageError(f"a table for {len(table)} clusters of {count}")
    return table[:count]


def _read_directory(fat: Fat, path: str, runs: tuple[tuple[int, int], ...]) -> None:
    pending = [(path, runs, 0)]
    seen: set[tuple[tuple[int, int], ...]] = set()
    while pending:
        parent, where, depth = pending.pop()
        if where in seen or depth > _MAX_DEPTH or sum(size for _, size in where) > _MAX_DIRECTORY:
            raise ImageError(f"the directory {parent!r} is reached twice, or too deep, or too large")
        seen.add(where)
        for start, size in where:
            fat.extents.claim(start, size)
        for entry in _entries(fat, parent, where):
            if entry.path in fat.entries:
                raise ImageError(f"{entry.path!r} is there twice")
            fat.entries[entry.path] = entry
            for start, size in entry.runs:
                fat.extents.claim(start, size)
            if len(fat.entries) > _MAX_ENTRIES:
                raise ImageError(f"more than {_MAX_ENTRIES} files")
            if entry.is_dir and not entry.path.endswith(("/.", "/..")):
                pending.append((entry.path, entry.runs, depth + 1))


def _entries(fat: Fat, parent: str, runs: tuple[tuple[int, int], ...]) -> list[Entry]:
    found: list[Entry] = []
    long_name: list[bytes] = []
    deleted = 0
    for start, size in runs:
        data = fat.content.read(start, size)
        for at in range(0, len(data) - 31, 32):
            raw = data[at : at + 32]
            if raw[0] == 0:
                return found
            if raw[0] == 0xE5:
                deleted += 1
                found.append(
                    Entry(f"{parent}/<deleted entry {deleted}>", raw[:11] + b"\x00" + raw[12:], b"", start + at, ())
                )
                long_name = []
            elif raw[11] & 0x3F == 0x0F:
                long_name.append(raw)
            else:
                if raw[11] & 0x08:
                    name = "<volume label>"
                    runs_of: tuple[tuple[int, int], ...] = ()
                else:
                    name = _name(raw, long_name)
                    first = int.from_bytes(raw[26:28], "little")
                    if fat.bits == 32:
                        first |= int.from_bytes(raw[20:22], "little") << 16
                    # Of the entries for the directory itself and its parent the clusters are claimed elsewhere.
                    runs_of = fat.chain(first) if name not in (".", "..") else ()
                found.append(Entry(f"{parent}/{name}", raw, b"".join(long_name), start + at, runs_of))
                long_name = []
    return found


def _name(raw: bytes, long_name: list[bytes]) -> str:
    if long_name:
        text = b"".join(part[1:11] + part[14:26] + part[28:32] for part in reversed(long_name))
        name = text.decode("utf-16-le", "replace").split("\x00")[0]
        if name and "/" not in name:
            return name
    stem, suffix = raw[:8].rstrip(b" "), raw[8:11].rstrip(b" ")
    # Windows NT's bits for a name that is all lower case, which Linux and mtools heed.
    stem = stem.lower() if raw[12] & 0x08 else stem
    suffix = suffix.lower() if raw[12] & 0x10 else suffix
    return quoted(stem + (b"." + suffix if suffix else b"")).replace("/", "_")


Inside = Callable[[str, str, Content, Content], None]


def compare_fats(a: Content, b: Content, container: str, out: Findings, inside: Inside) -> None:
    """Compare two FAT file systems.

    :raise ImageError: one is malformed.
    """
    one, other = read_fat(a), read_fat(b)

    def add(path: str, what: str, x: str, y: str, *, delta: int | None = None, follows: bool = False) -> None:
        out.add(Difference(Layer.FAT, container, path, what, x, y, delta=delta, follows=follows))

    _boot(one, other, add)
    for path in dict.fromkeys((*one.entries, *other.entries)):
        p, q = one.entries.get(path), other.entries.get(path)
        if p is None or q is None:
            there = p or q
            text = ("directory" if there.is_dir else f"file of {there.size} bytes") if there else ""
            add(path, "only in A" if q is None else "only in B", *((text, "") if q is None else ("", text)))
            continue
        out.nodes += 1
        _entry(path, p, q, add)
        if not p.is_dir and not q.is_dir:
            x, y = RunContent(a, p), RunContent(b, q)
            if differing_ranges(x, y).differing:
                inside(container, path, x, y)
            tails = [tail(fat.content, entry) for fat, entry in ((one, p), (other, q))]
            if tails[0] != tails[1]:
                add(path, "bytes after the end of the file", *map(hexed, tails))
    _tables(one, other, add)
    _free(one, other, add)


def _boot(one: Fat, other: Fat, add: Callable[..., None]) -> None:
    for what, start, size in (*_COMMON, *(_LARGE if one.bits == 32 else _SMALL)):
        p, q = one.boot[start : start + size], other.boot[start : start + size]
        if p == q:
            continue
        if "serial" in what:
            shown = [f"{int.from_bytes(value, 'little'):08x}" for value in (p, q)]
        elif size in (8, 11):
            shown = [quoted(value) for value in (p, q)]
        elif size in (1, 2, 4):
            shown = [str(int.from_bytes(value, "little")) for value in (p, q)]
        else:
            shown = [hexed(value) for value in (p, q)]
        add("boot sector", what, shown[0], shown[1])
    # FSInfo, the backup of the boot sector, and whatever else is reserved.
    x, y = (fat.content.read(512, fat.fat_at - 512) for fat in (one, other))
    if x == y:
        return
    for start, size in differing_ranges(BytesContent(x), BytesContent(y)).found:
        at = start + 512
        what, follows = f"bytes at {at}", False
        info = int.from_bytes(one.boot[48:50], "little") * one.sector if one.bits == 32 else 0
        backup = int.from_bytes(one.boot[50:52], "little") * one.sector if one.bits == 32 else 0
        if info and info <= at < info + 512:
            what, follows = "FSInfo: free clusters", 488 <= at - info < 496
        elif backup and backup <= at < backup + 512:
            what, follows = (
                "backup of the boot sector",
                x[at - backup :] != y[at - backup :] and one.boot != other.boot,
            )
        add(
            "reserved sectors",
            what,
            shown_bytes(x[start : start + min(size, 32)]),
            shown_bytes(y[start : start + min(size, 32)]),
            follows=follows,
        )


def _moment(date: int, time: int) -> datetime | None:
    try:
        return datetime(
            1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2, tzinfo=UTC
        )
    except ValueError:
        return None


def _entry(path: str, p: Entry, q: Entry, add: Callable[..., None]) -> None:
    if p.raw == q.raw and p.long_name == q.long_name:
        return
    for what, date_at, time_at in (("creation time", 16, 14), ("access date", 18, 0), ("mtime", 24, 22)):
        words = [
            (
                int.from_bytes(e.raw[date_at : date_at + 2], "little"),
                int.from_bytes(e.raw[time_at : time_at + 2], "little") if time_at else 0,
            )
            for e in (p, q)
        ]
        if words[0] == words[1]:
            continue
        moments = [_moment(*pair) for pair in words]
        shown = [
            moment.strftime("%Y-%m-%dT%H:%M:%S" if time_at else "%Y-%m-%d")
            if moment
            else f"{pair[0]:04x} {pair[1]:04x}"
            for moment, pair in zip(moments, words, strict=True)
        ]
        delta = round((moments[1] - moments[0]).total_seconds()) if moments[0] and moments[1] else None
        add(path, what, shown[0], shown[1], delta=delta)
    for what, start, size, follows in (
        ("short name", 0, 11, False),
        ("attributes", 11, 1, False),
        ("case bits", 12, 1, False),
        ("creation time, tenths", 13, 1, False),
        ("first cluster", 20, 2, True),
        ("first cluster", 26, 2, True),
        ("size", 28, 4, False),
    ):
        x, y = p.raw[start : start + size], q.raw[start : start + size]
        if x != y:
            shown = [quoted(v) if size == 11 else str(int.from_bytes(v, "little")) for v in (x, y)]
            add(path, what, shown[0], shown[1], follows=follows)
    if p.long_name != q.long_name:
        add(path, "long name entries", hexed(p.long_name), hexed(q.long_name))


def tail(content: Content, entry: Entry) -> bytes:
    """What stands in the last cluster after the end of the file."""
    whole = sum(size for _, size in entry.runs)
    spare = whole - entry.size
    if not entry.runs or spare <= 0:
        return b""
    start, size = entry.runs[-1]
    spare = min(spare, size)
    return content.read(start + size - spare, spare).rstrip(b"\x00")


def _tables(one: Fat, other: Fat, add: Callable[..., None]) -> None:
    for number in range(max(one.fats, other.fats)):
        raws = []
        for fat in (one, other):
            at = fat.fat_at + number * fat.fat_size
            raws.append(fat.content.read(at, fat.fat_size) if number < fat.fats else b"")
        if raws[0] != raws[1]:
            chains = [tuple(entry.runs for entry in fat.entries.values()) for fat in (one, other)]
            ranges = differing_ranges(BytesContent(raws[0]), BytesContent(raws[1]))
            # Chains that differ show as places of files; if they don't, it is an entry that belongs to no file.
            add(
                f"allocation table {number + 1}",
                "entries",
                f"{ranges.differing} bytes differ",
                "",
                follows=chains[0] != chains[1],
            )
    for fat in (one, other):
        fat.extents.claim(0, fat.data_at)


def _free(one: Fat, other: Fat, add: Callable[..., None]) -> None:
    """Clusters that belong to no file: what a removed file left behind."""
    gaps = [
        [(start, end) for start, end in fat.extents.gaps() if fat.content.read(start, end - start).strip(b"\x00")]
        for fat in (one, other)
    ]
    contents = [
        [fat.content.read(start, end - start) for start, end in side]
        for fat, side in zip((one, other), gaps, strict=True)
    ]
    if contents[0] != contents[1] or (gaps[0] != gaps[1]):
        size = [sum(map(len, side)) for side in contents]
        add("free clusters", "bytes", f"{size[0]} bytes that are not zero", f"{size[1]} bytes that are not zero")
    _rest(one, other, add)


def _rest(one: Fat, other: Fat, add: Callable[..., None]) -> None:
    """What the image has beyond the file system that is in it."""
    parts = [Part(fat.content, fat.extents.size, fat.content.size - fat.extents.size) for fat in (one, other)]
    if parts[0].size or parts[1].size:
        ranges = differing_ranges(parts[0], parts[1])
        if ranges.differing:
            add("after the file system", "bytes", f"{parts[0].size} bytes", f"{parts[1].size} bytes")


__all__ = ["Entry", "Fat", "compare_fats", "is_fat", "read_fat", "tail"]
