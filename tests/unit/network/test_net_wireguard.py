"""The WireGuard peer that a profile declares: handshakes, data, what is refused, and the internet inside."""

from __future__ import annotations

import io
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st
from net_samples import ACK, MAC, PSH, SYN, Guest, client_hello, payload_of, tcp_packet, write_pcap
from resolver_samples import resolver
from vpn_samples import (
    GUEST_PRIVATE,
    GUEST_PUBLIC,
    HOST,
    INNER,
    PEER_INNER,
    PEER_PRIVATE,
    PEER_PUBLIC,
    PORT,
    PRESHARED,
    VPN,
    Initiator,
    TunnelGuest,
    authenticated,
    derive,
    raw,
)

from pytest_osgates.vm.capture.analysis import analyse
from pytest_osgates.vm.errors import LaunchFailed
from pytest_osgates.vm.network import dns, wire
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.declared import Resolver, SecureDns, Vpn
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.network.tunnel_pcap import TunnelCapture
from pytest_osgates.vm.network.wireguard import decode_key, recognise
from pytest_osgates.vm.network.wireguard_peer import (
    CONSTRUCTION,
    IDENTIFIER,
    MAX_SESSIONS,
    WINDOW,
    Refused,
    Responder,
    digest,
    kdf,
    public_key,
)

FAR = bytes((203, 0, 113, 7))


def peer_of(preshared: bytes = bytes(32)) -> Responder:
    return Responder(raw(PEER_PRIVATE), raw(GUEST_PUBLIC), preshared)


def connected(preshared: bytes = bytes(32)) -> tuple[Responder, Initiator]:
    peer, guest = peer_of(preshared), Initiator(preshared=preshared)
    guest.finish(peer.receive(guest.initiation()).answer)
    return peer, guest


def test_known_answers() -> None:
    """The first hash and chaining key (boringtun, noise/handshake.rs), and key pairs of Wireshark's tests."""
    chain = digest(CONSTRUCTION)
    assert chain.hex() == "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
    assert digest(chain, IDENTIFIER).hex() == "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"
    assert public_key(raw(GUEST_PRIVATE)) == raw(GUEST_PUBLIC)
    assert public_key(raw(PEER_PRIVATE)) == raw(PEER_PUBLIC)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=40), st.sampled_from([1, 2, 3]))
@settings(max_examples=30, deadline=None)
def test_keys_are_derived_as_a_library_does_it(chain: bytes, data: bytes, count: int) -> None:
    assert list(kdf(chain, data, count)) == derive(chain, data, count)


@pytest.mark.parametrize("preshared", [bytes(32), raw(PRESHARED)])
def test_a_handshake_and_data_both_ways(preshared: bytes) -> None:
    peer, guest = connected(preshared)
    first = peer.receive(guest.data(b"\x45" + bytes(2) + b"\x14" + bytes(16)))
    assert first.inner is not None
    assert first.confirms
    again = peer.receive(guest.data(b""))
    assert (again.inner, again.confirms, again.session) == (b"", False, first.session)
    for packet in (b"", b"x", bytes(range(100))):
        plain = guest.read(first.session.seal(packet))
        assert plain == packet + bytes(-len(packet) % 16)


def test_the_guest_begins_anew_and_the_old_keys_hold_until_then() -> None:
    peer, guest = connected()
    old = Initiator(**vars(guest)) if False else guest
    late = old.data(b"")
    new = Initiator(index=77, stamp=100)
    new.finish(peer.receive(new.initiation()).answer)
    assert peer.receive(late).inner == b""
    assert peer.receive(new.data(b"")).confirms
    for number in range(MAX_SESSIONS):
        peer.receive(Initiator(stamp=200 + number).initiation())
    with pytest.raises(Refused, match="no session"):
        peer.receive(guest.data(b""))


def test_handshakes_that_are_refused() -> None:
    peer, guest = peer_of(), Initiator()
    good = guest.initiation()
    assert peer.receive(good).answer
    with pytest.raises(Refused, match="not newer"):
        peer.receive(good)
    with pytest.raises(Refused, match="not newer"):
        peer.receive(Initiator(stamp=0).initiation())
    with pytest.raises(Refused, match="another key"):
        peer.receive(Initiator(private=PRESHARED, stamp=9).initiation())
    with pytest.raises(Refused, match="another peer"):
        peer.receive(Initiator(peer=GUEST_PUBLIC, stamp=9).initiation())
    fresh = guest.initiation()
    with pytest.raises(Refused, match="another peer"):
        peer.receive(fresh[:116] + bytes(32))
    with pytest.raises(Refused, match="cookie"):
        peer.receive(fresh[:132] + b"\x01" + fresh[133:])
    for at in (8, 40, 90):
        # Another ephemeral, static key or time, with a first authenticator that fits.
        changed = fresh[:at] + bytes((fresh[at] ^ 1,)) + fresh[at + 1 : 116]
        with pytest.raises(Refused, match="does not authenticate"):
            peer.receive(authenticated(changed, raw(PEER_PUBLIC)))
    nothing = fresh[:8] + bytes(32) + fresh[40:116]
    with pytest.raises(Refused, match="a key that is none"):
        peer.receive(authenticated(nothing, raw(PEER_PUBLIC)))
    assert peer.receive(fresh).answer


def test_another_preshared_key_fails_at_the_guest() -> None:
    peer, guest = peer_of(raw(PRESHARED)), Initiator()
    with pytest.raises(InvalidTag):
        guest.finish(peer.receive(guest.initiation()).answer)


def test_counters() -> None:
    peer, guest = connected()
    for counter in (5, 3, 4, 0, WINDOW + 5, 6 + 5, 3 * WINDOW, 2 * WINDOW + 1):
        assert peer.receive(guest.data(b"", counter=counter)).inner == b""
    for counter in (3 * WINDOW, 2 * WINDOW + 1):
        with pytest.raises(Refused, match="already"):
            peer.receive(guest.data(b"", counter=counter))
    for counter in (2 * WINDOW, 0, (1 << 64) - 1):
        with pytest.raises(Refused, match="window"):
            peer.receive(guest.data(b"", counter=counter))


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=40))
@settings(max_examples=25, deadline=None)
def test_no_counter_is_taken_twice(counters: list[int]) -> None:
    """Against a model: all that were taken, and the highest."""
    peer, guest = connected()
    taken: set[int] = set()
    for counter in counters:
        fits = counter not in taken and counter > max(taken, default=-1) - WINDOW
        try:
            peer.receive(guest.data(b"", counter=counter))
        except Refused:
            assert not fits
        else:
            assert fits
            taken.add(counter)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    peer, _ = connected()
    with pytest.raises(Refused):
        peer.receive(data)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_changed_or_cut_message_is_refused(draw: st.DataObject) -> None:
    peer, guest = connected()
    message = draw.draw(st.sampled_from([guest.initiation(), guest.data(b"hello")]))
    at = draw.draw(st.integers(0, len(message) - 1))
    bad = message[:at] if draw.draw(st.booleans()) else message[:at] + bytes((message[at] ^ 1,)) + message[at + 1 :]
    with pytest.raises(Refused):
        peer.receive(bad)


def test_what_only_a_responder_sends_is_refused() -> None:
    peer, _ = connected()
    for kind, size in ((2, 92), (3, 64)):
        with pytest.raises(Refused, match="nobody asked for"):
            peer.receive(bytes((kind, 0, 0, 0)) + bytes(size - 4))


@pytest.mark.parametrize("padding", [b"\0" * 3 + b"\x01", bytes(16), b"secret"])
def test_padding_carries_nothing(padding: bytes) -> None:
    peer, guest = connected()
    packet = wire.ip(INNER, FAR, 17, wire.udp(INNER, 1, FAR, 9, b"1234"))[2:]
    assert len(packet) % 16 == 0
    with pytest.raises(Refused, match="padding"):
        peer.receive(guest.data(packet, padding=padding))
    assert peer.receive(guest.data(packet, padding=bytes(15))).inner == packet


@pytest.mark.parametrize("text", ["", "x", GUEST_PRIVATE[:-4], GUEST_PRIVATE + "AAAA", "A" * 43, "é" * 44])
def test_keys_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="a WireGuard key"):
        decode_key(text)
    assert decode_key(f" {GUEST_PRIVATE}\n") == raw(GUEST_PRIVATE)


# -- the tunnel in the sinkhole -----------------------------------------------------------------------------------


def test_names_and_datagrams_inside(tmp_path: Path) -> None:
    guest = TunnelGuest()
    guest.up()
    (answer,) = guest.udp(PEER_INNER, 53, dns.query("inside.example.com"))
    (record,) = dns.parse(answer).records
    assert wire.address_of(record.value) == guest.net.hole.names.address("inside.example.com", v6=False)
    assert guest.udp(FAR, 9, b"beacon") == []
    guest.tunnel.flush()
    kinds = [json.loads(line)["event"] for line in guest.log.getvalue().splitlines()]
    assert kinds == ["address", "dns", "udp"]
    path = tmp_path / "net0.vpn.pcap"
    path.write_bytes(guest.pcap.getvalue())
    seen = analyse(path)
    assert (seen.problem, seen.unparsed, seen.packets) == ("", 0, 3)
    assert [query.name for query in seen.queries] == ["inside.example.com"]
    assert {(flow.dst, flow.dport) for flow in seen.flows} == {("10.9.0.1", 53), ("203.0.113.7", 9)}
    stats = guest.stats
    assert (stats["handshakes"], stats["initiations"], stats["datagrams"], stats["data"]) == (1, 1, 4, 2)
    assert (stats["inside"]["rx_frames"], stats["inside"]["tx_frames"]) == (2, 1)
    assert stats["refused"] == {}
    # Outside nothing of it is to be seen.
    assert not {"dns", "udp"} & set(guest.net.kinds())


def test_a_keepalive_answers_what_nobody_answers() -> None:
    guest = TunnelGuest()
    guest.up()
    body = wire.udp(INNER, 1, FAR, 9, b"beacon")
    (message,) = guest.send(guest.wg.data(wire.ip(INNER, FAR, 17, body)[2:]))
    assert guest.wg.read(message) == b""


def test_tcp_and_tls_inside() -> None:
    guest = TunnelGuest()
    guest.up()
    dst = guest.net.hole.names.address("secret.example.com", v6=False)
    (answer,) = guest.packet(tcp_packet(INNER, dst, 50000, 443, 1000, 0, SYN)[2:])
    segment = payload_of(bytes(12) + wire.IPV4 + answer)
    ack = int.from_bytes(segment[4:8], "big") + 1
    hello = client_hello("secret.example.com")
    answers = guest.packet(tcp_packet(INNER, dst, 50000, 443, 1001, ack, ACK | PSH, hello)[2:])
    assert answers
    guest.tunnel.flush()
    events = [json.loads(line) for line in guest.log.getvalue().splitlines()]
    (tls,) = [event for event in events if event["event"] == "tls"]
    assert tls["sni"] == "secret.example.com"


def test_what_cannot_be_read_inside_is_kept(tmp_path: Path) -> None:
    guest = TunnelGuest()
    guest.up()
    for packet in (b"\x45" + bytes(31), b"\0" * 32, b"\x60" + bytes(39), b"\x45\0\xff\xff" + bytes(28)):
        guest.send(guest.wg.data(packet))
    guest.tunnel.flush()
    path = tmp_path / "net0.vpn.pcap"
    path.write_bytes(guest.pcap.getvalue())
    assert analyse(path).unparsed + sum(guest.stats["refused"].values()) == 4


def test_a_router_is_not_asked_inside() -> None:
    guest = TunnelGuest()
    guest.up()
    source, every = b"\xfe\x80" + bytes(13) + b"\x09", bytes.fromhex("ff020000000000000000000000000002")
    body = wire.with_checksum(source, every, 58, b"\x85" + bytes(7), 2)
    assert guest.packet(wire.ip(source, every, 58, body)[2:]) == []
    dst = bytes.fromhex("20010db800aa00000000000000000007")
    echo = wire.with_checksum(source, dst, 58, b"\x80" + bytes(7), 2)
    assert len(guest.packet(wire.ip(source, dst, 58, echo)[2:])) == 1


def test_only_the_endpoint_is_the_peer() -> None:
    guest = TunnelGuest()
    message = guest.wg.initiation()
    assert guest.net.udp(guest.endpoint, PORT + 1, message) == []
    assert guest.net.udp(FAR, PORT, message) == []
    assert guest.net.kinds().count("wireguard") == 2
    assert guest.stats["datagrams"] == 0
    (v6,) = [address for address in guest.tunnel.addresses if len(address) == 16]
    assert len(guest.net.udp(v6, PORT, message)) == 1


def test_refused_datagrams_are_counted_by_reason() -> None:
    guest = TunnelGuest()
    for _ in range(3):
        assert guest.send(b"not WireGuard, but telemetry in a hurry") == []
    guest.up()
    message = guest.wg.data(b"")
    guest.send(message)
    guest.send(message)
    assert guest.stats["refused"] == {
        "not a message of WireGuard": 3,
        "a counter that was there already": 1,
    }
    refused = [event for event in guest.net.events if event["event"] == "vpn-refused"]
    assert [event["why"] for event in refused] == list(guest.stats["refused"])
    assert refused[0]["name"] == HOST


def test_a_literal_endpoint() -> None:
    guest = TunnelGuest(vpn=Vpn("203.0.113.9", PORT, PEER_PRIVATE, GUEST_PUBLIC, PRESHARED))
    assert guest.tunnel.addresses == (bytes((203, 0, 113, 9)),)
    guest.up()
    assert guest.stats["handshakes"] == 1


@given(st.lists(st.binary(max_size=120), max_size=8))
@settings(max_examples=15, deadline=None)
def test_any_bytes_inside_raise_nothing(packets: list[bytes]) -> None:
    guest = TunnelGuest()
    guest.up()
    for packet in packets:
        for first in (packet, b"\x45" + packet, b"\x60" + packet):
            guest.send(guest.wg.data(first, padding=b""))
    inside = guest.stats["inside"]
    assert inside["rx_frames"] + sum(guest.stats["refused"].values()) + guest.stats["keepalives"] == (
        3 * len(packets) + 1
    )


def test_settings_go_into_the_other_process_and_secrets_into_no_record() -> None:
    secure = Resolver(SecureDns.DOT, "dns.example.org", "", 853, "/dns-query", "/a.pem", "/b.pem")
    vpn = Vpn(HOST, PORT, PEER_PRIVATE, GUEST_PUBLIC, PRESHARED, ("10.9.0.1",), ("10.9.0.1",))
    both = Settings(vpn=vpn, secure=secure)
    assert Settings.from_json(both.to_json()) == both
    for text in (both.for_record(), repr(both)):
        assert PEER_PRIVATE not in text
        assert PRESHARED not in text
        assert GUEST_PUBLIC in text
    assert Settings.from_json(Settings().to_json()) == Settings()


class _Full(io.BytesIO):
    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


def test_a_capture_that_cannot_be_written_says_so() -> None:
    full = TunnelCapture(_Full(), 1 << 20, bytes(6))
    full.add(1.0, b"x", ours=True)
    full.flush()
    assert "No space left" in full.failure
    small = TunnelCapture(io.BytesIO(), 24 + 60, bytes(6))
    small.add(1.0, bytes(20), ours=False)
    assert small.failure == ""
    small.add(1.0, bytes(20), ours=False)
    assert "full" in small.failure
    assert small.packets == 1


def test_shapes_are_recognised() -> None:
    guest = Initiator()
    message = guest.initiation()
    assert recognise(message) == "handshake"
    assert recognise(message[:-1]) == ""
    assert recognise(struct.pack("<B3xIQ", 4, 1, 1) + bytes(16)) == "data"
    assert Guest(vpn=VPN).settings.vpn == VPN


def _exchange(qemu: socket.socket, frame: bytes) -> bytes:
    qemu.sendall(len(frame).to_bytes(4, "big") + frame)
    qemu.settimeout(20)
    head = qemu.recv(4, socket.MSG_WAITALL)
    return qemu.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)


def test_a_process_of_its_own_plays_both(tmp_path: Path) -> None:
    """The keys reach it, and no file; what goes through the tunnel is in files of its own."""
    vpn = Vpn("203.0.113.9", PORT, PEER_PRIVATE, GUEST_PUBLIC, PRESHARED)
    wanted = Settings(vpn=vpn, secure=resolver(tmp_path))
    link = SinkholeLink("net0", wanted, tmp_path)
    qemu = link.start()
    guest = Initiator(preshared=raw(PRESHARED))
    endpoint, port = bytes((203, 0, 113, 9)), 51000

    def outer(message: bytes) -> bytes:
        body = wire.udp(wanted.guest, port, endpoint, PORT, message)
        return wire.frame(wanted.hardware + MAC, wire.ip(wanted.guest, endpoint, 17, body))

    try:
        guest.finish(payload_of(_exchange(qemu, outer(guest.initiation())))[8:])
        body = wire.udp(INNER, 4000, PEER_INNER, 53, dns.query("inside.example.com"))
        packet = wire.ip(INNER, PEER_INNER, 17, body)[2:]
        answer = guest.read(payload_of(_exchange(qemu, outer(guest.data(packet))))[8:])
        assert dns.parse(payload_of(bytes(12) + wire.IPV4 + answer)[8:]).records
        stats = link.stop()
    finally:
        qemu.close()
        link.close()
    assert (stats["vpn"]["handshakes"], stats["vpn"]["inside"]["rx_frames"]) == (1, 1)
    assert stats["secure"]["begun"] == 0
    seen = analyse(link.tunnel_capture, (), wanted.mac)
    assert ([query.name for query in seen.queries], seen.problem) == (["inside.example.com"], "")
    assert b"inside.example.com" in link.tunnel_events.read_bytes()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("net0*"))
    assert PEER_PRIVATE.encode() not in kept
    assert PRESHARED.encode() not in kept


def test_a_certificate_that_is_gone_is_told(tmp_path: Path) -> None:
    declared = resolver(tmp_path)
    (tmp_path / "resolver.pem").unlink()
    link = SinkholeLink("net0", Settings(secure=declared), tmp_path)
    try:
        with pytest.raises(LaunchFailed, match="did not come up"):
            link.start()
    finally:
        link.close()


def test_how_long_a_handshake_takes_is_measured(tmp_path: Path) -> None:
    guest = TunnelGuest()
    guest.up()
    net = guest.net
    frames = [(1.7e9, net.sent[0]), (1.7e9 + 0.25, net.got[0]), (1.7e9 + 1, net.sent[1])]
    seen = analyse(write_pcap(tmp_path / "x.pcap", frames), (), net.settings.mac)
    assert seen.latency == pytest.approx((0.25,), abs=1e-3)
    assert analyse(write_pcap(tmp_path / "x.pcap", frames[:1]), (), net.settings.mac).latency == (None,)
