"""QUIC Initial packets (RFC 9000, RFC 9001, RFC 9369): their keys derive from the packet, so SNI can be read."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from pytest_osgates.vm.network import tls
from pytest_osgates.vm.network.wire import Malformed

V1, V2, DRAFT29 = 0x00000001, 0x6B3343CF, 0xFF00001D
# RFC 9001 5.2, RFC 9369 3.3.1, draft-ietf-quic-tls-29 5.2; then labels for key, iv and header protection.
_SALTS = {
    V1: (bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), "quic "),
    V2: (bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), "quicv2 "),
    DRAFT29: (bytes.fromhex("afbfec289993d24c9e9786f19c6111e04390a899"), "quic "),
}
MAX_CRYPTO = 1 << 16
MAX_CONNECTIONS = 256


@dataclass(frozen=True)
class Initial:
    """An Initial packet of a client, opened: the pieces of its CRYPTO stream by their offsets."""

    version: int
    dcid: bytes
    pieces: dict[int, bytes]


def looks_like(data: bytes) -> bool:
    """A long header with the fixed bit, of a known version or a version that is being greased (RFC 9000 15)."""
    if len(data) < 7 or data[0] & 0xC0 != 0xC0:
        return False
    version = int.from_bytes(data[1:5], "big")
    return version in _SALTS or (version & 0x0F0F0F0F == 0x0A0A0A0A) or 0xFF000000 < version <= 0xFF0000FF


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise Malformed("QUIC cut short")
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        raise Malformed("QUIC cut short")
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size


def _expand(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label with SHA-256 (RFC 8446 7.1); no output here needs more than one block."""
    full = b"tls13 " + label.encode()
    info = size.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0"
    return hmac.digest(secret, info + b"\x01", hashlib.sha256)[:size]


def client_keys(version: int, dcid: bytes) -> tuple[bytes, bytes, bytes]:
    """Key, iv and header protection key of a client's Initial packets."""
    salt, prefix = _SALTS[version]
    client = _expand(hmac.digest(salt, dcid, hashlib.sha256), "client in", 32)
    return _expand(client, f"{prefix}key", 16), _expand(client, f"{prefix}iv", 12), _expand(client, f"{prefix}hp", 16)


def open_initial(data: bytes) -> Initial:
    """Decrypt the Initial packet that a datagram begins with.

    :raise Malformed: it begins with something else, its version is unknown, or it does not authenticate.
    """
    if len(data) < 7 or data[0] & 0xC0 != 0xC0:
        raise Malformed("not a QUIC long header")
    version = int.from_bytes(data[1:5], "big")
    if version not in _SALTS:
        raise Malformed(f"QUIC version {version:#x}")
    initial_type = 1 if version == V2 else 0
    if (data[0] >> 4) & 3 != initial_type:
        raise Malformed("not a QUIC Initial packet")
    at = 6 + data[5]
    dcid = data[6:at]
    if len(dcid) != data[5] or data[5] > 20 or at >= len(data):
        raise Malformed("QUIC connection id")
    at += 1 + data[at]
    token, at = _varint(data, at)
    at += token
    size, at = _varint(data, at)
    if at + size > len(data) or size < 20:
        raise Malformed("QUIC cut short")
    key, iv, hp = client_keys(version, dcid)
    plain = _unprotect(data, at, size, key, iv, hp)
    return Initial(version, dcid, _crypto_frames(plain))


def _unprotect(data: bytes, at: int, size: int, key: bytes, iv: bytes, hp: bytes) -> bytes:
    # Imported here: most machines never speak QUIC, and this import is the most costly one.
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    sample = data[at + 4 : at + 20]
    # RFC 9001 5.4.3 prescribes ECB for this one block.
    mask = Cipher(algorithms.AES(hp), modes.ECB()).encryptor().update(sample)  # noqa: S305
    first = data[0] ^ (mask[0] & 0x0F)
    length = (first & 3) + 1
    number = bytes(a ^ b for a, b in zip(data[at : at + length], mask[1:], strict=False))
    header = bytes((first,)) + data[1:at] + number
    nonce = (int.from_bytes(iv, "big") ^ int.from_bytes(number, "big")).to_bytes(12, "big")
    try:
        return AESGCM(key).decrypt(nonce, data[at + length : at + size], header)
    except (InvalidTag, ValueError) as error:
        raise Malformed("a QUIC Initial packet that does not authenticate") from error


def _crypto_frames(plain: bytes) -> dict[int, bytes]:
    pieces: dict[int, bytes] = {}
    at = 0
    while at < len(plain):
        kind = plain[at]
        at += 1
        if kind in {0, 1}:  # PADDING, PING
            continue
        if kind == 6:  # CRYPTO
            offset, at = _varint(plain, at)
            size, at = _varint(plain, at)
            if at + size > len(plain) or offset + size > MAX_CRYPTO:
                raise Malformed("a QUIC CRYPTO frame that does not fit")
            pieces[offset] = plain[at : at + size]
            at += size
        elif kind in {2, 3}:  # ACK
            _, at = _varint(plain, at)
            _, at = _varint(plain, at)
            ranges, at = _varint(plain, at)
            if ranges > len(plain):
                raise Malformed("a QUIC ACK frame that does not fit")
            for _ in range(1 + 2 * ranges + (3 if kind == 3 else 0)):
                _, at = _varint(plain, at)
        else:
            break
    return pieces


@dataclass(slots=True)
class _Stream:
    pieces: dict[int, bytes] = field(default_factory=dict)
    size: int = 0


class HelloAssembler:
    """Joins the CRYPTO streams of Initial packets: a hello with post-quantum keys takes two datagrams or more."""

    def __init__(self) -> None:
        self._streams: dict[bytes, _Stream] = {}

    def add(self, initial: Initial) -> tls.ClientHello | None:
        """The ClientHello once it is whole; None before.

        :raise Malformed: what it holds is none.
        """
        stream = self._streams.get(initial.dcid)
        if stream is None:
            if len(self._streams) >= MAX_CONNECTIONS:
                del self._streams[next(iter(self._streams))]
            stream = self._streams[initial.dcid] = _Stream()
        for offset, piece in initial.pieces.items():
            if len(piece) > len(stream.pieces.get(offset, b"")):
                stream.size += len(piece) - len(stream.pieces.get(offset, b""))
                stream.pieces[offset] = piece
        if stream.size > MAX_CRYPTO or len(stream.pieces) > 1000:
            del self._streams[initial.dcid]
            raise Malformed("a QUIC hello that is too long")
        joined = b""
        for offset in sorted(stream.pieces):
            if offset > len(joined):
                break
            joined = (
                joined[:offset] + stream.pieces[offset]
                if offset + len(stream.pieces[offset]) > len(joined)
                else joined
            )
        if len(joined) < 4 or len(joined) < 4 + int.from_bytes(joined[1:4], "big"):
            return None
        del self._streams[initial.dcid]
        return tls.parse_hello(joined)


def version_negotiation(data: bytes) -> bytes | None:
    """The answer to a version that is not spoken (RFC 9000 6): names version 1. None for a short packet."""
    if len(data) < 1200 or data[5] > 20:
        return None
    at = 6 + data[5]
    if at >= len(data) or data[at] > 20 or at + 1 + data[at] > len(data):
        return None
    dcid, scid = data[6:at], data[at + 1 : at + 1 + data[at]]
    return b"\xc0\0\0\0\0" + bytes((len(scid),)) + scid + bytes((len(dcid),)) + dcid + V1.to_bytes(4, "big")
