"""The closer look at packets that may tell something: names, applications, and what the link itself was told."""

from __future__ import annotations

import struct

from pytest_osgates.vm.capture.flows import Half, LinkFact, Query
from pytest_osgates.vm.network import (
    arp,
    dhcp,
    dhcpv6,
    dns,
    http,
    icmp,
    icmpv6,
    igmp,
    link_names,
    openvpn,
    quic,
    resolvers,
    ssdp,
    tls,
    wire,
    wireguard,
)
from pytest_osgates.vm.network import tcp as responder
from pytest_osgates.vm.network.ip import Header, Reassembler, parse4, parse6
from pytest_osgates.vm.network.wire import Malformed, mac_text, text_of

MAX_HALVES = 200_000
MAX_QUERIES = 50_000
MAX_FACTS = 5_000
MAX_NAMES = 100_000
MAX_SHARED = 20
MAX_EXAMPLES = 10
MAX_ASKED = 10_000
MAX_HEAD = 1 << 16
MAX_MACS = 8
# Bytes that a connection sends again before it is told: more than any query.
MAX_AGAIN = 4096
# A UDP flow is looked at this often: a QUIC hello takes up to four datagrams.
LOOKS = 4
# How much of an unknown datagram is told: all of a short one.
HEAD = 32
ENOUGH = 64
_VLAN = frozenset({b"\x81\x00", b"\x88\xa8"})
# Recursion desired, one question, nothing else.
_IN, _PLAIN_QUERY = b"\0\x01", b"\x01\0\0\x01\0\0\0\0\0\0"
_TCP = struct.Struct("!HHIIBB")
# Ports whose every datagram is read.
_READ_ALL = frozenset({53, 67, 68, 546, 547, link_names.MDNS_PORT, link_names.LLMNR_PORT, ssdp.PORT})


class Dissector:
    """Knows every half flow by its key; `bulk` holds those over plain IPv4 of which nothing more is to be learned.

    `outside`: the MAC address of all that is not the machine; empty where that is not known.
    """

    def __init__(self, outside: bytes = b"") -> None:
        self.outside = outside
        # Of the frame that is being read; whether the machine sent it, which may hold nothing besides what it is for.
        self._mac = b""
        self._strict = False
        self.halves: dict[tuple[int, bytes, bytes, int, int], Half] = {}
        self.bulk: dict[bytes, Half] = {}
        self.queries: dict[tuple[str, str, str, str, str], Query] = {}
        self.facts: dict[tuple[str, str, str], LinkFact] = {}
        # Which names an address was given for, in DNS answers.
        self.names: dict[str, dict[str, str]] = {}
        self.unparsed = 0
        self.examples: list[str] = []
        self.overflow = ""
        self.from_macs: dict[str, int] = {}
        self.phase = 0
        self.latency: dict[int, float] = {}
        self._asked: dict[tuple[bytes, ...], float] = {}
        self._fragments = Reassembler()
        self._hellos = quic.HelloAssembler()

    def frame(self, data: bytes, at: float, number: int, size: int) -> None:
        """One frame, whatever it holds. `size`: on the wire; `data` may be less of it. Never raises."""
        if len(data) >= 14:
            mac = data[6:12].hex(":")
            if mac in self.from_macs or len(self.from_macs) < MAX_FACTS:
                self.from_macs[mac] = self.from_macs.get(mac, 0) + 1
        try:
            if size > len(data):
                raise Malformed(f"the capture holds {len(data)} of {size} bytes")
            self._frame(data, at, number, size)
        except (Malformed, struct.error, IndexError, ValueError) as error:
            self.unparsed += 1
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append(f"packet {number}: {error}; begins with {data[:40].hex()}")

    def _frame(self, data: bytes, at: float, number: int, size: int) -> None:
        if len(data) < 14:
            raise Malformed("an Ethernet frame cut short")
        kind, begin, vlan = data[12:14], 14, -1
        while kind in _VLAN:
            if len(data) < begin + 4 or begin > 22:
                raise Malformed("a VLAN tag cut short")
            vlan = ((data[begin] << 8) | data[begin + 1]) & 0x0FFF
            kind, begin = data[begin + 2 : begin + 4], begin + 4
        mac = self._mac = data[6:12]
        self._strict = bool(self.outside) and mac != self.outside
        if vlan >= 0:
            self.fact("vlan", mac_text(mac), {"tag": str(vlan)}, at, number)
        if kind == wire.IPV4:
            header = parse4(data[begin:])
        elif kind == wire.IPV6:
            header = parse6(data[begin:])
        elif kind == wire.ARP:
            self._arp(arp.parse(data[begin:]), at, number)
            self._padding(data[begin + arp.SIZE :])
            return
        else:
            self.fact("ethertype", mac_text(mac), {"number": kind.hex(), "to": mac_text(data[:6])}, at, number)
            return
        rest = data[begin + header.size :]
        if header.odd:
            self.fact("ip-options", mac_text(mac), {"what": header.odd}, at, number)
        fragment = header.fragment
        if fragment:
            key = (header.protocol, header.src, header.dst, -1, header.ident & 0xFFFF)
            part = self._half(key, header, -1, -1)
            self._count(part, at, number, size, data)
            part.seen.note("IP fragments")
            whole = self._fragments.add(header)
            if whole is None:
                self._padding(rest)
                return
            header = whole
        self._packet(header, at, number, 0 if fragment else size, data, vlan, fragment)
        self._padding(rest)

    # -- flows ----------------------------------------------------------------------------------------------------

    def _half(self, key: tuple[int, bytes, bytes, int, int], header: Header, sport: int, dport: int) -> Half:
        half = self.halves.get(key)
        if half is None:
            if len(self.halves) >= MAX_HALVES:
                self.overflow = f"more than {MAX_HALVES} flows"
                # One that stands for all the rest: counted, not told apart.
                key = (header.protocol, b"\0" * len(header.src), b"\0" * len(header.dst), 0, 0)
                half = self.halves.get(key)
                if half is not None:
                    return half
            half = self.halves[key] = Half(header.protocol, header.src, header.dst, sport, dport)
            half.key = key
            half.past = [0] * self.phase
        return half

    def _count(self, half: Half, at: float, number: int, size: int, frame: bytes) -> None:
        if not half.packets:
            half.first, half.frame = at, number
            half.to, half.mac = frame[:6], frame[6:12]
        elif frame[6:12] != half.mac and frame[6:12] not in half.macs and len(half.macs) < MAX_MACS:
            half.macs += (frame[6:12],)
        half.packets += 1
        half.slow += 1
        half.octets += size
        half.last = at

    def _packet(
        self, header: Header, at: float, number: int, size: int, frame: bytes, vlan: int, fragment: bool
    ) -> None:
        protocol, payload = header.protocol, header.payload
        ports = protocol in {wire.TCP, wire.UDP}
        if ports and len(payload) < 8:
            raise Malformed("a header of TCP or UDP cut short")
        sport = (payload[0] << 8) | payload[1] if ports else 0
        dport = (payload[2] << 8) | payload[3] if ports else 0
        half = self._half((protocol, header.src, header.dst, sport, dport), header, sport, dport)
        self._count(half, at, number, size, frame)
        if vlan >= 0:
            half.seen.note(f"VLAN {vlan}")
        if fragment:
            half.seen.note("IP fragments")
        if protocol == wire.UDP:
            length = (payload[4] << 8) | payload[5]
            if not 8 <= length <= len(payload):
                raise Malformed("UDP length does not fit the packet")
            self._udp(half, payload[8:length], at, number)
            if self._strict and length != len(payload):
                raise Malformed(f"{len(payload) - length} bytes behind the datagram")
        elif protocol == wire.TCP:
            self._tcp(half, payload)
        elif protocol == wire.ICMP and payload:
            about = payload[0] not in icmp.ERRORS or icmp.is_about(payload, header.src, header.dst)
            half.seen.note(f"ICMP type {payload[0]}" + ("" if about else " about nothing that came"))
            half.seen.applications.setdefault("ping" if payload[0] in {0, 8} else "icmp")
            half.seen.initiator = payload[0] == 8 or None
        elif protocol == wire.ICMPV6 and payload:
            self._icmpv6(half, header, payload, at, number, frame[6:12])
        elif protocol == wire.IGMP and self._strict:
            self._groups(igmp.check(payload), at, number)
        plain = len(header.src) == 4 and vlan < 0 and not fragment and ports
        if plain and self._learned(half):
            self.bulk[header.src + header.dst + payload[:4]] = half

    def _learned(self, half: Half) -> bool:
        if half.protocol == wire.UDP:
            return half.looks >= LOOKS and half.sport not in _READ_ALL and half.dport not in _READ_ALL
        return half.head is None

    # -- UDP ------------------------------------------------------------------------------------------------------

    def _udp(self, half: Half, data: bytes, at: float, number: int) -> None:
        half.looks += 1
        seen, sport, dport = half.seen, half.sport, half.dport
        multicast = half.dst[0] == 0xFF if len(half.dst) == 16 else half.dst[0] >= 224
        if dport == 53 or sport == 53:
            self._dns(half, data, "udp", at, number)
        elif {sport, dport} <= {67, 68} and len(half.src) == 4:
            seen.applications.setdefault("dhcp")
            if dport == 67:
                self._dhcp(dhcp.parse(data), at, number)
        elif dport == 547 and len(half.src) == 16:
            seen.applications.setdefault("dhcpv6")
            self._dhcpv6(half, dhcpv6.parse(data), at, number)
        elif sport == 547 and dport == 546 and len(half.src) == 16:
            seen.applications.setdefault("dhcpv6")
        elif dport == 123 or sport == 123:
            seen.applications.setdefault("ntp")
        elif dport in {link_names.MDNS_PORT, link_names.LLMNR_PORT} and multicast:
            kind = "mdns" if dport == link_names.MDNS_PORT else "llmnr"
            seen.applications.setdefault(kind)
            shout = link_names.parse(data)
            told = {"asked": " ".join(shout.asked), "told": " ".join(shout.told)}
            self.fact(kind, text_of(half.src), {key: text for key, text in told.items() if text}, at, number)
        elif dport == ssdp.PORT and multicast:
            seen.applications.setdefault("ssdp")
            said = ssdp.parse(data)
            if said is not None:
                self.fact("ssdp", text_of(half.src), {"target": said.target, "server": said.server}, at, number)
        else:
            self._udp_other(half, data)
        if half.looks == 1 and not seen.applications:
            seen.note(f"{len(data)} bytes, begins with {data[:HEAD].hex()}")

    def _udp_other(self, half: Half, data: bytes) -> None:
        seen = half.seen
        kind = wireguard.recognise(data)
        if kind:
            seen.applications.setdefault("wireguard")
            seen.note(f"WireGuard {kind}")
            # An answer begins with its own index, then that of whom it answers.
            if kind == wireguard.KINDS[1]:
                self._ask((b"wireguard", half.src, half.dst, data[4:8]), half.last)
            elif kind == wireguard.KINDS[2]:
                self._answered((b"wireguard", half.dst, half.src, data[8:12]), half.last)
            return
        if quic.looks_like(data):
            seen.applications.setdefault("quic")
            try:
                hello = self._hellos.add(quic.open_initial(data))
            except Malformed as error:
                if half.looks == 1 and half.dport == 443:
                    seen.note(f"QUIC: {error}")
                return
            if hello is not None:
                self._hello(half, hello, "quic")
            return
        kind = openvpn.recognise(data)
        if kind:
            seen.applications.setdefault("openvpn")
            seen.note(f"OpenVPN {kind}")

    def _hello(self, half: Half, hello: tls.ClientHello, how: str) -> None:
        seen = half.seen
        seen.name(hello.sni, how)
        if hello.ech:
            seen.note("ECH: the true name is encrypted")
            seen.applications.setdefault("ech")
        if hello.alpn:
            seen.note(f"ALPN {' '.join(hello.alpn)}")
        if not hello.sni:
            seen.note("no SNI")
        seen.initiator = True
        who = resolvers.provider(hello.sni, text_of(half.dst))
        if half.dport == resolvers.DOT_PORT or "dot" in hello.alpn or "doq" in hello.alpn:
            seen.applications.setdefault("dot")
        elif who:
            seen.applications.setdefault("doh")
        if who:
            seen.note(f"resolver of {who}")

    # -- TCP ------------------------------------------------------------------------------------------------------

    def _tcp(self, half: Half, segment: bytes) -> None:
        sport, _, seq, ack, offset, flags = _TCP.unpack_from(segment)
        begin = (offset >> 4) * 4
        if begin < 20 or begin > len(segment):
            raise Malformed("TCP header cut short")
        seen = half.seen
        if flags & responder.SYN:
            seen.initiator = not flags & responder.ACK
            if seen.initiator:
                # The same ports once more: another connection, that may say another name.
                if half.head and half.dport == 53:
                    seen.note(f"{len(half.head)} bytes that are no DNS query")
                half.head = b""
                self.bulk.pop(half.src + half.dst + segment[:4], None)
            if len(segment) > begin:
                seen.note("data in a SYN")
            half.next = (seq + 1) & 0xFFFFFFFF
            if seen.initiator:
                self._ask((half.src, half.dst, segment[:4], half.next.to_bytes(4, "big")), half.last)
            else:
                ports = segment[2:4] + segment[:2]
                self._answered((half.dst, half.src, ports, ack.to_bytes(4, "big")), half.last)
            if not seen.initiator and sport != 53:
                half.head = None
            return
        data = segment[begin:]
        if not data or half.head is None:
            return
        if half.next is None:
            half.next = seq
        if seq != half.next:
            # Sent again, or out of order: what is missing comes again, or is not told.
            again = (half.next - seq) & 0xFFFFFFFF
            if again >= 1 << 31:
                seen.note("segments out of order")
                return
            half.again += min(again, len(data))
            if half.again > MAX_AGAIN:
                seen.note("much that is sent again")
            if again >= len(data):
                return
            data = data[again:]
        half.next = (half.next + len(data)) & 0xFFFFFFFF
        half.head += data
        try:
            self._stream(half, half.head)
        except Malformed:
            half.head = None
            raise

    def _stream(self, half: Half, head: bytes) -> None:
        seen = half.seen
        if half.dport == 53 or half.sport == 53:
            while len(head) >= 2 and len(head) >= 2 + int.from_bytes(head[:2], "big"):
                size = int.from_bytes(head[:2], "big")
                self._dns(half, head[2 : 2 + size], "tcp", half.last, half.frame)
                head = head[2 + size :]
            half.head = head if len(head) <= MAX_HEAD else None
            return
        if tls.looks_like(head):
            seen.applications.setdefault("tls")
            message = tls.handshake_of(head)
            if message is not None:
                half.head = None
                if message[0] == tls.CLIENT_HELLO:
                    self._hello(half, tls.parse_hello(message), "sni")
        elif http.looks_like(head):
            seen.applications.setdefault("http")
            request = http.parse(head)
            if request is not None:
                half.head = None
                seen.name(request.host, "host")
                seen.initiator = True
                seen.note(f"{request.method} {request.target}")
                if request.user_agent:
                    seen.note(f"User-Agent {request.user_agent}")
                if resolvers.is_doh(request):
                    seen.applications.setdefault("doh")
        elif len(head) >= ENOUGH or b"\n" in head:
            half.head = None
            if openvpn.recognise(head, stream=True):
                seen.applications.setdefault("openvpn")
            else:
                seen.note(f"begins with {head[:16].hex()}")
        elif len(head) > MAX_HEAD:
            half.head = None

    # -- DNS ------------------------------------------------------------------------------------------------------

    def _dns(self, half: Half, data: bytes, transport: str, at: float, number: int) -> None:
        half.seen.applications.setdefault("dns")
        if half.dport == 53 and not self._is_answer(half, data):
            question = dns.parse_question(data)
            half.seen.initiator = True
            self._ask((half.src, half.dst, half.sport.to_bytes(2, "big"), data[:2]), at)
            self._query(half, question.name, question.word, transport, at, number)
            if not data.endswith(_IN, 0, question.after) or len(data) != question.after or data[2:12] != _PLAIN_QUERY:
                if more := dns.beyond(data, question):
                    half.seen.note(more)
                for name in dns.other_questions(data, question):
                    self._query(half, name, "another question", transport, at, number)
            return
        self._answered((half.dst, half.src, half.dport.to_bytes(2, "big"), data[:2]), at)
        message = dns.parse(data)
        if self.outside and self._mac != self.outside:
            # What the machine says of names itself is not believed.
            return
        asked = message.questions[0][0] if message.questions else ""
        aliases = [record.value for record in message.records if record.kind == dns.CNAME]
        for record in message.records:
            if record.kind in {dns.A, dns.AAAA} and record.value:
                self._named(record.value, asked, "dns")
                for alias in aliases:
                    self._named(record.value, alias, "cname")
        if aliases:
            for (name, *_), query in self.queries.items():
                if name == asked:
                    query.aliases.update(dict.fromkeys(aliases[:20]))

    def _is_answer(self, half: Half, data: bytes) -> bool:
        """Whether what goes from one port 53 to another is an answer: none of the machine's is."""
        return half.sport == 53 and len(data) > 2 and bool(data[2] & 0x80) and self._mac == self.outside

    def _query(self, half: Half, name: str, word: str, transport: str, at: float, number: int) -> None:
        key = (name, word, text_of(half.src), text_of(half.dst), transport)
        query = self.queries.get(key)
        if query is not None:
            query.count += 1
            query.last = at
        elif len(self.queries) < MAX_QUERIES:
            query = self.queries[key] = Query(*key, first=at, last=at, frame=number)
        else:
            self.overflow = f"more than {MAX_QUERIES} different DNS queries"
            return
        query.phases[self.phase] = query.phases.get(self.phase, 0) + 1

    def _ask(self, key: tuple[bytes, ...], at: float) -> None:
        if len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        # Asked again, the first time counts.
        self._asked.setdefault(key, at)

    def _answered(self, key: tuple[bytes, ...], at: float) -> None:
        begun = self._asked.pop(key, None)
        if begun is not None:
            self.latency[self.phase] = max(self.latency.get(self.phase, 0.0), at - begun)

    def _named(self, address: str, name: str, how: str) -> None:
        if address in self.names or len(self.names) < MAX_NAMES:
            names = self.names.setdefault(address, {})
            if name and len(names) < MAX_SHARED:
                names.setdefault(name, how)
            elif name and name not in names:
                self.overflow = f"more than {MAX_SHARED} names of one address"

    # -- the link -------------------------------------------------------------------------------------------------

    def fact(self, kind: str, src: str, details: dict[str, str], at: float, number: int) -> None:
        """Remember what was told on the link."""
        key = (kind, src, " ".join(f"{name}={text}" for name, text in details.items()))
        known = self.facts.get(key)
        if known is not None:
            known.count += 1
        elif len(self.facts) < MAX_FACTS:
            self.facts[key] = LinkFact(kind, src, details, at, number)
        else:
            self.overflow = f"more than {MAX_FACTS} different things told on the link"

    def _arp(self, packet: arp.Arp, at: float, number: int) -> None:
        if packet.operation == arp.REPLY:
            self._answered((b"arp", packet.target, packet.sender), at)
        elif not packet.claims and self._mac != self.outside:
            self._ask((b"arp", packet.sender, packet.target), at)
        details = {"claims" if packet.claims else "asks": text_of(packet.target)}
        if packet.operation == arp.REPLY:
            details = {"answers": text_of(packet.sender)}
        self.fact("arp", mac_text(self._mac), details, at, number)

    def _dhcp(self, message: dhcp.Message, at: float, number: int) -> None:
        details = {
            "kind": message.word,
            "host": message.host,
            "client_id": message.client_id.hex(),
            "vendor": message.vendor,
            "user_class": message.user_class,
            "fqdn": message.fqdn,
            "hardware": mac_text(message.mac) if message.mac != self._mac else "",
            "other": "; ".join(message.other),
        }
        self.fact("dhcp", mac_text(self._mac), {key: text for key, text in details.items() if text}, at, number)

    def _dhcpv6(self, half: Half, message: dhcpv6.Message, at: float, number: int) -> None:
        details = {
            "kind": message.word,
            "host": message.fqdn,
            "duid": message.duid.hex(),
            "vendor": message.vendor,
            "other": "; ".join(message.other),
        }
        if self._strict and message.kind not in dhcpv6.KINDS:
            raise Malformed(f"DHCPv6 message of type {message.kind}, which clients do not send")
        told = {key: text for key, text in details.items() if text}
        self.fact("dhcpv6", mac_text(self._mac), told, at, number)

    def _icmpv6(self, half: Half, header: Header, message: bytes, at: float, number: int, mac: bytes) -> None:
        kind = message[0]
        seen = half.seen
        if kind in {icmpv6.ECHO, icmpv6.ECHO_REPLY}:
            seen.applications.setdefault("ping")
            seen.initiator = kind == icmpv6.ECHO or None
            return
        seen.applications.setdefault("nd" if 133 <= kind <= 137 else "mld" if kind in icmpv6.LISTENER else "icmpv6")
        about = kind not in icmpv6.ERRORS or icmpv6.is_about(message, header.src, header.dst)
        seen.note(f"ICMPv6 type {kind}" + ("" if about else " about nothing that came"))
        if self._strict:
            self._groups(icmpv6.check(message), at, number)
        target = icmpv6.solicited_target(message)
        if target is not None:
            # Without a source: duplicate address detection of what it is about to use (RFC 4862 5.4).
            how = "asks" if header.src.strip(b"\0") else "claims"
            self.fact("address", mac_text(mac), {how: text_of(target)}, at, number)

    def _groups(self, groups: list[bytes], at: float, number: int) -> None:
        for group in groups:
            self.fact("group", mac_text(self._mac), {"joins": text_of(group)}, at, number)

    def _padding(self, rest: bytes) -> None:
        """What follows a packet in its frame is zeros (IEEE 802.3 3.2.8 leaves it open, RFC 1042 does not).

        :raise Malformed: the machine sent something else.
        """
        if self._strict and rest.strip(b"\0"):
            raise Malformed(f"{len(rest)} bytes behind the packet, which are no padding")
