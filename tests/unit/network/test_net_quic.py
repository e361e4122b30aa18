"""QUIC Initial packets: the keys of the RFCs' own examples, and packets that are made with them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_samples import QUIC_DCID as DCID
from net_samples import Guest, client_hello
from net_samples import quic_crypto as crypto
from net_samples import quic_initial as initial

from pytest_osgates.vm.network import quic
from pytest_osgates.vm.network.wire import Malformed

FAR = bytes((203, 0, 113, 7))
HELLO = client_hello("quic.example.com", ["h3"])[5:]


def test_keys_of_rfc_9001_and_rfc_9369() -> None:
    assert [part.hex() for part in quic.client_keys(quic.V1, DCID)] == [
        "1f369613dd76d5467730efcbe3b1a22d",
        "fa044b2f42a3fd3b46fb255c",
        "9f50449e04a0e810283a1e9933adedd2",
    ]
    assert [part.hex() for part in quic.client_keys(quic.V2, DCID)] == [
        "8b1a0bc121284290a29e0971b5cd045d",
        "91f73e2351d8fa91660e909f",
        "45b95e15235d6f45a6b19cbcb0294ba9",
    ]


@pytest.mark.parametrize("version", [quic.V1, quic.V2, quic.DRAFT29])
def test_a_hello_is_read(version: int) -> None:
    guest = Guest()
    assert guest.udp(FAR, 443, initial(crypto(0, HELLO), version=version, token=b"t" * 70)) == []
    event = guest.only("quic")
    assert (event["sni"], event["alpn"]) == ("quic.example.com", ["h3"])


def test_a_hello_in_pieces_over_two_datagrams_in_the_wrong_order() -> None:
    guest = Guest()
    cut = len(HELLO) // 2
    third = len(HELLO) // 3
    later = crypto(cut, HELLO[cut:]) + b"\x01" + crypto(third, HELLO[third:cut])
    guest.udp(FAR, 443, initial(later, number=1))
    assert "quic" not in guest.kinds()
    guest.udp(FAR, 443, initial(crypto(0, HELLO[:third]), number=0))
    assert guest.only("quic")["sni"] == "quic.example.com"


def test_what_does_not_authenticate_is_a_flow_all_the_same() -> None:
    packet = bytearray(initial(crypto(0, HELLO)))
    packet[-1] ^= 1
    guest = Guest()
    guest.udp(FAR, 443, bytes(packet))
    event = guest.only("quic")
    assert event["sni"] == ""
    assert "authenticate" in event["why"]


def test_an_unknown_version_is_told_which_one_is_spoken() -> None:
    packet = b"\xc0\x1a\x2a\x3a\x4a\x08" + DCID + b"\x04scid" + bytes(1200)
    (answer,) = Guest().udp(FAR, 443, packet)
    assert answer == b"\xc0\0\0\0\0\x04scid\x08" + DCID + quic.V1.to_bytes(4, "big")
    assert Guest().udp(FAR, 443, packet[:100]) == []


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 255))
def test_packets_are_read_or_refused(data: bytes, at: int, value: int) -> None:
    damaged = bytearray(initial(crypto(0, HELLO)))
    damaged[at % len(damaged)] = value
    for packet in (data, b"\xc3\0\0\0\x01" + data, bytes(damaged), initial(data)):
        try:
            quic.HelloAssembler().add(quic.open_initial(packet))
        except Malformed:
            continue


def test_the_assembler_is_bounded() -> None:
    assembler = quic.HelloAssembler()
    dice = random.Random(1)  # noqa: S311  (repeatable)
    for _ in range(3 * quic.MAX_CONNECTIONS):
        assert assembler.add(quic.Initial(quic.V1, dice.randbytes(8), {5: b"x"})) is None
    assert len(assembler._streams) == quic.MAX_CONNECTIONS
    pieces = {offset + 1: bytes(1000) for offset in range(0, 2 * quic.MAX_CRYPTO, 1000)}
    with pytest.raises(Malformed):
        assembler.add(quic.Initial(quic.V1, b"one", pieces))
