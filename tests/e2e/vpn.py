"""An image whose kernel keeps a WireGuard tunnel up, through which all of its traffic goes; with or without leaks."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pytest_osgates.debian.store import DebStore
from pytest_osgates.demo.lock import read_lock
from pytest_osgates.vm.process import run

# Of Wireshark's own tests: keys that protect nothing.
GUEST_PRIVATE = "AKeZaHwBxjiKLFnkY2unvEdOTtg4AL+M9dQXfopFVFk="
GUEST_PUBLIC = "Igge9KzRytKNwrgkzDE/8hrLu6Ly0OqVdvOPWhA5KR4="
PEER_PRIVATE = "cFIxTUyBs1Qil414hBwEgvasEax8CKJ5IS5ZougplWs="
PEER_PUBLIC = "YDCttCs9e1J52/g9vEnwJJa+2x6RqaayAYMpSVQfGEY="
PRESHARED = "iIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIg="
ENDPOINT = "203.0.113.99"
INSIDE, BESIDE = "203.0.113.51", "203.0.113.52"
ASKED = "leak53.example.com"

NETDEV = f"""[NetDev]
Name=wg0
Kind=wireguard

[WireGuard]
PrivateKey={GUEST_PRIVATE}

[WireGuardPeer]
PublicKey={PEER_PUBLIC}
PresharedKey={PRESHARED}
Endpoint={ENDPOINT}:51820
AllowedIPs=0.0.0.0/0
"""
NETWORK = """[Match]
Name=wg0

[Link]
RequiredForOnline=no

[Network]
Address=10.9.0.2/32
LinkLocalAddressing=no
IPv6AcceptRA=no
LLMNR=no
MulticastDNS=no

[Route]
Destination=0.0.0.0/1
Scope=link

[Route]
Destination=128.0.0.0/1
Scope=link
"""
# The one way that does not go through the tunnel: to its other end.
WIRED = f"[Route]\nDestination={ENDPOINT}/32\nGateway=_dhcp4\n"
MODULE = """[Unit]
Description=The kernel's WireGuard, which the demo lacks
DefaultDependencies=no
After=systemd-modules-load.service
Before=systemd-networkd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/modprobe -a libchacha20poly1305 libcurve25519-generic curve25519-x86_64 udp_tunnel ip6_udp_tunnel
ExecStart=/usr/sbin/insmod /usr/share/osgates-fault/wireguard.ko.xz
"""
LEAK = """[Unit]
Description=Planted: one leak through the tunnel, a name, and one beside it

[Service]
Type=oneshot
ExecStart=/usr/bin/perl /usr/share/osgates-fault/leak.pl
"""
PROGRAM = f"""
use strict; use Socket;
sub datagram {{
    my ($to, $card) = @_;
    socket(my $s, PF_INET, SOCK_DGRAM, 17) or die;
    setsockopt($s, SOL_SOCKET, 25, pack('Z*', $card)) or die "$card: $!" if $card;  # SO_BINDTODEVICE, socket(7)
    send($s, 'beacon', 0, sockaddr_in(9999, inet_aton($to))) or die "$to: $!";
}}
my ($card) = map {{ s{{.*/}}{{}}r }} sort glob('/sys/class/net/en*');
datagram('{INSIDE}');
gethostbyname('{ASKED}');
datagram('{BESIDE}', $card);
"""

PROFILE = f"""
idle_s = 30
names = "dns"
[gate.telemetry.vpn]
kind = "wireguard"
endpoint = "{ENDPOINT}:51820"
interface = "wg0"
private_key_file = "peer.key"
guest_key = "{GUEST_PUBLIC}"
preshared_key_file = "shared.key"
addresses = ["10.9.0.1"]
dns = ["10.9.0.1"]
reason = "all traffic goes through the tunnel"
"""


def module(demo: Path) -> bytes:
    """The kernel's own, signed as the kernel wants it, out of the package that the demo's is from."""
    lock = read_lock(demo.with_name(demo.name + ".lock.json"))
    package = next(entry for entry in lock.packages if entry.name.startswith("linux-image-6"))
    path = DebStore().path(package)
    members = run(["dpkg-deb", "--fsys-tarfile", str(path)], timeout=120, max_output=1 << 30).stdout
    return subprocess.run(
        ["tar", "-xOf", "-", "--wildcards", "*/wireguard.ko.xz"],
        input=members,
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    ).stdout


def plant(directory: Path, demo: Path, *, leaks: bool) -> Path:
    """A fault that is a VPN, and the leaks if asked for."""
    tree = directory / "tree"
    files = {
        "etc/systemd/network/10-wg0.netdev": NETDEV,
        "etc/systemd/network/10-wg0.network": NETWORK,
        "etc/systemd/network/20-wired.network.d/vpn.conf": WIRED,
        "etc/systemd/system/osgates-fault-wireguard.service": MODULE,
        "etc/resolv.conf": "nameserver 10.9.0.1\n",
    }
    units = "etc/systemd/system"
    links = {f"{units}/sysinit.target.wants/osgates-fault-wireguard.service": "../osgates-fault-wireguard.service"}
    if leaks:
        files |= {
            f"{units}/osgates-fault-leak.service": LEAK,
            f"{units}/osgates-fault-leak.timer": "[Timer]\nOnActiveSec=15s\nAccuracySec=1s\n",
            "usr/share/osgates-fault/leak.pl": PROGRAM,
        }
        links[f"{units}/multi-user.target.wants/osgates-fault-leak.timer"] = "../osgates-fault-leak.timer"
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "usr/share/osgates-fault").mkdir(parents=True, exist_ok=True)
    (tree / "usr/share/osgates-fault/wireguard.ko.xz").write_bytes(module(demo))
    lines = "".join(f'"{path}" = "{target}"\n' for path, target in links.items())
    (directory / "fault.toml").write_text(
        'title = "An always-on VPN"\n'
        f'expects = {{ gate = "telemetry", rule = "literal-address", subject = "{BESIDE}" }}\n\n[symlinks]\n{lines}'
    )
    return directory


def write_profile(path: Path) -> Path:
    """The quick profile at `path`, with the VPN declared, and the keys beside it."""
    text = path.read_text(encoding="utf-8")
    begin = text.index("[gate.telemetry]")
    end = text.index("\n[", begin + 1)
    path.write_text(text[:begin] + '[gate.telemetry]\nstate = "live"\n' + PROFILE + text[end:], encoding="utf-8")
    (path.parent / "peer.key").write_text(PEER_PRIVATE + "\n")
    (path.parent / "shared.key").write_text(PRESHARED + "\n")
    return path
