"""IGMP (RFC 2236, RFC 3376): which groups a host has joined, and nothing else."""

from __future__ import annotations

from pytest_osgates.vm.network.wire import Malformed

# Queries, and the reports of versions 1 and 2: 8 bytes. Version 3 reports have a record a group.
_SHORT = frozenset({0x11, 0x12, 0x16, 0x17})
REPORT = 0x22


def check(message: bytes) -> list[bytes]:
    """The groups of a query or a report.

    :raise Malformed: it has not, or carries more.
    """
    if len(message) >= 8 and message[0] in _SHORT:
        # A version 3 query has four bytes and sources behind it.
        sources = int.from_bytes(message[10:12], "big") if message[0] == 0x11 and len(message) >= 12 else 0
        if len(message) not in {8, 12 + 4 * sources}:
            raise Malformed("an IGMP message of another length")
        return [message[4:8]]
    if len(message) < 8 or message[0] != REPORT:
        raise Malformed("not an IGMP message that is known")
    return records(message, 4)


def records(message: bytes, size: int) -> list[bytes]:
    """The groups of a report (IGMPv3, or MLDv2: RFC 3810 5.2), and its sources; addresses have `size` bytes.

    :raise Malformed: it is not, or carries auxiliary data.
    """
    at, found = 8, []
    for _ in range(int.from_bytes(message[6:8], "big")):
        if at + 4 + size > len(message):
            raise Malformed("a report of multicast groups cut short")
        if message[at + 1]:
            raise Malformed("a report of multicast groups with auxiliary data")
        end = at + 4 + size + size * int.from_bytes(message[at + 2 : at + 4], "big")
        found += [message[begin : begin + size] for begin in range(at + 4, min(end, len(message)), size)]
        at = end
    if at != len(message):
        raise Malformed("a report of multicast groups of another length")
    return found
