"""ICMP (RFC 792): whoever is pinged answers."""

from __future__ import annotations

from pytest_osgates.vm.network.wire import checksum

ECHO_REPLY, UNREACHABLE, ECHO, TIME_EXCEEDED, PARAMETER = 0, 3, 8, 11, 12
ERRORS = frozenset({UNREACHABLE, TIME_EXCEEDED, PARAMETER})
# RFC 1812 4.3.2.3: an error is no longer than this.
MAX_ERROR = 576 - 20


def echo_reply(message: bytes) -> bytes | None:
    """The answer to an echo request; None for anything else."""
    if len(message) < 8 or message[0] != ECHO:
        return None
    body = bytes(4) + message[4:]
    return body[:2] + checksum(body).to_bytes(2, "big") + body[4:]


def is_about(message: bytes, src: bytes, dst: bytes) -> bool:
    """Whether an error that `src` sent to `dst` quotes a packet that came from there, and no more than that."""
    quoted = message[8:]
    return len(message) <= MAX_ERROR and len(quoted) >= 20 and (quoted[12:16], quoted[16:20]) == (dst, src)


def port_unreachable(datagram: bytes) -> bytes:
    """Says that nobody listens (RFC 1122 3.2.2.1). `datagram`: IP header and at least 8 bytes of what it carried."""
    body = bytes((UNREACHABLE, 3, 0, 0, 0, 0, 0, 0)) + datagram[:28]
    return body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
