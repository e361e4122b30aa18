"""GRUB's core image in the space between an MBR and the first partition, told by what its own first sector says."""

from __future__ import annotations

import struct
from itertools import pairwise

from pytest_osgates.image.disk.source import Disk, first_byte

_SECTOR = 512
# grub-core/boot/i386/pc/diskboot.S: `pushw %dx; pushw %si; movw $..., %si`. Its blocklists (start, sectors, segment)
# begin at the end of the sector and grow towards its beginning; the first is loaded right after the sector itself.
_CODE = b"\x52\x56\xbe"
_FIRST_LIST = 0x1F4
_LAST_LIST = 0x150
_SEGMENT = 0x820


def is_core_image(disk: Disk, start: int, size: int) -> bool:
    """Whether these `size` bytes of the disk hold GRUB's core image from the second sector on, and nothing besides.

    :raise ImageError: the disk cannot be read.
    """
    end = start + size
    if start > _SECTOR or end < 3 * _SECTOR:
        return False
    sector = disk.read_at(_SECTOR, _SECTOR)
    if not sector.startswith(_CODE) or sector[-2:] != struct.pack("<H", _SEGMENT):
        return False
    covered = [(start, start), (_SECTOR, 2 * _SECTOR)]
    for at in range(_FIRST_LIST, _LAST_LIST, -12):
        first, count, _ = struct.unpack_from("<QHH", sector, at)
        if not count:
            break
        covered.append((first * _SECTOR, (first + count) * _SECTOR))
        if first < 2 or covered[-1][1] > end:
            return False
    if len(covered) < 3:
        return False
    ranges = sorted([*covered, (end, end)])
    gaps = [(one[1], other[0]) for one, other in pairwise(ranges) if other[0] > one[1]]
    return all(first_byte(disk, low, high - low) is None for low, high in gaps)
