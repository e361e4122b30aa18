"""The entry point of the pytest plugin. Without ``--iso`` it registers options and does nothing else."""

from __future__ import annotations

import pytest

from pytest_osgates import options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    options.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """With an ISO: register the rest of the plugin, and collect the built-in gates where no path was named."""
    if not (config.getoption("--iso") or config.getini("osgates_iso")):
        return
    from pytest_osgates import session

    session.activate(config)
