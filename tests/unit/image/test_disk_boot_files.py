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

from pytest_osgates.checks.luks_partitions import words_of_keys
from pytest_osgates.image.diff.ranges import BytesContent
from pytest_osgates.image.diff.streams import method_of, stored_size
from pytest_osgates.image.disk import boot_files
from pytest_osgates.image.disk.boot_files import BootFiles, read_boot_files
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import fat, flipped, luks2, newc, pe

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
    packed = COMPRESSIONS[how](newc({"init": noise(2000), "b": b"text" * 90})) + bytes(8) + newc({"k": KEY})
    seen = BootFiles()
    boot_files._look(seen, "", "/initrd", BytesContent(flipped(packed, flips)), keys_in)
    # Whatever became of it, the file itself was seen.
    assert seen.files[0].path == "/initrd"


def keys_of(tmp_path: Path, initrd: bytes) -> BootFiles:
    seen = read_boot_files(BytesContent(fat(tmp_path / "esp", {"initrd": initrd}).read_bytes()), words_of_keys)
    assert seen.initrds == ["/initrd"]
    return seen


@pytest.mark.parametrize("how", [how for how in COMPRESSIONS if how != "plain"])
def test_every_archive_of_one_compressed_stream_is_looked_into(how: str, tmp_path: Path) -> None:
    """The kernel goes on after the first one's trailer, and skips zeros before the next."""
    two = newc({"init": b"#!/bin/sh\n"}) + bytes(400) + newc({"etc/inner": KEY, "etc/crypttab": CRYPTTAB})
    seen = keys_of(tmp_path, COMPRESSIONS[how](two))
    assert names(seen, random=True) == {"/initrd!/etc/inner"}
    assert len(seen.crypttab) == 3
    assert seen.unread == []


def test_junk_after_an_archive_in_a_compressed_stream_is_said(tmp_path: Path) -> None:
    seen = keys_of(tmp_path, gzip.compress(newc({"init": b"x"}) + b"junk" * 99))
    assert [name for name, _ in seen.unread] == ["/initrd"]


@pytest.mark.parametrize("zeros", [4, 512, 3 << 19])
def test_zeros_before_an_initrd_hide_nothing(zeros: int, tmp_path: Path) -> None:
    for packed in (newc({"k": KEY}), gzip.compress(newc({"k": KEY}))):
        (tmp_path / "esp").unlink(missing_ok=True)
        assert names(keys_of(tmp_path, bytes(zeros) + packed), random=True) == {"/initrd!/k"}


def test_a_link_may_be_the_name_of_a_key(tmp_path: Path) -> None:
    links = newc({"etc/cryptsetup-keys.d/root.key": b"/usr/words", "etc/crypttab": b"/usr/tab"}, 0o120777)
    seen = keys_of(tmp_path, links + newc({"usr/words": b"correct horse", "usr/tab": CRYPTTAB}))
    assert "/initrd!/etc/cryptsetup-keys.d/root.key" in names(seen)
    assert [name for name, _ in seen.unread] == ["/initrd!/etc/crypttab"]


def test_a_crypttab_that_is_a_hard_link_is_not_empty(tmp_path: Path) -> None:
    """cpio(1) writes the bytes once, with the last name."""
    raw = bytearray(newc({"etc/crypttab": b"", "usr/tab": CRYPTTAB}))
    for at in (raw.index(b"070701"), raw.index(b"070701", 100)):
        raw[at + 6 + 32 : at + 6 + 40] = b"00000002"
    assert [name for name, _ in keys_of(tmp_path, bytes(raw)).unread] == ["/initrd!/etc/crypttab"]


def test_a_name_with_a_nul_is_another_one_for_the_kernel(tmp_path: Path) -> None:
    assert [name for name, _ in keys_of(tmp_path, newc({"etc/crypttab\0x": CRYPTTAB})).unread] == ["/initrd"]


def test_a_header_in_an_initrd_has_keyslots_of_its_own(tmp_path: Path) -> None:
    seen = keys_of(tmp_path, gzip.compress(newc({"small.img": luks2(), "large.img": luks2(payload=bytes(16 << 20))})))
    assert [name for name, _ in seen.unread] == ["/initrd!/small.img", "/initrd!/large.img"]


UNIT = "usr/lib/systemd/system/open.service"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"ExecStart=cryptsetup open --key-file /usr/lib/firmware/root.bin /dev/vda2 root\n", True),
        (b"#!/bin/sh\ncd /lib/firmware; cryptsetup open -d root.bin /dev/vda2 root\0", True),
        (b"key=root.bin.\n", True),
        (b"load another-root.bin\n", False),
        (b"load root.bin.xz\n", False),
        (b"\x7fELF\0firmware=root.bin\0", False),
    ],
)
def test_a_text_that_names_a_file_says_so(text: bytes, named: bool, tmp_path: Path) -> None:
    """In whatever order the archives have them, and in which of them they stand."""
    key, unit = newc({"usr/lib/firmware/root.bin": KEY, "usr/lib/firmware/other.bin": KEY}), newc({UNIT: text})
    for initrd in (gzip.compress(key + unit), unit + gzip.compress(key)):
        (tmp_path / "esp").unlink(missing_ok=True)
        seen = keys_of(tmp_path, initrd)
        assert [file.path for file in seen.files if file.named] == ["/usr/lib/firmware/root.bin"] * named
        assert seen.unread == []


def test_a_link_names_what_it_leads_to_but_for_firmware(tmp_path: Path) -> None:
    key = newc({"usr/lib/firmware/root.bin": KEY})
    for path, named in (("etc/k", True), ("usr/lib/firmware/alias.bin", False)):
        (tmp_path / "esp").unlink(missing_ok=True)
        link = newc({path: b"../usr/lib/firmware/root.bin"}, 0o120777)
        assert any(file.named for file in keys_of(tmp_path, key + link).files) == named


def test_texts_that_are_too_many_are_said_where_one_could_name_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_files, "_MOST_TEXTS", 1 << 20)
    texts = newc({"a": b"x" * (600 << 10), "b": b"y" * (600 << 10)})
    for more, unread in ((newc({"k": KEY}), ["/initrd"]), (b"", [])):
        (tmp_path / "esp").unlink(missing_ok=True)
        assert [name for name, _ in keys_of(tmp_path, gzip.compress(texts + more)).unread] == unread


def test_parameters_inside_an_initrd_name_keys(tmp_path: Path) -> None:
    line = b"rd.luks.key=/words rd.luks.uuid=1\n"
    seen = keys_of(tmp_path, newc({"etc/cmdline.d/90crypt.conf": line, "etc/cmdline": line, "usr/cmdlines": line}))
    assert [name for name, _ in seen.words] == ["/initrd!/etc/cmdline.d/90crypt.conf", "/initrd!/etc/cmdline"]


@pytest.mark.parametrize(
    "text",
    [
        b"set x=1\0\nlinux /x rd.luks.key=/k\n",
        b"linux /x rd.luks.key=/k\0more\n",
        "linux /x rd.luks.key=/k\n".encode("utf-16"),
        b"linux /x rd.luks.'key'=/k\n",
        b"cryptomount -u 1 \\\n -k /k\n",
        b"linux /x rd.luks.k\\\ney=/k\n",
        b'set extra="rd.luks.key=/k"\n',
        b"kernelopts=rd.luks.key=/k root=/dev/x\n",
        b"insmod luks2;cryptomount -u 1 -k /k\n",
        b"# " + b"-" * (1 << 20) + b"\nlinux /x rd.luks.key=/k\n",
        b"options systemd.set_credential=cryptsetup.passphrase:words\n",
        b"options rd.luks.options=1=header=/header.img\n",
    ],
)
def test_no_way_of_writing_hides_a_key(text: bytes, tmp_path: Path) -> None:
    program = pe({".cmdline": text, "mods": b"\x7fELF\0" + text, ".text": b"rd.luks.key=/no"})
    image = fat(tmp_path / "esp", {"grub/grub.cfg": text, "a.efi": program}, mib=8)
    seen = read_boot_files(BytesContent(image.read_bytes()), words_of_keys)
    wanted = {"/grub/grub.cfg", "/a.efi!.cmdline"} | (set() if text.startswith(b"\xff\xfe") else {"/a.efi!mods"})
    assert {name for name, _ in seen.words} == wanted


def test_images_of_disks_and_large_files_of_no_kind_are_said(tmp_path: Path) -> None:
    disk = bytes(510) + b"\x55\xaaEFI PART" + bytes(2 << 20)
    image = fat(tmp_path / "esp", {"a.confext.raw": disk, "large": b"x" * (17 << 20)}, mib=32)
    seen = read_boot_files(BytesContent(image.read_bytes()), words_of_keys)
    assert {name for name, _ in seen.unread} == {"/a.confext.raw", "/large"}


def test_what_follows_a_file_system_is_said(tmp_path: Path) -> None:
    ext = tmp_path / "ext4"
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", str(ext), "8M"], check=True, capture_output=True)
    for raw in (fat(tmp_path / "esp", {"a": b"b"}).read_bytes(), ext.read_bytes()):
        for rest in (b"", bytes(3 << 20)):
            assert read_boot_files(BytesContent(raw + rest), words_of_keys).unread == []
        seen = read_boot_files(BytesContent(raw + bytes(2 << 20) + b"plain"), words_of_keys)
        assert [name for name, _ in seen.unread] == ["after the file system"]


def test_what_deleted_files_leave_is_counted_and_could_be_a_key(tmp_path: Path) -> None:
    text = b"a page of a letter to my lawyer\n" * 400
    files = {"initrd": newc({"init": b"x"}), "root.bin": KEY, "loader/letter.txt": text, "other": b"x" * 700}
    image = fat(tmp_path / "esp", files)
    assert read_boot_files(BytesContent(image.read_bytes()), words_of_keys).free == 0
    subprocess.run(["mdel", "-i", str(image), "::root.bin", "::loader/letter.txt"], check=True)
    seen = read_boot_files(BytesContent(image.read_bytes()), words_of_keys)
    assert seen.free == len(KEY.replace(b"\0", b"")) + len(text)
    assert [name for name, _ in seen.unread] == ["/?OOT.BIN"]
    # Once another file is there, it is that file's.
    over = tmp_path / "over"
    over.write_bytes(bytes(3 << 20))
    subprocess.run(["mcopy", "-i", str(image), str(over), "::over"], check=True)
    seen = read_boot_files(BytesContent(image.read_bytes()), words_of_keys)
    assert (seen.free, seen.unread) == (0, [])


def test_what_follows_the_end_of_a_file_is_counted(tmp_path: Path) -> None:
    image = fat(tmp_path / "esp", {"a": b"x" * 700})
    raw = image.read_bytes()
    at = raw.index(b"x" * 700) + 700
    assert read_boot_files(BytesContent(raw[:at] + b"left" + raw[at + 4 :]), words_of_keys).free == 4


def test_no_name_makes_a_file_invisible(tmp_path: Path) -> None:
    """The reader's own names for deleted entries and labels begin like this one."""
    raw = fat(tmp_path / "esp", {"AINITRD": newc({"k": KEY})}).read_bytes()
    seen = read_boot_files(BytesContent(raw.replace(b"AINITRD ", b"<INITRD ")), words_of_keys)
    assert [name.lower() for name in seen.initrds] == ["/<initrd"]
