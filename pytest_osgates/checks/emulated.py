"""What only an emulated processor does, and says nothing of the image: known by what the guest showed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pytest_osgates.data import load

_PANIC = re.compile(r"[Kk]ernel[ -]panic")


def excuses(accelerator: str, consoles: Iterable[Sequence[str]]) -> dict[str, str]:
    """Of the alarms that an emulated processor raises by itself, what shows that it did. `consoles`: the lines of
    each text source."""
    if accelerator != "tcg":
        return {}
    # A screen breaks long lines.
    texts = ["".join(lines) for lines in consoles]
    return {
        name: str(entry["meaning"])
        for entry in load("console_failures")["emulated"]
        if any(re.search(entry["regex"], text) for text in texts)
        for name in entry["alarms"]
    }


def panic(accelerator: str, line: str, *consoles: Sequence[str]) -> str:
    """Why a boot that ended with `line` has ended by the emulation's fault; empty: by none that is known, or `line`
    is of no panic."""
    if not _PANIC.search(line):
        return ""
    return excuses(accelerator, consoles).get("kernel-panic", "")
