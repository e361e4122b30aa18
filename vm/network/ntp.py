"""NTP (RFC 5905): the guest is told its own time, so that asking changes nothing."""

from __future__ import annotations

import struct

EPOCH = 2_208_988_800  # seconds from 1900, where NTP begins, to 1970
_STAMP = struct.Struct("!II")
CLIENT, SERVER = 3, 4


def stamp(seconds: float) -> bytes:
    """Seconds since 1970 as an NTP time stamp."""
    whole = int(seconds)
    return _STAMP.pack((whole + EPOCH) & 0xFFFFFFFF, int((seconds - whole) * (1 << 32)) & 0xFFFFFFFF)


def answer(query: bytes, now: float) -> bytes | None:
    """A stratum 1 server's answer at `now` (guest time, s since 1970); None if it is not a client's query."""
    if len(query) < 48 or query[0] & 7 not in {CLIENT, 1}:
        return None
    version = query[0] & 0x38
    at = stamp(now)
    return bytes((version | SERVER, 1, query[2], 0xEC)) + _STAMP.pack(16, 16) + b"GPS\0" + at + query[40:48] + at + at
