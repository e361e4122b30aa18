"""The demo's own profile on one firmware, with a shorter watch: what fault images are judged by."""

from __future__ import annotations

import re
from pathlib import Path

from pytest_osgates.profiles import loader


def quick_profile(
    directory: Path,
    firmware: str = "bios",
    *,
    watch_s: int = 30,
    deadline_s: int = 400,
    idle_s: int = 60,
    cards: int = 1,
) -> Path:
    """A profile file that differs from the built-in one in nothing but what is named here."""
    text = loader.find("demo").read_text(encoding="utf-8")
    for pattern, value in (
        (r"^firmware = .*$", f'firmware = ["{firmware}"]'),
        (r"^watch_s = .*$", f"watch_s = {watch_s}"),
        (r"^deadline_s = .*$", f"deadline_s = {deadline_s}"),
        (r"^idle_s = .*$", f"idle_s = {idle_s}\ncards = {cards}"),
    ):
        text, count = re.subn(pattern, value, text, flags=re.MULTILINE)
        assert count == 1, pattern
    path = directory / "quick.toml"
    path.write_text(text, encoding="utf-8")
    return path
