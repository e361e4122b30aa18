"""ICMP (RFC 792): whoever is pinged answers."""

from __future__ import annotations

from pytest_osgates.vm.network.wire import checksum

ECHO_REPLY, UNREACHABLE, ECHO, TIME_EXCEEDED = 0, 3, 8, 11


def echo_reply(message: bytes) -> bytes | None:
    """The answer to an echo request; None for anything else."""
    if len(message) < 8 or message[0] != ECHO:
        return None
    body = bytes(4) + message[4:]
    return body[:2] + checksum(body).to_bytes(2, "big") + body[4:]


def port_unreachable(datagram: bytes) -> bytes:
    """Says that nobody listens (RFC 1122 3.2.2.1). `datagram`: IP header and at least 8 bytes of what it carried."""
    body = bytes((UNREACHABLE, 3, 0, 0, 0, 0, 0, 0)) + datagram[:28]
    return body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
