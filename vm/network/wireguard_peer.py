"""The answering half of WireGuard (whitepaper, section 5; Noise_IKpsk2), for a peer whose private key is given.

The initiator (the guest) begins every handshake and renews it. No cookies are given out, because nothing here is ever
under load: a message that has one cannot be true.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pytest_osgates.vm.network.wireguard import KEY_BYTES, KINDS, LENGTHS

CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1 = b"mac1----"
_INITIATION = struct.Struct("<B3xI32s48s28s16s16s")
_RESPONSE = struct.Struct("<B3xII32s16s16s16s")
_DATA = struct.Struct("<B3xIQ")
# Section 6.1: a counter beyond this is never used.
MAX_COUNTER = (1 << 64) - (1 << 13) - 1
# How far behind the highest counter a packet may come (RFC 6479; the kernel's COUNTER_WINDOW_SIZE is near it).
WINDOW = 8128
# The kernel keeps the previous, the current and the next one; those of handshakes that were never used are more.
MAX_SESSIONS = 8
PADDING = 16


class Refused(ValueError):
    """A message that a peer would drop without a word; the text says why."""


def public_key(private: bytes) -> bytes:
    """What ``wg pubkey`` says."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def digest(*parts: bytes) -> bytes:
    """HASH of section 5.4: BLAKE2s, 32 bytes."""
    return hashlib.blake2s(b"".join(parts)).digest()


def mac(key: bytes, data: bytes) -> bytes:
    """MAC: keyed BLAKE2s, 16 bytes."""
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def kdf(key: bytes, data: bytes, count: int) -> tuple[bytes, ...]:
    """KDF1 to KDF3: HKDF (RFC 5869) with HMAC-BLAKE2s."""
    secret = hmac.digest(key, data, "blake2s")
    out: list[bytes] = []
    last = b""
    for number in range(1, count + 1):
        last = hmac.digest(secret, last + bytes((number,)), "blake2s")
        out.append(last)
    return tuple(out)


def nonce(counter: int) -> bytes:
    """Of a message: four zero bytes, then the counter, little-endian."""
    return bytes(4) + counter.to_bytes(8, "little")


def inner_length(plain: bytes) -> int:
    """How long the IP packet in `plain` says that it is; all of `plain` where it is no IP packet."""
    if len(plain) >= 20 and plain[0] >> 4 == 4:
        return int.from_bytes(plain[2:4], "big")
    if len(plain) >= 40 and plain[0] >> 4 == 6:
        return 40 + int.from_bytes(plain[4:6], "big")
    return len(plain)


class Session:
    """The keys of one handshake. `confirmed`: the initiator has used them, as nobody else can."""

    def __init__(self, local: int, remote: int, receive: bytes, send: bytes) -> None:
        self.local, self.remote = local, remote
        self._receive, self._send = ChaCha20Poly1305(receive), ChaCha20Poly1305(send)
        self._sent = 0
        self._highest = -1
        # Bit N: the counter N below the highest was there.
        self._seen = 0
        self.confirmed = False

    def open(self, counter: int, sealed: bytes) -> bytes:
        """What a data message holds.

        :raise Refused: another key, a counter that was there already or is too old.
        """
        behind = self._highest - counter
        if counter >= MAX_COUNTER or behind >= WINDOW:
            raise Refused("a counter out of the window")
        if behind >= 0 and self._seen >> behind & 1:
            raise Refused("a counter that was there already")
        try:
            plain = self._receive.decrypt(nonce(counter), sealed, b"")
        except InvalidTag as error:
            raise Refused("data that does not authenticate") from error
        if behind < 0:
            self._seen = (self._seen << -behind | 1) & ((1 << WINDOW) - 1) if -behind < WINDOW else 1
            self._highest = counter
        else:
            self._seen |= 1 << behind
        self.confirmed = True
        return plain

    def seal(self, packet: bytes) -> bytes:
        """A data message with `packet`; empty: a keepalive."""
        padded = packet + bytes(-len(packet) % PADDING)
        counter, self._sent = self._sent, self._sent + 1
        return _DATA.pack(4, self.remote, counter) + self._send.encrypt(nonce(counter), padded, b"")


@dataclass(frozen=True, slots=True)
class Received:
    """What a message was. `answer`: to a handshake. `inner`: an IP packet; empty: a keepalive; None: a handshake."""

    session: Session
    answer: bytes = b""
    inner: bytes | None = None
    confirms: bool = False


class Responder:
    """The peer with `private`, for one initiator, whose public key is `guest`. Keys are 32 bytes."""

    def __init__(
        self,
        private: bytes,
        guest: bytes,
        preshared: bytes = bytes(KEY_BYTES),
        fresh: Callable[[], X25519PrivateKey] = X25519PrivateKey.generate,
    ) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self._public = self._private.public_key().public_bytes_raw()
        self._guest, self._preshared, self._fresh = guest, preshared, fresh
        self._mac1 = digest(LABEL_MAC1, self._public)
        self._guest_mac1 = digest(LABEL_MAC1, guest)
        self._latest = b""
        self._number = 0
        self._sessions: dict[int, Session] = {}

    def receive(self, message: bytes) -> Received:
        """One datagram.

        :raise Refused: it is nothing that the initiator can have sent now.
        """
        if len(message) < 32 or message[1:4] != b"\0\0\0":
            raise Refused("not a message of WireGuard")
        kind = message[0]
        if kind == 4:
            return self._data(message)
        if kind == 1 and len(message) == _INITIATION.size:
            return self._initiation(message)
        if kind in LENGTHS and len(message) == LENGTHS[kind]:
            raise Refused(f"a {KINDS[kind]} that nobody asked for")
        raise Refused("not a message of WireGuard")

    def _data(self, message: bytes) -> Received:
        _, index, counter = _DATA.unpack_from(message)
        session = self._sessions.get(index)
        if session is None:
            raise Refused("data of no session")
        before = session.confirmed
        plain = session.open(counter, message[_DATA.size :])
        size = inner_length(plain)
        if size < len(plain) and (len(plain) - size >= PADDING or plain[size:].strip(b"\0")):
            raise Refused("padding that is more than zeros")
        return Received(session, inner=plain[:size], confirms=not before)

    def _initiation(self, message: bytes) -> Received:
        """Section 5.4.2, and the answer of 5.4.3."""
        _, remote, ephemeral, sealed_key, sealed_time, mac1, mac2 = _INITIATION.unpack(message)
        if not hmac.compare_digest(mac1, mac(self._mac1, message[:-32])):
            raise Refused("a handshake for another peer: its first authenticator is wrong")
        if mac2 != bytes(16):
            raise Refused("a handshake with a cookie that nobody gave")
        try:
            chain = digest(CONSTRUCTION)
            state = digest(digest(chain, IDENTIFIER), self._public)
            (chain,) = kdf(chain, ephemeral, 1)
            state = digest(state, ephemeral)
            chain, key = kdf(chain, self._exchange(self._private, ephemeral), 2)
            static = ChaCha20Poly1305(key).decrypt(nonce(0), sealed_key, state)
            if not hmac.compare_digest(static, self._guest):
                raise Refused("a handshake by another key than the declared one")
            state = digest(state, sealed_key)
            chain, key = kdf(chain, self._exchange(self._private, static), 2)
            stamp = ChaCha20Poly1305(key).decrypt(nonce(0), sealed_time, state)
            state = digest(state, sealed_time)
        except InvalidTag as error:
            raise Refused("a handshake that does not authenticate") from error
        if stamp <= self._latest:
            raise Refused("a handshake that is not newer than the one before")
        self._latest = stamp
        return self._answer(remote, ephemeral, chain, state)

    @staticmethod
    def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
        try:
            return private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            # All zeros: a point of small order (RFC 7748 6.1).
            raise Refused("a handshake with a key that is none") from error

    def _answer(self, remote: int, ephemeral: bytes, chain: bytes, state: bytes) -> Received:
        own = self._fresh()
        public = own.public_key().public_bytes_raw()
        (chain,) = kdf(chain, public, 1)
        state = digest(state, public)
        (chain,) = kdf(chain, self._exchange(own, ephemeral), 1)
        (chain,) = kdf(chain, self._exchange(own, self._guest), 1)
        chain, mixed, key = kdf(chain, self._preshared, 3)
        state = digest(state, mixed)
        nothing = ChaCha20Poly1305(key).encrypt(nonce(0), b"", state)
        # Indices that differ from each other are enough: they need not be secret.
        self._number = (self._number + 0x01000193) & 0xFFFFFFFF
        body = _RESPONSE.pack(2, self._number, remote, public, nothing, bytes(16), bytes(16))[:-32]
        answer = body + mac(self._guest_mac1, body) + bytes(16)
        receive, send = kdf(chain, b"", 2)
        session = Session(self._number, remote, receive, send)
        self._sessions[self._number] = session
        while len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        return Received(session, answer)
