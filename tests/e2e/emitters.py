"""Forty ways to leak, planted in one image, and what the gate must say of each.

They are built here: a list of frames and streams that a small Perl program in the guest sends. Nothing but Perl,
which the demo has, is needed there.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.checks.telemetry.identifiers import eui64
from pytest_osgates.vm.network import arp, dns, wire
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.spec import card_mac

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from net_samples import (
    Guest,
    client_hello,
    quic_crypto,
    quic_initial,
    with_extension,
    write_pcap,
    write_pcapng,
)

CARDS = tuple(Settings(subnet=2 + index, mac=f"52:55:0a:00:{2 + index:02x}:02") for index in range(2))
GUEST = CARDS[0].guest
GUEST6 = CARDS[0].prefix + b"\0\0\0\0\0\0\x01\x15"
RESOLVER = "10.0.2.3"

PROGRAM = r"""
use strict; use Socket; use IO::Socket::INET;
my ($list, $when) = @ARGV;
$SIG{ALRM} = sub { die "late\n" };
open(my $file, '<', $list) or die;
while (my $line = <$file>) {
    my ($at, $kind, @words) = split ' ', $line;
    next if $at ne $when;
    eval {
        alarm 20;
        if ($kind eq 'udp') {
            socket(my $s, PF_INET, SOCK_DGRAM, 17) or die;
            setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1);
            send($s, pack('H*', $words[2] // ''), 0, sockaddr_in($words[1], inet_aton($words[0]))) or die;
        } elsif ($kind eq 'tcp') {
            my $s = IO::Socket::INET->new(PeerAddr => $words[0], PeerPort => $words[1], Timeout => 10) or die;
            if (defined $words[2]) { syswrite($s, pack('H*', $words[2])); sysread($s, my $answer, 4096); }
            close $s;
        } elsif ($kind eq 'raw') {
            my $card;
            for (1 .. 100) {
                my @cards = sort glob('/sys/class/net/en*');
                last if $card = $cards[$words[0]];
                select(undef, undef, undef, 0.1);
            }
            die "no card\n" unless $card;
            system('ip', 'link', 'set', 'up', 'dev', substr($card, 15));
            open(my $index, '<', "$card/ifindex") or die; chomp(my $number = <$index>);
            for (1 .. 50) {
                open(my $state, '<', "$card/carrier"); my $up = <$state> // 0;
                last if $up == 1;
                select(undef, undef, undef, 0.1);
            }
            socket(my $s, 17, 3, 0) or die;
            send($s, pack('H*', $words[1]), 0, pack('SniSCCa8', 17, 0x0800, $number, 0, 0, 6, '')) or die;
        }
    };
    warn "$line: $@" if $@;
    alarm 0;
}
"""

WAIT_FOR_RENEWAL = r"""
first=
while :; do
    # What is left of the lease: it grows only when it is renewed.
    now=$(ip -4 -o addr show | sed -n 's/.*valid_lft \([0-9]*\)sec.*/\1/p' | head -n 1)
    [ "${now:-0}" -le "${first:-999999}" ] || break
    first=$now
    sleep 2
done
exec perl /usr/share/osgates-fault/emit.pl /usr/share/osgates-fault/list renewal
"""


@dataclass(frozen=True)
class Emitter:
    """One leak: when, what the program is told to do, and the finding."""

    name: str
    line: str
    rule: str
    subject: str
    when: str = "idle"


def udp(to: str, port: int, data: bytes) -> str:
    return f"udp {to} {port} {data.hex()}"


def tcp(to: str, port: int, data: bytes = b"") -> str:
    return f"tcp {to} {port} {data.hex()}".rstrip()


def raw(packet: bytes, *, card: int = 0, tag: bytes = b"", source: bytes = b"") -> str:
    link = CARDS[card].hardware + (source or bytes.fromhex(card_mac(card).replace(":", "")))
    return f"raw {card} {wire.frame(link + tag, packet).hex()}"


def far(number: int) -> str:
    """An address of 203.0.113.0/24 (RFC 5737)."""
    return f"203.0.113.{number}"


def far6(number: int) -> bytes:
    return bytes.fromhex("20010db800aa0000000000000000") + number.to_bytes(2, "big")


def datagram(to: str, data: bytes = b"beacon", *, src: bytes = GUEST) -> bytes:
    dst = wire.address_of(to)
    return wire.ip(src, dst, wire.UDP, wire.udp(src, 40001, dst, 9999, data))


def _fragments(to: str) -> list[bytes]:
    dst = wire.address_of(to)
    whole = wire.udp(GUEST, 40002, dst, 9999, b"in pieces " * 8)
    made = []
    for offset, piece in ((0, whole[:48]), (48, whole[48:])):
        packet = bytearray(wire.ip(GUEST, dst, wire.UDP, piece))
        packet[6:10] = b"\x12\x34" + ((offset // 8) | (0x2000 if offset == 0 else 0)).to_bytes(2, "big")
        packet[12:14] = b"\0\0"
        packet[12:14] = wire.checksum(bytes(packet[2:22])).to_bytes(2, "big")
        made.append(bytes(packet))
    return made


def _ping(src: bytes, dst: bytes) -> bytes:
    if len(dst) == 16:
        return wire.ip(src, dst, wire.ICMPV6, wire.with_checksum(src, dst, 58, b"\x80\0\0\0\0\x01\0\x01ping", 2))
    echo = b"\x08\0\0\0\0\x01\0\x01ping"
    return wire.ip(src, dst, wire.ICMP, echo[:2] + wire.checksum(echo).to_bytes(2, "big") + echo[4:])


def _over_tcp(query: bytes) -> bytes:
    return len(query).to_bytes(2, "big") + query


EUI = wire.text_of(b"\xfe\x80" + bytes(6) + eui64(card_mac(0)))
ANNOUNCEMENT = (
    struct.pack("!HHHHHH", 0, 0x8400, 0, 1, 0, 0)
    + dns.write_name("my-laptop.local")
    + struct.pack("!HHIH", 16, 1, 120, 2)
    + b"\x01x"
)
SEARCH = b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: ssdp:all\r\n\r\n"
ECH = with_extension(client_hello("public14.example.com"), 0xFE0D, bytes(40))
QUIC = quic_initial(quic_crypto(0, client_hello("quic13.example.com", ["h3"])[5:]))
PIECES = _fragments(far(32))
TAG = b"\x81\x00\x0f\xa1"


def _get(host: str, path: str = "/", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: leak\r\n\r\n".encode()


EMITTERS = (
    Emitter("plain DNS", udp(RESOLVER, 53, dns.query("leak01.example.com")), "contact", "leak01.example.com"),
    Emitter(
        "a vendor's name", udp(RESOLVER, 53, dns.query("0.debian.pool.ntp.org")), "vendor", "0.debian.pool.ntp.org"
    ),
    Emitter(
        "DNS over TCP", tcp(RESOLVER, 53, _over_tcp(dns.query("leak03.example.com"))), "contact", "leak03.example.com"
    ),
    Emitter(
        "another resolver", udp(far(4), 53, dns.query("leak04.example.com")), "foreign-resolver", "leak04.example.com"
    ),
    Emitter(
        *("a tunnel through the resolver", udp(RESOLVER, 53, dns.query("c2vjcmv0lxvzzxitzgf0yq.t.example.net"))),
        *("contact", "c2vjcmv0lxvzzxitzgf0yq.t.example.net"),
    ),
    Emitter(
        *("a reverse look-up", udp(RESOLVER, 53, dns.query("6.113.0.203.in-addr.arpa", dns.PTR))),
        *("contact", "6.113.0.203.in-addr.arpa"),
    ),
    Emitter(
        "an HTTPS record", udp(RESOLVER, 53, dns.query("leak07.example.com", 65)), "contact", "leak07.example.com"
    ),
    Emitter("a hard-coded IPv4 address", udp(far(8), 9999, b"beacon"), "literal-address", far(8)),
    Emitter(
        "a hard-coded IPv6 address", raw(datagram("2001:db8:aa::9", src=GUEST6)), "literal-address", "2001:db8:aa::9"
    ),
    Emitter("DoH by address", tcp("1.1.1.1", 443, client_hello("1.1.1.1")), "vendor", "1.1.1.1"),
    Emitter("DoH by name", tcp(far(11), 443, client_hello("dns.quad9.net")), "vendor", "dns.quad9.net"),
    Emitter(
        *("DoH of nobody known", tcp(far(41), 80, _get("doh.example.org", "/dns-query", "POST"))),
        *("encrypted-dns", "doh.example.org"),
    ),
    Emitter("DoT", tcp(far(12), 853, client_hello("resolver.example.org")), "encrypted-dns", "resolver.example.org"),
    Emitter("QUIC", udp(far(13), 443, QUIC), "contact", "quic13.example.com"),
    Emitter("an encrypted hello", tcp(far(14), 443, ECH), "ech", "public14.example.com"),
    Emitter(
        "a name in SNI only", tcp(far(15), 443, client_hello("leak15.example.com")), "contact", "leak15.example.com"
    ),
    Emitter("a Host at an address", tcp(far(16), 80, _get("leak16.example.com")), "contact", "leak16.example.com"),
    Emitter("HTTP to an address", tcp(far(17), 8080, _get(far(17))), "literal-address", far(17)),
    Emitter("NTP", udp(far(18), 123, b"\x23" + bytes(47)), "literal-address", far(18)),
    Emitter("a ping", raw(_ping(GUEST, wire.address_of(far(19)))), "literal-address", far(19)),
    Emitter("a ping over IPv6", raw(_ping(GUEST6, far6(20))), "literal-address", "2001:db8:aa::14"),
    Emitter("NTP to a vendor's address", udp("17.253.1.1", 123, b"\x23" + bytes(47)), "vendor", "17.253.1.1"),
    Emitter("a SYN and no more", tcp(far(22), 8443), "literal-address", far(22)),
    Emitter("mDNS", udp("224.0.0.251", 5353, ANNOUNCEMENT), "multicast", "224.0.0.251"),
    Emitter("its name", udp("224.0.0.251", 5353, ANNOUNCEMENT), "mdns-name", "my-laptop.local"),
    Emitter("LLMNR", udp("224.0.0.252", 5355, dns.query("printer")), "multicast", "224.0.0.252"),
    Emitter("SSDP", udp("239.255.255.250", 1900, SEARCH), "multicast", "239.255.255.250"),
    Emitter("as early as there is a card", raw(datagram(far(26))), "literal-address", far(26), "early"),
    # A card that is up before systemd-networkd had its word gets an address from the kernel.
    Emitter("its consequence", raw(datagram(far(26))), "eui64-address", EUI, "early"),
    Emitter("at shutdown", raw(datagram(far(27))), "literal-address", far(27), "shutdown"),
    Emitter("late", udp(far(28), 9999, b"beacon"), "literal-address", far(28), "late"),
    Emitter("after the lease was renewed", raw(datagram(far(29))), "literal-address", far(29), "renewal"),
    Emitter("on a second card", raw(datagram(far(30)), card=1), "literal-address", far(30)),
    Emitter("in another VLAN", raw(datagram(far(31)), tag=TAG), "literal-address", far(31)),
    Emitter("the tag itself", raw(datagram(far(31)), tag=TAG), "vlan", "VLAN 4001"),
    Emitter("a first fragment", raw(PIECES[0]), "literal-address", far(32)),
    Emitter("a second fragment", raw(PIECES[1]), "literal-address", far(32)),
    Emitter("GRE", raw(wire.ip(GUEST, wire.address_of(far(33)), 47, bytes(30))), "literal-address", far(33)),
    Emitter("WireGuard", udp(far(34), 51820, b"\x01\0\0\0" + bytes(144)), "literal-address", far(34)),
    Emitter("OpenVPN", udp(far(35), 1194, b"\x38" + b"12345678" + bytes(5)), "literal-address", far(35)),
    Emitter("LLDP", raw(b"\x88\xcc" + bytes(46)), "ethertype", "0x88cc"),
    Emitter("SCTP", raw(wire.ip(GUEST, wire.address_of(far(37)), 132, bytes(30))), "literal-address", far(37)),
    Emitter("6in4", raw(wire.ip(GUEST, wire.address_of(far(38)), 41, bytes(60))), "literal-address", far(38)),
    Emitter("a broadcast", raw(datagram("255.255.255.255")), "multicast", "255.255.255.255"),
    Emitter(
        *("a check for a portal", tcp(far(40), 80, _get("connectivitycheck.example.net", "/generate_204"))),
        *("contact", "connectivitycheck.example.net"),
    ),
    Emitter(
        "another sender's address", raw(datagram(far(43)), source=b"\x02" + bytes(5)), "literal-address", far(43)
    ),
    Emitter(
        *("through a proxy", tcp(far(44), 3128, _get("hidden44.example.com", "hidden44.example.com:443", "CONNECT"))),
        *("contact", "hidden44.example.com"),
    ),
    Emitter(
        "TLS on an odd port", tcp(far(45), 4444, client_hello("leak45.example.com")), "contact", "leak45.example.com"
    ),
    Emitter("a frame that cannot be read", raw(b"\x08\x00\x45" + bytes(45)), "unparsed", "card 0"),
)
QUIET = raw(arp.request(bytes(6), GUEST, CARDS[0].gateway))

_UNIT = """[Unit]
Description=Planted emitters: {when}
{order}

[Service]
Type={kind}
{work}
"""


def _unit(when: str, order: str, work: str, kind: str = "oneshot") -> str:
    return _UNIT.format(when=when, order=order, work=work, kind=kind)


def plant(directory: Path) -> Path:
    """A fault with all of them."""
    share = directory / "tree/usr/share/osgates-fault"
    units = directory / "tree/etc/systemd/system"
    share.mkdir(parents=True)
    units.mkdir(parents=True)
    (share / "emit.pl").write_text(PROGRAM)
    (share / "list").write_text("".join(f"{emitter.when} {emitter.line}\n" for emitter in EMITTERS))
    (share / "renewal.sh").write_text(WAIT_FOR_RENEWAL)
    emit = "perl /usr/share/osgates-fault/emit.pl /usr/share/osgates-fault/list"
    texts = {
        "early": _unit(
            "early",
            "DefaultDependencies=no\nAfter=systemd-udev-settle.service systemd-modules-load.service\n"
            "Wants=systemd-udev-settle.service\nBefore=systemd-networkd.service",
            f"ExecStart=/usr/bin/{emit} early",
        ),
        "idle": _unit(
            "idle", "After=multi-user.target", f"ExecStart=/usr/bin/sleep 20\nExecStart=/usr/bin/{emit} idle"
        ),
        "late": _unit(
            "late", "After=multi-user.target", f"ExecStart=/usr/bin/sleep 60\nExecStart=/usr/bin/{emit} late"
        ),
        "renewal": _unit(
            "renewal", "After=multi-user.target", "ExecStart=/bin/sh /usr/share/osgates-fault/renewal.sh", "exec"
        ),
        "shutdown": _unit(
            "shutdown",
            "After=systemd-networkd.service",
            f"RemainAfterExit=yes\nExecStart=/usr/bin/true\nExecStop=/usr/bin/{emit} shutdown",
        ),
    }
    links = {}
    for when, text in texts.items():
        name = f"osgates-fault-{when}.service"
        (units / name).write_text(text)
        target = "sysinit.target" if when == "early" else "multi-user.target"
        if when in {"early", "shutdown"}:
            links[f"etc/systemd/system/{target}.wants/{name}"] = f"../{name}"
    # Jobs that wait would keep the boot from being done: timers start them.
    for when in ("idle", "late", "renewal"):
        name = f"osgates-fault-{when}.timer"
        (units / name).write_text(f"[Unit]\nDescription=Starts {when}\n\n[Timer]\nOnActiveSec=1s\nAccuracySec=1s\n")
        links[f"etc/systemd/system/multi-user.target.wants/{name}"] = f"../{name}"
    lines = "".join(f'"{path}" = "{target}"\n' for path, target in links.items())
    (directory / "fault.toml").write_text(
        'title = "Forty ways to leak"\n'
        'expects = { gate = "telemetry", rule = "contact", subject = "leak01.example.com" }\n\n'
        f"[symlinks]\n{lines}"
    )
    return directory


__all__ = ["EMITTERS", "Emitter", "Guest", "dns", "plant", "wire", "write_pcap", "write_pcapng"]
