"""Probes as frames of QEMU's stream, and what comes back of them, taken apart. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable

from pytest_osgates.vm.network import arp, icmpv6, wire
from pytest_osgates.vm.network.ip import parse4, parse6
from pytest_osgates.vm.network.probes import Kind
from pytest_osgates.vm.network.wire import Malformed

# The one source port of all probes: whose answer it is, is told by the address.
SPORT = 40404
SEQ = 0x4F534741
_TCP = struct.Struct("!HHIIBBHHH")
# RFC 9293 3.7.1: without the option a filter could tell probes from connections.
_MSS = b"\x02\x04\x05\xb4"
_SYN, _RST = 2, 4
_ERRORS4, _ERRORS6 = frozenset({3, 4, 11, 12}), frozenset({1, 2, 3, 4})
ALL_HOSTS, EVERYBODY = b"\xe0\0\0\x01", b"\xff\xff\xff\xff"

# What is known of a port: one byte. Rejections carry the code of the ICMP error.
SILENT, OPEN, CLOSED, UNPROVEN, UNASKED = 0, 1, 2, 3, 255
REJECTED4, REJECTED6, ERROR = 16, 32, 48


def framed(link: bytes, packet: bytes) -> bytes:
    """A frame behind its length; `link`: both hardware addresses."""
    frame = wire.frame(link, packet)
    return len(frame).to_bytes(4, "big") + frame


def syn(link: bytes, src: bytes, dst: bytes) -> Callable[[int], bytes]:
    """Makes SYN frames for ports: everything but port and checksum is made once, because there are 65,535."""
    head = _TCP.pack(SPORT, 0, SEQ, 0, 6 << 4, _SYN, 64240, 0, 0) + _MSS
    whole = framed(link, wire.ip(src, dst, wire.TCP, head))
    at = 4 + 14 + (20 if len(src) == 4 else 40)
    before, between, after = whole[: at + 2], whole[at + 4 : at + 16], whole[at + 18 :]
    pseudo = wire.pseudo(src, dst, wire.TCP, len(head))
    base = int.from_bytes(pseudo + head, "big") % 0xFFFF

    def make(port: int) -> bytes:
        total = 0xFFFF - (base + port) % 0xFFFF
        return before + port.to_bytes(2, "big") + between + total.to_bytes(2, "big") + after

    return make


def reset(link: bytes, src: bytes, dst: bytes, port: int) -> bytes:
    """Ends the connection that a SYN began: nothing of it stays."""
    head = _TCP.pack(SPORT, port, SEQ + 1, 0, 5 << 4, _RST, 0, 0, 0)
    return framed(link, wire.ip(src, dst, wire.TCP, wire.with_checksum(src, dst, wire.TCP, head, 16)))


def datagram(link: bytes, src: bytes, dst: bytes, port: int, data: bytes) -> bytes:
    """A UDP probe."""
    return framed(link, wire.ip(src, dst, wire.UDP, wire.udp(src, SPORT, dst, port, data)))


def kind(link: bytes, src: bytes, dst: bytes, what: Kind) -> bytes:
    """A message of another protocol, to the address, or to all: then `link` is changed for them."""
    body = what.message
    if what.port:
        dst = wire.address_of(what.to)
        link = (what.hardware or b"\xff" * 6) + link[6:]
        # As who answers such datagrams may demand (RFC 6762 11).
        return framed(link, wire.ip(src, dst, wire.UDP, wire.udp(src, SPORT, dst, what.port, body), 255))
    if what.to == "broadcast":
        link, dst = b"\xff" * 6 + link[6:], EVERYBODY
    elif what.to == "group":
        dst = ALL_HOSTS if len(src) == 4 else icmpv6.ALL_NODES
        link = (b"\x01\0\x5e\0\0\x01" if len(src) == 4 else b"\x33\x33\0\0\0\x01") + link[6:]
    if what.protocol == wire.ICMPV6 and len(src) == 16:
        body = wire.with_checksum(src, dst, wire.ICMPV6, body, 2)
    elif what.protocol == wire.ICMP:
        body = body[:2] + wire.checksum(body).to_bytes(2, "big") + body[4:]
    return framed(link, wire.ip(src, dst, what.protocol, body, 255 if len(src) == 16 else 64))


def marker(mac: bytes, own: bytes, src: bytes, target: bytes) -> bytes:
    """Asks `target` for its hardware address: what every host answers, in turn, whatever its firewall says."""
    link = mac + own
    if len(target) == 4:
        return framed(link, arp.request(own, src, target))
    body = wire.with_checksum(src, target, wire.ICMPV6, icmpv6.neighbour_solicitation(target, own), 2)
    return framed(link, wire.ip(src, target, wire.ICMPV6, body, 255))


class Heard:
    """One packet that came for an address of the prober. `port`: of the guest; 0 where there is none."""

    __slots__ = ("dst", "payload", "protocol", "src")

    def __init__(self, frame: bytes) -> None:
        """Of an Ethernet frame with IPv4 or IPv6.

        :raise Malformed: it is not one.
        """
        six = frame[12:14] == wire.IPV6
        if not six and len(frame) >= 34 and frame[14] == 0x45 and not (frame[20] & 0x3F or frame[21]):
            # Nearly all: no options, no fragment.
            self.src, self.dst, self.protocol = frame[26:30], frame[30:34], frame[23]
            self.payload = frame[34 : 14 + int.from_bytes(frame[16:18], "big")]
            return
        header = (parse6 if six else parse4)(frame[14:])
        if header.fragment:
            raise Malformed("an answer in fragments")
        self.src, self.dst, self.protocol, self.payload = header.src, header.dst, header.protocol, header.payload

    @property
    def is_error(self) -> bool:
        """An ICMP error."""
        if not self.payload:
            return False
        if len(self.src) == 4:
            return self.protocol == wire.ICMP and self.payload[0] in _ERRORS4
        return self.protocol == wire.ICMPV6 and self.payload[0] in _ERRORS6

    def tcp(self) -> tuple[int, int, bool] | None:
        """Port, state, and whether it is the answer to a SYN of ours.

        :raise Malformed: cut short.
        """
        if len(self.payload) < 20:
            raise Malformed("TCP header cut short")
        sport, dport, _, ack, _, flags, _, _, _ = _TCP.unpack_from(self.payload)
        ours = dport == SPORT and ack == SEQ + 1
        if flags & _RST:
            return sport, CLOSED, ours
        if flags & 0x12 == 0x12:
            return sport, OPEN, ours
        return None

    def error(self, target: bytes) -> tuple[int, int, int] | None:
        """Protocol and port of the probe that an error is about, and the state that it says; None: of none of ours.

        :raise Malformed: cut short.
        """
        quoted = self.payload[8:]
        if len(self.src) == 4:
            if len(quoted) < 28:
                raise Malformed("an ICMP error that quotes nothing")
            at, protocol, about = (quoted[0] & 15) * 4, quoted[9], quoted[16:20]
            kind, code, base = self.payload[0], self.payload[1], REJECTED4
            rejected = kind == 3
        else:
            if len(quoted) < 48:
                raise Malformed("an ICMPv6 error that quotes nothing")
            at, protocol, about = 40, quoted[6], quoted[24:40]
            kind, code, base = self.payload[0], self.payload[1], REJECTED6
            rejected = kind == 1
        ports = quoted[at : at + 4]
        if about != target or len(ports) < 4 or int.from_bytes(ports[:2], "big") != SPORT:
            return None
        return protocol, int.from_bytes(ports[2:], "big"), base + code if rejected and code < 16 else ERROR
