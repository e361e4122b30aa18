"""Tests of gates from outside: taken from the module that was loaded, under the gate's own marker and no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pytest_osgates.checks.registry import GATES
from pytest_osgates.fixtures.gate import NotProven
from pytest_osgates.profiles.origin import OutsideGate
from pytest_osgates.profiles.schema import Profile
from pytest_osgates.vm.errors import UsageError


class GateModule(pytest.Module):
    """The file of a gate from outside. Its code has run already: a second copy would have other classes."""

    outside: OutsideGate

    def _getobj(self) -> object:
        return self.outside.module

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """The tests; that this was asked for is remembered."""
        self.config.stash.setdefault(ASKED, set()).add(self.outside.gate.name)
        return super().collect()


ASKED: pytest.StashKey[set[str]] = pytest.StashKey()


class NoTest(pytest.Item):
    """Stands for a gate that no test of its file can prove."""

    reason: str

    def runtest(self) -> None:
        """Say so.

        :raise NotProven: always.
        """
        raise NotProven(self.reason)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it belongs."""
        return self.path, None, self.name


def arguments(profile: Profile, directory: Path) -> list[str]:
    """What pytest collects beside the built-in gates. `directory`: where pytest was started.

    :raise UsageError: a path that pytest would take for something else.
    """
    found = []
    for outside in _outside(profile):
        file = outside.file
        # "./" keeps pytest from taking it for the name of a module; from here it may need no awkward parent's name.
        name = f"./{file.relative_to(directory)}" if file.is_relative_to(directory) else str(file)
        if "[" in name or "::" in name:
            raise UsageError(
                f"pytest cannot take the path {name}: '[' and '::' mean something else to it",
                remedy="rename the directory, or start pytest inside of it",
            )
        found.append(name)
    return found


def make_module(profile: Profile, path: Path, parent: pytest.Collector) -> GateModule | None:
    """The module at `path` if it is a gate's from outside."""
    resolved = path.resolve()
    for outside in _outside(profile):
        if outside.file == resolved:
            module: GateModule = GateModule.from_parent(parent, path=path)
            module.outside = outside
            return module
    return None


def _outside(profile: Profile) -> Iterator[OutsideGate]:
    for section in profile.gates.values():
        if section.outside is not None:
            yield section.outside


def keep_own(items: list[pytest.Item], profile: Profile, session: pytest.Session) -> list[pytest.Item]:
    """`items` as far as gates from outside may have them, and a NOT PROVEN for each gate that is left without a test.

    A test in the file of one gate that bears the marker of another speaks for neither; one without a marker is a test
    beside the gates; one that two paths lead to is run once.
    """
    kept: list[pytest.Item] = []
    seen: set[tuple[Path, str]] = set()
    foreign: dict[str, str] = {}
    for item in items:
        module = item.getparent(GateModule)
        if module is None:
            kept.append(item)
            continue
        own = module.outside.gate.name
        others = {marker.name for marker in item.iter_markers()} & {*profile.gates, *GATES} - {own}
        test = (module.outside.file, item.nodeid.partition("::")[2])
        if others:
            foreign.setdefault(own, f"{item.nodeid} is marked {', '.join(sorted(others))}: that is not its gate")
        elif test not in seen:
            kept.append(item)
        seen.add(test)
    # A single test named on the command line leaves the others of its file out on purpose.
    asked = (
        set() if any("::" in argument for argument in session.config.args) else session.config.stash.get(ASKED, set())
    )
    proven = {marker.name for item in kept for marker in item.iter_markers()}
    for outside in _outside(profile):
        gate = outside.gate.name
        reason = foreign.get(gate, "")
        if not reason and gate in asked - proven:
            reason = f"{outside.origin.where} has no test with the marker {gate!r}"
        if reason:
            # Its own node beside the module's: it must not disappear with it.
            stand_in: NoTest = NoTest.from_parent(
                session, name=gate, nodeid=f"{outside.origin.path}::{gate}", path=outside.file
            )
            stand_in.reason = reason
            stand_in.add_marker(gate)
            kept.append(stand_in)
    return kept
