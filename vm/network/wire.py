"""What all protocols share: checksums (RFC 1071), addresses as text, headers of replies."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

IPV4 = b"\x08\x00"
IPV6 = b"\x86\xdd"
ARP = b"\x08\x06"
MIN_FRAME = 60

ICMP, IGMP, TCP, UDP, ICMPV6 = 1, 2, 6, 17, 58
PROTOCOLS = {
    ICMP: "icmp",
    IGMP: "igmp",
    TCP: "tcp",
    UDP: "udp",
    41: "6in4",
    47: "gre",
    50: "esp",
    51: "ah",
    ICMPV6: "icmpv6",
    132: "sctp",
}

_V4 = struct.Struct("!BBHHHBBH4s4s")
_V6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_PSEUDO4 = struct.Struct("!4s4sBBH")
_PSEUDO6 = struct.Struct("!16s16sII")


class Malformed(ValueError):
    """Bytes that are not what the header before them announced."""


@dataclass(slots=True)
class Packet:
    """One IP packet, whole. `link`: the Ethernet header of an answer up to its EtherType; `vlan`: None untagged."""

    link: bytes
    source_mac: bytes
    src: bytes
    dst: bytes
    protocol: int
    payload: bytes
    vlan: int | None = None
    fragmented: bool = False
    hop_limit: int = 64

    @property
    def multicast(self) -> bool:
        """Not for one receiver: multicast, or IPv4's limited broadcast."""
        return self.dst[0] == 0xFF if len(self.dst) == 16 else self.dst[0] >= 224


def text_of(address: bytes) -> str:
    """An IPv4 or IPv6 address of 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def mac_text(mac: bytes) -> str:
    """``52:54:00:12:34:56``."""
    return mac.hex(":")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`; 65535 where it could also be 0, which UDP forbids.

    2**16 is 1 modulo 65535, so the whole as one number leaves the same remainder as the sum of its words.
    """
    if len(data) & 1:
        data += b"\0"
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF


def ip(src: bytes, dst: bytes, protocol: int, payload: bytes, hop_limit: int = 64) -> bytes:
    """EtherType and IP packet."""
    if len(src) == 16:
        return IPV6 + _V6.pack(0x60000000, len(payload), protocol, hop_limit, src, dst) + payload
    # No fragments: identification may be 0 (RFC 6864).
    head = _V4.pack(0x45, 0, 20 + len(payload), 0, 0x4000, hop_limit, protocol, 0, src, dst)
    return IPV4 + head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def pseudo(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """The pseudo header that checksums of upper layers begin with (RFC 768, RFC 8200 section 8.1)."""
    if len(src) == 16:
        return _PSEUDO6.pack(src, dst, length, protocol)
    return _PSEUDO4.pack(src, dst, 0, protocol, length)


def with_checksum(src: bytes, dst: bytes, protocol: int, payload: bytes, at: int) -> bytes:
    """`payload` with its checksum, that covers the pseudo header, at offset `at` (zero so far)."""
    total = checksum(pseudo(src, dst, protocol, len(payload)) + payload)
    return payload[:at] + total.to_bytes(2, "big") + payload[at + 2 :]


def udp(src: bytes, sport: int, dst: bytes, dport: int, payload: bytes) -> bytes:
    """A UDP datagram with its checksum."""
    return with_checksum(src, dst, UDP, _UDP.pack(sport, dport, 8 + len(payload), 0) + payload, 6)


def frame(link: bytes, packet: bytes) -> bytes:
    """An Ethernet frame, padded to the least length (IEEE 802.3 3.2.8)."""
    whole = link + packet
    return whole if len(whole) >= MIN_FRAME else whole + bytes(MIN_FRAME - len(whole))


def safe_ascii(data: bytes, limit: int = 255) -> str:
    """Bytes of the guest as ASCII text: everything else, quotes and backslashes as ``\\xNN``."""
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in data[:limit]
    )


def address_of(text: str) -> bytes:
    """The inverse of `text_of`; empty if `text` is no address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, text)
        except OSError:
            continue
    return b""
