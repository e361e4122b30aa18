"""Runs of the gates as a user makes them, with the runner of the real boots; and quick ones that boot nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import demo_iso, fault_iso, gates
from tests.plugin.conftest import iso

from .quick_guest import make_quick_iso
from .warm import Place, Warm

__all__ = ["demo_iso", "fault_iso", "gates", "iso"]


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Forks runs of pytest."""
    process = Warm(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def quick_iso(demo_iso: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest that is ready within seconds."""
    return make_quick_iso(demo_iso, tmp_path_factory.mktemp("quick"))


@pytest.fixture
def place(tmp_path: Path, iso: Path, warm: Warm) -> Place:
    """A directory with a profile, tests and an ISO that is too small to boot."""
    return Place(tmp_path, iso, warm)
