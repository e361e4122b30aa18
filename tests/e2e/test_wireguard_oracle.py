"""tshark(1), given the guest's keys, reads the tunnel as the sinkhole speaks it, in both directions."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from net_samples import write_pcap
from vpn_samples import (
    GUEST_PRIVATE,
    GUEST_PUBLIC,
    INNER,
    PEER_INNER,
    PEER_PRIVATE,
    PEER_PUBLIC,
    PRESHARED,
    TunnelGuest,
)

from pytest_osgates.vm.network import dns, wire
from pytest_osgates.vm.network.declared import Vpn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed: apt-get install tshark"),
]


@pytest.mark.parametrize("preshared", ["", PRESHARED])
def test_tshark_decrypts_both_directions(preshared: str, tmp_path: Path) -> None:
    guest = TunnelGuest(vpn=Vpn("203.0.113.9", 51820, PEER_PRIVATE, GUEST_PUBLIC, preshared))
    guest.up()
    body = wire.udp(INNER, 4000, PEER_INNER, 53, dns.query("inside.example.com"))
    assert guest.packet(wire.ip(INNER, PEER_INNER, 17, body)[2:])
    net = guest.net
    # The handshake and its answer, the keepalive, the query and its answer.
    frames = [net.sent[0], net.got[0], net.sent[1], net.sent[2], net.got[1]]
    path = write_pcap(tmp_path / "x.pcap", [(1.7e9 + number, frame) for number, frame in enumerate(frames)])
    keys = {
        "LOCAL_STATIC_PRIVATE_KEY": GUEST_PRIVATE,
        "REMOTE_STATIC_PUBLIC_KEY": PEER_PUBLIC,
        "LOCAL_EPHEMERAL_PRIVATE_KEY": base64.b64encode(guest.wg.ephemeral.private_bytes_raw()).decode(),
        **({"PRESHARED_KEY": preshared} if preshared else {}),
    }
    (tmp_path / "keys").write_text("".join(f"{name} = {key}\n" for name, key in keys.items()))
    done = subprocess.run(
        [
            *("tshark", "-n", "-r", path, "-o", f"wg.keylog_file:{tmp_path / 'keys'}", "-T", "fields"),
            *(word for name in ("wg.type", "wg.handshake_ok", "dns.qry.name", "dns.a") for word in ("-e", name)),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    address = wire.text_of(net.hole.names.address("inside.example.com", v6=False))
    # Truth is 1 or True, as the version has it.
    assert done.stdout.replace("True", "1").splitlines() == [
        "1\t\t\t",
        "2\t1\t\t",
        "4\t\t\t",
        "4\t\tinside.example.com\t",
        f"4\t\tinside.example.com\t{address}",
    ]
