"""A lock: the exact packages of a build, by digest. From it the same bytes can be built again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from pytest_osgates.debian import LockedPackage, PrivateApt
from pytest_osgates.demo.definition import Definition, Strict
from pytest_osgates.demo.installer import load_installer
from pytest_osgates.vm.errors import UsageError


class Lock(Strict):
    """`packages` are installed; of `media` only files are taken. `tools`: the host's programs of that build."""

    version: Literal[1] = Field(alias="schema")
    name: str
    architecture: Literal["amd64"]
    suites: tuple[tuple[str, ...], ...]
    packages: tuple[LockedPackage, ...] = Field(min_length=1)
    media: tuple[LockedPackage, ...] = ()
    tools: dict[str, str] = Field(default_factory=dict)

    @property
    def everything(self) -> tuple[LockedPackage, ...]:
        return (*self.packages, *self.media)

    def render(self) -> str:
        """The lock as a file's text."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, sort_keys=True) + "\n"

    def write(self, path: Path) -> None:
        """Atomically: a reader sees the old file or the new one."""
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(self.render(), encoding="utf-8")
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def read_lock(path: Path) -> Lock:
    """:raise UsageError: it is not there, or not a lock."""
    try:
        return parse_lock(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"the lock {path} is not there") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error.what}", remedy="resolve a new lock") from None


def parse_lock(text: bytes) -> Lock:
    """:raise UsageError: not a lock of this version; packages named twice."""
    try:
        lock = Lock.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"not a lock: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}", remedy="resolve a new lock"
        ) from None
    _no_duplicates(lock.packages)
    _no_duplicates(lock.media)
    return lock


def _no_duplicates(packages: Sequence[LockedPackage]) -> None:
    names = [package.name for package in packages]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"a lock names packages twice: {', '.join(twice)}", remedy="resolve a new lock")


def media_names(definition: Definition) -> list[str]:
    """The packages of which only files are taken: for the medium, and for the installer on it."""
    return [*(entry.package for entry in definition.media), *load_installer().package_names]


def check_lock(lock: Lock, definition: Definition) -> None:
    """That `lock` was made for this definition.

    :raise UsageError: a package of the definition is not in it.
    """
    missing = set(definition.package_names) - {package.name for package in lock.packages}
    missing |= set(media_names(definition)) - {package.name for package in lock.media}
    if missing or lock.name != definition.name:
        lacking = f": it lacks {', '.join(sorted(missing))}" if missing else ""
        raise UsageError(f"the lock is not one of this definition{lacking}", remedy="resolve a new lock")


def resolve_lock(definition: Definition, apt: PrivateApt | None = None) -> Lock:
    """A lock with what the mirror has now.

    :raise HostError: no network, or packages that are not there.
    """
    source = apt or apt_for(definition)
    source.update()
    return Lock(
        schema=1,
        name=definition.name,
        architecture=definition.architecture,
        suites=tuple((str(suite.archive), suite.name, *suite.components) for suite in source.suites),
        packages=tuple(source.resolve(definition.package_names)),
        media=tuple(source.locate(media_names(definition))),
    )


def apt_for(definition: Definition) -> PrivateApt:
    """The private apt with the definition's suites."""
    return PrivateApt([entry.suite() for entry in definition.suites], architecture=definition.architecture)
