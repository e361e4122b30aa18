"""An entry of a firmware's boot menu, as virt-firmware reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.vm import variables
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.host import find_firmware
from pytest_osgates.vm.load_option import FALLBACK, load_option, started_path
from pytest_osgates.vm.spec import Firmware

GUID = "05c0de01-0000-4000-8000-000000000101"
PATH = "/EFI/BOOT/BOOTX64.EFI"


def test_an_entry_says_where_and_what() -> None:
    option = load_option("a title", (1, 1 << 20, 64 << 20, GUID), PATH, "x=1 quiet")
    assert option[:4] == b"\x01\x00\x00\x00"
    assert "a title\0".encode("utf-16-le") in option
    assert "\\EFI\\BOOT\\BOOTX64.EFI\0".encode("utf-16-le") in option
    assert option.endswith(b"\x7f\xff\x04\x00" + "x=1 quiet\0".encode("utf-16-le"))
    length = int.from_bytes(option[4:6], "little")
    assert 6 + 2 * 8 + length + 2 * 10 == len(option)


def test_another_reader_agrees() -> None:
    bootentry = pytest.importorskip("virt.firmware.efi.bootentry")
    read = bootentry.BootEntry(data=load_option("a title", (1, 1 << 20, 64 << 20, GUID), PATH, "x=1"))
    assert "\\EFI\\BOOT\\BOOTX64.EFI" in str(read.devicepath)
    assert bytes(read.optdata) == "x=1\0".encode("utf-16-le")


def test_it_is_the_first_and_the_next(tmp_path: Path) -> None:
    files = find_firmware(Firmware.UEFI_SECUREBOOT)
    assert files is not None
    store = tmp_path / "variables.fd"
    shutil.copyfile(files.variables.path, store)
    first = load_option("one", (1, 1 << 20, 64 << 20, GUID), PATH, "x=1")
    variables.boot_first(store, first, tmp_path)
    names = ("BootOrder", "BootNext", "Boot05C0", "PK")
    found = variables.databases(store, names, tmp_path)
    assert found["BootNext"] == b"\xc0\x05"
    assert found["BootOrder"].startswith(b"\xc0\x05")
    assert found["Boot05C0"] == first
    assert found["PK"]


# As OVMF writes them: its menu, its shell, and a disk.
MENU = bytes.fromhex("090100002c0055006900410070007000000004071400") + bytes(16) + b"\x04\x06\x14\x00" + bytes(16)
SHELL = b"\1\0\0\0\x2c\0E\0\0\0" + b"\x04\x07\x14\0" + bytes(16) + b"\x04\x06\x14\0" + bytes(16) + b"\x7f\xff\4\0"
DISK = bytes.fromhex("0100000016004400000002010c00d041030a0000000001010600000 57fff0400".replace(" ", "")) + bytes(16)
PXE = b"\1\0\0\0\x29\0N\0\0\0" + b"\x03\x0b\x25\0" + bytes(33) + b"\x7f\xff\4\0"


def test_what_an_entry_starts() -> None:
    mine = load_option("a title", (1, 1 << 20, 64 << 20, GUID), "/EFI/Linux/x.efi", "x=1 quiet")
    assert started_path(mine) == "/EFI/Linux/x.efi"
    assert started_path(DISK) == FALLBACK
    assert started_path(MENU + b"\x7f\xff\4\0") is None
    assert started_path(b"\0" + mine[1:]) is None
    for odd in (SHELL, PXE, mine[:40], b"\1"):
        with pytest.raises(ImageError):
            started_path(odd)


@given(st.binary(max_size=120))
def test_any_entry_starts_something_or_nothing(raw: bytes) -> None:
    for option in (raw, b"\1\0\0\0" + raw):
        try:
            path = started_path(option)
        except ImageError:
            continue
        assert path is None or path.startswith("/")
