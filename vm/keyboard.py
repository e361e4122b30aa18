"""Text as keys of a keyboard with the US layout, by QEMU's names (qapi/ui.json, QKeyCode)."""

from __future__ import annotations

from pytest_osgates.vm.errors import UsageError

_PLAIN = {
    " ": "spc",
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave_accent",
    "\\": "backslash",
    ",": "comma",
    ".": "dot",
    "/": "slash",
    "\n": "ret",
    "\t": "tab",
}
_SHIFTED = dict(zip('_+{}:"~|<>?!@#$%^&*()', "-=[];'`\\,./1234567890", strict=True))


def keys_of(text: str) -> tuple[tuple[str, ...], ...]:
    """For each character the keys to press together.

    :raise UsageError: a character that the layout does not have.
    """
    return tuple(_keys(char) for char in text)


def _keys(char: str) -> tuple[str, ...]:
    if char in _SHIFTED:
        return ("shift", *_keys(_SHIFTED[char]))
    if char in _PLAIN:
        return (_PLAIN[char],)
    if char.isascii() and char.isalnum():
        return (char,) if char == char.lower() else ("shift", char.lower())
    raise UsageError(f"no key of the US layout types {char!r}", remedy="write it as keys in the distro profile")
