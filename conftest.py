"""This repository's own runs only: one marker for tests that need a real machine."""

from __future__ import annotations

from pathlib import Path

import pytest

E2E = Path(__file__).parent / "tests" / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist, tests that only wait for one machine are spread; the rest stays together per file."""
    for item in items:
        if E2E not in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
