"""Gates that the profile requires and this version does not have: NOT PROVEN, each under its own marker."""

import pytest

from pytest_osgates.checks.registry import GATES
from pytest_osgates.fixtures.gate import NotProven
from pytest_osgates.session import RUN_KEY


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each gate that is missing."""
    run = metafunc.config.stash.get(RUN_KEY, None)
    names = [] if run is None else [name for name in run.profile.gates if name not in GATES]
    metafunc.parametrize("gate", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in names])


def test_gate_exists(gate: str) -> None:
    """It does not."""
    raise NotProven(f"this version of pytest-osgates has no gate {gate!r}")
