"""UDP (RFC 768): what has a protocol here is answered, everything else is noted and gets none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_osgates.vm.network import dhcp, dhcpv6, link_names, ntp, openvpn, quic, ssdp, wireguard
from pytest_osgates.vm.network.wire import UDP, Malformed, Packet, ip, mac_text, text_of, udp

if TYPE_CHECKING:
    from pytest_osgates.vm.network.sinkhole import Sinkhole

# A flow is looked at this often: a QUIC hello takes up to four datagrams.
LOOKS = 4
MAX_FLOWS = 50_000


class Udp:
    """All datagrams of one sinkhole. `bulk`: flows of which nothing more is to be learned, with their counts."""

    def __init__(self, sink: Sinkhole) -> None:
        self._sink = sink
        self._seen: dict[bytes, int] = {}
        self.bulk: dict[bytes, int] = {}
        self._hellos = quic.HelloAssembler()

    def packet(self, packet: Packet) -> None:
        """One datagram.

        :raise Malformed: it is cut short.
        """
        segment = packet.payload
        if len(segment) < 8:
            raise Malformed("UDP header cut short")
        sport, dport = (segment[0] << 8) | segment[1], (segment[2] << 8) | segment[3]
        size = (segment[4] << 8) | segment[5]
        if not 8 <= size <= len(segment):
            raise Malformed("UDP length does not fit the packet")
        data = segment[8:size]
        sink = self._sink
        if sink.tunnel is not None and sink.tunnel.takes(packet.dst, dport):
            sink.tunnel.datagram(packet, sport, dport, data)
        elif dport == 53:
            answer = sink.resolve(packet, data, sport, dport, "udp")
            if answer is not None:
                self._reply(packet, sport, dport, answer)
        elif dport == 67 and len(packet.src) == 4:
            self._dhcp(packet, data)
        elif dport == 547:
            self._dhcpv6(packet, data)
        elif dport == 123 and not packet.multicast:
            self._ntp(packet, sport, dport, data)
        elif dport in {link_names.MDNS_PORT, link_names.LLMNR_PORT, ssdp.PORT} and packet.multicast:
            self._shout(packet, sport, dport, data)
        else:
            self._other(packet, sport, dport, data)

    def _reply(self, packet: Packet, sport: int, dport: int, data: bytes) -> None:
        sink = self._sink
        if sink.permits("udp", f"udp:{dport}"):
            sink.send(packet.link, ip(packet.dst, packet.src, UDP, udp(packet.dst, dport, packet.src, sport, data)))

    def _dhcp(self, packet: Packet, data: bytes) -> None:
        sink, settings = self._sink, self._sink.settings
        message = dhcp.parse(data)
        answer = dhcp.answer(message, settings) if sink.permits("dhcp", "udp:67") else None
        granted = answer is not None and dhcp.is_grant(answer)
        sink.event(
            "dhcp",
            packet,
            68,
            67,
            kind=message.word,
            mac=mac_text(message.mac),
            host=message.host or message.fqdn,
            client_id=message.client_id.hex(),
            vendor=message.vendor,
            granted=text_of(settings.guest) if granted else "",
        )
        if granted:
            # It may not say a word with it for long, but can be asked for it.
            sink.guest_addresses.setdefault(settings.guest, packet.source_mac)
            if sink.prober is not None:
                sink.prober.learn(settings.guest, packet.source_mac)
        if answer is not None:
            # A client that has an address gets its answer there, others by broadcast (RFC 2131 4.1).
            own = message.raw[12:16]
            to = own if own != bytes(4) and dhcp.is_grant(answer) else b"\xff\xff\xff\xff"
            body = udp(settings.gateway, 67, to, 68, answer)
            sink.send(packet.link, ip(settings.gateway, to, UDP, body))

    def _dhcpv6(self, packet: Packet, data: bytes) -> None:
        sink, settings = self._sink, self._sink.settings
        message = dhcpv6.parse(data)
        sink.event(
            "dhcpv6",
            packet,
            546,
            547,
            kind=message.word,
            duid=message.duid.hex(),
            host=message.fqdn,
            vendor=message.vendor,
        )
        answer = dhcpv6.answer(message, settings) if sink.permits("dhcpv6", "udp:547") else None
        if answer is not None:
            body = udp(settings.link_local, 547, packet.src, 546, answer)
            sink.send(packet.link, ip(settings.link_local, packet.src, UDP, body))

    def _ntp(self, packet: Packet, sport: int, dport: int, data: bytes) -> None:
        sink = self._sink
        sink.event("ntp", packet, sport, dport)
        answer = ntp.answer(data, sink.log.clock()) if sink.permits("ntp", "udp:123") else None
        if answer is not None:
            self._reply(packet, sport, dport, answer)

    def _shout(self, packet: Packet, sport: int, dport: int, data: bytes) -> None:
        if dport == ssdp.PORT:
            said = ssdp.parse(data)
            if said is None:
                self._other(packet, sport, dport, data)
                return
            self._sink.event("ssdp", packet, sport, dport, kind=said.method, target=said.target, server=said.server)
            return
        shout = link_names.parse(data)
        kind = "mdns" if dport == link_names.MDNS_PORT else "llmnr"
        self._sink.event(kind, packet, sport, dport, asked=list(shout.asked), told=list(shout.told))

    def _other(self, packet: Packet, sport: int, dport: int, data: bytes) -> None:
        key = packet.src + packet.dst + packet.payload[:4]
        looks = self._seen.get(key, 0) + 1
        if looks == 1 and len(self._seen) >= MAX_FLOWS:
            self._seen.clear()
            self.bulk.clear()
        self._seen[key] = looks
        if looks >= LOOKS and len(key) == 12 and packet.vlan is None:
            self.bulk[key] = 0
        sink = self._sink
        kind = wireguard.recognise(data)
        if kind:
            if looks == 1:
                sink.event("wireguard", packet, sport, dport, kind=kind)
            return
        if quic.looks_like(data):
            self._quic(packet, sport, dport, data, looks)
            return
        kind = openvpn.recognise(data)
        if kind and looks == 1:
            sink.event("openvpn", packet, sport, dport, kind=kind, transport="udp")
            return
        if looks == 1:
            sink.event("udp", packet, sport, dport, size=len(data), head=data[:48].hex())

    def _quic(self, packet: Packet, sport: int, dport: int, data: bytes, looks: int) -> None:
        sink = self._sink
        try:
            hello = self._hellos.add(quic.open_initial(data))
        except Malformed as error:
            if looks == 1:
                sink.event("quic", packet, sport, dport, sni="", alpn=[], ech=False, why=str(error))
                other = quic.version_negotiation(data) if "version" in str(error) else None
                if other is not None and sink.permits("quic", "quic"):
                    self._reply(packet, sport, dport, other)
            return
        if hello is not None:
            sink.event("quic", packet, sport, dport, sni=hello.sni, alpn=list(hello.alpn), ech=hello.ech)
