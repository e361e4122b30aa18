"""What a partition holds, by the signatures that libblkid knows (util-linux, libblkid/src/superblocks)."""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cache

from pytest_osgates.image.diff.fat import is_fat
from pytest_osgates.image.disk.source import Content, Disk, first_byte

LUKS = "crypto_LUKS"
SWAP = "swap"
FAT = "vfat"
EXT = "ext4"
EMPTY = "empty"
UNKNOWN = "unknown"

# Name (as blkid(8) says it), offset, bytes.
_MAGICS: tuple[tuple[str, int, bytes], ...] = (
    (LUKS, 0, b"LUKS\xba\xbe"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("xfs", 0, b"XFSB"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ("bcache", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("jfs", 32768, b"JFS1"),
    ("nilfs2", 1024, b"\x02\x00\x00\x00\x00\x00\x34\x34"),
    ("reiserfs", 0x10034, b"ReIsEr"),
    ("exfat", 3, b"EXFAT   "),
    ("ntfs", 3, b"NTFS    "),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("cramfs", 0, b"\x45\x3d\xcd\x28"),
    ("iso9660", 32769, b"CD001"),
    ("udf", 32769, b"BEA01"),
    ("hfsplus", 1024, b"H+\x00\x04"),
    ("DM_verity_hash", 0, b"verity\x00\x00"),
    ("DM_integrity", 0, b"integrt\x00"),
    ("linux_raid_member", 0, b"\xfc\x4e\x2b\xa9"),
    ("linux_raid_member", 4096, b"\xfc\x4e\x2b\xa9"),
    *(("LVM2_member", 512 * sector, b"LABELONE") for sector in range(4)),
    *(
        (SWAP, page - 10, magic)
        for page in (4096, 8192, 16384, 32768, 65536)
        # A hibernated system is swap too, with all that was in its memory.
        for magic in (
            b"SWAPSPACE2",
            b"SWAP-SPACE",
            b"S1SUSPEND\x00",
            b"S2SUSPEND\x00",
            b"ULSUSPEND\x00",
            b"LINHIB0001",
        )
    ),
)
_HEAD = 0x11000
_SAMPLE = 4096
_SECTOR = 512
_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found: `kind` is the first signature, or ``empty`` (zeros to the last byte) or ``unknown``; `also`
    further signatures; `entropy`, the least of a sampled block in bits a byte, only of what is unknown."""

    kind: str
    also: tuple[str, ...] = ()
    entropy: float | None = None


def signatures(content: Content) -> tuple[str, ...]:
    """Every signature that the first bytes, or the last, have."""
    head = content.read(0, _HEAD)
    found = [kind for kind, offset, magic in _MAGICS if head.startswith(magic, offset)]
    if _is_ext(head):
        found.append(EXT)
    if is_fat(head[:512]) and not head.startswith((b"EXFAT   ", b"NTFS    "), 3):
        found.append(FAT)
    # MD metadata 1.0 and 0.90 stand at the end (Documentation/admin-guide/md.rst).
    for at in ((content.size - 8192) & ~4095, (content.size & ~0xFFFF) - 0x10000):
        if at > 0 and content.read(at, 4) == b"\xfc\x4e\x2b\xa9":
            found.append("linux_raid_member")
    return tuple(dict.fromkeys(found))


def _is_ext(head: bytes) -> bool:
    """The superblock of ext2 to ext4. Two bytes alone would be found in every 65536th piece of random data."""
    if len(head) < 2048 or head[1080:1082] != b"\x53\xef":
        return False
    (block,) = struct.unpack_from("<I", head, 1024 + 24)
    (revision,) = struct.unpack_from("<I", head, 1024 + 76)
    return bool(block <= 6 and revision <= 1)


def identify(disk: Disk, content: Content, start: int, size: int) -> Contents:
    """What `size` bytes of the disk from `start` hold; `content` are these bytes.

    :raise ImageError: the disk cannot be read.
    """
    found = signatures(content)
    if found:
        return Contents(found[0], found[1:])
    if first_byte(disk, start, size) is None:
        return Contents(EMPTY)
    return Contents(UNKNOWN, entropy=sampled_entropy(disk, start, size)[0])


def entropy(data: bytes) -> float:
    """Shannon's, in bits a byte: 0 to 8."""
    total = len(data)
    return -sum(count / total * math.log2(count / total) for count in Counter(data).values()) if total else 0.0


def samples(disk: Disk, start: int, size: int, limit: int = _SAMPLES) -> list[tuple[int, bytes]]:
    """At most `limit` blocks of 4096 bytes that are not all zeros, spread over what was ever written.

    :raise ImageError: the disk cannot be read.
    """
    runs = list(disk.written(start, size))
    blocks = sum(length // _SAMPLE for _, length in runs)
    step = max(1, blocks // (4 * limit))
    found: list[tuple[int, bytes]] = []
    position = 0
    for at, length in runs:
        here = length // _SAMPLE
        for block in range(-position % step, here, step):
            data = disk.read_at(at + block * _SAMPLE, _SAMPLE)
            if data.count(0) != _SAMPLE:
                found.append((at + block * _SAMPLE, data))
        position += here
    spread = max(1, -(-len(found) // limit))
    return found[::spread]


@cache
def _expected(size: int) -> float:
    """The entropy that `size` random bytes have on average: the binomial distribution of each value's count."""
    chance = 1 / 256
    weight, total = (1 - chance) ** size, 0.0
    for count in range(1, min(size, size // 256 * 4 + 60) + 1):
        weight *= (size - count + 1) / count * chance / (1 - chance)
        total += weight * count * math.log2(count)
    return math.log2(size) - 256 * total / size


def sampled_entropy(disk: Disk, start: int, size: int) -> tuple[float, int]:
    """The least entropy of a sampled block, and how many were looked at.

    Sectors of zeros are left out, and what is missing to 8 bits only because a block is small is added: of random
    bytes it is always near 8.

    :raise ImageError: the disk cannot be read.
    """
    values = []
    for _, data in samples(disk, start, size):
        sectors = (data[at : at + _SECTOR] for at in range(0, len(data), _SECTOR))
        kept = b"".join(sector for sector in sectors if sector.count(0) != len(sector))
        values.append(entropy(kept) + 8 - _expected(len(kept)))
    return (round(min(values), 3) if values else 0.0), len(values)


def looks_random(data: bytes) -> bool:
    """Whether bytes look like a key: as even as random ones, and neither text nor numbers.

    From 16 bytes on. A key that is written as text (hexadecimal, base64, words) does not.
    """
    size = len(data)
    if size < 16:
        return False
    high = sum(byte >> 7 for byte in data)
    # Four standard deviations: of random files one in ten thousand is beyond them.
    if (
        high == 0
        or abs(2 * high - size) > 4 * math.sqrt(size)
        or data.count(0) > size / 256 + 5 * math.sqrt(size / 256) + 1
    ):
        return False
    return entropy(data) > _expected(size) - max(0.06, 3.5 / math.sqrt(size))
