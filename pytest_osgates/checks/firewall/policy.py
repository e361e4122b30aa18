"""``[gate.firewall]`` of a distro profile."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pytest_osgates.checks.firewall.rules import Family
from pytest_osgates.checks.firewall.seen import Origin
from pytest_osgates.checks.firewall.words import protocol_number
from pytest_osgates.model import Acceptance, Policy

Port = Annotated[int, Field(ge=1, le=65535)]
Protocol = Literal["tcp", "udp", "icmp", "icmpv6", "other"]


class Allowed(Acceptance):
    """``[[gate.firewall.allowed]]``: what may answer. ``ports`` of TCP or UDP, ``kinds`` of ICMP and other protocols
    (the names in vm/network/probes.toml), or protocols that a rule lets in (``other``: by its name in
    /etc/protocols, or its number); in a family, from the link or from beyond the gateway, or both."""

    protocol: Protocol
    ports: tuple[Port, ...] = ()
    kinds: tuple[str, ...] = ()
    family: Literal["ipv4", "ipv6", "any"] = "any"
    origin: Literal["link", "beyond", "any"] = "any"

    @model_validator(mode="after")
    def _either(self) -> Allowed:
        ports = self.protocol in ("tcp", "udp")
        if bool(self.ports) is not ports or bool(self.kinds) is ports:
            raise ValueError("ports for tcp and udp, kinds for icmp, icmpv6 and other")
        return self

    def covers(self, protocol: str, what: int | str, family: Family, origin: Origin) -> bool:
        """Whether it is about this."""
        return (
            protocol == self.protocol
            and (what in (self.ports if isinstance(what, int) else self.kinds) or self._spells(what))
            and self.family in (family, "any")
            and self.origin in (origin, "any")
        )

    def _spells(self, what: int | str) -> bool:
        """Whether a protocol is named otherwise here: by its number, or another name."""
        if self.protocol != "other" or isinstance(what, int) or protocol_number(what) is None:
            return False
        return protocol_number(what) in {protocol_number(kind) for kind in self.kinds}


class FirewallPolicy(Policy):
    """``[gate.firewall]``. ``families``: those that the machine has; another one must have no address. ``origins``:
    from where it is tried. ``closed_answers``: whether a closed port may say so. ``chain_policy``: ``drop``: that of
    every base chain for input; ``any``: a last rule that drops or rejects everything will do. ``boot_ports``: tried
    while it boots, besides those of vm/network/probes.toml. ``boot_probes``: how many must have been taken by then.
    """

    families: tuple[Family, ...] = Field(default=("ipv4", "ipv6"), min_length=1)
    origins: tuple[Origin, ...] = Field(default=("link", "beyond"), min_length=1)
    closed_answers: Literal["silent", "refused"] = "silent"
    chain_policy: Literal["drop", "any"] = "any"
    allowed: tuple[Allowed, ...] = ()
    boot_ports: tuple[Port, ...] = ()
    boot_probes: int = Field(default=20, ge=1, le=100_000)

    def allows(self, protocol: str, what: int | str, family: Family, origin: Origin) -> Allowed | None:
        """The entry that does; one with a reason, if there is one. Without a reason it allows nothing: `documented`
        is to be asked by whoever leaves a finding out."""
        found = [entry for entry in self.allowed if entry.covers(protocol, what, family, origin)]
        return next((entry for entry in found if entry.documented), next(iter(found), None))

    def documented(self, protocol: str, what: int | str, family: Family, origin: Origin) -> bool:
        """Whether an entry that has a reason allows it."""
        entry = self.allows(protocol, what, family, origin)
        return entry is not None and entry.documented
