"""Whether a partition that may be read without a passphrase holds a system, or files of its users."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import cache

from pytest_osgates import data
from pytest_osgates.checks.luks_model import TYPES, PartitionSeen
from pytest_osgates.model import Finding

# By these types a profile says that there is a system on it, for instance one that dm-verity protects.
_ROOTS = frozenset({TYPES["root-x86-64"], TYPES["usr-x86-64"]})
_SHOWN = 5


@cache
def _signs() -> tuple[tuple[re.Pattern[str], bool], ...]:
    return tuple(
        (re.compile(translate(entry["pattern"])), entry.get("root", False))
        for entry in data.load("system_files")["sign"]
    )


def signs_of_system(kind: str, paths: Iterable[str]) -> tuple[str, ...]:
    """Of `paths`, in a partition of the type `kind`, the first for each sign that it holds more than what boots."""
    wanted = [pattern for pattern, root in _signs() if not (root and kind in _ROOTS)]
    found: dict[str, None] = {}
    for path in paths:
        low = path.lower()
        fits = [pattern for pattern in wanted if pattern.match(low)]
        if fits:
            found[path] = None
            wanted = [pattern for pattern in wanted if pattern not in fits]
    return tuple(found)


def judge_system(partition: PartitionSeen) -> list[Finding]:
    """Of a partition that the profile accepts."""
    looked = () if partition.boot is None else (file.path for file in partition.boot.files if not file.container)
    found = signs_of_system(partition.type, (*looked, *partition.system))
    if not found:
        return []
    return [
        Finding(
            rule="plain-system",
            subject=partition.subject,
            seen="accepted as what boots, and holds a root file system, or files of users: "
            + ", ".join(found[:_SHOWN]),
            wanted="nothing but what boots: kernels, initrds, a boot loader",
            hint="the system belongs into the encrypted volume; an acceptance does not change that",
        )
    ]
