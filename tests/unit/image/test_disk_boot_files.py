"""What lies open on an EFI system partition, and inside the initrds on it."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from image_builders import noise

from pytest_osgates.image.diff.ranges import BytesContent
from pytest_osgates.image.diff.streams import method_of, stored_size
from pytest_osgates.image.disk.boot_files import BootFiles, read_boot_files
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import fat, flipped, newc, pe

KEY = noise(700)[-64:]
CRYPTTAB = b"# name device key options\nroot UUID=1 /keys/root luks,discard\ndata UUID=2 none\n\nshort\n"


def lz4_legacy(raw: bytes) -> bytes:
    """What `lz4 -l` writes, as initramfs-tools does: its blocks hold 8 MiB, the last one what is left."""
    block = lz4.block.compress(raw, store_size=False)
    return b"\x02\x21\x4c\x18" + len(block).to_bytes(4, "little") + block


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda raw: raw,
    "gzip": gzip.compress,
    "xz": lambda raw: lzma.compress(raw, check=lzma.CHECK_CRC32),
    "zstd": zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=False).compress,
    "zstd-single": zstandard.ZstdCompressor(level=3).compress,
    "lz4": lz4_legacy,
}


def keys_in(line: str) -> list[str]:
    return [word for word in line.replace("'", "").split() if "key=" in word]


def look(tmp_path: Path, files: dict[str, bytes]) -> BootFiles:
    return read_boot_files(BytesContent(fat(tmp_path / "esp", files).read_bytes()), keys_in)


def names(seen: BootFiles, *, random: bool | None = None) -> set[str]:
    return {f"{file.container}!{file.path}" for file in seen.files if random in (None, file.random)}


@pytest.mark.parametrize("how", COMPRESSIONS)
def test_every_archive_of_an_initrd_is_looked_into(how: str, tmp_path: Path) -> None:
    """Before the compressed one, in it, and after it: the kernel unpacks them all."""
    packed = COMPRESSIONS[how](newc({"init": b"#!/bin/sh\n" * 50, "etc/inner": KEY}))
    padding = bytes(-len(packed) % 4 + 8)
    initrd = newc({"early": b"microcode"}) + packed + padding + newc({"./cryptroot/crypttab": CRYPTTAB, "key": KEY})
    seen = look(tmp_path, {"boot/initrd": initrd, "boot/readme.txt": b"linux /x rd.luks.key=/k 'luks.key=1' x=1\n"})
    assert seen.initrds == ["/boot/initrd"]
    assert seen.unread == []
    inner = {"/early", "/init", "/etc/inner", "/cryptroot/crypttab", "/key"}
    assert names(seen) == {f"/boot/initrd!{name}" for name in inner} | {"!/boot/initrd", "!/boot/readme.txt"}
    assert names(seen, random=True) == {"/boot/initrd!/etc/inner", "/boot/initrd!/key"}
    assert [(line.name, line.device, line.key, line.options) for line in seen.crypttab] == [
        ("root", "UUID=1", "/keys/root", "luks,discard"),
        ("data", "UUID=2", "none", ""),
        ("short", "", "", ""),
    ]
    assert seen.words == [("/boot/readme.txt", "rd.luks.key=/k"), ("/boot/readme.txt", "luks.key=1")]


def test_an_ext4_that_boots_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "boot" / "grub").mkdir(parents=True)
    (tmp_path / "boot" / "initrd.img").write_bytes(newc({"etc/crypttab": CRYPTTAB, "k": KEY}))
    (tmp_path / "boot" / "grub" / "grub.cfg").write_text("linux /vmlinuz rd.luks.key=/k\n")
    with (tmp_path / "boot" / "hole").open("wb") as file:
        file.truncate(1 << 32)
    image = tmp_path / "image"
    command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "boot"), str(image), "8M"]
    subprocess.run(command, check=True, capture_output=True)
    seen = read_boot_files(BytesContent(image.read_bytes()), keys_in)
    assert seen.initrds == ["/initrd.img"]
    assert names(seen, random=True) == {"/initrd.img!/k"}
    assert [line.key for line in seen.crypttab] == ["/keys/root", "none", ""]
    assert seen.words == [("/grub/grub.cfg", "rd.luks.key=/k")]
    assert [name for name, _ in seen.unread] == ["/hole"]


def test_a_unified_kernel_image_is_looked_into(tmp_path: Path) -> None:
    sections = {".linux": b"\x7fkernel", ".cmdline": b"quiet rd.luks.key=/k\0", ".initrd": newc({"k": KEY})}
    seen = look(tmp_path, {"EFI/Linux/a.efi": pe(sections)})
    assert seen.initrds == ["/EFI/Linux/a.efi!.initrd"]
    assert names(seen, random=True) == {"/EFI/Linux/a.efi!.initrd!/k"}
    assert seen.words == [("/EFI/Linux/a.efi!.cmdline", "rd.luks.key=/k")]


def test_what_is_not_looked_into_is_said(tmp_path: Path) -> None:
    broken = newc({"init": b"x" * 5000})[:3000]
    seen = look(
        tmp_path,
        {
            "log.gz": gzip.compress(b"text " * 100),
            "image": b"hsqs" + bytes(200),
            "initrd": broken,
            "junk": COMPRESSIONS["zstd"](newc({"a": b"b"})) + b"junk at the end",
            "prog.efi": b"MZ" + bytes(100),
        },
    )
    assert {name for name, _ in seen.unread} == {"/log.gz", "/image", "/initrd", "/junk", "/prog.efi"}


def test_what_looks_random_and_is_of_a_known_format_is_no_key(tmp_path: Path) -> None:
    files = {"a.png": b"\x89PNG" + noise(9000), "cert.der": b"\x30\x82" + noise(900), "large": noise(1_000_000)}
    assert names(look(tmp_path, files), random=True) == {"!/large"}


def test_a_file_system_that_is_broken_is_an_error(tmp_path: Path) -> None:
    raw = bytearray(fat(tmp_path / "esp", {"a": bytes(9000)}).read_bytes())
    at = raw.index(b"A          ")
    raw[at + 28 : at + 32] = (1 << 20).to_bytes(4, "little")
    with pytest.raises(ImageError, match="larger than its clusters"):
        read_boot_files(BytesContent(bytes(raw)), keys_in)


@pytest.mark.parametrize("how", [how for how in COMPRESSIONS if how != "plain"])
def test_where_a_compressed_stream_ends(how: str) -> None:
    for raw in (b"a", noise(300_000), b"zeros" + bytes(700_000)):
        packed = COMPRESSIONS[how](raw)
        for tail in (b"", b"070701" + noise(300)):
            content = BytesContent(packed + tail)
            method = method_of(packed)
            assert method is not None
            assert stored_size(content, method) == len(packed)
        if how != "lz4":
            # The end of the kernel's kind of LZ4 is where no block follows: a cut there cannot be told.
            with pytest.raises(ImageError):
                stored_size(BytesContent(packed[: len(packed) * 2 // 3]), method)


@settings(max_examples=60, deadline=None)
@given(
    how=st.sampled_from(sorted(COMPRESSIONS)),
    flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
)
def test_mutated_initrds_never_break_it(how: str, flips: list[tuple[int, int]]) -> None:
    from pytest_osgates.image.disk import boot_files

    packed = COMPRESSIONS[how](newc({"init": noise(2000), "b": b"text" * 90})) + bytes(8) + newc({"k": KEY})
    seen = BootFiles()
    boot_files._look(seen, "", "/initrd", BytesContent(flipped(packed, flips)), keys_in)
    # Whatever became of it, the file itself was seen.
    assert seen.files[0].path == "/initrd"
