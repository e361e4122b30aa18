"""Who stands behind a name or an address, out of ``data/vendors.toml``; and which names belong together."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import cache

from publicsuffixlist import PublicSuffixList

from pytest_osgates.data import load

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Vendor:
    """A label, and what it was known by: the suffix or the range."""

    name: str
    by: str
    analytics: bool = False


@cache
def _tables() -> tuple[dict[str, Vendor], tuple[tuple[Network, Vendor], ...]]:
    domains: dict[str, Vendor] = {}
    ranges: list[tuple[Network, Vendor]] = []
    for row in load("vendors")["vendor"]:
        analytics = bool(row.get("analytics", False))
        for domain in row["domains"]:
            # What several share belongs to the first that names it.
            domains.setdefault(domain, Vendor(row["name"], domain, analytics))
        for text in row.get("ranges", ()):
            ranges.append((ipaddress.ip_network(text), Vendor(row["name"], text, analytics)))
    # The narrowest range says most.
    return domains, tuple(sorted(ranges, key=lambda pair: -pair[0].prefixlen))


@cache
def of_name(name: str) -> Vendor | None:
    """The vendor of a host name, by its longest known suffix; None if it is nobody's here."""
    domains, _ = _tables()
    while name:
        if name in domains:
            return domains[name]
        name = name.partition(".")[2]
    return None


@cache
def of_address(text: str) -> Vendor | None:
    """The vendor of an address; None if it is nobody's here, or no address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return next((vendor for network, vendor in _tables()[1] if address in network), None)


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=True)


@cache
def registered(name: str) -> str:
    """The domain that somebody registered, of which `name` is a part (publicsuffix.org); `name` itself if none."""
    return _suffixes().privatesuffix(name) or name
