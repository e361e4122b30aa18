"""What a profile declares on the network, with keys given for the test, so that the sinkhole can play it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class SecureDns(StrEnum):
    """How a resolver is asked."""

    DOT = "dot"  # RFC 7858
    DOH = "doh"  # RFC 8484


@dataclass(frozen=True)
class Vpn:
    """A WireGuard peer. ``host``: the name, or the address, that the guest dials; keys in base64.

    ``addresses``: of the peer inside the tunnel, its resolvers among them. `repr` shows no secret.
    """

    host: str
    port: int
    private_key: str = field(repr=False)
    guest_key: str
    preshared_key: str = field(default="", repr=False)
    addresses: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resolver:
    """A resolver that is asked over TLS. ``name``: that its certificate holds; ``address``: where it is asked, empty:
    wherever its name leads. ``path``: of DoH. ``certificate``, ``key``: PEM files.
    """

    kind: SecureDns
    name: str
    address: str
    port: int
    path: str
    certificate: str
    key: str
