"""DHCPv6 (RFC 8415): an address and a name server for whoever asks."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pytest_osgates.vm.network.dhcp import shown
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.network.wire import Malformed, safe_ascii

KINDS = {
    1: "solicit",
    3: "request",
    4: "confirm",
    5: "renew",
    6: "rebind",
    8: "release",
    9: "decline",
    11: "information-request",
}
ADVERTISE, REPLY = 2, 7
_OPTION = struct.Struct("!HH")
# Options that are read one by one, and those that say nothing of the machine (RFC 7844 4): the lengths they may have.
# The server's DUID is ours; an address that is asked for again is an option of 28 bytes, a prefix one of 29.
_READ = frozenset({1, 16, 39})
_USUAL = {2: (10,), 3: (12, 40), 4: (4, 32), 6: range(101), 8: (2,), 14: (0,), 20: (0,), 25: (12, 41)}


@dataclass(frozen=True)
class Message:
    """A client's message. ``duid``: option 1; ``fqdn``: option 39; ``identity``: the IA_NA's id, None without one.

    ``other``: whatever else it carries that an anonymous client leaves out, each as ``OPTION: HEX``.
    """

    kind: int
    transaction: bytes
    duid: bytes = b""
    fqdn: str = ""
    vendor: str = ""
    identity: bytes | None = None
    other: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """``solicit``, ``request``, ..."""
        return KINDS.get(self.kind, f"type {self.kind}")


def parse(data: bytes) -> Message:
    """A message from a client.

    :raise Malformed: it is not one.
    """
    if len(data) < 4:
        raise Malformed("DHCPv6 cut short")
    duid, fqdn, vendor, identity, other, at = b"", "", "", None, [], 4
    while at + 4 <= len(data):
        kind, size = _OPTION.unpack_from(data, at)
        body = data[at + 4 : at + 4 + size]
        if len(body) != size:
            raise Malformed("a DHCPv6 option reaches beyond the message")
        if kind == 1:
            duid = body
        elif kind == 3 and size >= 12:
            identity = body[:4]
        elif kind == 39 and size > 1:
            fqdn = safe_ascii(body[2:])
        elif kind == 16 and size > 6:
            vendor = safe_ascii(body[6:])
        if kind not in _READ and size not in _USUAL.get(kind, ()):
            other.append(shown(str(kind), body))
        at += 4 + size
    if at != len(data):
        other.append(shown("behind the end", data[at:]))
    return Message(data[0], data[1:4], duid, fqdn, vendor, identity, tuple(other))


def answer(message: Message, settings: Settings) -> bytes | None:
    """The server's answer; None where there is none to give."""
    if message.kind not in KINDS:
        return None
    reply = bytes((ADVERTISE if message.kind == 1 else REPLY,)) + message.transaction
    if message.duid:
        reply += _OPTION.pack(1, len(message.duid)) + message.duid
    reply += _OPTION.pack(2, 10) + struct.pack("!HH", 3, 1) + settings.hardware
    reply += _OPTION.pack(23, 16) + settings.resolver6
    if message.identity is not None and message.kind in {1, 3, 5, 6}:
        lease = settings.lease_s
        address = settings.prefix + bytes(6) + b"\x01\x15" + struct.pack("!II", lease, lease)
        inner = _OPTION.pack(5, len(address)) + address
        reply += (
            _OPTION.pack(3, 12 + len(inner))
            + message.identity
            + struct.pack("!II", lease // 2, lease * 7 // 8)
            + inner
        )
    return reply
