"""A screen that is written to by cursor positions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.vm.cells import HEIGHT, WIDTH, Cells

# As OVMF 2022.11 wrote it for GRUB 2.12.
MENU = (
    "\x1b[0m\x1b[30m\x1b[40m\x1b[2J\x1b[01;01H\x1b[0m\x1b[37m\x1b[40m"
    "\x1b[02;35HGNU GRUB  version 2.12-9+deb13u2\n\r\n\r"
    "\x1b[04;02H\xda\xc4\xc4\x1b[05;02H\xb3\x1b[05;99H\xb3\x1b[05;:0H "
    "\x1b[0m\x1b[30m\x1b[47m\x1b[05;03H*OS Gates Demo 1"
)


def shown(text: str) -> list[str]:
    cells = Cells()
    cells.feed(text)
    return list(cells.lines())


def test_a_menu() -> None:
    lines = shown("what was before" + MENU)
    assert lines[0] == ""
    assert lines[1] == " " * 34 + "GNU GRUB  version 2.12-9+deb13u2"
    assert lines[4] == " \xb3*OS Gates Demo 1" + " " * 80 + "\xb3"


def test_column_100_is_written_in_two_characters() -> None:
    cells = Cells()
    cells.feed("\x1b[05;:0H")
    assert (cells.row, cells.column) == (4, 99)
    cells.feed("\x1b[7;8H")
    assert (cells.row, cells.column) == (6, 7)
    cells.feed("\x1b[H")
    assert (cells.row, cells.column) == (0, 0)


def test_moves_and_erasing() -> None:
    assert shown("abc\x1b[2Dx")[0] == "axc"
    assert shown("abc\r\x1b[K")[0] == ""
    assert shown("abc\b\x1b[1K")[0] == ""
    assert shown("abc\x1b[2K")[0] == ""
    assert shown("a\r\nb\r\nc\x1b[A\x1b[J")[:3] == ["a", "b", ""]
    assert shown("a\r\nb\r\nc\x1b[A\r\x1b[1J")[:3] == ["", "", "c"]
    assert shown("a\tb")[0] == "a       b"
    assert shown("\x1b(Bx\x1b[31my")[0] == "xy"


def test_it_scrolls() -> None:
    lines = shown("".join(f"{number}\r\n" for number in range(HEIGHT + 5)))
    assert lines[0] == "6"
    assert lines[-1] == ""


@given(st.text(st.sampled_from("\x1b[0123;:HJKABCDm \r\n\b\txyz\xb3")), st.integers(0, 40))
def test_where_the_wire_cuts_changes_nothing(text: str, at: int) -> None:
    cut = Cells()
    cut.feed(text[:at])
    cut.feed(text[at:])
    assert list(cut.lines()) == shown(text)


@given(st.text())
def test_whatever_comes_it_stays_as_large(text: str) -> None:
    lines = shown(text)
    assert len(lines) == HEIGHT
    assert max(map(len, lines)) <= WIDTH
