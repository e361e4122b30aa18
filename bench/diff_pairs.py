"""Pairs of live ISOs for bench_diff.py, always the same bytes: a tree by a seed, and a list of planted
differences."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

EPOCH = 1_700_000_000
WORDS = b"the quick brown fox jumps over the lazy dog while a reproducible build sleeps soundly \n"


@dataclass(frozen=True)
class Shape:
    """How large a tree is: `nodes` files and directories, about `megabytes` when compressed."""

    nodes: int
    megabytes: int


@dataclass
class Entry:
    """A member of the tar archive that becomes the squashfs."""

    name: str
    kind: bytes = tarfile.REGTYPE
    seed: int = 0
    size: int = 0
    mode: int = 0o644
    mtime: int = EPOCH
    uid: int = 0
    gid: int = 0
    target: str = ""
    data: bytes | None = None
    xattrs: dict[str, str] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)


def contents(seed: int, size: int) -> bytes:
    """`size` bytes, of which half compress to nothing: noise and text in turns of 4 KiB."""
    chance = random.Random(seed)
    noise = chance.randbytes((size + 1) // 2)
    text = WORDS * 48
    parts = []
    for start in range(0, len(noise), 4096):
        parts += [noise[start : start + 4096], text[: min(4096, len(noise) - start)]]
    return b"".join(parts)[:size]


def tree(shape: Shape) -> Iterator[Entry]:
    """The tree: nine small files of ten, some of a few blocks, and some large ones that hold most of the bytes."""
    chance = random.Random(shape.nodes)
    directories = max(1, shape.nodes // 12)
    files = shape.nodes - directories
    large = 24
    rest = shape.megabytes * 1_000_000 * 2
    sizes = [int(chance.paretovariate(1.2) * 700) for _ in range(files - large)]
    sizes = [min(size, 3_000_000) for size in sizes]
    left = max(0, rest - sum(sizes)) // large
    yield Entry("usr", tarfile.DIRTYPE, mode=0o755)
    for number in range(97):
        yield Entry(f"usr/d{number:02}", tarfile.DIRTYPE, mode=0o755)
    for number in range(directories):
        yield Entry(f"usr/d{number % 97:02}/p{number:05}", tarfile.DIRTYPE, mode=0o755)
    for number, size in enumerate([*sizes, *[left] * large]):
        parent = number % directories
        yield Entry(f"usr/d{parent % 97:02}/p{parent:05}/f{number:06}", seed=number + 1, size=size)


Mutation = Callable[[dict[str, Entry]], None]


def _change(name: str, **values: object) -> Mutation:
    def apply(entries: dict[str, Entry]) -> None:
        for key, value in values.items():
            setattr(entries[name], key, value)

    return apply


def _add(entry: Entry) -> Mutation:
    return lambda entries: entries.update({entry.name: entry})


def _remove(name: str) -> Mutation:
    def apply(entries: dict[str, Entry]) -> None:
        del entries[name]

    return apply


BASE = (
    Entry("etc", tarfile.DIRTYPE, mode=0o755),
    Entry("etc/machine-id", data=b"4f6c1b0a3d2e4f5a8b7c6d5e4f3a2b1c\n"),
    Entry("etc/hostname", data=b"bench\n"),
    Entry("etc/link", tarfile.SYMTYPE, target="hostname"),
    Entry("etc/gone", data=b"only in the first\n"),
    Entry("etc/mode", data=b"mode\n"),
    Entry("etc/owner", data=b"owner\n"),
    Entry("etc/stamp", data=b"stamp\n"),
    Entry("etc/label", data=b"label\n", xattrs={"user.build": "one"}),
    Entry("etc/null", tarfile.CHRTYPE, device=(1, 3)),
    Entry("etc/twin", tarfile.LNKTYPE, target="etc/hostname"),
    Entry("etc/build-date", data=b"built on 2026-01-01 10:00:00\n"),
    Entry("etc/cache.gz", data=b"\x1f\x8b\x08\x00" + struct.pack("<I", EPOCH) + b"\x00\x03\x03\x00" + bytes(8)),
)

PLANTED: dict[str, Mutation] = {
    "/etc/machine-id": _change("etc/machine-id", data=b"aaaaaaaabbbb4cccadddeeeeeeeeeeee\n"),
    "/etc/link": _change("etc/link", target="mode"),
    "/etc/gone": _remove("etc/gone"),
    "/etc/new": _add(Entry("etc/new", data=b"only in the second\n")),
    "/etc/mode": _change("etc/mode", mode=0o600),
    "/etc/owner": _change("etc/owner", uid=1000),
    "/etc/stamp": _change("etc/stamp", mtime=EPOCH + 964),
    "/etc/label": _change("etc/label", xattrs={"user.build": "two"}),
    "/etc/null": _change("etc/null", device=(1, 5)),
    "/etc/twin": _change("etc/twin", kind=tarfile.REGTYPE, target="", data=b"bench\n"),
    "/etc/build-date": _change("etc/build-date", data=b"built on 2026-01-01 10:16:04\n"),
    "/etc/cache.gz": _change(
        "etc/cache.gz", data=b"\x1f\x8b\x08\x00" + struct.pack("<I", EPOCH + 964) + b"\x00\x03\x03\x00" + bytes(8)
    ),
}


def write_tar(entries: dict[str, Entry], out: IO[bytes]) -> None:
    """The entries as a tar stream, extended attributes as mksquashfs(1) reads them."""
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries.values():
            info = tarfile.TarInfo(entry.name)
            data = b""
            if entry.kind == tarfile.REGTYPE:
                data = contents(entry.seed, entry.size) if entry.data is None else entry.data
            info.type, info.size, info.mode, info.mtime = entry.kind, len(data), entry.mode, entry.mtime
            info.uid, info.gid, info.linkname = entry.uid, entry.gid, entry.target
            info.devmajor, info.devminor = entry.device
            info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in entry.xattrs.items()}
            tar.addfile(info, io.BytesIO(data))


def make_squashfs(path: Path, shape: Shape, planted: bool, compression: str, *options: str) -> None:
    """The tree of `shape` as a squashfs at `path`, with the planted differences or without."""
    entries = {entry.name: entry for entry in (*BASE, *tree(shape))}
    if planted:
        for mutate in PLANTED.values():
            mutate(entries)
    path.unlink(missing_ok=True)
    command = ["mksquashfs", "-", str(path), "-tar", "-quiet", "-no-progress", "-comp", compression]
    command += ["-root-time", str(EPOCH), "-mkfs-time", str(EPOCH), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        write_tar(entries, process.stdin)
    if process.returncode:
        raise SystemExit(f"mksquashfs ended with status {process.returncode}")


def make_iso(path: Path, squashfs: Path, date: str = "2023111422132000") -> None:
    """A live ISO around `squashfs`, all of its dates fixed."""
    top = path.with_name(f"{path.name}.tree")
    (top / "live").mkdir(parents=True, exist_ok=True)
    target = top / "live" / "filesystem.squashfs"
    target.unlink(missing_ok=True)
    target.hardlink_to(squashfs)
    subprocess.run(
        [
            *("xorriso", "-no_rc", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-r", "-V", "BENCH"),
            *(f"--modification-date={date}", "--set_all_file_dates", date, "-o", str(path), str(top)),
        ],
        check=True,
    )
    target.unlink()
    for directory in (top / "live", top):
        directory.rmdir()
