"""The VPN peer that a profile declares: what the guest sends into the tunnel meets an internet of its own."""

from __future__ import annotations

import dataclasses
import struct

from pytest_osgates.vm.network import icmpv6, wire
from pytest_osgates.vm.network.declared import Vpn
from pytest_osgates.vm.network.events import EventLog
from pytest_osgates.vm.network.ip import parse4, parse6
from pytest_osgates.vm.network.sinkhole import Sinkhole
from pytest_osgates.vm.network.tunnel_pcap import TunnelCapture
from pytest_osgates.vm.network.wire import Malformed, Packet
from pytest_osgates.vm.network.wireguard import KEY_BYTES, decode_key
from pytest_osgates.vm.network.wireguard_peer import Refused, Responder

MAX_CAPTURE = 2 << 30
# An inner packet stays below a tunnel's usual MTU of 1420 bytes.
MSS = 1280


class Inside(Sinkhole):
    """What is behind the tunnel: the same as outside, without a link. `out`: whole IP packets."""

    def __init__(self, outer: Sinkhole, log: EventLog, capture: TunnelCapture) -> None:
        super().__init__(dataclasses.replace(outer.settings, vpn=None), log, outer.authority)
        # One name, one address, whichever way it is asked for and reached.
        self.names = outer.names
        self.secure = outer.secure
        self.tcp.mss = MSS
        self.capture = capture

    def packet(self, data: bytes) -> list[bytes]:
        """One IP packet of the guest; the answers. Never raises."""
        self.rx_frames += 1
        self.rx_bytes += len(data)
        self.capture.add(self.log.clock(), data, ours=False)
        try:
            version = data[0] >> 4 if data else 0
            if version not in {4, 6}:
                raise Malformed("neither IPv4 nor IPv6")
            header = parse4(data) if version == 4 else parse6(data)
            self._ip(header, b"", bytes(6), None, data)
        except Malformed as error:
            self._unparsed(data, str(error))
        except (struct.error, IndexError, ValueError) as error:
            self._unparsed(data, f"{type(error).__name__}: {error}")
        if self.tcp.dirty:
            self.tcp.acknowledge()
        answers = list(self.out)
        self.out.clear()
        return answers

    def send(self, link: bytes, packet: bytes) -> None:
        """Queue a packet, which comes behind its EtherType."""
        if self.misbehaviour.silent:
            return
        self.tx_frames += 1
        self.tx_bytes += len(packet) - 2
        self.out.append(packet[2:])
        self.capture.add(self.log.clock(), packet[2:], ours=True)

    def _icmpv6(self, packet: Packet) -> None:
        # Nobody announces routes in a tunnel.
        if packet.payload[:1] != bytes((icmpv6.ROUTER_SOLICITATION,)):
            super()._icmpv6(packet)


class Tunnel:
    """The WireGuard peer of one sinkhole. `refused`: how many datagrams a peer would have dropped, by the reason."""

    def __init__(self, outer: Sinkhole, vpn: Vpn, log: EventLog, capture: TunnelCapture) -> None:
        preshared = decode_key(vpn.preshared_key) if vpn.preshared_key else bytes(KEY_BYTES)
        self._peer = Responder(decode_key(vpn.private_key), decode_key(vpn.guest_key), preshared)
        self._outer, self._port = outer, vpn.port
        literal = wire.address_of(vpn.host)
        self.addresses = (
            (literal,)
            if literal
            else (outer.names.address(vpn.host, v6=False), outer.names.address(vpn.host, v6=True))
        )
        self.inside = Inside(outer, log, capture)
        self.capture = capture
        self.datagrams = self.initiations = self.handshakes = self.keepalives = self.data = 0
        self.refused: dict[str, int] = {}

    def takes(self, dst: bytes, dport: int) -> bool:
        """Whether a datagram is for the declared endpoint."""
        return dport == self._port and dst in self.addresses

    def datagram(self, packet: Packet, sport: int, dport: int, data: bytes) -> None:
        """One that came to the endpoint. Never raises."""
        self.datagrams += 1
        outer = self._outer
        try:
            received = self._peer.receive(data)
        except Refused as error:
            why = str(error)
            if why not in self.refused:
                outer.event("vpn-refused", packet, sport, dport, why=why, size=len(data), head=data[:48].hex())
            self.refused[why] = self.refused.get(why, 0) + 1
            return
        if received.inner is None:
            self.initiations += 1
            outer.event("vpn-initiation", packet, sport, dport)
            self._reply(packet, sport, dport, received.answer)
            return
        if received.confirms:
            self.handshakes += 1
            outer.event("vpn-handshake", packet, sport, dport)
        if not received.inner:
            self.keepalives += 1
            return
        self.data += 1
        # Without an answer a keepalive: who hears nothing for 15 s begins anew (section 6.5).
        for answer in self.inside.packet(received.inner) or [b""]:
            self._reply(packet, sport, dport, received.session.seal(answer))

    def _reply(self, packet: Packet, sport: int, dport: int, data: bytes) -> None:
        outer = self._outer
        if outer.permits("udp", f"udp:{dport}", "wireguard"):
            body = wire.udp(packet.dst, dport, packet.src, sport, data)
            outer.send(packet.link, wire.ip(packet.dst, packet.src, wire.UDP, body))

    def flush(self) -> None:
        """Write what is pending."""
        self.inside.log.flush()
        self.capture.flush()

    def stats(self) -> dict[str, object]:
        """Counts; `inside` as a sinkhole's own."""
        return {
            "addresses": [wire.text_of(address) for address in self.addresses],
            "datagrams": self.datagrams,
            "initiations": self.initiations,
            "handshakes": self.handshakes,
            "keepalives": self.keepalives,
            "data": self.data,
            "refused": self.refused,
            "capture_failure": self.capture.failure,
            "inside": {**self.inside.stats(), "answers_dropped": 0, "partial_bytes": 0},
        }
