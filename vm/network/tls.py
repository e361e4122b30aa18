"""Reads a TLS ClientHello (RFC 8446 4.1.2): SNI (RFC 6066), ALPN (RFC 7301), Encrypted ClientHello (RFC 9849)."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_osgates.vm.network.wire import Malformed, safe_ascii

HANDSHAKE, ALERT, CLIENT_HELLO = 22, 21, 1
SNI, ALPN, VERSIONS, ECH = 0, 16, 43, 0xFE0D
MAX_HELLO = 1 << 16
# Fatal, handshake_failure (RFC 8446 6.2).
ALERT_RECORD = b"\x15\x03\x03\x00\x02\x02\x28"


@dataclass(frozen=True)
class ClientHello:
    """What a client says in the clear. `outer`: SNI stands on the outside of an encrypted hello."""

    sni: str
    alpn: tuple[str, ...]
    ech: bool
    versions: tuple[int, ...]
    quic_parameters: bool = False


class _Reader:
    def __init__(self, data: bytes, at: int, end: int) -> None:
        if end > len(data):
            raise Malformed("a ClientHello cut short")
        self._data, self.at, self.end = data, at, end

    def number(self, size: int) -> int:
        if self.at + size > self.end:
            raise Malformed("a ClientHello cut short")
        value = int.from_bytes(self._data[self.at : self.at + size], "big")
        self.at += size
        return value

    def block(self, size: int) -> _Reader:
        """What follows a length of `size` bytes."""
        length = self.number(size)
        if self.at + length > self.end:
            raise Malformed("a ClientHello cut short")
        inner = _Reader(self._data, self.at, self.at + length)
        self.at += length
        return inner

    def rest(self) -> bytes:
        data = self._data[self.at : self.end]
        self.at = self.end
        return data

    def skip(self, size: int) -> None:
        if self.at + size > self.end:
            raise Malformed("a ClientHello cut short")
        self.at += size


def looks_like(data: bytes) -> bool:
    """Whether a stream that begins like this is TLS: a handshake record of a known version."""
    return len(data) >= 3 and data[0] == HANDSHAKE and data[1] == 3 and data[2] <= 4


def handshake_of(stream: bytes) -> bytes | None:
    """The first handshake message of a stream of records, joined; None while bytes are missing.

    :raise Malformed: not TLS, or too long.
    """
    at, joined = 0, b""
    while at + 5 <= len(stream):
        if stream[at] != HANDSHAKE or stream[at + 1] != 3:
            raise Malformed("a TLS stream that does not begin with a handshake")
        size = (stream[at + 3] << 8) | stream[at + 4]
        joined += stream[at + 5 : at + 5 + size]
        if len(joined) >= 4:
            wanted = 4 + int.from_bytes(joined[1:4], "big")
            if wanted > MAX_HELLO:
                raise Malformed(f"a handshake message of {wanted} bytes")
            if len(joined) >= wanted:
                return joined[:wanted]
        if size == 0 or at + 5 + size > len(stream):
            break
        at += 5 + size
    return None


def parse_hello(message: bytes) -> ClientHello:
    """A ClientHello handshake message: type, length, body.

    :raise Malformed: it is none, or cut short.
    """
    if len(message) < 4 or message[0] != CLIENT_HELLO:
        raise Malformed("not a ClientHello")
    reader = _Reader(message, 4, 4 + int.from_bytes(message[1:4], "big"))
    legacy = reader.number(2)
    reader.skip(32)
    reader.block(1)
    reader.block(2)
    reader.block(1)
    sni, alpn, ech, quic, versions = "", [], False, False, [legacy]
    if reader.at < reader.end:
        extensions = reader.block(2)
        while extensions.at < extensions.end:
            kind = extensions.number(2)
            body = extensions.block(2)
            if kind == SNI and body.at < body.end:
                names = body.block(2)
                while names.at < names.end:
                    what, name = names.number(1), names.block(2).rest()
                    if what == 0:
                        sni = safe_ascii(name).lower().rstrip(".")
            elif kind == ALPN:
                protocols = body.block(2)
                while protocols.at < protocols.end:
                    alpn.append(safe_ascii(protocols.block(1).rest(), 40))
            elif kind == VERSIONS:
                listed = body.block(1).rest()
                versions = [int.from_bytes(listed[i : i + 2], "big") for i in range(0, len(listed) - 1, 2)]
            elif kind == ECH:
                ech = True
            elif kind in {0x39, 0xFFA5}:
                quic = True
    return ClientHello(sni, tuple(alpn[:20]), ech, tuple(versions[:20]), quic)
