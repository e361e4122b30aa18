"""How a sinkhole is to behave: frozen, and JSON both ways, because it crosses into another process."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.network.declared import Resolver, SecureDns, Vpn


class TlsAnswer(StrEnum):
    """What a ClientHello meets."""

    ALERT = "alert"
    COMPLETE = "complete"  # with a certificate of a CA made for this run, which no guest trusts


class Refusal(StrEnum):
    """What a blocked name meets."""

    NXDOMAIN = "nxdomain"
    DROP = "drop"


# What `blocked` may name: the events' own words, or a transport and a port.
BLOCKABLE = (
    *("arp", "dhcp", "dhcpv6", "ra", "dns", "ntp", "icmp", "icmpv6", "tcp", "udp", "ipv4", "ipv6"),
    *("tls", "http", "quic", "wireguard", "openvpn", "dot", "doh", "mdns", "llmnr", "ssdp"),
)
_PORT = re.compile(r"^(?:tcp|udp):(?:[1-9]\d{0,4})$")
_NAME = re.compile(r"^(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$")


@dataclass(frozen=True)
class Misbehaviour:
    """What the internet does wrong. All but `silent` may change while it runs.

    ``blocked``: protocols (`BLOCKABLE`) or ``tcp:443`` that get no answer. ``names``: host names, ``*.example.org``
    with all below; ``refusal`` is what a query for one gets, and TLS or HTTP for one is reset. ``delay_s``: every
    answer is that late.
    """

    silent: bool = False
    delay_s: float = 0.0
    blocked: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    refusal: Refusal = Refusal.NXDOMAIN

    def __post_init__(self) -> None:
        for entry in self.blocked:
            if entry not in BLOCKABLE and not _PORT.match(entry):
                raise UsageError(
                    f"the sinkhole cannot block {entry!r}", remedy=f"one of {', '.join(BLOCKABLE)}, or tcp:PORT"
                )
        for name in self.names:
            if not _NAME.match(name):
                raise UsageError(f"{name!r} is not a host name in lower case", remedy="NAME or *.NAME")
        if not 0.0 <= self.delay_s <= 60.0:
            raise UsageError(f"an answer cannot be {self.delay_s} s late", remedy="0 to 60 s")


@dataclass(frozen=True)
class Probing:
    """What the prober does by itself, from the moment at which the guest has an address: every ``canary_s`` seconds
    it tries some ports that are listed (``boot_ports``, and those of probes.toml) and one that nobody would listen
    on; 0: never.
    ``lose_every``: each n-th of its frames is thrown away, to show that loss is noticed; 0: none.
    """

    canary_s: float = 0.05
    boot_ports: tuple[int, ...] = ()
    lose_every: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.canary_s <= 60.0 or self.lose_every < 0:
            raise UsageError("the prober: canary_s is 0 to 60, lose_every 0 or more")
        if not all(0 < port < 65536 for port in self.boot_ports):
            raise UsageError("the prober: ports are 1 to 65535")


@dataclass(frozen=True)
class Settings:
    """One sinkhole: one network card.

    ``subnet``: the third octet of 10.0.N.0/24 and of 2001:db8:N::/64, so that two cards differ. ``lease_s``: of DHCP;
    renewal comes at half of it. ``capture``: the pcap file that QEMU writes for this card, whose last time stamp is
    the guest's clock; None: the host's own clock is. ``max_log``: bytes of the event log. ``vpn``, ``secure``: the
    VPN peer and the encrypted resolver that the sinkhole is, besides everything else. ``probing``: it tries from
    outside what the guest answers.
    """

    subnet: int = 2
    mac: str = "52:55:0a:00:02:02"
    lease_s: int = 3600
    ipv6: bool = True
    tls: TlsAnswer = TlsAnswer.ALERT
    capture: str | None = None
    max_log: int = 64 << 20
    misbehaviour: Misbehaviour = field(default_factory=Misbehaviour)
    vpn: Vpn | None = None
    secure: Resolver | None = None
    probing: Probing | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.subnet <= 255:
            raise UsageError(f"subnet {self.subnet} is not between 0 and 255")
        if not re.fullmatch(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", self.mac):
            raise UsageError(f"{self.mac!r} is not a MAC address")
        if not 10 <= self.lease_s <= 1 << 31:
            raise UsageError(f"a lease of {self.lease_s} s", remedy="at least 10 s")

    @property
    def hardware(self) -> bytes:
        """The gateway's MAC address."""
        return bytes.fromhex(self.mac.replace(":", ""))

    def ipv4(self, host: int) -> bytes:
        """10.0.N.host."""
        return bytes((10, 0, self.subnet, host))

    @property
    def gateway(self) -> bytes:
        """The IPv4 gateway, which is the DHCP server."""
        return self.ipv4(2)

    @property
    def resolver(self) -> bytes:
        """The IPv4 name server that DHCP announces."""
        return self.ipv4(3)

    @property
    def guest(self) -> bytes:
        """The address that DHCP gives away."""
        return self.ipv4(15)

    @property
    def prefix(self) -> bytes:
        """The first 64 bits of IPv6 addresses here (documentation prefix, RFC 3849)."""
        return b"\x20\x01\x0d\xb8" + self.subnet.to_bytes(2, "big") + b"\0\0"

    @property
    def resolver6(self) -> bytes:
        """The IPv6 name server that RA and DHCPv6 announce."""
        return self.prefix + bytes(7) + b"\x03"

    @property
    def link_local(self) -> bytes:
        """The router's link-local address."""
        return b"\xfe\x80" + bytes(13) + b"\x02"

    def to_json(self) -> str:
        """For the other process; secrets in it."""
        return json.dumps(dataclasses.asdict(self))

    def for_record(self) -> str:
        """For evidence, without secrets."""
        data = dataclasses.asdict(self)
        for key in ("private_key", "preshared_key"):
            if data["vpn"] is not None and data["vpn"][key]:
                data["vpn"][key] = "(not kept)"
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The inverse of `to_json`.

        :raise UsageError: a value that is none.
        """
        data: dict[str, Any] = json.loads(text)
        data["misbehaviour"] = misbehaviour(data["misbehaviour"])
        data["tls"] = TlsAnswer(data["tls"])
        if data["vpn"] is not None:
            lists = {key: tuple(data["vpn"][key]) for key in ("addresses", "resolvers")}
            data["vpn"] = Vpn(**{**data["vpn"], **lists})
        if data["secure"] is not None:
            data["secure"] = Resolver(**{**data["secure"], "kind": SecureDns(data["secure"]["kind"])})
        if data["probing"] is not None:
            data["probing"] = Probing(**{**data["probing"], "boot_ports": tuple(data["probing"]["boot_ports"])})
        return cls(**data)


def misbehaviour(data: dict[str, Any]) -> Misbehaviour:
    """From JSON.

    :raise UsageError: a value that is none.
    """
    return Misbehaviour(
        silent=bool(data["silent"]),
        delay_s=float(data["delay_s"]),
        blocked=tuple(data["blocked"]),
        names=tuple(data["names"]),
        refusal=Refusal(data["refusal"]),
    )
