"""The files that docs/writing-a-gate.md makes: fenced blocks whose info string names a file."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "writing-a-gate.md"
_BLOCK = re.compile(r"^```(?:toml|python|text) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, str]:
    """Path and text; several blocks of one path are one file, two empty lines between them."""
    found: dict[str, str] = {}
    for path, text in _BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        found[path] = f"{found[path]}\n\n{text}" if path in found else text
    return found


def write_out(directory: Path) -> dict[str, str]:
    """All of them below `directory`; what was written."""
    found = blocks()
    for path, text in found.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return found


def package(directory: Path) -> None:
    """Make the package of the text's last step out of what :func:`write_out` wrote."""
    folder = directory / "my_gates"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (directory / "gates" / "test_writable.py").rename(folder / "test_writable.py")
    profile = directory / "my.toml"
    profile.write_text(profile.read_text().replace('gates = ["gates"]\n', ""))
