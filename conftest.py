"""This repository's own runs only: one marker for tests that need a real machine."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist, tests that only wait for one machine are spread; the rest stays together per file."""
    for item in items:
        # Not the gates of this tree, which a user may be running: they have groups of their own.
        if TESTS in item.path.parents and item.get_closest_marker("boots") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
