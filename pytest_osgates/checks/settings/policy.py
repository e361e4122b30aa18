"""``[gate.settings]`` of a distro profile: all entries, and that they do not contradict each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

from pydantic import model_validator

from pytest_osgates.checks.settings.accounts import GroupEntry, UserEntry
from pytest_osgates.checks.settings.demand import Demand, Entry, Questions, like
from pytest_osgates.checks.settings.files import FileEntry
from pytest_osgates.checks.settings.kernel import LockdownEntry, ParameterEntry, SelinuxEntry, SysctlEntry
from pytest_osgates.checks.settings.libraries import LibraryEntry
from pytest_osgates.checks.settings.mounts import MountEntry
from pytest_osgates.checks.settings.packages import PackageEntry
from pytest_osgates.checks.settings.units import UnitEntry
from pytest_osgates.model import Contradiction, Policy, State


class SettingsPolicy(Policy):
    """The entries of each kind."""

    sysctl: tuple[SysctlEntry, ...] = ()
    parameter: tuple[ParameterEntry, ...] = ()
    unit: tuple[UnitEntry, ...] = ()
    file: tuple[FileEntry, ...] = ()
    mount: tuple[MountEntry, ...] = ()
    user: tuple[UserEntry, ...] = ()
    group: tuple[GroupEntry, ...] = ()
    package: tuple[PackageEntry, ...] = ()
    library: tuple[LibraryEntry, ...] = ()
    selinux: tuple[SelinuxEntry, ...] = ()
    lockdown: tuple[LockdownEntry, ...] = ()

    @model_validator(mode="after")
    def _no_contradiction(self) -> SettingsPolicy:
        for state in self.states():
            demands = self.demands(state)
            for what, pair in (*_said_again(demands), *_gone_and_there(demands)):
                raise Contradiction(f"{state}: {what}", self._entries_of(pair, state))
        return self

    def _entries_of(self, pair: tuple[Demand, Demand], state: State) -> Iterator[tuple[str, int]]:
        """Where the entries stand that make these demands."""
        keys = {(demand.rule, demand.subject, demand.wanted) for demand in pair}
        for kind in type(self).model_fields:
            for number, entry in enumerate(getattr(self, kind)):
                made = {(demand.rule, demand.subject, demand.wanted) for demand in entry.demands()}
                if entry.state == state and keys & made:
                    yield kind, number

    def entries(self) -> Iterator[Entry]:
        """All of them, by kind."""
        for kind in type(self).model_fields:
            yield from getattr(self, kind)

    def states(self) -> tuple[State, ...]:
        """The states that entries name, `live` first."""
        named = {entry.state for entry in self.entries()}
        return tuple(state for state in (State.LIVE, State.INSTALLED) if str(state) in named)

    def demands(self, state: State) -> tuple[Demand, ...]:
        """What is demanded of one state; what follows from several entries, once."""
        return self._by_state.get(state, ())

    @cached_property
    def _by_state(self) -> dict[State, tuple[Demand, ...]]:
        """Made once: each control judges everything anew."""
        return {state: self._made(state) for state in self.states()}

    def _made(self, state: State) -> tuple[Demand, ...]:
        found: dict[tuple[str, str], Demand] = {}
        twice: list[Demand] = []
        for entry in self.entries():
            if entry.state != state:
                continue
            for demand in entry.demands():
                key = (demand.rule, demand.subject)
                before = found.get(key)
                if before is None or (before.implied and not demand.implied):
                    found[key] = demand
                elif not demand.implied:
                    twice.append(demand)
        return (*found.values(), *twice)

    def questions(self, state: State) -> Questions:
        """What has to be asked of one state."""
        questions = Questions()
        for entry in self.entries():
            if entry.state == state:
                entry.ask(questions)
        return questions


def _said_again(demands: Iterable[Demand]) -> Iterator[tuple[str, tuple[Demand, Demand]]]:
    said: dict[tuple[str, str], Demand] = {}
    for demand in demands:
        before = said.setdefault((demand.rule, demand.subject), demand)
        if before is not demand:
            how = "twice" if before.wanted == demand.wanted else f"as {before.wanted} and as {demand.wanted}"
            yield f"{demand.rule} {demand.subject} is demanded {how}", (before, demand)


def _gone_and_there(demands: Iterable[Demand]) -> Iterator[tuple[str, tuple[Demand, Demand]]]:
    demands = [demand for demand in demands if demand.thing]
    for gone in demands:
        if not gone.gone:
            continue
        for other in demands:
            same = other.thing == gone.thing or (gone.rule == "package" and like(other.thing, gone.thing))
            if other.rule == gone.rule and not other.gone and same:
                what = f"{gone.rule} {gone.thing} is demanded absent, and {other.subject} as {other.wanted}"
                yield what, (gone, other)
