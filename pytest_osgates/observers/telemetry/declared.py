"""What the profile declares: what a sinkhole is told of it, and what it told of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_osgates.checks.telemetry.declared import endpoint_text, read_key
from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import TUNNELS, FlowSeen, ResolverSeen, VpnSeen
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.network.declared import Resolver, SecureDns, Vpn
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.network.wireguard import decode_key

if TYPE_CHECKING:
    from pytest_osgates.observers.telemetry.build import Card


def vpn_of(policy: TelemetryPolicy, directory: Path) -> Vpn | None:
    """The peer, if one is declared; files are below `directory`, where the profile is.

    :raise UsageError: a key cannot be read any more, or the guest's was given for the peer's.
    """
    vpn = policy.vpn
    if vpn is None:
        return None
    try:
        private = vpn.private_key or read_key(directory, vpn.private_key_file)
        shared = vpn.preshared_key or (read_key(directory, vpn.preshared_key_file) if vpn.preshared_key_file else "")
    except ValueError as error:
        raise UsageError(
            f"[gate.telemetry.vpn]: {error}", remedy="leave the profile's files while it runs"
        ) from error
    # Not before: what makes keys is imported only where it is needed.
    from pytest_osgates.vm.network.wireguard_peer import public_key

    if public_key(decode_key(private)) == decode_key(vpn.guest_key):
        raise UsageError(
            "[gate.telemetry.vpn]: the private key belongs to guest_key, so it is the guest's own",
            remedy="give the peer's private key; the guest keeps its own, of which guest_key is the public one",
        )
    return Vpn(
        host=vpn.host,
        port=vpn.port,
        private_key=private,
        guest_key=vpn.guest_key,
        preshared_key=shared,
        addresses=vpn.addresses,
        resolvers=vpn.dns,
    )


def resolver_of(policy: TelemetryPolicy, directory: Path) -> Resolver | None:
    """The encrypted resolver, if one is declared."""
    wanted = policy.resolver
    if wanted is None:
        return None
    return Resolver(
        kind=SecureDns(wanted.kind),
        name=wanted.name,
        address=wanted.address,
        port=wanted.asked_at,
        path=wanted.path,
        certificate=str(directory / wanted.certificate),
        key=str(directory / wanted.key),
    )


def inside_of(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Addresses and resolvers of the peer inside a tunnel."""
    vpn = settings.vpn
    return ((*vpn.addresses, *vpn.resolvers), vpn.resolvers) if vpn is not None else ((), ())


def vpn_seen(card: Card, flows: Sequence[FlowSeen]) -> list[VpnSeen]:
    """The VPN peer that was played on `card`, if one was; `flows` are those of the captures."""
    vpn, told = card.settings.vpn, (card.stats or {}).get("vpn") or {}
    if vpn is None:
        return []
    addresses = tuple(map(str, told.get("addresses", ())))
    captured = sum(
        flow.packets_out
        for flow in flows
        if (flow.card, flow.protocol, flow.dport) == (card.index, "udp", vpn.port) and flow.dst in addresses
    )
    return [
        VpnSeen(
            card=card.index,
            inside=TUNNELS + card.index,
            endpoint=endpoint_text(vpn.host, vpn.port),
            guest_key=vpn.guest_key,
            addresses=addresses,
            handshakes=told.get("handshakes"),
            datagrams=told.get("datagrams"),
            captured=captured,
            refused=told.get("refused") or {},
        )
    ]


def resolver_seen(card: Card, logged: int) -> list[ResolverSeen]:
    """The resolver that was played on `card`, if one was. `logged`: queries in its logs."""
    wanted, told = card.settings.secure, (card.stats or {}).get("secure") or {}
    if wanted is None:
        return []
    return [
        ResolverSeen(
            card=card.index,
            kind=str(wanted.kind),
            name=wanted.name,
            addresses=tuple(map(str, told.get("addresses", ()))),
            port=wanted.port,
            done=told.get("done"),
            queries=told.get("queries"),
            logged=logged,
            refused=told.get("refused") or {},
            foreign=told.get("foreign") or {},
        )
    ]
