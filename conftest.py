"""This repository's own runs only: one marker for tests that need a real machine."""

from __future__ import annotations

import pytest
from hypothesis import settings

# How long an example takes says what else the machine does.
settings.register_profile("osgates", deadline=None)
settings.load_profile("osgates")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist, tests that only wait for one machine are spread; the rest stays together per file."""
    for item in items:
        if item.get_closest_marker("boots") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
