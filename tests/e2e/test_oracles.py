"""Other programs read the same of our images: pycdlib, unsquashfs, sqfsdiff.

OSGATES_TEST_ISOS names more images, separated by colons.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pycdlib
import pytest

from pytest_osgates.demo import cached_demo_iso
from pytest_osgates.image.diff.found import Findings
from pytest_osgates.image.diff.iso import ImageContent
from pytest_osgates.image.diff.iso_tree import IsoTree, descriptors, read_tree
from pytest_osgates.image.diff.squashfs_data import SquashfsContent
from pytest_osgates.image.diff.squashfs_tables import Node, Tables, parse_node
from pytest_osgates.image.diff.squashfs_walk import Walk, path_of
from pytest_osgates.image.iso9660 import IsoImage
from pytest_osgates.image.source import open_source
from pytest_osgates.observers.divergence import compare_images
from pytest_osgates.vm.process import run, which

TIMEOUT = 300.0
LISTED = re.compile(r"(\S{10}) (\d+)/(\d+)\s+(\d+|\d+,\s*\d+) (\S+ \S+) squashfs-root(/.*)")
KINDS = {
    1: stat.S_IFDIR,
    2: stat.S_IFREG,
    3: stat.S_IFLNK,
    4: stat.S_IFBLK,
    5: stat.S_IFCHR,
    6: stat.S_IFIFO,
    7: stat.S_IFSOCK,
}


def isos() -> list[str]:
    return ["demo", *filter(None, os.environ.get("OSGATES_TEST_ISOS", "").split(":"))]


@pytest.fixture(scope="module", params=isos())
def iso(request: pytest.FixtureRequest) -> Path:
    """The demo, and whatever images there are."""
    return cached_demo_iso(lambda stage, fraction: None) if request.param == "demo" else Path(request.param)


def tree_of(iso: Path) -> IsoTree:
    with open_source(iso) as source:
        primary = next(d for d in descriptors(source) if d.raw[0] == 1)
        return read_tree(source, primary)


def test_pycdlib_reads_the_same_tree(iso: Path) -> None:
    theirs: dict[str, tuple[int, int, tuple[int, ...]]] = {}
    oracle = pycdlib.PyCdlib()
    oracle.open(str(iso))
    try:
        for parent, _, _ in oracle.walk(rr_path="/"):
            for child in oracle.list_children(rr_path=parent):
                if child is None or child.is_dot() or child.is_dotdot():
                    continue
                name = child.rock_ridge.name().decode("utf-8", "surrogateescape")
                date = child.date
                stamp = (date.years_since_1900, date.month, date.day_of_month, date.hour, date.minute, date.second)
                place = child.extent_location() if child.get_data_length() else 0
                theirs[f"{parent.rstrip('/')}/{name}"] = (place, child.get_data_length(), stamp)
    finally:
        oracle.close()
    ours = {}
    for node in tree_of(iso).nodes.values():
        if node.path != "/" and not node.path.endswith(("/.", "/..")):
            record = node.records[0]
            ours[node.path] = (record.extent if node.size else 0, node.size, tuple(record.raw[18:24]))
    assert len(ours) > 5
    assert ours == theirs


def tables_of(iso: IsoImage) -> list[Tables]:
    found = []
    for file in iso.walk():
        content = ImageContent(iso.source, file.extents)
        if file.size > 96 and file.extents and content.read(0, 4) == b"hsqs" and content.contiguous:
            found.append(Tables(iso.source, file.extents[0].offset, file.size, file.path))
    return found


def nodes_of(tables: Tables) -> dict[str, Node]:
    """Every file, by its path, as the comparison walks it."""
    walk = Walk(tables, tables, Findings(), "")
    found: dict[str, Node] = {}
    pending = [("", parse_node(tables, tables.inode_at(tables.superblock.root)))]
    while pending:
        path, directory = pending.pop()
        for name, _, place, _ in walk._listing(0, directory):
            node = found[path_of(path, name)] = parse_node(tables, place)
            if node.kind == 1:
                pending.append((path_of(path, name), node))
    return found


def test_unsquashfs_lists_the_same_files(iso: Path) -> None:
    lengths = []
    with IsoImage.open(iso) as image:
        for tables in tables_of(image):
            command = ["unsquashfs", "-o", str(tables.offset), "-lln", str(iso)]
            text = run(command, timeout=TIMEOUT, env={**os.environ, "TZ": "UTC"}).text
            theirs = {}
            for mode, uid, gid, size, when, path in LISTED.findall(text):
                name, _, target = path.partition(" -> ")
                theirs[name] = (
                    mode,
                    int(uid),
                    int(gid),
                    re.sub(r"\s", "", size) if mode[0] == "-" else "",
                    when,
                    target,
                )
            ours = {}
            from pytest_osgates.image.diff.squashfs_walk import shown_time

            for path, node in nodes_of(tables).items():
                mode = stat.filemode(KINDS[node.kind] | node.mode)
                size = str(node.size) if node.kind == 2 else ""
                when = shown_time(node.mtime)[:16].replace("T", " ")
                ours[path] = (mode, node.uid, node.gid, size, when, node.target.decode("utf-8", "surrogateescape"))
            assert ours == theirs
            lengths.append(len(ours))
    # The root; a squashfs beside it may be small (the demo's installer is).
    assert max(lengths) > 500


def test_unsquashfs_reads_the_same_contents(iso: Path, tmp_path: Path) -> None:
    """Of every fortieth file: small ones in fragments, and large ones."""
    with IsoImage.open(iso) as image:
        for tables in tables_of(image):
            files = sorted(
                (path, node) for path, node in nodes_of(tables).items() if node.kind == 2 and path.isascii()
            )
            chosen = [entry for entry in files[::40] if not set("[]*?\\") & set(entry[0])]
            names = [path.lstrip("/") for path, _ in chosen]
            command = ["unsquashfs", "-o", str(tables.offset), "-cat", str(image.source.name), *names]
            theirs = run(command, timeout=TIMEOUT, max_output=1 << 30).stdout
            ours = b"".join(SquashfsContent(tables, node).read(0, node.size) for _, node in chosen)
            assert ours == theirs


@pytest.mark.slow
def test_sqfsdiff_finds_no_more_than_we_do(tmp_path: Path) -> None:
    """Both on the demo and on a fault image, whose roots differ by the package lists of two days."""
    which("sqfsdiff", remedy="apt-get install squashfs-tools-ng")
    trees = []
    for number in (0, 1):
        top = tmp_path / f"tree-{number}"
        for index in range(300):
            path = top / f"d{index % 7}" / f"f{index}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"contents %d" % (index + number * (index % 50 == 3)) * 50)
            path.chmod(0o600 if number and index % 60 == 7 else 0o644)
            os.utime(path, (index, index))
        if number:
            (top / "d1" / "new").write_bytes(b"new")
        squashfs = tmp_path / f"{number}.squashfs"
        run(["mksquashfs", str(top), str(squashfs), "-quiet", "-no-progress", "-all-root"], timeout=60)
        trees.append(squashfs)
    text = run(["sqfsdiff", "-a", str(trees[0]), "-b", str(trees[1])], timeout=60, check=False).text
    theirs = {match[1] for match in re.finditer(r"^(?:[<>] |\S+ )?(?:regular file )?(d\d/\w+)", text, re.MULTILINE)}
    theirs |= set(re.findall(r"\b(d\d/\w+)", text))
    media = []
    for number, squashfs in enumerate(trees):
        live = tmp_path / f"medium-{number}" / "live"
        live.mkdir(parents=True)
        squashfs.rename(live / "filesystem.squashfs")
        image = tmp_path / f"{number}.iso"
        run(["xorriso", "-as", "mkisofs", "-quiet", "-r", "-o", str(image), str(live.parent)], timeout=60)
        media.append(image)
    ours = {d.path.lstrip("/") for d in compare_images(*media).differences if d.container}
    assert len(theirs) > 8
    assert theirs <= ours
