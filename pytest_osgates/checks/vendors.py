"""Who stands behind a name or an address, out of ``data/vendors.toml``; and which names belong together."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Self

from publicsuffixlist import PublicSuffixList
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pytest_osgates.data import load

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Copy(_Model):
    """Where ranges were read. ``of``: what was published; ``at``: the copy; ``as_of``: its own date, or empty."""

    of: str = Field(min_length=1)
    at: str = Field(min_length=1)
    as_of: str

    @field_validator("as_of")
    @classmethod
    def _date(cls, text: str) -> str:
        if text:
            date.fromisoformat(text)
        return text


class Row(_Model):
    """One vendor of the table: see its head for the fields.

    :raise ValueError: ranges without a copy that they were read in, ranges that are no networks or not public.
    """

    name: str = Field(min_length=1)
    domains: tuple[str, ...] = Field(min_length=1)
    national: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    copies: tuple[Copy, ...] = ()
    analytics: bool = False

    @model_validator(mode="after")
    def _supported(self) -> Self:
        for text in (*self.ranges, *self.unchecked):
            if not ipaddress.ip_network(text).is_global:
                raise ValueError(f"{self.name}: {text} is no public range")
        if bool(self.ranges) != bool(self.copies):
            raise ValueError(f"{self.name}: `ranges` need the `copies` that they were read in; else `unchecked`")
        for domain in (*self.domains, *self.national):
            if not domain or domain != domain.lower().strip("."):
                raise ValueError(f"{self.name}: {domain!r} is no name in lower case")
        return self


@dataclass(frozen=True)
class Vendor:
    """A label, and what it was known by: the suffix or the range, and whether anything published confirms a range."""

    name: str
    by: str
    analytics: bool = False
    checked: bool = True


@dataclass(frozen=True)
class _Tables:
    """``ranges``: by version and prefix length, narrowest first, the vendor of each network's first address."""

    domains: dict[str, Vendor]
    national: dict[str, Vendor]
    ranges: tuple[tuple[int, int, dict[int, Vendor]], ...]


@cache
def rows() -> tuple[Row, ...]:
    """The table, validated.

    :raise pydantic.ValidationError: it is not in order.
    """
    return tuple(Row.model_validate(row) for row in load("vendors")["vendor"])


@cache
def _tables() -> _Tables:
    domains: dict[str, Vendor] = {}
    national: dict[str, Vendor] = {}
    ranges: dict[tuple[int, int], dict[int, Vendor]] = {}
    for row in rows():
        for domain in row.domains:
            domains[domain] = Vendor(row.name, domain, row.analytics)
        for label in row.national:
            national[label] = Vendor(row.name, f"{label} under a country's code", row.analytics)
        # A range that something confirms wins over the same range that nothing does.
        for checked, texts in ((False, row.unchecked), (True, row.ranges)):
            for text in texts:
                network = ipaddress.ip_network(text)
                by = text if checked else f"{text} (unchecked: no published list that was read confirms it)"
                of_length = ranges.setdefault((network.version, network.prefixlen), {})
                of_length[int(network.network_address)] = Vendor(row.name, by, row.analytics, checked)
    # The narrowest range says most.
    ordered = sorted(ranges.items(), key=lambda item: -item[0][1])
    return _Tables(domains, national, tuple((version, length, found) for (version, length), found in ordered))


@cache
def of_name(name: str) -> Vendor | None:
    """The vendor of a host name, by its longest known suffix; None if it is nobody's here."""
    name = name.lower().rstrip(".")
    tables = _tables()
    rest = name
    while rest:
        if rest in tables.domains:
            return tables.domains[rest]
        rest = rest.partition(".")[2]
    if tables.national.keys().isdisjoint(name.split(".")):
        return None
    label, _, suffix = registered(name).partition(".")
    # google.de, google.co.uk: the code of a country has two letters (ISO 3166, RFC 1591).
    return tables.national.get(label) if len(suffix.rpartition(".")[2]) == 2 else None


@cache
def of_address(text: str) -> Vendor | None:
    """The vendor of an address, also of one in a translated address; None if it is nobody's here, or no address."""
    try:
        address = _behind(ipaddress.ip_address(text))
    except ValueError:
        return None
    number = int(address)
    for version, length, found in _tables().ranges:
        if version == address.version:
            host_bits = address.max_prefixlen - length
            vendor = found.get(number >> host_bits << host_bits)
            if vendor is not None:
                return vendor
    return None


def _behind(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for: mapped, 6to4 (RFC 3056) or translated (RFC 6052)."""
    if address.version == 4:
        return address
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=True)


@cache
def registered(name: str) -> str:
    """The domain that somebody registered, of which `name` is a part (publicsuffix.org); `name` itself if none."""
    return _suffixes().privatesuffix(name) or name
