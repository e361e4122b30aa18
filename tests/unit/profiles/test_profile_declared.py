"""What a profile says of a VPN and of a resolver, and the words for what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from resolver_samples import write_certificate
from vpn_samples import GUEST_PUBLIC, PEER_PRIVATE, PRESHARED

from pytest_osgates.checks.telemetry.declared import split_endpoint
from pytest_osgates.profiles import loader
from pytest_osgates.vm.errors import UsageError

HEAD = 'schema = 1\nname = "x"\n[gate.telemetry]\n'
VPN = {
    "kind": '"wireguard"',
    "endpoint": '"vpn.example.org:51820"',
    "interface": '"wg0"',
    "private_key_file": '"peer.key"',
    "guest_key": f'"{GUEST_PUBLIC}"',
    "addresses": '["10.9.0.1"]',
    "dns": '["10.9.0.1"]',
    "reason": '"all traffic goes through it"',
}
RESOLVER = {
    "kind": '"doh"',
    "name": '"dns.example.org"',
    "certificate": '"resolver.pem"',
    "key": '"resolver.key"',
    "reason": '"names are nobody\'s business"',
}


def write(directory: Path, section: str, keys: dict[str, str], **changes: str | None) -> Path:
    """A profile with `section`; a key that is None is left out. Its first key stands in line 5."""
    merged = {key: value for key, value in {**keys, **changes}.items() if value is not None}
    text = HEAD + f"[gate.telemetry.{section}]\n" + "".join(f"{key} = {value}\n" for key, value in merged.items())
    path = directory / "x.toml"
    path.write_text(text)
    (directory / "peer.key").write_text(PEER_PRIVATE + "\n")
    write_certificate(directory)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        loader.load(path)
    return str(raised.value)


def test_both_are_read(tmp_path: Path) -> None:
    vpn = loader.load(write(tmp_path, "vpn", VPN)).policy("telemetry").vpn
    assert (vpn.host, vpn.port, vpn.interface, vpn.dns) == ("vpn.example.org", 51820, "wg0", ("10.9.0.1",))
    wanted = loader.load(write(tmp_path, "resolver", RESOLVER)).policy("telemetry").resolver
    assert (wanted.asked_at, wanted.path, str(wanted.kind)) == (443, "/dns-query", "doh")
    dot = loader.load(write(tmp_path, "resolver", RESOLVER, kind='"dot"', port="8853")).policy("telemetry").resolver
    assert dot.asked_at == 8853


def test_files_are_not_wanted_where_a_profile_lies_in_evidence(tmp_path: Path) -> None:
    for section, keys in (("vpn", VPN), ("resolver", RESOLVER)):
        path = write(tmp_path, section, keys)
        for name in ("peer.key", "resolver.pem", "resolver.key"):
            (tmp_path / name).unlink()
        assert loader.load(path, code=False).policy("telemetry") is not None
        with pytest.raises(UsageError, match="no such file"):
            loader.load(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": '"openvpn"'}, "line 5: gate.telemetry.vpn.kind: Input should be 'wireguard'"),
        ({"endpoint": '"vpn.example.org"'}, "line 6: gate.telemetry.vpn.endpoint: an endpoint is NAME:PORT"),
        ({"endpoint": '"vpn.example.org:70000"'}, "line 6: gate.telemetry.vpn.endpoint: an endpoint is NAME:PORT"),
        ({"endpoint": '"[2001:db8::zz]:51820"'}, "line 6: gate.telemetry.vpn.endpoint"),
        ({"endpoint": '"VPN.example.org:51820"'}, "line 6: gate.telemetry.vpn.endpoint: a host name in lower case"),
        ({"interface": '"a b"'}, "line 7: gate.telemetry.vpn.interface: the name of a network interface"),
        (
            {"guest_key": '"AAAA"'},
            "line 9: gate.telemetry.vpn.guest_key: a WireGuard key is 44 characters of base64 (32 bytes)",
        ),
        ({"guest_key": '"?"'}, "line 9: gate.telemetry.vpn.guest_key: a WireGuard key is 44"),
        ({"guest_key": None}, "guest_key: Field required"),
        ({"private_key_file": '"gone.key"'}, "line 8: gate.telemetry.vpn.private_key_file"),
        ({"private_key_file": '"resolver.pem"'}, "resolver.pem: a WireGuard key is 44"),
        ({"private_key_file": '"."'}, "it is no regular file"),
        ({"private_key_file": '"pipe"'}, "it is no regular file"),
        ({"private_key_file": '"long"'}, "too long for a key"),
        ({"private_key_file": '"bytes"'}, "bytes: it is not text"),
        ({"private_key_file": '"empty"'}, "empty: it is empty"),
        ({"guest_key": f'"{GUEST_PUBLIC[:42]}5="'}, "line 9: gate.telemetry.vpn.guest_key: a WireGuard key"),
        ({"private_key_file": None}, "give either private_key or private_key_file"),
        ({"private_key": f'"{PEER_PRIVATE}"'}, "give either private_key or private_key_file"),
        ({"preshared_key": '"short"'}, "line 13: gate.telemetry.vpn.preshared_key: a WireGuard key"),
        ({"preshared_key": f'"{PRESHARED}"', "preshared_key_file": '"peer.key"'}, "either preshared_key or"),
        ({"addresses": '["10.9.0.1/24"]'}, "line 10: gate.telemetry.vpn.addresses.0"),
        ({"reason": '" "'}, "reason is empty"),
        ({"reason": None}, "reason: Field required"),
        ({"privat_key": '""'}, "unknown key gate.telemetry.vpn.privat_key (did you mean 'private_key'?)"),
    ],
)
def test_a_vpn_that_is_wrong(changes: dict[str, str | None], words: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text("A" * 5000)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff" * 44)
    said = complaint(write(tmp_path, "vpn", VPN, **changes))
    assert words in said
    assert PEER_PRIVATE not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": '"doq"'}, "line 5: gate.telemetry.resolver.kind"),
        ({"name": '"dns.example.org."'}, "line 6: gate.telemetry.resolver.name: a host name in lower case"),
        ({"address": '"dns"'}, "gate.telemetry.resolver.address"),
        ({"certificate": '"gone.pem"'}, "line 7: gate.telemetry.resolver.certificate"),
        ({"certificate": '"peer.key"'}, "peer.key is no PEM file"),
        ({"key": '"resolver.pem"'}, "line 4: gate.telemetry.resolver: resolver.pem and resolver.pem are no"),
        ({"port": "70000"}, "gate.telemetry.resolver.port"),
        ({"path": '"dns-query"'}, "gate.telemetry.resolver.path: a path that begins with /"),
        ({"reason": '""'}, "line 9: gate.telemetry.resolver.reason"),
    ],
)
def test_a_resolver_that_is_wrong(changes: dict[str, str | None], words: str, tmp_path: Path) -> None:
    assert words in complaint(write(tmp_path, "resolver", RESOLVER, **changes))


def test_contradictions(tmp_path: Path) -> None:
    path = write(tmp_path, "resolver", RESOLVER)
    text = path.read_text()
    path.write_text(text.replace("[gate.telemetry]\n", '[gate.telemetry]\nnames = "none"\nnames_reason = "x"\n'))
    assert "contradict each other" in complaint(path)
    entry = '[[gate.telemetry.allow]]\nname = "a.example"\nservices = ["tcp:443"]\noutside_tunnel = true\n'
    path.write_text(text + entry)
    assert "outside_tunnel means something only beside" in complaint(path)
    assert "nobody could be asked for names" in complaint(write(tmp_path, "vpn", VPN, dns=None))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("203.0.113.9:1", ("203.0.113.9", 1)),
        ("[2001:DB8:0::9]:65535", ("2001:db8::9", 65535)),
        ("a-b.c_d:51820", ("a-b.c_d", 51820)),
    ],
)
def test_endpoints(text: str, parts: tuple[str, int]) -> None:
    assert split_endpoint(text) == parts


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:0", "a:01", "2001:db8::1:51820", "1.2.3:5", "a..b:1", "a b:1"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_endpoint(text)
