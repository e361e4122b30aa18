"""A file that cannot be booted as a CD is refused before anything is booted."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from image_builders import SECTOR, HandMadeIso, boot_entry, boot_record, record, validation_entry

from pytest_osgates.image.digest import image_digest, image_identity
from pytest_osgates.image.launchable import check_launchable
from pytest_osgates.vm.errors import ImageError


def bootable(entry: bytes = boot_entry(0x88, 21), files: tuple[bytes, ...] = ()) -> HandMadeIso:
    iso = HandMadeIso().put(17, boot_record(20)).put(20, validation_entry(), entry)
    iso.put(19, b"\xffCD001\x01")
    return iso.root(*files)


def write(tmp_path: Path, iso: HandMadeIso) -> Path:
    path = tmp_path / "test.iso"
    path.write_bytes(iso.build())
    return path


def test_an_iso_that_boots(tmp_path: Path) -> None:
    check_launchable(write(tmp_path, bootable(files=(record(b"A.;1", 30, SECTOR),))))


@pytest.mark.parametrize(
    ("iso", "said"),
    [
        (HandMadeIso(), "is a data ISO: it has no El Torito boot record"),
        (bootable(boot_entry(0x00, 21)), "no entry of its El Torito boot catalog is marked bootable"),
        (bootable(boot_entry(0x88, 64)), "names a boot image at byte 131072, but it is only 131072 bytes long"),
        (bootable(boot_entry(0x88, 0)), "names a boot image at byte 0"),
        (bootable(files=(record(b"A.;1", 63, SECTOR + 1),)), r"'/a\.?' ends at byte 131073, the file at 131072"),
        (bootable(files=(record(b"D", 64, SECTOR, flags=2),)), "'/d' ends at byte 133120, the file at 131072"),
        (bootable().put(20, bytes(64)), "has no validation entry"),
        (
            bootable(files=(bytes(20), record(b"A.;1", 30, 1))),
            "the directory at 36864 goes on after its end in sector 0",
        ),
    ],
)
def test_one_that_does_not(tmp_path: Path, iso: HandMadeIso, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        check_launchable(write(tmp_path, iso))
    assert caught.value.remedy


def test_the_boot_images_of_appended_partitions_lie_behind_the_volume(tmp_path: Path) -> None:
    iso = bootable(boot_entry(0x88, 63))
    iso.claimed_size = 40
    check_launchable(write(tmp_path, iso))


def test_a_file_is_known_again_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path, bootable())
    before = image_identity(path)
    image_digest(path)
    assert image_identity(path) == before
    with path.open("r+b") as file:
        file.write(struct.pack("<I", 1))
    assert image_identity(path) != before
