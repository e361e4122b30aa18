"""Records as the scripts write them: a number, and that many fields, each ended by NUL; see script.py."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from pytest_osgates.vm.errors import ChannelError

MAX_FIELDS = 16


@dataclass
class Records:
    """What was said, by the first field of each record; blobs by their tags."""

    said: dict[str, list[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(list))
    blobs: dict[str, bytes] = field(default_factory=dict)

    def one(self, tag: str) -> str:
        """The only field of the only record with this tag."""
        return self.said[tag][0][0] if self.said.get(tag) and self.said[tag][0] else ""


def read(data: bytes, what: str, end: str = "end") -> Records:
    """All records; the last one is `end`. `what`: for the message.

    :raise ChannelError: it is cut short, or not a sequence of records.
    """
    records = Records()
    at = 0

    def text() -> str:
        nonlocal at
        stop = data.find(b"\0", at)
        if stop < 0:
            raise ChannelError(f"the guest's {what} is cut short")
        piece = data[at:stop].decode("utf-8", "surrogateescape")
        at = stop + 1
        return piece

    while at < len(data):
        count = text()
        if not re.fullmatch(r"[0-9]{1,2}", count) or not 1 <= int(count) <= MAX_FIELDS:
            raise ChannelError(f"the guest's {what} is not what was asked for")
        fields = [text() for _ in range(int(count))]
        if fields == [end]:
            if at != len(data):
                break
            return records
        if fields[0] != "blob":
            records.said[fields[0]].append(tuple(fields[1:]))
            continue
        if len(fields) != 3 or not re.fullmatch(r"[0-9]{1,9}", fields[2]) or at + int(fields[2]) > len(data):
            raise ChannelError(f"the guest's {what} is cut short")
        # Of two tables of one namespace the first was read before others could see it.
        records.blobs.setdefault(fields[1], data[at : at + int(fields[2])])
        at += int(fields[2])
    raise ChannelError(f"the guest's {what} is cut short, or goes on after its end")
