"""What is demanded of systemd's units."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated

from pydantic import AfterValidator, StrictBool, model_validator

from pytest_osgates.checks.settings.demand import (
    MET,
    MOOT,
    NOT_ASKED,
    Demand,
    Entry,
    Lines,
    Looked,
    Miss,
    Questions,
    missed,
    short,
    unproven,
)
from pytest_osgates.checks.settings.facts import SettingsObservation, UnitFact

# systemd.unit(5), "UNIT NAMES"
_UNIT = re.compile(
    r"[A-Za-z0-9:_.\\@-]{1,240}\.(?:service|socket|device|mount|automount|swap|target|path|timer|slice|scope)"
)


def is_template(name: str) -> bool:
    """Whether a unit is one that instances are made from."""
    return name.rpartition(".")[0].endswith("@")


def _unit_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _UNIT.fullmatch(name):
            raise ValueError(f"{name!r} is no unit: write it with its type, like ssh.service")
    return names


Units = Annotated[Lines, AfterValidator(_unit_names)]


class UnitEntry(Entry):
    """``[[gate.settings.unit]]``: ``enabled``, ``masked``, ``active``, ``wanted_by`` (exactly these units; an empty
    list: none), ``absent``, ``present``.
    """

    names: Units
    present: StrictBool = False
    absent: StrictBool = False
    enabled: StrictBool | None = None
    masked: StrictBool | None = None
    active: StrictBool | None = None
    wanted_by: Units | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("wanted_by"), str):
            return {**data, "wanted_by": (data["wanted_by"],)}
        return data

    @model_validator(mode="after")
    def _makes_sense(self) -> UnitEntry:
        others = [name for name in ("enabled", "masked", "active", "wanted_by") if getattr(self, name) is not None]
        if not self.names or not (others or self.absent or self.present):
            raise ValueError("it demands nothing: give names, and enabled, masked, active, wanted_by or absent")
        if self.absent and (others or self.present):
            raise ValueError(f"a unit that is absent cannot be {(others or ['present'])[0]}")
        if self.masked and (self.enabled or self.active):
            raise ValueError(f"a unit that is masked cannot be {'enabled' if self.enabled else 'active'}")
        if any(is_template(name) for name in self.names) and {"active", "wanted_by"} & set(others):
            raise ValueError("a template is neither active nor wanted by anything: name an instance")
        return self

    def ask(self, questions: Questions) -> None:
        questions.units.update(dict.fromkeys(self.names))

    def demands(self) -> Iterator[Demand]:
        for name in self.names:
            if self.absent:
                yield self._demand(name, "absent", "no such unit", _is_absent, UnitFact(load="loaded"), gone=True)
                continue
            there = UnitFact(load="not-found")
            judge = _is_well if self.present else _is_there
            yield self._demand(name, "present", "a unit of that name", judge, there, implied=not self.present)
            if self.enabled is not None:
                yield self._enabled(name, self.enabled)
            if self.masked is not None:
                wanted = "masked, for good" if self.masked else "not masked"
                yield self._attribute(name, "masked", wanted, partial(_masked, wanted=self.masked))
            if self.active is not None:
                yield self._attribute(
                    name,
                    "active",
                    "active" if self.active else "inactive",
                    partial(_active, wanted=self.active),
                )
            if self.wanted_by is not None:
                yield self._wanted_by(name, self.wanted_by)

    def _enabled(self, name: str, wanted: bool) -> Demand:
        text = "enabled" if wanted else "disabled or masked"
        return self._attribute(name, "enabled", text, lambda fact: _enabled(fact, wanted=wanted))

    def _wanted_by(self, name: str, wanted: tuple[str, ...]) -> Demand:
        def judge(fact: UnitFact) -> list[Miss]:
            seen = {*fact.wanted_by, *fact.links}
            if seen != set(wanted):
                return missed(f"wanted by {', '.join(sorted(seen)) or 'nothing'}")
            if fact.id not in {"", name}:
                # Links in *.wants were looked for under the one name alone.
                return unproven(f"it is another name of {short(fact.id)}: demand it of that one")
            return MET

        return self._attribute(name, "wanted-by", f"wanted by {', '.join(wanted) or 'nothing'}", judge)

    def _attribute(self, name: str, what: str, wanted: str, judge: Callable[[UnitFact], list[Miss]]) -> Demand:
        # No unit is like this one: whatever was demanded of it is not so.
        broken = UnitFact(
            load="loaded", active="failed", file_state="transient", wanted_by=("osgates-control.target",)
        )

        def unless_absent(fact: UnitFact) -> Looked:
            return MOOT if _is_there(fact) else judge(fact)

        if what == "masked" and wanted == "not masked":
            broken = UnitFact(load="masked", file_state="masked")
        return self._demand(name, what, wanted, unless_absent, broken)

    def _demand(
        self,
        name: str,
        what: str,
        wanted: str,
        judge: Callable[[UnitFact], Looked],
        broken: UnitFact,
        *,
        gone: bool = False,
        implied: bool = False,
    ) -> Demand:
        def look(seen: SettingsObservation) -> Looked:
            fact = seen.units.get(name)
            if fact is None or fact.problem:
                return unproven(NOT_ASKED if fact is None else fact.problem)
            if not fact.load:
                return unproven("systemd says nothing of it")
            return judge(fact)

        def spoil(seen: SettingsObservation) -> SettingsObservation:
            return seen.model_copy(update={"units": {**seen.units, name: broken}})

        return Demand(
            "unit", f"{name} {what}", wanted, self.reason, look, spoil, thing=name, gone=gone, implied=implied
        )


def _is_absent(fact: UnitFact) -> list[Miss]:
    if fact.load == "not-found" and not fact.file_state:
        return MET
    return missed(f"{short(fact.load)}{_file(fact)}")


def _is_there(fact: UnitFact) -> list[Miss]:
    if fact.load != "not-found":
        return MET
    return missed("no such unit", "it was renamed, or its package is not installed")


def _is_well(fact: UnitFact) -> list[Miss]:
    """There, and systemd can load it (org.freedesktop.systemd1(5), LoadState)."""
    if fact.load in {"error", "bad-setting"}:
        return missed(f"{fact.load}{_file(fact)}", "systemd cannot load it: see systemctl status")
    return _is_there(fact)


def _enabled(fact: UnitFact, *, wanted: bool) -> list[Miss]:
    state = fact.file_state
    if not state:
        return unproven("systemd does not say whether it is enabled")
    if wanted:
        if state == "enabled" and fact.load == "loaded":
            return MET
        hint = "it has no [Install] section: demand wanted_by or active" if state in {"static", "generated"} else ""
        return missed(state if fact.load in {"loaded", "masked"} else f"{state}, but {short(fact.load)}", hint)
    if state in {"disabled", "masked"}:
        return MET
    hint = "it cannot be enabled or disabled, but others may start it: demand masked" if state == "static" else ""
    return missed(state + _file(fact), hint)


def _masked(fact: UnitFact, *, wanted: bool) -> list[Miss]:
    if wanted:
        if fact.load == "masked" and fact.file_state == "masked":
            return MET
        hint = "masked only until the next start" if fact.file_state == "masked-runtime" else "systemctl mask"
        return missed(f"{short(fact.load)}, {fact.file_state or 'no state'}{_file(fact)}", hint)
    if fact.load == "masked" or fact.file_state in {"masked", "masked-runtime"}:
        return missed(f"masked{_file(fact)}")
    return MET


def _active(fact: UnitFact, *, wanted: bool) -> list[Miss]:
    if not fact.active:
        return unproven("systemd does not say whether it is active")
    return MET if fact.active == ("active" if wanted else "inactive") else missed(fact.active)


def _file(fact: UnitFact) -> str:
    return f" ({short(fact.fragment)})" if fact.fragment else ""
