"""From what the profile declares to what a sinkhole is told: keys out of the files beside the profile."""

from __future__ import annotations

from pathlib import Path

from pytest_osgates.checks.telemetry.declared import read_key
from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.network.declared import Resolver, SecureDns, Vpn


def vpn_of(policy: TelemetryPolicy, directory: Path) -> Vpn | None:
    """The peer, if one is declared; files are below `directory`, where the profile is.

    :raise UsageError: a key cannot be read any more.
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
