"""ICMPv6 (RFC 4443), neighbour discovery and router advertisements (RFC 4861, RFC 8106)."""

from __future__ import annotations

import struct

from pytest_osgates.vm.network.settings import Settings

ECHO, ECHO_REPLY = 128, 129
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
# Multicast listener reports: what a host has joined (RFC 2710, RFC 3810).
LISTENER = frozenset({130, 131, 132, 143})

ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_RA = struct.Struct("!BBHBBHII")
_PREFIX = struct.Struct("!BBBBIII")
LIFETIME_S = 1800


def router_advertisement(settings: Settings) -> bytes:
    """A router, a prefix for stateless addresses, a name server; other settings by DHCPv6. Checksum still zero."""
    other = 0x40
    return (
        _RA.pack(ROUTER_ADVERTISEMENT, 0, 0, 64, other, LIFETIME_S, 0, 0)
        + b"\x01\x01"
        + settings.hardware
        + _PREFIX.pack(3, 4, 64, 0xC0, 86400, 14400, 0)
        + settings.prefix
        + bytes(8)
        + struct.pack("!BBHI", 25, 3, 0, LIFETIME_S)
        + settings.resolver6
    )


def solicited_target(message: bytes) -> bytes | None:
    """Whom a neighbour solicitation asks for."""
    return message[8:24] if len(message) >= 24 and message[0] == NEIGHBOUR_SOLICITATION else None


def neighbour_advertisement(target: bytes, mac: bytes) -> bytes:
    """Solicited, override, from a router; checksum still zero."""
    return struct.pack("!BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, 0xE0000000) + target + b"\x02\x01" + mac


def neighbour_solicitation(target: bytes, mac: bytes) -> bytes:
    """Asks for `target`; checksum still zero."""
    return struct.pack("!BBHI", NEIGHBOUR_SOLICITATION, 0, 0, 0) + target + b"\x01\x01" + mac


def echo_reply(message: bytes) -> bytes | None:
    """The answer to an echo request, checksum still zero; None for anything else."""
    if len(message) < 8 or message[0] != ECHO:
        return None
    return bytes((ECHO_REPLY, 0, 0, 0)) + message[4:]
