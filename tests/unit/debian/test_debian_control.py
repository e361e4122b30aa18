"""deb822 stanzas and Packages indices."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pytest_osgates.debian import Archive, LockedPackage
from pytest_osgates.debian.control import locked, packages_index, render, stanzas
from pytest_osgates.vm.errors import HostError

FIELDS = {
    "Package": "foo",
    "Version": "1:2.0-3+b1",
    "Architecture": "amd64",
    "Filename": "pool/main/f/foo/foo_2.0-3+b1_amd64.deb",
    "Size": "1234",
    "SHA256": "ab" * 32,
    "Description": "short\n long\n .\n more",
}

values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x17F), min_size=1, max_size=30)
names = st.from_regex(r"\A[A-Za-z][A-Za-z0-9\-]{0,12}\Z")


@given(st.lists(st.dictionaries(names, values, min_size=1, max_size=6), max_size=5))
def test_what_is_rendered_is_read_back(entries: list[dict[str, str]]) -> None:
    assert list(stanzas("\n".join(render(entry) for entry in entries))) == entries


def test_continuation_lines_stay_in_their_value() -> None:
    assert list(stanzas(render(FIELDS))) == [FIELDS]


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused_cleanly(text: str) -> None:
    with contextlib.suppress(HostError):
        list(stanzas(text))


@pytest.mark.parametrize("text", [" begins with a continuation\n", "no colon here\n", ": no name\n"])
def test_what_is_no_stanza_is_refused(text: str) -> None:
    with pytest.raises(HostError):
        list(stanzas(text))


def test_a_stanza_becomes_a_locked_package() -> None:
    package = locked(FIELDS, Archive.SECURITY)
    assert package.key == "foo=1:2.0-3+b1"
    assert package.archive is Archive.SECURITY
    assert package.size == 1234


@pytest.mark.parametrize("missing", ["SHA256", "Size", "Filename", "Version"])
def test_a_stanza_without_what_a_lock_needs_is_refused(missing: str) -> None:
    with pytest.raises(HostError, match=missing):
        locked({name: value for name, value in FIELDS.items() if name != missing}, Archive.DEBIAN)


@pytest.mark.parametrize(
    "filename",
    [
        "/pool/main/x.deb",
        "../x.deb",
        "pool/../x.deb",
        "pool/main/x.tar",
        "pool/a b.deb",
        "pool//x.deb",
        "pool/.x.deb",
    ],
)
def test_a_path_that_leaves_the_pool_is_refused(filename: str) -> None:
    with pytest.raises(HostError):
        locked({**FIELDS, "Filename": filename}, Archive.DEBIAN)


def test_an_index_is_sorted_and_says_where_files_are() -> None:
    def package(name: str) -> LockedPackage:
        return locked({**FIELDS, "Package": name}, Archive.DEBIAN)

    text = packages_index(
        [(package(name), {"Package": name, "Depends": "c"}, f"{name}.deb") for name in ("bb", "aa")]
    )
    first, second = stanzas(text)
    assert (first["Package"], second["Package"]) == ("aa", "bb")
    assert first["Filename"] == "aa.deb"
    assert first["SHA256"] == "ab" * 32
    assert first["Depends"] == "c"
