"""What makes the demo ISO reproducible, taken away one by one: the comparison names the cause.

The medium is put together from the demo's own files by the demo's own steps, twice: once as the demo does it, once
with one lever removed. With a part of its root, which takes a second, and in the slow tier with all of it.
"""

from __future__ import annotations

import io
import os
import random
import re
import stat
import struct
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import zstandard

from pytest_osgates.demo import cached_demo_iso, load_definition
from pytest_osgates.demo.definition import Definition
from pytest_osgates.demo.media import make_efi_image, place_configs, xorriso_arguments
from pytest_osgates.demo.root import squash_arguments
from pytest_osgates.image.rootfs import RootView, open_root
from pytest_osgates.image.tree import FileKind
from pytest_osgates.observers.divergence import compare_images
from pytest_osgates.vm.process import run

PART = ("/etc", "/var/lib/dpkg/info", "/usr/share/doc")
LATER = 964
TIMEOUT = 300.0


@dataclass
class Build:
    """How a medium is put together; each lever removed changes one thing here."""

    members: list[tuple[tarfile.TarInfo, bytes]]
    initrd: bytes
    epoch: int
    squashfs_options: dict[str, str] = field(default_factory=dict)
    xattrs: bool = True
    fat: dict[str, str] = field(default_factory=dict)
    fat_epoch: int = 0
    medium_epoch: int = 0
    dated: bool = True


def members_of(view: RootView, part: Sequence[str]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """A part of the demo's root, as members of a tar archive."""
    found: list[tuple[tarfile.TarInfo, bytes]] = []
    parents = dict.fromkeys(
        str(parent) for path in part for parent in reversed(Path(path).parents) if str(parent) != "/"
    )
    pending = [*reversed(part)]
    for path in parents:
        found.append(member(view, path))
    while pending:
        path = pending.pop()
        inode = view.lookup(path, follow=False)
        assert inode is not None, path
        if inode.kind in (FileKind.DIRECTORY, FileKind.SYMLINK, FileKind.FILE):
            found.append(member(view, path))
        if inode.is_dir:
            pending += [f"{path}/{name}" for name in reversed(view.list_dir(path) or ())]
    return found


def whole(view: RootView) -> list[str]:
    """All of the root."""
    return [f"/{name}" for name in view.list_dir("/") or ()]


def member(view: RootView, path: str) -> tuple[tarfile.TarInfo, bytes]:
    inode = view.lookup(path, follow=False)
    assert inode is not None, path
    info = tarfile.TarInfo(path.lstrip("/"))
    info.mode, info.uid, info.gid, info.mtime = stat.S_IMODE(inode.mode), inode.uid, inode.gid, inode.mtime
    data = b""
    if inode.is_dir:
        info.type = tarfile.DIRTYPE
    elif inode.kind is FileKind.SYMLINK:
        info.type, info.linkname = tarfile.SYMTYPE, inode.target or ""
    elif inode.kind is FileKind.FILE:
        data = view.read(path, 256 << 20) or b""
        assert len(data) == inode.size, path
        info.size = len(data)
    return info, data


def small_initrd(epoch: int, *, inode: int = 1) -> bytes:
    """Two members, packed as mkinitramfs does."""
    out = b""
    for number, (name, mode, data) in enumerate(
        (("init", 0o100755, b"#!/bin/sh\n"), ("etc", 0o40755, b""), ("TRAILER!!!", 0, b""))
    ):
        numbers = (inode + number, mode, 0, 0, 1, epoch, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % value for value in numbers) + name.encode() + b"\x00"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return zstandard.compress(out)


@pytest.fixture(scope="module")
def definition() -> Definition:
    return load_definition()


@pytest.fixture(scope="module", params=["part", pytest.param("whole", marks=pytest.mark.slow)])
def plain(definition: Definition, request: pytest.FixtureRequest) -> Build:
    """With all levers."""
    with open_root(cached_demo_iso(lambda stage, fraction: None)) as view:
        members = members_of(view, PART if request.param == "part" else whole(view))
    assert len(members) > (300 if request.param == "part" else 5000)
    epoch = definition.source_date_epoch
    return Build(members, small_initrd(epoch), epoch, fat_epoch=epoch, medium_epoch=epoch)


def build(how: Build, definition: Definition, where: Path) -> Path:
    """The medium, and the ISO of it."""
    medium = where / "medium"
    (medium / "live").mkdir(parents=True)
    (medium / "EFI/BOOT").mkdir(parents=True)
    (medium / "isolinux").mkdir()
    (medium / "EFI/BOOT/BOOTX64.EFI").write_bytes(b"MZ" + bytes(3000))
    (medium / "isolinux/isolinux.bin").write_bytes(bytes(range(256)) * 20)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in how.members:
            tar.addfile(info, io.BytesIO(data))
    squashfs = squash_arguments(medium / "live/filesystem.squashfs", definition, how.epoch, all_root=False)
    for option, value in how.squashfs_options.items():
        squashfs[squashfs.index(option) + 1] = value
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(how.epoch)}
    run([*squashfs, "-root-uid", "0", "-root-gid", "0"], timeout=TIMEOUT, input=archive.getvalue(), env=env)
    (medium / "live/initrd.img").write_bytes(how.initrd)
    place_configs(definition, medium)
    make_efi_image(medium, how.fat_epoch)
    if how.fat:
        image = medium / "boot/grub/efi.img"
        raw = bytearray(image.read_bytes())
        raw[39:43] = struct.pack("<I", int(how.fat["serial"], 16))
        image.write_bytes(raw)
    for path in sorted(medium.rglob("*"), reverse=True):
        os.utime(path, (how.medium_epoch, how.medium_epoch))
    mbr = where / "mbr"
    mbr.write_bytes(b"\x33\xed" + bytes(430))
    output = where / "image.iso"
    argv = xorriso_arguments(definition, medium, mbr, output)
    if not how.dated:
        argv = _without_dates(argv)
    # Without a date of its own, xorriso takes the clock's: for a test, another one than the first had.
    run(argv, timeout=TIMEOUT, env={**os.environ, "SOURCE_DATE_EPOCH": str(how.medium_epoch)})
    return output


@pytest.fixture(scope="module")
def first(plain: Build, definition: Definition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(plain, definition, tmp_path_factory.mktemp("first"))


def changed(
    how: Build, change: Callable[[tarfile.TarInfo, bytes], bytes | None]
) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members after `change`, which may alter the header, or return other contents."""
    made = []
    for info, data in how.members:
        copy = tarfile.TarInfo(info.name)
        for name in ("mode", "uid", "gid", "mtime", "type", "linkname", "size"):
            setattr(copy, name, getattr(info, name))
        other = change(copy, data)
        if other is not None:
            copy.size = len(other)
        made.append((copy, data if other is None else other))
    return made


def with_file(how: Build, name: str, data: bytes) -> Build:
    """One more file, as a build that does not clean up leaves it."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), how.epoch, 0o644
    parents = []
    known = {entry.name for entry, _ in how.members}
    for parent in reversed(Path(name).parents):
        if str(parent) not in (".", *known):
            directory = tarfile.TarInfo(str(parent))
            directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, how.epoch
            parents.append((directory, b""))
    return replace(how, members=[*how.members, *parents, (info, data)])


def _touched(info: tarfile.TarInfo, data: bytes) -> None:
    if info.name.startswith("etc/systemd"):
        # Later ones than SOURCE_DATE_EPOCH are clamped by mksquashfs itself.
        info.mtime = int(info.mtime) - LATER


def _owned(info: tarfile.TarInfo, data: bytes) -> None:
    if info.name.startswith("etc/systemd"):
        info.uid = 1000


def _open(info: tarfile.TarInfo, data: bytes) -> None:
    if info.name.startswith("etc/systemd") and info.isfile():
        info.mode |= 0o020


def _machine_id(info: tarfile.TarInfo, data: bytes) -> bytes | None:
    return b"0123456789abcdef0123456789abcdef\n" if info.name == "etc/machine-id" else None


def _without_dates(argv: list[str]) -> list[str]:
    at = argv.index("--set_all_file_dates")
    return [word for word in (*argv[:at], *argv[at + 2 :]) if not word.startswith("--modification-date")]


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(5000)  # noqa: S311  (the same bytes every time)


# The lever, how the second build lacks it, and the causes that must be named. Where a file is left behind by both
# builds, the first is given one of its own.
LEVERS: dict[str, tuple[Callable[[Build], Build], set[str]]] = {
    "times clamped": (lambda how: replace(how, members=changed(how, _touched)), {"mtime-tree"}),
    "owners from the archive": (lambda how: replace(how, members=changed(how, _owned)), {"owners"}),
    "umask": (lambda how: replace(how, members=changed(how, _open)), {"modes"}),
    "machine id emptied": (lambda how: replace(how, members=changed(how, _machine_id)), {"machine-id"}),
    "squashfs dated": (lambda how: replace(how, epoch=how.epoch + LATER), {"mkfs-time", "mtime-tree"}),
    "compression pinned": (
        lambda how: replace(how, squashfs_options={"-Xcompression-level": "7"}),
        {"recompressed", "squashfs-options"},
    ),
    "members sorted": (
        lambda how: (
            replace(how, members=[*how.members[:5], *reversed(how.members[5:])])
            if all(info.type != tarfile.LNKTYPE for info, _ in how.members)
            else how
        ),
        {"file-order", "recompressed"},
    ),
    "initrd reproducible": (
        lambda how: replace(how, initrd=small_initrd(how.epoch + LATER, inode=7000)),
        {"initrd-stamps", "initrd-inodes"},
    ),
    "serial of the EFI image": (lambda how: replace(how, fat={"serial": "deadbeef"}), {"fat-serial"}),
    "times in the EFI image": (lambda how: replace(how, fat_epoch=how.fat_epoch + LATER), {"fat-times"}),
    "dates of the medium": (
        lambda how: replace(how, medium_epoch=how.medium_epoch + LATER, dated=False),
        {"iso-volume-dates", "iso-file-dates", "iso-commit-stamps", "boot-catalog-date"},
    ),
    "caches removed": (lambda how: with_file(how, "var/cache/apt/pkgcache.bin", noise(1)), {"apt-cache"}),
    "logs removed": (lambda how: with_file(how, "var/log/dpkg.log", b"2026-01-01 startup\n"), {"logs"}),
}


def test_with_all_levers_it_is_the_same(first: Path, plain: Build, definition: Definition, tmp_path: Path) -> None:
    assert compare_images(first, build(plain, definition, tmp_path)).equal


@pytest.mark.parametrize("lever", LEVERS)
def test_without_a_lever_the_cause_is_named(
    lever: str, first: Path, plain: Build, definition: Definition, tmp_path: Path
) -> None:
    change, expected = LEVERS[lever]
    seen = compare_images(first, build(change(plain), definition, tmp_path))
    assert not seen.equal
    assert seen.unexplained == 0
    named = {group.cause for group in seen.groups}
    assert named & expected == expected if lever != "members sorted" else named & expected, seen.groups
    assert "unknown" not in named, [group.summary for group in seen.groups if group.cause == "unknown"]
    # The first thing that the report says is among them.
    assert re.match(r"[a-z]", seen.groups[0].cause)
    assert seen.groups[0].cause in expected
