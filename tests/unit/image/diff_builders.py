"""Pairs of images for the tests of the comparison, small and made by the tools that distributions use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from image_builders import TIMEOUT, BytesSource, Tar

from pytest_osgates.image.diff.compare import compare_sources
from pytest_osgates.image.diff.found import Difference, Findings
from pytest_osgates.image.source import open_source
from pytest_osgates.vm.process import run

EPOCH = 1_700_000_000
# Of the tables that follow from what is planted.
Named = set[tuple[str, str]]


def compared(a: Path | bytes, b: Path | bytes) -> Findings:
    """Two images, nothing known of them beforehand."""
    if isinstance(a, bytes) and isinstance(b, bytes):
        return compare_sources(BytesSource(a, "a"), BytesSource(b, "b"))
    assert isinstance(a, Path)
    assert isinstance(b, Path)
    with open_source(a) as one, open_source(b) as other:
        return compare_sources(one, other)


def causes(findings: Findings) -> list[Difference]:
    """What does not only follow."""
    return [difference for difference in findings.differences if not difference.follows]


def named(findings: Findings) -> Named:
    """Path and field of what does not only follow."""
    return {(difference.path, difference.what) for difference in causes(findings)}


def squashfs(tar: Tar, path: Path, *options: str, epoch: int = EPOCH) -> Path:
    """What `tar` holds, with all times of the squashfs itself fixed."""
    dates = ("-mkfs-time", str(epoch), "-root-time", str(EPOCH), "-root-mode", "755", "-all-root")
    return tar.squashfs(path, "-b", "4096", *dates[:6], *options)


def fat(path: Path, files: Mapping[str, bytes], *, serial: str = "05c0de01", when: int = EPOCH) -> Path:
    """A FAT12 file system with `files` in directories, by mtools(1)."""
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(when), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    make = ["mkfs.fat", "--invariant", "-i", serial, "-n", "ESP", "-C", str(path), "512"]
    run(make, timeout=TIMEOUT, env=env)
    made: set[str] = set()
    for name, data in files.items():
        parent = name.rpartition("/")[0]
        if parent and parent not in made:
            run(["mmd", "-i", str(path), f"::/{parent}"], timeout=TIMEOUT, env=env)
            made.add(parent)
        source = path.with_name("fat-file")
        source.write_bytes(data)
        run(["mcopy", "-i", str(path), str(source), f"::/{name}"], timeout=TIMEOUT, env=env)
    return path


def newc(members: Mapping[str, tuple[Mapping[str, int], bytes]]) -> bytes:
    """A cpio archive: name, (fields of the header that are not the usual ones, contents)."""
    out = b""
    for number, (name, (fields, data)) in enumerate([*members.items(), ("TRAILER!!!", ({}, b""))], 1):
        usual = {
            "inode": number, "mode": 0o100644, "owner": 0, "group": 0, "links": 1, "mtime": EPOCH, "size": len(data),
            "major": 0, "minor": 0, "rmajor": 0, "rminor": 0, "name": len(name) + 1, "check": 0,
        }  # fmt: skip
        header = b"070701" + b"".join(b"%08x" % value for value in {**usual, **fields}.values())
        out += header + name.encode() + b"\x00"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return out


def live_iso(
    directory: Path,
    files: Mapping[str, bytes | Path],
    *options: str,
    epoch: int = EPOCH,
    mtimes: Mapping[str, int] = {},
) -> Path:
    """A hybrid ISO with two boot images, an appended EFI partition, a GPT, Joliet and a second volume for USB."""
    tree = directory / "tree"
    for name, contents in files.items():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents.read_bytes() if isinstance(contents, Path) else contents)
    (tree / "boot.bin").write_bytes(bytes(range(256)) * 16)
    for path in sorted(tree.rglob("*"), reverse=True):
        when = mtimes.get(str(path.relative_to(tree)), EPOCH)
        os.utime(path, (when, when))
    os.utime(tree, (EPOCH, EPOCH))
    mbr = directory / "mbr"
    mbr.write_bytes(b"\x33\xed" + bytes(430))
    efi = fat(directory / "efi.img", {"EFI/BOOT.EFI": b"MZ boot"})
    image = directory / "image.iso"
    run(
        [
            *("xorriso", "-no_rc", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", "TEST", "-iso-level", "3"),
            *("-isohybrid-mbr", str(mbr), "-partition_offset", "16"),
            *("-c", "boot.catalog", "-b", "boot.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"),
            *("-append_partition", "2", "0xef", str(efi), "-appended_part_as_gpt"),
            *("-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot"),
            *options,
            *("-o", str(image), str(tree)),
        ],
        timeout=TIMEOUT,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
    )
    return image
