"""Datagrams for many: where they go, and who is heard."""

from __future__ import annotations

import pytest
from prober_samples import LL, V4, Stack, World

from pytest_osgates.vm.network import prober, probes, wire


class Responder(Stack):
    """Answers what is asked of a group, from an address of its own; a card takes what is for its groups."""

    def __init__(self, *groups: str) -> None:
        super().__init__()
        self.groups = {bytes.fromhex(group) for group in groups}
        self.filtered = 0
        self.asked: dict[int, tuple[bytes, bytes]] = {}

    def frame(self, frame: bytes) -> list[bytes]:
        if frame[0] & 1 and frame[:6] != b"\xff" * 6 and frame[:6] not in self.groups:
            self.filtered += 1
            return []
        return super().frame(frame)

    def packet(self, src: bytes, dst: bytes, protocol: int, data: bytes, whole: bytes) -> list[bytes]:
        if protocol != wire.UDP:
            return []
        port, asks = int.from_bytes(data[2:4], "big"), int.from_bytes(data[:2], "big")
        self.asked[port] = (dst, data[8:])
        own = LL if len(src) == 16 else V4
        answer = wire.udp(own, port, src, asks, b"here")
        return [wire.ip(own, src, wire.UDP, answer)] if dst != own and port == 5353 else []


@pytest.mark.parametrize(
    ("target", "groups", "kind"),
    [
        (V4, ("01005e000001", "01005e0000fb"), "udp/5353 to 224.0.0.251"),
        (LL, ("333300000001", "3333000000fb"), "udp/5353 to ff02::fb"),
    ],
    ids=["4", "6"],
)
def test_whoever_answers_what_is_asked_of_all_is_heard(target: bytes, groups: tuple[str, ...], kind: str) -> None:
    world = World(Responder(*groups))
    result = world.sweep("kinds", target=target, groups=list(groups))
    assert result["heard"] == {kind: "protocol 17"}
    assert result["unproven"] == []
    assert result["strange"] == 0
    # What the card does not take is not sent: as many as are sent arrive.
    stack = world.stack
    assert isinstance(stack, Responder)
    assert stack.filtered == 0
    assert stack.taken == result["frames"]
    assert kind in result["kinds"]
    assert not any("5355" in name for name in result["kinds"])
    dst, question = stack.asked[5353]
    assert wire.text_of(dst) == kind.split()[-1]
    assert b"\x07_dns-sd\x04_udp\x05local" in question
    if target == V4:
        assert stack.asked[137][0] == b"\xff" * 4


def test_groups_that_nobody_names_are_tried_all() -> None:
    world = World(Responder())
    result = world.sweep("kinds")
    assert "udp/1900 to 239.255.255.250" in result["kinds"]
    assert isinstance(world.stack, Responder)
    assert world.stack.filtered == 5


def test_where_the_frames_of_groups_go() -> None:
    hardware = {kind.to: kind.hardware.hex() for family in (4, 6) for kind in probes.kinds(family) if kind.port}
    assert hardware["239.255.255.250"] == "01005e7ffffa"
    assert hardware["ff02::1:3"] == "333300010003"
    assert hardware["255.255.255.255"] == ""
    assert set(probes.groups()) == set(hardware)
    names = [kind.name for family in (4, 6) for kind in probes.kinds(family) if kind.port]
    assert len(set(names)) == len(names)
    assert len(probes.kinds(4)) < prober._MARKERS - prober._KINDS
