"""What is demanded of packages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, StrictBool, model_validator

from pytest_osgates.checks.settings.demand import (
    MET,
    MOOT,
    NOT_ASKED,
    Demand,
    Entry,
    Line,
    Lines,
    Looked,
    Miss,
    Questions,
    like,
    missed,
    short,
    unproven,
)
from pytest_osgates.checks.settings.facts import Package, PackagesFact, SettingsObservation
from pytest_osgates.checks.settings.versions import compare_deb, compare_rpm, epoch_of

Manager = Literal["dpkg", "rpm", "flatpak"]
MANAGERS: tuple[Manager, ...] = ("dpkg", "rpm", "flatpak")
_NAME = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9.+_*?-]{0,200}")
# dpkg-query(1): what was removed with its configuration files left is known, but not there.
_NOT_THERE = {"not-installed", "config-files"}
_EPOCH = re.compile(r"[0-9]+:")
Found = list[tuple[str, Package]]


def is_installed(package: Package) -> bool:
    """Whether a package is wholly there; a status is dpkg's, as in ``install ok installed``."""
    return package.status in {"", "install ok installed", "hold ok installed"}


def is_there(package: Package) -> bool:
    """Whether anything of its files may be there."""
    return not package.status or package.status.split()[-1] not in _NOT_THERE


def _package_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a package")
        if not name.strip("*?"):
            raise ValueError(f"{name!r} is every package")
    return names


class PackageEntry(Entry):
    """``[[gate.settings.package]]``: names with ``*`` and ``?``; ``version``: likewise; ``at_least``: by the rules of
    the package manager; without ``manager``, any that the guest has.
    """

    names: Annotated[Lines, AfterValidator(_package_names)]
    manager: Manager | None = None
    present: StrictBool = False
    absent: StrictBool = False
    version: Line | None = None
    at_least: Line | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> PackageEntry:
        others = self.version is not None or self.at_least is not None
        if not self.names or not (others or self.absent or self.present):
            raise ValueError("it demands nothing: give names, and present, absent, version or at_least")
        if self.absent and (others or self.present):
            raise ValueError("a package that is absent has no version")
        if self.at_least is not None and self.manager == "flatpak":
            raise ValueError("versions of Flatpak's have no order: use version")
        if self.version is not None and not self.version.strip("*"):
            raise ValueError("version allows every version")
        return self

    def ask(self, questions: Questions) -> None:
        questions.packages = True

    def demands(self) -> Iterator[Demand]:
        for name in self.names:
            if self.absent:
                yield self._demand(name, "absent", "not installed", _absent, Package(name=_sample(name)), gone=True)
                continue
            yield self._demand(name, "present", "installed", _present, None, implied=not self.present)
            if self.version is not None:
                odd = Package(name=_sample(name), version="~osgates~control")
                judge = partial(_version, pattern=self.version)
                yield self._demand(name, "version", self.version, judge, odd)
            if self.at_least is not None:
                old = Package(name=_sample(name), version="0~~osgates")
                judge = partial(_newer, least=self.at_least)
                yield self._demand(name, "at-least", f"{self.at_least} or newer", judge, old)

    def _demand(
        self,
        name: str,
        what: str,
        wanted: str,
        judge: Callable[[Found], list[Miss]],
        planted: Package | None,
        *,
        gone: bool = False,
        implied: bool = False,
    ) -> Demand:
        where = f" ({self.manager})" if self.manager else ""

        def look(seen: SettingsObservation) -> Looked:
            if seen.packages is None:
                return unproven(NOT_ASKED)
            problem = self._unknown(seen.packages, gone=gone)
            if problem:
                return unproven(problem)
            found = [
                (manager, package)
                for manager, fact in seen.packages.items()
                if self.manager in {None, manager}
                for package in fact.packages
                if like(package.name, name)
            ]
            if what in {"present", "absent"}:
                return judge(found)
            installed = [entry for entry in found if is_installed(entry[1])]
            return judge(installed) if installed else MOOT

        def spoil(seen: SettingsObservation) -> SettingsObservation:
            packages = dict(seen.packages or {})
            for manager, fact in packages.items():
                kept = tuple(package for package in fact.packages if not like(package.name, name))
                # Another stays: a manager that lists nothing at all is not believed.
                packages[manager] = fact.model_copy(update={"packages": kept or (Package(name="osgates-control"),)})
            if planted is not None:
                manager = self.manager or next((m for m, fact in packages.items() if fact.there), "dpkg")
                others = packages.get(manager, PackagesFact()).packages
                packages[manager] = PackagesFact(packages=(*others, planted))
            return seen.model_copy(update={"packages": packages})

        return Demand(
            *("package", f"{name}{where} {what}", wanted, self.reason, look, spoil),
            thing=f"{name}{where}",
            gone=gone,
            implied=implied,
        )

    def _unknown(self, packages: dict[str, PackagesFact], *, gone: bool) -> str:
        """Why nothing is known; empty where it is."""
        managers = [self.manager] if self.manager else [m for m in MANAGERS if packages.get(m, _NONE).there]
        if not managers:
            return "the guest has neither dpkg nor rpm nor flatpak"
        for manager in managers:
            fact = packages.get(manager)
            if fact is None:
                return f"{manager} {NOT_ASKED.removeprefix('it ')}"
            if fact.problem:
                return f"{manager}: {fact.problem}"
            if not fact.there and gone:
                return f"the guest has no {manager} to ask"
        # A system of packages has some; Flatpaks beside them say nothing of theirs.
        native = [manager for manager in managers if manager != "flatpak" and packages[manager].there]
        if native and not any(packages[manager].packages for manager in native):
            return f"{' and '.join(native)} list no package at all"
        return ""


_NONE = PackagesFact(there=False)


def _sample(pattern: str) -> str:
    return pattern.replace("*", "x").replace("?", "x")


def _names(found: Found) -> str:
    return short(", ".join(" ".join(filter(None, (p.name, p.version, p.status))) for _, p in found))


def _absent(found: Found) -> list[Miss]:
    there = [entry for entry in found if is_there(entry[1])]
    return missed(_names(there)) if there else MET


def _present(found: Found) -> list[Miss]:
    return MET if any(is_installed(package) for _, package in found) else missed(_names(found) or "not installed")


def _version(found: Found, pattern: str) -> list[Miss]:
    other = [(manager, package) for manager, package in found if not like(package.version, pattern)]
    return missed(_names(other)) if other else MET


def _newer(found: Found, least: str) -> list[Miss]:
    unordered = [package.name for manager, package in found if manager == "flatpak"]
    if unordered:
        return unproven(f"{short(', '.join(unordered))}: versions of Flatpak's have no order")
    compare = {"dpkg": compare_deb, "rpm": compare_rpm}
    old = [(manager, package) for manager, package in found if compare[manager](package.version, least) < 0]
    if old:
        return missed(_names(old))
    ahead = [entry for entry in found if epoch_of(entry[1].version) > epoch_of(least)]
    if ahead and not _EPOCH.match(least):
        # Any version with an epoch is newer than all without: most likely it was forgotten, not meant.
        return unproven(
            f"{_names(ahead)}: newer by its epoch alone; write at_least with an epoch, like 1:{short(least)}"
        )
    return MET
