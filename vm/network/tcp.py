"""A small TCP responder (RFC 9293): accepts all connections, reads what a client says first, acknowledges the rest.

No congestion control, no retransmission: the link is a socket on this host and loses nothing. What comes out of order
is not kept; the duplicate acknowledgement makes the client send it again.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from pytest_osgates.vm.network import dns, http, openvpn, resolvers, tls
from pytest_osgates.vm.network.wire import TCP, Malformed, Packet, ip, pseudo, text_of

if TYPE_CHECKING:
    from pytest_osgates.vm.network.sinkhole import Sinkhole

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
MAX_FLOWS = 20_000
MAX_HEAD = 1 << 16
MSS = 1400
WINDOW = 65535
# A stream that is neither TLS, HTTP nor DNS says what it is within this many bytes, or not at all.
ENOUGH = 64
_HEAD = struct.Struct("!HHIIBBHHH")


class Session(Protocol):
    """A TLS connection that is being completed."""

    def feed(self, data: bytes) -> bytes:
        """Takes what came and gives what is to be sent."""

    def gone(self) -> None:
        """The client ended the connection."""

    @property
    def finished(self) -> bool:
        """Whether the connection is to be closed."""


class Flow:
    """One connection. `rcv` and `snd`: the next sequence numbers; `head`: what the client said, while it matters."""

    __slots__ = (
        *("closing", "dirty", "dport", "dst", "head", "key", "link", "rcv", "received", "session", "snd", "sport"),
        "src",
    )

    def __init__(self, packet: Packet, sport: int, dport: int, seq: int) -> None:
        self.link = packet.link
        self.src, self.dst = packet.src, packet.dst
        self.sport, self.dport = sport, dport
        self.key = packet.src + packet.dst + packet.payload[:4]
        self.rcv = (seq + 1) & 0xFFFFFFFF
        self.snd = 0x4F534741
        self.head: bytes | None = b""
        self.received = 0
        self.session: Session | None = None
        self.dirty = False
        self.closing = False


class Tcp:
    """All connections of one sinkhole. `bulk`: those of which nothing more is to be learned."""

    def __init__(self, sink: Sinkhole) -> None:
        self._sink = sink
        self.flows: dict[bytes, Flow] = {}
        self.bulk: dict[bytes, Flow] = {}
        self.dirty: list[Flow] = []
        self.mss = MSS

    def packet(self, packet: Packet) -> None:
        """One segment.

        :raise Malformed: it is cut short.
        """
        segment = packet.payload
        if len(segment) < 20:
            raise Malformed("TCP header cut short")
        sport, dport, seq, ack, offset, flags, _, _, _ = _HEAD.unpack_from(segment)
        begin = (offset >> 4) * 4
        if begin < 20 or begin > len(segment):
            raise Malformed("TCP header cut short")
        key = packet.src + packet.dst + segment[:4]
        flow = self.flows.get(key)
        if flags & SYN:
            if not flags & ACK:
                self._open(packet, sport, dport, seq, flow)
            return
        if flags & RST:
            self._forget(key)
            return
        if flow is None:
            if not flags & ACK or not self._sink.permits("tcp", f"tcp:{dport}"):
                return
            # Begun before this sinkhole was there, or long forgotten.
            self._sink.event("tcp-stray", packet, sport, dport)
            self._reset(packet, sport, dport, ack)
            return
        data = segment[begin:]
        if data and seq == flow.rcv:
            flow.rcv = (seq + len(data)) & 0xFFFFFFFF
            flow.received += len(data)
            self.mark(flow)
            try:
                self._data(flow, packet, data)
            except Malformed:
                # Told once; what follows in this stream cannot be read either.
                self._bulk(flow)
                raise
        elif data:
            self.mark(flow)
        if flags & FIN and (seq + len(data)) & 0xFFFFFFFF == flow.rcv:
            self._leave(flow, packet)

    def mark(self, flow: Flow) -> None:
        """An acknowledgement is due; one is enough for all that came together."""
        if not flow.dirty:
            flow.dirty = True
            self.dirty.append(flow)

    def acknowledge(self) -> None:
        """Send the acknowledgements that are due."""
        for flow in self.dirty:
            if flow.dirty:
                self._send(flow, ACK)
        self.dirty.clear()

    def _open(self, packet: Packet, sport: int, dport: int, seq: int, known: Flow | None) -> None:
        if known is not None and known.rcv == (seq + 1) & 0xFFFFFFFF and known.received == 0:
            flow = known
            flow.snd = (flow.snd - 1) & 0xFFFFFFFF
        else:
            flow = Flow(packet, sport, dport, seq)
            self._sink.event("tcp", packet, sport, dport)
            if len(self.flows) >= MAX_FLOWS:
                self._forget(next(iter(self.flows)))
            self._forget(flow.key)
            self.flows[flow.key] = flow
        if self._sink.permits("tcp", f"tcp:{dport}"):
            self._send(flow, SYN | ACK)

    def _forget(self, key: bytes) -> None:
        flow = self.flows.pop(key, None)
        self.bulk.pop(key, None)
        if flow is not None and flow.session is not None:
            flow.session.gone()
            flow.session = None

    def _leave(self, flow: Flow, packet: Packet) -> None:
        if flow.head and not flow.closing:
            self._other(flow, packet, flow.head)
        flow.rcv = (flow.rcv + 1) & 0xFFFFFFFF
        if flow.closing:
            self._send(flow, ACK)
        else:
            flow.closing = True
            self._send(flow, FIN | ACK)
        self._forget(flow.key)

    # -- what the client says -------------------------------------------------------------------------------------

    def _data(self, flow: Flow, packet: Packet, data: bytes) -> None:
        if flow.session is not None:
            self._secured(flow, data)
            return
        if flow.head is None:
            return
        head = flow.head = flow.head + data
        if len(head) > MAX_HEAD:
            self._other(flow, packet, head)
        elif flow.dport == 53:
            self._dns(flow, packet)
        elif tls.looks_like(head):
            self._tls(flow, packet, head)
        elif http.looks_like(head):
            self._http(flow, packet, head)
        elif len(head) >= ENOUGH or b"\n" in head or openvpn.recognise(head, stream=True):
            self._other(flow, packet, head)

    def _bulk(self, flow: Flow) -> None:
        flow.head = None
        if len(flow.key) == 12 and packetless(flow.link):
            self.bulk[flow.key] = flow

    def _other(self, flow: Flow, packet: Packet, head: bytes) -> None:
        kind = openvpn.recognise(head, stream=True)
        if kind:
            self._sink.event("openvpn", packet, flow.sport, flow.dport, kind=kind, transport="tcp")
        else:
            self._sink.event("tcp-data", packet, flow.sport, flow.dport, head=head[:48].hex())
        self._bulk(flow)

    def _dns(self, flow: Flow, packet: Packet) -> None:
        head = flow.head or b""
        while len(head) >= 2:
            size = int.from_bytes(head[:2], "big")
            if len(head) < 2 + size:
                break
            answer = self._sink.resolve(packet, head[2 : 2 + size], flow.sport, flow.dport, "tcp")
            head = head[2 + size :]
            if answer is not None:
                self.write(flow, len(answer).to_bytes(2, "big") + answer)
        flow.head = head

    def _tls(self, flow: Flow, packet: Packet, head: bytes) -> None:
        message = tls.handshake_of(head)
        if message is None:
            return
        hello = tls.parse_hello(message)
        name = hello.sni or self._sink.names.name(flow.dst)
        who = resolvers.provider(name, text_of(flow.dst))
        kind = "dot" if flow.dport == resolvers.DOT_PORT or "dot" in hello.alpn else "doh" if who else "tls"
        self._sink.event(
            kind,
            packet,
            flow.sport,
            flow.dport,
            sni=hello.sni,
            alpn=list(hello.alpn),
            ech=hello.ech,
            **({"provider": who} if who else {}),
        )
        if self._sink.blocked_name(hello.sni):
            self._reset(packet, flow.sport, flow.dport, flow.snd)
            self._forget(flow.key)
            return
        if not self._sink.permits(kind, "tls"):
            self._bulk(flow)
            return
        session = self._sink.session(hello.sni or text_of(flow.dst), packet, flow.sport, flow.dport)
        if session is None:
            self._bulk(flow)
            self.write(flow, tls.ALERT_RECORD)
            self._close(flow)
            return
        flow.session = session
        flow.head = None
        self._secured(flow, head)

    def _secured(self, flow: Flow, data: bytes) -> None:
        session = flow.session
        if session is None:
            return
        answer = session.feed(data)
        if answer:
            self.write(flow, answer)
        if session.finished:
            flow.session = None
            self._bulk(flow)
            self._close(flow)

    def _http(self, flow: Flow, packet: Packet, head: bytes) -> None:
        request = http.parse(head)
        if request is None:
            return
        answer, portal = http.answer(request)
        self._sink.event(
            "http",
            packet,
            flow.sport,
            flow.dport,
            method=request.method,
            host=request.host,
            target=request.target,
            user_agent=request.user_agent,
            portal=portal,
            doh=resolvers.is_doh(request),
        )
        self._bulk(flow)
        if self._sink.blocked_name(request.host):
            self._reset(packet, flow.sport, flow.dport, flow.snd)
            self._forget(flow.key)
        elif self._sink.permits("http", "http"):
            self.write(flow, answer)
            self._close(flow)

    # -- what is sent ---------------------------------------------------------------------------------------------

    def write(self, flow: Flow, data: bytes) -> None:
        """Send `data` in segments."""
        for at in range(0, len(data), self.mss):
            self._send(flow, ACK | PSH, data[at : at + self.mss])

    def _close(self, flow: Flow) -> None:
        if not flow.closing:
            flow.closing = True
            self._send(flow, FIN | ACK)

    def _send(self, flow: Flow, flags: int, data: bytes = b"") -> None:
        options = b"\x02\x04\x05\xb4" if flags & SYN else b""
        size = 20 + len(options) + len(data)
        head = _HEAD.pack(flow.dport, flow.sport, flow.snd, flow.rcv, (20 + len(options)) << 2, flags, WINDOW, 0, 0)
        self._emit(flow.link, flow.dst, flow.src, head + options + data, size)
        flow.snd = (flow.snd + len(data) + (1 if flags & (SYN | FIN) else 0)) & 0xFFFFFFFF
        if flags & ACK:
            flow.dirty = False

    def _reset(self, packet: Packet, sport: int, dport: int, seq: int) -> None:
        head = _HEAD.pack(dport, sport, seq, 0, 20 << 2, RST, 0, 0, 0)
        self._emit(packet.link, packet.dst, packet.src, head, 20)

    def _emit(self, link: bytes, src: bytes, dst: bytes, segment: bytes, size: int) -> None:
        covered = pseudo(src, dst, TCP, size) + segment
        if len(covered) & 1:
            covered += b"\0"
        total = 0xFFFF - int.from_bytes(covered, "big") % 0xFFFF
        self._sink.send(link, ip(src, dst, TCP, segment[:16] + total.to_bytes(2, "big") + segment[18:]))


def packetless(link: bytes) -> bool:
    """Whether frames of a flow with this answering link header are plain Ethernet, as the fast path reads them."""
    return len(link) == 12


def question_in(stream: bytes) -> dns.Question | None:
    """The first question of a DNS stream (RFC 7766): for readers of captures. None: not complete, or not DNS."""
    if len(stream) < 2 or len(stream) < 2 + int.from_bytes(stream[:2], "big"):
        return None
    try:
        return dns.parse_question(stream[2:])
    except Malformed:
        return None
