"""Texts of the kernel's, taken apart as the kernel does it: its command line, capabilities, mounts."""

from __future__ import annotations

import contextlib
import re
import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from settings_samples import a_mount

from pytest_osgates.checks.settings.capabilities import NAMES, Capabilities, decode, parse
from pytest_osgates.checks.settings.cmdline import parse as parse_line
from pytest_osgates.checks.settings.libraries import preloaded
from pytest_osgates.checks.settings.mounts import mount_at, options_of

LINES = [
    ("", []),
    ("quiet", ["quiet"]),
    ("  a=1\tb\n", ["a=1", "b"]),
    ('a="b c" d', ["a=b c", "d"]),
    ('"a=b c" d', ["a=b c", "d"]),
    ('"a b" c', ["a b", "c"]),
    ("a=b=c", ["a=b=c"]),
    ("a= b", ["a=", "b"]),
    ("=a", ["=a"]),
    ('a="b" c="d', ["a=b", "c=d"]),
    ('dyndbg="file a +p; file b +p" x', ["dyndbg=file a +p; file b +p", "x"]),
    ("a -- b -- c", ["a", "b", "--", "c"]),
    ("a a=1 a", ["a", "a=1", "a"]),
]


@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_a_command_line_is_read_as_the_kernel_reads_it(line: str, wanted: list[str]) -> None:
    assert [parameter.text for parameter in parse_line(line)] == wanted


def test_half_of_a_character_may_be_white_space() -> None:
    """lib/ctype.c: 0xa0 is white space, as in a no-break space copied from a web page."""
    found = parse_line("quiet\u00a0mitigations=off")
    assert [parameter.text for parameter in found] == ["quiet\ufffd", "mitigations=off"]


def test_what_follows_two_dashes_is_for_init() -> None:
    assert [(p.name, p.for_init) for p in parse_line("a -- b=1")] == [("a", False), ("b", True)]


@given(st.lists(st.tuples(st.text("abc_-.", min_size=1, max_size=5), st.none() | st.text("ab =.-", max_size=6))))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_what_is_quoted_comes_back(given_parameters: list[tuple[str, str | None]]) -> None:
    wanted = [(name, value) for name, value in given_parameters if name != "--"]
    line = " ".join(name if value is None else f'{name}="{value}"' for name, value in wanted)
    assert [(p.name, p.value) for p in parse_line(line)] == wanted


@given(st.text(max_size=60) | st.text("a-= \t\n", max_size=20))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_no_line_is_too_odd_and_no_plain_word_is_lost(line: str) -> None:
    found = [parameter.text for parameter in parse_line(line)]
    if '"' not in line:
        # Half of a character may be white space to the kernel.
        split = re.split(rb"[ \t\n\v\f\r\xa0]+", line.encode())
        words = [word.decode("utf-8", "replace") for word in split if word]
        if "--" in words:
            words.remove("--")
        assert found == words


def vfs(
    revision: int, permitted: int, inheritable: int = 0, *, effective: bool = False, root: int | None = None
) -> bytes:
    """struct vfs_cap_data or vfs_ns_cap_data of linux/capability.h."""
    data = struct.pack("<I", revision << 24 | effective)
    for number in range(1 if revision == 1 else 2):
        data += struct.pack("<II", permitted >> 32 * number & 0xFFFFFFFF, inheritable >> 32 * number & 0xFFFFFFFF)
    return data if root is None else data + struct.pack("<I", root)


def test_capabilities_of_ping_in_all_forms() -> None:
    # As setcap(8) writes them.
    raw = bytes.fromhex("0100000200200000000000000000000000000000")
    assert decode(raw) == parse("cap_net_raw=ep") == parse("cap_net_raw+ep")
    assert decode(raw).text == "cap_net_raw=ep"
    assert decode(vfs(1, 1 << 13, effective=True)) == decode(raw)
    assert decode(vfs(3, 1 << 13, effective=True, root=1000)).text == "cap_net_raw=ep [rootid=1000]"


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\x00\x00\x00", vfs(0, 1), vfs(4, 1), vfs(2, 1)[:-1], vfs(2, 1) + b"\0", vfs(1, 1) + b"\0" * 8),
        *(vfs(2, 1, root=0), vfs(3, 1)),
    ],
)
def test_an_attribute_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"security\.capability"):
        decode(data)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans(), st.none() | st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_what_is_decoded_can_be_written_and_read(
    permitted: int, inheritable: int, effective: bool, root: int | None
) -> None:
    found = decode(vfs(2 if root is None else 3, permitted, inheritable, effective=effective, root=root))
    assert len(found.permitted) == permitted.bit_count()
    assert len(found.inheritable) == inheritable.bit_count()
    assert found.root == (root or 0)
    if permitted | inheritable:
        assert parse(found.text) == found


@given(st.binary(max_size=30))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_no_attribute_is_too_odd(data: bytes) -> None:
    known = len(data) in {12, 20, 24} and data[3] == {12: 1, 20: 2, 24: 3}[len(data)]
    with contextlib.nullcontext() if known else pytest.raises(ValueError, match=r"security\.capability"):
        assert isinstance(decode(data), Capabilities)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("none", Capabilities()),
        ("cap_chown,cap_kill=p", Capabilities(frozenset({"cap_chown", "cap_kill"}))),
        ("cap_chown=i", Capabilities(inheritable=frozenset({"cap_chown"}))),
        ("cap_chown=eip cap_chown-i", Capabilities(frozenset({"cap_chown"}), effective=True)),
        ("=p", Capabilities(frozenset(NAMES))),
        ("all=p", Capabilities(frozenset(NAMES))),
        ("cap_63=p", Capabilities(frozenset({"cap_63"}))),
    ],
)
def test_capabilities_in_words(text: str, wanted: Capabilities) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "cap_chown", "chown=p", "cap_chown=x", "cap_chown=p,cap_kill", "cap_chown=ep cap_kill=p"]
)
def test_words_that_are_no_capabilities(text: str) -> None:
    with pytest.raises(ValueError, match=r"capabilit|clause"):
        parse(text)


ROOT = a_mount("/", "rw", id=1, parent=0)


def at(path: str, *mounts: object) -> int | None:
    found = mount_at([ROOT, *mounts], path)  # type: ignore[list-item]
    return None if found is None else found.id


def test_the_topmost_mount_of_a_path_wins_whatever_the_order() -> None:
    low, high = a_mount("/tmp", id=2, parent=1), a_mount("/tmp", id=3, parent=2)
    assert at("/tmp", low, high) == at("/tmp", high, low) == 3
    assert at("/tmp", low) == 2
    assert at("/var") is None
    assert at("/") == 1


def test_what_lies_below_a_later_mount_is_out_of_sight() -> None:
    deep = a_mount("/srv/data", id=2, parent=1)
    over = a_mount("/srv", id=3, parent=1)
    assert at("/srv/data", deep, over) is None
    assert at("/srv/data", deep, over, a_mount("/srv/data", id=4, parent=3)) == 4
    assert at("/srv/data", deep, a_mount("/srv/data2", id=3, parent=1)) == 2
    # What lies on something that is out of sight is so, too.
    assert at("/srv/data/x", deep, a_mount("/srv/data/x", id=5, parent=2), over) is None


def test_mounts_that_name_each_other_end() -> None:
    assert at("/a", a_mount("/a", id=8, parent=9), a_mount("/b", id=9, parent=8)) == 8


SILENT = {"suid", "dev", "exec", "symfollow", "async"}


def test_read_only_is_what_either_says() -> None:
    assert options_of(a_mount("/", "rw", super_options=("ro",))) == {"ro"} | SILENT
    assert options_of(a_mount("/", "ro", super_options=("rw", "size=1"))) == {"ro", "size=1"} | SILENT
    assert options_of(a_mount("/", "rw", super_options=("rw",))) == {"rw"} | SILENT


def test_what_the_kernel_does_not_show_is_in_force() -> None:
    seen = options_of(a_mount("/", "rw", "nosuid", "noexec", super_options=("rw", "sync")))
    assert seen == {"rw", "nosuid", "noexec", "sync", "dev", "symfollow"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("/a.so\n", ["/a.so"]),
        ("/a.so:/b.so /c.so\n# /d.so\n/e.so # /f.so\n", ["/a.so", "/b.so", "/c.so", "/e.so"]),
    ],
)
def test_entries_of_ld_so_preload(text: str, wanted: list[str]) -> None:
    assert preloaded(text) == wanted
