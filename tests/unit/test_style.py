"""Ruff, mypy and the rules of the repository that no linter knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _tool(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_lint() -> None:
    """No finding."""
    _tool("ruff", "check", "--no-cache", ".")


def test_ruff_format() -> None:
    """Formatted."""
    _tool("ruff", "format", "--no-cache", "--check", ".")


def test_mypy() -> None:
    """Strict."""
    _tool("mypy")
    _tool("mypy", "bench")


# Layer, and what it may not import: imports point one way.
LAYERS = (
    ("vm", r"pytest_osgates\.(?!vm)"),
    ("pytest_osgates/image", r"pytest_osgates\.(?!vm|image)"),
    ("pytest_osgates/checks", r"pytest_osgates\.(?!model|data|checks|vm\.watch)"),
    ("pytest_osgates/model.py", r"pytest_osgates\."),
    ("pytest_osgates/judging.py", r"pytest_osgates\.(?!model)"),
    ("pytest_osgates/profiles", r"pytest_osgates\.(?!vm|model|checks|profiles)"),
    ("pytest_osgates/observers", r"pytest_osgates\.(fixtures|report|session|cli|commands|gates)"),
    ("pytest_osgates/fixtures", r"pytest_osgates\.(report|cli|commands|gates)"),
    ("pytest_osgates/debian", r"pytest_osgates\.(?!vm|paths|debian)"),
    ("pytest_osgates/demo", r"pytest_osgates\.(?!vm|paths|debian|demo|image)"),
)


@pytest.mark.parametrize(("layer", "forbidden"), LAYERS)
def test_imports_point_one_way(layer: str, forbidden: str) -> None:
    """No module imports what stands above it; and pytest is known to the plugin alone."""
    start = ROOT / layer
    files = [start] if start.is_file() else sorted(start.rglob("*.py"))
    assert files
    statement = re.compile(rf"^\s*(?:from|import)\s+(?:{forbidden})", re.MULTILINE)
    offenders = [str(path.relative_to(ROOT)) for path in files if statement.search(path.read_text())]
    assert offenders == []
    if layer.startswith(("vm", "pytest_osgates/image", "pytest_osgates/checks", "pytest_osgates/observers")):
        knows = [path.name for path in files if re.search(r"^\s*(?:import|from) pytest\b", path.read_text(), re.M)]
        assert knows == []


def test_modules_are_small() -> None:
    """Above 600 lines it is two modules."""
    for folder in ("vm", "pytest_osgates", "gates", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 600, path


def test_files_name_nothing_of_one_machine() -> None:
    """No path of the machine that it was made on, no package mirror."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"/(?:root|work)/[a-z.]|deb\.debian\.org|pypi\.org/simple")
    this = str(Path(__file__).relative_to(ROOT))
    for name in tracked:
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and name != this:
            match = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
            assert match is None, f"{name}: {match and match[0]}"
