"""ARP, IPv4 and IPv6 headers, fragments, ICMP, neighbour discovery, DHCP, DHCPv6, NTP: what a guest needs to be
online.
"""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_samples import MAC, NOW, Guest, dhcp_message, payload_of

from pytest_osgates.vm.network import arp, dhcp, dhcpv6, icmp, icmpv6, ip, ntp, wire
from pytest_osgates.vm.network.wire import Malformed

FAR = bytes((203, 0, 113, 7))
FAR6 = bytes.fromhex("20010db800aa00000000000000000007")


@given(st.binary(max_size=200))
def test_the_checksum_is_the_one_of_rfc_1071(data: bytes) -> None:
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # Both zeros of one's complement are the same number.
    assert wire.checksum(data) % 0xFFFF == (~total & 0xFFFF) % 0xFFFF


def test_whoever_is_asked_for_answers_but_the_guest_itself() -> None:
    guest = Guest()
    (reply,) = guest.packet(arp.request(MAC, guest.ip, guest.settings.gateway))
    answer = arp.parse(reply[14:])
    assert (answer.operation, answer.sender, answer.sender_mac) == (
        2,
        guest.settings.gateway,
        guest.settings.hardware,
    )
    assert reply[:6] == MAC
    assert len(guest.packet(arp.request(MAC, guest.ip, FAR))) == 1
    # A probe for the address that it was given, and an announcement of it (RFC 5227).
    assert guest.packet(arp.request(MAC, bytes(4), guest.ip)) == []
    assert guest.packet(arp.request(MAC, guest.ip, guest.ip)) == []


def test_a_ping_is_answered_with_its_own_bytes() -> None:
    guest = Guest()
    echo = b"\x08\0\0\0\x12\x34\0\x01payload"
    echo = echo[:2] + wire.checksum(echo).to_bytes(2, "big") + echo[4:]
    (reply,) = guest.packet(wire.ip(guest.ip, FAR, wire.ICMP, echo))
    assert payload_of(reply)[0] == icmp.ECHO_REPLY
    assert payload_of(reply)[4:] == echo[4:]
    assert guest.only("icmp")["dst"] == "203.0.113.7"
    source = guest.settings.prefix + b"\0\0\0\0\0\0\x01\x15"
    echo6 = wire.with_checksum(source, FAR6, wire.ICMPV6, b"\x80\0\0\0\x12\x34\0\x01six", 2)
    (reply,) = guest.packet(wire.ip(source, FAR6, wire.ICMPV6, echo6))
    assert payload_of(reply)[0] == icmpv6.ECHO_REPLY
    assert payload_of(reply)[4:] == echo6[4:]


def test_a_router_is_not_forgotten() -> None:
    """A system whose router expires falls silent over IPv6: that would prove nothing."""
    guest = Guest()
    link_local = b"\xfe\x80" + bytes(13) + b"\x99"
    routers = bytes.fromhex("ff020000000000000000000000000002")
    solicit = wire.with_checksum(link_local, routers, wire.ICMPV6, b"\x85\0\0\0" + bytes(4), 2)
    asks = arp.request(MAC, guest.ip, guest.settings.gateway)
    assert len(guest.packet(asks)) == 1
    (reply,) = guest.packet(wire.ip(link_local, routers, wire.ICMPV6, solicit, 255))
    lifetime = int.from_bytes(payload_of(reply)[6:8], "big")
    assert len(guest.packet(asks)) == 1
    guest.log.clock = lambda: NOW + lifetime / 2
    _, again = guest.packet(asks)
    assert again[:6].hex() == "333300000001"
    assert payload_of(again)[4:] == payload_of(reply)[4:]
    assert len(guest.packet(asks)) == 1


def test_router_and_neighbours_of_ipv6() -> None:
    guest = Guest()
    link_local = b"\xfe\x80" + bytes(13) + b"\x99"
    routers = bytes.fromhex("ff020000000000000000000000000002")
    solicit = wire.with_checksum(link_local, routers, wire.ICMPV6, b"\x85\0\0\0" + bytes(4), 2)
    (reply,) = guest.packet(wire.ip(link_local, routers, wire.ICMPV6, solicit, 255))
    advert = payload_of(reply)
    assert advert[0] == icmpv6.ROUTER_ADVERTISEMENT
    assert guest.settings.prefix in advert
    assert guest.settings.resolver6 in advert
    target = guest.settings.link_local
    ask = icmpv6.neighbour_solicitation(target, MAC)
    (reply,) = guest.packet(
        wire.ip(link_local, target, wire.ICMPV6, wire.with_checksum(link_local, target, 58, ask, 2), 255)
    )
    assert payload_of(reply)[0] == icmpv6.NEIGHBOUR_ADVERTISEMENT
    assert payload_of(reply)[8:24] == target
    # Without a source it asks whether its own new address is free: nobody may answer.
    own = wire.with_checksum(bytes(16), routers, 58, icmpv6.neighbour_solicitation(FAR6, MAC), 2)
    assert guest.packet(wire.ip(bytes(16), routers, wire.ICMPV6, own, 255)) == []


def test_a_lease_is_offered_granted_and_renewed() -> None:
    guest = Guest(lease_s=600)
    nobody, all_ = bytes(4), b"\xff" * 4
    (offer,) = guest.udp(
        all_, 67, dhcp_message(dhcp.DISCOVER, (12, b"my-laptop"), (60, b"dhcpcd")), sport=68, src=nobody
    )
    assert offer[16:20] == guest.ip
    assert offer[4:8] == b"\x12\x34\x56\x78"
    assert b"\x35\x01\x02" in offer
    (ack,) = guest.udp(all_, 67, dhcp_message(dhcp.REQUEST, (50, guest.ip)), sport=68, src=nobody)
    assert dhcp.is_grant(ack)
    assert b"\x33\x04" + (600).to_bytes(4, "big") in ack
    assert b"\x3a\x04" + (300).to_bytes(4, "big") in ack
    assert b"\x06\x04" + guest.settings.resolver in ack
    (renewed,) = guest.udp(guest.settings.gateway, 67, dhcp_message(dhcp.REQUEST), sport=68)
    assert dhcp.is_grant(renewed)
    (nak,) = guest.udp(all_, 67, dhcp_message(dhcp.REQUEST, (50, b"\xc0\xa8\0\x01")), sport=68, src=nobody)
    assert b"\x35\x01\x06" in nak
    assert not dhcp.is_grant(nak)
    first, second, *_ = guest.events
    assert (first["kind"], first["host"], first["vendor"], first["granted"]) == (
        "discover",
        "my-laptop",
        "dhcpcd",
        "",
    )
    assert (second["kind"], second["granted"]) == ("request", "10.0.2.15")
    assert guest.udp(guest.settings.gateway, 67, dhcp_message(dhcp.RELEASE), sport=68) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(239),
        dhcp_message(1)[:-5] + b"\x0c\xff",
        b"\x02" + dhcp_message(1)[1:],
        dhcp_message(1)[:240] + b"\xff",
    ],
)
def test_what_is_no_dhcp_is_told(data: bytes) -> None:
    guest = Guest()
    assert guest.udp(b"\xff" * 4, 67, data, sport=68, src=bytes(4)) == []
    assert guest.kinds()[-1] == "unparsed"


def test_dhcpv6_gives_address_and_resolver() -> None:
    guest = Guest()
    link_local = b"\xfe\x80" + bytes(13) + b"\x99"
    servers = bytes.fromhex("ff020000000000000000000000010002")
    duid = b"\0\x01\0\x0a" + b"\0\x03\0\x01" + MAC
    identity = struct.pack("!HHIII", 3, 12, 7, 0, 0)
    fqdn = b"\0\x27\0\x05\0\x04host"[:4] + b"\x00" + b"\x04hos"
    (advertise,) = guest.udp(servers, 547, b"\x01abc" + duid + identity + fqdn, sport=546, src=link_local)
    assert advertise[:4] == b"\x02abc"
    assert guest.settings.prefix in advertise
    assert duid in advertise
    (reply,) = guest.udp(servers, 547, b"\x03abd" + duid + identity, sport=546, src=link_local)
    assert reply[0] == dhcpv6.REPLY
    event = guest.events[-1]
    assert (event["event"], event["kind"], event["duid"]) == ("dhcpv6", "request", "00030001" + MAC.hex())
    with pytest.raises(Malformed):
        dhcpv6.parse(b"\x01abc\0\x01\0\xff")


def test_ntp_tells_the_guest_its_own_time() -> None:
    guest = Guest()
    query = bytes((0x23, 0, 6, 0xEC)) + bytes(36) + b"\x01\x02\x03\x04\x05\x06\x07\x08"
    (answer,) = guest.udp(FAR, 123, query)
    assert answer[0] & 7 == ntp.SERVER
    assert answer[24:32] == query[40:48]
    assert int.from_bytes(answer[40:44], "big") - ntp.EPOCH == int(NOW)
    assert guest.udp(FAR, 123, b"\x24" + bytes(47)) == []
    assert guest.udp(FAR, 123, b"short") == []
    assert guest.kinds().count("ntp") == 3


@given(st.integers(0, 1 << 33), st.integers(0, 999_999))
def test_ntp_stamps_are_whole_seconds_and_parts(seconds: int, micros: int) -> None:
    at = ntp.stamp(seconds + micros / 1e6)
    assert int.from_bytes(at[:4], "big") == (seconds + ntp.EPOCH) & 0xFFFFFFFF


# -- fragments
# ---------------------------------------------------------------------------------------------------------


def _parts(payload: bytes, cuts: list[int], *, v6: bool) -> list[bytes]:
    """IP packets that together carry `payload`, cut at multiples of 8."""
    edges = [0, *sorted({cut * 8 for cut in cuts if 0 < cut * 8 < len(payload)}), len(payload)]
    made = []
    for begin, end in itertools.pairwise(edges):
        piece, more = payload[begin:end], end < len(payload)
        if v6:
            head = bytes((17, 0)) + (begin | more).to_bytes(2, "big") + b"\0\0\0\x07"
            made.append(wire.ip(bytes(15) + b"\x01", FAR6, 44, head + piece)[2:])
        else:
            packet = bytearray(wire.ip(b"\x0a\0\x02\x0f", FAR, 17, piece)[2:])
            packet[4:6] = b"\0\x07"
            packet[6:8] = ((begin // 8) | (0x2000 if more else 0)).to_bytes(2, "big")
            made.append(bytes(packet))
    return made


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=600), st.lists(st.integers(1, 70), max_size=6), st.booleans(), st.randoms())
def test_fragments_come_together_in_any_order(payload: bytes, cuts: list[int], v6: bool, random: object) -> None:
    parts = _parts(payload, cuts, v6=v6)
    random.shuffle(parts)  # type: ignore[attr-defined]
    together = ip.Reassembler()
    headers = [(ip.parse6 if v6 else ip.parse4)(part) for part in parts]
    whole = [together.add(header) for header in headers] if len(parts) > 1 else headers
    assert [header is not None for header in whole] == [False] * (len(whole) - 1) + [True]
    assert whole[-1] is not None
    assert whole[-1].payload == payload
    assert together.pending == 0


def test_overlapping_and_endless_fragments_are_given_up() -> None:
    together = ip.Reassembler()
    first, second = (ip.parse4(part) for part in _parts(bytes(64), [4], v6=False))
    assert together.add(first) is None
    with pytest.raises(Malformed):
        together.add(ip.Header(first.src, first.dst, 17, b"other" + bytes(27), 64, first.ident, 0, True))
    assert together.add(second) is None
    for ident in range(200):
        assert together.add(ip.Header(first.src, first.dst, 17, bytes(8), 64, ident, 0, True)) is None
    assert together.pending == ip.MAX_PENDING
    assert together.lost > 0
    with pytest.raises(Malformed):
        together.add(ip.Header(first.src, first.dst, 17, bytes(1400), 64, 9999, 65000, True))


@given(st.binary(max_size=120))
def test_ip_headers_are_read_or_refused(data: bytes) -> None:
    for parse, version in ((ip.parse4, 0x45), (ip.parse6, 0x60)):
        for candidate in (data, bytes((version,)) + data):
            try:
                header = parse(candidate)
            except Malformed:
                continue
            assert len(header.payload) <= len(candidate)


def test_ipv6_extension_headers_are_passed_over() -> None:
    hop = bytes((60, 0)) + bytes(6)
    options = bytes((17, 1)) + bytes(14)
    packet = wire.ip(FAR6, FAR6, 0, hop + options + b"payload")[2:]
    header = ip.parse6(packet)
    assert (header.protocol, header.payload) == (17, b"payload")
    with pytest.raises(Malformed):
        ip.parse6(wire.ip(FAR6, FAR6, 0, bytes((60, 200)) + bytes(6))[2:])
