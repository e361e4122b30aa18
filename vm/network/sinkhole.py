"""The sinkhole: takes Ethernet frames, answers as the internet would, and leads nowhere. Pure: no socket, no file.

`Sinkhole.feed` takes QEMU's stream (each frame behind its length, 4 bytes big-endian; net/stream.c) and leaves the
answers in `out`. Whatever a frame holds, nothing is raised: what cannot be read is an event and is counted.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from pytest_osgates.vm.network import arp, dns, icmp, icmpv6, wire
from pytest_osgates.vm.network.authority import Authority, Completed
from pytest_osgates.vm.network.events import EventLog
from pytest_osgates.vm.network.ip import Header, Reassembler, parse4, parse6
from pytest_osgates.vm.network.names import NameTable
from pytest_osgates.vm.network.prober import Prober
from pytest_osgates.vm.network.settings import Misbehaviour, Refusal, Settings, TlsAnswer
from pytest_osgates.vm.network.tcp import Session, Tcp
from pytest_osgates.vm.network.udp import Udp
from pytest_osgates.vm.network.wire import Malformed, Packet, mac_text, text_of

if TYPE_CHECKING:
    from pytest_osgates.vm.network.secure_dns import SecureResolver
    from pytest_osgates.vm.network.tunnel import Tunnel

MAX_FRAME = 1 << 17
# Routers speak up by themselves, at least this often (RFC 4861 6.2.1: half an hour), guest seconds.
ADVERTISE_S = 1800.0
_ENCRYPTED = frozenset({"dot", "doh"})
VLAN = frozenset({b"\x81\x00", b"\x88\xa8"})

# The length, then an Ethernet frame with IPv4 without options: EtherType and first byte together, total length,
# fragment bits, protocol, addresses and ports together; and for TCP sequence number, header length, flags.
_FAST = struct.Struct("!I12x3sxH2xHxB2x12sI4xBB")
_PLAIN = b"\x08\x00\x45"
_FRAGMENT = 0x3FFF
_CLOSING = 0x07
_LEAST = 4 + 14 + 20 + 14


class Sinkhole:
    """One network card's other end.

    `out`: frames to be sent, oldest first. `rx`, `tx`: frames and bytes, of frames as they are on the wire, without
    the stream's lengths. `broken`: the stream was not framed as documented, and nothing more is known of it.
    """

    def __init__(self, settings: Settings, log: EventLog, authority: Authority | None = None) -> None:
        self.settings = settings
        self.misbehaviour = settings.misbehaviour
        self.log = log
        self.names = NameTable()
        self.tcp = Tcp(self)
        self.udp = Udp(self)
        self.out: list[bytes] = []
        self.rx_frames = self.rx_bytes = self.tx_frames = self.tx_bytes = 0
        self.unparsed = 0
        self.queries = 0
        self.broken = False
        # What the guest called itself on the link, for probes from here.
        self.guest_mac: bytes = b"\xff" * 6
        self.guest_addresses: dict[bytes, bytes] = {}
        self.answered: set[bytes] = set()
        self._advertised: float | None = None
        self.authority = authority
        # What the profile declares, and is set by whoever knows where it writes to.
        self.tunnel: Tunnel | None = None
        self.secure: SecureResolver | None = None
        self.prober = None if settings.probing is None else Prober(self, settings)
        self._fragments = Reassembler()
        self._once: set[tuple[object, ...]] = set()

    # -- in -------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> int:
        """Take all whole frames that `data` begins with; how many bytes they were."""
        at, end, frames = 0, len(data), 0
        unpack, plain = _FAST.unpack_from, _PLAIN
        tcp_bulk, udp_bulk = self.tcp.bulk.get, self.udp.bulk
        mark = self.tcp.dirty.append
        while end - at >= 4:
            if end - at >= _LEAST:
                size, kind, total, part, protocol, ends, seq, offset, flags = unpack(data, at)
                after = at + 4 + size
                if after > end:
                    break
                if kind == plain and not part & _FRAGMENT and size >= 54:
                    if protocol == 6:
                        flow = tcp_bulk(ends)
                        if flow is not None and seq == flow.rcv and not flags & _CLOSING:
                            length = total - 20 - ((offset >> 2) & 0x3C)
                            if 0 < length <= size - 34:
                                flow.rcv = (seq + length) & 0xFFFFFFFF
                                flow.received += length
                                if not flow.dirty:
                                    flow.dirty = True
                                    mark(flow)
                            frames += 1
                            at = after
                            continue
                    elif protocol == 17 and ends in udp_bulk:
                        udp_bulk[ends] += 1
                        frames += 1
                        at = after
                        continue
            else:
                size = int.from_bytes(data[at : at + 4], "big")
                after = at + 4 + size
                if after > end:
                    break
            self.frame(data[at + 4 : after])
            frames += 1
            at = after
        if end - at >= 4 and int.from_bytes(data[at : at + 4], "big") > MAX_FRAME:
            self.broken = True
            self.log.add("broken-stream")
        self.rx_frames += frames
        self.rx_bytes += at - 4 * frames
        if self.tcp.dirty:
            self.tcp.acknowledge()
        return at

    def frame(self, frame: bytes) -> None:
        """One frame. Never raises."""
        try:
            self._frame(frame)
        except Malformed as error:
            self._unparsed(frame, str(error))
        except (struct.error, IndexError, ValueError) as error:
            self._unparsed(frame, f"{type(error).__name__}: {error}")

    def _unparsed(self, frame: bytes, why: str) -> None:
        self.unparsed += 1
        self.log.add("unparsed", why=why[:200], head=frame[:64].hex(), size=len(frame))

    def _frame(self, frame: bytes) -> None:
        if len(frame) < 14:
            raise Malformed("an Ethernet frame cut short")
        if self.prober is not None and self.prober.takes(frame):
            return
        kind, at, vlan, tags = frame[12:14], 14, None, b""
        while kind in VLAN:
            # Tags nest (IEEE 802.1ad); each is 4 bytes.
            if len(frame) < at + 4 or at > 22:
                raise Malformed("a VLAN tag cut short")
            vlan = ((frame[at] << 8) | frame[at + 1]) & 0x0FFF
            tags += kind + frame[at : at + 2]
            kind, at = frame[at + 2 : at + 4], at + 4
        source = frame[6:12]
        link = source + self.settings.hardware + tags
        if vlan is not None:
            self.note("vlan", tag=vlan, mac=mac_text(source))
        if kind == wire.IPV4:
            self._ip(parse4(frame[at:]), link, source, vlan, frame)
        elif kind == wire.IPV6:
            self._ip(parse6(frame[at:]), link, source, vlan, frame)
        elif kind == wire.ARP:
            self._arp(arp.parse(frame[at:]), link, source)
            self._advertise()
        else:
            self.note("ethertype", kind=kind.hex(), mac=mac_text(source), to=mac_text(frame[:6]))

    def _ip(self, header: Header, link: bytes, source: bytes, vlan: int | None, frame: bytes) -> None:
        fragmented = header.fragment
        if fragmented:
            self.note("fragment", src=text_of(header.src), dst=text_of(header.dst), protocol=header.protocol)
            whole = self._fragments.add(header)
            if whole is None:
                return
            header = whole
        packet = Packet(
            *(link, source, header.src, header.dst, header.protocol, header.payload, vlan, fragmented),
            header.hop_limit,
        )
        if header.src not in self.guest_addresses and header.src.strip(b"\0") and len(self.guest_addresses) < 1000:
            self.guest_addresses[header.src] = source
            self.log.add("address", address=text_of(header.src), mac=mac_text(source))
            if self.prober is not None:
                self.prober.learn(header.src, source)
        self.guest_mac = source
        if not self.permits("ipv4" if len(header.src) == 4 else "ipv6"):
            self.note("blocked", what="ip", dst=text_of(header.dst))
            return
        protocol = header.protocol
        if protocol == wire.UDP:
            self.udp.packet(packet)
        elif protocol == wire.TCP:
            self.tcp.packet(packet)
        elif protocol == wire.ICMP and len(header.src) == 4:
            self._icmp(packet)
        elif protocol == wire.ICMPV6 and len(header.src) == 16:
            self._icmpv6(packet)
        elif protocol == wire.IGMP:
            self.note("igmp", src=text_of(header.src), dst=text_of(header.dst))
        else:
            self.note(
                "protocol",
                number=protocol,
                src=text_of(header.src),
                dst=text_of(header.dst),
                name=self.names.name(header.dst),
            )

    def _arp(self, packet: arp.Arp, link: bytes, source: bytes) -> None:
        own = {self.settings.gateway, self.settings.resolver}
        kind = "claim" if packet.claims else "ask"
        self.note("arp", kind=kind, target=text_of(packet.target), mac=mac_text(source))
        if packet.operation == arp.REPLY:
            self.answered.add(packet.sender)
            self.log.add("arp-reply", address=text_of(packet.sender), mac=mac_text(packet.sender_mac))
            return
        if not self.permits("arp"):
            return
        taken = packet.target in self.guest_addresses or packet.target == self.settings.guest
        if packet.operation == arp.REQUEST and (packet.target in own or not (packet.claims or taken)):
            self.send(link, arp.reply(packet, self._owner(packet.target)))

    def _icmp(self, packet: Packet) -> None:
        message = packet.payload
        if not message:
            raise Malformed("ICMP cut short")
        self.note(
            "icmp",
            type=message[0],
            src=text_of(packet.src),
            dst=text_of(packet.dst),
            name=self.names.name(packet.dst),
        )
        answer = icmp.echo_reply(message) if self.permits("icmp") and not packet.multicast else None
        if answer is not None:
            self.send(packet.link, wire.ip(packet.dst, packet.src, wire.ICMP, answer))

    def _icmpv6(self, packet: Packet) -> None:
        message, settings = packet.payload, self.settings
        if len(message) < 4:
            raise Malformed("ICMPv6 cut short")
        kind = message[0]
        self.note(
            "icmpv6",
            type=kind,
            src=text_of(packet.src),
            dst=text_of(packet.dst),
            name=self.names.name(packet.dst),
        )
        nobody = not packet.src.strip(b"\0")
        if not settings.ipv6 or not self.permits("icmpv6"):
            return
        if kind == icmpv6.ROUTER_SOLICITATION:
            if self.permits("ra"):
                to = icmpv6.ALL_NODES if nobody else packet.src
                self._icmpv6_send(packet, settings.link_local, to, icmpv6.router_advertisement(settings), 2)
                self._advertised = self.log.clock()
        elif kind == icmpv6.NEIGHBOUR_SOLICITATION:
            self._advertise()
            target = icmpv6.solicited_target(message)
            # Without a source it asks whether its own address is free (RFC 4862 5.4): nobody else has it.
            if target is not None and not nobody and target not in self.guest_addresses:
                body = icmpv6.neighbour_advertisement(target, self._owner(target))
                self._icmpv6_send(packet, target, packet.src, body, 2)
            elif target is not None and nobody and self.prober is not None:
                self.prober.learn(target, packet.source_mac)
        elif kind == icmpv6.NEIGHBOUR_ADVERTISEMENT and len(message) >= 24:
            self.answered.add(message[8:24])
        elif kind == icmpv6.ECHO and not packet.multicast and not nobody:
            answer = icmpv6.echo_reply(message)
            if answer is not None:
                self._icmpv6_send(packet, packet.dst, packet.src, answer, 2)

    def _owner(self, address: bytes) -> bytes:
        """The hardware address behind an address that is not the guest's."""
        near = None if self.prober is None else self.prober.owner(address)
        return self.settings.hardware if near is None else near

    def _advertise(self) -> None:
        """Say once more that there is a router, to whoever asked before and may have forgotten it."""
        now = self.log.clock()
        if self._advertised is None or now - self._advertised < ADVERTISE_S or not self.permits("ra", "icmpv6"):
            return
        self._advertised = now
        source, body = self.settings.link_local, icmpv6.router_advertisement(self.settings)
        body = wire.with_checksum(source, icmpv6.ALL_NODES, wire.ICMPV6, body, 2)
        link = b"\x33\x33\0\0\0\x01" + self.settings.hardware
        self.send(link, wire.ip(source, icmpv6.ALL_NODES, wire.ICMPV6, body, 255))

    def _icmpv6_send(self, packet: Packet, src: bytes, dst: bytes, body: bytes, at: int) -> None:
        body = wire.with_checksum(src, dst, wire.ICMPV6, body, at)
        self.send(packet.link, wire.ip(src, dst, wire.ICMPV6, body, 255))

    # -- names ----------------------------------------------------------------------------------------------------

    def resolve(self, packet: Packet, query: bytes, sport: int, dport: int, transport: str) -> bytes | None:
        """The answer to a DNS query, whichever server it was sent to; None: it gets none.

        :raise Malformed: it is no query.
        """
        question = dns.parse_question(query)
        self.queries += 1
        name = question.name
        # By hand, because it is the busiest event: names are plain but for backslashes.
        text = name.replace("\\", "\\\\")
        self.log.line(
            f'"event": "dns", "src": "{text_of(packet.src)}", "dst": "{text_of(packet.dst)}", "sport": {sport}, '
            f'"dport": {dport}, "query": "{text}", "type": "{question.word}", "transport": "{transport}"'
        )
        if transport in _ENCRYPTED and name:
            # The capture cannot tell which address was given for it.
            given = [text_of(self.names.address(name, v6=six)) for six in (False, True)]
            self.log.add("secure-answer", query=name, addresses=given)
        if not self.permits("dns", f"{transport}:{dport}"):
            return None
        if self.misbehaviour.names and self.blocked_name(name):
            return None if self.misbehaviour.refusal is Refusal.DROP else dns.refusal(query, question, dns.NXDOMAIN)
        if question.kind == dns.PTR:
            return self._reverse(query, question)
        if not name:
            return dns.refusal(query, question, 0)
        v4 = self.names.address(name, v6=False)
        v6 = self.names.address(name, v6=True) if self.settings.ipv6 else b""
        if question.kind == dns.AAAA and not v6:
            return dns.refusal(query, question, 0)
        return dns.answer(query, question, v4, v6)

    def _reverse(self, query: bytes, question: dns.Question) -> bytes:
        address = dns.reverse_address(question.name)
        raw = wire.address_of(address) if address else b""
        name = self.names.name(raw) if raw else ""
        if not name:
            return dns.refusal(query, question, dns.NXDOMAIN)
        body = dns.write_name(name)
        record = b"\xc0\x0c\0\x0c\0\x01\0\0\x01\x2c" + len(body).to_bytes(2, "big") + body
        head = dns.refusal(query, question, 0)
        return head[:6] + b"\0\x01" + head[8:] + record

    def blocked_name(self, name: str) -> bool:
        """Whether `name` is to be refused."""
        for pattern in self.misbehaviour.names:
            if name == pattern.removeprefix("*.") or (pattern[0] == "*" and name.endswith(pattern[1:])):
                return True
        return False

    # -- out ------------------------------------------------------------------------------------------------------

    def permits(self, *kinds: str) -> bool:
        """Whether what is named so may be answered now."""
        wrong = self.misbehaviour
        return not wrong.blocked or not any(kind in wrong.blocked for kind in kinds)

    def behave(self, misbehaviour: Misbehaviour) -> None:
        """From now on."""
        self.misbehaviour = misbehaviour
        self.log.add("misbehaviour", blocked=list(misbehaviour.blocked), names=list(misbehaviour.names))

    def send(self, link: bytes, packet: bytes) -> None:
        """Queue a frame for the guest."""
        if self.misbehaviour.silent:
            return
        frame = link + packet
        if len(frame) < wire.MIN_FRAME:
            frame += bytes(wire.MIN_FRAME - len(frame))
        self.tx_frames += 1
        self.tx_bytes += len(frame)
        self.out.append(len(frame).to_bytes(4, "big") + frame)

    def probe(self) -> list[str]:
        """Ask for every address that the guest has used, from outside: ARP or neighbour solicitation. Whom."""
        asked = []
        settings = self.settings
        self.answered.clear()
        for address, mac in list(self.guest_addresses.items())[:16]:
            link = mac + settings.hardware
            if len(address) == 4:
                self.send(link, arp.request(settings.hardware, settings.gateway, address))
            else:
                source = settings.link_local
                body = icmpv6.neighbour_solicitation(address, settings.hardware)
                body = wire.with_checksum(source, address, wire.ICMPV6, body, 2)
                self.send(link, wire.ip(source, address, wire.ICMPV6, body, 255))
            asked.append(text_of(address))
        return asked

    def session(self, name: str, packet: Packet, sport: int, dport: int) -> Session | None:
        """A TLS server for `name`, where the settings ask for one."""
        if self.secure is not None and self.secure.takes(packet.dst, dport):
            return self.secure.session(self, packet, sport, dport)
        if self.authority is None or self.settings.tls is not TlsAnswer.COMPLETE:
            return None
        return Completed(
            self.authority.context(name),
            lambda event, fields: self.event(event, packet, sport, dport, sni=name, **fields),
        )

    # -- events ---------------------------------------------------------------------------------------------------

    def event(self, kind: str, packet: Packet, sport: int, dport: int, /, **fields: object) -> None:
        """An event with both ends, and the name that stands behind the destination's address."""
        extra = f", {json.dumps(fields)[1:-1]}" if fields else ""
        # JSON texts: a name out of the table is plain but for its backslashes.
        name = self.names.name(packet.dst).replace("\\", "\\\\")
        vlan = "" if packet.vlan is None else f', "vlan": {packet.vlan}'
        self.log.line(
            f'"event": "{kind}", "src": "{text_of(packet.src)}", "dst": "{text_of(packet.dst)}", "sport": {sport}, '
            f'"dport": {dport}, "name": "{name}"{vlan}{extra}'
        )

    def flush(self) -> None:
        """Write what is pending."""
        self.log.flush()
        if self.tunnel is not None:
            self.tunnel.flush()

    def note(self, kind: str, /, **fields: object) -> None:
        """An event that is worth one line however often it comes."""
        key = (kind, *fields.values())
        if key not in self._once:
            if len(self._once) < 50_000:
                self._once.add(key)
            self.log.add(kind, **fields)

    def stats(self) -> dict[str, object]:
        """Counts, for whoever compares them with the capture's."""
        return {
            "rx_frames": self.rx_frames,
            "rx_bytes": self.rx_bytes,
            "tx_frames": self.tx_frames,
            "tx_bytes": self.tx_bytes,
            "queries": self.queries,
            "names": len(self.names),
            "names_full": self.names.full,
            "unparsed": self.unparsed,
            "fragments_pending": self._fragments.pending,
            "fragments_lost": self._fragments.lost,
            "broken": self.broken,
            "events": self.log.written,
            "events_dropped": self.log.dropped,
            "log_failure": self.log.failure,
            "addresses": [text_of(address) for address in self.guest_addresses],
            "answered": [text_of(address) for address in sorted(self.answered)],
            "vpn": None if self.tunnel is None else self.tunnel.stats(),
            "secure": None if self.secure is None else self.secure.stats(),
        }
