"""The encrypted resolver that a profile declares, asked by Python's own TLS."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from net_samples import Guest, client_hello
from resolver_samples import NAME, TlsClient, addresses, resolver, write_certificate
from vpn_samples import VPN, TunnelGuest

from pytest_osgates.vm.network import dns, wire
from pytest_osgates.vm.network.declared import Resolver, SecureDns
from pytest_osgates.vm.network.secure_dns import CUT, SecureResolver

QUERY = dns.query("asked.example.com")
HEAD = f"Host: {NAME}\r\n".encode()
POST = b"POST /dns-query HTTP/1.1\r\n" + HEAD + b"Content-Type: application/dns-message\r\n"


def guest_of(declared: Resolver) -> Guest:
    guest = Guest(secure=declared)
    guest.hole.secure = SecureResolver(declared, guest.hole.names)
    return guest


def connect(guest: Guest, directory: Path, *, alpn: tuple[str, ...] = (), trusted: bool = True) -> TlsClient:
    assert guest.hole.secure is not None
    server = guest.hole.secure
    at = next(address for address in server.addresses if len(address) == 4)
    trust = directory / "resolver.pem" if trusted else None
    return TlsClient(guest.tcp(at, server.declared.port), trust, alpn=alpn)


def posted(query: bytes) -> bytes:
    return POST + f"Content-Length: {len(query)}\r\n\r\n".encode() + query


def test_dns_over_tls(tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path))
    client = connect(guest, tmp_path, alpn=("dot",))
    client.shake()
    assert client.tls.selected_alpn_protocol() == "dot"
    (address,) = client.ask("asked.example.com")
    assert wire.address_of(address) == guest.hole.names.address("asked.example.com", v6=False)
    # Several in one go, and one in pieces.
    piece = len(QUERY).to_bytes(2, "big") + QUERY
    assert len(client.say(piece * 3)) == 3 * (2 + len(QUERY) + 16)
    assert client.say(piece[:9]) == b""
    assert len(client.say(piece[9:])) == 2 + len(QUERY) + 16
    events = guest.events
    queries = [event for event in events if event["event"] == "dns"]
    assert [query["transport"] for query in queries] == ["dot"] * 5
    assert {query["query"] for query in queries} == {"asked.example.com"}
    told = next(event for event in events if event["event"] == "secure-answer")
    assert address in told["addresses"]
    stats = guest.hole.stats()["secure"]
    assert isinstance(stats, dict)
    assert (stats["begun"], stats["done"], stats["queries"]) == (1, 1, 5)
    assert (stats["refused"], stats["foreign"]) == ({}, {})
    client.connection.close()
    assert guest.hole.stats()["secure"] == stats


@pytest.mark.parametrize("how", ["POST", "GET"])
def test_dns_over_https(how: str, tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path, SecureDns.DOH))
    client = connect(guest, tmp_path, alpn=("h2", "http/1.1"))
    client.shake()
    assert client.tls.selected_alpn_protocol() == "http/1.1"
    text = base64.urlsafe_b64encode(QUERY).rstrip(b"=")
    asked = b"GET /dns-query?dns=" + text + b" HTTP/1.1\r\n" + HEAD + b"\r\n"
    request = posted(QUERY) if how == "POST" else asked
    for _ in range(2):
        head, _, body = client.say(request).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"application/dns-message" in head
        assert f"Content-Length: {len(body)}".encode() in head
        assert addresses(body) == [wire.text_of(guest.hole.names.address("asked.example.com", v6=False))]
    assert [event["transport"] for event in guest.events if event["event"] == "dns"] == ["doh"] * 2


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (b"GET /telemetry HTTP/1.1\r\n" + HEAD + b"\r\n", "GET /telemetry"),
        (b"GET /dns-query?dns=a HTTP/1.1\r\n" + HEAD + b"\r\n", "a query that is not base64"),
        (b"GET /dns-query HTTP/1.1\r\n" + HEAD + b"\r\n", "GET /dns-query"),
        (b"GET /dns-query?dns=AAAA&id=7 HTTP/1.1\r\n" + HEAD + b"\r\n", "GET /dns-query?dns=AAAA&id=7"),
        (posted(QUERY).replace(HEAD, b"Host: hidden.example.com\r\n"), "a request for hidden.example.com"),
        (posted(QUERY).replace(HEAD, b""), "a request for no host"),
        (b"POST /dns-query HTTP/1.1\r\n" + HEAD + b"Content-Length: 3\r\n\r\nabc", "POST /dns-query"),
        (POST + b"Content-Length: 99999\r\n\r\n", "a request that is too long"),
        (posted(b"not DNS at all, but a report"), "DNS"),
        (posted(QUERY + b"report"), "6 bytes behind a DNS query"),
        (b"\x00" * 40, "not HTTP"),
    ],
)
def test_what_is_no_query_is_told(request_: bytes, what: str, tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path, SecureDns.DOH))
    client = connect(guest, tmp_path)
    client.shake()
    client.say(request_)
    stats = guest.hole.stats()["secure"]
    assert isinstance(stats, dict)
    assert sum(stats["foreign"].values()) == 1
    assert what in next(iter(stats["foreign"]))
    assert client.connection.closed or b"behind" in what.encode()


def test_a_client_that_speaks_http2_only(tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path, SecureDns.DOH))
    client = connect(guest, tmp_path, alpn=("h2",))
    client.shake()
    client.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert guest.hole.secure is not None
    assert guest.hole.secure.refused == {"the client speaks HTTP/2 only": 1}


def test_a_guest_that_does_not_trust_it(tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path))
    client = connect(guest, tmp_path, trusted=False)
    with pytest.raises(ssl.SSLCertVerificationError):
        client.shake()
    assert guest.hole.secure is not None
    assert (guest.hole.secure.begun, guest.hole.secure.done) == (1, 0)
    (why,) = guest.hole.secure.refused
    assert "alert" in why
    assert client.connection.closed


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_connection_that_ends_too_soon(end: str, tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path))
    client = connect(guest, tmp_path)
    client.connection.say(client_hello(NAME))
    getattr(client.connection, end)()
    assert guest.hole.secure is not None
    assert guest.hole.secure.refused == {CUT: 1}


def test_half_a_query_is_told(tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path))
    client = connect(guest, tmp_path)
    client.shake()
    client.say(b"\x00\x40half")
    client.connection.close()
    assert guest.hole.secure is not None
    assert guest.hole.secure.foreign == {"a query cut short": 1}


def test_only_the_declared_destination(tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path, address="9.9.9.10"))
    assert guest.hole.secure is not None
    far = bytes((9, 9, 9, 10))
    assert guest.hole.secure.takes(far, 853)
    assert guest.hole.secure.takes(guest.hole.names.address(NAME, v6=True), 853)
    assert not guest.hole.secure.takes(far, 443)
    other = guest.tcp(bytes((9, 9, 9, 9)), 853)
    answer = other.say(client_hello(NAME))
    assert answer[:1] == b"\x15"
    assert guest.hole.secure.begun == 0


def test_inside_a_tunnel(tmp_path: Path) -> None:
    """Both together: the connection goes through the VPN."""
    net = Guest(vpn=VPN, secure=resolver(tmp_path))
    assert net.settings.secure is not None
    net.hole.secure = SecureResolver(net.settings.secure, net.hole.names)
    guest = TunnelGuest(net)
    guest.up()
    at = net.hole.names.address(NAME, v6=False)
    assert guest.tunnel.inside.secure is net.hole.secure

    class Inside(Guest):
        """The same guest, whose packets go through the tunnel."""

        def packet(self, packet: bytes, *, tag: bytes = b"") -> list[bytes]:
            return [bytes(12) + wire.IPV4 + answer for answer in guest.packet(packet[2:])]

    inner = Inside()
    client = TlsClient(inner.tcp(at, 853), tmp_path / "resolver.pem")
    client.shake()
    assert client.ask("asked.example.com")
    guest.tunnel.flush()
    events = [json.loads(line) for line in guest.log.getvalue().splitlines()]
    assert [event["query"] for event in events if event["event"] == "dns"] == ["asked.example.com"]
    assert "dns" not in net.kinds()


@given(st.lists(st.binary(max_size=300), max_size=4))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", list(SecureDns))
def test_any_bytes_over_tls(kind: SecureDns, tmp_path: Path, pieces: list[bytes]) -> None:
    guest = guest_of(resolver(tmp_path, kind))
    client = connect(guest, tmp_path)
    client.shake()
    for piece in pieces:
        if not client.connection.closed and piece:
            client.say(piece)
    assert "unparsed" not in guest.kinds()


def test_a_certificate_and_a_key_that_do_not_belong_together(tmp_path: Path) -> None:
    declared = resolver(tmp_path)
    (tmp_path / "other").mkdir()
    _, key = write_certificate(tmp_path / "other", "other.example.org")
    with pytest.raises(ssl.SSLError):
        guest_of(resolver(tmp_path, key=str(key)))
    with pytest.raises(OSError, match="No such file"):
        guest_of(resolver(tmp_path, key=str(tmp_path / "gone")))
    assert guest_of(declared).hole.secure is not None


def test_a_connection_that_is_ended_properly_is_no_refusal(tmp_path: Path) -> None:
    guest = guest_of(resolver(tmp_path))
    client = connect(guest, tmp_path)
    client.shake()
    assert client.ask("asked.example.com")
    client.leave()
    assert guest.hole.secure is not None
    assert (guest.hole.secure.refused, guest.hole.secure.foreign) == ({}, {})
    assert client.connection.closed
