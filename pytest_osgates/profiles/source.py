"""A profile as it is written: its bytes, what TOML makes of them, and in which line a key stands."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_osgates.profiles import lines
from pytest_osgates.vm.errors import UsageError

MAX_SIZE = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}
# tomllib: "Invalid value (at line 3, column 8)".
_AT_LINE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_TWICE = re.compile(r"twice|[Oo]verwrite|immutable|mutate")
_REMEDY = "text stands in quotes, one key in each line, each [section] once: see docs/profiles.md"


class ProfileText:
    """The file at `path`, read once. `data` is what TOML makes of it."""

    def __init__(self, path: Path) -> None:
        """:raise UsageError: it cannot be read, is too large, or is not TOML; the line is named."""
        self.path = path
        self.raw = _read(path)
        if self.raw.startswith(b"\xef\xbb\xbf"):
            raise UsageError(
                f"{path}: line 1: it begins with a byte order mark", remedy="save it as UTF-8 without one"
            )
        try:
            self._text = self.raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = self.raw.count(b"\n", 0, error.start) + 1
            raise UsageError(
                f"{path}: line {line}: it is not TOML: byte {self.raw[error.start]:#04x} is not UTF-8",
                remedy="save it as UTF-8",
            ) from error
        try:
            self.data: dict[str, Any] = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            raise self._not_toml(error) from error
        except (RecursionError, ValueError) as error:
            # Arrays in arrays without end; a number of more digits than Python reads.
            how = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise UsageError(f"{path}: it is not TOML that can be read: {how}", remedy=_REMEDY) from error

    def _not_toml(self, error: tomllib.TOMLDecodeError) -> UsageError:
        at = _AT_LINE.search(str(error))
        said = str(error) if at is None else str(error)[: at.start()]
        if at is None:
            line = self._text.rstrip("\n").count("\n") + 1
            return UsageError(f"{self.path}: line {line}: it is not TOML: {said}", remedy=_REMEDY)
        line, column = int(at[1]), int(at[2])
        where = f"{self.path}: line {line}"
        first = lines.said_before(self._text, line) if _TWICE.search(said) else None
        if first is not None:
            name, before = first
            return UsageError(
                f"{where}: it is not TOML: {name} is there already, in line {before}",
                remedy="leave one of them out, or join them",
            )
        return UsageError(f"{where}: it is not TOML: {said} (column {column})", remedy=_REMEDY)

    @cached_property
    def _lines(self) -> lines.Lines:
        return lines.Lines(self._text)

    def line(self, *key: str | int) -> int | None:
        """Where `key` stands, or the innermost table around it; None: that is not known."""
        return self._lines.of(key)

    def at(self, *key: str | int) -> str:
        """``p.toml: line 7:``, to begin a message with."""
        line = self.line(*key)
        return f"{self.path}:" if line is None else f"{self.path}: line {line}:"


def _read(path: Path) -> bytes:
    try:
        # Looked at before it is opened: opening a pipe can wait for ever.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = _KINDS.get(stat.S_IFMT(mode), "no regular file")
            raise UsageError(f"the distro profile {path} is {what}", remedy="give a TOML file")
        with path.open("rb") as file:
            # A file in /proc or one that grows may hold more than its size says.
            raw = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UsageError(
            f"the distro profile {path} cannot be read: {why}", remedy="check the path and its permissions"
        ) from error
    if len(raw) > MAX_SIZE:
        raise UsageError(f"the distro profile {path} is larger than {MAX_SIZE} bytes", remedy="is it the right file?")
    return raw
