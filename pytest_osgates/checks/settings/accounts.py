"""What is demanded of users and groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, StrictBool, StrictInt, model_validator

from pytest_osgates.checks.settings.demand import (
    MET,
    MOOT,
    NOT_ASKED,
    Demand,
    Entry,
    Lines,
    Looked,
    Miss,
    Path,
    Questions,
    missed,
    short,
    unproven,
)
from pytest_osgates.checks.settings.facts import AccountsFact, Group, SettingsObservation, User

CONTROL = "osgates-control"
NO_SHADOW = "/etc/shadow has no line for this user"
_NO_ID = -1
# What nobody has: a user or group of a control differs in everything from what was demanded.
_STRANGER = User(name=CONTROL, uid=_NO_ID, gid=_NO_ID, home=f"/{CONTROL}", shell=f"/{CONTROL}", password="set")  # noqa: S604, S106


def _account_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if re.search(r"[\s:,/*?]", name):
            raise ValueError(f"{name!r} is no name of a user or group")
    return names


Names = Annotated[Lines, AfterValidator(_account_names)]


def _accounts(
    look: Callable[[AccountsFact], Looked], spoil: Callable[[AccountsFact], AccountsFact]
) -> tuple[Callable[[SettingsObservation], Looked], Callable[[SettingsObservation], SettingsObservation]]:
    def asked(seen: SettingsObservation) -> Looked:
        fact = seen.accounts
        if fact is None or fact.problem:
            return unproven(NOT_ASKED if fact is None else fact.problem)
        if not fact.users or not fact.groups:
            return unproven(f"no {'user' if not fact.users else 'group'} was seen at all")
        return look(fact)

    def spoiled(seen: SettingsObservation) -> SettingsObservation:
        return seen.model_copy(update={"accounts": spoil(seen.accounts or AccountsFact())})

    return asked, spoiled


class UserEntry(Entry):
    """``[[gate.settings.user]]``. ``password``: ``locked``, ``set`` or ``none``. ``groups``: in each of them.
    ``superusers``: exactly these have the uid 0; needs no ``names``.
    """

    names: Names = ()
    present: StrictBool = False
    absent: StrictBool = False
    password: Literal["locked", "set", "none"] | None = None
    must_change: StrictBool | None = None
    uid: StrictInt | None = None
    shell: Path | None = None
    home: Path | None = None
    groups: Names = ()
    superusers: Names | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> UserEntry:
        own = ("password", "must_change", "uid", "shell", "home", "groups")
        others = [name for name in own if getattr(self, name) not in (None, ())]
        if self.names and not (others or self.absent or self.present):
            raise ValueError(f"it demands nothing of {self.names[0]}: give present, absent, {', '.join(own)}")
        if not self.names and (others or self.absent or self.present):
            raise ValueError("it demands something of nobody: give names")
        if not self.names and self.superusers is None:
            raise ValueError("it demands nothing: give names, or superusers")
        if self.absent and (others or self.present):
            raise ValueError(f"a user that is absent has no {(others or ['presence'])[0]}")
        if self.must_change and self.password in {"locked", "none"}:
            raise ValueError(f"a password that is {self.password} cannot be demanded to be changed")
        if self.uid is not None and len(self.names) > 1:
            raise ValueError("a uid is one user's")
        if self.superusers == ():
            raise ValueError("somebody has to have the uid 0")
        return self

    def ask(self, questions: Questions) -> None:
        questions.accounts = True

    def demands(self) -> Iterator[Demand]:
        for name in self.names:
            if self.absent:
                extra = _STRANGER.model_copy(update={"name": name})
                yield self._demand(name, "absent", "no such user", _no_user, (extra,), gone=True)
                continue
            yield self._demand(name, "present", "a user", _some_user, (), implied=not self.present)
            yield from self._attributes(name)
            for group in self.groups:
                yield self._member(name, group)
        if self.superusers is not None:
            yield self._superusers(self.superusers)

    def _attributes(self, name: str) -> Iterator[Demand]:
        if self.password is not None:
            yield self._password(name, self.password)
        for what in ("must_change", "uid", "shell", "home"):
            wanted = getattr(self, what)
            if wanted is None:
                continue
            other = {what: not wanted} if isinstance(wanted, bool) else {}
            broken = _STRANGER.model_copy(update={"name": name, **other})
            text = ("change at the next login" if wanted else "none") if what == "must_change" else str(wanted)
            yield self._demand(
                name, what.replace("_", "-"), text, partial(_equal, what=what, wanted=wanted), (broken,)
            )

    def _password(self, name: str, wanted: str) -> Demand:
        def judge(users: Sequence[User]) -> list[Miss]:
            if _unknown(users):
                return unproven(NO_SHADOW)
            other = sorted({user.password for user in users} - {wanted})
            return missed(f"password {', '.join(other)}") if other else MET

        opposite = "none" if wanted != "none" else "set"
        broken = _STRANGER.model_copy(update={"name": name, "password": opposite})
        return self._demand(name, "password", f"password {wanted}", judge, (broken,))

    def _member(self, name: str, group: str) -> Demand:
        def judge(fact: AccountsFact) -> Looked:
            if not any(user.name == name for user in fact.users):
                return MOOT
            if not any(entry.name == group for entry in fact.groups):
                return missed(f"there is no group {group}")
            return MET if name in members_of(fact, group) else missed("not a member")

        def spoil(fact: AccountsFact) -> AccountsFact:
            groups = [entry for entry in fact.groups if entry.name != group]
            kept = groups or [Group(name=CONTROL, gid=_NO_ID)]
            return fact.model_copy(update={"groups": tuple(kept)})

        look, spoiled = _accounts(judge, spoil)
        return Demand("user", f"{name} in {group}", f"a member of {group}", self.reason, look, spoiled, thing=name)

    def _superusers(self, wanted: tuple[str, ...]) -> Demand:
        def judge(fact: AccountsFact) -> list[Miss]:
            seen = sorted({user.name for user in fact.users if user.uid == 0})
            return MET if set(seen) == set(wanted) else missed(", ".join(seen) or "nobody")

        def spoil(fact: AccountsFact) -> AccountsFact:
            extra = _STRANGER.model_copy(update={"uid": 0})
            return fact.model_copy(update={"users": (*fact.users, extra)})

        look, spoiled = _accounts(judge, spoil)
        return Demand("user", "uid 0", ", ".join(wanted), self.reason, look, spoiled)

    def _demand(
        self,
        name: str,
        what: str,
        wanted: str,
        judge: Callable[[Sequence[User]], list[Miss]],
        planted: tuple[User, ...],
        *,
        gone: bool = False,
        implied: bool = False,
    ) -> Demand:
        def look(fact: AccountsFact) -> Looked:
            mine = [user for user in fact.users if user.name == name]
            return judge(mine) if mine or gone or what == "present" else MOOT

        def spoil(fact: AccountsFact) -> AccountsFact:
            users = [user for user in fact.users if user.name != name]
            return fact.model_copy(update={"users": (*users, *planted) or (_STRANGER,)})

        asked, spoiled = _accounts(look, spoil)
        return Demand(
            *("user", f"{name} {what}", wanted, self.reason, asked, spoiled), thing=name, gone=gone, implied=implied
        )


class GroupEntry(Entry):
    """``[[gate.settings.group]]``. ``members``: exactly these, also by their primary group; an empty list: none."""

    names: Names
    present: StrictBool = False
    absent: StrictBool = False
    gid: StrictInt | None = None
    members: Names | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> GroupEntry:
        others = self.gid is not None or self.members is not None
        if not self.names or not (others or self.absent or self.present):
            raise ValueError("it demands nothing: give names, and present, absent, gid or members")
        if self.absent and (others or self.present):
            raise ValueError("a group that is absent has neither gid nor members")
        if self.gid is not None and len(self.names) > 1:
            raise ValueError("a gid is one group's")
        return self

    def ask(self, questions: Questions) -> None:
        questions.accounts = True

    def demands(self) -> Iterator[Demand]:
        for name in self.names:
            stranger = Group(name=name, gid=_NO_ID, members=(CONTROL,))
            if self.absent:
                yield self._demand(name, "absent", "no such group", _no_group, (stranger,), gone=True)
                continue
            yield self._demand(name, "present", "a group", _some_group, (), implied=not self.present)
            if self.gid is not None:
                yield self._demand(name, "gid", str(self.gid), partial(_gid, wanted=self.gid), (stranger,))
            if self.members is not None:
                text = ", ".join(self.members) or "no members"
                judge = partial(_members, wanted=self.members)
                yield self._demand(name, "members", text, judge, (stranger,))

    def _demand(
        self,
        name: str,
        what: str,
        wanted: str,
        judge: Callable[[AccountsFact, str], list[Miss]],
        planted: tuple[Group, ...],
        *,
        gone: bool = False,
        implied: bool = False,
    ) -> Demand:
        def look(fact: AccountsFact) -> Looked:
            there = any(group.name == name for group in fact.groups)
            return judge(fact, name) if there or gone or what == "present" else MOOT

        def spoil(fact: AccountsFact) -> AccountsFact:
            groups = [group for group in fact.groups if group.name != name]
            kept = (*groups, *planted) or (Group(name=CONTROL, gid=_NO_ID),)
            return fact.model_copy(update={"groups": kept})

        asked, spoiled = _accounts(look, spoil)
        return Demand(
            *("group", f"{name} {what}", wanted, self.reason, asked, spoiled), thing=name, gone=gone, implied=implied
        )


def members_of(fact: AccountsFact, group: str, *, by_any_name: bool = False) -> set[str]:
    """Who is in a group: by /etc/group, and by the primary group of /etc/passwd. `by_any_name`: also who is in it by
    another group's line with its gid, which is all that the kernel knows.
    """
    entries = [entry for entry in fact.groups if entry.name == group]
    gids = {entry.gid for entry in entries}
    if by_any_name:
        entries = [entry for entry in fact.groups if entry.gid in gids]
    return {name for entry in entries for name in entry.members} | {u.name for u in fact.users if u.gid in gids}


def _unknown(users: Sequence[User]) -> bool:
    return any(user.password == "unknown" for user in users)  # noqa: S105  (what kind of one)


def _no_user(users: Sequence[User]) -> list[Miss]:
    return missed(", ".join(f"uid {user.uid}" for user in users)) if users else MET


def _some_user(users: Sequence[User]) -> list[Miss]:
    return MET if users else missed("no such user")


def _equal(users: Sequence[User], what: str, wanted: object) -> list[Miss]:
    if what == "must_change" and _unknown(users):
        return unproven(NO_SHADOW)
    other = sorted({str(getattr(user, what)) for user in users if getattr(user, what) != wanted})
    return missed(short(", ".join(other)) or "nothing") if other else MET


def _no_group(fact: AccountsFact, name: str) -> list[Miss]:
    gids = [str(group.gid) for group in fact.groups if group.name == name]
    return missed(f"gid {', '.join(gids)}") if gids else MET


def _some_group(fact: AccountsFact, name: str) -> list[Miss]:
    return MET if any(group.name == name for group in fact.groups) else missed("no such group")


def _gid(fact: AccountsFact, name: str, wanted: int) -> list[Miss]:
    other = sorted({str(group.gid) for group in fact.groups if group.name == name and group.gid != wanted})
    return missed(", ".join(other)) if other else MET


def _members(fact: AccountsFact, name: str, wanted: tuple[str, ...]) -> list[Miss]:
    seen = members_of(fact, name, by_any_name=True)
    return MET if seen == set(wanted) else missed(short(", ".join(sorted(seen))) or "no members")
