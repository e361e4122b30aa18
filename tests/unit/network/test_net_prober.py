"""The prober against simulated guests: what they answer is told apart, and what was lost is never called silent."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_samples import MAC, Guest
from prober_samples import ACK, GLOBAL, LL, RST, SYN, V4, Stack, World, ports, states, v4_or_v6

from pytest_osgates.vm.errors import HostError, UsageError
from pytest_osgates.vm.network import arp, icmpv6, probe_frames, prober, probes, wire
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.probe_frames import CLOSED, OPEN, SILENT, UNASKED, UNPROVEN
from pytest_osgates.vm.network.settings import Probing, Settings
from pytest_osgates.vm.network.sweeps import ordered, source_for


def test_every_port_is_asked_once_and_neighbours_are_far_apart() -> None:
    order = ordered(None)
    assert sorted(order) == list(range(1, 65536))
    assert min(abs(one - two) for one, two in itertools.pairwise(order)) > 1000
    assert sorted(ordered((22, 80, 0))) == [22, 80]


@pytest.mark.parametrize("target", [V4, LL, GLOBAL], ids=v4_or_v6)
def test_what_answers_is_told_apart(target: bytes) -> None:
    wanted = {22: "open", 80: "open", 23: "closed", 25: "reject"}
    world = World(Stack(lambda port: wanted.get(port, "drop")))
    result = world.sweep(target=target, ports=list(range(1, 2000)))
    assert ports(result, OPEN) == [22, 80]
    assert ports(result, CLOSED) == [23]
    assert ports(result, probe_frames.REJECTED4 + 13 if len(target) == 4 else probe_frames.REJECTED6 + 1) == [25]
    assert len(ports(result, SILENT)) == 1995
    assert ports(result, UNPROVEN) == []
    # Nothing stays of what was opened.
    assert sorted(set(world.stack.resets)) == [22, 80]
    assert result["paced"] == "answers"
    assert world.guest.hole.tx_frames == world.stack.taken == result["frames"]


def test_from_beyond_the_gateway() -> None:
    world = World(Stack(lambda port: "open" if port == 22 else "drop"))
    result = world.sweep(origin="beyond", ports=[22, 23])
    assert ports(result, OPEN) == [22]
    assert {wire.text_of(src)[:9] for src, _, _ in world.stack.seen} == {"192.0.43."}
    assert source_for(GLOBAL, "beyond", 70)[:4] == bytes.fromhex("26200000")
    assert source_for(GLOBAL, "link", 70)[:8] == GLOBAL[:8]
    # The guest itself may have the address that a probe would come from.
    assert source_for(bytes((192, 168, 1, 70)), "link", 70) != bytes((192, 168, 1, 70))


def test_all_ports_closed_is_all_ports_closed() -> None:
    result = World(Stack(lambda port: "closed")).sweep(ports=list(range(1, 6001)))
    assert len(ports(result, CLOSED)) == 6000
    assert ports(result, UNASKED)[:2] == [0, 6001]
    assert result["repeated"] == 0


def test_an_answer_that_was_kept_back_is_asked_for_again() -> None:
    """The first answers wait for the hardware address of who asked, and some are dropped."""
    seen: set[int] = set()

    def answer(port: int) -> str:
        first = port not in seen
        seen.add(port)
        return "drop" if first and len(seen) <= 100 else "closed"

    result = World(Stack(answer)).sweep(ports=list(range(1, 4000)))
    assert len(ports(result, CLOSED)) == 3999
    assert result["repeated"] == 100


def test_a_filter_with_one_closed_port_is_not_asked_twice() -> None:
    result = World(Stack(lambda port: "closed" if port == 22 else "drop")).sweep(ports=list(range(1, 6001)))
    assert ports(result, CLOSED) == [22]
    assert result["repeated"] == 0


def test_a_lost_marker_means_that_its_batch_is_sent_again() -> None:
    stack = Stack(lambda port: "open" if port % 1000 == 7 else "drop")
    # A batch is 128 probes and a marker, behind two frames of greeting.
    stack.lost = lambda number: 2 + 129 * 3 < number <= 2 + 129 * 5
    result = World(stack).sweep(ports=list(range(1, 8001)))
    assert result["repeated"] > 200
    assert ports(result, OPEN) == [number * 1000 + 7 for number in range(8)]
    assert ports(result, UNPROVEN) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 0.3))
def test_losses_are_noticed_or_made_good(seed: int, share: float) -> None:
    """An open port is found, or nobody says that it is silent; unless both sides' counts differ."""
    dice = random.Random(seed)  # noqa: S311  (which frames are lost)
    stack = Stack(lambda port: "open" if port % 50 == 0 else "drop")
    arrived = 0

    def lost(number: int) -> bool:
        nonlocal arrived
        gone = dice.random() < share
        arrived += not gone
        return gone

    stack.lost = lost
    world = World(stack)
    result = world.sweep(ports=list(range(1, 1001)))
    wrong = [port for port in range(50, 1001, 50) if states(result)[port] == SILENT]
    assert not wrong or arrived < result["frames"]
    assert result["done"]


def test_a_guest_that_dies_leaves_the_rest_unproven() -> None:
    stack = Stack(lambda port: "open", dead_after=2000)
    result = World(stack).sweep(ports=list(range(1, 8001)))
    assert len(ports(result, UNPROVEN)) > 5000
    assert ports(result, SILENT) == []
    assert result["done"]


def test_a_guest_that_tells_no_hardware_address_is_paced_by_the_link() -> None:
    result = World(Stack(lambda port: "open" if port == 9 else "drop", arp=False)).sweep(ports=list(range(1, 500)))
    assert result["paced"] == "link"
    assert ports(result, OPEN) == [9]


def test_late_answers_are_heard() -> None:
    world = World(Stack(lambda port: "open" if port == 22 else "drop", udp={53: b"x"}))
    world.delay = 0.4
    assert ports(world.sweep(ports=list(range(1, 1000))), OPEN) == [22]
    assert ports(world.sweep("udp", ports=[53, 54]), OPEN) == [53]


def test_udp_that_answers_from_another_port() -> None:
    world = World(Stack())
    world.stack.packet = (  # type: ignore[method-assign]
        lambda src, dst, protocol, data, whole: (
            [wire.ip(dst, src, 17, wire.udp(dst, 4711, src, 40404, b"hi"))] if protocol == wire.UDP else []
        )
    )
    result = world.sweep("udp", ports=[69])
    assert result["elsewhere"] == [4711]
    assert ports(result, SILENT) == [69]


def test_udp_that_answers_from_another_address() -> None:
    world = World(Stack())
    other = bytes((10, 0, 2, 16))
    world.stack.packet = (  # type: ignore[method-assign]
        lambda src, dst, protocol, data, whole: (
            [wire.ip(other, src, 17, wire.udp(other, 53, src, 40404, b"hi"))] if protocol == wire.UDP else []
        )
    )
    result = world.sweep("udp", ports=[53])
    assert ports(result, OPEN) == [53]
    assert result["strange"] == 0


@pytest.mark.parametrize(("target", "heard"), [(V4, {"echo"}), (GLOBAL, {"echo", "echo-all-nodes"})], ids=["4", "6"])
def test_other_protocols(target: bytes, heard: set[str]) -> None:
    result = World(Stack(echo=True)).sweep("kinds", target=target)
    assert heard <= set(result["heard"])
    assert all(name.startswith("echo") for name in result["heard"])
    assert result["unproven"] == []
    assert World(Stack(dead_after=1)).sweep("kinds")["heard"] == {}


def test_an_answer_in_fragments_is_told() -> None:
    world = World(Stack())
    link = wire.mac_text(MAC)
    world.prober.start(
        [{"name": "x", "protocol": "udp", "origin": "link", "mac": link, "target": "10.0.2.15", "ports": [53]}]
    )
    world.step()
    source = world.prober.sweeps[0].source
    whole = wire.frame(world.prober.owner(source) + MAC, wire.ip(V4, source, 17, bytes(200)))  # type: ignore[operator]
    head = bytearray(whole[14:34])
    head[6:8], head[10:12] = b"\x20\0", b"\0\0"
    head[10:12] = wire.checksum(bytes(head)).to_bytes(2, "big")
    world.guest.send(whole[:14] + bytes(head) + whole[34:])
    while world.prober.running:
        world.step()
    assert world.prober.sweeps[0].result()["strange"] == 1


def test_a_port_that_opens_while_it_boots_is_open() -> None:
    said = iter(["closed", "open", "drop"])
    now = {"how": "drop"}
    world = World(Stack(lambda port: now["how"] if port == 22 else "drop"), canary_s=0.05)
    world.prober.learn(V4, MAC)
    for how in said:
        now["how"] = how
        for _ in range(1000):
            world.step()
    (one,) = world.prober.status()["watched"]  # type: ignore[misc]
    assert {(port, state) for _, port, state, _ in one["heard"]} == {(22, OPEN)}
    assert sum(count for _, count in one["seconds"]) == one["proven"]
    assert min(at for at, _ in one["seconds"]) == 100


def test_a_guest_that_dies_leaves_kinds_unproven() -> None:
    world = World(Stack(dead_after=2))
    world.stack.dead_after = 2
    result = world.sweep("kinds")
    assert set(result["unproven"]) == {kind.name for kind in probes.kinds(4)}


def test_lies_and_floods_are_counted_and_change_nothing() -> None:
    world = World(Stack())
    link = wire.mac_text(MAC)
    world.prober.start(
        [{"name": "x", "protocol": "tcp", "origin": "link", "mac": link, "target": "10.0.2.15", "ports": [1, 2]}]
    )
    world.step()
    source = world.prober.sweeps[0].source
    own = world.prober.owner(source)
    assert own is not None

    def tcp(port: int, ack: int, flags: int, src: bytes = V4) -> bytes:
        head = probe_frames._TCP.pack(port, probe_frames.SPORT, 1, ack, 5 << 4, flags, 0, 0, 0)
        return wire.frame(own + MAC, wire.ip(src, source, 6, wire.with_checksum(src, source, 6, head, 16)))

    for frame in (
        tcp(1, 5, SYN | ACK),
        tcp(2, 0, RST | ACK),
        tcp(1, probe_frames.SEQ + 1, SYN | ACK, bytes((10, 0, 2, 16))),
        tcp(9, probe_frames.SEQ + 1, SYN | ACK),
        *([tcp(9, 5, ACK)] * 1000),
    ):
        world.guest.send(frame)
    while world.prober.running:
        world.step()
    result = world.prober.sweeps[0].result()
    assert result["strange"] == 1004
    assert ports(result, SILENT) == [1, 2]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([6, 17, 1, 58, 132]), st.binary(max_size=90)), max_size=6), st.booleans())
def test_no_answer_makes_it_raise(packets: list[tuple[int, bytes]], six: bool) -> None:
    world = World(Stack())
    target = GLOBAL if six else V4
    for protocol in ("tcp", "kinds"):
        world.prober.start(
            [
                {
                    "name": "x",
                    "protocol": protocol,
                    "origin": "link",
                    "mac": wire.mac_text(MAC),
                    "target": wire.text_of(target),
                    "ports": [1],
                }
            ]
        )
    world.step()
    for sweep in world.prober.sweeps:
        for protocol, data in packets:
            packet = wire.ip(target, sweep.source, protocol, data)
            world.guest.hole.frame(wire.frame(b"\x52\x55\0\0\0\1" + MAC, packet))
            world.guest.hole.frame(wire.frame(b"\x52\x55\0\0\0\1" + MAC, packet)[: 30 + len(data)])
    for _ in range(5):
        world.step()


def test_the_light_probe_begins_with_the_address_and_waits_for_nobody() -> None:
    opened = {"how": "closed"}
    stack = Stack(lambda port: "open" if port == 80 else opened["how"])
    world = World(stack, canary_s=0.05, boot_ports=(8123,))
    for _ in range(10):
        world.step()
    assert stack.taken == 0
    # It asks whether its address is free (RFC 4862 5.4), and is granted one.
    world.prober.learn(V4, MAC)
    for _ in range(400):
        world.step()
    opened["how"] = "drop"
    for _ in range(2000):
        world.step()
    (one,) = world.prober.status()["watched"]  # type: ignore[misc]
    assert one["groups"] - one["proven"] <= 1
    assert one["proven"] > 200
    heard = {port: state for _, port, state, _ in one["heard"]}
    assert heard[80] == OPEN
    assert sum(state == CLOSED for state in heard.values()) > 20
    assert {port for _, _, port in stack.seen} >= {8123, 22, 80}
    assert 80 in stack.resets
    # It ends when sweeps begin.
    result = world.sweep(ports=[22])
    assert result["done"]
    before = stack.taken
    for _ in range(100):
        world.step()
    assert stack.taken == before


def test_the_light_probe_does_not_heap_frames_up_before_a_guest_that_is_not_there() -> None:
    stack = Stack(dead_after=0)
    world = World(stack, canary_s=0.05)
    world.prober.learn(V4, MAC)
    for _ in range(1000):
        world.step()
    assert stack.taken < (prober.LISTED + 2) * (5 / prober.WATCH_S + 2)
    assert world.prober.status()["watched"][0]["proven"] == 0  # type: ignore[index]


def test_addresses_that_find_no_room_are_told() -> None:
    world = World(Stack(), canary_s=0.05)
    for number in range(prober.MAX_WATCHED):
        world.prober.learn(bytes((10, 0, 2, 100 + number)), MAC)
    assert world.prober.status()["unwatched"] == []
    for _ in range(2):
        world.prober.learn(V4, MAC)
    world.prober.learn(bytes((10, 0, 2, 100)), MAC)
    world.prober.learn(b"\xff" * 4, MAC)
    assert world.prober.status()["unwatched"] == ["10.0.2.15"]
    for number in range(1000):
        world.prober.learn(bytes((10, 1, number >> 8, number & 255)), MAC)
    assert len(world.prober.unwatched) == prober.MAX_UNWATCHED


def test_many_closed_ports_hide_none_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober, "MAX_HEARD", 100)
    opened = {"how": "closed"}
    world = World(Stack(lambda port: opened["how"] if port == 8123 else "closed"), canary_s=0.05, boot_ports=(8123,))
    world.prober.learn(V4, MAC)
    for _ in range(2000):
        world.step()
    opened["how"] = "open"
    for _ in range(2000):
        world.step()
    (one,) = world.prober.status()["watched"]  # type: ignore[misc]
    assert (8123, OPEN) in {(port, state) for _, port, state, _ in one["heard"]}
    assert 100 <= len(one["heard"]) <= 200


@pytest.mark.parametrize("first", ["error", "answer"])
def test_an_error_hides_no_answer(first: str) -> None:
    def packet(src: bytes, dst: bytes, protocol: int, data: bytes, whole: bytes) -> list[bytes]:
        if protocol != wire.UDP or int.from_bytes(data[2:4], "big") != 5353:
            return []
        error = bytes((3, 13)) + bytes(6) + whole
        error = error[:2] + wire.checksum(error).to_bytes(2, "big") + error[4:]
        answer = wire.udp(V4, 5353, src, int.from_bytes(data[:2], "big"), b"answer")
        both = [wire.ip(V4, src, wire.ICMP, error), wire.ip(V4, src, wire.UDP, answer)]
        return both if first == "error" else both[::-1]

    world = World(Stack())
    world.stack.packet = packet  # type: ignore[method-assign]
    assert world.sweep("kinds")["heard"] == {"udp/5353 to 224.0.0.251": "protocol 17"}


@pytest.mark.parametrize("delay", [2.9, 5.5, 10.5])
def test_a_program_may_think_for_a_while(delay: float) -> None:
    world = World(Stack(udp={53: b"x"}))
    plain = world.stack.packet

    def packet(src: bytes, dst: bytes, protocol: int, data: bytes, whole: bytes) -> list[bytes]:
        answers = plain(src, dst, protocol, data, whole)
        if protocol != wire.UDP:
            return answers
        link = (world.prober.owner(src) or world.guest.settings.hardware) + MAC
        world.late += [(world.now + delay, wire.frame(link, answer)) for answer in answers]
        return []

    world.stack.packet = packet  # type: ignore[method-assign]
    assert ports(world.sweep("udp", ports=[53, 54]), OPEN) == [53]


def test_an_address_is_learned_from_what_the_guest_does() -> None:
    guest = Guest(probing=Probing())
    assert guest.hole.prober is not None
    body = icmpv6.neighbour_solicitation(LL, MAC)[:24]
    group = bytes.fromhex("ff0200000000000000000001ff123456")
    guest.packet(wire.ip(bytes(16), group, 58, wire.with_checksum(bytes(16), group, 58, body, 2), 255))
    guest.packet(wire.ip(V4, bytes((10, 0, 2, 3)), 17, wire.udp(V4, 1, bytes((10, 0, 2, 3)), 9, b"")))
    assert set(guest.hole.prober.watched) == {LL, V4}
    # Whose address a neighbour's is, it is told.
    near = source_for(V4, "link", 64)
    (reply,) = guest.packet(arp.request(MAC, V4, near))
    assert arp.parse(reply[14:]).sender_mac == guest.hole.prober.owner(near) != guest.settings.hardware


def test_loss_on_purpose_is_counted() -> None:
    world = World(Stack(), lose_every=10)
    result = world.sweep(ports=list(range(1, 1000)))
    assert world.prober.lost_on_purpose == result["frames"] // 10
    assert world.stack.taken == result["frames"] - result["frames"] // 10


@pytest.mark.parametrize("wrong", [{"canary_s": -1.0}, {"lose_every": -1}, {"boot_ports": (0,)}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Probing(**wrong)


def test_settings_cross_into_another_process() -> None:
    asked = Settings(probing=Probing(boot_ports=(1, 2), lose_every=3))
    assert Settings.from_json(asked.to_json()) == asked


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Over a socket pair, as QEMU has it."""
    link = SinkholeLink("net0", Settings(probing=Probing(canary_s=0.0)), tmp_path)
    qemu = link.start()
    stack = Stack(lambda port: "open" if port == 22 else "closed")
    thread = threading.Thread(target=_guest, args=(qemu, stack), daemon=True)
    thread.start()
    try:
        with pytest.raises(HostError, match="no such sweep"):
            link.sweep(
                [{"name": "x", "protocol": "tcp", "origin": "moon", "mac": "00:00:00:00:00:01", "target": "::"}]
            )
        assert link.sweep(
            [
                {
                    "name": "tcp",
                    "protocol": "tcp",
                    "origin": "link",
                    "mac": wire.mac_text(MAC),
                    "target": "10.0.2.15",
                    "ports": list(range(1, 3000)),
                }
            ]
        ) == ["tcp"]
        deadline = time.monotonic() + 30
        while link.sweep_status()["running"] and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        result = link.sweep_result(0)
        assert ports(result, OPEN) == [22]
        assert len(ports(result, CLOSED)) == 2998
        with pytest.raises(HostError):
            link.sweep_result(7)
        assert link.stop()["tx_frames"] == result["frames"]
    finally:
        link.close()
        qemu.close()
    without = SinkholeLink("net1", Settings(subnet=3), tmp_path)
    end = without.start()
    with pytest.raises(HostError, match="no prober"):
        without.sweep([])
    without.close()
    end.close()


def _guest(sock: socket.socket, stack: Stack) -> None:
    left = b""
    try:
        while data := sock.recv(1 << 16):
            left += data
            out = []
            while len(left) >= 4 and len(left) >= 4 + int.from_bytes(left[:4], "big"):
                size = int.from_bytes(left[:4], "big")
                out += stack.frame(left[4 : 4 + size])
                left = left[4 + size :]
            sock.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in out))
    except OSError:
        return


def test_what_is_sent_is_data_with_its_source() -> None:
    data = probes._data()
    listed = [port for row in data["udp"] for port in row["ports"]]
    assert len(listed) == len(set(listed)) == len(probes.payloads()) > 90
    assert all(row["source"] and len(row.get("hex", "")) % 2 == 0 for row in data["udp"])
    assert len(set(probes.watched())) == len(probes.watched()) > 50
    assert all(kind.message for family in (4, 6) for kind in probes.kinds(family))
    assert len(probes.payloads()[443]) == 1200
