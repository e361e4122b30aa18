"""``[gate.telemetry]`` of a distro profile."""

from __future__ import annotations

import ipaddress
import re
from functools import cache
from typing import Annotated, Literal

from publicsuffixlist import PublicSuffixList
from pydantic import AfterValidator, Field, model_validator

from pytest_osgates.checks.telemetry.declared import DeclaredResolver, DeclaredVpn
from pytest_osgates.checks.telemetry.seen import Phase
from pytest_osgates.model import Acceptance, Policy

_NAME = re.compile(r"^(?:\*\.)?(?:[a-z0-9_-]+\.)*[a-z0-9_-]+$")
_LEAST = {4: 16, 6: 32}
_SERVICE = re.compile(r"^(?:(?:tcp|udp):[1-9]\d{0,4}|dns|icmp|icmpv6|igmp|gre|esp|sctp|6in4)$")


def _name(text: str) -> str:
    if text and not _NAME.match(text):
        raise ValueError("a host name in lower case, or *.NAME")
    if text.startswith("*.") and _suffixes().publicsuffix(text[2:]) == text[2:]:
        raise ValueError(f"below {text[2:]} anybody can have a name: name a domain that somebody registered")
    return text


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False)


def _address(text: str) -> str:
    if text:
        network = ipaddress.ip_network(text)
        least = _LEAST[network.version]
        if network.prefixlen < least:
            raise ValueError(f"a range of at most /{least}: more than that is whoever is there")
    return text


def _service(text: str) -> str:
    if not _SERVICE.match(text):
        raise ValueError("tcp:PORT, udp:PORT, dns, icmp or icmpv6")
    return text


class Allowed(Acceptance):
    """A contact that may be. Either ``name`` (with ``*.`` for all below, too) or ``address`` (one, or a range).

    ``services``: by which it may be reached; asking for the name is always part of it. ``phases``: when.
    ``outside_tunnel``: beside a declared VPN, too; without it, only through it.
    """

    name: Annotated[str, AfterValidator(_name)] = ""
    address: Annotated[str, AfterValidator(_address)] = ""
    services: tuple[Annotated[str, AfterValidator(_service)], ...] = Field(min_length=1)
    phases: tuple[Phase, ...] = (Phase.BOOT, Phase.IDLE, Phase.END)
    outside_tunnel: bool = False

    @model_validator(mode="after")
    def _one(self) -> Allowed:
        if bool(self.name) == bool(self.address):
            raise ValueError("either name or address")
        return self

    @property
    def subject(self) -> str:
        """By which findings call it."""
        return self.name or self.address

    def covers_name(self, name: str) -> bool:
        """Whether it is about `name`."""
        if not self.name:
            return False
        return name == self.name.removeprefix("*.") or (self.name[0] == "*" and name.endswith(self.name[1:]))

    def covers_address(self, text: str) -> bool:
        """Whether it is about an address without a name."""
        if not self.address:
            return False
        network = ipaddress.ip_network(self.address)
        address = ipaddress.ip_address(text)
        return address.version == network.version and address in network


class AllowedIdentifier(Acceptance):
    """Something that may be told on the link: ``dhcp-host-name``, ``dhcp-client-id``, ...; ``value``: exactly this,
    with ``*`` at its end anything that begins so.
    """

    kind: str
    value: str

    def covers(self, kind: str, value: str) -> bool:
        """Whether it is about this."""
        if kind != self.kind:
            return False
        return value.startswith(self.value[:-1]) if self.value.endswith("*") else value == self.value


class TelemetryPolicy(Policy):
    """``[gate.telemetry]``.

    ``idle_s``: how long the machine must have been watched after its boot, guest seconds. ``names``: how its programs
    look names up: ``dns``, then canaries must be seen asking; ``none``: this system looks up no names (with
    ``names_reason``). ``random_mac``: the card's own MAC address must not be used. ``cards``: how many network cards.
    ``vpn``, ``resolver``: what the sinkhole plays, with keys given for the test. ``tls``: what a TLS client meets, an
    alert or a server whose certificate nobody vouches for.
    """

    idle_s: float = Field(default=1800.0, ge=5.0, le=30 * 86400.0)
    names: Literal["dns", "none"] = "dns"
    names_reason: str = ""
    random_mac: bool = False
    cards: int = Field(default=1, ge=1, le=8)
    allow: tuple[Allowed, ...] = ()
    allow_identifier: tuple[AllowedIdentifier, ...] = ()
    vpn: DeclaredVpn | None = None
    resolver: DeclaredResolver | None = None
    tls: Literal["alert", "complete"] = "alert"

    @model_validator(mode="after")
    def _reason(self) -> TelemetryPolicy:
        if self.vpn is None and any(entry.outside_tunnel for entry in self.allow):
            raise ValueError("outside_tunnel means something only beside a declared [gate.telemetry.vpn]")
        if self.vpn is not None and not self.vpn.dns and self.resolver is None and self.names == "dns":
            raise ValueError(
                "vpn.dns is empty and no resolver is declared: nobody could be asked for names inside the tunnel"
            )
        if self.resolver is not None and self.names == "none":
            raise ValueError('names = "none" and a resolver contradict each other')
        if self.names == "none" and not self.names_reason.strip():
            raise ValueError('names = "none" needs a names_reason: a system that asks nobody is silent for a reason')
        return self
