"""Whether what is declared was there: the VPN's peer was reached, and the encrypted resolver was asked."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_osgates.checks.telemetry.declared import DeclaredResolver, DeclaredVpn
from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import CanarySeen, ResolverSeen, TelemetryObservation, VpnSeen
from pytest_osgates.model import Finding, Severity

_TRUST = (
    "let the guest under test trust the certificate: its authority among the image's (update-ca-certificates(8)),"
    " the right name in it, a validity that covers the guest's clock"
)


def proof_declared(seen: TelemetryObservation, policy: TelemetryPolicy) -> list[Finding]:
    """Everything about the declared VPN and resolver."""
    return [
        *_vpn(seen, policy.vpn),
        *_interfaces(seen, policy.vpn),
        *_resolver(seen, policy.resolver),
        *_marks(seen),
    ]


def unproven(rule: str, subject: str, saw: str, wanted: str, hint: str = "", evidence: str = "") -> Finding:
    """Something without which silence proves nothing."""
    return Finding(
        rule=rule,
        subject=subject,
        seen=saw,
        wanted=wanted,
        hint=hint,
        evidence=evidence,
        severity=Severity.UNPROVEN,
    )


def _vpn(seen: TelemetryObservation, vpn: DeclaredVpn | None) -> Iterator[Finding]:
    if vpn is None:
        if seen.vpn:
            yield unproven(
                *("vpn", seen.vpn[0].endpoint, "a peer was played that the profile does not declare", "the same"),
                "observe again with this profile",
            )
        return
    peers = [peer for peer in seen.vpn if (peer.endpoint, peer.guest_key) == (vpn.endpoint, vpn.guest_key)]
    if not peers or len(peers) < len(seen.vpn):
        yield unproven(
            *("vpn", vpn.endpoint, "the peer that the profile declares was not played", "its endpoint and keys"),
            "observe again with this profile",
        )
        return
    if not sum(peer.handshakes or 0 for peer in peers):
        said = next((why for peer in peers for why in peer.refused), "")
        came = sum(peer.datagrams or 0 for peer in peers)
        yield unproven(
            "vpn-handshake",
            vpn.endpoint,
            f"no handshake was completed; {came} datagrams came" + (f": {said}" if said else ""),
            "a tunnel that is up",
            "give the image under test the peer's public key, the endpoint and its own private key as declared",
        )
    for peer in peers:
        yield from _peer(seen, peer)


def _peer(seen: TelemetryObservation, peer: VpnSeen) -> Iterator[Finding]:
    name = f"{peer.endpoint} on card {peer.card}"
    inside = [card for card in seen.cards if card.tunnel and card.index == peer.inside]
    if len(inside) != 1:
        yield unproven("vpn", name, "what went through the tunnel was not kept", "a capture of it")
    if peer.handshakes is None or peer.datagrams is None:
        yield unproven("vpn", name, "the sinkhole did not say what came", "its count")
    elif peer.datagrams != peer.captured:
        yield unproven(
            *("vpn-count", name, f"{peer.datagrams} datagrams came, {peer.captured} were captured", "the same"),
        )
    for why, count in sorted(peer.refused.items()):
        yield Finding(
            rule="vpn-datagram",
            subject=why,
            seen=f"{count} datagrams to {name}",
            wanted="nothing to the endpoint but what its peer can authenticate",
            hint="something else than the declared VPN sends there, or with other keys",
        )


def _interfaces(seen: TelemetryObservation, vpn: DeclaredVpn | None) -> Iterator[Finding]:
    for name in seen.tunnels:
        if vpn is None or name != vpn.interface:
            yield unproven(
                *("tunnel", name, "what goes through it was not seen", "traffic seen before it is encrypted"),
                "" if vpn is None else f"the declared one is {vpn.interface}",
            )
    if vpn is not None and vpn.interface not in seen.tunnels:
        yield unproven(
            *("vpn-interface", vpn.interface, "the guest has no tunnel of this name", "the declared interface"),
            f"its tunnels: {', '.join(seen.tunnels) or 'none'}",
        )


def _resolver(seen: TelemetryObservation, wanted: DeclaredResolver | None) -> Iterator[Finding]:
    if wanted is None:
        if seen.resolver:
            yield unproven(
                "resolver", seen.resolver[0].name, "was played, and the profile does not declare it", "the same"
            )
        return
    same = [
        peer
        for peer in seen.resolver
        if (peer.kind, peer.name, peer.port) == (wanted.kind, wanted.name, wanted.asked_at)
    ]
    if not same or len(same) < len(seen.resolver):
        yield unproven(
            *("resolver", wanted.name, "the resolver that the profile declares was not played", "its name and kind"),
            "observe again with this profile",
        )
        return
    if not sum(peer.done or 0 for peer in same):
        yield unproven(
            *("resolver-handshake", wanted.name, "no TLS connection to it was made", "one that the guest accepts"),
            _TRUST,
        )
    for peer in same:
        yield from _answers(peer)


def _answers(peer: ResolverSeen) -> Iterator[Finding]:
    name = f"{peer.name} on card {peer.card}"
    if peer.done is None or peer.queries is None:
        yield unproven("resolver", name, "the sinkhole did not say what it was asked", "its count")
    elif peer.queries != peer.logged:
        yield unproven("resolver-count", name, f"{peer.queries} queries, {peer.logged} in its log", "the same")
    for why, count in sorted(peer.refused.items()):
        yield unproven(
            *("resolver-refused", why, f"{count} TLS handshakes with {name} were broken off", "handshakes done"),
            _TRUST,
        )
    for what, count in sorted(peer.foreign.items()):
        yield Finding(
            rule="resolver-request",
            subject=what,
            seen=f"{count} times to {name}",
            wanted="queries, and nothing else",
            hint="something else than the declared resolver's client talks to it",
        )


def _marks(seen: TelemetryObservation) -> Iterator[Finding]:
    """What says of itself that it went another way than the card on which it was."""
    kinds = {card.index: card.tunnel for card in seen.cards}
    placed = {(flow.card, flow.tunnel) for flow in seen.flows}
    placed |= {(query.card, query.tunnel) for query in seen.queries}
    for index, tunnel in sorted(placed):
        if kinds.get(index, tunnel) != tunnel:
            yield unproven(
                *("way", f"card {index}", "what was inside and outside of a tunnel is mixed up", "one of both")
            )


def missing_ways(canary: CanarySeen, policy: TelemetryPolicy) -> Iterator[str]:
    """Which declared way a canary did not take."""
    if policy.vpn is not None and canary.datagram and not canary.tunnel:
        yield "it did not go through the declared VPN"
    if policy.names != "dns" or not canary.query:
        return
    ways = [way.rpartition(" ") for way in canary.ways]
    if policy.vpn is not None and not any(inside for inside, _, _ in ways):
        yield "its name was not asked for through the declared VPN"
    elif policy.resolver is not None and not any(
        transport == policy.resolver.kind and (inside or policy.vpn is None) for inside, _, transport in ways
    ):
        yield "its name was not asked of the declared resolver"
