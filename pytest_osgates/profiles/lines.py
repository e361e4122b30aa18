"""In which line of a TOML file a key stands, for messages. tomllib keeps no positions.

A document is a sequence of expressions, each of whole lines (TOML 1.0: a table's header, or a key with its value),
and none that is complete at the end of a line goes on in the next one. So the fewest lines that tomllib accepts are
the next expression: where one ends is tomllib's word, not a second idea of what TOML is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]
# A value of many lines is parsed once for each of them that may be its last: beyond this no line is known.
MOST_PARSED = 8 << 20
# A value of several lines is an array or a multi-line string: its last line has one of these.
_CLOSING = ("]", '"""', "'''")


class Lines:
    """The line of each table and key of a document that tomllib accepts; lines count from 1."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        try:
            for path, line in _places(text):
                self._lines.setdefault(path, line)
        except _TooLong:
            self._lines.clear()

    def of(self, path: Path) -> int | None:
        """Where `path` begins, or else the innermost table around it. None: that is not known."""
        for end in range(len(path), 0, -1):
            line = self._lines.get(path[:end])
            if line is not None:
                return line
        return None


def said_before(text: str, line: int) -> tuple[str, int] | None:
    """Which table or key of the expression that ends in `line` stands further up in `text` too, and where.

    `text` need not be TOML beyond `line`: tomllib refused it there.
    """
    first: dict[Path, int] = {}
    places: list[tuple[Path, int]] = []
    try:
        for path, at in _places("\n".join(text.split("\n")[:line])):
            first.setdefault(path, at)
            places.append((path, at))
    except _TooLong:
        return None
    last = max((at for _, at in places), default=0)
    twice = [path for path, at in places if at == last and first[path] < last]
    if not twice:
        return None
    path = max(twice, key=len)
    return ".".join(str(part) for part in path), first[path]


class _TooLong(Exception):
    """More work than a message is worth."""


def _places(text: str) -> Iterator[tuple[Path, int]]:
    """Every table and key with a line in which it is named, in the order of the document."""
    table: Path = ()
    elements: dict[Path, int] = {}
    for line, source, data in _expressions(text):
        if not source.lstrip(" \t").startswith("["):
            yield from ((table + path, line) for path in _below(data))
            continue
        named, is_list = _header(data)
        table = ()
        for depth, part in enumerate(named, 1):
            table += (part,)
            yield table, line
            if is_list and depth == len(named):
                elements[table] = elements.get(table, -1) + 1
            if table in elements:
                table += (elements[table],)
                yield table, line


def _header(data: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The names in a header, and whether it is one of ``[[...]]``, from what tomllib made of it alone."""
    names: list[str] = []
    value: object = data
    while isinstance(value, dict) and value:
        ((name, value),) = value.items()
        names.append(name)
    return names, isinstance(value, list)


def _below(value: object) -> Iterator[Path]:
    """The paths of everything in `value`, outer ones first."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (key,)
        for path in _below(inner):
            yield (key, *path)


def _expressions(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """First line, source and data of each expression.

    :raise _TooLong: it takes too long to find them.
    """
    first, source, parsed = 1, "", 0
    # Only this ends a line in TOML; str.splitlines() knows others.
    for number, line in enumerate(text.split("\n"), 1):
        if source and not any(mark in line for mark in _CLOSING):
            source += line + "\n"
            continue
        source += line + "\n"
        parsed += len(source)
        if parsed > MOST_PARSED:
            raise _TooLong
        try:
            data = tomllib.loads(source)
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
        if data:
            yield first, source, data
        first, source = number + 1, ""
