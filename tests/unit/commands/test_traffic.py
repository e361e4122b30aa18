"""``osgates traffic``: any capture, whole or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from net_samples import Guest, client_hello, write_pcap, write_pcapng

from pytest_osgates.cli import main
from pytest_osgates.vm.network import dns

FAR = bytes((203, 0, 113, 7))


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    guest = Guest()
    guest.udp(guest.settings.resolver, 53, dns.query("incoming.telemetry.mozilla.org"))
    guest.tcp(FAR, 443).say(client_hello("www.example.com"))
    return write_pcap(tmp_path / "x.pcap", [(1e9 + number, frame) for number, frame in enumerate(guest.sent)])


def test_a_capture_is_listed(
    capture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["traffic", str(capture)]) == 0
    out = capsys.readouterr().out
    for part in ("incoming.telemetry.mozilla.org", "Mozilla", "www.example.com (sni)", "tcp:443", "203.0.113.7"):
        assert part in out


def test_as_json(capture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["traffic", "--json", str(capture)]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["queries"][0]["vendor"] == "Mozilla"
    assert [flow["dst"] for flow in seen["flows"] if flow["dport"] == 443] == ["203.0.113.7"]
    guest = Guest()
    guest.udp(FAR, 9, b"x")
    other = write_pcapng(tmp_path / "y.pcapng", [(1e9, guest.sent[0])])
    assert main(["traffic", "--json", str(other)]) == 0
    assert json.loads(capsys.readouterr().out)["packets"] == 1


def test_what_is_not_whole_says_so(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture.write_bytes(capture.read_bytes()[:-5])
    assert main(["traffic", str(capture)]) == 3
    assert "NOT WHOLE: the capture is cut short after packet" in capsys.readouterr().out


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guest = Guest()
    guest.tcp(FAR, 80).say(b"GET /\x1b[31m HTTP/1.1\r\nHost: \x1b]0;owned\x07\r\n\r\n")
    path = write_pcap(tmp_path / "x.pcap", [(1e9, frame) for frame in guest.sent])
    assert main(["traffic", str(path)]) == 0
    assert "\x1b]0" not in capsys.readouterr().out


def test_what_is_no_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pcap"
    path.write_text("hello")
    assert main(["traffic", str(path)]) == 3
    assert "no pcap or pcapng" in capsys.readouterr().err
