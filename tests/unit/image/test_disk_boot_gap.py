"""GRUB's core image after an MBR is told from what else may lie there."""

from __future__ import annotations

import struct

import pytest
from image_builders import noise

from pytest_osgates.image.disk.boot_gap import is_core_image
from tests.disk_builders import BytesDisk

SIZE = 1 << 20
LETTER = b"a page of a letter to my lawyer\n"


def gap(*lists: tuple[int, int], code: bytes = b"\x52\x56\xbe\x1b\x81", segment: int = 0x820) -> bytearray:
    """A disk with an MBR, the first sector of a core image with these blocklists, and what they name."""
    raw = bytearray(SIZE)
    raw[512 : 512 + len(code)] = code
    struct.pack_into("<H", raw, 1022, segment)
    for number, (start, count) in enumerate(lists):
        struct.pack_into("<QHH", raw, 512 + 0x1F4 - 12 * number, start, count, segment + 32 * number)
        raw[start * 512 : (start + count) * 512] = noise(max(0, min(count * 512, SIZE - start * 512)))
    return raw


def told(raw: bytes, size: int = SIZE - 512) -> bool:
    return is_core_image(BytesDisk(bytes(raw)), 512, size)


def test_a_core_image() -> None:
    assert told(gap((2, 60)))
    # Where sectors in between are somebody else's.
    assert told(gap((2, 10), (14, 30)))


@pytest.mark.parametrize(
    "raw",
    [
        gap(),
        gap((2, 60), code=LETTER),
        gap((2, 60), segment=0x2000),
        gap((1, 60)),
        gap((2, 4000)),
        bytearray(SIZE),
        bytearray(512) + LETTER * 2000 + bytearray(SIZE),
    ],
)
def test_what_is_none(raw: bytearray) -> None:
    assert not told(raw[:SIZE])


@pytest.mark.parametrize("at", [62 * 512, 13 * 512, SIZE - 100])
def test_what_lies_beside_it(at: int) -> None:
    raw = gap((2, 10), (14, 48))
    assert told(raw)
    raw[at : at + 32] = LETTER[:32]
    assert not told(raw)


def test_a_gap_that_is_too_small_or_elsewhere() -> None:
    assert not told(gap((2, 60)), 512)
    assert not is_core_image(BytesDisk(bytes(gap((2, 60)))), 4096, SIZE - 4096)
