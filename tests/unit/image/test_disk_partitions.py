"""Partition tables: read as Linux does, and refused where they could be read in two ways."""

from __future__ import annotations

import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from image_builders import BytesSource, noise

from pytest_osgates.image.disk.partitions import Table, read_table
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import ESP, LINUX, SECTOR, flipped, gpt, luks2, mbr, reseal

SECTORS = 4096


def table(disk: bytes) -> Table:
    return read_table(BytesSource(bytes(disk)))


def two() -> bytearray:
    return gpt(SECTORS, (ESP, 2048, 100, "esp"), (LINUX, 2200, 1000, "root"))


def test_a_gpt() -> None:
    found = table(two())
    assert found.kind == "gpt"
    assert [(part.number, part.type, part.name, part.start, part.size) for part in found.partitions] == [
        (1, ESP, "esp", 2048 * SECTOR, 100 * SECTOR),
        (2, LINUX, "root", 2200 * SECTOR, 1000 * SECTOR),
    ]
    # Up to the first partition, between the two, and up to the second copy of the table.
    assert found.gaps == (
        (34 * SECTOR, (2048 - 34) * SECTOR),
        (2148 * SECTOR, 52 * SECTOR),
        (3200 * SECTOR, (SECTORS - 33 - 3200) * SECTOR),
    )


def test_partitions_come_in_their_order_on_the_disk() -> None:
    found = table(gpt(SECTORS, (LINUX, 3000, 10, "b"), (ESP, 2048, 10, "a")))
    assert [part.number for part in found.partitions] == [2, 1]


def test_sfdisk_and_this_reader_agree(tmp_path: Path) -> None:
    """Logical partitions, too: as sfdisk(8) numbers and places them."""
    for label, script in {
        "gpt": f"label: gpt\nstart=2048,size=4096,type={ESP},name=x\nstart=8192,size=8,type={LINUX}\n",
        "dos": "label: dos\nstart=2048,size=100,type=ef\nstart=4096,size=16384,type=5\n"
        "start=20480,size=512,type=83\nstart=22528,size=1024,type=82\nsize=100,type=8e\nsize=64,type=83\nsize=9\n",
    }.items():
        disk = tmp_path / label
        disk.write_bytes(bytes(16 << 20))
        subprocess.run(["/usr/sbin/sfdisk", "-q", str(disk)], input=script.encode(), check=True)
        said = subprocess.run(
            ["/usr/sbin/sfdisk", "-l", "-o", "device,start,sectors", str(disk)], capture_output=True, check=True
        ).stdout.decode()
        wanted = set()
        for line in said.splitlines():
            words = line.split()
            if line.startswith(str(disk)) and "," not in line:
                number = int(words[0].removeprefix(str(disk)))
                wanted.add((number, int(words[1]), int(words[2])))
        with open_disk(disk) as source:
            found = read_table(source)
        assert found.kind == label
        seen = {(part.number, part.start // SECTOR, part.size // SECTOR) for part in found.partitions}
        # An extended partition holds others; it is none itself.
        assert seen == {entry for entry in wanted if label == "gpt" or entry[0] != 2}


def test_a_disk_without_a_table_is_one_partition() -> None:
    for head in (bytes(SECTOR), b"LUKS\xba\xbe".ljust(510, b"\1") + b"\x55\xaa", b"XFSB".ljust(SECTOR, b"\0")):
        found = table(head + bytes(99 * SECTOR))
        assert found.kind == "none"
        assert [(part.number, part.start, part.size) for part in found.partitions] == [(0, 0, 100 * SECTOR)]


def damaged_gpts() -> dict[str, bytes]:
    made: dict[str, bytes] = {}

    def change(name: str, at: int, value: bytes, *, seal: bool = True) -> None:
        disk = two()
        disk[at : at + len(value)] = value
        made[name] = bytes(reseal(disk) if seal else disk)

    change("checksum", SECTOR + 60, b"x", seal=False)
    change("checksum of the entries", 2 * SECTOR + 60, b"x", seal=False)
    change("the two copies", 2 * SECTOR + 60, b"x")
    change("entries of", SECTOR + 84, struct.pack("<I", 256))
    change("does not speak of", 450, b"\x83", seal=False)
    change("for a GPT that is not there", SECTOR, b"XXX", seal=False)
    change("second copy", (SECTORS - 1) * SECTOR, b"XXX", seal=False)
    change("not in its GPT", 462, mbr((0x83, 2048, 99))[446:462], seal=False)
    change("where partitions are", SECTOR + 40, struct.pack("<Q", 3), seal=True)
    made["overlap"] = bytes(gpt(SECTORS, (ESP, 2048, 200, "a"), (LINUX, 2247, 10, "b")))
    made["goes from block"] = bytes(gpt(SECTORS, (ESP, 2048, SECTORS, "a")))
    made["protective MBR"] = bytes(SECTOR) + bytes(two()[SECTOR:])
    made["sectors of 4096"] = mbr((0xEE, 1, 99)) + bytes(4096 - SECTOR) + b"EFI PART" + bytes(90_000)
    return made


@pytest.mark.parametrize("said", damaged_gpts())
def test_a_gpt_that_contradicts_itself(said: str) -> None:
    with pytest.raises(ImageError, match=said):
        table(damaged_gpts()[said])


@pytest.mark.parametrize(
    ("said", "disk"),
    [
        ("overlap", mbr((0x83, 1, 50), (0x83, 50, 9))),
        ("overlap", mbr((0x83, 1, 50), (0, 20, 9))),
        ("outside the extended", mbr((0x05, 1, 20)) + mbr((0, 1, 25))),
        ("partition 1 has", mbr((0x83, 1, 500))),
        ("begins in the partition table", mbr((0x83, 0, 5))),
        ("outside the disk", mbr((0x05, 10, 500))),
        ("no table of logical", mbr((0x05, 10, 20))),
        ("leads to byte", mbr((0x05, 1, 20)) + mbr((0x83, 1, 2), (0x05, 0, 2))),
        ("leads to byte", mbr((0x05, 1, 20)) + mbr((0x83, 1, 2), (0x05, 99, 2))),
        ("outside the extended", mbr((0x05, 1, 20)) + mbr((0x83, 1, 25))),
        ("other entries than two", mbr((0x05, 1, 20)) + mbr((0x83, 1, 2), (0, 0, 0), (0x83, 1, 2))),
    ],
)
def test_an_mbr_that_contradicts_itself(said: str, disk: bytes) -> None:
    with pytest.raises(ImageError, match=said):
        table(disk.ljust(100 * SECTOR, b"\0"))


@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 3 * SECTOR), st.integers(0, 255)), min_size=1, max_size=5))
def test_whatever_is_changed_in_a_gpt_is_noticed(flips: list[tuple[int, int]]) -> None:
    """But in what nobody reads: the boot code, and what follows the header in its sector."""
    good = bytes(two())
    disk = flipped(good, flips)
    try:
        found = table(disk)
    except ImageError:
        return
    assert found == table(good)


@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(446, 511), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_mbr_leads_outside_or_overlaps(flips: list[tuple[int, int]]) -> None:
    disk = flipped(mbr((0x83, 1, 50), (0x83, 60, 9)).ljust(100 * SECTOR, b"\0"), flips)
    try:
        found = table(disk)
    except ImageError:
        return
    taken = sorted([(part.start, part.end) for part in found.partitions] + [(a, a + b) for a, b in found.gaps])
    assert all(0 <= start < end <= len(disk) for start, end in taken)
    assert all(one[1] <= other[0] for one, other in pairwise(taken))


def test_a_luks_header_that_is_a_table_as_well_is_an_error() -> None:
    """Of the checksum's 64 bytes SHA-256 needs 32: the last entry and the mark of an MBR fit behind. Of what is
    before them only the marks of two entries matter, which a label or a salt can make 0."""
    disk = bytearray(luks2(payload=noise(1 << 16)))
    assert table(bytes(disk)).kind == "none"
    disk[446:512] = mbr((0, 0, 0), (0, 0, 0), (0, 0, 0), (0x83, 600, 100))[446:]
    with pytest.raises(ImageError, match="an MBR as well"):
        table(bytes(disk))


def test_linux_shows_partitions_of_the_type_0() -> None:
    found = table(mbr((0x83, 1, 9), (0, 10, 20)) + bytes(99 * SECTOR))
    assert [(part.number, part.type, part.size) for part in found.partitions] == [
        (1, "0x83", 9 * SECTOR),
        (2, "0x00", 20 * SECTOR),
    ]
