"""ICMPv6 (RFC 4443), neighbour discovery and router advertisements (RFC 4861, RFC 8106)."""

from __future__ import annotations

import struct

from pytest_osgates.vm.network import igmp
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.network.wire import Malformed

ECHO, ECHO_REPLY = 128, 129
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
# Multicast listener reports: what a host has joined (RFC 2710, RFC 3810).
LISTENER = frozenset({130, 131, 132, 143})
REPORT_V2 = 143
ERRORS = frozenset({1, 2, 3, 4})
# RFC 4443 2.4 (c): an error fits the least MTU.
MAX_ERROR = 1280 - 40
# Where options begin; which of them a host sends: its own or its neighbour's address, a nonce (RFC 3971 5.3.2).
_OPTIONS_AT = {ROUTER_SOLICITATION: 8, NEIGHBOUR_SOLICITATION: 24, NEIGHBOUR_ADVERTISEMENT: 24}
_OPTIONS = frozenset({1, 2, 14})

ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_RA = struct.Struct("!BBHBBHII")
_PREFIX = struct.Struct("!BBBBIII")
# For as long as anybody watches: the longest that fits (RFC 8319), and for ever.
LIFETIME_S, FOR_EVER = 65535, 0xFFFFFFFF


def router_advertisement(settings: Settings) -> bytes:
    """A router, a prefix for stateless addresses, a name server; other settings by DHCPv6. Checksum still zero."""
    other = 0x40
    return (
        _RA.pack(ROUTER_ADVERTISEMENT, 0, 0, 64, other, LIFETIME_S, 0, 0)
        + b"\x01\x01"
        + settings.hardware
        + _PREFIX.pack(3, 4, 64, 0xC0, FOR_EVER, FOR_EVER, 0)
        + settings.prefix
        + bytes(8)
        + struct.pack("!BBHI", 25, 3, 0, FOR_EVER)
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


def check(message: bytes) -> list[bytes]:
    """That a host's neighbour discovery (RFC 4861 4) or listener report (RFC 2710 3, RFC 3810 5.2) carries no more
    than it should; the groups of a report.

    :raise Malformed: it does, or is cut short.
    """
    kind = message[0]
    if kind in LISTENER:
        if kind == REPORT_V2:
            return igmp.records(message, 16)
        if len(message) != 24 and (kind != 130 or len(message) < 28):
            raise Malformed("a multicast listener message of another length")
        return [message[8:24]]
    at = _OPTIONS_AT.get(kind)
    if at is None:
        return []
    flags = message[4] & 0xE0 if kind == NEIGHBOUR_ADVERTISEMENT and len(message) > 4 else 0
    if len(message) < at or message[4:8] != bytes((flags, 0, 0, 0)):
        raise Malformed("neighbour discovery cut short, or with more than its fields")
    while at < len(message):
        if at + 8 > len(message) or message[at] not in _OPTIONS or message[at + 1] != 1:
            raise Malformed(f"neighbour discovery with option {message[at]}, which hosts have no use for")
        at += 8
    return []


def is_about(message: bytes, src: bytes, dst: bytes) -> bool:
    """Whether an error that `src` sent to `dst` quotes a packet that came from there, and no more than that."""
    quoted = message[8:]
    return len(message) <= MAX_ERROR and len(quoted) >= 40 and (quoted[8:24], quoted[24:40]) == (dst, src)


def echo_reply(message: bytes) -> bytes | None:
    """The answer to an echo request, checksum still zero; None for anything else."""
    if len(message) < 8 or message[0] != ECHO:
        return None
    return bytes((ECHO_REPLY, 0, 0, 0)) + message[4:]
