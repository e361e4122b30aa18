"""Watching a network: canaries, phases, attribution, and every way in which the record can have a hole."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_shell import shell
from local_shell import LocalShell
from net_samples import ACK, MAC, Guest, dhcp_message, tcp_packet, write_pcap

from pytest_osgates.checks.telemetry import GATE, TelemetryObservation, TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import Moment, Phase
from pytest_osgates.judging import judge
from pytest_osgates.model import State, Verdict
from pytest_osgates.observers import telemetry
from pytest_osgates.observers.telemetry.attribution import Journal, socket_owners
from pytest_osgates.observers.telemetry.build import read_events
from pytest_osgates.observers.telemetry.canary import Canary, plant
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm import clock
from pytest_osgates.vm.errors import ChannelError, GuestTimeout, MachineDied
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network import arp, dns, wire
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.settings import Settings, TlsAnswer

NONCE = "0123456789abcdef"
POLICY = TelemetryPolicy(idle_s=5)
FAR = bytes((203, 0, 113, 7))
POWER_ON = 1_700_000_000.0


class FakeMachine:
    """A machine whose network is a real sinkhole, and whose guest does what it is told; time is counted by hand.

    `leak` is called in each phase, with the phase's name.
    """

    def __init__(self, records: Path, leak: Callable[[Guest, str], None]) -> None:
        self.records = records
        self.net = Guest(limit=1 << 20)
        self.now = POWER_ON + 20.0
        self.frames: list[tuple[float, bytes]] = []
        self.kept = (0, 0)
        self.leak = leak
        self.power_on_at = POWER_ON
        self.spec = SimpleNamespace(channel=NONCE)
        self.captures = [records / "net0.pcap"]
        self.sinkholes = [self]
        self.settings = self.net.settings
        self.events = records / "net0.events.jsonl"
        self.shell = cast("GuestShell", self)
        self.is_open = False
        self.goes_down = True
        self.canaries = 0
        self.dead = False
        self.deaf = False
        self.interfaces = b"lo 772 none\nenp0s5 1 none\nsit0 776 none\n"
        self.through = self.settings.hardware
        self.change: dict[str, Any] = {}
        self.net.udp(b"\xff" * 4, 67, dhcp_message(3), sport=68, src=bytes(4))
        self.leak(self.net, "boot")
        self._keep()

    def _keep(self, seconds: float = 1.0) -> None:
        """Write everything so far to the capture and the log."""
        news = [*self.net.sent[self.kept[0] :], *self.net.got[self.kept[1] :]]
        self.kept = (len(self.net.sent), len(self.net.got))
        self.now += seconds
        self.frames += [(self.now + number / 1000, frame) for number, frame in enumerate(news)]
        write_pcap(self.captures[0], self.frames)
        self.net.log.flush()
        self.events.write_bytes(self.net.sink.getvalue())

    # -- the machine

    def check(self) -> None:
        """It lives."""

    def power_off(self, timeout: float) -> bool:
        self.leak(self.net, "shutdown")
        self._keep()
        return self.goes_down

    # -- its sinkhole

    def probe(self) -> list[str]:
        asked = self.net.hole.probe()
        for frame in self.net.take():
            if not self.deaf and frame[12:14] == wire.ARP:
                self.net.packet(wire.ARP + arp.reply(arp.parse(frame[14:]), MAC)[2:])
        self._keep(0.01)
        return asked

    def stats(self) -> dict[str, Any]:
        if self.dead:
            raise MachineDied("the sinkhole of net0 ended: killed")
        return {
            **self.net.hole.stats(),
            "rx_frames": len(self.net.sent),
            "tx_frames": len(self.net.got),
            "answers_dropped": 0,
            "partial_bytes": 0,
            **self.change,
        }

    stop = stats

    # -- its shell

    def run(self, command: str, *, timeout: float = 60.0, max_output: int = 0) -> ShellResult:
        if "/sys/class/net" in command:
            return ShellResult(command, 0, self.interfaces, b"")
        if "list-timers" in command:
            return ShellResult(command, 0, b"1000\n[]", b"")
        match = re.match(r"set -- (\S+) (\S+) (\S+)\n", command)
        if match is None:
            return ShellResult(command, 1, b"", b"")
        address, token, name = match.groups()
        number = self.canaries
        self.canaries += 1
        if number == 1:
            self.leak(self.net, "idle")
        if name != "''":
            self.net.udp(self.settings.resolver, 53, dns.query(name), sport=41000 + number)
        dst = wire.address_of(address)
        self.net.send(
            wire.frame(
                self.through + MAC,
                wire.ip(self.net.ip, dst, 17, wire.udp(self.net.ip, 42000 + number, dst, 9, token.encode())),
            )
        )
        self._keep(3.0)
        return ShellResult(command, 0, f"clock {self.now:.6f}\nsent bash\nasked 0\n".encode(), b"")


def _nothing(guest: Guest, when: str) -> None:
    """A quiet guest."""


def _beacon(guest: Guest, when: str) -> None:
    """The same at any time."""
    guest.udp(FAR, 9, b"x")


def _watch(machine: FakeMachine, **changes: Any) -> telemetry.Watch:
    fields: dict[str, Any] = {
        "machine": cast("Machine", machine),
        "state": State.LIVE,
        "window_s": 0.05,
        "names": True,
        "progress": ProgressLog(machine.records / "progress.jsonl"),
        "violations": lambda seen: 0,
    }
    return telemetry.Watch(**{**fields, **changes})


def _observe(directory: Path, leak: Callable[[Guest, str], None] = _nothing, **state: Any) -> TelemetryObservation:
    machine = FakeMachine(directory, leak)
    for name, value in state.items():
        setattr(machine, name, value)
    return telemetry.observe(_watch(machine))


def _rules(seen: TelemetryObservation) -> set[tuple[str, str]]:
    return {finding.key for finding in GATE.judge(seen, POLICY)}


def test_a_quiet_guest_passes(tmp_path: Path) -> None:
    seen = _observe(tmp_path)
    assert judge(GATE, seen, POLICY).findings == ()
    assert judge(GATE, seen, POLICY).verdict is Verdict.PASS
    assert seen.timing.idle_s > 5
    (card,) = seen.cards
    assert (card.lease, card.captured_out, card.captured_in) == ("10.0.2.15", card.counted_out, card.counted_in)
    assert [canary.moment for canary in seen.canaries] == list(Moment)
    again = TelemetryObservation.model_validate_json(seen.model_dump_json())
    assert again == seen


def test_each_leak_is_in_its_phase(tmp_path: Path) -> None:
    ports = {"boot": 1001, "idle": 1002, "shutdown": 1003}

    def leak(guest: Guest, when: str) -> None:
        guest.udp(FAR, ports[when], when.encode())

    seen = _observe(tmp_path, leak)
    phases = {flow.dport: dict(flow.phases) for flow in seen.flows if flow.dst == "203.0.113.7"}
    assert phases == {1001: {Phase.BOOT: 1}, 1002: {Phase.IDLE: 1}, 1003: {Phase.END: 1}}
    assert _rules(seen) == {("literal-address", "203.0.113.7")}


def test_the_canarys_address_hides_nothing(tmp_path: Path) -> None:
    """Other data, other ports, or more than the one datagram: that is not ours."""

    def leak(guest: Guest, when: str) -> None:
        if when == "idle":
            guest.udp(bytes((192, 0, 2, 102)), 9, b"something else")
            guest.udp(guest.settings.resolver, 53, dns.query("x.osgates-canary.example.net"))

    assert _rules(_observe(tmp_path, leak)) == {
        ("literal-address", "192.0.2.102"),
        ("contact", "x.osgates-canary.example.net"),
    }


@pytest.mark.parametrize(
    ("state", "rule"),
    [
        ({"goes_down": False}, ("power-off", "shutdown")),
        ({"dead": False, "change": {"rx_frames": 3}}, ("count-mismatch", "card 0")),
        ({"change": {"broken": True}}, ("sinkhole", "card 0")),
        ({"change": {"events_dropped": 5, "log_failure": "the event log is full"}}, ("sinkhole", "card 0")),
        ({"change": {"partial_bytes": 7}}, ("sinkhole", "card 0")),
        ({"through": b"\x52\x55\x0a\x00\x02\x77"}, ("canary", "start")),
    ],
)
def test_what_is_not_whole_is_not_proven(state: dict[str, Any], rule: tuple[str, str], tmp_path: Path) -> None:
    seen = _observe(tmp_path, **state)
    assert rule in _rules(seen)
    assert judge(GATE, seen, POLICY).verdict is Verdict.NOT_PROVEN


def test_a_guest_that_does_not_answer_over_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "PROBE_S", 0.01)
    monkeypatch.setattr(telemetry, "POLL_S", 0.01)
    seen = _observe(tmp_path, deaf=True)
    assert _rules(seen) == {("canary", str(moment)) for moment in Moment}


def test_a_tunnel_is_not_proven(tmp_path: Path) -> None:
    seen = _observe(tmp_path, interfaces=b"lo 772 none\nenp0s5 1 none\nwg0 65534 wireguard\ntun3 65534 tun\n")
    assert _rules(seen) == {("tunnel", "wg0"), ("tunnel", "tun3")}
    assert judge(GATE, seen, POLICY).verdict is Verdict.NOT_PROVEN


def test_a_guest_that_hides_its_interfaces(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="which network interfaces"):
        _observe(tmp_path, interfaces=b"")


def test_the_interfaces_of_this_machine(tmp_path: Path) -> None:
    assert isinstance(telemetry.tunnels(cast("GuestShell", LocalShell(tmp_path))), list)


def test_a_name_that_the_capture_lacks(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, _nothing)
    machine.net.log.line('"event": "dns", "query": "only.in.the.log.example"')
    assert ("sinkhole", "card 0") in _rules(telemetry.observe(_watch(machine)))


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "events", "disk full"])
def test_damaged_records(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(tmp_path, _nothing)
    whole = machine.power_off

    def power_off(timeout: float) -> bool:
        down = whole(timeout)
        capture = machine.captures[0]
        if damage == "cut":
            capture.write_bytes(capture.read_bytes()[:-3])
        elif damage == "empty":
            capture.write_bytes(b"")
        elif damage == "gone":
            capture.unlink()
        elif damage == "events":
            machine.events.write_bytes(machine.events.read_bytes()[:-3])
        else:
            (tmp_path / "qemu.log").write_text("qemu: network dump write error - stopping dump\n")
        return down

    monkeypatch.setattr(machine, "power_off", power_off)
    seen = telemetry.observe(_watch(machine))
    found = judge(GATE, seen, POLICY)
    assert found.verdict is Verdict.NOT_PROVEN
    assert {rule for rule, _ in _rules(seen)} & {"capture", "sinkhole", "count-mismatch"}


def test_a_sinkhole_that_died_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(tmp_path, _nothing)

    def stop() -> dict[str, Any]:
        raise MachineDied("the sinkhole of net0 ended: killed")

    monkeypatch.setattr(machine, "stop", stop)
    seen = telemetry.observe(_watch(machine))
    assert ("sinkhole", "card 0 count") in _rules(seen)


def test_the_first_violation_ends_it_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "LOOK_S", 0.0)
    machine = FakeMachine(tmp_path, _beacon)
    watch = _watch(machine, window_s=60.0, stop_early=True)
    watch.violations = lambda seen: sum(finding.rule == "literal-address" for finding in GATE.judge(seen, POLICY))
    seen = telemetry.observe(watch)
    assert "first violation" in seen.stopped_early
    assert judge(GATE, seen, POLICY).verdict is Verdict.FAIL


def test_too_much_traffic_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MAX_CAPTURE", 100)
    seen = _observe(tmp_path)
    assert ("stopped-early", "window") in _rules(seen)


def test_skipped_time_is_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(tmp_path, _nothing)
    seconds = iter(range(100, 10_000, 10))
    monkeypatch.setattr(clock, "guest_time", lambda one: float(next(seconds)))
    monkeypatch.setattr(clock, "Governor", lambda one: contextlib.nullcontext(SimpleNamespace(failure=None)))
    seen = telemetry.observe(_watch(machine, window_s=60.0, skipping=True))
    assert (seen.timing.mode, seen.timing.wanted_s) == ("accelerated", 60.0)
    assert seen.timing.warp > 1
    judgement = judge(GATE, seen, POLICY)
    assert "virtual-time" in {finding.rule for finding in judgement.findings}
    # Nothing of the guest's was answered in the meantime but look-ups of canaries.
    assert seen.timing.latency_s is not None


def test_leases_end_within_the_window() -> None:
    one, two = telemetry.settings_for(1800.0, 2)
    assert one.lease_s / 2 < 1800
    assert one.subnet != two.subnet
    assert telemetry.settings_for(5.0, 1)[0].lease_s >= 60


# -- canaries
# ----------------------------------------------------------------------------------------------------------


class StubbedShell(LocalShell):
    """Runs here, with stand-ins for the programs that would send."""

    def run(self, command: str, *, timeout: float = 60.0, max_output: int = 1 << 20) -> ShellResult:
        return super().run(f"PATH={self.directory}:/usr/bin:/bin\n{command}", timeout=timeout, max_output=max_output)


def _stub(directory: Path, name: str, status: int) -> None:
    path, log = directory / name, directory / "log"
    path.write_text(f'#!/bin/sh\nprintf "%s|" {name} "$@" | tr "\\n" " " >>{log}\necho >>{log}\nexit {status}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("names", [True, False])
def test_the_first_program_that_can_send_is_used(names: bool, tmp_path: Path) -> None:
    for name, status in (("bash", 1), ("python3", 0), ("perl", 0), ("getent", 0)):
        _stub(tmp_path, name, status)
    canary = Canary(Moment.START, NONCE)
    planted = plant(cast("GuestShell", StubbedShell(tmp_path)), canary, names=names)
    assert (planted.sent, planted.how, planted.why) == (True, "python3", "")
    assert planted.resolved is names
    assert planted.clock is not None
    assert planted.clock > 1.7e9
    said = (tmp_path / "log").read_text().splitlines()
    assert [line.split("|")[0] for line in said] == ["bash", "python3", *(["getent"] if names else [])]
    assert said[0].endswith(f"|{canary.address}|{canary.token}|")
    if names:
        assert said[2] == f"getent|ahosts|{canary.name}|"


def test_a_guest_that_cannot_send_or_look_up(tmp_path: Path) -> None:
    canary = Canary(Moment.END, NONCE)
    planted = plant(shell({"set --": b"clock 1700000000.5\nsent \nasked 0\n"}), canary, names=True)
    assert (planted.sent, planted.clock) == (False, 1700000000.5)
    assert "neither bash" in planted.why
    planted = plant(shell({"set --": b"clock x\nsent perl\nasked 137\n"}), canary, names=True)
    assert (planted.sent, planted.clock) == (True, None)
    assert "137" in planted.why
    planted = plant(shell({"set --": b"clock x\nsent perl\nasked 2\n"}), canary, names=True)
    assert (planted.sent, planted.resolved) == (True, False)

    class Slow(LocalShell):
        def run(self, command: str, *, timeout: float = 60.0, max_output: int = 0) -> ShellResult:
            raise GuestTimeout("too slow")

    planted = plant(cast("GuestShell", Slow(tmp_path)), canary, names=True)
    assert (planted.sent, planted.why) == (False, "too slow")


# -- attribution
# -------------------------------------------------------------------------------------------------------


def test_owners_of_sockets() -> None:
    text = (
        'udp UNCONN 0 0 10.0.2.15%enp0s5:68 0.0.0.0:* users:(("systemd-network",pid=520,fd=31))\n'
        'tcp SYN-SENT 0 1 10.0.2.15:50000 203.0.113.7:443 users:(("spy",pid=77,fd=3),("spy",pid=78,fd=3))\n'
        "tcp LISTEN 0 1 [::]:22 [::]:*\nnonsense\n\n"
        "520 0::/system.slice/systemd-networkd.service\n77 0::/user.slice/app.slice/spy.service\n"
    )
    assert socket_owners(shell({"ss -Htunap": text.encode()})) == {
        ("udp", 68): "systemd-network[520] systemd-networkd.service",
        ("tcp", 50000): "spy[77] spy.service",
    }
    assert socket_owners(shell({})) == {}


def test_units_that_were_busy(tmp_path: Path) -> None:
    def line(at: float, **fields: str) -> str:
        return f"[ 1.0] {json.dumps({'__REALTIME_TIMESTAMP': str(int(at * 1e6)), **fields})}\n"

    path = tmp_path / "journal.log"
    path.write_text(
        line(100, _PID="1", UNIT="spy.service", _SYSTEMD_UNIT="init.scope")
        + line(103, _PID="50", _SYSTEMD_UNIT="late.service", UNIT="not-this.service")
        + line(104, _PID="51", _SYSTEMD_UNIT=f"osgates-{NONCE}.service")
        + line(200, _PID="52", _SYSTEMD_UNIT="far.service")
        + "[ 1.0] {broken\n[ 1.0] []\nnothing\n"
        + line(101, _PID="53", _SYSTEMD_UNIT="\x1b[31m.service")
    )
    journal = Journal.read([path], [f"osgates-{NONCE}.service"])
    assert journal.around(103.5) == ("late.service", "spy.service")
    assert journal.around(99.0) == ("spy.service",)
    assert journal.around(150.0) == ()
    assert Journal.read([tmp_path / "missing"], []).around(1.0) == ()
    path.write_text(
        line(100, _PID="1", UNIT="once.service", MESSAGE_ID="7d4958e842da4a758f6c1cdc7b36dcc5")
        + line(160, _PID="1", UNIT="once.service", MESSAGE_ID="39f53479d3a045ac8e11786248231fbf")
        + line(200, _PID="1", UNIT="endless.service", MESSAGE_ID="7d4958e842da4a758f6c1cdc7b36dcc5")
        + line(300, _PID="9", _SYSTEMD_UNIT="forger.service", MESSAGE_ID="7d4958e842da4a758f6c1cdc7b36dcc5")
    )
    journal = Journal.read([path], [])
    assert journal.around(130.0) == ("once.service",)
    assert journal.around(180.0) == ()
    assert journal.around(900.0) == ("endless.service",)


def test_the_unit_is_named_in_the_finding(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, _beacon)
    stamp = str(int((POWER_ON + 21.5) * 1e6))
    entry = {"__REALTIME_TIMESTAMP": stamp, "_PID": "1", "UNIT": "spy.service"}
    (tmp_path / "journal.log").write_text(json.dumps(entry) + "\n")
    seen = telemetry.observe(_watch(machine))
    (finding,) = GATE.judge(seen, POLICY)
    assert "spy.service" in finding.seen


def test_a_flow_from_the_gateways_own_address_is_a_mismatch(tmp_path: Path) -> None:
    """Frames that pretend to come from the other side are not overlooked."""

    def leak(guest: Guest, when: str) -> None:
        if when == "idle":
            frame = guest.settings.hardware * 2 + tcp_packet(guest.ip, FAR, 1, 2, 3, 4, ACK, b"hidden")
            guest.send(wire.frame(frame[:12], frame[12:]))

    seen = _observe(tmp_path, leak)
    assert ("count-mismatch", "card 0") in _rules(seen)
    assert judge(GATE, seen, POLICY).verdict is not Verdict.PASS


def test_the_links_interface_is_the_real_one() -> None:
    """What the stand-in has, the real one has."""
    for name in ("probe", "stats", "stop"):
        assert callable(getattr(SinkholeLink, name))
    assert Settings().resolver == bytes((10, 0, 2, 3))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b'1000\n[{"unit": "a.timer", "next": 1007000000}]', ("a.timer in 7 s",)),
        (
            b'1000\n[{"unit": "b.timer", "next": 1011000000}, {"unit": "c.timer", "next": 1001000000}]',
            ("c.timer in 1 s",),
        ),
        (b'1000\n[{"unit": "d.timer", "next": null}, {"unit": "e.timer", "next": 999000000}]', ()),
        (b"1000\n[]", ()),
        (b"1000\n", None),
        (b"1000\n[7]", None),
        (b"1000\n" + b"[" * 100_000, None),
        (b"never\n[{}]", ()),
        (b'never\n[{"unit": "f.timer", "next": 1}]', None),
    ],
)
def test_timers_are_listed_or_not_known(said: bytes, expected: tuple[str, ...] | None) -> None:
    watch = cast("telemetry.Watch", SimpleNamespace(machine=SimpleNamespace(shell=shell({"": said})), window_s=5.0))
    assert telemetry._timers(watch) == expected


def test_completed_handshakes_are_read_from_the_log(tmp_path: Path) -> None:
    event = {"event": "tls-accepted", "sni": "a.example", "dst": "203.0.113.7", "dport": 443}
    lines = [event, event, {**event, "event": "tls-refused", "sni": "b.example"}]
    lines += [{**event, "sni": f"{number}.example"} for number in range(100)]
    path = tmp_path / "events"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = list(read_events(path).unvalidated)
    assert (seen[0].name, seen[0].address, seen[0].port) == ("a.example", "203.0.113.7", 443)
    assert [entry.name for entry in seen[1:3]] == ["0.example", "1.example"]
    assert len(seen) == 50


def test_what_tls_met_is_in_the_observation(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, _nothing)
    assert telemetry.observe(_watch(machine)).tls == "alert"
    settings = telemetry.settings_for(60.0, 2, None, None, TlsAnswer.COMPLETE)
    assert {entry.tls for entry in settings} == {TlsAnswer.COMPLETE}
