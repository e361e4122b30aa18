"""What scapy puts together is read as what it is: the same flows, packets and questions."""

from __future__ import annotations

import ipaddress
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, PcapWriter

from pytest_osgates.vm.capture.analysis import analyse
from pytest_osgates.vm.capture.flows import Traffic
from pytest_osgates.vm.network import dns

MAC, GATEWAY = "52:54:00:6f:73:00", "52:55:0a:00:02:02"
# Ports that mean nothing, so that nothing is made of what is in the packets.
PORTS = st.integers(20000, 60000)
HOSTS = st.integers(1, 5)
LABELS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20)
NAMES = st.lists(LABELS, min_size=2, max_size=5).map(".".join)
KINDS = {"A": 1, "AAAA": 28, "TXT": 16, "HTTPS": 65, "MX": 15}


@st.composite
def layers(draw: st.DrawFn) -> tuple[Packet, Packet]:
    """IP and what is in it, from the machine to one of a few hosts or back."""
    six, back = draw(st.booleans()), draw(st.booleans())
    ours, theirs = ("2001:db8:2::15", "2001:db8:9::") if six else ("10.0.2.15", "203.0.113.")
    host = f"{theirs}{draw(HOSTS)}"
    src, dst = (host, ours) if back else (ours, host)
    data = Raw(draw(st.binary(min_size=1, max_size=100)))
    ports = {"sport": draw(PORTS), "dport": draw(PORTS)}
    inner = draw(st.sampled_from([UDP(**ports), TCP(**ports, flags="A", seq=draw(st.integers(0, (1 << 32) - 1)))]))
    ip = IPv6(src=src, dst=dst) if six else IP(src=src, dst=dst, ttl=draw(st.integers(1, 255)))
    return Ether(src=GATEWAY if back else MAC, dst=MAC if back else GATEWAY) / ip, inner / data


@settings(max_examples=60, deadline=None)
@given(st.lists(layers(), min_size=1, max_size=12), st.booleans())
def test_flows(parts: list[tuple[Packet, Packet]], pcapng: bool) -> None:
    packets = [outer / inner for outer, inner in parts]
    seen = _read(packets, pcapng=pcapng)
    theirs: Counter[tuple[str, frozenset[tuple[str, int]]]] = Counter()
    for packet in packets:
        ip = packet.getlayer(1)
        inner = packet.getlayer(2)
        ends = frozenset({(ip.src, inner.sport), (ip.dst, inner.dport)})
        theirs[type(inner).__name__.lower(), ends] += 1
    ours: Counter[tuple[str, frozenset[tuple[str, int]]]] = Counter()
    for flow in seen.flows:
        ends = frozenset({(flow.src, flow.sport), (flow.dst, flow.dport)})
        ours[flow.protocol, ends] += flow.packets_out + flow.packets_in
    assert ours == theirs
    assert seen.packets == len(packets)
    assert seen.octets == sum(len(packet) for packet in packets)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.sampled_from(sorted(KINDS))), min_size=1, max_size=8), st.booleans())
def test_questions(asked: list[tuple[str, str]], pcapng: bool) -> None:
    packets = [
        Ether(src=MAC, dst=GATEWAY)
        / IP(src="10.0.2.15", dst="10.0.2.3")
        / UDP(sport=40000 + number, dport=53)
        / DNS(id=number, rd=1, qd=DNSQR(qname=name, qtype=KINDS[kind]))
        for number, (name, kind) in enumerate(asked)
    ]
    seen = _read(packets, pcapng=pcapng)
    assert {(query.name, query.kind) for query in seen.queries} == set(asked)
    assert sum(query.count for query in seen.queries) == len(asked)


@pytest.mark.parametrize(("kind", "value"), [("A", "203.0.113.9"), ("AAAA", "2001:db8::9")])
def test_our_answers(kind: str, value: str) -> None:
    """What the sinkhole answers, scapy understands."""
    query = bytes(DNS(id=77, rd=1, qd=DNSQR(qname="www.example.org", qtype=KINDS[kind])))
    v4, v6 = ipaddress.ip_address("203.0.113.9").packed, ipaddress.ip_address("2001:db8::9").packed
    said = DNS(dns.answer(query, dns.parse_question(query), v4, v6))
    assert (said.id, said.qr, said.rcode, said.ancount) == (77, 1, 0, 1)
    assert (said.an[0].rrname, said.an[0].rdata) == (b"www.example.org.", value)


def _read(packets: list[Packet], *, pcapng: bool) -> Traffic:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "x.pcap"
        writer = PcapNgWriter(str(path)) if pcapng else PcapWriter(str(path))
        with writer:
            for number, packet in enumerate(packets):
                packet.time = 1.7e9 + number
                writer.write(packet)
        return analyse(path)
