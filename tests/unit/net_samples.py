"""A guest's end of a sinkhole: builds frames, and reads the answers. And captures, written by hand."""

from __future__ import annotations

import io
import json
import ssl
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pytest_osgates.vm.network import quic, wire
from pytest_osgates.vm.network.authority import Authority
from pytest_osgates.vm.network.events import EventLog
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.network.sinkhole import Sinkhole

MAC = bytes.fromhex("525400123456")
NOW = 1_700_000_000.0
# The connection id of RFC 9001, appendix A.
QUIC_DCID = bytes.fromhex("8394c8f03e515708")
SYN, ACK, FIN, RST, PSH = 2, 16, 1, 4, 8


class Guest:
    """A sinkhole and the guest on it. `sent` and `got`: every frame so far, in both directions."""

    def __init__(self, authority: Authority | None = None, limit: int = 1 << 20, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.sink = io.BytesIO()
        self.log = EventLog(self.sink, lambda: NOW, limit)
        self.hole = Sinkhole(self.settings, self.log, authority)
        self.link = self.settings.hardware + MAC
        self.ip = self.settings.guest
        self.sent: list[bytes] = []
        self.got: list[bytes] = []

    def send(self, frame: bytes) -> list[bytes]:
        """One frame, as QEMU hands it over; the frames that came back."""
        self.sent.append(frame)
        data = len(frame).to_bytes(4, "big") + frame
        assert self.hole.feed(data) == len(data)
        return self.take()

    def take(self) -> list[bytes]:
        """The answers that are waiting."""
        answers = [frame[4:] for frame in self.hole.out]
        for frame in self.hole.out:
            assert int.from_bytes(frame[:4], "big") == len(frame) - 4
        self.hole.out.clear()
        self.got += answers
        return answers

    def packet(self, packet: bytes, *, tag: bytes = b"") -> list[bytes]:
        """An EtherType and what follows it."""
        return self.send(wire.frame(self.link + tag, packet))

    def udp(self, dst: bytes, dport: int, payload: bytes, *, sport: int = 40000, src: bytes = b"") -> list[bytes]:
        """A datagram; the payloads of the datagrams that came back."""
        src = src or (self.ip if len(dst) == 4 else self.settings.prefix + b"\0\0\0\0\0\0\x01\x15")
        frames = self.packet(wire.ip(src, dst, wire.UDP, wire.udp(src, sport, dst, dport, payload)))
        return [payload_of(frame)[8:] for frame in frames]

    def tcp(self, dst: bytes, dport: int, *, sport: int = 50000) -> Connection:
        """A connection, opened."""
        return Connection(self, dst, sport, dport)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the log says."""
        self.log.flush()
        return [json.loads(line) for line in self.sink.getvalue().splitlines()]

    def kinds(self) -> list[str]:
        """The events' names."""
        return [event["event"] for event in self.events]

    def only(self, kind: str) -> dict[str, Any]:
        """The one event of a kind."""
        (event,) = [event for event in self.events if event["event"] == kind]
        return event


def payload_of(frame: bytes) -> bytes:
    """What the IP packet in an untagged frame carries; both checksums are right."""
    kind, body = frame[12:14], frame[14:]
    if kind == wire.IPV4:
        length = (body[0] & 15) * 4
        total = int.from_bytes(body[2:4], "big")
        assert wire.checksum(body[:length]) in {0, 0xFFFF}
        src, dst, protocol, payload = body[12:16], body[16:20], body[9], body[length:total]
    else:
        assert kind == wire.IPV6
        src, dst, protocol = body[8:24], body[24:40], body[6]
        payload = body[40 : 40 + int.from_bytes(body[4:6], "big")]
    if protocol == wire.ICMP:
        assert wire.checksum(payload) in {0, 0xFFFF}
    else:
        assert wire.checksum(wire.pseudo(src, dst, protocol, len(payload)) + payload) in {0, 0xFFFF}
    return payload


class Connection:
    """A client's end of a TCP connection. `received`: what the server said; `closed`: it said FIN; `reset`: RST."""

    def __init__(self, guest: Guest, dst: bytes, sport: int, dport: int) -> None:
        self.guest, self.dst, self.sport, self.dport = guest, dst, sport, dport
        self.seq, self.ack = 1000, 0
        self.received = b""
        self.acked = 0
        self.open = self.closed = self.reset = False
        self._segment(SYN)

    def _segment(self, flags: int, data: bytes = b"") -> None:
        src = self.guest.ip if len(self.dst) == 4 else self.guest.settings.prefix + b"\0\0\0\0\0\0\x01\x15"
        frames = self.guest.packet(tcp_packet(src, self.dst, self.sport, self.dport, self.seq, self.ack, flags, data))
        self.seq = (self.seq + len(data) + (1 if flags & (SYN | FIN) else 0)) & 0xFFFFFFFF
        for frame in frames:
            self._answer(payload_of(frame))

    def _answer(self, segment: bytes) -> None:
        sport, dport, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", segment)
        assert (sport, dport) == (self.dport, self.sport)
        data = segment[(offset >> 4) * 4 :]
        if flags & RST:
            self.reset = True
            return
        self.acked = ack
        if flags & SYN:
            self.open = True
            self.ack = (seq + 1) & 0xFFFFFFFF
            return
        assert seq == self.ack
        self.received += data
        self.ack = (seq + len(data)) & 0xFFFFFFFF
        if flags & FIN:
            self.closed = True
            self.ack = (self.ack + 1) & 0xFFFFFFFF

    def say(self, data: bytes, size: int = 1400) -> bytes:
        """Send `data`; what came back."""
        before = len(self.received)
        for at in range(0, len(data), size):
            self._segment(ACK | PSH, data[at : at + size])
        return self.received[before:]

    def close(self) -> None:
        """FIN."""
        self._segment(FIN | ACK)

    def abort(self) -> None:
        """RST."""
        self._segment(RST)


def tcp_packet(
    src: bytes, dst: bytes, sport: int, dport: int, seq: int, ack: int, flags: int, data: bytes = b""
) -> bytes:
    """EtherType and IP packet with one segment."""
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 65535, 0, 0)
    return wire.ip(src, dst, wire.TCP, wire.with_checksum(src, dst, wire.TCP, head + data, 16))


def client_hello(name: str, alpn: Iterable[str] = ()) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.create_default_context()
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


def with_extension(hello: bytes, kind: int, body: bytes) -> bytes:
    """A ClientHello record with one extension more; it has extensions already."""
    message = hello[5:]
    at = 4 + 34
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2], "big")
    at += 1 + message[at]
    extra = kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body
    size = int.from_bytes(message[at : at + 2], "big") + len(extra)
    message = message[:at] + size.to_bytes(2, "big") + message[at + 2 :] + extra
    message = message[:1] + (len(message) - 4).to_bytes(3, "big") + message[4:]
    return hello[:3] + len(message).to_bytes(2, "big") + message


def varint(number: int) -> bytes:
    """As QUIC writes numbers below 16384."""
    return number.to_bytes(1, "big") if number < 64 else (number | 0x4000).to_bytes(2, "big")


def quic_crypto(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame."""
    return b"\x06" + varint(offset) + varint(len(data)) + data


def quic_initial(
    plain: bytes, *, version: int = quic.V1, dcid: bytes = QUIC_DCID, number: int = 2, token: bytes = b""
) -> bytes:
    """An Initial packet of a client, as RFC 9001 section 5 protects it."""
    plain = plain.ljust(1160, b"\0")
    key, iv, hp = quic.client_keys(version, dcid)
    first = (0xC0 if version != quic.V2 else 0xD0) | 3
    head = bytes((first,)) + version.to_bytes(4, "big") + bytes((len(dcid),)) + dcid + b"\0"
    head += varint(len(token)) + token + varint(4 + len(plain) + 16)
    packet_number = number.to_bytes(4, "big")
    nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
    sealed = AESGCM(key).encrypt(nonce, plain, head + packet_number)
    mask = Cipher(algorithms.AES(hp), modes.ECB()).encryptor().update(sealed[:16])  # noqa: S305
    hidden = bytes(a ^ b for a, b in zip(packet_number, mask[1:], strict=False))
    return bytes((first ^ (mask[0] & 0x0F),)) + head[1:] + hidden + sealed


def dhcp_message(kind: int, *options: tuple[int, bytes], mac: bytes = MAC) -> bytes:
    """A client's DHCP message."""
    head = b"\x01\x01\x06\0" + b"\x12\x34\x56\x78" + bytes(4) + bytes(16) + mac + bytes(10) + bytes(192)
    body = b"".join(bytes((code, len(value))) + value for code, value in ((53, bytes((kind,))), *options))
    return head + b"\x63\x82\x53\x63" + body + b"\xff"


def write_pcap(path: Path, frames: Iterable[tuple[float, bytes]], *, order: str = "<", nano: bool = False) -> Path:
    """A pcap file of Ethernet frames."""
    units = 10**9 if nano else 10**6
    with path.open("wb") as file:
        file.write(struct.pack(f"{order}IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        for at, frame in frames:
            seconds = int(at)
            parts = round((at - seconds) * units)
            file.write(struct.pack(f"{order}IIII", seconds, parts, len(frame), len(frame)) + frame)
    return path


def write_pcapng(path: Path, frames: Iterable[tuple[float, bytes]], *, order: str = "<") -> Path:
    """The same as pcapng, with time stamps in nanoseconds."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        size = 12 + len(body)
        return struct.pack(f"{order}II", kind, size) + body + struct.pack(f"{order}I", size)

    resolution = struct.pack(f"{order}HHB3xHH", 9, 1, 9, 0, 0)
    with path.open("wb") as file:
        file.write(block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1)))
        file.write(block(1, struct.pack(f"{order}HHI", 1, 0, 0) + resolution))
        for at, frame in frames:
            stamp = round(at * 10**9)
            head = struct.pack(f"{order}IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(frame), len(frame))
            file.write(block(6, head + frame))
    return path
