"""os-release(5), against what a real shell makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_osgates.image.os_release import parse_os_release
from pytest_osgates.vm.process import run

VALUES = (
    ("A=plain", "plain"),
    ("A=", ""),
    ("A=''", ""),
    ('A="Debian GNU/Linux 13 (trixie)"', "Debian GNU/Linux 13 (trixie)"),
    ("A='single \"double\" $x \\n'", 'single "double" $x \\n'),
    (r'A="a\"b\\c\$d\`e\f"', 'a"b\\c$d`e\\f'),
    (r"A=a\ b\\c", "a b\\c"),
    ("A=one'two'\"three\"four", "onetwothreefour"),
    ("A='it'\\''s'", "it's"),
    ('A="Grüße"', "Grüße"),
    ("  A=indented", "indented"),
    ("A=x   ", "x"),
    ("A=x # comment", "x"),
    ("A=x#no-comment", "x#no-comment"),
)


@pytest.mark.parametrize(("line", "value"), VALUES)
def test_values(line: str, value: str) -> None:
    assert parse_os_release(line.encode()) == {"A": value}


def test_values_are_what_the_shell_reads() -> None:
    script = "\n".join(f"{line}\nprintf '%s\\n' \"$A\"" for line, _ in VALUES)
    shell = run(["sh", "-c", script], timeout=10).stdout
    assert shell.decode().splitlines() == [value for _, value in VALUES]


@pytest.mark.parametrize(
    "line",
    ["A", "=x", "1A=x", "A-B=x", "A =x", "#A=x", "  # A=x", 'A="open', "A='open", "A=x\\", "A=x y", "A=x;y", ""],
)
def test_what_is_no_assignment_is_left_out(line: str) -> None:
    assert parse_os_release(line.encode()) == {}


def test_the_last_assignment_counts_and_line_ends_do_not() -> None:
    assert parse_os_release(b"A=1\r\nB=2\r\nA=3\r\n") == {"A": "3", "B": "2"}


@settings(deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_parsed(text: bytes) -> None:
    assert all(isinstance(value, str) for value in parse_os_release(b"A=" + text).values())
