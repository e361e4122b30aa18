"""TCP, and what is read on it: TLS, HTTP, OpenVPN."""

from __future__ import annotations

import ssl
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_samples import ACK, Guest, client_hello, tcp_packet, with_extension

from pytest_osgates.vm.network import http, openvpn, tls, wireguard
from pytest_osgates.vm.network.authority import Authority
from pytest_osgates.vm.network.settings import Misbehaviour, TlsAnswer
from pytest_osgates.vm.network.wire import Malformed

FAR = bytes((203, 0, 113, 7))
FAR6 = bytes.fromhex("20010db800aa00000000000000000007")
HELLO = client_hello("some.host.example", ["h2"])
REQUEST = b"GET /beacon?id=7 HTTP/1.1\r\nHost: Telemetry.Example.com:8080\r\nUser-Agent: spy/1.0\r\n\r\n"


def test_a_connection_is_accepted_acknowledged_and_closed() -> None:
    guest = Guest()
    stream = guest.tcp(FAR, 4444)
    assert stream.open
    stream.say(b"x" * 5000)
    assert stream.acked == stream.seq
    stream.close()
    assert stream.closed
    assert stream.acked == stream.seq
    assert guest.hole.tcp.flows == {}
    event = guest.only("tcp")
    assert (event["src"], event["dst"], event["sport"], event["dport"]) == ("10.0.2.15", "203.0.113.7", 50000, 4444)
    assert guest.only("tcp-data")["head"] == (b"x" * 48).hex()


def test_the_fast_path_counts_what_the_slow_one_would() -> None:
    guest = Guest()
    stream = guest.tcp(FAR, 4444)
    stream.say(b"y" * 200)
    assert len(guest.hole.tcp.bulk) == 1
    stream.say(b"z" * 100_000)
    assert stream.acked == stream.seq
    (flow,) = guest.hole.tcp.flows.values()
    assert flow.received == 100_200
    # Sent again: not counted twice, and acknowledged again.
    guest.packet(tcp_packet(guest.ip, FAR, 50000, 4444, 1001, stream.ack, ACK, b"y" * 200))
    assert flow.received == 100_200
    assert guest.hole.rx_frames == len(guest.sent)
    assert guest.hole.rx_bytes == sum(map(len, guest.sent))
    assert guest.hole.tx_frames == len(guest.got)
    assert guest.hole.tx_bytes == sum(map(len, guest.got))
    stream.abort()
    assert guest.hole.tcp.bulk == {}


def test_one_acknowledgement_for_all_that_came_together() -> None:
    guest = Guest()
    stream = guest.tcp(FAR, 4444)
    stream.say(b"y" * 200)
    frames = [
        guest.link + tcp_packet(guest.ip, FAR, 50000, 4444, 1201 + 1000 * number, stream.ack, ACK, b"z" * 1000)
        for number in range(50)
    ]
    data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    # Whatever the pieces are in which the bytes arrive.
    left, at = b"", 0
    while at < len(data):
        left += data[at : at + 7919]
        at += 7919
        left = left[guest.hole.feed(left) :]
    assert left == b""
    assert next(iter(guest.hole.tcp.flows.values())).rcv == 51201
    assert len(guest.take()) <= len(data) // 7919 + 1


def test_a_hello_is_read_and_met_with_an_alert() -> None:
    guest = Guest()
    stream = guest.tcp(FAR, 443)
    assert stream.say(client_hello("Incoming.Telemetry.example", ["h2", "http/1.1"]), size=100) == tls.ALERT_RECORD
    assert stream.closed
    event = guest.only("tls")
    assert (event["sni"], event["alpn"], event["ech"]) == ("incoming.telemetry.example", ["h2", "http/1.1"], False)


def test_dot_and_doh_are_told_apart_from_other_tls() -> None:
    guest = Guest()
    guest.tcp(FAR, 853, sport=1).say(client_hello("resolver.example"))
    guest.tcp(FAR, 443, sport=2).say(client_hello("dns.google"))
    guest.tcp(bytes((9, 9, 9, 9)), 443, sport=3).say(client_hello("9.9.9.9"))
    assert guest.only("dot")["sni"] == "resolver.example"
    assert [event.get("provider") for event in guest.events if event["event"] == "doh"] == ["Google", "Quad9"]


def test_an_encrypted_hello_is_noticed() -> None:
    hello = with_extension(client_hello("public.example"), tls.ECH, b"\0" * 40)
    guest = Guest()
    guest.tcp(FAR, 443).say(hello)
    assert guest.only("tls")["ech"] is True
    assert guest.only("tls")["sni"] == "public.example"


def test_a_hello_over_several_records() -> None:
    message = client_hello("split.example")[5:]
    records = b"".join(
        b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
        for piece in (message[at : at + 50] for at in range(0, len(message), 50))
    )
    joined = tls.handshake_of(records)
    assert joined is not None
    assert tls.parse_hello(joined).sni == "split.example"
    assert all(tls.handshake_of(records[:size]) is None for size in range(len(records)))


@given(st.binary(max_size=400))
def test_hellos_are_read_or_refused(data: bytes) -> None:
    for candidate in (data, b"\x16\x03\x01" + data, b"\x01" + len(data).to_bytes(3, "big") + data):
        try:
            joined = tls.handshake_of(candidate)
            tls.parse_hello(candidate if joined is None else joined)
        except Malformed:
            continue


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 255))
def test_a_damaged_hello_is_read_or_refused(at: int, value: int) -> None:
    message = bytearray(HELLO[5:])
    message[at % len(message)] = value
    try:
        tls.parse_hello(bytes(message))
    except Malformed:
        return


def test_a_request_is_read_and_answered() -> None:
    guest = Guest()
    stream = guest.tcp(FAR, 8080)
    assert stream.say(REQUEST, size=11).startswith(b"HTTP/1.1 404 ")
    assert stream.closed
    event = guest.only("http")
    assert (event["method"], event["host"], event["target"]) == ("GET", "telemetry.example.com", "/beacon?id=7")
    assert (event["user_agent"], event["portal"], event["doh"]) == ("spy/1.0", False, False)


@pytest.mark.parametrize(
    ("url", "status", "body"),
    [
        ("connectivitycheck.gstatic.com/generate_204", b"204", b""),
        ("nmcheck.gnome.org/check_network_status.txt", b"200", b"NetworkManager is online\n"),
        ("detectportal.firefox.com/success.txt?ipv4", b"200", b"success\n"),
        ("captive.apple.com/hotspot-detect.html", b"200", b"Success"),
        ("connectivity-check.ubuntu.com/", b"204", b""),
        ("network-test.debian.org/nm", b"200", b"NetworkManager is online\n"),
        ("ping.archlinux.org/nm-check.txt", b"200", b"NetworkManager is online\n"),
        ("conncheck.opensuse.org/", b"200", b"NetworkManager is online\n"),
        ("fedoraproject.org/static/hotspot.txt", b"200", b"OK"),
        ("networkcheck.kde.org/", b"200", b"OK"),
        ("204.pop-os.org/", b"204", b""),
        ("captive.apple.com/", b"200", b"Success"),
        ("www.apple.com/library/test/success.html", b"200", b"Success"),
        ("ipv4.connman.net/online/status.html", b"200", b"online"),
        ("www.msftconnecttest.com/connecttest.txt", b"200", b"Microsoft Connect Test"),
        ("example.com/", b"404", b""),
    ],
)
def test_portal_checks_say_online(url: str, status: bytes, body: bytes) -> None:
    host, slash, path = url.partition("/")
    answer = Guest().tcp(FAR, 80).say(f"GET {slash}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.split(b" ")[1] == status
    assert body in answer.partition(b"\r\n\r\n")[2]
    assert (b"X-NetworkManager-Status: online\r\nX-ConnMan-Status: online\r\n" in answer) == (status != b"404")


def test_a_proxy_is_asked_for_the_whole_address() -> None:
    request = http.parse(b"CONNECT hidden.example:443 HTTP/1.1\r\nHost: proxy.example\r\n\r\n")
    assert request is not None
    assert request.host == "hidden.example"
    request = http.parse(b"GET http://[2001:db8::1]:80/x HTTP/1.1\r\nHost: proxy.example\r\n\r\n")
    assert request is not None
    assert request.host == "2001:db8::1"
    with pytest.raises(Malformed):
        http.parse(b"GET / HTTP/1.1\r\n" + b"x" * http.MAX_HEAD)


def test_dns_in_http() -> None:
    guest = Guest()
    guest.tcp(FAR, 80).say(b"POST /dns-query HTTP/1.1\r\nHost: x\r\nContent-Type: application/dns-message\r\n\r\n")
    assert guest.only("http")["doh"] is True


def test_blocked_names_and_ports_of_streams() -> None:
    guest = Guest(misbehaviour=Misbehaviour(names=("bad.example",), blocked=("tcp:25",)))
    stream = guest.tcp(FAR, 443, sport=1)
    stream.say(client_hello("bad.example"))
    assert stream.reset
    stream = guest.tcp(FAR, 80, sport=2)
    stream.say(b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n")
    assert stream.reset
    assert not guest.tcp(FAR, 25, sport=3).open
    assert guest.kinds().count("tcp") == 3
    guest.hole.behave(Misbehaviour(silent=True))
    assert not guest.tcp(FAR, 443, sport=4).open
    guest.hole.behave(Misbehaviour())
    assert guest.tcp(FAR, 443, sport=5).open


def test_segments_without_a_connection() -> None:
    guest = Guest()
    assert len(guest.packet(tcp_packet(guest.ip, FAR, 1, 2, 5, 6, ACK, b"hello"))) == 1
    assert guest.only("tcp-stray")["dport"] == 2


def test_openvpn_and_wireguard() -> None:
    plain = b"\x38" + b"12345678" + bytes(5)
    assert openvpn.recognise(plain) == "reset v2"
    assert openvpn.recognise(b"\x38" + b"12345678" + bytes(45)) == "reset v2"
    assert openvpn.recognise(b"\x50" + b"12345678" + bytes(200)) == "reset v3"
    assert openvpn.recognise(b"\x38" + b"1234567890123") == ""
    assert openvpn.recognise(b"GET / HTTP/1.1") == ""
    guest = Guest()
    guest.tcp(FAR, 1194).say(len(plain).to_bytes(2, "big") + plain)
    assert guest.only("openvpn")["transport"] == "tcp"
    guest.udp(FAR, 1194, plain)
    assert [event["transport"] for event in guest.events if event["event"] == "openvpn"] == ["tcp", "udp"]
    assert wireguard.recognise(b"\x01\0\0\0" + bytes(144)) == "handshake"
    assert wireguard.recognise(b"\x04\0\0\0" + bytes(28)) == "data"
    assert wireguard.recognise(b"\x01\0\0\0" + bytes(143)) == ""
    guest.udp(FAR6, 51820, b"\x01\0\0\0" + bytes(144))
    assert guest.only("wireguard")["kind"] == "handshake"


# -- TLS that is completed
# --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:

    return Authority(tmp_path_factory.mktemp("ca"), time.time())


def _talk(guest: Guest, context: ssl.SSLContext, request: bytes) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="www.example.com")
    stream = guest.tcp(FAR, 443)
    for _ in range(10):
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write(stream.say(outgoing.read()))
        except ssl.SSLError:
            stream.say(outgoing.read())
            raise
    client.write(request)
    incoming.write(stream.say(outgoing.read()))
    return client.read(4096)


def test_a_client_that_trusts_says_what_it_wants(authority: Authority) -> None:
    guest = Guest(authority, tls=TlsAnswer.COMPLETE)
    context = ssl.create_default_context(cadata=authority.pem.decode())
    assert _talk(guest, context, REQUEST).startswith(b"HTTP/1.1 404")
    assert guest.only("tls-accepted")["sni"] == "www.example.com"
    assert guest.only("http-in-tls")["target"] == "/beacon?id=7"


def test_a_client_that_validates_refuses(authority: Authority) -> None:
    guest = Guest(authority, tls=TlsAnswer.COMPLETE)
    with pytest.raises(ssl.SSLCertVerificationError):
        _talk(guest, ssl.create_default_context(), REQUEST)
    assert "http-in-tls" not in guest.kinds()
    assert guest.only("tls-refused")["sni"] == "www.example.com"


def test_names_that_no_certificate_can_hold(authority: Authority) -> None:
    for name in ("", "203.0.113.7", "a" * 300, "x\\x00y", "2001:db8::1"):
        assert isinstance(authority.context(name), ssl.SSLContext)
