"""Why two images differ: fingerprints from `data/causes.toml`, applied to differences. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache, lru_cache

from pydantic import TypeAdapter

from pytest_osgates import data
from pytest_osgates.checks.divergence import Difference, Group
from pytest_osgates.model import Model

EXAMPLES = 8
FOLLOWS = "follows"
UNKNOWN = "unknown"
UNEXPLAINED = "unexplained"
_RANKS = {UNEXPLAINED: 0, UNKNOWN: 65, FOLLOWS: 99}


class Match(Model):
    """A fingerprint; whatever it has must fit. Lists are patterns with * and ?, of which one must fit."""

    layer: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    what: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    locus: tuple[str, ...] = ()
    values: str = ""
    either: str = ""
    shifted: bool = False


class Cause(Model):
    """A cause, as it stands in the file."""

    id: str
    rank: int
    title: str
    why: str
    fix: str
    cost: str = ""
    source: str
    match: tuple[Match, ...]


@cache
def causes() -> tuple[Cause, ...]:
    """All causes, in the order in which they are tried."""
    return TypeAdapter(tuple[Cause, ...]).validate_python(data.load("causes")["cause"])


@lru_cache(maxsize=4096)
def _patterns(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(translate(pattern) for pattern in patterns))


@lru_cache(maxsize=256)
def _regex(text: str) -> re.Pattern[str]:
    return re.compile(text)


_TREES = {"squashfs", "cpio", "FAT"}
_ATTRIBUTES = {"mtime", "mode", "owner", "group", "hard link", "inode", "access date", "device"}


@dataclass(frozen=True)
class _Compiled:
    cause: Cause
    match: Match


@cache
def _compiled() -> tuple[_Compiled, ...]:
    return tuple(_Compiled(cause, match) for cause in causes() for match in cause.match)


def cause_of(difference: Difference) -> str:
    """The id of the cause of one difference; `follows`, `unexplained`, or empty."""
    if difference.layer == UNEXPLAINED:
        return UNEXPLAINED
    if difference.follows:
        return FOLLOWS
    if difference.layer in _TREES and _is_attribute(difference.what):
        return _of_attribute(difference.layer, difference.what, difference.kind, bool(difference.delta))
    return _first(difference)


def _is_attribute(what: str) -> bool:
    """Whether a difference is about a file's attributes: then neither its name nor its contents are why."""
    return what in _ATTRIBUTES or what.startswith("xattr ")


@lru_cache(maxsize=4096)
def _of_attribute(layer: str, what: str, kind: str, shifted: bool) -> str:
    """There may be one for each of a hundred thousand files, and they have one cause."""
    return _first(Difference(layer=layer, path="", what=what, kind=kind, delta=1 if shifted else None))


def _first(difference: Difference) -> str:
    return next((entry.cause.id for entry in _compiled() if _fits(entry.match, difference)), "")


def _fits(match: Match, difference: Difference) -> bool:
    for patterns, value in (
        (match.layer, difference.layer),
        (match.what, difference.what),
        (match.kind, difference.kind),
        (match.path, difference.path),
        (match.container, difference.container),
    ):
        if patterns and not _patterns(patterns).match(value):
            return False
    if match.shifted and not difference.delta:
        return False
    spots = difference.spots
    if match.locus:
        locus = _patterns(match.locus)
        # What is in a compressed file has its own place in front.
        spots = tuple(spot for spot in spots if locus.match(spot.locus) or locus.match(spot.locus.partition(": ")[2]))
        if not spots:
            return False
    if match.values or match.either:
        pairs = [(spot.a, spot.b) for spot in spots] or [(difference.a, difference.b)]
        if match.values and not any(_changed(_regex(match.values), a, b) for a, b in pairs):
            return False
        if match.either and not any(_changed(_regex(match.either), a, b, both=False) for a, b in pairs):
            return False
    return True


def _changed(regex: re.Pattern[str], a: str, b: str, *, both: bool = True) -> bool:
    """Whether what fits differs: a date that both lines have, and share, is not why they differ."""
    x, y = [m[0] for m in regex.finditer(a)], [m[0] for m in regex.finditer(b)]
    return x != y and (bool(x and y) if both else bool(x or y))


def attribute(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    """The differences with their causes. A size has the cause of the contents that it is the size of.

    Where everything only follows, nothing is there to follow from: then each of them stands for itself.
    """
    differences = list(differences)
    if differences and all(difference.follows for difference in differences):
        differences = [difference.model_copy(update={"follows": False}) for difference in differences]
    found = [difference.model_copy(update={"cause": cause_of(difference)}) for difference in differences]
    contents = {(d.container, d.path): d.cause for d in found if d.what == "content"}
    containers = {d.container for d in found if d.container}
    for index, difference in enumerate(found):
        if difference.what != "size" or difference.follows:
            continue
        key = (difference.container, difference.path)
        inner = difference.path if not difference.container else f"{difference.container}!{difference.path}"
        if key in contents:
            found[index] = difference.model_copy(update={"cause": contents[key], "follows": not contents[key]})
        elif inner in containers or any(name.startswith(f"{inner}!") for name in containers):
            found[index] = difference.model_copy(update={"cause": FOLLOWS, "follows": True})
    return tuple(found)


def group(differences: Sequence[Difference]) -> tuple[Group, ...]:
    """The differences by cause, what is to be mended first at the beginning."""
    known = {cause.id: cause for cause in causes()}
    members: dict[str, list[Difference]] = {}
    for difference in differences:
        members.setdefault(difference.cause or UNKNOWN, []).append(difference)
    groups = []
    for key, found in members.items():
        made = Group(
            cause=key,
            title=_TITLES.get(key, ""),
            fix=_FIXES.get(key, ""),
            rank=_RANKS.get(key, 0),
            count=len(found),
            paths=len({(d.container, d.path) for d in found}),
            summary=summary(found),
            examples=tuple(found[:EXAMPLES]),
        )
        cause = known.get(key)
        if cause is not None:
            made = made.model_copy(update=cause.model_dump(exclude={"match", "id"}))
        groups.append(made)
    return tuple(sorted(groups, key=lambda entry: (entry.rank, -entry.count, entry.cause)))


_TITLES = {
    UNKNOWN: "no cause is known",
    FOLLOWS: "follows from what is above",
    UNEXPLAINED: "bytes of no known structure",
}
_FIXES = {
    UNKNOWN: "see what differs; `what` and the places inside name it",
    FOLLOWS: "nothing: mend what is above, and build again",
    UNEXPLAINED: "a defect of this program, or an image that hides something: look at these bytes",
}


def summary(differences: Sequence[Difference]) -> str:
    """A group in one line: `650 nodes, mtime only, all +16 min 04 s`."""
    paths = Counter((d.container, d.path) for d in differences)
    whats = Counter(d.what for d in differences)
    names = ", ".join(what for what, _ in whats.most_common(4)) + (", ..." if len(whats) > 4 else "")
    text = f"{len(paths)} node{'s' if len(paths) != 1 else ''}, {names}"
    if len(whats) == 1:
        text += " only"
    deltas = sorted({d.delta for d in differences if d.delta is not None})
    if deltas and all(d.delta is not None for d in differences):
        text += (
            f", all {shown_delta(deltas[0])}"
            if len(deltas) == 1
            else (f", {shown_delta(deltas[0])} to {shown_delta(deltas[-1])}")
        )
    return text


def shown_delta(seconds: int) -> str:
    """A span of time with its sign: `+16 min 04 s`, `-3 d 01 h`."""
    sign, left = ("-" if seconds < 0 else "+"), abs(seconds)
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    if days:
        return f"{sign}{days} d {hours:02} h"
    if hours:
        return f"{sign}{hours} h {minutes:02} min"
    return f"{sign}{minutes} min {left:02} s" if minutes else f"{sign}{left} s"
