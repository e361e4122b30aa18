"""os-release(5): assignments as a shell would read them, without a shell."""

from __future__ import annotations

import re

OS_RELEASE_PATHS = ("/etc/os-release", "/usr/lib/os-release")
MAX_BYTES = 64 << 10

_ASSIGNMENT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)=(.*)")
# In double quotes a backslash is special only before these; elsewhere it stands for itself.
_ESCAPABLE = '$"\\`'


def parse_os_release(text: bytes) -> dict[str, str]:
    """The variables that `text` assigns; the last assignment of a name counts.

    Comments, and lines that a shell would not read as one assignment (an unclosed quote, a second word), are left
    out. Bytes that are not UTF-8 become U+FFFD.
    """
    found: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").split("\n"):
        assignment = _ASSIGNMENT.fullmatch(line.removesuffix("\r"))
        if assignment:
            value = _unquote(assignment[2].rstrip(" \t"))
            if value is not None:
                found[assignment[1]] = value
    return found


def _unquote(word: str) -> str | None:
    """`word` as the shell unquotes it; None: it is not one complete word."""
    value: list[str] = []
    quote = ""
    position = 0
    while position < len(word):
        character = word[position]
        position += 1
        if quote == "'":
            if character == quote:
                quote = ""
            else:
                value.append(character)
        elif character == "\\":
            following = word[position : position + 1]
            if not following:
                return None
            position += 1
            value.append(following if not quote or following in _ESCAPABLE else f"\\{following}")
        elif quote:
            if character == quote:
                quote = ""
            else:
                value.append(character)
        elif character in "\"'":
            quote = character
        elif character in " \t;&|<>()":
            return _comment_only(word[position - 1 :], "".join(value))
        else:
            value.append(character)
    return None if quote else "".join(value)


def _comment_only(rest: str, value: str) -> str | None:
    """`value` if what follows it is only a comment."""
    return value if rest[0] in " \t" and rest.lstrip(" \t").startswith("#") else None
