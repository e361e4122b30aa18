"""Under xdist: tests on one state of the image go to one worker, which boots it once.

xdist's own ``--dist loadgroup`` tells its scheduler of a test's group by a suffix of the test's id, which pytest 9.2
no longer lets it append (pytest-xdist issue 1386): every test is then a group of its own, and each worker boots each
state again. Here the workers write down which test is in which group, and the scheduler reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from pytest_osgates.vm.errors import OsgatesError

if TYPE_CHECKING:
    from pytest_osgates.run import Run

# `load` is what `-n 2` alone means. Who asks for anything else than these two gets what he asked for.
DISTRIBUTIONS = frozenset({"load", "loadgroup"})


def groups_of(items: Iterable[pytest.Item]) -> dict[str, str]:
    """The group of each test that is in one, by the test's id; of a test in several, all their names."""
    found = {}
    for item in items:
        names = set()
        for marker in item.iter_markers("xdist_group"):
            names.add(str(marker.args[0] if marker.args else marker.kwargs.get("name", "default")))
        if names:
            found[item.nodeid] = "_".join(sorted(names))
    return found


class StateScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """xdist's scheduling by scope, with a test's group for its scope."""

    def __init__(self, config: pytest.Config, log: Any, run: Run) -> None:  # noqa: ANN401  (xdist's Producer)
        super().__init__(config, log)
        self._run = run
        self._groups: Mapping[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._groups is None:
            # Asked for the first time after every worker said what it collected, so that all have written it.
            self._groups = self._run.read_groups()
        # A test in no group is one by itself; "::" keeps its name from being a group's.
        return self._groups.get(nodeid, f"::{nodeid}")


class Scheduler:
    """The plugin of the controller that offers the scheduling."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling | None:  # noqa: ANN401
        """Ours where groups are wanted or nothing was said."""
        return StateScheduling(config, log, self.run) if config.getvalue("dist") in DISTRIBUTIONS else None


class GroupWriter:
    """The plugin of a worker that writes down the groups."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Before xdist tells the controller what was collected."""
        try:
            self.run.write_groups(groups_of(session.items))
        except OsgatesError:
            # The disk is full: each row says so itself. Without groups a state is made more than once, no more.
            return
