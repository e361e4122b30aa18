"""Small images for the tests here, made by the tools that distributions use, or by hand where they are too polite.

A missing tool fails the tests: they are required for development.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pytest_osgates.image.source import check_range
from pytest_osgates.vm.process import run

TIMEOUT = 60.0
SECTOR = 2048
XATTR = "SCHILY.xattr."


@dataclass(frozen=True)
class BytesSource:
    """A source in memory."""

    data: bytes
    name: str = "test.iso"

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, size: int) -> bytes:
        check_range(self, offset, size)
        return self.data[offset : offset + size]


def noise(size: int) -> bytes:
    """Bytes that do not compress, always the same."""
    return hashlib.shake_128(b"noise").digest(size)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """The body ends within `seconds`: hostile input may not keep the reader busy."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


class Tar:
    """A tar archive, from which sqfstar makes what an ordinary user could not put on a disk."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._bytes, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, kind: bytes, data: bytes = b"", *, mode: int = 0o644, **fields: object) -> Tar:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mode, info.mtime = kind, len(data), mode, 1_700_000_000
        for key, value in fields.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def file(self, name: str, data: bytes = b"", **fields: object) -> Tar:
        return self.add(name, tarfile.REGTYPE, data, **fields)  # type: ignore[arg-type]

    def directory(self, name: str, xattrs: dict[str, str] | None = None) -> Tar:
        headers = {XATTR + key: value for key, value in (xattrs or {}).items()}
        return self.add(name, tarfile.DIRTYPE, mode=0o755, pax_headers=headers)

    def link(self, name: str, target: str) -> Tar:
        return self.add(name, tarfile.SYMTYPE, linkname=target, mode=0o777)

    def device(self, name: str, major: int, minor: int, kind: bytes = tarfile.CHRTYPE) -> Tar:
        return self.add(name, kind, devmajor=major, devminor=minor)

    def whiteout(self, name: str) -> Tar:
        return self.device(name, 0, 0)

    def archive(self) -> bytes:
        """The archive, which takes no more members."""
        self._tar.close()
        return self._bytes.getvalue()

    def squashfs(self, path: Path, *options: str) -> Path:
        # By itself it takes a quarter of the memory and all processors.
        command = ["sqfstar", "-quiet", "-no-progress", "-processors", "1", "-mem", "64M", *options, str(path)]
        run(command, timeout=TIMEOUT, input=self.archive())
        return path


def make_iso(directory: Path, path: Path, *options: str) -> Path:
    """An ISO of what is in `directory`, by xorriso."""
    run(["xorriso", "-as", "mkisofs", "-quiet", "-o", str(path), *options, str(directory)], timeout=TIMEOUT)
    return path


def iso_with(tmp_path: Path, files: dict[str, bytes | Path], *options: str) -> Path:
    """An ISO with `files` by their paths in it."""
    tree = tmp_path / "tree"
    for name, contents in files.items():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents.read_bytes() if isinstance(contents, Path) else contents)
    return make_iso(tree, tmp_path / "image.iso", *options)


def both(number: int, size: int = 4) -> bytes:
    """A number in both byte orders (ECMA-119 7.2.3 and 7.3.3)."""
    return number.to_bytes(size, "little") + number.to_bytes(size, "big")


def susp(signature: bytes, body: bytes) -> bytes:
    """A System Use entry."""
    return signature + bytes([4 + len(body), 1]) + body


def name_entry(name: bytes, flags: int = 0) -> bytes:
    return susp(b"NM", bytes([flags]) + name)


def attributes_entry(mode: int) -> bytes:
    return susp(b"PX", both(mode) + both(1) + both(0) + both(0))


def continuation(block: int, offset: int, size: int) -> bytes:
    return susp(b"CE", both(block) + both(offset) + both(size))


def record(name: bytes, block: int, size: int, *, flags: int = 0, use: bytes = b"", unit: int = 0) -> bytes:
    """A directory record (ECMA-119 9.1)."""
    padding = b"" if len(name) & 1 else b"\x00"
    body = both(block) + both(size) + bytes(7) + bytes([flags, unit, 0]) + both(1, 2) + bytes([len(name)])
    whole = b"\x00" + body + name + padding + use
    whole += bytes(len(whole) + 1 & 1)
    return bytes([len(whole) + 1]) + whole


@dataclass
class HandMadeIso:
    """An ISO put together sector by sector. Sector 16 is the primary descriptor, 18 the root directory."""

    sectors: dict[int, bytes] = field(default_factory=dict)
    block_size: int = SECTOR
    size: int = 64
    claimed_size: int | None = None
    root_use: bytes = susp(b"SP", b"\xbe\xef\x00")

    def put(self, sector: int, *contents: bytes) -> HandMadeIso:
        self.sectors[sector] = b"".join(contents)
        return self

    def directory(self, sector: int, *records: bytes, use: bytes = b"") -> HandMadeIso:
        own = record(b"\x00", sector, SECTOR, flags=2, use=use)
        return self.put(sector, own, record(b"\x01", 18, SECTOR, flags=2), *records)

    def root(self, *records: bytes) -> HandMadeIso:
        return self.directory(18, *records, use=self.root_use)

    def build(self) -> bytes:
        primary = bytearray(b"\x01CD001\x01\x00" + b"SYSTEM".ljust(32) + b"VOLUME".ljust(32) + bytes(8))
        primary += both(self.size if self.claimed_size is None else self.claimed_size) + bytes(32)
        primary += both(1, 2) + both(1, 2) + both(self.block_size, 2)
        primary += bytes(156 - len(primary)) + record(b"\x00", 18, SECTOR, flags=2)
        if 18 not in self.sectors:
            self.root()
        image = bytearray(self.size * SECTOR)
        for sector, contents in {16: bytes(primary), 17: b"\xffCD001\x01", **self.sectors}.items():
            image[sector * SECTOR : sector * SECTOR + len(contents)] = contents
        return bytes(image)

    def source(self) -> BytesSource:
        return BytesSource(self.build())


def hand_made(files: dict[str, bytes]) -> BytesSource:
    """An ISO with `files` by their paths, Rock Ridge names, made without a tool: for many small images."""
    listings: dict[str, list[bytes]] = {"": []}
    sectors: dict[str, int] = {"": 18}
    iso = HandMadeIso()
    free = 19
    for path, contents in files.items():
        *parents, name = path.split("/")
        for depth in range(1, len(parents) + 1):
            directory = "/".join(parents[:depth])
            if directory not in sectors:
                sectors[directory], listings[directory], free = free, [], free + 1
                entry = record(b"D", sectors[directory], SECTOR, flags=2, use=name_entry(parents[depth - 1].encode()))
                listings["/".join(parents[: depth - 1])].append(entry)
        listings["/".join(parents)].append(record(b"F.;1", free, len(contents), use=name_entry(name.encode())))
        iso.put(free, contents)
        free += -(-len(contents) // SECTOR)
    for directory, entries in listings.items():
        if directory:
            iso.directory(sectors[directory], *entries)
    iso.root(*listings[""])
    iso.size = free + 1
    return iso.source()


def boot_record(catalog: int) -> bytes:
    """The volume descriptor that says where the El Torito boot catalog is."""
    return b"\x00CD001\x01" + b"EL TORITO SPECIFICATION".ljust(32, b"\x00") + bytes(32) + struct.pack("<I", catalog)


def validation_entry(platform: int = 0) -> bytes:
    entry = bytearray(b"\x01" + bytes([platform]) + bytes(28) + b"\x55\xaa")
    struct.pack_into("<H", entry, 28, -sum(struct.unpack("<16H", entry)) & 0xFFFF)
    return bytes(entry)


def boot_entry(indicator: int, lba: int, sectors: int = 4) -> bytes:
    return struct.pack("<BBHBxHI20x", indicator, 0, 0, 0, sectors, lba)
