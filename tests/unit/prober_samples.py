"""A guest's network that is played, and a prober with a clock of their own."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any

from net_samples import MAC, Guest, payload_of

from pytest_osgates.vm.network import arp, icmpv6, probe_frames, wire
from pytest_osgates.vm.network.ip import parse4, parse6
from pytest_osgates.vm.network.prober import Prober
from pytest_osgates.vm.network.settings import Probing, Settings

V4 = bytes((10, 0, 2, 15))
LL = bytes.fromhex("fe80000000000000505400fffe123456")
GLOBAL = Settings().prefix + bytes.fromhex("505400fffe123456")
SYN, RST, ACK = 2, 4, 16


def v4_or_v6(address: bytes) -> str:
    return wire.text_of(address)


class Stack:
    """A guest's network: answers frames as it is told to. `answer`: of a TCP port: open, closed, reject, drop."""

    def __init__(self, answer: Callable[[int], str] = lambda port: "drop", **options: Any) -> None:
        self.answer = answer
        self.udp: dict[int, bytes] = options.get("udp", {})
        self.echo: bool = options.get("echo", False)
        self.arp: bool = options.get("arp", True)
        self.lost: Callable[[int], bool] = options.get("lost", lambda number: False)
        self.dead_after: int = options.get("dead_after", 1 << 60)
        self.taken = 0
        self.resets: list[int] = []
        self.seen: list[tuple[bytes, bytes, int]] = []

    def frame(self, frame: bytes) -> list[bytes]:
        self.taken += 1
        if self.lost(self.taken) or self.taken > self.dead_after:
            return []
        kind, body = frame[12:14], frame[14:]
        link = frame[6:12] + MAC
        if kind == wire.ARP:
            packet = arp.parse(body)
            if not self.arp or packet.target != V4:
                return []
            reply = arp._ARP.pack(1, 0x800, 6, 4, arp.REPLY, MAC, V4, packet.sender_mac, packet.sender)
            return [wire.frame(link, wire.ARP + reply)]
        header = (parse4 if kind == wire.IPV4 else parse6)(body)
        if header.protocol not in (132, 253) and self.taken % 7 < 3:
            # Its checksums are right.
            payload_of(frame)
        out = self.packet(header.src, header.dst, header.protocol, header.payload, body)
        return [wire.frame(link, packet) for packet in out]

    def packet(self, src: bytes, dst: bytes, protocol: int, data: bytes, whole: bytes) -> list[bytes]:
        if protocol == wire.TCP:
            return self.tcp(src, dst, data, whole)
        if protocol == wire.UDP:
            port = int.from_bytes(data[2:4], "big")
            if port in self.udp:
                answer = wire.udp(dst, port, src, int.from_bytes(data[:2], "big"), self.udp[port])
                return [wire.ip(dst, src, wire.UDP, answer)]
            return []
        if protocol == wire.ICMPV6 and data[0] == icmpv6.NEIGHBOUR_SOLICITATION and self.arp:
            body = icmpv6.neighbour_advertisement(data[8:24], MAC)
            return [
                wire.ip(data[8:24], src, wire.ICMPV6, wire.with_checksum(data[8:24], src, wire.ICMPV6, body, 2), 255)
            ]
        if self.echo and data[:1] in (b"\x08", b"\x80"):
            six = len(src) == 16
            own = GLOBAL if six and src[:2] != b"\xfe\x80" else LL if six else V4
            body = (b"\x81" if six else b"\0") + bytes(3) + data[4:]
            body = (
                wire.with_checksum(own, src, wire.ICMPV6, body, 2)
                if six
                else body[:2] + wire.checksum(body).to_bytes(2, "big") + body[4:]
            )
            return [wire.ip(own, src, protocol, body)]
        return []

    def tcp(self, src: bytes, dst: bytes, data: bytes, whole: bytes) -> list[bytes]:
        sport, dport, seq, _, _, flags, _, _, _ = probe_frames._TCP.unpack_from(data)
        assert sport == probe_frames.SPORT
        if flags & RST:
            self.resets.append(dport)
            return []
        self.seen.append((src, dst, dport))
        how = self.answer(dport)
        if how == "drop":
            return []
        if how == "reject":
            icmp = wire.ICMP if len(src) == 4 else wire.ICMPV6
            body = bytes((3, 13) if len(src) == 4 else (1, 1)) + bytes(6) + whole
            if len(src) == 4:
                body = body[:2] + wire.checksum(body).to_bytes(2, "big") + body[4:]
            else:
                body = wire.with_checksum(dst, src, icmp, body, 2)
            return [wire.ip(dst, src, icmp, body)]
        answered = SYN | ACK if how == "open" else RST | ACK
        head = probe_frames._TCP.pack(dport, sport, 99, seq + 1, 5 << 4, answered, 0, 0, 0)
        return [wire.ip(dst, src, wire.TCP, wire.with_checksum(dst, src, wire.TCP, head, 16))]


class World:
    """A prober, a guest, and a clock of their own."""

    def __init__(self, stack: Stack, **probing: Any) -> None:
        self.guest = Guest(probing=Probing(**{"canary_s": 0.0, **probing}))
        self.stack = stack
        self.now = 100.0
        self.late: list[tuple[float, bytes]] = []
        self.delay = 0.0
        assert self.guest.hole.prober is not None
        self.prober: Prober = self.guest.hole.prober

    def step(self) -> None:
        self.now += 0.005
        self.prober.tick(self.now, 0)
        self.exchange()

    def exchange(self) -> None:
        hole = self.guest.hole
        data = b"".join(hole.out)
        hole.out.clear()
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            for answer in self.stack.frame(data[at + 4 : at + 4 + size]):
                self.late.append((self.now + self.delay, answer))
            at += 4 + size
        due = [answer for when, answer in self.late if when <= self.now]
        self.late = [(when, answer) for when, answer in self.late if when > self.now]
        for answer in due:
            hole.feed(len(answer).to_bytes(4, "big") + answer)

    def sweep(self, protocol: str = "tcp", target: bytes = V4, origin: str = "link", **more: Any) -> dict[str, Any]:
        asked = {
            "name": f"{protocol} {origin}",
            "protocol": protocol,
            "origin": origin,
            "mac": wire.mac_text(MAC),
            "target": wire.text_of(target),
            "ports": None,
            **more,
        }
        self.prober.start([asked])
        while self.prober.running or not self.prober.sweeps[-1].done:
            self.step()
            assert self.now < 400.0, "it never ends"
        result = self.prober.sweeps[-1].result()
        # It crosses into another process.
        return dict(json.loads(json.dumps(result)))


def states(result: dict[str, Any]) -> bytes:
    return zlib.decompress(base64.b64decode(result["state"]))


def ports(result: dict[str, Any], state: int) -> list[int]:
    return [port for port, known in enumerate(states(result)) if known == state]
