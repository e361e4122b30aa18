"""Whole images compared: what was changed is named, whatever layer it is in, and every byte is accounted for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from diff_builders import EPOCH, compared, fat, live_iso, named, newc, squashfs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_builders import BytesSource, Tar, at_most, noise

from pytest_osgates.image.diff.compare import compare_sources
from pytest_osgates.image.diff.digests import CHUNK, CleanMap
from pytest_osgates.image.diff.found import Layer
from pytest_osgates.image.diff.iso import ImageContent, IsoComparison
from pytest_osgates.image.diff.probes import Flipped, points, try_each
from pytest_osgates.image.source import open_source
from pytest_osgates.vm.errors import ImageError


def base_tar(**contents: bytes) -> Tar:
    tar = Tar().directory("etc").directory("usr").directory("var")
    tar.file("etc/plain", contents.get("plain", b"plain\n")).file("usr/large", noise(20_000)).link(
        "etc/link", "plain"
    )
    return tar.file("usr/tool", b"tool", pax_headers={"SCHILY.xattr.user.x": "1"})


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ISO with everything in it."""
    directory = tmp_path_factory.mktemp("image")
    root = squashfs(base_tar(), directory / "root.squashfs")
    initrd = newc({"early/cpu": ({}, b"microcode")}) + bytes(512) + newc({"init": ({}, b"#!/bin/sh\n")})
    return live_iso(directory, {"live/filesystem.squashfs": root, "live/initrd": initrd, "live/vmlinuz": noise(5000)})


def test_an_image_is_the_same_as_itself(image: Path) -> None:
    findings = compared(image, image)
    assert findings.differences == []
    assert findings.unexplained == 0
    assert findings.nodes > 10


def test_a_flipped_byte_in_each_layer_is_found_and_named(image: Path) -> None:
    with open_source(image) as source:
        tried = {entry.layer: entry for entry in try_each(source)}
    assert {
        *("system area", "MBR", "primary GPT", "backup GPT", "volume descriptor", "path table", "directory record"),
        *("Rock Ridge", "Joliet", "Joliet descriptor", "El Torito", "file contents", "squashfs superblock"),
        *("squashfs inode table", "squashfs directory table", "squashfs fragment", "squashfs fragment table"),
        *("squashfs id table", "squashfs xattr table", "squashfs data"),
    } <= set(tried)
    assert {entry.layer: entry.said for entry in tried.values() if not entry.found} == {}
    assert tried["MBR"].said == "MBR: disk signature"
    assert tried["primary GPT"].said == "primary GPT: disk GUID"
    assert tried["volume descriptor"].said == "primary volume descriptor: creation date"
    assert tried["squashfs data"].said == "/live/filesystem.squashfs!/usr/large: content"


def test_nothing_of_the_image_is_unclaimed_but_zeros(image: Path) -> None:
    with open_source(image) as source:
        clean = CleanMap(bytes(-(-source.size // CHUNK)))
        findings = compare_sources(source, source, clean)
        comparison = IsoComparison(source, source, findings, clean, _ignore)
        comparison.run()
        assert [comparison._gap_contents(side) for side in (0, 1)] == [{}, {}]


def _ignore(path: str, a: ImageContent, b: ImageContent) -> None:
    return


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_byte_is_found(image: Path, data: st.DataObject) -> None:
    """It is named, but where nothing belongs to any structure: then it is counted as unexplained."""
    with open_source(image) as source:
        at = data.draw(st.integers(0, source.size - 1))
        before = source.read_at(at, 1)
        dirty = bytearray(-(-source.size // CHUNK))
        dirty[at // CHUNK] = 1
        findings = compare_sources(source, Flipped(source, at), CleanMap(bytes(dirty)))
    assert findings.differences
    if findings.unexplained:
        assert findings.unexplained == 1
        assert before == b"\x00"
    else:
        assert all(difference.layer is not Layer.UNEXPLAINED for difference in findings.differences)


def test_a_byte_in_no_structure_is_unexplained(image: Path) -> None:
    raw = bytearray(image.read_bytes())
    # Between the descriptors of the volume and those of the one for USB, which begin at 65536.
    gap = 60_000
    raw[gap] ^= 0xFF
    other = image.with_name("flipped.iso")
    other.write_bytes(bytes(raw))
    findings = compared(image, other)
    assert findings.unexplained == 1
    assert [difference.layer for difference in findings.differences] == [Layer.UNEXPLAINED]
    assert findings.differences[0].offsets[1] == gap


# -- the replay
# --------------------------------------------------------------------------------------------------------

HOST_IDS = b"8a3f1f6e-4b0c-4c3e-9d6a-0f6a5f2b7c1d\n", b"1c2d3e4f-0011-4223-8445-566778899aab\n"
LOGS = b"Building module: Sat Nov 21 10:00:00 UTC 2026\n", b"Building module: Sat Nov 21 10:16:04 UTC 2026\n"


@pytest.fixture(scope="session")
def replay(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All that one distribution met, one layer in each build that took half an hour, in one pair."""
    images = []
    for number in (0, 1):
        directory = tmp_path_factory.mktemp(f"replay-{number}")
        tar = (
            Tar().directory("etc").directory("etc/nvme").directory("var").directory("var/lib").directory("var/cache")
        )
        for name in ("lib/dkms", "lib/dkms/m", "lib/dkms/m/1", "lib/dkms/m/1/6.12", "lib/dkms/m/1/6.12/x86_64"):
            tar.directory(f"var/{name}")
        tar.directory("var/lib/dkms/m/1/6.12/x86_64/log").directory("var/cache/apt").directory("var/cache/ldconfig")
        tar.file("etc/nvme/hostid", HOST_IDS[number])
        tar.file("var/lib/dkms/m/1/6.12/x86_64/log/make.log", LOGS[number])
        chance = random.Random(number)  # noqa: S311  (the same bytes every time)
        tar.file("var/cache/apt/pkgcache.bin", chance.randbytes(30_000))
        tar.file("var/cache/apt/srcpkgcache.bin", chance.randbytes(9_000 + 1_200_000 * number))
        tar.file("var/cache/ldconfig/aux-cache", b"glibc-ld.so.cache" + chance.randbytes(600))
        # The second was packed with -no-xattrs, as a fix.
        capability = {} if number else {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00 "}
        tar.file("etc/ping", b"ping", pax_headers=capability)
        root = squashfs(tar, directory / "root.squashfs")
        images.append(
            live_iso(
                directory,
                {"live/filesystem.squashfs": root},
                epoch=EPOCH + 964 * number,
                mtimes={"live/filesystem.squashfs": EPOCH + 964 * number},
            )
        )
    return images[0], images[1]


def test_the_replay_names_every_row(replay: tuple[Path, Path]) -> None:
    findings = compared(*replay)
    assert findings.unexplained == 0
    assert findings.notes == []
    found = {(d.layer, d.container, d.path, d.what.partition(" (")[0]) for d in findings.differences}
    root = "/live/filesystem.squashfs"
    for path in (
        *("/etc/nvme/hostid", "/var/lib/dkms/m/1/6.12/x86_64/log/make.log", "/var/cache/apt/pkgcache.bin"),
        *("/var/cache/apt/srcpkgcache.bin", "/var/cache/ldconfig/aux-cache"),
    ):
        assert (Layer.SQUASHFS, root, path, "content") in found
    assert (Layer.SQUASHFS, root, "/etc/ping", "xattr security.capability") in found
    assert (Layer.IMAGE, "", "image", "size") in found
    for path in ("/boot.catalog", root):
        assert (Layer.DIRECTORY, "", path, "recording date") in found
        assert (Layer.ROCK_RIDGE, "", path, "TF modification") in found
    for date in ("creation date", "modification date"):
        assert (Layer.DESCRIPTOR, "", "primary volume descriptor", date) in found
    stamped = next(d for d in findings.differences if (d.path, d.what) == (root, "recording date"))
    assert stamped.delta == 964
    raws = [path.read_bytes() for path in replay]
    for raw, offset in zip(raws, stamped.offsets, strict=True):
        assert offset is not None
        # 9.1.5: years since 1900, month, day, hour, minute, second, zone.
        assert raw[offset : offset + 3] == bytes([123, 11, 14])
    assert raws[0][stamped.offsets[0] or 0 :][:7] != raws[1][stamped.offsets[1] or 0 :][:7]


# -- hostile
# -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_hostile_images_end_in_bounded_time(image: Path, data: st.DataObject) -> None:
    raw = bytearray(image.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 9))
        raw[at : at + 8] = data.draw(st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f" + bytes(7), b"\x01\x80" * 4]))
    end = data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2, 40_000, 2048]))
    whole = image.read_bytes()
    with at_most(20):
        findings = compare_sources(BytesSource(whole, "a"), BytesSource(bytes(raw[:end]), "b"))
    assert bool(findings.differences) == (bytes(raw[:end]) != whole)


def test_what_is_no_iso_is_compared_as_bytes() -> None:
    findings = compared(b"x" * 50_000, b"x" * 49_999 + b"y")
    assert [(d.path, d.what, d.kind, d.differing) for d in findings.differences] == [
        ("image", "content", "as bytes", 1)
    ]
    assert findings.notes


def test_a_damaged_squashfs_is_compared_as_bytes(image: Path, tmp_path: Path) -> None:
    raw = bytearray(image.read_bytes())
    at = raw.index(b"hsqs")
    raw[at + 12 : at + 16] = b"\xff\xff\xff\xff"
    other = tmp_path / "damaged.iso"
    other.write_bytes(bytes(raw))
    findings = compared(image, other)
    assert named(findings) == {("/live/filesystem.squashfs", "content")}
    assert any("not compared as squashfs" in note for note in findings.notes)


def test_fat_images(tmp_path: Path) -> None:
    files = {"EFI/BOOT.EFI": b"one" * 1000, "EFI/Long Name.conf": b"timeout 5\n", "gone.txt": b"x"}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a = fat(tmp_path / "a" / "a.img", files)
    changed = {**files, "EFI/BOOT.EFI": b"two" * 1000, "new.txt": b"y"}
    del changed["gone.txt"]
    b = fat(tmp_path / "b" / "b.img", changed, serial="05c0de02", when=EPOCH + 964)
    from pytest_osgates.image.diff.compare import Comparison
    from pytest_osgates.image.diff.ranges import BytesContent

    comparison = Comparison()
    comparison.inside(Layer.FILE, "", "/efi.img", BytesContent(a.read_bytes()), BytesContent(b.read_bytes()))
    found = {(d.path, d.what) for d in comparison.out.differences if not d.follows}
    assert ("boot sector", "volume serial number") in found
    assert ("/EFI/BOOT.EFI", "content") in found
    assert ("/gone.txt", "only in A") in found
    assert ("/new.txt", "only in B") in found
    stamps = {d.delta for d in comparison.out.differences if d.what == "mtime" and d.path == "/EFI/Long Name.conf"}
    assert stamps == {964}
    assert ("/EFI/Long Name.conf", "content") not in found


def test_an_image_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        points(BytesSource(b"\x00" * 100_000, "nothing"))
