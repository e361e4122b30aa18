"""data/netlibs.toml and data/netscripts.toml, made ready for use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import cache

from pytest_osgates import data


def fitting(patterns: Iterable[str]) -> re.Pattern[str]:
    """A pattern that a name fits if it fits one of `patterns` (fnmatch(3)); none, if there is none."""
    return re.compile("|".join(f"(?:{translate(pattern)})" for pattern in patterns) or r"(?!)")


@dataclass(frozen=True)
class Runtime:
    """What a language's runtime leaves in a static program."""

    name: str
    mark: bytes
    network: tuple[bytes, ...]
    names: tuple[bytes, ...]


@dataclass(frozen=True)
class Libraries:
    """Sonames by what linking them means; symbols that are the socket API."""

    imports: frozenset[bytes]
    internet: frozenset[bytes]
    listeners: frozenset[bytes]
    providers: re.Pattern[str]
    carriers: re.Pattern[str]
    network: tuple[tuple[re.Pattern[str], str], ...]
    runtimes: tuple[Runtime, ...]

    def what(self, soname: str) -> str:
        """What a listed network library is; empty for any other."""
        return next((what for pattern, what in self.network if pattern.match(soname)), "")


@cache
def libraries() -> Libraries:
    """data/netlibs.toml."""
    rows = data.load("netlibs")
    return Libraries(
        imports=frozenset(name.encode() for row in rows["import"] for name in row["names"]),
        internet=frozenset(name.encode() for row in rows["internet"] for name in row["names"]),
        listeners=frozenset(name.encode() for row in rows["listener"] for name in row["names"]),
        providers=fitting(row["soname"] for row in rows["provider"]),
        carriers=fitting(name for row in rows["carrier"] for name in row["names"]),
        network=tuple((fitting(row["names"]), row["what"]) for row in rows["library"]),
        runtimes=tuple(
            Runtime(
                row["name"],
                bytes.fromhex(row["mark"]),
                tuple(name.encode() for name in row["network"]),
                tuple(name.encode() for name in row["names"]),
            )
            for row in rows["runtime"]
        ),
    )
