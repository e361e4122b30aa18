"""Watching a machine whose names are asked over TLS alone."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from net_samples import Guest, dhcp_message
from resolver_samples import NAME, TlsClient, write_certificate
from test_observe_telemetry import FakeMachine
from test_observe_vpn import VpnMachine, decisive, observe
from test_observe_vpn import policy as vpn_policy
from vpn_samples import PEER_INNER

from pytest_osgates.checks.telemetry import GATE, TelemetryObservation, TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import Moment, Phase, ResolverSeen
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, Verdict
from pytest_osgates.observers.telemetry import declared
from pytest_osgates.vm.guest.channel import ShellResult
from pytest_osgates.vm.network import dns, wire
from pytest_osgates.vm.network.secure_dns import SecureResolver

FAR = bytes((203, 0, 113, 9))
RESOLVER = {
    "kind": "dot",
    "name": NAME,
    "certificate": "resolver.pem",
    "key": "resolver.key",
    "reason": "names are asked of the project's own resolver, over TLS",
}


def policy(**more: Any) -> TelemetryPolicy:
    return TelemetryPolicy.model_validate({"idle_s": 5, "resolver": RESOLVER, **more})


class ResolverMachine(FakeMachine):
    """Its guest asks for names over TLS, once it has asked in plain text where that is to be done.

    `plain`: in plain text, too. `trusting`: it knows the certificate.
    """

    def __init__(
        self,
        records: Path,
        leak: Callable[[ResolverMachine, str], None] | None = None,
        *,
        plain: bool = False,
        trusting: bool = True,
    ) -> None:
        self.certificate, _ = write_certificate(records)
        self.plain, self.trusting = plain, trusting
        self.client: TlsClient | None = None
        super().__init__(records, lambda guest, when: None)
        secure = declared.resolver_of(policy(), records)
        assert secure is not None
        self.net = Guest(limit=1 << 20, secure=secure)
        self.net.log.clock = lambda: self.now
        self.server = self.net.hole.secure = SecureResolver(secure, self.net.hole.names)
        self.settings = self.net.settings
        self.kept = (0, 0)
        self.frames.clear()
        self.net.udp(b"\xff" * 4, 67, dhcp_message(3), sport=68, src=bytes(4))
        self.net.udp(self.settings.resolver, 53, dns.query(NAME))
        self._keep()
        self.leak = lambda guest, when: leak(self, when) if leak else None

    def ask(self, name: str) -> None:
        """Over TLS."""
        if self.client is None:
            at = self.net.hole.names.address(NAME, v6=False)
            self.client = TlsClient(self.net.tcp(at, 853), self.certificate if self.trusting else None)
            with contextlib.suppress(ssl.SSLError):
                self.client.shake()
        if self.trusting:
            self.client.ask(name)

    def run(self, command: str, *, timeout: float = 60.0, max_output: int = 0) -> ShellResult:
        match = re.match(r"set -- (\S+) (\S+) (\S+)\n", command)
        if match is not None:
            self.ask(match[3])
            if not self.plain:
                command = command.replace(match[3], "''", 1)
        return super().run(command, timeout=timeout, max_output=max_output)


def test_a_quiet_guest_passes(tmp_path: Path) -> None:
    seen = observe(ResolverMachine(tmp_path))
    judgement = judge(GATE, seen, policy())
    assert decisive(judgement) == set()
    assert [control.why for control in judgement.controls if not control.caught] == []
    assert judgement.verdict is Verdict.PASS
    (finding,) = judgement.findings
    assert (finding.subject, finding.severity, finding.reason) == (NAME, Severity.ACCEPTED, RESOLVER["reason"])
    assert all(canary.ways == ("dot",) for canary in seen.canaries)
    (peer,) = seen.resolver
    assert (peer.done, peer.queries, peer.logged) == (1, 3, 3)
    # A profile that declares nothing does not take it.
    assert decisive(judge(GATE, seen, TelemetryPolicy(idle_s=5))) >= {("resolver", NAME), ("encrypted-dns", NAME)}


def test_names_asked_over_tls_are_contacts(tmp_path: Path) -> None:
    def leak(machine: ResolverMachine, when: str) -> None:
        if when != "boot":
            machine.ask("update.example.com")
            machine.ask("detectportal.firefox.com")
        if when == "idle":
            address = machine.net.hole.names.address("update.example.com", v6=False)
            machine.net.udp(address, 4433, b"x")

    seen = observe(ResolverMachine(tmp_path, leak))
    judgement = judge(GATE, seen, policy())
    assert decisive(judgement) == {("contact", "update.example.com"), ("vendor", "detectportal.firefox.com")}
    (query,) = [query for query in seen.queries if query.name == "update.example.com"]
    assert (query.transport, query.count, query.phases) == ("dot", 2, {Phase.IDLE: 1, Phase.END: 1})
    assert query.frame > 0
    # Its address is known by its name, which no capture told.
    entry = {"name": "update.example.com", "services": ["udp:4433"], "reason": "because"}
    assert decisive(judge(GATE, seen, policy(allow=[entry]))) == {("vendor", "detectportal.firefox.com")}


def test_names_in_plain_text_fail(tmp_path: Path) -> None:
    def leak(machine: ResolverMachine, when: str) -> None:
        if when == "idle":
            machine.net.udp(machine.settings.resolver, 53, dns.query("allowed.example.com"))

    seen = observe(ResolverMachine(tmp_path, leak))
    entry = {"name": "allowed.example.com", "services": ["tcp:443"], "reason": "because"}
    judgement = judge(GATE, seen, policy(allow=[entry]))
    assert decisive(judgement) == {("plain-dns", "allowed.example.com")}
    assert judgement.verdict is Verdict.FAIL


def test_canaries_in_plain_text_beside_it_fail(tmp_path: Path) -> None:
    judgement = judge(GATE, observe(ResolverMachine(tmp_path, plain=True)), policy())
    assert {rule for rule, _ in decisive(judgement)} == {"plain-dns"}
    assert len(decisive(judgement)) == 3


def test_a_certificate_that_is_not_trusted_is_not_proven(tmp_path: Path) -> None:
    judgement = judge(GATE, observe(ResolverMachine(tmp_path, trusting=False)), policy())
    rules = {rule for rule, _ in decisive(judgement)}
    assert {"resolver-refused", "resolver-handshake", "canary"} <= rules
    assert judgement.verdict is Verdict.NOT_PROVEN
    hints = {finding.rule: finding.hint for finding in judgement.findings}
    assert "trust the certificate" in hints["resolver-refused"]


@pytest.mark.parametrize(
    "change",
    [{"queries": 2}, {"done": 0}, {"done": None}, {"queries": None}, {"foreign": {"GET /report": 1}}],
)
def test_counts_that_do_not_fit(change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = ResolverMachine(tmp_path)
    told = machine.stats
    monkeypatch.setattr(machine, "stop", lambda: {**(was := told()), "secure": {**was["secure"], **change}})
    judgement = judge(GATE, observe(machine), policy())
    assert judgement.verdict is (Verdict.FAIL if "foreign" in change else Verdict.NOT_PROVEN)
    assert {rule for rule, _ in decisive(judgement)} & {"resolver", *_RULES}


_RULES = {"resolver-count", "resolver-handshake", "resolver-request"}


def test_another_resolver_than_declared(tmp_path: Path) -> None:
    def leak(machine: ResolverMachine, when: str) -> None:
        if when == "idle":
            TlsClient(machine.net.tcp(FAR, 853), None).connection.close()

    seen = observe(ResolverMachine(tmp_path, leak))
    assert decisive(judge(GATE, seen, policy())) == {("literal-address", "203.0.113.9")}
    other = policy(resolver={**RESOLVER, "name": "other.example.org"})
    assert ("resolver", "other.example.org") in decisive(judge(GATE, seen, other))


class BothMachine(VpnMachine):
    """With the resolver behind the VPN."""

    def __init__(self, records: Path, wanted: TelemetryPolicy, *, outside: bool = False) -> None:
        self.outside, self.client = outside, None
        write_certificate(records)
        super().__init__(records, wanted=wanted)
        secure = declared.resolver_of(wanted, records)
        assert secure is not None
        self.net.settings = self.settings = dataclasses.replace(self.settings, secure=secure)
        self.net.hole.secure = self.inside.tunnel.inside.secure = SecureResolver(secure, self.net.hole.names)

    def ask(self, name: str, number: int) -> None:
        machine = self

        class Inside(Guest):
            """The same guest, whose packets go through the tunnel."""

            def packet(self, packet: bytes, *, tag: bytes = b"") -> list[bytes]:
                return [bytes(12) + wire.IPV4 + answer for answer in machine.inside.packet(packet[2:])]

        at = self.net.hole.names.address(NAME, v6=False)
        net = self.net if self.outside else Inside()
        if not number and not self.outside:
            self.inside.udp(PEER_INNER, 53, dns.query(NAME))
        client = TlsClient(net.tcp(at, 853, sport=50000 + number), self.records / "resolver.pem")
        client.shake()
        client.ask(name)


def test_a_resolver_behind_a_vpn(tmp_path: Path) -> None:
    wanted = vpn_policy(resolver=RESOLVER)
    seen = observe(BothMachine(tmp_path, wanted))
    judgement = judge(GATE, seen, wanted)
    assert decisive(judgement) == set()
    assert [control.why for control in judgement.controls if not control.caught] == []
    assert judgement.verdict is Verdict.PASS
    assert all(canary.ways == ("tunnel dot",) for canary in seen.canaries)
    assert len(list(Moment)) == len(seen.canaries)


def test_a_resolver_asked_beside_the_vpn(tmp_path: Path) -> None:
    wanted = vpn_policy(resolver=RESOLVER)
    judgement = judge(GATE, observe(BothMachine(tmp_path, wanted, outside=True)), wanted)
    assert ("encrypted-dns", wire.text_of(bytes((198, 18, 0, 17)))) in decisive(judgement) or (
        "encrypted-dns",
        NAME,
    ) in decisive(judgement)
    assert judgement.verdict is Verdict.FAIL


def test_no_word_of_the_resolver_can_be_missing(tmp_path: Path) -> None:
    seen = observe(ResolverMachine(tmp_path))
    fields = sorted(ResolverSeen.model_fields.keys() - {"refused", "foreign"})
    for field, nothing in itertools.product(fields, (0, 7, None, "", "x", ())):
        peers = tuple(peer.model_copy(update={field: nothing}) for peer in seen.resolver)
        if peers == seen.resolver:
            continue
        try:
            dumped = {**seen.model_dump(), "resolver": [vars(peer) for peer in peers]}
            sabotaged = TelemetryObservation.model_validate(dumped)
        except ValueError:
            continue
        proven = field == "done" and nothing == 7
        assert (judge(GATE, sabotaged, policy()).verdict is Verdict.PASS) == proven, (field, nothing)
