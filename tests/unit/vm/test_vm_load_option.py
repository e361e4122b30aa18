"""An entry of a firmware's boot menu, as virt-firmware reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_osgates.vm import variables
from pytest_osgates.vm.host import find_firmware
from pytest_osgates.vm.load_option import load_option
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
