"""Inside files: which part of their format differs, and what streams and archives hold."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import lz4.block
import lz4.frame
import pytest
import zstandard
from diff_builders import EPOCH, newc
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.image.diff.compare import Comparison
from pytest_osgates.image.diff.formats import inspect
from pytest_osgates.image.diff.found import Difference, Extents, Layer
from pytest_osgates.image.diff.ranges import BytesContent, differing_ranges
from pytest_osgates.image.diff.streams import Method, Stream, method_of
from pytest_osgates.vm.errors import ImageError


def loci(path: str, a: bytes, b: bytes) -> tuple[str, list[str]]:
    """The format of two files, and the names of the places that differ."""
    one, other = BytesContent(a), BytesContent(b)
    kind, spots = inspect(path, one, other, differing_ranges(one, other))
    return kind, [spot.locus for spot in spots]


def inside(a: bytes, b: bytes) -> list[Difference]:
    comparison = Comparison()
    comparison.inside(Layer.FILE, "", "/file", BytesContent(a), BytesContent(b))
    return comparison.out.differences


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_ranges_are_those_of_a_loop_over_bytes(a: bytes, b: bytes) -> None:
    ranges = differing_ranges(BytesContent(a), BytesContent(b))
    expected = {i for i in range(max(len(a), len(b))) if a[i : i + 1] != b[i : i + 1]}
    assert ranges.differing == len(expected)
    covered = {i for start, size in ranges.found for i in range(start, start + size)}
    assert expected <= covered
    assert all(start in expected and start + size - 1 in expected for start, size in ranges.found)


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 20)), max_size=8))
def test_gaps_are_what_nobody_claimed(claims: list[tuple[int, int]]) -> None:
    extents = Extents(100)
    for start, size in claims:
        extents.claim(start, size)
    claimed = {i for start, size in claims for i in range(start, start + size)}
    gaps = {i for start, end in extents.gaps() for i in range(start, end)}
    assert gaps == set(range(100)) - claimed


TEXT = b"".join(b"line %d of a text\n" % number for number in range(90_000))
LZ4_BLOCK = lz4.block.compress(TEXT, store_size=False)
COMPRESSED = {
    Method.GZIP: gzip.compress(TEXT[:700_000]) + gzip.compress(TEXT[700_000:]),
    Method.XZ: lzma.compress(TEXT),
    Method.ZSTD: zstandard.compress(TEXT),
    Method.LZ4: lz4.frame.compress(TEXT),
    Method.BZIP2: bz2.compress(TEXT),
    Method.LZMA: lzma.compress(TEXT, format=lzma.FORMAT_ALONE),
    Method.LZ4_LEGACY: b"\x02\x21\x4c\x18" + struct.pack("<I", len(LZ4_BLOCK)) + LZ4_BLOCK,
}  # fmt: skip


@pytest.mark.parametrize("method", Method)
def test_streams_are_what_was_compressed(method: Method) -> None:
    raw = COMPRESSED[method]
    assert method_of(raw[:8]) is method
    stream = Stream(BytesContent(raw), method)
    parts = []
    while part := stream.read(77_777):
        parts.append(part)
    assert b"".join(parts) == TEXT
    broken = bytearray(raw)
    broken[len(raw) // 2] ^= 0x10
    for damaged in (bytes(broken), raw[: len(raw) // 2]):
        try:
            found = Stream(BytesContent(damaged), method).read(len(TEXT) + 1)
        except ImageError:
            continue
        # Some have no checksum, or may end anywhere.
        assert found != TEXT


def test_a_stream_that_explodes_is_refused() -> None:
    bomb = zstandard.compress(bytes(200 << 20), level=1)
    with pytest.raises(ImageError, match="more than"):
        _drain(Stream(BytesContent(bomb), Method.ZSTD))


def _drain(stream: Stream) -> None:
    while stream.read(1 << 20):
        pass


INNER_LINE = "uncompressed text: line 2"


def pyc(mtime: int, code: bytes = b"code", flags: int = 0) -> bytes:
    return b"\xcb\x0d\r\n" + struct.pack("<III", flags, mtime, 99) + code


def elf(build_id: bytes, text: bytes) -> bytes:
    """Two sections and their names."""
    names = b"\x00.note.gnu.build-id\x00.text\x00.shstrtab\x00"
    bodies = [build_id, text, names]
    offsets = [64, 64 + len(build_id), 64 + len(build_id) + len(text)]
    table = offsets[2] + len(names)
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 4, 3)
    )
    sections = bytes(64)
    for name, kind, offset, body in zip((1, 20, 26), (7, 1, 3), offsets, bodies, strict=True):
        sections += struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, len(body), 0, 0, 1, 0)
    return header + b"".join(bodies) + sections


def ar(mtime: int, data: bytes) -> bytes:
    return b"!<arch>\n" + b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (b"member.o/", mtime, 0, 0, b"100644", len(data)) + data


def png(when: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"tIME", when) + chunk(b"IEND", b"")


def zipped(year: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("member", (year, 1, 1, 0, 0, 0)), b"data")
    return out.getvalue()


def tarred(mtime: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("member")
        info.mtime = mtime
        archive.addfile(info)
    return out.getvalue()


def ext4(uuid: bytes, when: int) -> bytes:
    raw = bytearray(8192)
    raw[1080:1082] = b"\x53\xef"
    raw[1024 + 0x68 : 1024 + 0x78] = uuid
    struct.pack_into("<I", raw, 1024 + 0x108, when)
    return bytes(raw)


@pytest.mark.parametrize(
    ("path", "a", "b", "kind", "places"),
    [
        ("/x.pyc", pyc(1), pyc(2), "pyc", ["pyc header: source mtime"]),
        ("/x.pyc", pyc(1, b"code"), pyc(1, b"cody"), "pyc", ["pyc code"]),
        ("/prog", elf(b"1" * 20, b"t" * 50), elf(b"2" * 20, b"t" * 50), "ELF", ["ELF build id"]),
        ("/prog", elf(b"1" * 20, b"t" * 50), elf(b"1" * 20, b"T" * 50), "ELF", ["ELF section .text"]),
        ("/lib.a", ar(EPOCH, b"same"), ar(EPOCH + 1, b"same"), "ar", ["ar member member.o: mtime"]),
        ("/a.png", png(b"1234567"), png(b"7654321"), "PNG", ["PNG chunk tIME"]),
        ("/a.jar", zipped(2001), zipped(2002), "zip", ["zip member member: mtime", "zip central directory"]),
        ("/a.tar", tarred(8**6), tarred(8**6 + 1), "tar", ["tar member member: mtime"]),
        ("/r", ext4(b"a" * 16, 1), ext4(b"b" * 16, 1), "ext4", ["ext4 superblock: UUID"]),
        ("/r", ext4(b"a" * 16, 1), ext4(b"a" * 16, 2), "ext4", ["ext4 superblock: creation time"]),
        ("/t", b"a\nb\nc\n", b"a\nc\nb\n", "text", ["same lines in another order"]),
        ("/t", b"one\ntwo\nthree\n", b"one\n2\nthree\n", "text", ["line 2"]),
        ("/t", b"one\ntwo\n", b"one\nmore\ntwo\n", "text", ["line 2"]),
        ("/d", b"\x00\x01\x02", b"\x00\x01\x03", "data", ["bytes"]),
        ("/t.gz", gzip.compress(b"x", mtime=1), gzip.compress(b"x", mtime=2), "gzip", ["gzip header: mtime"]),
        ("/t.gz", gzip.compress(b"x\ny", 9, mtime=1), gzip.compress(b"x\nz", 9, mtime=1), "gzip", [INNER_LINE]),
        ("/t.xz", lzma.compress(b"x\ny"), lzma.compress(b"x\nz"), "xz", [INNER_LINE]),
    ],
)  # fmt: skip
def test_the_part_of_the_format_is_named(path: str, a: bytes, b: bytes, kind: str, places: list[str]) -> None:
    assert loci(path, a, b) == (kind, places)


def test_sqlite_pages(tmp_path: Path) -> None:
    raws = []
    for number in (0, 1):
        path = tmp_path / f"{number}.db"
        with sqlite3.connect(path) as connection:
            connection.execute("pragma page_size = 1024")
            connection.execute("create table t (x)")
            connection.execute("insert into t values (?)", (f"value {number}",))
        connection.close()
        raws.append(path.read_bytes())
    assert loci("/x.db", *raws) == ("SQLite", ["SQLite page 2"])


@given(
    st.sampled_from([elf(b"1" * 20, b"t" * 50), ar(1, b"x"), png(b"1234567"), zipped(2001), tarred(9), pyc(1)]),
    st.data(),
)
def test_damaged_files_are_shown_all_the_same(raw: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw) - 1))
    other = raw[:at] + data.draw(st.binary(min_size=1, max_size=8)) + raw[at + 8 :]
    if other != raw:
        _, spots = loci("/x", raw, other)
        assert spots


def test_initrds_member_by_member() -> None:
    early = newc({"kernel/x86/microcode": ({}, b"m" * 100)}) + bytes(100)
    members = {"init": ({}, b"#!/bin/sh\n"), "etc": ({"mode": 0o40755}, b""), "gone": ({}, b"x")}
    other = {
        "init": ({"mtime": EPOCH + 964, "inode": 9}, b"#!/bin/sh\n"),
        "new": ({}, b"y"),
        "etc": ({"mode": 0o40700}, b""),
    }
    a, b = early + gzip.compress(newc(members), mtime=1), early + gzip.compress(newc(other), mtime=2)
    found = {(d.container.partition("!")[2], d.path, d.what) for d in inside(a, b) if not d.follows}
    archive = "archive 2 (gzip)"
    # The order of what stays gives the inode numbers.
    assert found - {(archive, "/etc", "inode")} == {
        (archive, "archive", "gzip header: mtime"), (archive, "/init", "mtime"), (archive, "/init", "inode"),
        (archive, "/gone", "only in A"), (archive, "/new", "only in B"), (archive, "/etc", "mode"),
    }  # fmt: skip


def test_the_contents_of_members_are_looked_into() -> None:
    a = lzma.compress(newc({"etc/conf": ({}, b"one\ntwo\n")}))
    b = lzma.compress(newc({"etc/conf": ({}, b"one\n2wo\n")}))
    (found,) = [d for d in inside(a, b) if not d.follows]
    assert (found.path, found.what) == ("/etc/conf", "content")
    assert found.spots[0].locus == "line 2"


def test_members_in_another_order_and_other_compression() -> None:
    one = {"a": ({"inode": 1}, b"a"), "b": ({"inode": 2}, b"b")}
    other = {"b": one["b"], "a": one["a"]}
    assert {d.what for d in inside(gzip.compress(newc(one)), gzip.compress(newc(other))) if not d.follows} >= {
        "order of members"
    }
    raw = newc({"a": ({}, b"text " * 2000)})
    again = inside(zstandard.compress(raw, level=1), zstandard.compress(raw, level=19))
    assert [d.kind for d in again if not d.follows] == ["recompressed"]


def pe(sections: dict[bytes, bytes], stamp: int = 0) -> bytes:
    table, bodies, at = b"", b"", 1024
    for name, data in sections.items():
        table += struct.pack("<8sIIII16x", name, len(data), 0, len(data), at)
        bodies += data
        at += len(data)
    optional = struct.pack("<H", 0x20B) + bytes(238)
    head = b"MZ" + bytes(58) + struct.pack("<I", 64)
    head += b"PE\x00\x00" + struct.pack("<HHI8xHH", 0x8664, len(sections), stamp, len(optional), 0) + optional + table
    return head.ljust(1024, b"\x00") + bodies


def test_uki_sections() -> None:
    initrds = [gzip.compress(newc({"init": ({"mtime": EPOCH + n}, b"#!")}), mtime=0) for n in (0, 964)]
    a = pe({b".osrel": b"ID=x", b".cmdline": b"quiet", b".initrd": initrds[0]}, 1)
    b = pe({b".osrel": b"ID=x", b".cmdline": b"debug", b".initrd": initrds[1]}, 2)
    found = {(d.path, d.what) for d in inside(a, b) if not d.follows}
    assert ("PE header", "time stamp") in found
    assert ("section .cmdline", "content") in found
    assert ("/init", "mtime") in found
    assert ("section .osrel", "content") not in found
