"""What a terminal shows that is written to by cursor positions, such as a firmware's serial console or GRUB's menu.

Of ECMA-48 it knows what edk2's TerminalDxe writes (MdeModulePkg/Universal/Console/TerminalDxe/TerminalConOut.c); any
other sequence changes nothing. Whatever is written, it stays as large as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WIDTH, HEIGHT = 256, 100
_TAB = 8
# An escape sequence that has not come to its end yet; a longer one is none.
_LONGEST = 64
_SEQUENCE = re.compile(r"\x1b\[([0-?]*)[ -/]*([@-~])|\x1b[ -/]*[0-Z\\-~]")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[ -/]*)$")
# TerminalDxe writes rows and columns as two characters each, whatever they come to: column 100 is ":0".
_TWO_CHARACTERS = re.compile(r"^([0-?][0-9]);([0-?][0-9])$")
_MOVES = {"A": (-1, 0), "B": (1, 0), "C": (0, 1), "D": (0, -1)}


class Cells:
    """A screen of characters. `row`, `column`: the cursor, from 0."""

    def __init__(self) -> None:
        self.row = 0
        self.column = 0
        self._rows = [[" "] * WIDTH for _ in range(HEIGHT)]
        self._rest = ""

    def feed(self, text: str) -> None:
        """Show `text`; an escape sequence may go on with the next one."""
        text = self._rest + text
        self._rest = ""
        at = 0
        while at < len(text):
            char = text[at]
            if char != "\x1b":
                self._put(char)
                at += 1
            elif (match := _SEQUENCE.match(text, at)) is not None:
                if match[2] is not None:
                    self._obey(match[1], match[2])
                at = match.end()
            elif len(text) - at < _LONGEST and _UNFINISHED.match(text, at):
                self._rest = text[at:]
                return
            else:
                at += 1

    def lines(self) -> Sequence[str]:
        """All rows, blanks at their ends removed."""
        return ["".join(row).rstrip() for row in self._rows]

    def _put(self, char: str) -> None:
        if char == "\r":
            self.column = 0
        elif char == "\n":
            if self.row == HEIGHT - 1:
                self._rows = [*self._rows[1:], [" "] * WIDTH]
            else:
                self.row += 1
        elif char == "\b":
            self.column = max(0, self.column - 1)
        elif char == "\t":
            self.column = min(WIDTH - 1, self.column // _TAB * _TAB + _TAB)
        elif char >= " " and char != "\x7f":
            self._rows[self.row][self.column] = char
            self.column = min(WIDTH - 1, self.column + 1)

    def _obey(self, given: str, final: str) -> None:
        if final in "Hf":
            two = _TWO_CHARACTERS.match(given)
            numbers = [_value(word) for word in (two.groups() if two else given.split(";"))]
            row, column = (*numbers, 1, 1)[:2]
            self._go((row or 1) - 1, (column or 1) - 1)
        elif final in _MOVES:
            down, right = _MOVES[final]
            count = _value(given) or 1
            self._go(self.row + down * count, self.column + right * count)
        elif final == "J":
            self._erase(given)
        elif final == "K":
            start, end = {"1": (0, self.column + 1), "2": (0, WIDTH)}.get(given, (self.column, WIDTH))
            self._rows[self.row][start:end] = [" "] * (end - start)

    def _erase(self, given: str) -> None:
        if given == "2":
            first, last = 0, HEIGHT
        elif given == "1":
            first, last = 0, self.row
            self._obey("1", "K")
        else:
            first, last = self.row + 1, HEIGHT
            self._obey("", "K")
        for number in range(first, last):
            self._rows[number] = [" "] * WIDTH

    def _go(self, row: int, column: int) -> None:
        self.row = max(0, min(HEIGHT - 1, row))
        self.column = max(0, min(WIDTH - 1, column))


def _value(word: str) -> int:
    """As TerminalDxe writes numbers; what is none is 0."""
    number = 0
    for char in word[:4]:
        number = number * 10 + ord(char) - ord("0")
    return max(0, number)
