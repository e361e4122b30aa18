"""What is given as an installed disk. Nothing is booted."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from tests.disk_builders import ESP, LINUX, gpt, luks2
from tests.e2e.conftest import Outcome

from .table import Fault, check, proves
from .warm import Place

PROFILE = 'schema = 1\nname = "bench"\n[machine]\nfirmware = ["bios"]\n[gate.luks]\n'
GATE = "from pytest_osgates.gates.test_luks import observation, pytestmark, test_luks\n"
SECTORS = 4096
TOUCH = """
import os
from pytest_osgates.observers import luks
observe = luks.observe
def late(path, *arguments):
    seen = observe(path, *arguments)
    os.utime(path, ns=(1, 1))
    return seen
luks.observe = late
"""


def disk(contents: bytes, inside: str = "") -> Callable[[Place], Outcome]:
    """A disk of these bytes."""

    def make(place: Place) -> Outcome:
        (place.path / "disk.img").write_bytes(contents)
        (place.path / "test_rows.py").write_text(GATE)
        place.profile(PROFILE)
        return place.judge("--iso-disk", "disk.img", inside=inside)

    return make


def parted() -> bytearray:
    return gpt(SECTORS, (ESP, 2048, 100, "esp"), (LINUX, 2200, 1500, "root"))


def checksum() -> bytes:
    raw = parted()
    raw[600] ^= 0xFF
    return bytes(raw)


def halves() -> bytes:
    raw = parted()
    volume = bytearray(luks2(payload=bytes(65536)))
    for at in (5000, 16384 + 5000):
        volume[at] ^= 0xFF
    raw[2200 * 512 : 2200 * 512 + len(volume)] = volume
    return bytes(raw)


MAKERS: dict[str, Callable[[Place], Outcome]] = {
    "disk: random bytes": disk(hashlib.shake_128(b"disk").digest(4 << 20)),
    "disk: a checksum of the partition table": disk(checksum()),
    "disk: overlapping partitions": disk(bytes(gpt(SECTORS, (ESP, 2048, 200, "a"), (LINUX, 2100, 10, "b")))),
    "disk: a header in halves": disk(halves()),
    "disk: a backing file": disk(b"QFI\xfb" + struct.pack(">IQIIQIIQ", 3, 104, 11, 16, 0, 0, 0, 0) + bytes(9000)),
    "disk: cut short": disk(bytes(parted()[: SECTORS * 500])),
    "disk: written to while it is looked at": disk(bytes(parted()), TOUCH),
}


@proves(*MAKERS)
def test_disk(fault: Fault, place: Place) -> None:
    check(fault, MAKERS[fault.name](place))
