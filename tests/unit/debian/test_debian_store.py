"""Packages by digest: nothing damaged is ever handed out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pytest_osgates.debian import DebStore, LockedPackage
from pytest_osgates.vm.errors import HostError


def package(name: str, content: bytes) -> LockedPackage:
    return LockedPackage(
        name=name,
        version="1",
        architecture="all",
        filename=f"pool/main/{name}_1_all.deb",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )


@dataclass
class Fake:
    """A mirror of some packages' contents; counts what it was asked for."""

    content: dict[str, bytes]
    asked: list[str] = field(default_factory=list)

    def download(self, items: Sequence[tuple[LockedPackage, Path]]) -> str:
        for wanted, path in items:
            self.asked.append(wanted.name)
            if wanted.name in self.content:
                path.write_bytes(self.content[wanted.name])
        return "E: 404 Not Found\n"


def never() -> Fake:
    raise AssertionError("the network was asked for")


def test_what_was_fetched_once_needs_no_mirror(tmp_path: Path) -> None:
    store, one = DebStore(tmp_path), package("one", b"1")
    mirror = Fake({"one": b"1"})
    seen: list[float] = []
    assert store.fetch([one, one], lambda: mirror, progress=seen.append) == [store.path(one)] * 2
    assert mirror.asked == ["one"]
    assert seen == [1.0]
    assert store.fetch([one], never) == [tmp_path / f"{one.sha256}.deb"]


@pytest.mark.parametrize("damage", [b"", b"2", b"longer than it was"])
def test_a_damaged_file_is_fetched_anew(tmp_path: Path, damage: bytes) -> None:
    store, one = DebStore(tmp_path), package("one", b"1")
    store.path(one).write_bytes(damage)
    store.fetch([one], lambda: Fake({"one": b"1"}))
    assert store.path(one).read_bytes() == b"1"


@pytest.mark.parametrize("served", [{}, {"one": b"another"}])
def test_what_a_mirror_dropped_or_changed_is_an_error_with_a_remedy(tmp_path: Path, served: dict[str, bytes]) -> None:
    store, one = DebStore(tmp_path), package("one", b"1")
    with pytest.raises(HostError, match=r"(?s)one=1.*404 Not Found.*resolve a new lock"):
        store.fetch([one], lambda: Fake(served))
    assert list(tmp_path.iterdir()) == []


def test_what_could_be_had_is_kept_when_something_else_could_not(tmp_path: Path) -> None:
    store, one, two = DebStore(tmp_path), package("one", b"1"), package("two", b"2")
    with pytest.raises(HostError, match="1 of 2"):
        store.fetch([one, two], lambda: Fake({"one": b"1"}))
    assert store.holds(one)
    assert not store.holds(two)


def test_nothing_partial_is_left_when_the_mirror_breaks(tmp_path: Path) -> None:
    class Broken(Fake):
        def download(self, items: Sequence[tuple[LockedPackage, Path]]) -> str:
            items[0][1].write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DebStore(tmp_path).fetch([package("one", b"1")], lambda: Broken({}))
    assert list(tmp_path.iterdir()) == []
