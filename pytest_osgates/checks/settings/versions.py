"""Which of two package versions is the newer one, by the rules of dpkg and of rpm.

Both are small and fixed; the libraries that have them bring a dozen other ecosystems or a compiled module along.
"""

from __future__ import annotations

import re
from itertools import zip_longest

_DEB_PARTS = re.compile(r"(\D*)(\d*)", re.ASCII)
_RPM_NOISE = re.compile(r"^[^A-Za-z0-9~^]+")
_RPM_DIGITS = re.compile(r"^[0-9]+")
_RPM_LETTERS = re.compile(r"^[A-Za-z]+")


def compare_deb(one: str, other: str) -> int:
    """Negative, 0 or positive, as `one` is older than, as old as, or newer than `other` (deb-version(7))."""
    left, right = _deb_split(one), _deb_split(other)
    if left[0] != right[0]:
        return -1 if left[0] < right[0] else 1
    return _deb_part(left[1], right[1]) or _deb_part(left[2], right[2])


def _deb_split(version: str) -> tuple[int, str, str]:
    """Epoch (0 where none is given), upstream version, revision."""
    epoch, colon, rest = version.partition(":")
    if not (colon and epoch.isascii() and epoch.isdecimal()):
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch[:18]), upstream, revision


def _deb_part(one: str, other: str) -> int:
    """Non-digits and digits take turns; ``~`` sorts before all, even the end, and letters before the rest."""
    for (letters, digits), (letters2, digits2) in zip_longest(
        _DEB_PARTS.findall(one), _DEB_PARTS.findall(other), fillvalue=("", "")
    ):
        for char, char2 in zip_longest(letters, letters2, fillvalue=""):
            order = _deb_order(char) - _deb_order(char2)
            if order:
                return order
        difference = _number(digits, digits2)
        if difference:
            return difference
    return 0


def epoch_of(version: str) -> int:
    """The number before the colon, 0 where none is given; the same for both."""
    return _deb_split(version)[0]


def _deb_order(char: str) -> int:
    if char == "~":
        return -1
    if not char:
        return 0
    return ord(char) if char.isascii() and char.isalpha() else ord(char) + 256


def _number(one: str, other: str) -> int:
    """Two runs of digits, of any length, by value; an empty one is 0."""
    one, other = one.lstrip("0"), other.lstrip("0")
    left, right = (len(one), one), (len(other), other)
    return (left > right) - (left < right)


def compare_rpm(one: str, other: str) -> int:
    """The same for rpm's ``[EPOCH:]VERSION[-RELEASE]``; where one of the two has no release, releases do not count
    (rpm-dependencies(7), "versions").
    """
    left, right = _rpm_split(one), _rpm_split(other)
    if left[0] != right[0]:
        return -1 if left[0] < right[0] else 1
    difference = rpmvercmp(left[1], right[1])
    if difference or not (left[2] and right[2]):
        return difference
    return rpmvercmp(left[2], right[2])


def _rpm_split(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.partition(":")
    if not (colon and epoch.isascii() and epoch.isdecimal()):
        epoch, rest = "0", version
    number, _, release = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch[:18]), number, release


def rpmvercmp(one: str, other: str) -> int:
    """One part of a version (rpm-version(7)): runs of digits and runs of letters, separators do not count; ``~`` is
    older than the end, ``^`` is newer than the end and older than anything else; digits are newer than letters.
    """
    while one or other:
        one, other = _RPM_NOISE.sub("", one), _RPM_NOISE.sub("", other)
        if one.startswith("~") or other.startswith("~"):
            if not (one.startswith("~") and other.startswith("~")):
                return -1 if one.startswith("~") else 1
            one, other = one[1:], other[1:]
            continue
        if one.startswith("^") or other.startswith("^"):
            if not one or not other:
                return 1 if one else -1
            if not (one.startswith("^") and other.startswith("^")):
                return -1 if one.startswith("^") else 1
            one, other = one[1:], other[1:]
            continue
        if not (one and other):
            break
        digits = _RPM_DIGITS.match(one)
        kind = _RPM_DIGITS if digits else _RPM_LETTERS
        part, part2 = kind.match(one), kind.match(other)
        if part is None or part2 is None:
            return 1 if digits else -1
        difference = _number(part[0], part2[0]) if digits else (part[0] > part2[0]) - (part[0] < part2[0])
        if difference:
            return difference
        one, other = one[part.end() :], other[part2.end() :]
    return bool(one) - bool(other)
