"""The beginning half of WireGuard, written from the whitepaper for tests alone, and a guest behind it."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from net_samples import Guest, payload_of

from pytest_osgates.vm.network import wire
from pytest_osgates.vm.network.declared import Vpn
from pytest_osgates.vm.network.events import EventLog
from pytest_osgates.vm.network.tunnel import Tunnel
from pytest_osgates.vm.network.tunnel_pcap import TunnelCapture

# Of Wireshark's own tests (test/suite_decryption.py): private and public keys of both ends.
GUEST_PRIVATE = "AKeZaHwBxjiKLFnkY2unvEdOTtg4AL+M9dQXfopFVFk="
GUEST_PUBLIC = "Igge9KzRytKNwrgkzDE/8hrLu6Ly0OqVdvOPWhA5KR4="
PEER_PRIVATE = "cFIxTUyBs1Qil414hBwEgvasEax8CKJ5IS5ZougplWs="
PEER_PUBLIC = "YDCttCs9e1J52/g9vEnwJJa+2x6RqaayAYMpSVQfGEY="
PRESHARED = "iIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIg="
HOST, PORT = "vpn.example.org", 51820
VPN = Vpn(HOST, PORT, PEER_PRIVATE, GUEST_PUBLIC, "", ("10.9.0.1",), ("10.9.0.1",))
INNER = bytes((10, 9, 0, 2))
PEER_INNER = bytes((10, 9, 0, 1))


def raw(text: str) -> bytes:
    return base64.b64decode(text)


def derive(chain: bytes, data: bytes, count: int) -> list[bytes]:
    """KDFn of the whitepaper, by a library's HKDF."""
    out = HKDF(hashes.BLAKE2s(32), 32 * count, chain, b"").derive(data)
    return [out[32 * number : 32 * number + 32] for number in range(count)]


def _hash(*parts: bytes) -> bytes:
    return hashlib.new("blake2s256", b"".join(parts)).digest()


def _seal(key: bytes, counter: int, plain: bytes, more: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(struct.pack("<4xQ", counter), plain, more)


def _open(key: bytes, counter: int, sealed: bytes, more: bytes) -> bytes:
    return ChaCha20Poly1305(key).decrypt(struct.pack("<4xQ", counter), sealed, more)


def authenticated(message: bytes, peer_public: bytes) -> bytes:
    """A handshake's first 116 bytes with both authenticators behind."""
    key = _hash(b"mac1----", peer_public)
    return message + hashlib.blake2s(message, key=key, digest_size=16).digest() + bytes(16)


@dataclass
class Initiator:
    """One end that begins. `stamp` grows with each handshake."""

    private: str = GUEST_PRIVATE
    peer: str = PEER_PUBLIC
    preshared: bytes = bytes(32)
    index: int = 0x11223344
    stamp: int = 1
    sending: bytes = b""
    receiving: bytes = b""
    remote: int = 0
    counter: int = 0

    def initiation(self, *, ephemeral: X25519PrivateKey | None = None) -> bytes:
        """Section 5.4.2."""
        self.ephemeral = ephemeral or X25519PrivateKey.generate()
        static = X25519PrivateKey.from_private_bytes(raw(self.private))
        peer = X25519PublicKey.from_public_bytes(raw(self.peer))
        public = self.ephemeral.public_key().public_bytes_raw()
        chain = _hash(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
        state = _hash(_hash(chain, b"WireGuard v1 zx2c4 Jason@zx2c4.com"), raw(self.peer))
        (chain,) = derive(chain, public, 1)
        state = _hash(state, public)
        chain, key = derive(chain, self.ephemeral.exchange(peer), 2)
        sealed = _seal(key, 0, static.public_key().public_bytes_raw(), state)
        state = _hash(state, sealed)
        chain, key = derive(chain, static.exchange(peer), 2)
        stamp = _seal(key, 0, struct.pack(">QI", (1 << 62) + self.stamp, 0), state)
        self.stamp += 1
        self.chain, self.state = chain, _hash(state, stamp)
        message = struct.pack("<B3xI", 1, self.index) + public + sealed + stamp
        return authenticated(message, raw(self.peer))

    def finish(self, response: bytes) -> None:
        """Section 5.4.3, from the other side."""
        assert len(response) == 92
        kind, self.remote, receiver = struct.unpack_from("<B3xII", response)
        assert (kind, receiver) == (2, self.index)
        public, nothing, mac1, mac2 = response[12:44], response[44:60], response[60:76], response[76:]
        static = X25519PrivateKey.from_private_bytes(raw(self.private))
        key = _hash(b"mac1----", static.public_key().public_bytes_raw())
        assert mac1 == hashlib.blake2s(response[:60], key=key, digest_size=16).digest()
        assert mac2 == bytes(16)
        theirs = X25519PublicKey.from_public_bytes(public)
        (chain,) = derive(self.chain, public, 1)
        state = _hash(self.state, public)
        (chain,) = derive(chain, self.ephemeral.exchange(theirs), 1)
        (chain,) = derive(chain, static.exchange(theirs), 1)
        chain, mixed, key = derive(chain, self.preshared, 3)
        assert _open(key, 0, nothing, _hash(state, mixed)) == b""
        self.sending, self.receiving = derive(chain, b"", 2)
        self.counter = 0

    def data(self, packet: bytes, *, counter: int | None = None, padding: bytes | None = None) -> bytes:
        """Section 5.4.6."""
        if counter is None:
            counter, self.counter = self.counter, self.counter + 1
        plain = packet + (bytes(-len(packet) % 16) if padding is None else padding)
        return struct.pack("<B3xIQ", 4, self.remote, counter) + _seal(self.sending, counter, plain, b"")

    def read(self, message: bytes) -> bytes:
        """What a data message holds, with its padding."""
        kind, index, counter = struct.unpack_from("<B3xIQ", message)
        assert (kind, index) == (4, self.index)
        return _open(self.receiving, counter, message[16:], b"")


class TunnelGuest:
    """A guest whose network has a VPN peer, and who has the keys."""

    def __init__(self, net: Guest | None = None, vpn: Vpn = VPN) -> None:
        self.net = net or Guest(vpn=vpn)
        self.pcap = io.BytesIO()
        self.log = io.BytesIO()
        hole = self.net.hole
        inner = EventLog(self.log, hole.log.clock, 1 << 20)
        self.tunnel = hole.tunnel = Tunnel(
            hole, vpn, inner, TunnelCapture(self.pcap, 1 << 22, self.net.settings.hardware)
        )
        self.wg = Initiator(preshared=raw(vpn.preshared_key) if vpn.preshared_key else bytes(32))
        self.endpoint = self.tunnel.addresses[0]

    def send(self, message: bytes, *, sport: int = 51000) -> list[bytes]:
        """A datagram to the endpoint; the datagrams that came back."""
        return self.net.udp(self.endpoint, PORT, message, sport=sport)

    def up(self) -> None:
        """A handshake, and a keepalive that confirms it."""
        (response,) = self.send(self.wg.initiation())
        self.wg.finish(response)
        assert self.send(self.wg.data(b"")) == []

    def packet(self, packet: bytes) -> list[bytes]:
        """An IP packet into the tunnel; those that came back, keepalives left out."""
        plain = [self.wg.read(message) for message in self.send(self.wg.data(packet))]
        return [packet for packet in plain if packet]

    def udp(self, dst: bytes, dport: int, payload: bytes, *, sport: int = 40000) -> list[bytes]:
        """A datagram through the tunnel; the payloads of those that came back."""
        body = wire.udp(INNER, sport, dst, dport, payload)
        answers = self.packet(wire.ip(INNER, dst, wire.UDP, body)[2:])
        return [payload_of(bytes(12) + wire.IPV4 + answer)[8:] for answer in answers]

    @property
    def stats(self) -> dict[str, Any]:
        return self.tunnel.stats()
