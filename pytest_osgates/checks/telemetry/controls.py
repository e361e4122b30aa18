"""Sabotages: a leak of every kind, added to what was seen, and each way in which the silence would mean nothing."""

from __future__ import annotations

from collections.abc import Callable

from pytest_osgates.checks.telemetry.controls_declared import controls_declared
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
    Unvalidated,
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
        offered, transport = "10.0.2.3", "udp"
        offered = next((resolver for card in seen.cards for resolver in card.resolvers), offered)
        for peer in seen.resolver:
            offered, transport = next(iter(peer.addresses), offered), peer.kind
        query = QuerySeen(
            name=name,
            kind="A",
            server=server or offered,
            transport=transport,
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
    return seen.model_copy(update={"tunnels": (*seen.tunnels, "osgates-control")})


def _unvalidated(seen: TelemetryObservation) -> TelemetryObservation:
    entry = Unvalidated(name=_NAMES[0], address=_ADDRESSES[0], port=443)
    return seen.model_copy(update={"unvalidated": (*seen.unvalidated, entry)})


def _slow(seen: TelemetryObservation) -> TelemetryObservation:
    changes = {"mode": "accelerated", "latency_s": 5.0}
    return seen.model_copy(update={"timing": seen.timing.model_copy(update=changes)})


_HEADER = "IPv6 header (control)"
# For documentation, and nobody's (RFC 5737, RFC 9637, RFC 6676, RFC 2606).
_ADDRESSES = ("203.0.113.7", "198.51.100.7", "192.0.2.7")
_ADDRESSES6 = ("2001:db8:aa::7", "3fff::7")
_GROUPS = ("224.0.0.251", "233.252.0.7")
_NAMES = ("osgates-control.example.com", "osgates-control.example.net", "osgates-control.example.org")
_VENDOR = "osgates-control.mozilla.org"
_LOCAL = "osgates-control.local"


def _free_address(candidates: tuple[str, ...], policy: TelemetryPolicy) -> str:
    """One that the profile does not allow: a control on one that it does would prove nothing."""
    free = (text for text in candidates if not any(entry.covers_address(text) for entry in policy.allow))
    return next(free, candidates[0])


def _free_name(policy: TelemetryPolicy) -> str:
    free = (text for text in _NAMES if not any(entry.covers_name(text) for entry in policy.allow))
    return next(free, _NAMES[0])


def controls(seen: TelemetryObservation, policy: TelemetryPolicy) -> tuple[Control[TelemetryObservation], ...]:
    """One of each kind. Those about what is missing apply only where it is there."""
    unnamed, unnamed6 = _free_address(_ADDRESSES, policy), _free_address(_ADDRESSES6, policy)
    shouted, name = _free_address(_GROUPS, policy), _free_name(policy)
    made: list[Control[TelemetryObservation]] = [
        Control(
            "a query for a vendor's name",
            _query(_VENDOR),
            "vendor",
            _VENDOR,
        ),
        Control(
            "a vendor behind a CNAME",
            _query(name, None, "osgates-control.edgekey.net"),
            *("vendor", name),
        ),
        Control("a vendor's address without a name", _flow("17.253.0.1", "udp", 123), "vendor", "17.253.0.1"),
        Control("a query for a name that nobody allowed", _query(name), "contact", name),
        Control("a query to another resolver", _query(name, unnamed), "foreign-resolver", name),
        Control("an address without a name", _flow(unnamed, "tcp", 443), "literal-address", unnamed),
        Control("an IPv6 address without a name", _flow(unnamed6, "udp", 9), "literal-address", unnamed6),
        Control("a name in SNI only", _flow(unnamed, "tcp", 443, (name, "sni")), "contact", name),
        Control("a name in a Host header only", _flow(unnamed, "tcp", 80, (name, "host")), "contact", name),
        Control("a name in QUIC only", _flow(unnamed, "udp", 443, (name, "quic")), "contact", name),
        Control(
            "a hidden name",
            _flow(unnamed, "tcp", 443, (name, "sni"), notes=("ECH: the true name is encrypted",)),
            *("ech", name),
        ),
        Control("DNS over TLS", _flow(unnamed, "tcp", 853, applications=("dot",)), "encrypted-dns", unnamed),
        Control("DNS over HTTPS", _flow(unnamed, "tcp", 443, applications=("doh",)), "encrypted-dns", unnamed),
        Control("a ping", _flow(unnamed, "icmp", 0, applications=("ping",)), "literal-address", unnamed),
        Control("a tunnel protocol", _flow(unnamed, "gre", 0), "literal-address", unnamed),
        Control("a contact at boot", _flow(unnamed, "udp", 9, phases={Phase.BOOT: 1}), "literal-address", unnamed),
        Control("one at shutdown", _flow(unnamed, "udp", 9, phases={Phase.END: 1}), "literal-address", unnamed),
        Control("mDNS", _flow(shouted, "udp", 5353, applications=("mdns",)), "multicast", shouted),
        Control("a tagged frame", _fact("vlan", tag="4001"), "vlan", "VLAN 4001"),
        Control("a protocol that is not IP", _fact("ethertype", number="88cc", to="x"), "ethertype", "0x88cc"),
        Control("a routing header", _fact("ip-options", what=_HEADER), "ip-options", _HEADER),
        Control("ARP for another network", _fact("arp", asks=unnamed), "arp", unnamed),
        Control("a host name in DHCP", _fact("dhcp", host="osgates-control"), "dhcp-host-name", "osgates-control"),
        Control("an identifier in DHCP", _fact("dhcp", client_id="ff00"), "dhcp-client-id", "ff00"),
        Control("a UUID in DHCP", _fact("dhcp", other="97: 0c0ffe"), "dhcp-option", "97: 0c0ffe"),
        Control("an identifier in DHCPv6", _fact("dhcpv6", duid="0004aa"), "dhcpv6-duid", "0004aa"),
        Control("a client that believes any certificate", _unvalidated, "tls-unvalidated", _NAMES[0]),
        Control("a name over mDNS", _fact("mdns", told=_LOCAL), "mdns-name", _LOCAL),
    ]
    for card in seen.cards[:1]:
        which = card.word
        unproven = Severity.UNPROVEN
        if not card.unparsed and not card.problem:
            made.append(Control("a frame that cannot be read", _card(unparsed=1), "unparsed", which))
        if not card.problem:
            made.append(Control("a capture that was cut", _card(problem="is cut short"), "capture", which, unproven))
        if not card.trouble:
            made.append(Control("a sinkhole that died", _card(trouble="it died"), "sinkhole", which, unproven))
        if card.captured_out == card.counted_out:
            made.append(Control("a frame that the capture lacks", _one_more_frame, "count-mismatch", which, unproven))
        if card.lease:
            made.append(Control("no lease", _card(lease=""), "no-lease", which, unproven))
    for canary in seen.canaries:
        whole = canary.sent and canary.datagram and canary.through_gateway and canary.probe
        if whole and ((canary.query and canary.resolved) or policy.names == "none"):
            lost = _canary(canary.moment, datagram=False)
            what = f"the canary at the {canary.moment} was lost"
            made.append(Control(what, lost, "canary", canary.moment, Severity.UNPROVEN))
            if policy.names == "dns":
                mute = _canary(canary.moment, resolved=False)
                what = f"no address for the canary at the {canary.moment}"
                made.append(Control(what, mute, "canary", canary.moment, Severity.UNPROVEN))
    if seen.timing.idle_s >= policy.idle_s and not seen.stopped_early:
        made.append(Control("a shorter window", _shorter, "window", "idle", Severity.UNPROVEN))
    if "osgates-control" not in seen.tunnels:
        made.append(Control("a tunnel", _tunnel, "tunnel", "osgates-control", Severity.UNPROVEN))
    if seen.timing.mode == "real":
        made.append(Control("slow answers", _slow, "latency", "accelerated time", Severity.UNPROVEN))
    made += controls_declared(seen, policy)
    present = _present(seen)
    made = [entry for entry in made if (entry.subject, entry.rule) not in present]
    # What an identifier is may be allowed whatever it says.
    return tuple(
        entry for entry in made if not any(it.covers(entry.rule, entry.subject) for it in policy.allow_identifier)
    )


def _present(seen: TelemetryObservation) -> set[tuple[str, str]]:
    """Link-wide things that may be there without us; a control for one that is there would prove nothing."""
    found = {(flow.dst, "multicast") for flow in seen.flows if flow.dst.startswith(("224.", "ff02"))}
    for fact in seen.facts:
        if fact.kind == "vlan":
            found.add((f"VLAN {fact.details.get('tag')}", "vlan"))
        if fact.kind == "ethertype":
            found.add((f"0x{fact.details.get('number')}", "ethertype"))
    return found
