"""DHCP (RFC 2131, options RFC 2132): one lease, always the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.network.wire import Malformed, safe_ascii

COOKIE = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = 1, 2, 3, 4, 5, 6, 7, 8
KINDS = {
    DISCOVER: "discover",
    OFFER: "offer",
    REQUEST: "request",
    DECLINE: "decline",
    ACK: "ack",
    NAK: "nak",
    RELEASE: "release",
    INFORM: "inform",
}
_FIXED = 236
# Fields that a client leaves empty.
_EMPTY = {
    "hops": slice(3, 4),
    "yiaddr": slice(16, 20),
    "siaddr": slice(20, 24),
    "giaddr": slice(24, 28),
    "chaddr": slice(34, 44),
    "sname": slice(44, 108),
    "file": slice(108, 236),
}
# Options that are read one by one, and those that say nothing of the machine (RFC 7844 3): the lengths they may have.
_READ = frozenset({12, 60, 61, 77, 81})
_USUAL = {50: (4,), 51: (4,), 53: (1,), 54: (4,), 55: range(101), 57: (2,), 80: (0,), 116: (1,), 145: (1,)}
MAX_SHOWN = 32


@dataclass(frozen=True)
class Message:
    """A client's message, as far as it tells something. ``host``: option 12; ``fqdn``: 81; ``client_id``: 61.

    ``other``: whatever else it carries that an anonymous client leaves out, each as ``WHERE: HEX``.
    """

    kind: int
    mac: bytes
    raw: bytes
    host: str = ""
    client_id: bytes = b""
    vendor: str = ""
    user_class: str = ""
    requested: bytes = b""
    parameters: bytes = b""
    fqdn: str = ""
    other: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """``discover``, ``request``, ..."""
        return KINDS.get(self.kind, f"type {self.kind}")


def parse(data: bytes) -> Message:
    """A message from a client.

    :raise Malformed: it is not one.
    """
    if len(data) < _FIXED + 4 or data[_FIXED : _FIXED + 4] != COOKIE or data[0] != 1:
        raise Malformed("not a DHCP message of a client")
    options: dict[int, bytes] = {}
    at = _FIXED + 4
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise Malformed("a DHCP option reaches beyond the message")
        # An option may be given in parts (RFC 3396).
        options[data[at]] = options.get(data[at], b"") + data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    if len(options.get(53, b"")) != 1:
        raise Malformed("a DHCP message without a type")
    return Message(
        kind=options[53][0],
        mac=data[28:34],
        raw=data,
        host=safe_ascii(options.get(12, b"")),
        client_id=options.get(61, b""),
        vendor=safe_ascii(options.get(60, b"")),
        user_class=safe_ascii(options.get(77, b"")),
        requested=options.get(50, b""),
        parameters=options.get(55, b""),
        fqdn=safe_ascii(options.get(81, b"")[3:]),
        other=tuple(_other(data, options, data[at + 1 :])),
    )


def _other(data: bytes, options: Mapping[int, bytes], behind: bytes) -> Iterator[str]:
    for name, where in _EMPTY.items():
        if value := data[where].rstrip(b"\0"):
            yield shown(name, value)
    for code, value in options.items():
        if code not in _READ and len(value) not in _USUAL.get(code, ()):
            yield shown(str(code), value)
    if behind.strip(b"\0"):
        yield shown("behind the end", behind)


def shown(name: str, value: bytes) -> str:
    """``NAME: HEX`` of at most `MAX_SHOWN` bytes, and how many there are in all."""
    if len(value) <= MAX_SHOWN:
        return f"{name}: {value.hex()}"
    return f"{name}: {value[:MAX_SHOWN].hex()}... ({len(value)} bytes)"


def answer(message: Message, settings: Settings) -> bytes | None:
    """The server's answer; None where there is none to give."""
    if message.kind not in {DISCOVER, REQUEST, INFORM}:
        return None
    wrong = message.kind == REQUEST and message.requested not in {b"", settings.guest}
    kind = NAK if wrong else OFFER if message.kind == DISCOVER else ACK
    given = bytes(4) if wrong or message.kind == INFORM else settings.guest
    head = b"\x02" + message.raw[1:8] + bytes(2) + message.raw[10:16] + given + settings.gateway + message.raw[24:44]
    options = bytes((53, 1, kind)) + b"\x36\x04" + settings.gateway
    if not wrong:
        if message.kind != INFORM:
            lease = settings.lease_s
            options += b"\x33\x04" + struct.pack("!I", lease)
            options += b"\x3a\x04" + struct.pack("!I", lease // 2) + b"\x3b\x04" + struct.pack("!I", lease * 7 // 8)
        options += b"\x01\x04\xff\xff\xff\0" + b"\x03\x04" + settings.gateway + b"\x06\x04" + settings.resolver
    return head + bytes(192) + COOKIE + options + b"\xff"


def is_grant(answer_: bytes) -> bool:
    """Whether `answer` gave the lease away: an ACK with an address."""
    return COOKIE + bytes((53, 1, ACK)) in answer_ and answer_[16:20] != bytes(4)
