"""qcow2: what QEMU wrote is read as QEMU would; anything else is an error and never another exception."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from image_builders import BytesSource, noise

from pytest_osgates.image.disk.qcow2 import Qcow2Source
from pytest_osgates.image.disk.source import first_byte, open_disk
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import flipped

SIZE = 3 << 20
# Random, zeros, text that compresses, and a tail that ends in no cluster.
CONTENT = {0: noise(70_000), 1 << 20: b"compressible " * 9000, (3 << 20) - 5000: noise(5000)}
FORMATS = {
    "v3": ["-o", "cluster_size=64k"],
    "v2": ["-o", "compat=0.10"],
    "small-clusters": ["-o", "cluster_size=512"],
    "large-clusters": ["-o", "cluster_size=2M"],
    "zlib": ["-c"],
    "zlib-small": ["-c", "-o", "cluster_size=4k"],
    "zstd": ["-c", "-o", "compression_type=zstd"],
    "preallocated": ["-o", "preallocation=metadata"],
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at, data in CONTENT.items():
            file.seek(at)
            file.write(data)
    return path


def convert(raw: Path, to: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, str(raw), str(to)], check=True)
    return to


@pytest.mark.parametrize("form", FORMATS)
def test_it_reads_what_qemu_wrote(form: str, raw: Path, tmp_path: Path) -> None:
    wanted = raw.read_bytes()
    with open_disk(convert(raw, tmp_path / "d.qcow2", *FORMATS[form])) as disk:
        assert (disk.format, disk.size) == ("qcow2", SIZE)
        assert disk.read_at(0, SIZE) == wanted
        for at, size in ((69_990, 20), ((1 << 20) - 3, 66_000), (SIZE - 1, 1), (SIZE, 0)):
            assert disk.read_at(at, size) == wanted[at : at + size]
        covered = bytearray(SIZE)
        for at, size in disk.written(0, SIZE):
            covered[at : at + size] = wanted[at : at + size]
        assert covered == wanted
        assert first_byte(disk, 80_000, (1 << 20) - 80_000) is None
        assert first_byte(disk, 80_000, 1 << 20) == 1 << 20
        with pytest.raises(ImageError):
            disk.read_at(SIZE - 1, 2)


def test_raw_images_know_their_holes(raw: Path) -> None:
    with open_disk(raw) as disk:
        assert (disk.format, disk.size) == ("raw", SIZE)
        assert first_byte(disk, 200_000, 500_000) is None
        assert first_byte(disk, 0, SIZE) == 1  # the first byte of that noise is a zero
        assert first_byte(disk, SIZE - 5000, 5000) == SIZE - 4999
        assert sum(size for _, size in disk.written(0, SIZE)) < SIZE


def test_what_it_does_not_read_alone_is_refused(raw: Path, tmp_path: Path) -> None:
    """A digest of this file would not be a digest of the disk."""
    base = convert(raw, tmp_path / "base.qcow2")
    make = ["qemu-img", "create", "-q", "-f", "qcow2"]
    for said, arguments in {
        "backing file": ["-b", str(base), "-F", "qcow2", str(tmp_path / "a")],
        "another file": ["-o", f"data_file={tmp_path / 'data'}", str(tmp_path / "b"), "1M"],
        "extended L2": ["-o", "extended_l2=on", str(tmp_path / "c"), "1M"],
    }.items():
        subprocess.run([*make, *arguments], check=True)
        path = next(Path(word) for word in arguments if word.startswith(str(tmp_path)) and word != str(base))
        with pytest.raises(ImageError, match=said), open_disk(path):
            pass


def test_other_kinds_are_refused() -> None:
    head = bytearray(b"QFI\xfb" + struct.pack(">IQIIQIIQ", 3, 0, 0, 16, 1 << 20, 0, 1, 65536).ljust(508, b"\0"))
    for at, value, said in (
        (4, struct.pack(">I", 4), "version 4"),
        (32, struct.pack(">I", 2), "encrypted"),
        (79, b"\x02", "corrupt"),
        (72, b"\x80", "unknown features"),
        (20, struct.pack(">I", 30), "clusters of"),
        (24, struct.pack(">Q", 1 << 50), "bytes in all"),
        (60, struct.pack(">I", 2), "2 snapshots"),
        (36, struct.pack(">I", 0), "0 tables"),
    ):
        made = bytes(head[:at]) + value + bytes(head[at + len(value) :])
        with pytest.raises(ImageError, match=said):
            Qcow2Source(BytesSource(made + bytes(1 << 17)))


def test_a_shared_table_is_refused() -> None:
    """Two places of the disk with one table: an image of 2^46 bytes in a few kilobytes."""
    head = b"QFI\xfb" + struct.pack(">IQIIQIIQ", 2, 0, 0, 9, 64 << 10, 0, 2, 512)
    file = head.ljust(512, b"\0") + struct.pack(">QQ", 1024, 1024).ljust(512, b"\0") + bytes(512)
    with pytest.raises(ImageError, match="share one table"):
        Qcow2Source(BytesSource(file))


@pytest.fixture(scope="module")
def small(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    made = tmp_path_factory.mktemp("small")
    (made / "raw").write_bytes(noise(20_000) + bytes(40_000) + b"text " * 2000)
    return convert(made / "raw", made / "d", "-c", "-o", "cluster_size=4k").read_bytes()


@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 32_768), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutations_never_break_it(small: bytes, flips: list[tuple[int, int]]) -> None:
    try:
        disk = Qcow2Source(BytesSource(flipped(small, flips)))
        list(disk.written(0, min(disk.size, 1 << 20)))
        assert len(disk.read_at(0, min(disk.size, 1 << 20))) == min(disk.size, 1 << 20)
    except ImageError:
        return
