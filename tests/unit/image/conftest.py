"""Images that several tests read, made once a session."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from image_builders import Tar, make_iso, noise


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what an ISO can hold: long and foreign names, links, depth, an empty file and directory."""
    top = tmp_path_factory.mktemp("tree")
    deep = top / "/".join("abcdefghijk").lstrip("/")
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"deep")
    (top / "live").mkdir()
    (top / "live" / "filesystem.squashfs").write_bytes(noise(300_001))
    (top / "live" / ("long" * 60)).write_bytes(b"long")
    (top / "live" / "Grüße aus Köln").write_bytes(b"utf-8")
    (top / os.fsdecode(b"latin-\xe9")).write_bytes(b"latin-1")
    (top / "empty").write_bytes(b"")
    (top / "hollow").mkdir()
    (top / "link").symlink_to("live/filesystem.squashfs")
    (top / "long-link").symlink_to("../." + "/part" * 150)
    (top / "many").mkdir()
    for number in range(120):
        (top / "many" / f"file-{number:03}").write_bytes(b"%d" % number)
    (top / "program").write_bytes(b"#!/bin/sh\n")
    (top / "program").chmod(0o4750)
    return top


@pytest.fixture(scope="session")
def iso_path(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_iso(tree, tmp_path_factory.mktemp("iso") / "image.iso", "-V", "TEST VOLUME")


def root_tar() -> Tar:
    """What a squashfs can hold."""
    random = noise(3 * 4096 + 77)
    tar = Tar().directory("etc").directory("empty").directory("dir").directory("dir/sub").directory("many")
    tar.file("etc/plain", b"plain\n", uid=1000, gid=70_000, mode=0o4755)
    tar.file("etc/random", random).file("etc/text", b"compressible " * 5000).file("etc/zero", bytes(5 * 4096 + 9))
    tar.file("etc/mixed", random[:4096] + bytes(8192) + random[:100]).file("etc/block", random[:8192]).file(
        "etc/nothing"
    )
    tar.file(
        "etc/labelled", b"x", pax_headers={"SCHILY.xattr.user.colour": "red", "SCHILY.xattr.security.x": "y" * 99}
    )
    tar.add("etc/twin", tarfile.LNKTYPE, linkname="etc/plain")
    tar.link("link", "etc/plain").link("absolute", "/dir/../etc/plain").link("up", "../../../../etc").link(
        "loop", "loop"
    )
    tar.link("ping", "pong").link("pong", "ping").link("dangling", "nowhere").link("dir/sub/back", "../../etc/text")
    tar.device("null", 1, 3).device("disk", 259, 17, tarfile.BLKTYPE).add("pipe", tarfile.FIFOTYPE)
    tar.file("Grüße", b"utf-8")
    for number in range(600):
        tar.file(f"many/file-{number:03}-{'n' * (number % 50)}", b"%d" % number)
    return tar


# Metadata as it is, so that a flipped bit reaches the parser and not only the decompressor.
PLAIN = ("-noI", "-noD", "-noF", "-noX", "-noId")


@pytest.fixture(scope="session", params=["gzip", "xz", "zstd", "lz4", "lzo", "lzma", "plain", "no-fragments"])
def squashfs_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"plain": PLAIN, "no-fragments": ("-no-fragments",)}.get(request.param, ("-comp", request.param))
    return root_tar().squashfs(tmp_path_factory.mktemp("squashfs") / "root.squashfs", "-b", "4096", *options)


@pytest.fixture(scope="session")
def plain_squashfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return root_tar().squashfs(tmp_path_factory.mktemp("plain") / "root.squashfs", "-b", "4096", *PLAIN).read_bytes()
