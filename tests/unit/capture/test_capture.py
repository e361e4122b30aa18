"""Captures: formats, damage, flows and names. The sinkhole's own traffic is what is read."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from net_samples import ACK, MAC, SYN, Guest, client_hello, dhcp_message, tcp_packet, write_pcap, write_pcapng

from pytest_osgates.vm.capture import dissect
from pytest_osgates.vm.capture.analysis import analyse
from pytest_osgates.vm.capture.flows import Flow, Traffic
from pytest_osgates.vm.capture.pcap import PcapFile
from pytest_osgates.vm.errors import CaptureError
from pytest_osgates.vm.network import arp, dns, wire

FAR = bytes((203, 0, 113, 7))
FAR6 = bytes.fromhex("20010db800aa00000000000000000007")
START = 1_700_000_000.25


def _recorded(guest: Guest) -> list[tuple[float, bytes]]:
    """What the guest's card saw, a tenth of a second a frame, in the order of asking and answering."""
    frames, answers = [], list(guest.got)
    for frame in guest.sent:
        frames.append(frame)
        if answers:
            frames.append(answers.pop(0))
    return [(START + number / 10, frame) for number, frame in enumerate([*frames, *answers])]


@pytest.fixture
def busy() -> Guest:
    """A guest that did something of everything."""
    guest = Guest()
    guest.udp(b"\xff" * 4, 67, dhcp_message(1, (12, b"my-laptop")), sport=68, src=bytes(4))
    guest.packet(arp.request(MAC, guest.ip, guest.settings.gateway))
    (answer,) = guest.udp(guest.settings.resolver, 53, dns.query("www.example.com"), sport=1111)
    address = wire.address_of(dns.parse(answer).records[0].value)
    guest.tcp(address, 443).say(client_hello("www.example.com"))
    guest.udp(FAR, 9999, b"beacon")
    guest.packet(wire.ip(guest.ip, FAR, 47, bytes(20)))
    guest.packet(b"\x88\xcc" + bytes(50))
    return guest


def _flow(traffic: Traffic, dport: int) -> Flow:
    (flow,) = [flow for flow in traffic.flows if flow.dport == dport]
    return flow


@pytest.mark.parametrize("form", ["<", ">", "nano", "ng<", "ng>"])
def test_every_format_tells_the_same(busy: Guest, form: str, tmp_path: Path) -> None:
    frames = _recorded(busy)
    path = tmp_path / "x.pcap"
    if form.startswith("ng"):
        write_pcapng(path, frames, order=form[2])
    else:
        write_pcap(path, frames, order=form if form != "nano" else "<", nano=form == "nano")
    seen = analyse(path)
    assert (seen.packets, seen.problem, seen.unparsed) == (len(frames), "", 0)
    assert seen.octets == sum(len(frame) for _, frame in frames)
    assert seen.first == pytest.approx(START, abs=1e-6)
    assert seen.from_macs == {MAC.hex(":"): len(busy.sent), busy.settings.mac: len(busy.got)}
    assert seen.from_macs[MAC.hex(":")] == busy.hole.rx_frames
    assert seen.from_macs[busy.settings.mac] == busy.hole.tx_frames
    (query,) = seen.queries
    assert (query.name, query.kind, query.server) == ("www.example.com", "A", "10.0.2.3")
    https = _flow(seen, 443)
    assert (https.protocol, https.src, https.source_mac) == ("tcp", "10.0.2.15", MAC.hex(":"))
    assert set(https.names) == {("www.example.com", "sni"), ("www.example.com", "dns")}
    assert "tls" in https.applications
    beacon = _flow(seen, 9999)
    assert (beacon.dst, beacon.names, beacon.packets_out) == ("203.0.113.7", (), 1)
    assert "gre" in {flow.protocol for flow in seen.flows}
    facts = {fact.kind: fact for fact in seen.facts}
    assert facts["dhcp"].details["host"] == "my-laptop"
    assert facts["ethertype"].details["number"] == "88cc"


def test_the_slowest_answer(busy: Guest, tmp_path: Path) -> None:
    frames = _recorded(busy)
    assert analyse(write_pcap(tmp_path / "x.pcap", frames)).latency == pytest.approx((0.1,), abs=1e-3)
    slowest = 0.0
    for late in range(len(frames)):
        slow = [(at + (3.0 if number >= late else 0.0), frame) for number, (at, frame) in enumerate(frames)]
        slowest = max(slowest, analyse(write_pcap(tmp_path / "x.pcap", slow)).latency[0] or 0.0)
    assert slowest == pytest.approx(3.1, abs=1e-3)
    assert analyse(write_pcap(tmp_path / "x.pcap", frames[:2])).latency == (None,)


def test_phases_are_counted_apart(tmp_path: Path) -> None:
    guest = Guest()
    frames = []
    for number in range(30):
        guest.udp(FAR, 9, b"x")
        frames.append((START + number, guest.sent[-1]))
    path = write_pcap(tmp_path / "x.pcap", frames)
    flow = _flow(analyse(path, (START + 10, START + 25)), 9)
    assert flow.phases == (10, 15, 5)
    assert flow.packets_out == 30
    assert _flow(analyse(path, (START + 10.5,)), 9).phases == (11, 19)
    assert _flow(analyse(path, (START + 100,)), 9).phases == (30, 0)


def test_packets_that_are_only_counted_are_counted_right(tmp_path: Path) -> None:
    guest = Guest()
    stream = guest.tcp(FAR, 80)
    stream.say(b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
    for _ in range(500):
        guest.packet(tcp_packet(guest.ip, FAR, 50000, 80, stream.seq, stream.ack, ACK, b"x" * 100))
    # On the very same ports, but not plain: fragments, another protocol, a new connection with another name.
    odd = bytearray(tcp_packet(guest.ip, FAR, 50000, 80, 1, 1, ACK, b"y" * 100))
    odd[8:10] = b"\x20\x00"
    guest.packet(bytes(odd))
    guest.packet(wire.ip(guest.ip, FAR, 17, wire.udp(guest.ip, 50000, FAR, 80, b"z" * 40)))
    again = guest.tcp(FAR, 80)
    again.say(b"GET / HTTP/1.1\r\nHost: second.example.net\r\n\r\n")
    seen = analyse(write_pcap(tmp_path / "x.pcap", _recorded(guest)))
    assert seen.packets == len(guest.sent) + len(guest.got)
    assert seen.from_macs == {MAC.hex(":"): len(guest.sent), guest.settings.mac: len(guest.got)}
    tcp = next(flow for flow in seen.flows if flow.protocol == "tcp" and flow.names)
    assert set(tcp.names) == {("www.example.com", "host"), ("second.example.net", "host")}
    assert {flow.protocol for flow in seen.flows if flow.dport == 80} == {"tcp", "udp"}
    assert any("IP fragments" in flow.notes for flow in seen.flows)


def test_an_alias_leads_to_its_owner(tmp_path: Path) -> None:
    guest = Guest()
    query = dns.query("www.example.com")
    answer = query[:2] + b"\x81\x80\0\x01\0\x02\0\0\0\0" + query[12:]
    target = dns.write_name("edge.cdn.example.net")
    answer += b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c" + len(target).to_bytes(2, "big") + target
    answer += target + b"\0\x01\0\x01\0\0\0\x3c\0\x04" + FAR
    resolver, own = guest.settings.resolver, guest.ip
    link = guest.link
    frames = [
        link + wire.ip(own, resolver, 17, wire.udp(own, 1, resolver, 53, query)),
        link[6:] + link[:6] + wire.ip(resolver, own, 17, wire.udp(resolver, 53, own, 1, answer)),
        link + tcp_packet(own, FAR, 2, 443, 1, 0, SYN),
    ]
    seen = analyse(write_pcap(tmp_path / "x.pcap", [(START, frame) for frame in frames]))
    assert list(seen.queries[0].aliases) == ["edge.cdn.example.net"]
    assert set(_flow(seen, 443).names) == {("www.example.com", "dns"), ("edge.cdn.example.net", "cname")}


def test_fragments_tags_and_tunnels_are_flows_with_their_marks(tmp_path: Path) -> None:
    guest = Guest()
    whole = wire.udp(guest.ip, 7000, FAR, 53, dns.query("in-fragments.example.com"))
    for offset, more in ((0, True), (24, False)):
        piece = whole[offset : offset + 24] if more else whole[offset:]
        packet = bytearray(wire.ip(guest.ip, FAR, 17, piece))
        packet[8:10] = ((offset // 8) | (0x2000 if more else 0)).to_bytes(2, "big")
        guest.packet(bytes(packet))
    inner = wire.ip(guest.ip, FAR, 17, wire.udp(guest.ip, 5, FAR, 7, b"tagged"))
    guest.packet(inner, tag=b"\x81\x00\x0f\xa1")
    guest.udp(FAR6, 51820, b"\x01\0\0\0" + bytes(144))
    seen = analyse(write_pcap(tmp_path / "x.pcap", _recorded(guest)))
    assert seen.queries[0].name == "in-fragments.example.com"
    assert "VLAN 4001" in _flow(seen, 7).notes
    assert _flow(seen, 51820).applications == ("wireguard",)
    assert _flow(seen, 51820).dst == "2001:db8:aa::7"


# -- damage
# ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10_000), ng=st.booleans())
def test_a_file_that_was_cut_is_told(busy: Guest, tmp_path: Path, cut: int, ng: bool) -> None:
    frames = _recorded(busy)
    whole = (write_pcapng if ng else write_pcap)(tmp_path / "whole", frames).read_bytes()
    edges = _edges(whole, ng=ng)
    size = cut % len(whole)
    path = tmp_path / "cut"
    path.write_bytes(whole[:size])
    if size < 24 and (not ng or size < 4):
        with pytest.raises(CaptureError, match=str(path)):
            analyse(path)
        return
    seen = analyse(path)
    assert bool(seen.problem) == (size not in edges)
    assert seen.packets < len(frames)


def _edges(data: bytes, *, ng: bool) -> set[int]:
    """Offsets at which a file could end and be whole."""
    found, at = set(), 0 if ng else 24
    while at < len(data):
        if at and not (ng and len(found) == 0 and at == 0):
            found.add(at)
        at += struct.unpack_from("<I", data, at + 4)[0] if ng else 16 + struct.unpack_from("<I", data, at + 8)[0]
    if ng:
        # A section alone has no interface yet.
        found.discard(28)
    return found | {len(data)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 100_000), st.integers(0, 255), st.booleans())
def test_a_damaged_file_never_raises_anything_else(
    busy: Guest, tmp_path: Path, junk: bytes, at: int, value: int, ng: bool
) -> None:
    data = bytearray((write_pcapng if ng else write_pcap)(tmp_path / "whole", _recorded(busy)).read_bytes())
    data[at % len(data)] = value
    for content in (bytes(data), data[:24] + junk, junk):
        path = tmp_path / "damaged"
        path.write_bytes(content)
        try:
            analyse(path)
        except CaptureError:
            continue


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"GIF89a" + bytes(30), "begins with"),
        (b"\xd4\xc3\xb2\xa1" + bytes(10), "cut short in its header"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 147), "link type 147"),
    ],
)
def test_what_is_no_capture_is_told(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=said):
        analyse(path)
    with pytest.raises(CaptureError, match="cannot be read"):
        analyse(tmp_path / "missing.pcap")


def test_no_packet_is_not_a_problem_of_the_file(tmp_path: Path) -> None:
    seen = analyse(write_pcap(tmp_path / "x.pcap", []))
    assert (seen.packets, seen.problem) == (0, "")


def test_a_packet_that_was_not_captured_whole_is_told(tmp_path: Path) -> None:
    frame = Guest().link + wire.ip(FAR, FAR, 17, wire.udp(FAR, 1, FAR, 53, dns.query("example.com")))
    path = write_pcap(tmp_path / "x.pcap", [(START, frame)])
    data = bytearray(path.read_bytes())
    data[24 + 12 : 24 + 16] = (1500).to_bytes(4, "little")
    path.write_bytes(data)
    seen = analyse(path)
    assert seen.unparsed == 1
    assert "of 1500 bytes" in seen.unparsed_examples[0]


def test_raw_and_cooked_captures(tmp_path: Path) -> None:
    packet = wire.ip(FAR, bytes((1, 2, 3, 4)), 17, wire.udp(FAR, 1, bytes((1, 2, 3, 4)), 7, b"x"))[2:]
    for link_type, frame in ((101, packet), (113, b"\0\0\0\x01\0\x06" + MAC + b"\0\0" + b"\x08\x00" + packet)):
        path = write_pcap(tmp_path / "x.pcap", [(START, frame)])
        data = bytearray(path.read_bytes())
        data[20:24] = link_type.to_bytes(4, "little")
        path.write_bytes(data)
        assert _flow(analyse(path), 7).dst == "1.2.3.4"


def test_flows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dissect, "MAX_HALVES", 50)
    guest = Guest()
    for port in range(1, 200):
        guest.udp(FAR, port, b"x", sport=port)
    seen = analyse(write_pcap(tmp_path / "x.pcap", [(START, frame) for frame in guest.sent]))
    assert "more than 50 flows" in seen.overflow
    assert seen.packets == 199
    assert sum(seen.from_macs.values()) == 199


def test_chunks_of_any_size_give_the_same(busy: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pcap(tmp_path / "x.pcap", _recorded(busy) * 5)
    wanted = analyse(path)
    dice = random.Random(4)  # noqa: S311  (repeatable)

    def chunks(self: PcapFile) -> object:
        while data := self._file.read(dice.randint(1, 300)):
            yield data

    monkeypatch.setattr(PcapFile, "chunks", chunks)
    assert analyse(path) == wanted


def test_trailers_of_others_are_nobodys_secret(tmp_path: Path) -> None:
    """Any capture may have a checksum behind each frame; only a machine that is watched has to account for it."""
    guest = Guest()
    resolver = guest.settings.resolver
    query = wire.ip(guest.ip, resolver, 17, wire.udp(guest.ip, 40000, resolver, 53, dns.query("www.example.com")))
    guest.packet(query + b"\x12\x34\x56\x78")
    path = write_pcap(tmp_path / "x.pcap", _recorded(guest))
    assert analyse(path).unparsed == 0
    assert analyse(path, outside=guest.settings.mac).unparsed == 1
