"""Random trees with random mutations, packed by mksquashfs: the comparison names exactly the mutations."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from diff_builders import EPOCH, Named, causes, squashfs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_builders import TIMEOUT, Tar

from pytest_osgates.image.diff.compare import Comparison
from pytest_osgates.image.diff.digests import NOTHING_KNOWN
from pytest_osgates.image.diff.found import Findings
from pytest_osgates.image.diff.squashfs import Place
from pytest_osgates.image.source import open_source
from pytest_osgates.vm.process import run


@dataclass(frozen=True)
class Node:
    """A file of the tree, as the tar archive has it."""

    kind: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = EPOCH
    target: str = ""
    device: tuple[int, int] = (1, 3)
    xattrs: tuple[tuple[str, str], ...] = ()


Tree = dict[str, Node]


@dataclass
class Mutated:
    """A tree after its mutations, and what must be said of it."""

    tree: Tree
    expected: Named = field(default_factory=set)


def pack(tree: Tree, path: Path, compression: str) -> Path:
    tar = Tar()
    for name in sorted(tree):
        node = tree[name]
        tar.add(
            name, node.kind, node.data, mode=node.mode, uid=node.uid, gid=node.gid, mtime=node.mtime,
            linkname=node.target, devmajor=node.device[0], devminor=node.device[1],
            pax_headers={f"SCHILY.xattr.{key}": value for key, value in node.xattrs},
        )  # fmt: skip
    options = (
        "-mkfs-time",
        str(EPOCH),
        "-root-time",
        str(EPOCH),
        "-root-mode",
        "755",
        "-root-uid",
        "0",
        "-root-gid",
        "0",
    )
    return tar.squashfs(path, "-b", "4096", "-comp", compression, *options)


CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.integers(1, 14_000).map(lambda size: (b"text %d " % size * (size // 6 + 1))[:size]),
    st.integers(1, 9_000).map(bytes),
    st.integers(0, 2**31).map(lambda seed: seed.to_bytes(4, "big") * 2500),
)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\x00", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree: Tree = {"dir": Node(tarfile.DIRTYPE, mode=0o755)}
    for name in draw(
        st.lists(
            NAMES.filter(lambda n: n not in (".", "..", "dir", "link", "null")), min_size=3, max_size=8, unique=True
        )
    ):
        parent = draw(st.sampled_from(["", "dir/"]))
        tree[f"{parent}{name}"] = Node(data=draw(CONTENTS), uid=draw(st.sampled_from([0, 7])))
    tree["link"] = Node(tarfile.SYMTYPE, mode=0o777, target="dir")
    tree["null"] = Node(tarfile.CHRTYPE)
    return tree


def regular(tree: Tree) -> list[str]:
    return [name for name, node in tree.items() if node.kind == tarfile.REGTYPE]


def _content(m: Mutated, name: str, draw: st.DrawFn) -> None:
    old = m.tree[name].data
    new = draw(CONTENTS.filter(lambda data: data != old))
    m.tree[name] = replace(m.tree[name], data=new)
    m.expected.add((f"/{name}", "content"))
    if len(new) != len(old):
        m.expected.add((f"/{name}", "size"))


def _attribute(what: str, **values: object) -> Callable[[Mutated, str, st.DrawFn], None]:
    def mutate(m: Mutated, name: str, draw: st.DrawFn) -> None:
        m.tree[name] = replace(m.tree[name], **values)  # type: ignore[arg-type]
        m.expected.add((f"/{name}", what))

    return mutate


def _remove(m: Mutated, name: str, draw: st.DrawFn) -> None:
    del m.tree[name]
    m.expected.add((f"/{name}", "only in A"))


def _add(m: Mutated, name: str, draw: st.DrawFn) -> None:
    m.tree[f"{name}.new"] = Node(data=draw(CONTENTS))
    m.expected.add((f"/{name}.new", "only in B"))


MUTATIONS: tuple[Callable[[Mutated, str, st.DrawFn], None], ...] = (
    *(_content, _remove, _add),
    _attribute("mode", mode=0o4711),
    _attribute("owner", uid=1234),
    _attribute("group", gid=77_000),
    _attribute("mtime", mtime=EPOCH + 964),
    _attribute("xattr user.colour", xattrs=(("user.colour", "red"),)),
)
# Tables that say what was named above already.
# Of the root itself: reading a tar file, mksquashfs gives it the time of the clock.
FOLLOWING = {("/", "mtime"), ("id table", "owners"), ("data blocks", "compressed bytes"), ("xattr table", "entries")}


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Tree, Mutated]:
    tree = draw(trees())
    made = Mutated(dict(tree))
    for name in draw(st.lists(st.sampled_from(regular(tree)), max_size=3, unique=True)):
        draw(st.sampled_from(MUTATIONS))(made, name, draw)
    for name, what, values in (("link", "link target", {"target": "null"}), ("null", "device", {"device": (8, 300)})):
        if draw(st.booleans()):
            _attribute(what, **values)(made, name, draw)
    return tree, made


def compare(a: Path, b: Path) -> Findings:
    comparison = Comparison()
    with open_source(a) as one, open_source(b) as other:
        places = Place(one, 0, one.size), Place(other, 0, other.size)
        assert comparison._squashfs("/root", places[0], places[1], NOTHING_KNOWN)
    assert comparison.out.notes == []
    return comparison.out


@settings(max_examples=18, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated(), st.sampled_from(["gzip", "xz", "zstd", "lz4", "lzo"]))
def test_exactly_the_mutations_are_named(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[Tree, Mutated], compression: str
) -> None:
    tree, made = pair
    directory = tmp_path_factory.mktemp("pair")
    a, b = (pack(t, directory / name, compression) for t, name in ((tree, "a"), (made.tree, "b")))
    findings = compare(a, b)
    assert {(d.path, d.what) for d in causes(findings)} - FOLLOWING == made.expected
    assert findings.unexplained == 0
    assert bool(findings.differences) == (a.read_bytes() != b.read_bytes())


def test_hard_links_that_became_files(tmp_path: Path) -> None:
    one = Tar().file("a", b"same").add("b", tarfile.LNKTYPE, linkname="a")
    other = Tar().file("a", b"same").file("b", b"same")
    findings = compare(squashfs(one, tmp_path / "a"), squashfs(other, tmp_path / "b"))
    assert {(d.path, d.what) for d in causes(findings)} - FOLLOWING == {("/b", "hard link")}


def test_the_same_tree_compressed_otherwise(tmp_path: Path) -> None:
    tree = {f"file-{number}": Node(data=(b"some text %d, " % number) * 900) for number in range(30)}
    a = pack(tree, tmp_path / "a", "gzip")
    tar = Tar()
    for name in sorted(tree):
        tar.file(name, tree[name].data, mtime=EPOCH)
    # sqfstar takes no options of a compressor.
    b = tmp_path / "b"
    run(
        [
            *("mksquashfs", "-", str(b), "-tar", "-quiet", "-no-progress", "-b", "4096", "-comp", "gzip"),
            *("-Xcompression-level", "1", "-root-mode", "755", "-mkfs-time", str(EPOCH)),
        ],
        timeout=TIMEOUT,
        input=tar.archive(),
    )
    findings = compare(a, b)
    assert {d.path for d in causes(findings)} - {"/"} <= {
        "data blocks",
        "superblock",
        "inode table",
        "directory table",
        "id table",
        "fragment table",
    }
    assert {d.kind for d in causes(findings) if d.path == "data blocks"} == {"recompressed"}
    assert not any(d.what == "content" for d in findings.differences)
    other = compare(a, pack(tree, tmp_path / "c", "zstd"))
    assert ("superblock", "compression") in {(d.path, d.what) for d in other.differences}
    assert not any(d.what == "content" for d in other.differences)


def test_directories_that_only_one_has(tmp_path: Path) -> None:
    one = {"dir": Node(tarfile.DIRTYPE, mode=0o755), "dir/a": Node(data=b"a"), "kind": Node(data=b"x" * 9000)}
    other = {"kind": Node(tarfile.DIRTYPE, mode=0o755), "kind/below": Node(data=b"y" * 9000)}
    findings = compare(pack(one, tmp_path / "a", "zstd"), pack(other, tmp_path / "b", "zstd"))
    assert {(d.path, d.what) for d in causes(findings)} - FOLLOWING == {
        ("/dir", "only in A"), ("/dir/a", "only in A"), ("/kind", "type"), ("/kind/below", "only in B"),
    }  # fmt: skip
    assert findings.unexplained == 0


def test_another_owner_in_the_same_place_of_the_table(tmp_path: Path) -> None:
    """The inodes are the same bytes; only the table of owners differs."""
    trees = [{"file": Node(kind=b"0", uid=uid)} for uid in (7, 1234)]
    a, b = (pack(tree, tmp_path / name, "gzip") for tree, name in zip(trees, "ab", strict=True))
    assert ("/file", "owner") in {(d.path, d.what) for d in causes(compare(a, b))}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # A file of a hole alone is stored nowhere: its position is that of whatever comes next.
        ({"e": b"0001" * 2500, "f": b"text" * 1024, "dir/hole": b"\0"}, {"e": b""}),
        # mksquashfs stores the same contents once, where they come first.
        ({"e": b"0001" * 2500, "f": b"other" * 1000, "g": b"text" * 1024}, {"e": b"text" * 1024}),
    ],
)
def test_what_follows_from_a_changed_file_is_no_other_order(
    before: dict[str, bytes], after: dict[str, bytes], tmp_path: Path
) -> None:
    one: Tree = {"dir": Node(tarfile.DIRTYPE, mode=0o755)}
    one |= {name: Node(data=data) for name, data in before.items()}
    other: Tree = {**one, **{name: Node(data=data) for name, data in after.items()}}
    findings = compare(pack(one, tmp_path / "a", "gzip"), pack(other, tmp_path / "b", "gzip"))
    assert {(d.path, d.what) for d in causes(findings)} - FOLLOWING == {("/e", "content"), ("/e", "size")}
