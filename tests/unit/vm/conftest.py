"""What several tests of the machine layer share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vm_fakes import SHELLS, LocalGuest

from pytest_osgates.vm import host


@pytest.fixture(params=SHELLS, ids=lambda argv: "-".join(argv).lstrip("/"))
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalGuest]:
    """A guest channel whose other end is a shell of this machine; once for each shell that it has."""
    with LocalGuest(tmp_path / "run", request.param) as guest:
        yield guest


@pytest.fixture
def sh(tmp_path: Path) -> Iterator[LocalGuest]:
    """The same with ``sh`` alone, for what does not depend on the shell."""
    with LocalGuest(tmp_path / "run", SHELLS[0]) as guest:
        yield guest


@pytest.fixture
def fresh_qemu() -> Iterator[None]:
    """`find_qemu` looks again, before and after."""
    host.find_qemu.cache_clear()
    yield
    host.find_qemu.cache_clear()
