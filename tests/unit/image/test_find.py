"""Patterns of paths, and the names that files have by links."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_root import Entry, Link, root

from pytest_osgates.image import find
from pytest_osgates.image.find import Glob, Names
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.walk import locate, walk
from pytest_osgates.vm.errors import ImageError

TEXT = st.text("ab/[", max_size=8)


@given(st.text("ab/[*?", max_size=8), TEXT, TEXT)
def test_a_pattern_is_read_as_fnmatch_reads_it(pattern: str, begun: str, rest: str) -> None:
    glob = Glob(pattern)
    state = glob.after(glob.after(glob.start, begun), rest)
    fits = fnmatchcase(begun + rest, pattern.replace("[", "[[]"))
    assert glob.is_whole(state) == fits
    if fits and rest:
        assert glob.goes_on(glob.after(glob.start, begun))


def names(files: dict[str, Entry]) -> Names:
    view = root(files)
    found = Names(view)
    for node in walk(view):
        found.add(node)
    return found


CIRCLES: dict[str, Entry] = {"/a/b/a": b"x", "/a/a": Link("."), "/b": Link("/"), "/a/b/b": Link("../../b/a")}


def named(view: RootView, depth: int, name: str = "") -> Iterator[tuple[str, str]]:
    """Every name of everything, with the path that it leads to, as deep as `depth`."""
    for child in view.list_dir(name or "/") or () if depth else ():
        node = locate(view, f"{name}/{child}", follow=False)
        assert node is not None
        yield f"{name}/{child}", node.path
        yield from named(view, depth - 1, f"{name}/{child}")


DEEP = tuple(named(root(CIRCLES), 6))


@given(st.text("ab*?/", min_size=1, max_size=8).map("/".__add__))
def test_links_in_circles_end_and_hide_nothing(pattern: str) -> None:
    found = set(names(CIRCLES).fitting(pattern))
    assert {path for name, path in DEEP if fnmatchcase(name, pattern)} <= found
    if "*" not in pattern:
        assert {path for name, path in DEEP if fnmatchcase(name, pattern)} == found


def test_too_many_names_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "MAX_LOOKS", 3)
    with pytest.raises(ImageError, match="too many names that may fit '/\\*x'"):
        names({"/a/b": b"", "/a/c": b"", "/d": Link("a")}).fitting("/*x")
