"""What on a disk a machine would start by itself: boot sectors, and EFI programs where a firmware looks for them."""

from __future__ import annotations

import re

from pytest_osgates.image.diff.fat import read_fat
from pytest_osgates.image.disk import contents
from pytest_osgates.image.disk.partitions import read_table
from pytest_osgates.image.disk.source import Disk, SourceContent, first_byte

_PROGRAM = re.compile(r"^/efi/[^/]+/[^/]+\.efi$", re.IGNORECASE)
_CODE = 440
# What parted(8) writes into a new table: it looks for an active partition, and there is none that starts.
_PARTED = bytes.fromhex("fab800108ed0bc00b0")
_MOST = 50


def startable(disk: Disk) -> tuple[tuple[str, str], ...]:
    """(place, what) of each; none on a disk that holds nothing but zeros.

    :raise ImageError: it cannot be read, or contradicts itself.
    """
    if first_byte(disk, 0, disk.size) is None:
        return ()
    found: list[tuple[str, str]] = []
    sector = disk.read_at(0, 512) if disk.size >= 512 else b""
    if sector[:_CODE].strip(b"\x00") and sector.endswith(b"\x55\xaa") and not sector.startswith(_PARTED):
        found.append(("boot sector", "machine code"))
    for part in read_table(disk).partitions:
        content = SourceContent(disk, part.start, part.size)
        kind = contents.identify(disk, content, part.start, part.size)
        if contents.FAT not in (kind.kind, *kind.also):
            continue
        for entry in read_fat(content).entries.values():
            if not entry.is_dir and entry.size and _PROGRAM.search(entry.path) and len(found) < _MOST:
                found.append((f"partition {part.number}", entry.path))
    return tuple(found)
