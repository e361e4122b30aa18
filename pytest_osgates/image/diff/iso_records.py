"""Two directory records, or two volume descriptors, compared field by field. Sections: ECMA-119, SUSP and RRIP
1.12."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pytest_osgates.image.diff.found import hexed, quoted
from pytest_osgates.image.diff.iso_tree import Record, Use


class Field(NamedTuple):
    """A field that differs: its name, both values, where it is in each image, and whether it only follows."""

    what: str
    a: str
    b: str
    offsets: tuple[int, int]
    follows: bool = False
    delta: int | None = None
    rock_ridge: bool = False


# Name, offset, bytes, and whether it only follows from something else (8.4).
_DESCRIPTOR = (
    ("type", 0, 1, False),
    ("standard identifier", 1, 5, False),
    ("version", 6, 1, False),
    ("flags", 7, 1, False),
    ("system identifier", 8, 32, False),
    ("volume identifier", 40, 32, False),
    ("unused field at 72", 72, 8, False),
    ("volume space size", 80, 8, True),
    ("escape sequences", 88, 32, False),
    ("volume set size", 120, 4, False),
    ("volume sequence number", 124, 4, False),
    ("block size", 128, 4, False),
    ("path table size", 132, 8, True),
    ("path table L", 140, 4, True),
    ("optional path table L", 144, 4, True),
    ("path table M", 148, 4, True),
    ("optional path table M", 152, 4, True),
    ("volume set identifier", 190, 128, False),
    ("publisher", 318, 128, False),
    ("data preparer", 446, 128, False),
    ("application", 574, 128, False),
    ("copyright file", 702, 37, False),
    ("abstract file", 739, 37, False),
    ("bibliographic file", 776, 37, False),
    ("creation date", 813, 17, False),
    ("modification date", 830, 17, False),
    ("expiration date", 847, 17, False),
    ("effective date", 864, 17, False),
    ("file structure version", 881, 1, False),
    ("reserved byte", 882, 1, False),
    ("application use", 883, 512, False),
    ("reserved field", 1395, 653, False),
)
_BOOT_RECORD = (
    ("type", 0, 1, False),
    ("standard identifier", 1, 5, False),
    ("version", 6, 1, False),
    ("boot system identifier", 7, 32, False),
    ("boot identifier", 39, 32, False),
    ("boot catalog", 71, 4, True),
    ("boot system use", 75, 1973, False),
)
_NUMBERS = {
    "volume space size",
    "path table size",
    "volume set size",
    "volume sequence number",
    "block size",
    "path table L",
    "optional path table L",
    "boot catalog",
}

# The stamps of TF (RRIP 4.1.6), by their bits.
_STAMPS = ("creation", "modification", "access", "attributes", "backup", "expiration", "effective")
_PX = ("mode", "links", "owner", "group", "serial number")


def descriptor_fields(a: bytes, b: bytes, at: tuple[int, int]) -> Iterator[Field]:
    """What differs in two volume descriptors, but for their root's record."""
    if a[0] != b[0] or a[0] not in (0, 1, 2):
        table: tuple[tuple[str, int, int, bool], ...] = (("contents", 0, len(a), False),)
    else:
        table = _BOOT_RECORD if a[0] == 0 else _DESCRIPTOR
    for name, start, size, follows in table:
        x, y = a[start : start + size], b[start : start + size]
        if x == y:
            continue
        place = (at[0] + start, at[1] + start)
        if name.endswith("date"):
            yield Field(name, _digits(x), _digits(y), place, delta=_between(long_date(x), long_date(y)))
        elif name in _NUMBERS and x[:4] != y[:4]:
            width = min(4, size // 2) if size in (4, 8) and "path table " not in name else 4
            values = [str(int.from_bytes(value[: width if width else 4], "little")) for value in (x, y)]
            yield Field(name, values[0], values[1], place, follows)
        else:
            yield Field(name, quoted(x.rstrip()), quoted(y.rstrip()), place, follows)


def _digits(raw: bytes) -> str:
    """A date of digits (8.4.26.1), with its zone in quarters of an hour."""
    zone = struct.unpack("b", raw[16:17])[0]
    text = quoted(raw[:16])
    return f"{text}{f' zone {zone / 4:+g} h' if zone else ''}"


def long_date(raw: bytes) -> datetime | None:
    """The moment that 17 bytes say; None: none, or impossible."""
    try:
        moment = datetime.strptime(raw[:14].decode("ascii"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        return moment - timedelta(minutes=15 * struct.unpack("b", raw[16:17])[0])
    except (ValueError, OverflowError, struct.error):
        return None


def short_date(raw: bytes) -> datetime | None:
    """The moment that 7 bytes say (9.1.5); None: none, or impossible."""
    try:
        year, month, day, hour, minute, second = raw[:6]
        moment = datetime(1900 + year, month, day, hour, minute, second, tzinfo=UTC)
        return moment - timedelta(minutes=15 * struct.unpack("b", raw[6:7])[0])
    except (ValueError, OverflowError, IndexError, struct.error):
        return None


def _between(a: datetime | None, b: datetime | None) -> int | None:
    return None if a is None or b is None else round((b - a).total_seconds())


def _moment(raw: bytes, moment: datetime | None) -> str:
    if moment is None:
        return hexed(raw)
    zone = struct.unpack("b", raw[-1:])[0]
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") + (f" (zone {zone / 4:+g} h)" if zone else "")


def record_fields(a: Record, b: Record) -> Iterator[Field]:
    """What differs in two directory records of one file, its System Use entries included."""
    x, y = a.raw, b.raw
    found = False

    def place(start: int) -> tuple[int, int]:
        return (a.offset + start, b.offset + start)

    for name, start, size, follows in (
        ("length of extended attributes", 1, 1, False),
        ("place", 2, 8, True),
        ("size", 10, 8, False),
        ("file flags", 25, 1, False),
        ("file unit size", 26, 1, False),
        ("interleave gap", 27, 1, False),
        ("volume sequence number", 28, 4, False),
    ):
        one, other = x[start : start + size], y[start : start + size]
        if one != other:
            found = True
            half = size // 2 or 1
            values = [str(int.from_bytes(value[:half], "little")) for value in (one, other)]
            if values[0] == values[1]:
                values = [
                    f"{value} (big-endian: {int.from_bytes(raw[half:], 'big')})"
                    for value, raw in zip(values, (one, other), strict=True)
                ]
                yield Field(name, values[0], values[1], place(start))
                continue
            yield Field(name, values[0], values[1], place(start), follows)
    if x[18:25] != y[18:25]:
        found = True
        yield _stamp("recording date", x[18:25], y[18:25], place(18))
    if a.name != b.name:
        found = True
        yield Field("ISO 9660 name", quoted(a.name), quoted(b.name), place(33))
    for field in _uses(a, b):
        found = True
        yield field
    if not found and x != y:
        yield Field("bytes of the record", hexed(x), hexed(y), place(0))


def _stamp(what: str, x: bytes, y: bytes, at: tuple[int, int], *, rock_ridge: bool = False) -> Field:
    read = short_date if len(x) == 7 else long_date
    moments = read(x), read(y)
    return Field(
        what, _moment(x, moments[0]), _moment(y, moments[1]), at, False, _between(moments[0], moments[1]), rock_ridge
    )


def _uses(a: Record, b: Record) -> Iterator[Field]:
    """Entries are paired by signature and order."""
    sides: tuple[dict[tuple[bytes, int], Use], ...] = ({}, {})
    for side, record in zip(sides, (a, b), strict=True):
        counts: dict[bytes, int] = {}
        for use in record.uses:
            counts[use.signature] = counts.get(use.signature, 0) + 1
            side[use.signature, counts[use.signature]] = use
    for key in dict.fromkeys((*sides[0], *sides[1])):
        one, other = sides[0].get(key), sides[1].get(key)
        name = key[0].decode("latin-1")
        if one is None or other is None:
            there = one or other
            at = (there.offset, there.offset) if there is not None else (0, 0)
            values = [hexed(use.raw) if use is not None else "none" for use in (one, other)]
            yield Field(f"{name} entry", values[0], values[1], at, rock_ridge=True)
        elif one.raw != other.raw:
            yield from _use(name, one, other)


def _use(name: str, one: Use, other: Use) -> Iterator[Field]:
    at = (one.offset, other.offset)
    x, y = one.raw, other.raw
    if name == "TF" and len(x) == len(y) and x[4] == y[4]:
        size = 17 if x[4] & 0x80 else 7
        position = 5
        for bit, stamp in enumerate(_STAMPS):
            if not x[4] >> bit & 1:
                continue
            p, q = x[position : position + size], y[position : position + size]
            if p != q:
                place = (at[0] + position, at[1] + position)
                yield _stamp(f"TF {stamp} (flags {x[4]:#04x})", p, q, place, rock_ridge=True)
            position += size
        if x[position:] != y[position:] or x[:4] != y[:4]:
            yield Field("TF entry", hexed(x), hexed(y), at, rock_ridge=True)
    elif name == "PX" and len(x) == len(y):
        for index, part in enumerate(_PX[: (len(x) - 4) // 8]):
            start = 4 + 8 * index
            p, q = x[start : start + 8], y[start : start + 8]
            if p != q:
                numbers = [int.from_bytes(value[:4], "little") for value in (p, q)]
                values = [f"{number:o}" if part == "mode" else str(number) for number in numbers]
                if values[0] == values[1]:
                    values = [hexed(p), hexed(q)]
                yield Field(
                    f"PX {part}",
                    values[0],
                    values[1],
                    (at[0] + start, at[1] + start),
                    part == "serial number",
                    rock_ridge=True,
                )
        if x[:4] != y[:4]:
            yield Field("PX entry", hexed(x), hexed(y), at, rock_ridge=True)
    elif name == "CE":
        yield Field("CE entry", hexed(x), hexed(y), at, follows=True, rock_ridge=True)
    elif name in ("NM", "SL"):
        yield Field(f"{name} entry", quoted(x[5:]), quoted(y[5:]), at, rock_ridge=True)
    else:
        yield Field(f"{name} entry", hexed(x), hexed(y), at, rock_ridge=True)


__all__ = ["Field", "descriptor_fields", "long_date", "record_fields", "short_date"]
