"""Sabotages: a leak of every kind, added to what was seen, and each way in which the silence would mean nothing."""

from __future__ import annotations

from collections.abc import Callable

from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import (
    CanarySeen,
    FactSeen,
    FlowSeen,
    Moment,
    NameSeen,
    Phase,
    QuerySeen,
    TelemetryObservation,
)
from pytest_osgates.model import Control, Severity

Sabotage = Callable[[TelemetryObservation], TelemetryObservation]
_PHASES = {Phase.IDLE: 1}


def _flow(dst: str, protocol: str, dport: int, *names: tuple[str, str], **more: object) -> Sabotage:
    def sabotage(seen: TelemetryObservation) -> TelemetryObservation:
        fields: dict[str, object] = {
            "protocol": protocol,
            "src": "10.0.2.15",
            "dst": dst,
            "sport": 40000,
            "dport": dport,
            "first": 60.0,
            "last": 60.0,
            "frame": 1,
            "names": tuple(NameSeen(name=name, how=how) for name, how in names),
            "phases": _PHASES,
            **more,
        }
        return seen.model_copy(update={"flows": (*seen.flows, FlowSeen.model_validate(fields))})

    return sabotage


def _query(name: str, server: str | None = None, *aliases: str) -> Sabotage:
    def sabotage(seen: TelemetryObservation) -> TelemetryObservation:
        offered = next((resolver for card in seen.cards for resolver in card.resolvers), "10.0.2.3")
        query = QuerySeen(
            name=name,
            kind="A",
            server=server or offered,
            first=60.0,
            last=60.0,
            frame=1,
            aliases=aliases,
            phases=_PHASES,
        )
        return seen.model_copy(update={"queries": (*seen.queries, query)})

    return sabotage


def _fact(kind: str, **details: str) -> Sabotage:
    def sabotage(seen: TelemetryObservation) -> TelemetryObservation:
        fact = FactSeen(kind=kind, mac="02:00:00:00:00:01", details=details, first=60.0, frame=1)
        return seen.model_copy(update={"facts": (*seen.facts, fact)})

    return sabotage


def _card(**changes: object) -> Sabotage:
    def sabotage(seen: TelemetryObservation) -> TelemetryObservation:
        cards = tuple(card.model_copy(update=changes) for card in seen.cards)
        return seen.model_copy(update={"cards": cards})

    return sabotage


def _one_more_frame(seen: TelemetryObservation) -> TelemetryObservation:
    cards = tuple(card.model_copy(update={"counted_out": (card.counted_out or 0) + 1}) for card in seen.cards)
    return seen.model_copy(update={"cards": cards})


def _canary(moment: Moment, **changes: object) -> Sabotage:
    def sabotage(seen: TelemetryObservation) -> TelemetryObservation:
        changed: tuple[CanarySeen, ...] = tuple(
            canary.model_copy(update=changes) if canary.moment is moment else canary for canary in seen.canaries
        )
        return seen.model_copy(update={"canaries": changed})

    return sabotage


def _shorter(seen: TelemetryObservation) -> TelemetryObservation:
    return seen.model_copy(update={"timing": seen.timing.model_copy(update={"idle_s": 1.0})})


def _tunnel(seen: TelemetryObservation) -> TelemetryObservation:
    return seen.model_copy(update={"tunnels": ("osgates-control",)})


def _slow(seen: TelemetryObservation) -> TelemetryObservation:
    changes = {"mode": "accelerated", "latency_s": 5.0}
    return seen.model_copy(update={"timing": seen.timing.model_copy(update=changes)})


_HEADER = "IPv6 header (control)"
_UNNAMED = "203.0.113.7"
_UNNAMED6 = "2001:db8:aa::7"
_VENDOR = "osgates-control.mozilla.org"
_LOCAL = "osgates-control.local"
_NAME = "osgates-control.example.com"


def controls(seen: TelemetryObservation, policy: TelemetryPolicy) -> tuple[Control[TelemetryObservation], ...]:
    """One of each kind. Those about what is missing apply only where it is there."""
    made: list[Control[TelemetryObservation]] = [
        Control(
            "a query for a vendor's name",
            _query(_VENDOR),
            "vendor",
            _VENDOR,
        ),
        Control(
            "a vendor behind a CNAME",
            _query(_NAME, None, "osgates-control.edgekey.net"),
            *("vendor", _NAME),
        ),
        Control("a vendor's address without a name", _flow("17.253.0.1", "udp", 123), "vendor", "17.253.0.1"),
        Control("a query for a name that nobody allowed", _query(_NAME), "contact", _NAME),
        Control("a query to another resolver", _query(_NAME, _UNNAMED), "foreign-resolver", _NAME),
        Control("an address without a name", _flow(_UNNAMED, "tcp", 443), "literal-address", _UNNAMED),
        Control("an IPv6 address without a name", _flow(_UNNAMED6, "udp", 9), "literal-address", _UNNAMED6),
        Control("a name in SNI only", _flow(_UNNAMED, "tcp", 443, (_NAME, "sni")), "contact", _NAME),
        Control("a name in a Host header only", _flow(_UNNAMED, "tcp", 80, (_NAME, "host")), "contact", _NAME),
        Control("a name in QUIC only", _flow(_UNNAMED, "udp", 443, (_NAME, "quic")), "contact", _NAME),
        Control(
            "a hidden name",
            _flow(_UNNAMED, "tcp", 443, (_NAME, "sni"), notes=("ECH: the true name is encrypted",)),
            *("ech", _NAME),
        ),
        Control("DNS over TLS", _flow(_UNNAMED, "tcp", 853, applications=("dot",)), "encrypted-dns", _UNNAMED),
        Control("DNS over HTTPS", _flow(_UNNAMED, "tcp", 443, applications=("doh",)), "encrypted-dns", _UNNAMED),
        Control("a ping", _flow(_UNNAMED, "icmp", 0, applications=("ping",)), "literal-address", _UNNAMED),
        Control("a tunnel protocol", _flow(_UNNAMED, "gre", 0), "literal-address", _UNNAMED),
        Control("a contact at boot", _flow(_UNNAMED, "udp", 9, phases={Phase.BOOT: 1}), "literal-address", _UNNAMED),
        Control("one at shutdown", _flow(_UNNAMED, "udp", 9, phases={Phase.END: 1}), "literal-address", _UNNAMED),
        Control("mDNS", _flow("224.0.0.251", "udp", 5353, applications=("mdns",)), "multicast", "224.0.0.251"),
        Control("a tagged frame", _fact("vlan", tag="4001"), "vlan", "VLAN 4001"),
        Control("a protocol that is not IP", _fact("ethertype", number="88cc", to="x"), "ethertype", "0x88cc"),
        Control("a routing header", _fact("ip-options", what=_HEADER), "ip-options", _HEADER),
        Control("ARP for another network", _fact("arp", asks=_UNNAMED), "arp", _UNNAMED),
        Control("a host name in DHCP", _fact("dhcp", host="osgates-control"), "dhcp-host-name", "osgates-control"),
        Control("an identifier in DHCP", _fact("dhcp", client_id="ff00"), "dhcp-client-id", "ff00"),
        Control("a UUID in DHCP", _fact("dhcp", other="97: 0c0ffe"), "dhcp-option", "97: 0c0ffe"),
        Control("an identifier in DHCPv6", _fact("dhcpv6", duid="0004aa"), "dhcpv6-duid", "0004aa"),
        Control("a name over mDNS", _fact("mdns", told=_LOCAL), "mdns-name", _LOCAL),
    ]
    for card in seen.cards[:1]:
        name = f"card {card.index}"
        unproven = Severity.UNPROVEN
        if not card.unparsed:
            made.append(Control("a frame that cannot be read", _card(unparsed=1), "unparsed", name))
        if not card.problem:
            made.append(Control("a capture that was cut", _card(problem="is cut short"), "capture", name, unproven))
        if not card.trouble:
            made.append(Control("a sinkhole that died", _card(trouble="it died"), "sinkhole", name, unproven))
        if card.captured_out == card.counted_out:
            made.append(Control("a frame that the capture lacks", _one_more_frame, "count-mismatch", name, unproven))
        if card.lease:
            made.append(Control("no lease", _card(lease=""), "no-lease", name, unproven))
    for canary in seen.canaries:
        whole = canary.sent and canary.datagram and canary.through_gateway and canary.probe
        if whole and ((canary.query and canary.resolved) or policy.names == "none"):
            lost = _canary(canary.moment, datagram=False)
            name = f"the canary at the {canary.moment} was lost"
            made.append(Control(name, lost, "canary", canary.moment, Severity.UNPROVEN))
            if policy.names == "dns":
                mute = _canary(canary.moment, resolved=False)
                name = f"no address for the canary at the {canary.moment}"
                made.append(Control(name, mute, "canary", canary.moment, Severity.UNPROVEN))
    if seen.timing.idle_s >= policy.idle_s and not seen.stopped_early:
        made.append(Control("a shorter window", _shorter, "window", "idle", Severity.UNPROVEN))
    if not seen.tunnels:
        made.append(Control("a tunnel", _tunnel, "tunnel", "osgates-control", Severity.UNPROVEN))
    if seen.timing.mode == "real":
        made.append(Control("slow answers", _slow, "latency", "accelerated time", Severity.UNPROVEN))
    present = _present(seen)
    return tuple(entry for entry in made if (entry.subject, entry.rule) not in present)


def _present(seen: TelemetryObservation) -> set[tuple[str, str]]:
    """Link-wide things that may be there without us; a control for one that is there would prove nothing."""
    found = {(flow.dst, "multicast") for flow in seen.flows if flow.dst.startswith(("224.", "ff02"))}
    for fact in seen.facts:
        if fact.kind == "vlan":
            found.add((f"VLAN {fact.details.get('tag')}", "vlan"))
        if fact.kind == "ethertype":
            found.add((f"0x{fact.details.get('number')}", "ethertype"))
    return found
