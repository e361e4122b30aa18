"""A guest that knows how it is watched: whatever it hides its traffic behind, there is a finding."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_samples import ACK, MAC, PSH, SYN, Guest, client_hello, dhcp_message, tcp_packet, with_extension
from test_observe_telemetry import FAR, NONCE, FakeMachine, _observe

from pytest_osgates.checks.telemetry import GATE, TelemetryPolicy
from pytest_osgates.model import Severity
from pytest_osgates.observers.telemetry.build import PROGRAMS
from pytest_osgates.observers.telemetry.canary import _SCRIPT
from pytest_osgates.vm.capture.dissect import Dissector
from pytest_osgates.vm.guest.channel import ShellResult
from pytest_osgates.vm.network import arp, dhcp, dns, wire

ALLOWED = "ok.example.org"
ALLOW = {"name": ALLOWED, "services": ["tcp:443", "tcp:80"], "reason": "the mirror of the test"}
POLICY = TelemetryPolicy.model_validate({"idle_s": 5, "allow": [ALLOW]})
CANARY = f"{NONCE}-middle.osgates-canary.example.net"
SPY = "leak.example.com"
SECRET = b"the user's secret, in the clear" * 8
LINK_LOCAL = b"\xfe\x80" + bytes(13) + b"\x77"
ALL_ROUTERS = bytes.fromhex("ff020000000000000000000000000002")
Leak = Callable[[Guest], object]


def _violations(directory: Path, leak: Leak) -> set[tuple[str, str]]:
    def once(guest: Guest, when: str) -> None:
        if when == "idle":
            leak(guest)

    seen = _observe(directory, once)
    decisive = {Severity.VIOLATION, Severity.UNPROVEN}
    return {finding.key for finding in GATE.judge(seen, POLICY) if finding.severity in decisive}


def _address(guest: Guest, name: str = ALLOWED) -> bytes:
    """Asked for honestly."""
    (answer,) = guest.udp(guest.settings.resolver, 53, dns.query(name), sport=40100)
    return wire.address_of(dns.parse(answer).records[0].value)


def _segment(
    guest: Guest, dst: bytes, dport: int, seq: int, flags: int, data: bytes = b"", sport: int = 50100
) -> None:
    guest.packet(tcp_packet(guest.ip, dst, sport, dport, seq, 1, flags, data))


def _icmp6(guest: Guest, dst: bytes, kind: int, body: bytes, src: bytes = LINK_LOCAL) -> None:
    message = wire.with_checksum(src, dst, wire.ICMPV6, bytes((kind, 0, 0, 0)) + body, 2)
    guest.packet(wire.ip(src, dst, wire.ICMPV6, message, 255))


def _icmp(guest: Guest, dst: bytes, kind: int, body: bytes) -> None:
    message = bytes((kind, 3, 0, 0)) + body
    message = message[:2] + wire.checksum(message).to_bytes(2, "big") + message[4:]
    guest.packet(wire.ip(guest.ip, dst, wire.ICMP, message))


def _with_options(packet: bytes, options: bytes) -> bytes:
    """An IPv4 packet (behind its EtherType) with options."""
    head, rest = bytearray(packet[2:22]), packet[22:]
    head[0] = 0x45 + len(options) // 4
    head[2:4] = (len(packet) - 2 + len(options)).to_bytes(2, "big")
    head[10:12] = b"\0\0"
    head[10:12] = wire.checksum(bytes(head) + options).to_bytes(2, "big")
    return packet[:2] + bytes(head) + options + rest


def _query(guest: Guest, data: bytes, name: str = CANARY) -> bytes:
    packet = dns.query(name) + data
    return wire.ip(
        guest.ip, guest.settings.resolver, 17, wire.udp(guest.ip, 40200, guest.settings.resolver, 53, packet)
    )


# -- who began
# -------------------------------------------------------------------------------------------------------------


def _answers_first(guest: Guest) -> None:
    """As if the other side had called: SYN and ACK at once, then what is to get out."""
    _segment(guest, FAR, 443, 1, SYN | ACK)
    _segment(guest, FAR, 443, 2, ACK | PSH, SECRET)


def _after_advertisement(guest: Guest) -> None:
    """The router spoke to it first."""
    _icmp6(guest, ALL_ROUTERS, 133, bytes(4))
    _icmp6(guest, guest.settings.link_local, 128, b"\0\1\0\1" + SECRET)
    _icmp6(guest, guest.settings.link_local, 136, b"\x60\0\0\0" + LINK_LOCAL)


def _as_the_server(guest: Guest) -> None:
    """From the addresses and ports that DHCP's answers have."""
    src, dst = guest.settings.gateway, b"\xff" * 4
    guest.packet(wire.ip(src, dst, 17, wire.udp(src, 67, dst, 68, SECRET)))


def _as_the_resolver(guest: Guest) -> None:
    src, dst = guest.settings.resolver, guest.ip
    guest.packet(wire.ip(src, dst, 17, wire.udp(src, 53, dst, 41000, dns.query(ALLOWED))))


def _both_ways(guest: Guest) -> None:
    """Under the canary's own flow, and under DHCP's, in the other direction."""
    away, ports = bytes((192, 0, 2, 102)), (42001, 9)
    for src, dst, sport, dport in ((away, guest.ip, *reversed(ports)), (b"\xff" * 4, bytes(4), 67, 68)):
        guest.packet(wire.ip(src, dst, 17, wire.udp(src, sport, dst, dport, SECRET)))


def _under_many_cards(guest: Guest) -> None:
    """The resolver's answers, sent by many cards before the resolver itself answers."""
    resolver = guest.settings.resolver
    forged = wire.ip(resolver, guest.ip, 17, wire.udp(resolver, 53, guest.ip, 43999, dns.query(ALLOWED)))
    for number in range(12):
        guest.send(wire.frame(guest.settings.hardware + bytes((2, 0, 0, 0, 0, number)), forged))
    guest.udp(resolver, 53, dns.query(ALLOWED), sport=43999)


# -- canaries
# -------------------------------------------------------------------------------------------------------------


def _below_the_canary(guest: Guest) -> None:
    guest.udp(guest.settings.resolver, 53, dns.query(f"{CANARY}.{SPY}"))


def _canary_elsewhere(guest: Guest) -> None:
    guest.udp(FAR, 53, dns.query(CANARY))


def _canary_often(guest: Guest) -> None:
    for number in range(40):
        guest.udp(guest.settings.resolver, 53, dns.query(CANARY, ident=number), sport=43000 + number)


def _canary_of_many(guest: Guest) -> None:
    """Often, but each time from another address."""
    for number in range(40):
        src = guest.settings.ipv4(100 + number % 20)
        guest.udp(guest.settings.resolver, 53, dns.query(CANARY, ident=number), sport=43000, src=src)


def _canary_text(guest: Guest) -> None:
    guest.udp(guest.settings.resolver, 53, dns.query(CANARY, dns.TXT))


def _canary_again(guest: Guest) -> None:
    for port in range(5):
        guest.udp(bytes((192, 0, 2, 101)), 9, f"{NONCE}-start".encode(), sport=43000 + port)


def _canary_altered(guest: Guest) -> None:
    guest.udp(bytes((192, 0, 2, 102)), 9, f"{NONCE}-secret".encode(), sport=43000)


def _complaint_to_the_canary(guest: Guest) -> None:
    _icmp(guest, bytes((192, 0, 2, 101)), 3, bytes(4) + SECRET)


# -- names
# -------------------------------------------------------------------------------------------------------------


def _two_questions(guest: Guest) -> None:
    query = struct.pack("!HHHHHH", 7, 0x0100, 2, 0, 0, 0)
    query += b"".join(dns.write_name(name) + b"\0\1\0\1" for name in (ALLOWED, SPY))
    guest.udp(guest.settings.resolver, 53, query)


def _option(guest: Guest) -> None:
    query = bytearray(dns.query(ALLOWED))
    query[10:12] = b"\0\1"
    option = struct.pack("!HH", 65001, len(SECRET)) + SECRET
    guest.udp(
        guest.settings.resolver, 53, bytes(query) + b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(option)) + option
    )


def _additional(guest: Guest) -> None:
    query = bytearray(dns.query(ALLOWED))
    query[10:12] = b"\0\1"
    record = dns.write_name(SPY) + struct.pack("!HHIH", 16, 1, 0, len(SECRET)) + SECRET
    guest.udp(guest.settings.resolver, 53, bytes(query) + record)


def _behind_the_question(guest: Guest) -> None:
    guest.udp(guest.settings.resolver, 53, dns.query(ALLOWED) + SECRET)


def _update(guest: Guest) -> None:
    query = dns.query(ALLOWED, dns.SOA)
    guest.udp(guest.settings.resolver, 53, query[:2] + b"\x28\0" + query[4:])


def _behind_the_stream(guest: Guest) -> None:
    query = dns.query(ALLOWED)
    guest.tcp(guest.settings.resolver, 53).say(len(query).to_bytes(2, "big") + query + b"\xff\xff" + SECRET)


def _beside_the_stream(guest: Guest) -> None:
    connection = guest.tcp(guest.settings.resolver, 53)
    query = dns.query(ALLOWED)
    connection.say(len(query).to_bytes(2, "big") + query)
    _segment(guest, guest.settings.resolver, 53, connection.seq + 10, ACK | PSH, SECRET, 50000)


def _in_the_greeting(guest: Guest) -> None:
    query = dns.query(ALLOWED)
    guest.tcp(guest.settings.resolver, 53).say(len(query).to_bytes(2, "big") + query)
    _segment(guest, guest.settings.resolver, 53, 70_000, SYN, SECRET, 50000)


def _pointed_at(guest: Guest) -> None:
    """A name that is a pointer into the header: the same bytes are another name each time."""
    for text in (b"ok", b"no"):
        head = bytes((2, *text, 0)) + b"\0\1\0\0\0\0\0\0"
        guest.udp(guest.settings.resolver, 53, head + b"\xc0\0" + b"\0\1\0\1")


def _false_name(guest: Guest) -> None:
    guest.tcp(FAR, 443).say(client_hello(ALLOWED))


def _false_host(guest: Guest) -> None:
    guest.tcp(FAR, 80).say(f"GET / HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n".encode())


def _forged_answer(guest: Guest) -> None:
    """Says to itself, in an allowed connection, that an address is the allowed name's."""
    address = _address(guest)
    query = dns.query(ALLOWED)
    answer = dns.answer(query, dns.parse_question(query), FAR, b"")
    guest.tcp(address, 443, sport=53).say(len(answer).to_bytes(2, "big") + answer)
    guest.tcp(FAR, 443)


def _hidden_behind_others(guest: Guest) -> None:
    """One connection after the other between the same ports: names beyond what is remembered."""
    address = _address(guest)
    for number in range(52):
        guest.tcp(address, 443, sport=50200).say(f"GET /{number} HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n".encode())
    hello = with_extension(client_hello(ALLOWED), 0xFE0D, bytes(40))
    guest.tcp(address, 443, sport=50200).say(hello)


def _hello_after_a_letter(guest: Guest) -> None:
    """A connection that said one letter, then another between the same ports."""
    address = _address(guest)
    guest.tcp(address, 443, sport=50200).say(b"G")
    connection = guest.tcp(address, 443, sport=50200)
    connection.abort()
    _segment(guest, address, 443, 90_000, SYN, b"", 50200)
    _segment(guest, address, 443, 90_001, ACK | PSH, client_hello(SPY), 50200)


def _encrypted_twice(guest: Guest) -> None:
    """Encrypted DNS may be allowed, a hidden name may not."""
    address = _address(guest)
    guest.tcp(address, 443).say(with_extension(client_hello(ALLOWED, ["dot"]), 0xFE0D, bytes(40)))


def _again(guest: Guest) -> None:
    """Other bytes under sequence numbers that were used."""
    connection = guest.tcp(guest.settings.resolver, 53)
    query = dns.query(ALLOWED)
    connection.say(len(query).to_bytes(2, "big") + query)
    for _ in range(200):
        _segment(guest, guest.settings.resolver, 53, 1001, ACK | PSH, SECRET[: len(query)], 50000)


def _errors(guest: Guest) -> None:
    quoted = wire.ip(guest.settings.resolver, guest.ip, 17, SECRET)[2:]
    for _ in range(100):
        _icmp(guest, guest.settings.resolver, 3, bytes(4) + quoted)


def _leases(guest: Guest) -> None:
    for number in range(100):
        message = bytearray(dhcp_message(1))
        message[4:8] = SECRET[number : number + 4]
        guest.udp(b"\xff" * 4, 67, bytes(message), sport=68, src=bytes(4))


# -- the link
# -------------------------------------------------------------------------------------------------------------


def _ports_of_dhcp(guest: Guest) -> None:
    guest.udp(b"\xff" * 4, 68, SECRET, sport=67)


def _ports_of_dhcpv6(guest: Guest) -> None:
    guest.udp(guest.settings.gateway, 9999, SECRET, sport=547)


def _dhcp_options(*options: tuple[int, bytes]) -> Leak:
    return lambda guest: guest.udp(b"\xff" * 4, 67, dhcp_message(3, *options), sport=68, src=bytes(4))


def _dhcp_of_the_gateway(guest: Guest) -> None:
    message = dhcp_message(3, (12, b"my-laptop"), mac=guest.settings.hardware)
    guest.udp(b"\xff" * 4, 67, message, sport=68, src=bytes(4))


def _dhcp_of_another(guest: Guest) -> None:
    other = b"secret"
    message = dhcp_message(3, (61, b"\1" + other), mac=other)
    guest.udp(b"\xff" * 4, 67, message, sport=68, src=bytes(4))


def _dhcp_file(guest: Guest) -> None:
    message = bytearray(dhcp_message(3))
    message[108 : 108 + 100] = SECRET[:100]
    guest.udp(b"\xff" * 4, 67, bytes(message), sport=68, src=bytes(4))


def _dhcp_end(guest: Guest) -> None:
    guest.udp(b"\xff" * 4, 67, dhcp_message(3) + SECRET, sport=68, src=bytes(4))


def _dhcpv6_option(guest: Guest) -> None:
    message = b"\x0b\1\2\3" + struct.pack("!HH", 17, len(SECRET)) + SECRET
    guest.udp(bytes.fromhex("ff020000000000000000000000010002"), 547, message, sport=546, src=LINK_LOCAL)


def _stamp_to_the_gateway(guest: Guest) -> None:
    _icmp(guest, guest.settings.gateway, 13, SECRET)


def _icmp_fragments(guest: Guest) -> None:
    packet = bytearray(wire.ip(guest.ip, guest.settings.gateway, wire.ICMP, SECRET))
    packet[8:10] = b"\x20\0"
    packet[12:14] = b"\0\0"
    packet[12:14] = wire.checksum(bytes(packet[2:22])).to_bytes(2, "big")
    guest.packet(bytes(packet))


def _groups(guest: Guest) -> None:
    dst = bytes((224, 0, 0, 22))
    guest.packet(wire.ip(guest.ip, dst, wire.IGMP, b"\x22\0\0\0" + SECRET, 1))


def _router(guest: Guest) -> None:
    dst = bytes.fromhex("ff020000000000000000000000000001")
    _icmp6(guest, dst, 134, bytes(12) + b"\x1f" + bytes((1 + len(SECRET) // 8,)) + bytes(6) + SECRET)


def _neighbour_option(guest: Guest) -> None:
    target = guest.settings.link_local
    option = bytes((253, (len(SECRET) + 8) // 8)) + bytes(6) + SECRET
    _icmp6(guest, target, 135, bytes(4) + target + option)


def _listener(guest: Guest) -> None:
    _icmp6(guest, bytes.fromhex("ff020000000000000000000000000016"), 143, b"\0\0\0\0" + SECRET)


def _source_route(guest: Guest) -> None:
    packet = _query(guest, b"", ALLOWED)
    guest.packet(_with_options(packet, b"\x83\x07\x04" + FAR + b"\0"))


def _routing_header(guest: Guest) -> None:
    src, dst = guest.settings.prefix + bytes(7) + b"\x77", guest.settings.resolver6
    far = bytes.fromhex("20010db800aa00000000000000000007")
    datagram = wire.udp(src, 40200, dst, 53, dns.query(ALLOWED))
    header = bytes((17, 2, 0, 1, 0, 0, 0, 0)) + far
    guest.packet(wire.ip(src, dst, 43, header + datagram))


def _hop_options(guest: Guest) -> None:
    src, dst = guest.settings.prefix + bytes(7) + b"\x77", guest.settings.resolver6
    datagram = wire.udp(src, 40200, dst, 53, dns.query(ALLOWED))
    data = SECRET[:200]
    header = bytes((17, (4 + len(data)) // 8, 0x3E, len(data))) + data
    header += bytes(-len(header) % 8)
    guest.packet(wire.ip(src, dst, 60, bytes((17, len(header) // 8 - 1)) + header[2:] + datagram))


def _behind_the_packet(guest: Guest) -> None:
    guest.packet(_query(guest, b"", ALLOWED) + SECRET)


def _behind_the_datagram(guest: Guest) -> None:
    resolver = guest.settings.resolver
    datagram = wire.udp(guest.ip, 40200, resolver, 53, dns.query(ALLOWED))
    guest.packet(wire.ip(guest.ip, resolver, 17, datagram + SECRET))


def _behind_arp(guest: Guest) -> None:
    guest.packet(arp.request(MAC, guest.ip, guest.settings.gateway) + SECRET)


def _arp_for_far(guest: Guest) -> None:
    guest.packet(arp.request(MAC, guest.ip, FAR))


def _arp_of_the_gateway(guest: Guest) -> None:
    guest.packet(arp.request(guest.settings.hardware, guest.ip, FAR))


def _arp_often(guest: Guest) -> None:
    for number in range(100):
        guest.packet(arp.request(MAC, guest.ip, guest.settings.ipv4(100 + number)))


def _neighbours(guest: Guest) -> None:
    for number in range(40):
        _icmp6(guest, ALL_ROUTERS, 135, bytes(4) + LINK_LOCAL[:-1] + bytes((number,)))


def _far_neighbour(guest: Guest) -> None:
    _icmp6(guest, ALL_ROUTERS, 135, bytes(4) + bytes.fromhex("20010db800aa00000000000000000007"))


def _many_groups(guest: Guest) -> None:
    for number in range(40):
        report = b"\x22\0\0\0\0\0\0\1\4\0\0\0\xe0\1\2" + bytes((number,))
        guest.packet(wire.ip(guest.ip, bytes((224, 0, 0, 22)), wire.IGMP, report, 1))


FAR_TEXT = "203.0.113.7"
LEAKS: dict[str, tuple[Leak, tuple[str, str]]] = {
    "answers first": (_answers_first, ("literal-address", FAR_TEXT)),
    "after the router": (_after_advertisement, ("literal-address", "fe80::2")),
    "as the DHCP server": (_as_the_server, ("multicast", "255.255.255.255")),
    "as the resolver": (_as_the_resolver, ("literal-address", "10.0.2.3")),
    "the other way": (_both_ways, ("literal-address", "10.0.2.15")),
    "the other way of DHCP": (_both_ways, ("literal-address", wire.text_of(bytes(4)))),
    "under many cards": (_under_many_cards, ("literal-address", "10.0.2.15")),
    "the canary of many": (_canary_of_many, ("contact", CANARY)),
    "below the canary": (_below_the_canary, ("contact", f"{CANARY}.{SPY}")),
    "the canary elsewhere": (_canary_elsewhere, ("literal-address", FAR_TEXT)),
    "the canary often": (_canary_often, ("contact", CANARY)),
    "the canary's text": (_canary_text, ("contact", CANARY)),
    "the canary again": (_canary_again, ("literal-address", "192.0.2.101")),
    "the canary altered": (_canary_altered, ("literal-address", "192.0.2.102")),
    "a complaint to the canary": (_complaint_to_the_canary, ("literal-address", "192.0.2.101")),
    "two questions": (_two_questions, ("contact", SPY)),
    "an EDNS option": (_option, ("literal-address", "10.0.2.3")),
    "an additional record": (_additional, ("literal-address", "10.0.2.3")),
    "behind the question": (_behind_the_question, ("literal-address", "10.0.2.3")),
    "a dynamic update": (_update, ("literal-address", "10.0.2.3")),
    "behind a DNS stream": (_behind_the_stream, ("literal-address", "10.0.2.3")),
    "beside a DNS stream": (_beside_the_stream, ("literal-address", "10.0.2.3")),
    "in the SYN of a DNS stream": (_in_the_greeting, ("literal-address", "10.0.2.3")),
    "a name that is a pointer": (_pointed_at, ("contact", "no")),
    "a false SNI": (_false_name, ("contact", ALLOWED)),
    "a false Host": (_false_host, ("contact", ALLOWED)),
    "a forged answer": (_forged_answer, ("literal-address", FAR_TEXT)),
    "behind sixty connections": (_hidden_behind_others, ("ech", ALLOWED)),
    "a hello after a letter": (_hello_after_a_letter, ("contact", SPY)),
    "ECH in DoT": (_encrypted_twice, ("ech", ALLOWED)),
    "sent again": (_again, ("literal-address", "10.0.2.3")),
    "errors that quote": (_errors, ("literal-address", "10.0.2.3")),
    "one lease after the other": (_leases, ("multicast", "255.255.255.255")),
    "DHCP's ports": (_ports_of_dhcp, ("multicast", "255.255.255.255")),
    "DHCPv6's ports": (_ports_of_dhcpv6, ("literal-address", "10.0.2.2")),
    "a UUID in DHCP": (_dhcp_options((97, b"\0uuid")), ("dhcp-option", "97: 0075756964")),
    "two names in DHCP": (_dhcp_options((12, b"host"), (81, b"\0\0\0laptop")), ("dhcp-host-name", "laptop")),
    "DHCP of the gateway": (_dhcp_of_the_gateway, ("dhcp-host-name", "my-laptop")),
    "DHCP of another card": (_dhcp_of_another, ("dhcp-hardware-address", "73:65:63:72:65:74")),
    "a file name in DHCP": (_dhcp_file, ("dhcp-option", dhcp.shown("file", SECRET[:100]))),
    "behind DHCP's end": (_dhcp_end, ("dhcp-option", dhcp.shown("behind the end", SECRET))),
    "an option of DHCPv6": (_dhcpv6_option, ("dhcpv6-option", dhcp.shown("17", SECRET))),
    "a time stamp for the gateway": (_stamp_to_the_gateway, ("literal-address", "10.0.2.2")),
    "fragments of ICMP": (_icmp_fragments, ("literal-address", "10.0.2.2")),
    "a report of groups": (_groups, ("unparsed", "card 0")),
    "a router": (_router, ("multicast", "ff02::1")),
    "an option for a neighbour": (_neighbour_option, ("unparsed", "card 0")),
    "a report of listeners": (_listener, ("unparsed", "card 0")),
    "a source route": (_source_route, ("ip-options", "IPv4 option 131")),
    "a routing header": (_routing_header, ("ip-options", "IPv6 routing header")),
    "options of IPv6": (_hop_options, ("ip-options", "IPv6 option 62")),
    "behind the packet": (_behind_the_packet, ("unparsed", "card 0")),
    "behind the datagram": (_behind_the_datagram, ("unparsed", "card 0")),
    "behind ARP": (_behind_arp, ("unparsed", "card 0")),
    "ARP for somebody far away": (_arp_for_far, ("arp", FAR_TEXT)),
    "ARP of the gateway": (_arp_of_the_gateway, ("arp", FAR_TEXT)),
    "ARP for many": (_arp_often, ("arp", "many addresses")),
    "many neighbours": (_neighbours, ("ndp", "many addresses")),
    "a neighbour far away": (_far_neighbour, ("ndp", "2001:db8:aa::7")),
    "many groups": (_many_groups, ("groups", "many addresses")),
}


@pytest.mark.parametrize("how", list(LEAKS))
def test_nothing_is_hidden(how: str, tmp_path: Path) -> None:
    leak, expected = LEAKS[how]
    found = _violations(tmp_path, leak)
    assert expected in found


def test_programs_are_tried_in_turn() -> None:
    loop = re.search(r"^for try in (.*); do$", _SCRIPT, re.MULTILINE)
    assert loop is not None
    assert tuple(loop[1].split()) == PROGRAMS


@pytest.mark.parametrize(("how", "hidden"), [("bash", False), ("python3", True), ("socat", True)])
def test_a_program_that_sent_and_failed(
    how: str, hidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one sends the canary once more, and that is still ours."""
    run = FakeMachine.run

    def twice(machine: FakeMachine, command: str, **limits: Any) -> ShellResult:
        done = run(machine, command, **limits)
        if NONCE in command:
            address, token = command.split()[2:4]
            machine.net.udp(wire.address_of(address), 9, token.encode(), sport=44000)
            machine._keep()
        return ShellResult(command, 0, done.stdout.replace(b"sent bash", b"sent " + how.encode()), b"")

    monkeypatch.setattr(FakeMachine, "run", twice)
    found = _violations(tmp_path, lambda guest: None)
    assert (found == set()) == hidden


@pytest.mark.parametrize(
    "data",
    [
        dns.query(ALLOWED),
        dns.query(ALLOWED)[:10] + b"\0\1" + dns.query(ALLOWED)[12:] + b"\0\0\x29\4\xd0\0\0\x80\0\0\0",
        dns.query(ALLOWED)[:10]
        + b"\0\1"
        + dns.query(ALLOWED)[12:]
        + b"\0\0\x29\4\xd0\0\0\0\0\0\x1c\0\x0a\0\x08cookie!!\0\x0c\0\4\0\0\0\0\0\x08\0\4\0\1\0\0",
    ],
)
def test_usual_queries_are_nothing_more(data: bytes, tmp_path: Path) -> None:
    """EDNS as resolvers send it: a buffer's size, DNSSEC OK, a cookie, padding, no client subnet."""
    assert _violations(tmp_path, lambda guest: guest.udp(guest.settings.resolver, 53, data)) == set()


def test_an_ordinary_guest_says_nothing_of_itself(tmp_path: Path) -> None:
    """What Linux, its usual DHCP clients and resolvers send on any link."""

    def leak(guest: Guest) -> None:
        settings, groups = guest.settings, bytes.fromhex("ff020000000000000000000000000016")
        everything = ((55, bytes((1, 3, 6, 12, 15, 28))), (57, b"\x05\xdc"), (50, guest.ip), (61, b"\x01" + MAC))
        guest.udp(b"\xff" * 4, 67, dhcp_message(3, *everything, (145, b"\1")), sport=68, src=bytes(4))
        options = struct.pack("!HH", 1, 10) + b"\0\3\0\1" + MAC + struct.pack("!HHHHHH", 8, 2, 0, 6, 2, 23)
        servers = bytes.fromhex("ff020000000000000000000000010002")
        guest.udp(servers, 547, b"\x0b\1\2\3" + options, sport=546, src=LINK_LOCAL)
        # Duplicate address detection with a nonce, a router solicitation, a neighbour's and its answer, groups.
        _icmp6(guest, ALL_ROUTERS, 135, bytes(4) + LINK_LOCAL + b"\x0e\1nonce!", bytes(16))
        _icmp6(guest, ALL_ROUTERS, 133, bytes(4) + b"\1\1" + MAC)
        _icmp6(guest, settings.link_local, 135, bytes(4) + settings.link_local + b"\1\1" + MAC)
        _icmp6(guest, settings.link_local, 136, b"\x60\0\0\0" + LINK_LOCAL + b"\2\1" + MAC)
        alert = b"\x3a\0\5\2\0\0\1\0"
        report = bytes((143, 0, 0, 0)) + b"\0\0\0\1\4\0\0\0" + groups
        report = wire.with_checksum(LINK_LOCAL, groups, wire.ICMPV6, report, 2)
        guest.packet(wire.ip(LINK_LOCAL, groups, 0, alert + report, 1))
        igmp = b"\x22\0\0\0\0\0\0\1\4\0\0\0\xe0\0\0\xfb"
        guest.packet(_with_options(wire.ip(guest.ip, bytes((224, 0, 0, 22)), wire.IGMP, igmp, 1), b"\x94\4\0\0"))
        # An answer that came too late.
        late = wire.ip(settings.resolver, guest.ip, 17, wire.udp(settings.resolver, 53, guest.ip, 44000, b"late"))
        _icmp(guest, settings.resolver, 3, bytes(4) + late[2:])
        guest.packet(arp.request(MAC, bytes(4), guest.ip))
        guest.packet(arp.request(MAC, guest.ip, settings.gateway))
        guest.tcp(_address(guest), 443).say(client_hello(ALLOWED))

    assert _violations(tmp_path, leak) == set()


@given(
    st.sampled_from([(17, 53), (17, 67), (17, 547), (17, 5353), (6, 53), (1, 0), (2, 0), (58, 0), (0, 0), (43, 0)]),
    st.sampled_from([b"", b"\x22\0\0\0\0\0", b"\x8f\0\0\0", b"\x87\0\0\0", dns.query(ALLOWED), dhcp_message(1)[:-1]]),
    st.binary(max_size=80),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_it_holds_it_is_counted(what: tuple[int, int], head: bytes, body: bytes, v6: bool) -> None:
    (protocol, port), data = what, head + body
    src, dst = (LINK_LOCAL, ALL_ROUTERS) if v6 else (bytes((10, 0, 2, 15)), bytes((10, 0, 2, 3)))
    if protocol == 17:
        data = wire.udp(src, 68, dst, port, data)
    elif protocol == 6:
        data = struct.pack("!HHIIBBHHH", 1, port, 1, 1, 5 << 4, ACK, 1, 0, 0) + data
    dissector = Dissector(bytes(6))
    dissector.frame(wire.frame(MAC * 2, wire.ip(src, dst, protocol, data)), 1.0, 1, 2000)
    dissector.frame(wire.frame(MAC * 2, wire.ip(src, dst, protocol, data)), 1.0, 1, 60)
    assert dissector.unparsed >= 1
    assert dissector.unparsed == 2 or dissector.halves
