"""The boot catalog: "El Torito" Bootable CD-ROM Format Specification 1.0; platforms as in UEFI 2.10, 13.3.2."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

SECTOR = 2048
SYSTEM_ID = b"EL TORITO SPECIFICATION"
_ENTRY = 32


class MalformedCatalog(ValueError):
    """A boot catalog that breaks the rules; the caller says where."""


class BootPlatform(Enum):
    """For which firmware an entry is."""

    BIOS = 0x00
    POWERPC = 0x01
    MAC = 0x02
    EFI = 0xEF
    OTHER = -1


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One entry of the boot catalog.

    `offset` is where the boot image starts, in bytes from the start of the file, and `lba` the same in sectors of
    2048 bytes; `sectors` counts 512 bytes each, and is what the firmware loads, not how large the boot image is.
    `emulation` is 0 for none, else a floppy (1-3) or hard disk (4).
    """

    platform: BootPlatform
    bootable: bool
    lba: int
    offset: int
    sectors: int
    emulation: int


def parse_catalog(catalog: bytes) -> tuple[BootEntry, ...]:
    """The entries of `catalog`, in its order.

    :raise MalformedCatalog: it has no valid validation entry, or breaks off.
    """
    if len(catalog) < 2 * _ENTRY or catalog[0] != 0x01 or catalog[30:32] != b"\x55\xaa":
        raise MalformedCatalog("it has no validation entry")
    if sum(struct.unpack_from("<16H", catalog)) & 0xFFFF:
        raise MalformedCatalog("the checksum of its validation entry is wrong")
    entries = [_entry(catalog, _ENTRY, catalog[1])]
    position = 2 * _ENTRY
    last = False
    while not last and position + _ENTRY <= len(catalog) and catalog[position] in (0x90, 0x91):
        last = catalog[position] == 0x91
        platform, count = struct.unpack_from("<xBH", catalog, position)
        position += _ENTRY
        for _ in range(count):
            # An entry can have extensions (0x44), which hold selection criteria and say nothing to us.
            while position + _ENTRY <= len(catalog) and catalog[position] == 0x44:
                position += _ENTRY
            if position + _ENTRY > len(catalog):
                raise MalformedCatalog("a section has more entries than there is room for")
            entries.append(_entry(catalog, position, platform))
            position += _ENTRY
        while position + _ENTRY <= len(catalog) and catalog[position] == 0x44:
            position += _ENTRY
    return tuple(entries)


def _entry(catalog: bytes, position: int, platform: int) -> BootEntry:
    indicator, media, _segment, _system, sectors, lba = struct.unpack_from("<BBHBxHI", catalog, position)
    if indicator not in (0x00, 0x88):
        raise MalformedCatalog(f"unknown boot indicator {indicator:#04x}")
    try:
        kind = BootPlatform(platform)
    except ValueError:
        kind = BootPlatform.OTHER
    return BootEntry(kind, indicator == 0x88, lba, lba * SECTOR, sectors, media & 0x0F)
