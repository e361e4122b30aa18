"""The whole: any bytes, misbehaviour, the event log's bounds, and the process of its own."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_samples import MAC, Guest, tcp_packet

from pytest_osgates.vm import process
from pytest_osgates.vm.errors import LaunchFailed, MachineDied, UsageError
from pytest_osgates.vm.network import arp, dns, wire
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.events import EventLog
from pytest_osgates.vm.network.peer import CaptureClock
from pytest_osgates.vm.network.settings import Misbehaviour, Refusal, Settings, TlsAnswer
from pytest_osgates.vm.network.sinkhole import MAX_FRAME

FAR = bytes((203, 0, 113, 7))
FAR6 = bytes.fromhex("20010db800aa00000000000000000007")
GUEST6 = Settings().prefix + b"\0\0\0\0\0\0\x01\x15"


def _mutations() -> st.SearchStrategy[bytes]:
    """Frames that are nearly right, in every protocol."""
    guest = Settings().guest
    good = [
        wire.ip(guest, FAR, 17, wire.udp(guest, 1, FAR, port, dns.query("example.com")))
        for port in (53, 67, 123, 443, 547, 1900, 5353, 5355, 9)
    ]
    good += [wire.ip(GUEST6, FAR6, 17, wire.udp(GUEST6, 1, FAR6, port, bytes(60))) for port in (53, 547, 9)]
    good += [tcp_packet(guest, FAR, 1, port, 1, 1, flags, b"x" * 40) for port in (53, 443) for flags in (2, 16, 17)]
    good += [wire.ip(guest, FAR, protocol, bytes(20)) for protocol in (1, 2, 47, 58)]
    good += [wire.ip(GUEST6, FAR6, protocol, bytes(40)) for protocol in (0, 43, 44, 51, 58, 60)]
    good += [
        arp.request(MAC, guest, FAR),
        b"\x81\x00\x00\x01" + arp.request(MAC, guest, FAR),
        b"\x88\xcc" + bytes(20),
    ]
    return st.tuples(st.sampled_from(good), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)))).map(_damage)


def _damage(pair: tuple[bytes, list[tuple[int, int]]]) -> bytes:
    packet, changes = pair
    raw = bytearray(packet)
    for at, value in changes:
        if at < len(raw):
            raw[at] = value
    return bytes(raw)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=120), _mutations()), max_size=8))
def test_no_frame_makes_it_raise_and_all_are_counted(packets: list[bytes]) -> None:
    guest = Guest()
    for packet in packets:
        guest.send(guest.link + packet)
    guest.send(packets[0][:10] if packets else b"")
    assert guest.hole.rx_frames == len(guest.sent)
    assert guest.hole.tx_frames == len(guest.got)
    assert all(isinstance(event["t"], float) for event in guest.events)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=400))
def test_any_stream_is_eaten_or_waited_for(data: bytes) -> None:
    guest = Guest()
    used = guest.hole.feed(data)
    assert 0 <= used <= len(data)
    left = data[used:]
    if len(left) >= 4:
        size = int.from_bytes(left[:4], "big")
        assert size > len(left) - 4
        assert guest.hole.broken == (size > MAX_FRAME)


def test_tagged_frames_are_answered_with_their_tag_and_noticed() -> None:
    guest = Guest()
    tag = b"\x81\x00\x0f\xa1"
    (reply,) = guest.packet(arp.request(MAC, guest.ip, FAR), tag=tag)
    assert reply[12:16] == tag
    assert arp.parse(reply[18:]).operation == arp.REPLY
    assert guest.only("vlan")["tag"] == 0xFA1
    packet = wire.ip(guest.ip, FAR, 17, wire.udp(guest.ip, 1, FAR, 53, dns.query("example.com")))
    assert guest.packet(packet, tag=tag)[0][12:16] == tag
    assert guest.packet(packet, tag=tag * 4) == []
    assert guest.kinds()[-1] == "unparsed"


def test_other_protocols_are_events() -> None:
    guest = Guest()
    guest.packet(b"\x88\xcc" + bytes(50))
    guest.packet(wire.ip(guest.ip, FAR, 47, bytes(20)))
    guest.packet(wire.ip(guest.ip, bytes((224, 0, 0, 22)), 2, bytes(16)))
    assert guest.only("ethertype")["kind"] == "88cc"
    assert guest.only("protocol")["number"] == 47
    assert guest.only("igmp")["dst"] == "224.0.0.22"


def test_a_datagram_in_fragments_is_read() -> None:
    guest = Guest()
    whole = wire.udp(guest.ip, 7000, FAR, 53, dns.query("in-fragments.example.com"))
    for offset, more in ((0, True), (24, False)):
        piece = whole[offset : offset + 24] if more else whole[offset:]
        packet = bytearray(wire.ip(guest.ip, FAR, 17, piece))
        packet[8:10] = ((offset // 8) | (0x2000 if more else 0)).to_bytes(2, "big")
        guest.packet(bytes(packet))
    assert guest.only("dns")["query"] == "in-fragments.example.com"
    assert guest.only("fragment")["dst"] == "203.0.113.7"


def test_a_flood_of_one_flow_is_one_event() -> None:
    guest = Guest()
    for _ in range(100):
        guest.udp(FAR, 9999, b"flood")
    assert guest.kinds().count("udp") == 1
    assert guest.hole.rx_frames == 100


def test_it_can_be_told_to_misbehave() -> None:
    guest = Guest(misbehaviour=Misbehaviour(silent=True))
    assert guest.packet(arp.request(MAC, guest.ip, FAR)) == []
    guest.hole.behave(Misbehaviour(blocked=("arp", "icmp", "udp:53")))
    assert guest.packet(arp.request(MAC, guest.ip, FAR)) == []
    assert guest.packet(wire.ip(guest.ip, FAR, 1, b"\x08\0\xf7\xff" + bytes(4))) == []
    assert guest.udp(FAR, 53, dns.query("example.com")) == []
    guest.hole.behave(Misbehaviour(blocked=("ipv4",)))
    assert guest.udp(FAR, 53, dns.query("example.com")) == []
    assert len(guest.udp(FAR6, 53, dns.query("example.com"))) == 1


@pytest.mark.parametrize(
    "wrong", [{"blocked": ("smtp",)}, {"names": ("UPPER.example",)}, {"delay_s": -1.0}, {"blocked": ("tcp:0",)}]
)
def test_what_it_cannot_do_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Misbehaviour(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"subnet": 256}, {"mac": "52:54"}, {"lease_s": 1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_settings_cross_as_json() -> None:
    made = Settings(
        subnet=7,
        tls=TlsAnswer.COMPLETE,
        capture="/x.pcap",
        misbehaviour=Misbehaviour(delay_s=0.5, blocked=("tcp:25",), names=("*.a.b",), refusal=Refusal.DROP),
    )
    assert Settings.from_json(made.to_json()) == made


def test_the_log_is_bounded_and_counts_what_it_drops() -> None:
    sink = io.BytesIO()
    log = EventLog(sink, lambda: 1.0, 4096)
    for number in range(200):
        log.add("one", number=number)
    log.flush()
    assert len(sink.getvalue()) <= 4096
    assert json.loads(sink.getvalue().splitlines()[-1])["event"] == "log-full"
    assert log.written + log.dropped == 200
    assert log.failure


def test_a_full_disk_is_remembered() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        log = EventLog(full, lambda: 1.0, 1 << 20)
        log.add("one")
        log.add("two")
        log.flush()
        log.add("three")
    assert log.dropped == 3
    assert "No space" in log.failure


def test_the_guest_is_probed_by_the_addresses_that_it_used() -> None:
    guest = Guest()
    assert guest.hole.probe() == []
    guest.udp(FAR, 9, b"x")
    guest.udp(FAR6, 9, b"x")
    assert guest.hole.probe() == ["10.0.2.15", "2001:db8:2::115"]
    ask, ask6 = guest.take()
    assert arp.parse(ask[14:]).target == guest.ip
    assert ask6[:6] == MAC
    guest.packet(wire.ARP + arp.reply(arp.parse(ask[14:]), MAC)[2:])
    advertisement = b"\x88\0\0\0\x60\0\0\0" + GUEST6
    advertisement = wire.with_checksum(GUEST6, guest.settings.link_local, 58, advertisement, 2)
    guest.packet(wire.ip(GUEST6, guest.settings.link_local, 58, advertisement, 255))
    assert guest.hole.stats()["answered"] == ["10.0.2.15", "2001:db8:2::115"]


# -- the process -----------------------------------------------------------------------------------------------------


def _exchange(sock: socket.socket, frame: bytes) -> bytes:
    sock.sendall(len(frame).to_bytes(4, "big") + frame)
    sock.settimeout(20)
    head = sock.recv(4, socket.MSG_WAITALL)
    return sock.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)


def test_a_process_of_its_own(tmp_path: Path) -> None:
    settings_ = Settings()
    link = SinkholeLink("net0", settings_, tmp_path)
    qemu = link.start()
    try:
        frame = wire.frame(settings_.hardware + MAC, arp.request(MAC, settings_.guest, settings_.gateway))
        assert arp.parse(_exchange(qemu, frame)[14:]).operation == arp.REPLY
        assert link.stats()["rx_frames"] == 1
        link.behave(Misbehaviour(delay_s=0.3))
        begun = time.monotonic()
        assert _exchange(qemu, frame)
        assert time.monotonic() - begun >= 0.3
        # What is still in the socket is counted, too.
        qemu.sendall((len(frame).to_bytes(4, "big") + frame) * 1000)
        qemu.shutdown(socket.SHUT_WR)
        assert link.stop()["rx_frames"] == 1002
        assert link.stop()["link_open"] is False
    finally:
        qemu.close()
        link.close()
    events = [json.loads(line)["event"] for line in link.events.read_text().splitlines()]
    assert events[0] == "arp"
    assert events[-1] == "stopped"


def test_a_sinkhole_that_dies_is_told(tmp_path: Path) -> None:
    link = SinkholeLink("net0", Settings(), tmp_path)
    qemu = link.start()
    try:
        assert link._process is not None
        os.kill(link._process.pid, 9)
        assert process.await_exit(link._process, 20)
        with pytest.raises(MachineDied, match="sinkhole"):
            link.stats()
        with pytest.raises(MachineDied, match="sinkhole"):
            link.stop()
    finally:
        qemu.close()
        link.close()


def test_a_sinkhole_that_does_not_come_up_is_told(tmp_path: Path) -> None:
    link = SinkholeLink("net0", Settings(), tmp_path)
    link.events.mkdir()
    try:
        with pytest.raises(LaunchFailed, match="did not come up"):
            link.start()
    finally:
        link.close()


def test_the_guests_clock_is_read_from_the_capture(tmp_path: Path) -> None:
    path = tmp_path / "net0.pcap"
    clock = CaptureClock(path)
    clock.refresh()
    assert abs(clock() - time.time()) < 5
    record = (1_000_000_000).to_bytes(4, "little") + (500_000).to_bytes(4, "little") + b"\x04\0\0\0\x04\0\0\0"
    path.write_bytes(bytes(24) + record + b"abcd" + record[:10])
    clock.refresh()
    assert clock() == 1_000_000_000.5
    with path.open("ab") as file:
        file.write(record[10:] + b"abcd")
    clock.refresh()
    assert clock() == 1_000_000_000.5


def test_the_clock_keeps_up_with_a_flood(tmp_path: Path) -> None:
    path = tmp_path / "net0.pcap"
    record = b"\0\0\0\0" + (60_000).to_bytes(4, "little") * 2 + bytes(60_000)
    path.write_bytes(bytes(24) + b"".join(number.to_bytes(4, "little") + record for number in range(1, 21)))
    clock = CaptureClock(path)
    clock.refresh()
    assert clock() == 20.0
