"""Text that a guest wrote: never printed or matched before it went through here."""

from __future__ import annotations

import re
import unicodedata

# ECMA-48: CSI, OSC (ended by BEL or ST), DCS/SOS/PM/APC strings, two-character escapes.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?"
    r"|\x1b[PX^_][^\x1b]{0,4096}(?:\x1b\\)?"
    r"|\x1b[ -/]*[0-~]?"
    r"|\x9b(?:[0-?]*[ -/]*[@-~])?"
)


def strip_escapes(text: str) -> str:
    """`text` without terminal escape sequences; other characters stay."""
    return _ESCAPES.sub("", text)


def printable(text: str, limit: int = 2000) -> str:
    """`text` as it may be shown on a terminal: no escapes, control and bidirectional characters made visible.

    Format characters (category Cf) are escaped too: they can hide or reorder what a reader sees
    (Unicode TR 36, "Unicode Security Considerations").
    """
    shown = []
    for char in strip_escapes(text[: limit * 4])[:limit]:
        kind = unicodedata.category(char)
        if char in "\n\t":
            shown.append(char)
        elif kind in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}:
            shown.append(f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")
        else:
            shown.append(char)
    if len(text) > limit:
        shown.append("...")
    return "".join(shown)


def one_line(text: str, limit: int = 300) -> str:
    """`printable` on a single line."""
    return printable(" ".join(strip_escapes(text).split()), limit)
