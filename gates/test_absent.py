"""Gates that the profile requires and that are nowhere: NOT PROVEN, each under its own marker."""

import pytest

from pytest_osgates.fixtures.gate import NotProven
from pytest_osgates.run import Run
from pytest_osgates.session import RUN_KEY


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each gate that is missing."""
    run = metafunc.config.stash.get(RUN_KEY, None)
    names = [] if run is None else [name for name, section in run.profile.gates.items() if section.gate is None]
    metafunc.parametrize("gate", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in names])


def test_gate_exists(os_run: Run, gate: str) -> None:
    """It does not."""
    raise NotProven(os_run.profile.gates[gate].absent)
