"""ISO 9660: what xorriso wrote is what is read, and nothing hostile does harm."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_builders import (
    SECTOR,
    TIMEOUT,
    BytesSource,
    HandMadeIso,
    at_most,
    attributes_entry,
    boot_entry,
    boot_record,
    both,
    continuation,
    iso_with,
    make_iso,
    name_entry,
    record,
    susp,
    validation_entry,
)

from pytest_osgates.image.eltorito import BootPlatform
from pytest_osgates.image.iso9660 import Extent, IsoImage
from pytest_osgates.image.source import open_source
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError, UsageError
from pytest_osgates.vm.process import run

LIMIT = 1 << 20


def test_everything_that_was_put_in_is_read(tree: Path, iso_path: Path) -> None:
    with IsoImage.open(iso_path) as iso:
        files = {file.path: file for file in iso.walk()}
        assert set(files) == {f"/{path.relative_to(tree)}" for path in tree.rglob("*")}
        for path in tree.rglob("*"):
            file = files[f"/{path.relative_to(tree)}"]
            status = path.lstat()
            assert file.mode == status.st_mode
            assert file.kind.value == stat.S_IFMT(status.st_mode)
            assert file.target == (os.readlink(path) if path.is_symlink() else None)  # noqa: PTH115 - Path normalises
            if file.kind is FileKind.FILE:
                assert iso.read(file, LIMIT) == path.read_bytes()
        assert iso.volume.volume_id == "TEST VOLUME"
        assert iso.rock_ridge


def test_extents_are_where_xorriso_says(iso_path: Path) -> None:
    report = run(
        ["xorriso", "-indev", str(iso_path), "-find", "/", "-type", "f", "-exec", "report_lba"], timeout=TIMEOUT
    ).text
    lines = re.findall(r"File data lba:\s*\d+\s*,\s*(\d+)\s*,\s*\d+\s*,\s*(\d+)\s*,\s*'(/[ -&(-~]+)'", report)
    assert len(lines) > 100
    with IsoImage.open(iso_path) as iso:
        for block, size, path in lines:
            file = iso.lookup(path)
            assert file is not None
            assert file.extents == ((Extent(int(block) * SECTOR, int(size)),) if int(size) else ())


def test_lookup(iso_path: Path) -> None:
    with IsoImage.open(iso_path) as iso:
        found = iso.lookup("/live/filesystem.squashfs")
        assert found is not None
        assert (found.name, found.size, found.is_dir) == ("filesystem.squashfs", 300_001, False)
        assert iso.lookup("//live/./") == iso.lookup("live")
        assert iso.lookup("/") is iso.root
        assert iso.lookup("/LIVE") is None
        assert iso.lookup("/live/../live") is None
        assert iso.lookup("/empty/below") is None
        assert iso.list_dir("/nowhere") is None
        assert iso.list_dir("/hollow") == ()


def test_a_file_larger_than_the_limit_is_refused(iso_path: Path) -> None:
    with IsoImage.open(iso_path) as iso:
        file = iso.lookup("/program")
        assert file is not None
        assert iso.read(file, 10) == b"#!/bin/sh\n"
        with pytest.raises(ImageError, match="10 bytes, more than the 9 expected"):
            iso.read(file, 9)
        with pytest.raises(ImageError, match="is a directory"):
            iso.read(iso.root, LIMIT)
        with pytest.raises(ImageError, match="more than 5 files"):
            list(iso.walk(limit=5))


def test_without_rock_ridge_names_are_lower_case_and_found_in_any(tmp_path: Path) -> None:
    path = iso_with(tmp_path, {"LIVE/FILE.TXT": b"text", "NOEXT": b"none"}, "--norock", "-iso-level", "1")
    with IsoImage.open(path) as iso:
        assert not iso.rock_ridge
        assert {file.path for file in iso.walk()} == {"/live", "/live/file.txt", "/noext"}
        file = iso.lookup("/Live/File.TXT")
        assert file is not None
        assert iso.read(file, 10) == b"text"
        assert file.mode is None


def test_el_torito_entries_of_xorriso(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name, letter in (("bios.img", b"b"), ("efi.img", b"e")):
        (tmp_path / "tree" / name).write_bytes(letter * 4096)
    path = make_iso(
        tmp_path / "tree", tmp_path / "boot.iso",
        "-b", "bios.img", "-no-emul-boot", "-boot-load-size", "4", "-eltorito-alt-boot",
        "-e", "efi.img", "-no-emul-boot",
    )  # fmt: skip
    with IsoImage.open(path) as iso:
        bios, efi = iso.boot_entries()
        assert (bios.platform, bios.bootable, bios.sectors) == (BootPlatform.BIOS, True, 4)
        assert (efi.platform, efi.bootable, efi.sectors) == (BootPlatform.EFI, True, 8)
        for entry, letter in ((bios, b"b"), (efi, b"e")):
            assert entry.offset == entry.lba * SECTOR
            assert iso.source.read_at(entry.offset, 4096) == letter * 4096


def test_no_boot_record_no_entries(iso_path: Path) -> None:
    with IsoImage.open(iso_path) as iso:
        assert iso.boot_entries() == ()


@pytest.mark.parametrize(
    ("catalog", "complaint"),
    [
        (b"", "no validation entry"),
        (b"\x01" + bytes(29) + b"\x55\xaa", "checksum"),
        (validation_entry() + boot_entry(0x77, 1), "boot indicator 0x77"),
        (validation_entry() + boot_entry(0x88, 1) + b"\x91\xef\xff\xff" + bytes(28), "more entries than"),
    ],
)
def test_a_broken_boot_catalog_is_an_error(catalog: bytes, complaint: str) -> None:
    iso = HandMadeIso().put(17, boot_record(30)).put(30, catalog)
    with pytest.raises(ImageError, match=complaint):
        IsoImage(iso.source()).boot_entries()


def test_a_boot_catalog_outside_of_the_image_is_an_error() -> None:
    with pytest.raises(ImageError, match="refers to"):
        IsoImage(HandMadeIso().put(17, boot_record(0xFFFF_FFFF)).source()).boot_entries()


def test_boot_sections_extensions_and_foreign_platforms() -> None:
    section = b"\x91\x42\x01\x00" + bytes(28)
    catalog = validation_entry(2) + boot_entry(0x00, 5) + section + boot_entry(0x88, 6) + b"\x44" + bytes(31)
    entries = IsoImage(HandMadeIso().put(17, boot_record(30)).put(30, catalog).source()).boot_entries()
    assert [(entry.platform, entry.bootable, entry.offset) for entry in entries] == [
        (BootPlatform.MAC, False, 5 * SECTOR),
        (BootPlatform.OTHER, True, 6 * SECTOR),
    ]


def test_a_file_of_several_extents() -> None:
    root = HandMadeIso().root(
        record(b"BIG.;1", 30, SECTOR, flags=0x80),
        record(b"BIG.;1", 40, SECTOR, flags=0x80),
        record(b"BIG.;1", 31, 5),
        record(b"NEXT.;1", 32, 1),
    )
    iso = IsoImage(root.put(30, b"a" * SECTOR).put(40, b"b" * SECTOR).put(31, b"c" * 9).source())
    big = iso.lookup("/big")
    assert big is not None
    assert big.extents == (Extent(30 * SECTOR, SECTOR), Extent(40 * SECTOR, SECTOR), Extent(31 * SECTOR, 5))
    assert iso.read(big, LIMIT) == b"a" * SECTOR + b"b" * SECTOR + b"c" * 5
    assert iso.lookup("/next") is not None


def test_extended_attributes_come_before_the_contents() -> None:
    raw = bytearray(record(b"FILE.;1", 30, 4))
    raw[1] = 2
    iso = IsoImage(HandMadeIso().root(bytes(raw)).put(32, b"data").source())
    file = iso.lookup("/file")
    assert file is not None
    assert iso.read(file, 4) == b"data"


def test_names_continue_over_entries_and_areas() -> None:
    use = name_entry(b"first-", 1) + continuation(30, 100, 200)
    root = HandMadeIso().root(record(b"X.;1", 0, 0, use=use))
    following = continuation(31, 0, 50) + name_entry(b"second-", 1)
    iso = root.put(30, bytes(100), following, bytes(200)).put(31, name_entry(b"third"), bytes(50))
    assert IsoImage(iso.source()).lookup("/first-second-third") is not None


def test_link_targets_are_put_together() -> None:
    components = b"\x08\x00" + b"\x00\x03usr" + b"\x04\x00" + b"\x02\x00" + b"\x01\x02li" + b"\x00\x01b"
    use = name_entry(b"link") + attributes_entry(0o120777) + susp(b"SL", b"\x00" + components)
    file = IsoImage(HandMadeIso().root(record(b"X.;1", 0, 0, use=use)).source()).lookup("/link")
    assert file is not None
    assert (file.kind, file.target) == (FileKind.SYMLINK, "/usr/.././lib")


def test_relocated_directories_are_where_they_belong() -> None:
    moved = name_entry(b"moved") + attributes_entry(0o40755)
    root = HandMadeIso().root(
        record(b"MOVED", 0, 0, use=moved + susp(b"CL", both(30))),
        record(b"RR_MOVED", 30, SECTOR, flags=2, use=moved + susp(b"RE", b"")),
    )
    iso = IsoImage(root.directory(30, record(b"INSIDE.;1", 31, 2, use=name_entry(b"inside"))).source())
    assert [file.path for file in iso.walk()] == ["/moved", "/moved/inside"]


def test_bytes_that_sp_says_to_skip_are_skipped() -> None:
    iso = HandMadeIso(root_use=susp(b"SP", b"\xbe\xef\x0e"))
    iso.root(record(b"X.;1", 0, 0, use=b"XA attributes." + name_entry(b"found")))
    assert IsoImage(iso.source()).lookup("/found") is not None


def test_zisofs_contents_are_not_taken_for_the_file() -> None:
    use = name_entry(b"packed") + susp(b"ZF", b"pz\x04\x0f" + both(100))
    iso = IsoImage(HandMadeIso().root(record(b"X.;1", 30, 10, use=use)).source())
    file = iso.lookup("/packed")
    assert file is not None
    with pytest.raises(ImageError, match="zisofs"):
        iso.read(file, LIMIT)


# Sector 30 holds a continuation area: a name of 150 bytes, and at 300 a continuation that leads to itself.
CONTINUED = name_entry(b"n" * 150).ljust(300, b"\x00") + continuation(30, 300, 28)

HOSTILE_RECORDS = {
    "a directory that is its own parent": (record(b"LOOP", 18, SECTOR, flags=2), "reached twice"),
    "a directory outside": (record(b"OUT", 60_000, SECTOR, flags=2), "only 131072 bytes long"),
    "a huge directory": (record(b"HUGE", 20, 0xFFFF_FFFF, flags=2), "a directory of 4294967295 bytes"),
    "an empty directory extent": (record(b"NONE", 20, 0, flags=2), "has 0 extents"),
    "an extent that never ends": (record(b"MORE.;1", 20, 1, flags=0x80), "lacks its last extent"),
    "an extent of another": (
        record(b"MORE.;1", 20, 1, flags=0x80) + record(b"NEXT.;1", 20, 1),
        "lacks its last extent",
    ),
    "interleaving": (record(b"GAPS.;1", 20, 1, unit=1), "interleaved"),
    "a continuation of itself": (record(b"A.;1", 0, 0, use=continuation(30, 300, 28)), "more than 16 continuation"),
    "a continuation outside": (record(b"A.;1", 0, 0, use=continuation(0xFFFF_FFFF, 0, 10)), "refers to 10 bytes"),
    "a huge continuation": (record(b"A.;1", 0, 0, use=continuation(18, 0, 0xFFFF_FFFF)), "more than 65536 bytes"),
    "a slash in a name": (record(b"A.;1", 0, 0, use=name_entry(b"../../etc/passwd")), "impossible file name"),
    "dots as a name": (record(b"A.;1", 0, 0, use=name_entry(b"..")), "impossible file name"),
    "a zero in a name": (record(b"A.;1", 0, 0, use=name_entry(b"a\x00b")), "impossible file name"),
    "no name": (record(b"A.;1", 0, 0, use=name_entry(b"")), "impossible file name"),
    "a slash in an ISO name": (record(b"../A", 0, 0), "impossible file name"),
    "an endless name": (
        record(b"A.;1", 0, 0, use=name_entry(b"n" * 150, 1) + continuation(30, 0, 160)),
        "impossible file name",
    ),
    "an entry without a length": (record(b"A.;1", 0, 0, use=b"NM\x00\x01abc"), "overruns its field"),
    "an entry that overruns": (record(b"A.;1", 0, 0, use=b"NM\xff\x01abc"), "overruns its field"),
    "a link component that overruns": (record(b"A.;1", 0, 0, use=susp(b"SL", b"\0\0\xffab")), "overruns its entry"),
    "an empty link": (record(b"A.;1", 0, 0, use=susp(b"SL", b"\0")), "impossible symbolic link"),
    "short attributes": (record(b"A.;1", 0, 0, use=susp(b"PX", bytes(8))), "has only 8 bytes"),
    "attributes of no known type": (record(b"A.;1", 0, 0, use=attributes_entry(0o170000)), "unknown file type"),
    "a file that says directory": (record(b"A.;1", 0, 0, use=attributes_entry(0o40755)), "its mode for a directory"),
    "a moved directory outside": (record(b"A.;1", 0, 0, use=susp(b"CL", both(0xFFFF_FFFF))), "refers to 1 bytes"),
    "a moved directory that is nothing": (record(b"A.;1", 0, 0, use=susp(b"CL", both(50))), "record of 0 bytes"),
    "a moved directory that is a file": (
        record(b"A.;1", 0, 0, use=susp(b"CL", both(31))),
        "no directory at block 31",
    ),
    "a record without a name": (b"\x22" + bytes(33), "name of 0 bytes"),
    "a record too short": (b"\x08" + bytes(33), "record of 8 bytes"),
    "a name beyond its record": (b"\x22" + bytes(31) + b"\xff" + bytes(40), "name of 255 bytes"),
}


@pytest.mark.parametrize("what", HOSTILE_RECORDS)
def test_hostile_records_are_errors(what: str) -> None:
    raw, complaint = HOSTILE_RECORDS[what]
    iso = HandMadeIso().root(raw).put(30, CONTINUED).put(31, record(b"F.;1", 0, 0)).source()
    with at_most(2.0), pytest.raises(ImageError, match=complaint):
        list(IsoImage(iso).walk())


def test_a_record_may_not_cross_a_sector() -> None:
    filler = b"".join(record(b"F%d.;1" % number, 0, 0) for number in range(45))
    whole = record(b"\x00", 18, SECTOR, flags=2) + filler
    root = HandMadeIso().put(18, whole, bytes([SECTOR - len(whole) + 1]), bytes(40))
    with pytest.raises(ImageError, match="overruns its sector"):
        list(IsoImage(root.source()).walk())


@pytest.mark.parametrize("block_size", [0, 3, 4096])
def test_impossible_block_sizes_are_errors(block_size: int) -> None:
    with pytest.raises(ImageError, match="logical blocks"):
        IsoImage(HandMadeIso(block_size=block_size).source())


def test_a_contents_extent_outside_is_an_error_when_it_is_read() -> None:
    iso = IsoImage(HandMadeIso().root(record(b"OUT.;1", 60, 100_000)).source())
    file = iso.lookup("/out")
    assert file is not None
    with pytest.raises(ImageError, match=r"100000 bytes at 122880, but is only 131072 bytes long"):
        iso.read(file, LIMIT)


def test_a_cut_image_says_how_much_there_is(iso_path: Path, tmp_path: Path) -> None:
    whole = iso_path.read_bytes()
    cut = tmp_path / "cut.iso"
    cut.write_bytes(whole[:100_000])
    with pytest.raises(ImageError, match=f"cut short: 100000 of {len(whole)} bytes") as caught, IsoImage.open(cut):
        pass
    assert "SHA-256" in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "looks"),
    [
        (b"", "is empty"),
        (b"just some words\n" * 100, "looks like text"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML or XML page"),
        (b"\x1f\x8b\x08" + bytes(50_000), "a gzip archive"),
        (b"QFI\xfb" + bytes(50_000), "a qcow2 disk image"),
        (bytes(40_000), "nothing but zeros"),
        (b"\xd0\x0d\xfe\xed\x01\x02\x03" * 9000, "unknown or random data"),
        (b"0" * 64 + b"  image.iso\n", "a list of checksums"),
        (bytes(510) + b"\x55\xaa" + b"EFI PART" + bytes(1000), "a raw disk image with a GPT"),
    ],
)
def test_what_is_no_iso_is_said_to_be_what_it_is(contents: bytes, looks: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.iso"
    path.write_bytes(contents)
    with pytest.raises(ImageError, match=looks) as caught, IsoImage.open(path):
        pass
    assert caught.value.remedy


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path, "a directory"), (tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "device")):
        with at_most(2.0), pytest.raises(ImageError, match=what), open_source(path):
            pass
    with pytest.raises(UsageError, match="cannot open"), open_source(tmp_path / "missing"):
        pass


def exercise(source: BytesSource) -> None:
    """Read all that there is; only ImageError may come of it."""
    try:
        iso = IsoImage(source)
        for file in iso.walk(limit=1000):
            if file.kind is FileKind.FILE and file.size < LIMIT:
                assert len(iso.read(file, LIMIT)) == file.size
        iso.lookup("/live/filesystem.squashfs")
        iso.boot_entries()
    except ImageError:
        return


def interesting(image: bytes) -> list[int]:
    """The positions that mean something: where there is more than zeros, and not only the noise of the large file."""
    return [position for position in range(16 * SECTOR, min(len(image), 240_000)) if image[position]]


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_flipped_and_cut_bytes_do_no_harm(iso_bytes: bytes, places: list[int], data: st.DataObject) -> None:
    flips = data.draw(st.lists(st.tuples(st.sampled_from(places), st.integers(0, 255)), max_size=8))
    end = data.draw(st.one_of(st.just(len(iso_bytes)), st.integers(0, len(iso_bytes))))
    image = bytearray(iso_bytes[:end])
    for position, value in flips:
        if position < end:
            image[position] = value
    with at_most(5.0):
        exercise(BytesSource(bytes(image)))


@pytest.fixture(scope="module")
def iso_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small")
    (path / "tree" / "dir").mkdir(parents=True)
    (path / "tree" / "link").symlink_to("dir/../dir/file-with-a-long-name")
    for number in range(5):
        (path / "tree" / "dir" / f"file-with-a-long-name-{number}").write_bytes(b"contents" * number)
    (path / "tree" / "boot.img").write_bytes(b"boot" * 512)
    return make_iso(path / "tree", path / "small.iso", "-b", "boot.img", "-no-emul-boot").read_bytes()


@pytest.fixture(scope="module")
def places(iso_bytes: bytes) -> list[int]:
    return interesting(iso_bytes)
