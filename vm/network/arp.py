"""ARP (RFC 826): every address is here, but those that the guest claims for itself."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pytest_osgates.vm.network.wire import ARP, Malformed

_ARP = struct.Struct("!HHBBH6s4s6s4s")
SIZE = _ARP.size
REQUEST, REPLY = 1, 2


@dataclass(frozen=True)
class Arp:
    """One ARP packet for IPv4 over Ethernet."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes

    @property
    def claims(self) -> bool:
        """A probe or an announcement of an own address (RFC 5227), which nobody may answer."""
        return self.sender in {bytes(4), self.target}


def parse(payload: bytes) -> Arp:
    """What stands behind the EtherType.

    :raise Malformed: not ARP for IPv4 over Ethernet.
    """
    if len(payload) < _ARP.size:
        raise Malformed("ARP cut short")
    hardware, protocol, hlen, plen, operation, sha, spa, tha, tpa = _ARP.unpack_from(payload)
    if (hardware, protocol, hlen, plen) != (1, 0x800, 6, 4):
        raise Malformed("ARP for something else than IPv4 over Ethernet")
    return Arp(operation, sha, spa, tha, tpa)


def reply(request: Arp, mac: bytes) -> bytes:
    """EtherType and packet that answer `request` with `mac`."""
    return ARP + _ARP.pack(1, 0x800, 6, 4, REPLY, mac, request.target, request.sender_mac, request.sender)


def request(mac: bytes, sender: bytes, target: bytes) -> bytes:
    """EtherType and packet that ask for `target`."""
    return ARP + _ARP.pack(1, 0x800, 6, 4, REQUEST, mac, sender, bytes(6), target)
