"""What a partition holds: the names that blkid gives, and what only looks like a key."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_builders import noise

from pytest_osgates.image.disk.contents import (
    EMPTY,
    LUKS,
    UNKNOWN,
    Contents,
    entropy,
    identify,
    looks_random,
    sampled_entropy,
    signatures,
)
from pytest_osgates.image.disk.source import SourceContent, open_disk
from tests.disk_builders import DATA, BytesDisk, fat, luks2

MIB = 1 << 20


def held(raw: bytes) -> Contents:
    disk = BytesDisk(raw)
    return identify(disk, SourceContent(disk, 0, disk.size), 0, disk.size)


def test_what_programs_make(tmp_path: Path) -> None:
    """The names of blkid(8), of what is installed here to make them."""
    for name, command in {
        "ext4": ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-F"],
        "swap": ["/usr/sbin/mkswap"],
        "vfat": ["/usr/sbin/mkfs.fat"],
    }.items():
        path = tmp_path / name
        path.write_bytes(bytes(4 * MIB))
        subprocess.run([*command, str(path)], check=True, capture_output=True)
        with open_disk(path) as disk:
            found = identify(disk, SourceContent(disk, 0, disk.size), 0, disk.size)
        assert (found.kind, found.also) == (name, ())
        said = subprocess.run(["/usr/sbin/blkid", "-p", "-o", "value", "-s", "TYPE", str(path)], capture_output=True)
        assert said.stdout.decode().strip() == name


@pytest.mark.parametrize(
    ("kind", "offset", "magic"),
    [
        ("xfs", 0, b"XFSB"),
        ("btrfs", 0x10040, b"_BHRfS_M"),
        ("LVM2_member", 512, b"LABELONE"),
        ("squashfs", 0, b"hsqs"),
        ("iso9660", 32769, b"CD001"),
        ("swap", 4086, b"SWAPSPACE2"),
        ("swap", 65526, b"SWAPSPACE2"),
        ("swap", 4086, b"S1SUSPEND\0"),
        ("linux_raid_member", 4096, b"\xfc\x4e\x2b\xa9"),
        ("linux_raid_member", MIB - 8192, b"\xfc\x4e\x2b\xa9"),
        ("DM_verity_hash", 0, b"verity\0\0"),
        ("BitLocker", 3, b"-FVE-FS-"),
    ],
)
def test_signatures(kind: str, offset: int, magic: bytes) -> None:
    raw = bytearray(MIB)
    raw[offset : offset + len(magic)] = magic
    assert held(bytes(raw)).kind == kind


def test_luks_beside_another_signature_is_ambiguous() -> None:
    raw = bytearray(luks2(payload=bytes(MIB)))
    assert held(bytes(raw)) == Contents(LUKS)
    raw[0x10040 : 0x10040 + 8] = b"_BHRfS_M"
    assert held(bytes(raw)) == Contents(LUKS, ("btrfs",))


def test_nothing_is_something_else_than_unknown() -> None:
    assert held(bytes(MIB)) == Contents(EMPTY)
    one = bytearray(MIB)
    one[-1] = 1
    assert held(bytes(one)).kind == UNKNOWN
    even = held(noise(MIB))
    assert even.kind == UNKNOWN
    assert even.entropy is not None
    assert even.entropy > 7.8
    text = held(b"text of a book, line after line\n" * 9000)
    assert text.entropy is not None
    assert text.entropy < 6


def test_one_block_of_plain_text_is_enough() -> None:
    """In what should be random throughout; but sectors that were never written say nothing."""
    raw = bytearray(noise(MIB))
    raw[4096 * 10 + 512 : 4096 * 12] = bytes(4096 * 2 - 512)
    assert sampled_entropy(BytesDisk(bytes(raw)), 0, MIB)[0] > 7.8
    raw[4096 * 20 : 4096 * 21] = b"plain" * 819 + b"x"
    lowest, blocks = sampled_entropy(BytesDisk(bytes(raw)), 0, MIB)
    assert blocks == 255
    assert lowest < 4


def test_random_data_have_no_signature() -> None:
    for number in range(300):
        raw = hashlib.shake_128(b"%d" % number).digest(0x11000)
        assert signatures(SourceContent(BytesDisk(raw), 0, len(raw))) == ()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), size=st.sampled_from([16, 32, 48, 64, 96, 256, 512, 2048, 4096]))
def test_random_bytes_look_like_a_key(seed: int, size: int) -> None:
    """But for one in some thousands."""
    tries = [hashlib.shake_128(b"%d %d" % (seed, number)).digest(size) for number in range(2)]
    assert any(looks_random(data) for data in tries)


def test_what_does_not_look_like_a_key() -> None:
    table = struct.pack("<64I", *range(0, 64 * 4, 4))
    for data in (
        b"",
        os.urandom(15),
        b"# a comment\nroot UUID=05c0de01 none luks,discard\n",
        bytes(64),
        table,
        b"deadbeefcafe0123" * 4,
        "Größe, Länge und Übermaß: Prüfsumme für Änderungen\n".encode() * 4,
        Path(__file__).read_bytes(),
        bytes(range(256)),
        zlib.compress(b"a" * 4000),
    ):
        assert not looks_random(data) or data == bytes(range(256))
    assert entropy(b"") == 0.0
    assert entropy(bytes(range(256))) == 8.0


def test_a_fat_is_told_from_a_table(tmp_path: Path) -> None:
    path = fat(tmp_path / "esp", {})
    assert held(path.read_bytes()).kind == "vfat"


def test_reading_beyond_the_end_gives_less() -> None:
    content = SourceContent(BytesDisk(b"0123456789"), 4, 3)
    assert [content.read(*where) for where in ((0, 9), (2, 9), (3, 1), (99, 5))] == [b"456", b"6", b"", b""]


def test_the_payload_lies_where_the_header_says() -> None:
    raw = luks2(payload=noise(MIB))
    assert sampled_entropy(BytesDisk(raw), DATA, MIB) == pytest.approx((8.0, 256), abs=0.1)


@pytest.mark.parametrize("place", [0.1, 0.5003, 0.9])
def test_plain_text_in_one_place_is_found(place: float) -> None:
    """What an earlier installation left in one piece, if that is a five hundredth of what was written."""
    raw = bytearray(hashlib.shake_128(b"payload").digest(16 << 20))
    length, at = len(raw) // 500, int(len(raw) * place)
    assert sampled_entropy(BytesDisk(bytes(raw)), 0, len(raw))[0] > 7.9
    raw[at : at + length] = (b"left in the clear\n" * length)[:length]
    assert sampled_entropy(BytesDisk(bytes(raw)), 0, len(raw))[0] < 7.5
