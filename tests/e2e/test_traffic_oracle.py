"""tshark(1) reads the same captures, and must see the same flows, names and queries."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pytest_osgates.vm.capture.analysis import analyse
from tests.e2e import emitters
from tests.e2e.emitters import Guest, dns, wire, write_pcap, write_pcapng

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed: apt-get install tshark"),
]


def _fields(path: Path, condition: str, *names: str) -> list[tuple[str, ...]]:
    """The named fields of each packet that fits."""
    arguments = [word for name in names for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-Y", condition, "-T", "fields", "-E", "occurrence=f", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


@pytest.fixture(params=["pcap", "pcapng"])
def capture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Every emitter once, and the sinkhole's answers."""
    guest = Guest()
    link = guest.link
    for emitter in emitters.EMITTERS:
        kind, *words = emitter.line.split()
        if kind == "raw":
            guest.send(bytes.fromhex(words[1]))
            continue
        to, port = wire.address_of(words[0]), int(words[1])
        data = bytes.fromhex(words[2]) if len(words) > 2 else b""
        if kind == "udp":
            guest.send(
                wire.frame(link, wire.ip(guest.ip, to, 17, wire.udp(guest.ip, 40000 + port % 99, to, port, data)))
            )
        else:
            stream = guest.tcp(to, port, sport=20000 + len(guest.sent))
            if data:
                stream.say(data)
            if not stream.closed and not stream.reset:
                stream.close()
    both = [*guest.sent, *guest.got]
    write = write_pcap if request.param == "pcap" else write_pcapng
    return write(tmp_path / f"x.{request.param}", [(1.7e9 + number / 10, frame) for number, frame in enumerate(both)])


def test_packets_flows_and_names(capture: Path) -> None:
    seen = analyse(capture)
    assert seen.problem == ""
    assert seen.packets == len(_fields(capture, "frame", "frame.number"))
    for protocol in ("udp", "tcp"):
        columns = ("ip.src", "ip.dst", f"{protocol}.srcport", f"{protocol}.dstport")
        theirs: Counter[frozenset[tuple[str, str]]] = Counter()
        # An ICMP error quotes another packet's header; tshark(1) shows that one, too.
        for src, dst, sport, dport in _fields(capture, f"{protocol} && ip && !icmp && !ip.flags.mf==1", *columns):
            theirs[frozenset({(src, sport), (dst, dport)})] += 1
        ours: Counter[frozenset[tuple[str, str]]] = Counter()
        for flow in seen.flows:
            if flow.protocol == protocol and ":" not in flow.src and flow.dport:
                ends = frozenset({(flow.src, str(flow.sport)), (flow.dst, str(flow.dport))})
                ours[ends] += flow.packets_out + flow.packets_in
        assert ours == theirs


def test_names(capture: Path) -> None:
    seen = analyse(capture)
    names = {(name, how) for flow in seen.flows for name, how in flow.names}
    sni = {name for (name,) in _fields(capture, "tls.handshake.type == 1", "tls.handshake.extensions_server_name")}
    hosts = {name for (name,) in _fields(capture, "http.request && tcp", "http.host")}
    assert {name for name, how in names if how in {"sni", "quic"}} == sni - {""}
    assert {name for name, how in names if how == "host"} >= hosts - {"", "hidden44.example.com:443"}
    asked = {
        (name, str(kind))
        for name, kind in _fields(
            capture, "dns && !mdns && !llmnr && dns.flags.response == 0", "dns.qry.name", "dns.qry.type"
        )
    }
    numbers = {word: str(kind) for kind, word in dns.TYPES.items()}
    assert {(query.name, numbers[query.kind]) for query in seen.queries} == asked
