"""By which way something went: through the declared VPN, to the declared resolver, or as if there was neither."""

from __future__ import annotations

from pytest_osgates.checks.telemetry.declared import DeclaredResolver, DeclaredVpn
from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import (
    DISPUTED,
    TUNNELS,
    FlowSeen,
    QuerySeen,
    ResolverSeen,
    TelemetryObservation,
)

ENCRYPTED = frozenset({"dot", "doh"})
_SAID = frozenset({"sni", "host", "quic"})


def query_as_declared(query: QuerySeen, seen: TelemetryObservation) -> bool:
    """Whether a query took the way that was declared for all of them."""
    return (query.tunnel or not seen.vpn) and (query.transport in ENCRYPTED or not seen.resolver)


def flow_as_declared(flow: FlowSeen, seen: TelemetryObservation) -> bool:
    """Whether a flow went through the VPN, where there is one."""
    return flow.tunnel or not seen.vpn


def is_vpn(flow: FlowSeen, seen: TelemetryObservation, vpn: DeclaredVpn | None) -> bool:
    """Whether a flow is the declared VPN's own: to exactly its endpoint. Its peer counts what is not true."""
    return (
        vpn is not None
        and not flow.tunnel
        and (flow.protocol, flow.dport) == ("udp", vpn.port)
        and not _said(flow)
        and DISPUTED not in flow.notes
        and any(
            flow.card == peer.card and peer.endpoint == vpn.endpoint and flow.dst in peer.addresses
            for peer in seen.vpn
        )
    )


def is_resolver(flow: FlowSeen, seen: TelemetryObservation, policy: TelemetryPolicy) -> bool:
    """Whether a flow is to the declared resolver, by the declared way."""
    wanted = policy.resolver
    return (
        wanted is not None
        and (flow.protocol, flow.dport) == ("tcp", wanted.asked_at)
        and (flow.tunnel or policy.vpn is None)
        and _said(flow) <= {wanted.name}
        and DISPUTED not in flow.notes
        and any(_same(peer, flow, wanted) and flow.dst in peer.addresses for peer in seen.resolver)
    )


def _same(peer: ResolverSeen, entry: FlowSeen | QuerySeen, wanted: DeclaredResolver) -> bool:
    """Whether a resolver is the declared one, and was played on the card on which the entry was, or in its tunnel."""
    card = entry.card - TUNNELS if entry.tunnel else entry.card
    return (peer.name, peer.kind, peer.card) == (wanted.name, wanted.kind, card)


def _said(flow: FlowSeen) -> set[str]:
    return {entry.name for entry in flow.names if entry.how in _SAID}


def leads_to_declared(query: QuerySeen, policy: TelemetryPolicy) -> bool:
    """Whether it asks for the name of the VPN's endpoint or of the resolver: that must be, before either is there."""
    hosts = {policy.vpn.host} if policy.vpn is not None else set()
    if policy.resolver is not None and (policy.vpn is None or query.tunnel):
        hosts.add(policy.resolver.name)
    return query.name in hosts


def is_offered(query: QuerySeen, seen: TelemetryObservation, policy: TelemetryPolicy) -> bool:
    """Whether it was asked where names are to be asked: of the network's own resolver, or of the declared one."""
    own = {server for card in seen.cards if card.tunnel == query.tunnel for server in card.resolvers}
    plain = query.transport not in ENCRYPTED and query.server in own
    if policy.resolver is None or leads_to_declared(query, policy):
        return plain or (policy.resolver is not None and _secure(query, seen, policy.resolver))
    return _secure(query, seen, policy.resolver)


def _secure(query: QuerySeen, seen: TelemetryObservation, wanted: DeclaredResolver) -> bool:
    return query.transport in ENCRYPTED and any(
        _same(peer, query, wanted) and query.server in peer.addresses for peer in seen.resolver
    )
