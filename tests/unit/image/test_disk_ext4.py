"""ext2 to ext4: what mke2fs(8) made is read back, byte by byte; what is damaged is an error and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from image_builders import noise

from pytest_osgates.image.diff.ranges import BytesContent
from pytest_osgates.image.disk.ext4 import Ext4
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import flipped

MIB = 1 << 20
KINDS: dict[str, tuple[str, ...]] = {
    "ext4": ("-t", "ext4"),
    "ext4, 1 KiB blocks": ("-t", "ext4", "-b", "1024"),
    "ext4, 32 bit": ("-t", "ext4", "-O", "^64bit,^metadata_csum"),
    "ext3": ("-t", "ext3"),
    "ext2": ("-t", "ext2"),
    "ext2, 1 KiB blocks": ("-t", "ext2", "-b", "1024", "-I", "128"),
}


def tree(top: Path) -> dict[str, bytes]:
    """A directory with what such a file system holds; its regular files by path."""
    sparse = bytearray(noise(3 * MIB))
    sparse[100_000 : 2 * MIB] = bytes(2 * MIB - 100_000)
    files = {
        "initrd.img-6.12": noise(700_001),
        "grub/grub.cfg": b"linux /vmlinuz\n",
        "empty": b"",
        "sparse": bytes(sparse),
        "deep/er/file": b"x" * 5000,
        "Größe": b"utf-8",
        **{f"many/file-{number:04}-{'n' * (number % 60)}": b"%d" % number for number in range(400)},
    }
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    (top / "link").symlink_to("empty")
    (top / "hard").hardlink_to(top / "deep/er/file")
    return {**{f"/{name}": content for name, content in files.items()}, "/hard": files["deep/er/file"]}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Callable[..., bytes]]:
    top = tmp_path_factory.mktemp("tree")
    files = tree(top)

    def made(*options: str, mib: int = 16) -> bytes:
        image = tmp_path_factory.mktemp("image") / "image"
        command = ["/usr/sbin/mke2fs", "-q", *options, "-d", str(top), str(image), f"{mib}M"]
        subprocess.run(command, check=True, capture_output=True)
        return image.read_bytes()

    return files, made


@pytest.mark.parametrize("kind", KINDS)
def test_what_mke2fs_made(kind: str, make: tuple[dict[str, bytes], Callable[..., bytes]]) -> None:
    files, made = make
    found = {file.path: file for file in Ext4(BytesContent(made(*KINDS[kind]))).files()}
    assert set(found) == set(files)
    for path, content in files.items():
        assert found[path].size == len(content)
        assert found[path].read(0, len(content) + 9) == content, path
    assert found["/sparse"].read(99_990, 20) == files["/sparse"][99_990:100_010]
    assert found["/sparse"].read(1 << 40, 5) == b""


@pytest.mark.parametrize(
    ("said", "options", "change"),
    [
        ("inline data", ("-t", "ext4", "-O", "inline_data"), None),
        ("meta block groups", ("-t", "ext4", "-O", "meta_bg,^resize_inode"), None),
        ("journal that has to be replayed", ("-t", "ext4"), (1024 + 96, 0x4)),
        ("unknown features", ("-t", "ext4"), (1024 + 99, 0x40)),
    ],
)
def test_what_is_not_read_is_refused(
    said: str,
    options: tuple[str, ...],
    change: tuple[int, int] | None,
    make: tuple[dict[str, bytes], Callable[..., bytes]],
) -> None:
    raw = bytearray(make[1](*options))
    if change is not None:
        raw[change[0]] |= change[1]
    with pytest.raises(ImageError, match=said):
        Ext4(BytesContent(bytes(raw)))


def test_what_is_none() -> None:
    for raw in (b"", bytes(4096), bytes(1080) + b"\x53\xef" + bytes(2000)):
        with pytest.raises(ImageError):
            list(Ext4(BytesContent(raw)).files())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    top = tmp_path_factory.mktemp("small")
    (top / "dir").mkdir()
    (top / "dir" / "file").write_bytes(noise(30_000))
    (top / "a").write_bytes(b"a")
    made = {}
    for kind in ("ext4", "ext2"):
        image = tmp_path_factory.mktemp("image") / "image"
        command = ["/usr/sbin/mke2fs", "-q", "-t", kind, "-b", "1024", "-N", "32", "-O", "^has_journal"]
        subprocess.run([*command, "-d", str(top), str(image), "256k"], check=True, capture_output=True)
        made[kind] = image.read_bytes()
    return made


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["ext4", "ext2"]),
    # The superblock, the descriptors, the tables of inodes, the directories: all within the first 64 KiB.
    flips=st.lists(st.tuples(st.integers(1024, 1 << 16), st.integers(0, 255)), min_size=1, max_size=30),
)
def test_mutations_never_break_it(small: dict[str, bytes], kind: str, flips: list[tuple[int, int]]) -> None:
    try:
        for file in Ext4(BytesContent(flipped(small[kind], flips))).files():
            assert len(file.read(0, 1 << 16)) == min(file.size, 1 << 16)
    except ImageError:
        return
