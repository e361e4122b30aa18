"""Watching a machine with an always-on VPN or an encrypted resolver: what passes, leaks, and proves nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from net_samples import Guest, dhcp_message
from test_observe_telemetry import FakeMachine
from vpn_samples import (
    GUEST_PRIVATE,
    GUEST_PUBLIC,
    HOST,
    PEER_INNER,
    PEER_PRIVATE,
    PORT,
    TunnelGuest,
)

from pytest_osgates.checks.telemetry import GATE, TelemetryObservation, TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import TUNNELS, Moment, Phase, VpnSeen
from pytest_osgates.judging import Judgement, judge
from pytest_osgates.model import Severity, State, Verdict
from pytest_osgates.observers import telemetry
from pytest_osgates.observers.telemetry import declared
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.guest.channel import ShellResult
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network import dns, wire

VPN = {
    "kind": "wireguard",
    "endpoint": f"{HOST}:{PORT}",
    "interface": "wg0",
    "private_key": PEER_PRIVATE,
    "guest_key": GUEST_PUBLIC,
    "addresses": ("10.9.0.1",),
    "dns": ("10.9.0.1",),
    "reason": "all traffic goes through the project's VPN",
}
FAR = bytes((203, 0, 113, 7))
# Not that of the gate's own controls.
OTHER = bytes((203, 0, 113, 8))
Leak = Callable[["VpnMachine", str], None]


def policy(**more: Any) -> TelemetryPolicy:
    return TelemetryPolicy.model_validate({"idle_s": 5, "vpn": VPN, **more})


def nothing(machine: VpnMachine, when: str) -> None:
    """A quiet guest."""


class VpnMachine(FakeMachine):
    """Its guest has a VPN that is up since it booted, and all of its programs' traffic goes through it.

    `beside`: canaries do not. `plain`: names are asked on the link. `connects`: it is ever up.
    """

    def __init__(
        self,
        records: Path,
        leak: Leak = nothing,
        *,
        wanted: TelemetryPolicy | None = None,
        connects: bool = True,
        beside: bool = False,
        plain: bool = False,
        interfaces: bytes = b"lo 772 none\nenp0s5 1 none\nwg0 65534 wireguard\n",
    ) -> None:
        wanted = wanted or policy()
        self.tunnel_capture, self.tunnel_events = records / "net0.vpn.pcap", records / "net0.vpn.events.jsonl"
        self.made = False
        self.beside, self.plain = beside, plain
        super().__init__(records, lambda guest, when: None)
        self.interfaces = interfaces
        self.vpn_leak = leak
        vpn = declared.vpn_of(wanted, records)
        assert vpn is not None
        self.net = Guest(limit=1 << 20, vpn=vpn)
        self.net.log.clock = lambda: self.now
        self.settings = self.net.settings
        self.kept = (0, 0)
        self.frames.clear()
        self.made = True
        self.inside = TunnelGuest(self.net, vpn)
        self.net.udp(b"\xff" * 4, 67, dhcp_message(3), sport=68, src=bytes(4))
        self.net.udp(self.settings.resolver, 53, dns.query(HOST))
        if connects:
            self.inside.up()
        self.vpn_leak(self, "boot")
        self._keep()

    def _keep(self, seconds: float = 1.0) -> None:
        super()._keep(seconds)
        if self.made:
            self.inside.tunnel.flush()
            self.tunnel_capture.write_bytes(self.inside.pcap.getvalue())
            self.tunnel_events.write_bytes(self.inside.log.getvalue())

    def power_off(self, timeout: float) -> bool:
        self.vpn_leak(self, "shutdown")
        return super().power_off(timeout)

    def run(self, command: str, *, timeout: float = 60.0, max_output: int = 0) -> ShellResult:
        match = re.match(r"set -- (\S+) (\S+) (\S+)\n", command)
        if match is None or self.beside:
            return super().run(command, timeout=timeout, max_output=max_output)
        address, token, name = match.groups()
        number = self.canaries
        self.canaries += 1
        if number == 1:
            self.vpn_leak(self, "idle")
        self.ask(name, number)
        self.inside.udp(wire.address_of(address), 9, token.encode(), sport=42000 + number)
        self._keep(3.0)
        return ShellResult(command, 0, f"clock {self.now:.6f}\nsent bash\nasked 0\n".encode(), b"")

    def ask(self, name: str, number: int) -> None:
        if self.plain:
            self.net.udp(self.settings.resolver, 53, dns.query(name), sport=41000 + number)
        else:
            self.inside.udp(PEER_INNER, 53, dns.query(name), sport=41000 + number)


def watch(machine: FakeMachine, wanted: TelemetryPolicy) -> Judgement:
    seen = observe(machine)
    return judge(GATE, seen, wanted)


def observe(machine: FakeMachine) -> TelemetryObservation:
    seen = telemetry.observe(
        telemetry.Watch(
            machine=cast("Machine", machine),
            state=State.LIVE,
            window_s=0.05,
            names=True,
            progress=ProgressLog(machine.records / "progress.jsonl"),
            violations=lambda seen: 0,
        )
    )
    assert TelemetryObservation.model_validate_json(seen.model_dump_json()) == seen
    return seen


def decisive(judgement: Judgement) -> set[tuple[str, str]]:
    wanted = {Severity.VIOLATION, Severity.UNPROVEN}
    return {finding.key for finding in judgement.findings if finding.severity in wanted}


def test_a_quiet_guest_behind_its_vpn_passes(tmp_path: Path) -> None:
    seen = observe(VpnMachine(tmp_path))
    judgement = judge(GATE, seen, policy())
    assert decisive(judgement) == set()
    assert [control.why for control in judgement.controls if not control.caught] == []
    assert judgement.verdict is Verdict.PASS
    (finding,) = judgement.findings
    assert (finding.subject, finding.severity, finding.reason) == (HOST, Severity.ACCEPTED, VPN["reason"])
    assert all(canary.tunnel and canary.ways == ("tunnel udp",) for canary in seen.canaries)
    (peer,) = seen.vpn
    assert (peer.handshakes, peer.datagrams, peer.refused) == (1, peer.captured, {})
    inside = next(card for card in seen.cards if card.tunnel)
    assert inside.index == TUNNELS
    assert inside.capture.endswith("/net0.vpn.pcap")
    # A datagram and a query for each canary, and the answers.
    assert (inside.captured_out, inside.captured_in) == (6, 3)
    assert (inside.counted_out, inside.counted_in) == (6, 3)
    assert seen.timing.idle_s > 5
    # A profile that declares nothing does not take it.
    assert decisive(judge(GATE, seen, TelemetryPolicy(idle_s=5))) >= {
        ("vpn", f"{HOST}:{PORT}"),
        ("tunnel", "wg0"),
        ("contact", HOST),
    }


def test_contacts_inside_are_judged_by_name_and_phase(tmp_path: Path) -> None:
    def leak(machine: VpnMachine, when: str) -> None:
        port = {"boot": 1001, "idle": 1002, "shutdown": 1003}[when]
        machine.inside.udp(FAR, port, b"x")
        if when == "idle":
            machine.inside.udp(PEER_INNER, 53, dns.query("detectportal.firefox.com"))
            machine.inside.udp(PEER_INNER, 53, dns.query("update.example.com"))

    seen = observe(VpnMachine(tmp_path, leak))
    judgement = judge(GATE, seen, policy())
    assert decisive(judgement) == {
        ("literal-address", "203.0.113.7"),
        ("vendor", "detectportal.firefox.com"),
        ("contact", "update.example.com"),
    }
    assert judgement.verdict is Verdict.FAIL
    said = {finding.subject: finding for finding in judgement.findings}
    assert said["203.0.113.7"].seen.startswith("inside the tunnel: ")
    assert "net0.vpn.pcap packet" in said["203.0.113.7"].evidence
    phases = {flow.dport: dict(flow.phases) for flow in seen.flows if flow.dst == "203.0.113.7"}
    assert phases == {1001: {Phase.BOOT: 1}, 1002: {Phase.IDLE: 1}, 1003: {Phase.END: 1}}
    assert "update.example.com" in (GATE.baseline or (lambda *_: ""))(seen, policy())


def test_an_allowance_is_for_the_tunnel_unless_it_says_otherwise(tmp_path: Path) -> None:
    def leak(machine: VpnMachine, when: str) -> None:
        machine.inside.udp(OTHER, 9, b"x")
        if when == "idle":
            machine.net.udp(OTHER, 9, b"x")

    seen = observe(VpnMachine(tmp_path, leak))
    entry = {"address": "203.0.113.8", "services": ["udp:9"], "reason": "because"}
    assert decisive(judge(GATE, seen, policy(allow=[entry]))) == {("literal-address", "203.0.113.8")}
    both = {**entry, "outside_tunnel": True}
    assert judge(GATE, seen, policy(allow=[both])).verdict is Verdict.PASS
    assert "outside_tunnel = true" in (GATE.baseline or (lambda *_: ""))(seen, policy(allow=[entry]))


@pytest.mark.parametrize(
    ("leak", "rule", "subject"),
    [
        (lambda net: net.udp(FAR, 9, b"x"), "literal-address", "203.0.113.7"),
        (lambda net: net.udp(FAR, PORT, b"\x01\0\0\0" + bytes(144)), "literal-address", "203.0.113.7"),
        (lambda net: net.udp(net.settings.resolver, 53, dns.query("a.example.org")), "contact", "a.example.org"),
        (lambda net: net.udp(PEER_INNER, 53, dns.query("b.example.org")), "foreign-resolver", "b.example.org"),
        (lambda net: net.tcp(net.hole.names.address(HOST, v6=False), PORT).close(), "contact", HOST),
        (lambda net: net.udp(net.hole.names.address(HOST, v6=False), 443, b"x" * 40), "contact", HOST),
        (
            lambda net: net.udp(net.hole.names.address(HOST, v6=False), PORT, b"x" * 40),
            *("vpn-datagram", "not a message of WireGuard"),
        ),
    ],
)
def test_what_goes_beside_the_tunnel_fails(
    leak: Callable[[Guest], Any], rule: str, subject: str, tmp_path: Path
) -> None:
    def beside(machine: VpnMachine, when: str) -> None:
        if when == "idle":
            leak(machine.net)

    judgement = watch(VpnMachine(tmp_path, beside), policy())
    assert decisive(judgement) == {(rule, subject)}
    assert judgement.verdict is Verdict.FAIL


def test_a_vpn_that_never_connects_is_not_proven(tmp_path: Path) -> None:
    machine = VpnMachine(tmp_path, connects=False)
    machine.run = lambda command, **_: (  # type: ignore[method-assign]
        ShellResult(command, 0, machine.interfaces, b"")
        if "/sys/class/net" in command
        else ShellResult(command, 0, b"clock 1.0\nsent bash\nasked 0\n", b"")
    )
    judgement = watch(machine, policy())
    assert ("vpn-handshake", f"{HOST}:{PORT}") in decisive(judgement)
    assert judgement.verdict is Verdict.NOT_PROVEN


def test_a_guest_with_other_keys(tmp_path: Path) -> None:
    machine = VpnMachine(tmp_path, connects=False, beside=True)
    machine.inside.wg.peer = GUEST_PUBLIC
    machine.inside.send(machine.inside.wg.initiation())
    judgement = watch(machine, policy())
    said = {finding.rule: finding.seen for finding in judgement.findings}
    assert "first authenticator" in said["vpn-handshake"]
    assert judgement.verdict is Verdict.FAIL


def test_canaries_beside_the_tunnel_fail_and_prove_nothing(tmp_path: Path) -> None:
    judgement = watch(VpnMachine(tmp_path, beside=True), policy())
    assert decisive(judgement) >= {("canary", moment) for moment in Moment}
    assert ("literal-address", "192.0.2.101") in decisive(judgement)
    assert judgement.verdict is Verdict.FAIL


def test_names_asked_beside_the_tunnel(tmp_path: Path) -> None:
    judgement = watch(VpnMachine(tmp_path, plain=True), policy())
    found = decisive(judgement)
    assert {("canary", moment) for moment in Moment} <= found
    assert sum(rule == "contact" and "osgates-canary" in subject for rule, subject in found) == 3


@pytest.mark.parametrize(
    ("interfaces", "rule"),
    [
        (b"lo 772 none\nwg0 65534 wireguard\ntun3 65534 tun\n", ("tunnel", "tun3")),
        (b"lo 772 none\nenp0s5 1 none\n", ("vpn-interface", "wg0")),
    ],
)
def test_other_tunnels_are_not_proven(interfaces: bytes, rule: tuple[str, str], tmp_path: Path) -> None:
    judgement = watch(VpnMachine(tmp_path, interfaces=interfaces), policy())
    assert decisive(judgement) == {rule}
    assert judgement.verdict is Verdict.NOT_PROVEN


@pytest.mark.parametrize("damage", ["cut", "gone", "events", "refused", "count", "capture"])
def test_damaged_records_of_the_tunnel(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = VpnMachine(tmp_path)
    whole, told = machine.power_off, machine.stats

    def power_off(timeout: float) -> bool:
        down = whole(timeout)
        if damage == "cut":
            machine.tunnel_capture.write_bytes(machine.tunnel_capture.read_bytes()[:-3])
        elif damage == "gone":
            machine.tunnel_capture.unlink()
        elif damage == "events":
            machine.tunnel_events.write_bytes(machine.tunnel_events.read_bytes()[:-3])
        return down

    def stats() -> dict[str, Any]:
        answer = told()
        vpn = {**answer["vpn"]}
        vpn |= {"datagrams": vpn["datagrams"] + (damage == "count")}
        vpn |= {"capture_failure": "the capture of the tunnel is full" if damage == "capture" else ""}
        return {**answer, "vpn": None if damage == "refused" else vpn}

    monkeypatch.setattr(machine, "power_off", power_off)
    monkeypatch.setattr(machine, "stop", stats)
    judgement = watch(machine, policy())
    assert judgement.verdict is Verdict.NOT_PROVEN or damage == "refused"
    assert {rule for rule, _ in decisive(judgement)} & {"capture", "sinkhole", "count-mismatch", "vpn-count", "vpn"}


def test_another_profile_than_that_of_the_run(tmp_path: Path) -> None:
    seen = observe(VpnMachine(tmp_path))
    for change in ({"endpoint": f"{HOST}:1"}, {"guest_key": PEER_PRIVATE}):
        judgement = judge(GATE, seen, policy(vpn={**VPN, **change}))
        assert "vpn" in {rule for rule, _ in decisive(judgement)}
    plain = seen.model_copy(update={"vpn": ()})
    assert ("vpn", f"{HOST}:{PORT}") in decisive(judge(GATE, plain, policy()))


def test_keys_out_of_files(tmp_path: Path) -> None:
    (tmp_path / "peer.key").write_text(PEER_PRIVATE + "\n")
    (tmp_path / "shared.key").write_text(GUEST_PRIVATE + "\n")
    files = {"private_key_file": "peer.key", "preshared_key_file": "shared.key"}
    wanted = policy(vpn={**{key: value for key, value in VPN.items() if key != "private_key"}, **files})
    vpn = declared.vpn_of(wanted, tmp_path)
    assert vpn is not None
    assert (vpn.private_key, vpn.preshared_key, vpn.host, vpn.port) == (PEER_PRIVATE, GUEST_PRIVATE, HOST, PORT)
    (tmp_path / "peer.key").unlink()
    with pytest.raises(UsageError, match="no such file"):
        declared.vpn_of(wanted, tmp_path)
    assert declared.vpn_of(TelemetryPolicy(), tmp_path) is None
    with pytest.raises(UsageError, match="it is the guest's own"):
        declared.vpn_of(policy(vpn={**VPN, "private_key": GUEST_PRIVATE}), tmp_path)


def test_the_other_direction_of_an_allowed_flow_hides_nothing(tmp_path: Path) -> None:
    """Addresses inside are the guest's own words; the capture says who sent a packet."""
    hidden = bytes((203, 0, 113, 66))

    def leak(machine: VpnMachine, when: str) -> None:
        if when == "idle":
            for src, dst in ((hidden, OTHER), (OTHER, hidden)):
                machine.inside.packet(wire.ip(src, dst, 17, wire.udp(src, 9, dst, 9, b"secret"))[2:])

    entry = {"address": "203.0.113.8", "services": ["udp:9"], "reason": "because"}
    judgement = watch(VpnMachine(tmp_path, leak), policy(allow=[entry]))
    assert decisive(judgement) == {("literal-address", "203.0.113.66")}


def test_what_belongs_to_a_link_is_a_contact_in_a_tunnel(tmp_path: Path) -> None:
    every = b"\xff" * 4

    def leak(machine: VpnMachine, when: str) -> None:
        if when == "idle":
            src = bytes((10, 9, 0, 2))
            body = wire.udp(src, 68, every, 67, dhcp_message(1, (12, b"my-laptop")))
            machine.inside.packet(wire.ip(src, every, 17, body)[2:])

    judgement = watch(VpnMachine(tmp_path, leak), policy())
    assert decisive(judgement) >= {("multicast", "255.255.255.255"), ("dhcp-host-name", "my-laptop")}


def test_no_word_of_the_peer_can_be_missing(tmp_path: Path) -> None:
    seen = observe(VpnMachine(tmp_path))
    for field, nothing_ in itertools.product(
        sorted(VpnSeen.model_fields.keys() - {"refused"}), (0, 7, None, "", "x", ())
    ):
        peers = tuple(peer.model_copy(update={field: nothing_}) for peer in seen.vpn)
        if peers == seen.vpn:
            continue
        try:
            sabotaged = TelemetryObservation.model_validate({**seen.model_dump(), "vpn": [vars(p) for p in peers]})
        except ValueError:
            continue
        proven = field == "handshakes" and nothing_ == 7
        assert (judge(GATE, sabotaged, policy()).verdict is Verdict.PASS) == proven, (field, nothing_)
