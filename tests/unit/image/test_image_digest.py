"""The digest of an image: right, bounded, and never of a file that changes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from image_builders import at_most

from pytest_osgates.image.digest import BLOCK, image_digest
from pytest_osgates.vm.errors import ImageError, UsageError


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
def test_the_digest(size: int, tmp_path: Path) -> None:
    path = tmp_path / "image.iso"
    path.write_bytes(b"x" * size)
    seen: list[tuple[int, int]] = []
    assert (
        image_digest(path, lambda done, total: seen.append((done, total))) == hashlib.sha256(b"x" * size).hexdigest()
    )
    assert seen[-1] == (size, size)
    assert len(seen) == -(-size // BLOCK)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "image.iso").write_bytes(b"x")
    (tmp_path / "link.iso").symlink_to("image.iso")
    assert image_digest(tmp_path / "link.iso") == hashlib.sha256(b"x").hexdigest()


def test_only_files_with_contents(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path, "a directory"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "pipe", "a named pipe"),
        (Path("/dev/zero"), "a character device"),
    ):
        with at_most(2.0), pytest.raises(ImageError, match=what):
            image_digest(path)
    for name in ("missing", "nul\x00"):
        with pytest.raises(UsageError, match="cannot open"):
            image_digest(tmp_path / name)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, BLOCK + 1)


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("change", [grow, shrink, touch, replace, Path.unlink])
def test_a_change_while_it_is_read_is_an_error(change: object, tmp_path: Path) -> None:
    path = tmp_path / "image.iso"
    path.write_bytes(bytes(3 * BLOCK))

    def progress(done: int, _total: int) -> None:
        if done == BLOCK:
            assert callable(change)
            change(path)

    with pytest.raises(ImageError, match="changed while it was read"):
        image_digest(path, progress)
