"""DNS over UDP and TCP, and what is shouted over the link."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_samples import Guest

from pytest_osgates.vm.network import dns, link_names, resolvers, ssdp, wire
from pytest_osgates.vm.network.names import MAX_NAMES, NameTable
from pytest_osgates.vm.network.settings import Misbehaviour, Refusal
from pytest_osgates.vm.network.wire import Malformed

FAR = bytes((203, 0, 113, 53))
FAR6 = bytes.fromhex("20010db800aa00000000000000000053")
LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
NAME = st.lists(LABEL, min_size=1, max_size=6).map(".".join)


def _addresses(answer: bytes) -> list[str]:
    return [record.value for record in dns.parse(answer).records]


@settings(max_examples=50, deadline=None)
@given(st.lists(NAME, min_size=1, max_size=8))
def test_each_name_has_an_address_of_its_own_both_ways(names: list[str]) -> None:
    guest = Guest()
    given_: dict[str, str] = {}
    for name in names:
        (answer,) = guest.udp(guest.settings.resolver, 53, dns.query(name))
        (address,) = _addresses(answer)
        assert given_.setdefault(name, address) == address
        assert guest.hole.names.name(wire.address_of(address)) == name
    assert len(set(given_.values())) == len(given_)


def test_any_server_answers_and_every_query_is_logged() -> None:
    guest = Guest()
    for server in (guest.settings.resolver, FAR, FAR6):
        (answer,) = guest.udp(server, 53, dns.query("WWW.Example.COM", ident=0xBEEF))
        assert answer[:2] == b"\xbe\xef"
        assert dns.parse(answer).questions == (("www.example.com", dns.A),)
    queries = [event for event in guest.events if event["event"] == "dns"]
    assert [event["dst"] for event in queries] == ["10.0.2.3", "203.0.113.53", "2001:db8:aa::53"]
    assert {event["query"] for event in queries} == {"www.example.com"}
    assert guest.hole.queries == 3


def test_each_type_has_its_answer() -> None:
    guest = Guest()

    def ask(name: str, kind: int) -> dns.Message:
        return dns.parse(guest.udp(FAR, 53, dns.query(name, kind))[0])

    v4 = ask("host.example.com", dns.A).records[0].value
    v6 = ask("host.example.com", dns.AAAA).records[0].value
    assert v4.startswith("198.18.")
    assert v6.startswith("2001:db8:ff53:")
    assert ask("_ldap._tcp.example.com", dns.SRV).records[0].value == "example.com"
    for kind in (dns.HTTPS, dns.TXT, dns.MX):
        message = ask("host.example.com", kind)
        assert (message.rcode, message.records) == (0, ())
    reverse = ".".join(reversed(v4.split("."))) + ".in-addr.arpa"
    assert ask(reverse, dns.PTR).records[0].value == "host.example.com"
    assert ask("7.113.0.203.in-addr.arpa", dns.PTR).rcode == dns.NXDOMAIN
    assert ask("", dns.NS).records == ()


def test_ipv6_can_be_missing() -> None:
    guest = Guest(ipv6=False)
    message = dns.parse(guest.udp(FAR, 53, dns.query("host.example.com", dns.AAAA))[0])
    assert (message.rcode, message.records) == (0, ())


def test_over_tcp_several_queries_in_odd_pieces() -> None:
    guest = Guest()
    stream = guest.tcp(FAR, 53)
    asked = [dns.query(f"host{number}.example.com", ident=number) for number in range(3)]
    stream.say(b"".join(len(query).to_bytes(2, "big") + query for query in asked), size=7)
    answers, rest = [], stream.received
    while rest:
        size = int.from_bytes(rest[:2], "big")
        answers.append(dns.parse(rest[2 : 2 + size]).questions[0][0])
        rest = rest[2 + size :]
    assert answers == ["host0.example.com", "host1.example.com", "host2.example.com"]
    assert {event["transport"] for event in guest.events if event["event"] == "dns"} == {"tcp"}


def test_blocked_names_are_refused_or_dropped() -> None:
    guest = Guest(misbehaviour=Misbehaviour(names=("*.example.com",)))
    assert dns.parse(guest.udp(FAR, 53, dns.query("a.example.com"))[0]).rcode == dns.NXDOMAIN
    assert dns.parse(guest.udp(FAR, 53, dns.query("example.com"))[0]).rcode == dns.NXDOMAIN
    assert dns.parse(guest.udp(FAR, 53, dns.query("notexample.com"))[0]).rcode == 0
    guest.hole.behave(Misbehaviour(names=("example.com",), refusal=Refusal.DROP))
    assert guest.udp(FAR, 53, dns.query("example.com")) == []
    assert len(guest.udp(FAR, 53, dns.query("a.example.com"))) == 1
    guest.hole.behave(Misbehaviour(blocked=("dns",)))
    assert guest.udp(FAR, 53, dns.query("a.example.com")) == []
    assert guest.kinds().count("dns") == 6


def test_odd_bytes_in_names_are_written_out() -> None:
    guest = Guest()
    query = dns.query("x")[:12] + b'\x07a"\\\x1b\x00.b\x03COM\0' + b"\0\x01\0\x01"
    (answer,) = guest.udp(FAR, 53, query)
    assert dns.parse(answer).questions[0][0] == "a\\034\\092\\027\\000\\046b.com"
    assert guest.only("dns")["query"] == "a\\034\\092\\027\\000\\046b.com"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 12,
        dns.query("example.com")[:-1],
        dns.query("example.com")[:2] + b"\x80" + dns.query("example.com")[3:],
        struct.pack("!HHHHHH", 1, 0x100, 1, 0, 0, 0) + b"\xc0\x0c\0\x01\0\x01",
        struct.pack("!HHHHHH", 1, 0x100, 1, 0, 0, 0) + b"\x7fabc\0\0\x01\0\x01",
    ],
)
def test_what_is_no_query_is_told(data: bytes) -> None:
    guest = Guest()
    assert guest.udp(FAR, 53, data) == []
    assert guest.kinds()[-1] == "unparsed"
    assert guest.hole.unparsed == 1


@given(st.binary(max_size=300))
def test_messages_are_read_or_refused(data: bytes) -> None:
    for parse in (dns.parse, dns.parse_question, link_names.parse):
        try:
            parse(data)
        except Malformed:
            continue


def test_the_table_of_names_is_bounded() -> None:
    table = NameTable()
    table._numbers = {f"n{number}": number for number in range(MAX_NAMES)}
    one, two = table.address("one more", v6=False), table.address("and another", v6=False)
    assert one == two
    assert table.full
    assert table.name(one) == ""


def test_link_names() -> None:
    guest = Guest()
    group = bytes((224, 0, 0, 251))
    announcement = struct.pack("!HHHHHH", 0, 0x8400, 0, 1, 0, 0) + dns.write_name("my-laptop.local")
    announcement += struct.pack("!HHIH", 1, 1, 120, 4) + guest.ip
    assert guest.udp(group, 5353, announcement, sport=5353) == []
    assert guest.only("mdns")["told"] == ["my-laptop.local", "10.0.2.15"]
    guest.udp(bytes((224, 0, 0, 252)), 5355, dns.query("printer"))
    assert guest.only("llmnr")["asked"] == ["printer"]
    search = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nST: ssdp:all\r\n\r\n'
    guest.udp(bytes((239, 255, 255, 250)), 1900, search)
    event = guest.only("ssdp")
    assert (event["kind"], event["target"]) == ("M-SEARCH", "ssdp:all")
    assert ssdp.parse(b"\0\1\2") is None


def test_known_resolvers() -> None:
    assert resolvers.provider("mozilla.cloudflare-dns.com") == "Cloudflare"
    assert resolvers.provider("", "2001:4860:4860::8888") == "Google"
    assert resolvers.provider("example.com", "203.0.113.1") == ""
