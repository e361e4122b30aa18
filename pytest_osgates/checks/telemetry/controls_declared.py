"""Sabotages of what a profile declares: a VPN that was not up, a resolver that was not asked, leaks."""

from __future__ import annotations

from collections.abc import Callable

from pytest_osgates.checks.telemetry.declared import DeclaredResolver, DeclaredVpn
from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import (
    TUNNELS,
    FlowSeen,
    NameSeen,
    Phase,
    QuerySeen,
    ResolverSeen,
    TelemetryObservation,
    VpnSeen,
)
from pytest_osgates.model import Control, Severity

Sabotage = Callable[[TelemetryObservation], TelemetryObservation]
_NAME = "osgates-control.example.org"
_ASKED = "osgates-control-asked.example.org"
_WHY = "osgates-control"
_UNPROVEN = Severity.UNPROVEN
_NOBODY = "osgates-control.example.org:51820"


def controls_declared(seen: TelemetryObservation, policy: TelemetryPolicy) -> list[Control[TelemetryObservation]]:
    """Those that apply: each field that says that the declared thing was there, taken away or contradicted."""
    made = []
    if policy.vpn is None:
        made.append(Control("a peer that nobody declared", _add_peer, "vpn", _NOBODY, _UNPROVEN))
    elif seen.vpn:
        made += _of_vpn(seen, policy.vpn)
    if policy.resolver is None:
        made.append(Control("a resolver that nobody declared", _add_resolver, "resolver", _NAME, _UNPROVEN))
    elif seen.resolver:
        made += _of_resolver(seen, policy, policy.resolver)
    for canary in seen.canaries:
        moment = canary.moment
        if policy.vpn is not None and canary.tunnel:
            name = f"the canary at the {moment} beside the tunnel"
            made.append(Control(name, _canaries(tunnel=False), "canary", moment, _UNPROVEN))
        if (policy.vpn is not None or policy.resolver is not None) and canary.ways:
            name = f"the canary's name at the {moment} in the clear"
            made.append(Control(name, _canaries(ways=("udp",)), "canary", moment, _UNPROVEN))
    return made


def _of_vpn(seen: TelemetryObservation, vpn: DeclaredVpn) -> list[Control[TelemetryObservation]]:
    peer = seen.vpn[0]
    name = f"{peer.endpoint} on card {peer.card}"
    inside = _flow(tunnel=True, card=peer.inside, names=(NameSeen(name=_NAME, how="sni"),), dport=443)
    made = [
        Control("a contact inside the tunnel", inside, "contact", _NAME),
        Control("a name asked inside the tunnel", _query(seen, tunnel=True, card=peer.inside), "contact", _ASKED),
        Control("no peer was played", _replaced(vpn=()), "vpn", vpn.endpoint, _UNPROVEN),
        Control("no handshake", _peers(handshakes=0), "vpn-handshake", vpn.endpoint, _UNPROVEN),
        Control("no count of handshakes", _peers(handshakes=None), "vpn", name, _UNPROVEN),
        Control("no count of datagrams", _peers(datagrams=None), "vpn", name, _UNPROVEN),
        Control("a datagram not captured", _peers(captured=peer.captured - 1), "vpn-count", name, _UNPROVEN),
        Control("a datagram that does not authenticate", _peers(refused={_WHY: 1}), "vpn-datagram", _WHY),
        Control("another guest's key", _peers(guest_key=_WHY), "vpn", vpn.endpoint, _UNPROVEN),
        Control("no capture of the inside", _without_inside, "vpn", name, _UNPROVEN),
        Control("flows mixed up", _flow(tunnel=True, card=peer.card), "way", f"card {peer.card}", _UNPROVEN),
        Control("no interface", _replaced(tunnels=()), "vpn-interface", vpn.interface, _UNPROVEN),
    ]
    at = next(iter(peer.addresses), "")
    if at:
        # Exactly the declared port, and no name of somebody else on it.
        other = _flow(dst=at, dport=1 if vpn.port > 1 else 2, names=(NameSeen(name=_NAME, how="sni"),))
        made.append(Control("another port of the endpoint", other, "contact", _NAME))
        other = _flow(dst=at, protocol="udp", dport=vpn.port, names=(NameSeen(name=_NAME, how="quic"),))
        made.append(Control("another name at the endpoint", other, "contact", _NAME))
    return [entry for entry in made if not _there(entry, seen, vpn)]


def _there(entry: Control[TelemetryObservation], seen: TelemetryObservation, vpn: DeclaredVpn) -> bool:
    """Whether what a control takes away is missing already: it would prove nothing."""
    peers = seen.vpn
    if entry.rule == "vpn-handshake":
        return not any(peer.handshakes for peer in peers)
    if entry.rule == "vpn-interface":
        return vpn.interface not in seen.tunnels
    if entry.rule == "vpn-count":
        return peers[0].datagrams != peers[0].captured
    if entry.rule == "vpn":
        whole = all(None not in (peer.handshakes, peer.datagrams) for peer in peers)
        return not whole or any((peer.endpoint, peer.guest_key) != (vpn.endpoint, vpn.guest_key) for peer in peers)
    return False


def _of_resolver(
    seen: TelemetryObservation, policy: TelemetryPolicy, wanted: DeclaredResolver
) -> list[Control[TelemetryObservation]]:
    peer = seen.resolver[0]
    name = f"{peer.name} on card {peer.card}"
    plain = _query(seen, transport="udp", server=_offered(seen), tunnel=False)
    made = [
        Control("a name in plain text", plain, "plain-dns", _ASKED),
        Control("no resolver was played", _replaced(resolver=()), "resolver", wanted.name, _UNPROVEN),
        Control("no TLS", _resolvers(done=0), "resolver-handshake", wanted.name, _UNPROVEN),
        Control("no count of handshakes", _resolvers(done=None), "resolver", name, _UNPROVEN),
        Control("no count of queries", _resolvers(queries=None), "resolver", name, _UNPROVEN),
        Control("a query not logged", _resolvers(logged=peer.logged - 1), "resolver-count", name, _UNPROVEN),
        Control("a certificate not trusted", _resolvers(refused={_WHY: 1}), "resolver-refused", _WHY, _UNPROVEN),
        Control("no query", _resolvers(foreign={_WHY: 1}), "resolver-request", _WHY),
    ]
    whole = None not in (peer.done, peer.queries) and peer.queries == peer.logged
    return made if whole and peer.done else made[:1]


# -- sabotages ----------------------------------------------------------------------------------------------------


def _flow(**fields: object) -> Sabotage:
    def sabotage(seen: TelemetryObservation) -> TelemetryObservation:
        flow = FlowSeen.model_validate(
            {
                "protocol": "tcp",
                "src": "10.0.2.15",
                "dst": "203.0.113.7",
                "sport": 40000,
                "dport": 443,
                "first": 60.0,
                "last": 60.0,
                "frame": 1,
                "phases": {Phase.IDLE: 1},
                **fields,
            }
        )
        return seen.model_copy(update={"flows": (*seen.flows, flow)})

    return sabotage


def _query(before: TelemetryObservation, **fields: object) -> Sabotage:
    peer = next(iter(before.resolver), None)
    inside = next((card for card in before.cards if card.tunnel and card.resolvers), None)
    server = peer.addresses[0] if peer is not None and peer.addresses else inside.resolvers[0] if inside else ""
    query = QuerySeen.model_validate(
        {
            "name": _ASKED,
            "kind": "A",
            "server": server,
            "transport": peer.kind if peer else "udp",
            "first": 60.0,
            "last": 60.0,
            "frame": 1,
            "phases": {Phase.IDLE: 1},
            **fields,
        }
    )

    def sabotage(seen: TelemetryObservation) -> TelemetryObservation:
        return seen.model_copy(update={"queries": (*seen.queries, query)})

    return sabotage


def _offered(seen: TelemetryObservation) -> str:
    return next((server for card in seen.cards if not card.tunnel for server in card.resolvers), "10.0.2.3")


def _replaced(**changes: object) -> Sabotage:
    return lambda seen: seen.model_copy(update=changes)


def _peers(**changes: object) -> Sabotage:
    return lambda seen: seen.model_copy(update={"vpn": tuple(peer.model_copy(update=changes) for peer in seen.vpn)})


def _resolvers(**changes: object) -> Sabotage:
    return lambda seen: seen.model_copy(
        update={"resolver": tuple(peer.model_copy(update=changes) for peer in seen.resolver)}
    )


def _canaries(**changes: object) -> Sabotage:
    return lambda seen: seen.model_copy(
        update={"canaries": tuple(canary.model_copy(update=changes) for canary in seen.canaries)}
    )


def _without_inside(seen: TelemetryObservation) -> TelemetryObservation:
    return seen.model_copy(update={"cards": tuple(card for card in seen.cards if not card.tunnel)})


def _add_peer(seen: TelemetryObservation) -> TelemetryObservation:
    peer = VpnSeen(
        inside=TUNNELS, endpoint=_NOBODY, guest_key="", addresses=(), handshakes=1, datagrams=1, captured=1
    )
    return seen.model_copy(update={"vpn": (peer,)})


def _add_resolver(seen: TelemetryObservation) -> TelemetryObservation:
    peer = ResolverSeen(kind="dot", name=_NAME, addresses=(), port=853, done=1, queries=1, logged=1)
    return seen.model_copy(update={"resolver": (peer,)})
