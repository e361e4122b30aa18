"""IPv4 (RFC 791) and IPv6 (RFC 8200) headers, and fragments put together, with bounds."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pytest_osgates.vm.network.wire import Malformed

_V6_HEAD = struct.Struct("!IHBB16s16s")
# Hop-by-hop, routing, destination options, mobility, HIP, shim6: length in units of 8 bytes without the first 8.
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})
_AH = 51
_FRAGMENT = 44
_OPTIONS = frozenset({0, 60})
_ROUTING = 43
# Router Alert (RFC 2113, RFC 2711), which reports of multicast groups carry; it says nothing.
_ALERT4, _ALERT6 = b"\x94\x04\0\0", b"\x05\x02\0\0"
MAX_PENDING = 64
MAX_DATAGRAM = 65535


@dataclass(slots=True)
class Header:
    """What an IP header says. `more`, `offset` (bytes): of a fragment; `ident` and the addresses name its whole.

    `size`: of the packet with its header; what follows in the frame is padding. `odd`: an option or a header before
    the payload that ordinary traffic has not: it may carry data, or lead elsewhere than the destination says.
    """

    src: bytes
    dst: bytes
    protocol: int
    payload: bytes
    hop_limit: int
    ident: int = 0
    offset: int = 0
    more: bool = False
    size: int = 0
    odd: str = ""

    @property
    def fragment(self) -> bool:
        """A part of a packet."""
        return self.more or self.offset > 0


def parse4(data: bytes) -> Header:
    """One IPv4 packet, padding behind it cut off.

    :raise Malformed: it is not one.
    """
    if len(data) < 20 or data[0] >> 4 != 4:
        raise Malformed("IPv4 header cut short")
    length = (data[0] & 15) * 4
    total = (data[2] << 8) | data[3]
    if length < 20 or total < length or total > len(data):
        raise Malformed("IPv4 lengths do not fit the frame")
    flags = (data[6] << 8) | data[7]
    return Header(
        data[12:16],
        data[16:20],
        data[9],
        data[length:total],
        data[8],
        (data[4] << 8) | data[5],
        (flags & 0x1FFF) * 8,
        bool(flags & 0x2000),
        total,
        _odd4(data[20:length]) if length > 20 else "",
    )


def _odd4(options: bytes) -> str:
    """The first option that is not padding (RFC 791 3.1) or Router Alert."""
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == 0:
            return "IPv4 options behind their end" if options[at:].strip(b"\0") else ""
        if kind == 1:
            at += 1
        elif options[at : at + 4] == _ALERT4:
            at += 4
        else:
            return f"IPv4 option {kind}"
    return ""


def _odd6(options: bytes) -> str:
    """The first option that is not padding with zeros (RFC 8200 4.2) or Router Alert."""
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == 0:
            at += 1
            continue
        end = at + 2 + (options[at + 1] if at + 1 < len(options) else 0)
        if options[at:end] != _ALERT6 and (kind != 1 or end > len(options) or options[at + 2 : end].strip(b"\0")):
            return f"IPv6 option {kind}"
        at = end
    return ""


def parse6(data: bytes) -> Header:
    """One IPv6 packet with its extension headers passed over.

    :raise Malformed: it is not one.
    """
    if len(data) < 40 or data[0] >> 4 != 6:
        raise Malformed("IPv6 header cut short")
    _, size, following, hops, src, dst = _V6_HEAD.unpack_from(data)
    end = 40 + size
    if end > len(data):
        raise Malformed("IPv6 length does not fit the frame")
    at, ident, offset, more, odd = 40, 0, 0, False, ""
    while following in _EXTENSIONS or following in (_FRAGMENT, _AH):
        if at + 8 > end:
            raise Malformed("IPv6 extension header cut short")
        kind, following, step = following, data[at], data[at + 1]
        if kind == _FRAGMENT:
            part = (data[at + 2] << 8) | data[at + 3]
            ident = int.from_bytes(data[at + 4 : at + 8], "big")
            offset, more = part & 0xFFF8, bool(part & 1)
            at += 8
            if offset:
                # What follows is not a header: it is the middle of the packet.
                break
        else:
            begin = at + 2
            at += (step + 2) * 4 if kind == _AH else (step + 1) * 8
            if kind == _ROUTING:
                odd = odd or "IPv6 routing header"
            else:
                odd = odd or (_odd6(data[begin:at]) if kind in _OPTIONS else f"IPv6 header {kind}")
        if at > end:
            raise Malformed("IPv6 extension header cut short")
    return Header(src, dst, following, data[at:end], hops, ident, offset, more, end, odd)


@dataclass(slots=True)
class _Partial:
    pieces: dict[int, bytes] = field(default_factory=dict)
    total: int | None = None
    size: int = 0
    protocol: int = 0


class Reassembler:
    """At most `MAX_PENDING` packets of at most 64 KiB; the oldest goes first, and `lost` counts it."""

    def __init__(self) -> None:
        self._pending: dict[tuple[bytes, bytes, int, int], _Partial] = {}
        self.lost = 0

    @property
    def pending(self) -> int:
        """Packets of which parts are still missing."""
        return len(self._pending)

    def add(self, part: Header) -> Header | None:
        """The whole packet once its last missing part came, else None.

        :raise Malformed: parts that overlap (RFC 5722) or reach beyond 64 KiB.
        """
        # IPv6 counts idents per pair of addresses; IPv4 per protocol too, and its later parts repeat the protocol.
        key = (part.src, part.dst, part.ident, part.protocol if len(part.src) == 4 else 0)
        partial = self._pending.get(key)
        if partial is None:
            if len(self._pending) >= MAX_PENDING:
                del self._pending[next(iter(self._pending))]
                self.lost += 1
            partial = self._pending[key] = _Partial()
        if part.offset + len(part.payload) > MAX_DATAGRAM:
            del self._pending[key]
            raise Malformed("fragments reach beyond 64 KiB")
        known = partial.pieces.get(part.offset)
        if known is not None and known != part.payload:
            del self._pending[key]
            raise Malformed("fragments overlap")
        if known is None:
            partial.pieces[part.offset] = part.payload
            partial.size += len(part.payload)
        if part.offset == 0:
            partial.protocol = part.protocol
        if not part.more:
            partial.total = part.offset + len(part.payload)
        if partial.total is None or partial.size < partial.total:
            return None
        del self._pending[key]
        whole, at = [], 0
        for offset in sorted(partial.pieces):
            if offset != at:
                raise Malformed("fragments overlap")
            whole.append(partial.pieces[offset])
            at += len(whole[-1])
        if at != partial.total:
            raise Malformed("fragments overlap")
        return Header(part.src, part.dst, partial.protocol, b"".join(whole), part.hop_limit)
