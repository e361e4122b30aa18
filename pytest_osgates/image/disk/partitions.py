"""Partition tables, read strictly: what two programs could read in two ways is an error, not a choice.

GPT after UEFI 2.10, 5.3: both copies, all checksums. MBR with logical partitions as Linux numbers them
(block/partitions/msdos.c). A disk without a table is one partition with the number 0.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from pytest_osgates.image.diff.found import Extents
from pytest_osgates.image.diff.system import LBA, Gpt, read_system_area
from pytest_osgates.image.source import Source, damaged
from pytest_osgates.vm.errors import ImageError

PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
_ENTRY = 128
_MAX_ENTRIES = 512
_MAX_LOGICAL = 128
_LUKS = b"LUKS\xba\xbe"


@dataclass(frozen=True, slots=True)
class DiskPartition:
    """A partition: its number as Linux counts (0: the whole disk), `type` as a GPT type GUID in lower case or
    ``0x83``, the name in the GPT, place and size in bytes; its own GUID in the GPT, in lower case."""

    number: int
    type: str
    name: str
    start: int
    size: int
    unique: str = field(default="", compare=False)

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Table:
    """A disk's partitions in their order on it, and where nothing is: `gaps`, as (offset, bytes).

    `kind`: ``gpt``, ``dos``, or ``none``. The places of the table itself are in no gap.
    """

    kind: str
    partitions: tuple[DiskPartition, ...]
    gaps: tuple[tuple[int, int], ...]


def read_table(source: Source) -> Table:
    """The partitions of a disk with sectors of 512 bytes.

    :raise ImageError: the table contradicts itself, or has partitions that overlap or lie outside.
    """
    area = read_system_area(source)
    raw = area.raw
    if raw.startswith(_LUKS) or raw[510:512] != b"\x55\xaa" or _is_boot_sector(raw):
        if area.gpts or raw[4096:4104] == b"EFI PART":
            raise damaged(source.name, "a GPT without a protective MBR: some programs see it, others do not")
        if raw.startswith(_LUKS) and raw[510:512] == b"\x55\xaa" and not _is_boot_sector(raw):
            # Half of the header's checksum is not used, and has room for entries; the other half can be tried out.
            raise damaged(source.name, "a LUKS header that is an MBR as well: some programs see its partitions")
        return Table("none", (DiskPartition(0, "", "", 0, source.size),), ())
    entries = [_mbr_entry(raw, number) for number in range(4)]
    protective = any(kind == PROTECTIVE for kind, _, _ in entries)
    if raw[4096:4104] == b"EFI PART" and not area.gpts:
        raise ImageError(f"{source.name} has a GPT for sectors of 4096 bytes", remedy="this version reads 512 only")
    if bool(area.gpts) != protective:
        what = "a GPT that its MBR does not speak of" if area.gpts else "an MBR for a GPT that is not there"
        raise damaged(source.name, what)
    taken = Extents(source.size)
    taken.claim(0, LBA)
    if area.gpts:
        partitions = list(_gpt_partitions(source, area.gpts, taken))
        _check_hybrid(source, entries, partitions)
    else:
        partitions = list(_mbr_partitions(source, entries, taken))
    ordered = sorted(partitions, key=lambda partition: partition.start)
    for partition in ordered:
        if partition.size <= 0 or partition.end > source.size:
            raise damaged(
                source.name,
                f"partition {partition.number} has {partition.size} bytes at {partition.start} of {source.size}",
            )
        taken.claim(partition.start, partition.size)
    for one, other in pairwise(ordered):
        if other.start < one.end:
            raise damaged(source.name, f"the partitions {one.number} and {other.number} overlap")
    return Table("gpt" if area.gpts else "dos", tuple(ordered), tuple((a, b - a) for a, b in taken.gaps()))


def _is_boot_sector(raw: bytes) -> bool:
    """Whether the first sector is a file system's own, as Linux tells it: no table has other flags than these."""
    return any(raw[446 + 16 * number] not in (0, 0x80) for number in range(4)) or not any(raw[446:510])


def _mbr_entry(raw: bytes, number: int) -> tuple[int, int, int]:
    """Type, start and size of an entry, both in bytes."""
    kind, start, size = struct.unpack_from("<4xB3xII", raw, 446 + 16 * number)
    return kind, start * LBA, size * LBA


def _mbr_partitions(source: Source, entries: list[tuple[int, int, int]], taken: Extents) -> Iterator[DiskPartition]:
    logical = 5
    for number, (kind, start, size) in enumerate(entries, 1):
        # Linux takes an entry of the type 0 for a partition if it has a size.
        if not kind and not size:
            continue
        if kind not in _EXTENDED:
            if start < LBA:
                raise damaged(source.name, f"partition {number} begins in the partition table")
            yield DiskPartition(number, f"{kind:#04x}", "", start, size)
            continue
        if start < LBA or start + size > source.size:
            raise damaged(source.name, f"the extended partition {number} lies outside the disk")
        for found in _logical_partitions(source, start, size, taken, logical):
            yield found
            logical = found.number + 1


def _logical_partitions(source: Source, base: int, size: int, taken: Extents, first: int) -> Iterator[DiskPartition]:
    """Each has a table of its own before it, with the place of the next one."""
    at, seen = base, set[int]()
    while True:
        if at in seen or len(seen) >= _MAX_LOGICAL or not base <= at < base + size:
            raise damaged(source.name, f"the chain of logical partitions leads to byte {at}")
        seen.add(at)
        raw = source.read_at(at, LBA)
        if raw[510:512] != b"\x55\xaa":
            raise damaged(source.name, f"no table of logical partitions at byte {at}")
        taken.claim(at, LBA)
        (kind, start, length), (link, next_at, _) = _mbr_entry(raw, 0), _mbr_entry(raw, 1)
        if any(raw[478:510]) or kind in _EXTENDED or link not in (0, *_EXTENDED):
            raise damaged(source.name, f"the table of logical partitions at byte {at} has other entries than two")
        if kind or length:
            if start < LBA or at + start + length > base + size:
                raise damaged(source.name, f"partition {first} lies outside the extended partition")
            yield DiskPartition(first, f"{kind:#04x}", "", at + start, length)
            first += 1
        if not link:
            return
        at = base + next_at


def _gpt_partitions(source: Source, gpts: list[Gpt], taken: Extents) -> Iterator[DiskPartition]:
    if len(gpts) != 2:
        raise damaged(source.name, "the second copy of its GPT is not where the first one says")
    primary, backup = gpts
    for gpt in gpts:
        _check_gpt(source, gpt)
        taken.claim(gpt.header_at, LBA)
        taken.claim(gpt.entries_at, len(gpt.entries))
    # First and last usable block, disk GUID; number and size of the entries with their checksum.
    same = ((40, 72), (80, 92))
    if primary.entries != backup.entries or any(primary.header[a:b] != backup.header[a:b] for a, b in same):
        raise damaged(source.name, "the two copies of its GPT differ")
    for number in range(len(primary.entries) // _ENTRY):
        entry = primary.entries[_ENTRY * number : _ENTRY * (number + 1)]
        if not any(entry[:16]):
            continue
        first, last = struct.unpack_from("<QQ", entry, 32)
        usable = struct.unpack_from("<QQ", primary.header, 40)
        if not usable[0] <= first <= last <= usable[1]:
            raise damaged(source.name, f"partition {number + 1} goes from block {first} to {last} of {usable}")
        name = entry[56:128].decode("utf-16-le", "replace").split("\x00")[0]
        kind, own = (str(uuid.UUID(bytes_le=entry[at : at + 16])) for at in (0, 16))
        yield DiskPartition(number + 1, kind, name, first * LBA, (last - first + 1) * LBA, own)


def _check_gpt(source: Source, gpt: Gpt) -> None:
    size, checksum = struct.unpack_from("<II", gpt.header, 12)
    own, other, first, last = struct.unpack_from("<QQQQ", gpt.header, 24)
    count, entry, entries_checksum = struct.unpack_from("<III", gpt.header, 80)
    if not 92 <= size <= LBA:
        raise damaged(source.name, f"the header of its {gpt.name} has {size} bytes")
    header = gpt.header[:16] + bytes(4) + gpt.header[20:size]
    if zlib.crc32(header) != checksum:
        raise damaged(source.name, f"the checksum of its {gpt.name} is wrong")
    if entry != _ENTRY or not 0 < count <= _MAX_ENTRIES or len(gpt.entries) != count * entry:
        raise damaged(source.name, f"its {gpt.name} has {count} entries of {entry} bytes")
    if zlib.crc32(gpt.entries) != entries_checksum:
        raise damaged(source.name, f"the checksum of the entries of its {gpt.name} is wrong")
    if own * LBA != gpt.header_at or other == own:
        raise damaged(source.name, f"its {gpt.name} says that it is in block {own}")
    inside = first * LBA < gpt.entries_at + len(gpt.entries) and gpt.entries_at < (last + 1) * LBA
    if inside or last * LBA >= source.size or first <= own <= last:
        raise damaged(source.name, f"its {gpt.name} lies where partitions are")


def _check_hybrid(source: Source, entries: list[tuple[int, int, int]], partitions: list[DiskPartition]) -> None:
    """Whoever reads the MBR must see no other partitions than whoever reads the GPT."""
    known = {(partition.start, partition.size) for partition in partitions}
    for number, (kind, start, size) in enumerate(entries, 1):
        if (kind or size) and kind != PROTECTIVE and (start, size) not in known:
            raise damaged(source.name, f"partition {number} of its MBR is not in its GPT")
