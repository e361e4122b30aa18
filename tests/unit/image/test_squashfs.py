"""Squashfs: what unsquashfs shows is what is read, and nothing hostile does harm."""

from __future__ import annotations

import re
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_builders import TIMEOUT, BytesSource, Tar, at_most, noise

from pytest_osgates.image import squashfs_format as fmt
from pytest_osgates.image.source import open_source
from pytest_osgates.image.squashfs import Squashfs
from pytest_osgates.image.squashfs_metadata import Cache
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.process import run

LIMIT = 1 << 20
# drwxr-xr-x 0/0   47 1970-01-01 00:16 squashfs-root/etc, or "259, 70000" for the size of a device
LISTED = re.compile(r"(\S{10}) (\d+)/(\d+)\s+(\d+|\d+,\s*\d+) \S+ \S+ squashfs-root(/.*)")


def test_what_unsquashfs_lists_is_there(squashfs_path: Path) -> None:
    listing = run(["unsquashfs", "-lln", str(squashfs_path)], timeout=TIMEOUT).text
    expected = {}
    for mode, uid, gid, size, path in LISTED.findall(listing):
        path, _, target = path.partition(" -> ")
        expected[path] = (mode, int(uid), int(gid), re.sub(r"\s", "", size), target or None)
    with open_source(squashfs_path) as source:
        found = {}
        for path, inode in Squashfs(source).walk():
            assert inode.mtime == 1_700_000_000
            size = str(inode.size) if inode.device is None else f"{inode.device[0]},{inode.device[1]}"
            found[path] = (stat.filemode(inode.mode), inode.uid, inode.gid, size, inode.target)
    assert len(found) > 600
    assert found == expected


def test_contents_are_those_that_unsquashfs_reads(squashfs_path: Path) -> None:
    with open_source(squashfs_path) as source:
        image = Squashfs(source)
        etc = image.lookup("/etc")
        assert etc is not None
        names = [entry.name for entry in image.list_dir(etc)]
        assert len(names) == 9
        paths = [*(f"etc/{name}" for name in names), *(f"many/file-{n:03}-{'n' * (n % 50)}" for n in (0, 311, 599))]
        contents = []
        for path in paths:
            inode = image.lookup(path)
            assert inode is not None
            contents.append(image.read_file(inode, LIMIT))
            assert len(contents[-1]) == inode.size
    # Given several paths it prints one after another.
    cat = run(["unsquashfs", "-cat", str(squashfs_path), *paths], timeout=TIMEOUT).stdout
    assert cat == b"".join(contents)


def test_holes_and_fragments_are_told(plain_squashfs: bytes) -> None:
    image = Squashfs(BytesSource(plain_squashfs))
    zero, mixed = image.lookup("/etc/zero"), image.lookup("/etc/mixed")
    assert zero is not None
    assert mixed is not None
    assert [(block.stored, block.length) for block in image.blocks(zero)][:5] == [(0, 4096)] * 5
    first, *holes, tail = image.blocks(mixed)
    assert plain_squashfs[first.offset : first.offset + first.stored] == noise(4096)
    assert [hole.stored for hole in holes] == [0, 0]
    assert (tail.length, tail.capacity) == (100, 4096)


def test_extended_attributes(squashfs_path: Path) -> None:
    with open_source(squashfs_path) as source:
        image = Squashfs(source)
        labelled, plain = image.lookup("/etc/labelled"), image.lookup("/etc/plain")
        assert labelled is not None
        assert plain is not None
        assert image.xattrs(labelled) == {b"user.colour": b"red", b"security.x": b"y" * 99}
        assert image.xattrs(plain) == {}


def test_extended_attributes_shared_by_many(tmp_path: Path) -> None:
    value = "shared" * 50
    tar = Tar()
    for number in range(4):
        tar.file(f"f{number}", b"", pax_headers={"SCHILY.xattr.user.a": value, f"SCHILY.xattr.user.b{number}": "own"})
    with open_source(tar.squashfs(tmp_path / "x.squashfs")) as source:
        image = Squashfs(source)
        for number in range(4):
            inode = image.lookup(f"f{number}")
            assert inode is not None
            assert image.xattrs(inode) == {b"user.a": value.encode(), b"user.b%d" % number: b"own"}


@pytest.mark.parametrize(
    ("path", "leads_to"),
    [
        ("/link", "/etc/plain"),
        ("absolute", "/etc/plain"),
        ("/up/plain", "/etc/plain"),
        ("/dir/sub/back", "/etc/text"),
        ("/../../etc/./plain", "/etc/plain"),
        ("/dir/sub/../../etc/plain", "/etc/plain"),
        ("/etc/plain/../plain", None),
        ("/etc/plain/", "/etc/plain"),
        ("/loop", None),
        ("/ping", None),
        ("/dangling", None),
        ("/nowhere/../etc", None),
        ("/", "/"),
        ("/" + "dir/../" * 5000 + "etc", None),
    ],
)
def test_paths_stay_inside_and_end(path: str, leads_to: str | None, plain_squashfs: bytes) -> None:
    image = Squashfs(BytesSource(plain_squashfs))
    wanted = None if leads_to is None else image.lookup(leads_to, follow=False)
    assert image.lookup(path) == wanted


def test_a_link_itself(plain_squashfs: bytes) -> None:
    link = Squashfs(BytesSource(plain_squashfs)).lookup("/up", follow=False)
    assert link is not None
    assert (link.kind, link.target) == (FileKind.SYMLINK, "../../../../etc")


def test_hard_links_share_an_inode(plain_squashfs: bytes) -> None:
    image = Squashfs(BytesSource(plain_squashfs))
    plain, twin = image.lookup("/etc/plain"), image.lookup("/etc/twin")
    assert plain is not None
    assert plain == twin
    assert plain.nlink == 2


def test_limits_and_kinds(plain_squashfs: bytes) -> None:
    image = Squashfs(BytesSource(plain_squashfs))
    plain, null = image.lookup("/etc/plain"), image.lookup("/null")
    assert plain is not None
    assert null is not None
    assert image.read_file(plain, 6) == b"plain\n"
    with pytest.raises(ImageError, match="6 bytes, more than the 5 expected"):
        image.read_file(plain, 5)
    with pytest.raises(ImageError, match="a character device has no contents"):
        image.read_file(null, LIMIT)
    with pytest.raises(ImageError, match="a directory has no contents"):
        image.read_file(image.root, LIMIT)
    with pytest.raises(ImageError, match="is not a directory"):
        image.list_dir(plain)
    with pytest.raises(ImageError, match="more than 10 files"):
        list(image.walk(limit=10))


def test_it_is_read_where_it_lies(plain_squashfs: bytes) -> None:
    padded = BytesSource(b"before" * 100 + plain_squashfs + b"after")
    image = Squashfs(padded, 600, len(plain_squashfs))
    inode = image.lookup("/etc/random")
    assert inode is not None
    assert image.read_file(inode, LIMIT) == noise(3 * 4096 + 77)
    for block in image.blocks(inode):
        data = padded.data[block.offset : block.offset + block.stored]
        assert data[block.skip : block.skip + block.length] in noise(3 * 4096 + 77)


def test_a_cut_squashfs_says_how_much_there_is(plain_squashfs: bytes) -> None:
    size = struct.unpack_from("<Q", plain_squashfs, 40)[0]
    with pytest.raises(ImageError, match=f"cut short: 5000 of {size} bytes"):
        Squashfs(BytesSource(plain_squashfs[:5000]))
    with pytest.raises(ImageError, match="cut short: 50 bytes"):
        Squashfs(BytesSource(plain_squashfs), 0, 50)
    with pytest.raises(ImageError, match="cut short: 0 bytes"):
        Squashfs(BytesSource(plain_squashfs), 1 << 70, 50)


# Offsets in the superblock.
@pytest.mark.parametrize(
    ("offset", "layout", "value", "complaint"),
    [
        (0, "<I", 0x12345678, "magic number"),
        (12, "<I", 5000, "block size"),
        (20, "<H", 9, "unknown compression"),
        (22, "<H", 63, "block size"),
        (26, "<H", 0, "owner"),
        (28, "<H", 3, "version 3.0"),
        (32, "<Q", 1 << 60, "outside of the inode table"),
        (48, "<Q", 1 << 62, "id table"),
        (64, "<Q", 0, "inode table"),
        (72, "<Q", 1 << 62, "directory table"),
    ],
)
def test_a_superblock_that_contradicts_itself(
    offset: int, layout: str, value: int, complaint: str, plain_squashfs: bytes
) -> None:
    image = bytearray(plain_squashfs)
    struct.pack_into(layout, image, offset, value)
    with pytest.raises(ImageError, match=complaint):
        Squashfs(BytesSource(bytes(image)))


@pytest.mark.parametrize("method", [fmt.Compressor.GZIP, fmt.Compressor.XZ, fmt.Compressor.ZSTD])
def test_decompression_is_bounded(method: fmt.Compressor) -> None:
    bomb = compress(method, bytes(16 << 20))
    exact = compress(method, noise(8192))
    assert fmt.decompress(method, exact, 8192) == noise(8192)
    for data, limit in ((bomb, 8192), (exact, 8191), (exact[:-6], 8192), (b"", 8192), (b"nonsense", 8192)):
        with at_most(2.0), pytest.raises(fmt.MalformedSquashfs):
            fmt.decompress(method, data, limit)


def test_a_zstd_frame_that_claims_too_much_is_not_believed() -> None:
    # A single-segment frame with an eight-byte content size of 2**62 and one empty raw block.
    with pytest.raises(fmt.MalformedSquashfs, match="claims"):
        fmt.decompress(
            fmt.Compressor.ZSTD, b"\x28\xb5\x2f\xfd\xe0" + (1 << 62).to_bytes(8, "little") + b"\x01\0\0", 8192
        )


def compress(method: fmt.Compressor, data: bytes) -> bytes:
    import lzma
    import zlib

    import zstandard

    if method is fmt.Compressor.GZIP:
        return zlib.compress(data)
    return lzma.compress(data, preset=0) if method is fmt.Compressor.XZ else zstandard.compress(data)


def test_device_numbers() -> None:
    assert fmt.device_numbers(0x0000_0103) == (1, 3)
    assert fmt.device_numbers(0x1110_0370) == (3, 0x11170)


def test_the_cache_drops_what_was_not_used() -> None:
    cache: Cache[int, list[int]] = Cache(3, len)
    made: list[int] = []

    def get(key: int, size: int) -> None:
        def make() -> list[int]:
            made.append(key)
            return [0] * size

        cache.get(key, make)

    for key, size in ((1, 1), (2, 2), (1, 1), (3, 1), (1, 1), (2, 2), (9, 50), (9, 50)):
        get(key, size)
    assert made == [1, 2, 3, 2, 9]


def exercise(source: BytesSource) -> None:
    """Read all that there is; only ImageError may come of it."""
    try:
        image = Squashfs(source)
        for _path, inode in image.walk(limit=2000):
            try:
                image.xattrs(inode)
                if inode.kind is FileKind.FILE and inode.size <= LIMIT:
                    assert len(image.read_file(inode, LIMIT)) == inode.size
            except ImageError:
                continue
        for path in ("/link", "/up/plain", "/dir/sub/back", "/many/file-599-" + "n" * 49):
            image.lookup(path)
    except ImageError:
        return


@pytest.fixture(scope="module", params=["plain", "zstd", "gzip", "xz"])
def small_squashfs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tar = (
        Tar()
        .directory("etc", {"trusted.overlay.opaque": "y"})
        .directory("dir")
        .directory("dir/sub")
        .link("up", "../etc")
    )
    tar.file("etc/plain", b"plain" * 20).file("dir/big", noise(9000)).file("dir/zero", bytes(9000)).device(
        "null", 1, 3
    )
    for number in range(10):
        tar.file(f"dir/sub/file-{number}", b"x" * number)
    options = ("-noI", "-noD", "-noF", "-noX", "-noId") if request.param == "plain" else ("-comp", request.param)
    path = tmp_path_factory.mktemp("small") / "small.squashfs"
    tar.squashfs(path, "-b", "4096", "-nopad", *options)
    return path.read_bytes()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_flipped_and_cut_bytes_do_no_harm(small_squashfs: bytes, data: st.DataObject) -> None:
    size = len(small_squashfs)
    # The superblock, and the tables at the end; the contents between them have no structure.
    place = st.one_of(st.integers(0, 95), st.integers(max(96, size - 1200), size - 1))
    flips = data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6))
    end = data.draw(st.one_of(st.just(size), st.just(size), st.integers(0, size)))
    image = bytearray(small_squashfs)
    for position, value in flips:
        image[position] = value
    with at_most(5.0):
        exercise(BytesSource(bytes(image[:end])))
