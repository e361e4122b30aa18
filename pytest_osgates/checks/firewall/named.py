"""What the rules of a ruleset speak of, and of which of them nobody can say what they let in. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pytest_osgates.checks.firewall.rules import (
    LETS,
    PROTOCOLS,
    Chain,
    Family,
    Packet,
    Reader,
    Rule,
    Ruleset,
    base_chains,
    is_readable,
)
from pytest_osgates.checks.firewall.words import (
    EXTENSIONS,
    address_ends,
    port_ends,
    protocol_ends,
    protocol_name,
    protocol_number,
)

# Protocols that no sweep asks about, and that a kernel gives to programs or tunnels.
OTHERS = ("ah", "dccp", "esp", "gre", "sctp", "udplite")
# Those that are swept.
_SWEPT = frozenset({1, 6, 17, 58})
# Numbers for one that no rule names: those for experiments come first (RFC 3692).
_FREE = (253, 254, *range(252, 143, -1))
EVERYBODY = "255.255.255.255"
# More than these are not asked about one by one.
MAX_PORTS = 4096
MAX_ADDRESSES = 64
# Of the card alone: they hold tomorrow, and of the next packet, as they do of this one.
_STEADY = frozenset(
    f"meta {word}"
    for word in ("iiftype", "iifgroup", "iifkind", "ibrname", "ibrvproto", "ibrpvid", "sdif", "sdifname")
)


def _values(ruleset: Ruleset, keys: set[str]) -> Iterator[str]:
    """That rules compare one of these with."""
    for chain in ruleset.chains:
        for rule in chain.rules:
            for match in rule.matches:
                yield from match.values if match.key in keys else ()
            for branch in rule.branches if rule.key in keys else ():
                yield from branch.values


def _ranges(ruleset: Ruleset, protocol: str) -> Iterator[tuple[int, int]]:
    """Of ports that rules speak of."""
    for value in _values(ruleset, {f"{protocol} dport", "th dport"}):
        ends = port_ends(value)
        if ends is not None:
            yield ends


def named_ports(ruleset: Ruleset, protocol: str) -> tuple[tuple[int, int], ...]:
    """Ranges of ports that rules speak of."""
    found = {(max(first, 1), last) for first, last in _ranges(ruleset, protocol) if first <= last < 65536 and last}
    return tuple(sorted(found))


def unnamed_port(ruleset: Ruleset, protocol: str) -> int:
    """One that no rule speaks of, but for ranges that leave none out."""
    port = 1
    for first, last in sorted(_ranges(ruleset, protocol)):
        if first > port:
            break
        port = max(port, last + 1)
    return port if port < 65536 else 47001


def _addresses(ruleset: Ruleset, family: Family) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Ends of what rules speak of as a packet's target."""
    for value in _values(ruleset, {"ip daddr" if family == "ipv4" else "ip6 daddr"}):
        for end in dict.fromkeys(address_ends(value) or ()):
            address = ipaddress.ip_address(end)
            if (address.version == 6) == (family == "ipv6"):
                yield address


def named_groups(ruleset: Ruleset, family: Family) -> tuple[str, ...]:
    """Addresses of groups, and that of everybody, that rules speak of as a packet's target."""
    found = (one for one in _addresses(ruleset, family) if one.is_multicast or str(one) == EVERYBODY)
    return tuple(dict.fromkeys(map(str, found)))


def is_host(address: str) -> bool:
    """Whether it may be one machine's, that others reach."""
    one = ipaddress.ip_address(address)
    return not (one.is_multicast or one.is_loopback or one.is_unspecified or address == EVERYBODY)


def named_hosts(ruleset: Ruleset, family: Family) -> tuple[str, ...]:
    """Other addresses that rules speak of as a packet's target: those of machines, and of a network its ends."""
    return tuple(dict.fromkeys(str(one) for one in _addresses(ruleset, family) if is_host(str(one))))


def named_protocols(ruleset: Ruleset, family: Family) -> tuple[str, ...]:
    """Those that a kernel gives to programs, those that rules speak of, and one that none speaks of; without those
    that are swept, and of IPv6 without the headers that come before a protocol's."""
    spans = {ends for value in _values(ruleset, set(PROTOCOLS)) if (ends := protocol_ends(value)) is not None}
    numbers = [number for name in OTHERS if (number := protocol_number(name)) is not None]
    # Of a range another rule may have taken the ends.
    inner = {one for first, last in spans for one in (first, first + 1, last - 1, last) if first <= one <= last}
    numbers += sorted(inner)
    free = (one for one in _FREE if not any(first <= one <= last for first, last in spans))
    numbers += [one for one in (next(free, None),) if one is not None]
    left_out = _SWEPT | (frozenset({*EXTENSIONS, 59}) if family == "ipv6" else frozenset())
    return tuple(dict.fromkeys(protocol_name(one) for one in numbers if one not in left_out))


def reached(ruleset: Ruleset, family: Family, interface: str = "") -> list[Chain]:
    """Chains that an incoming packet may pass: base chains, and where they jump to."""
    known = {(chain.family, chain.table, chain.name): chain for chain in ruleset.chains}
    found = {(one.family, one.table, one.name): one for one in base_chains(ruleset, family, interface)}
    open_ends = list(found.values())
    while open_ends:
        chain = open_ends.pop()
        for target in {branch.target for rule in chain.rules for branch in rule.branches if branch.target}:
            key = (chain.family, chain.table, target)
            if key in known and key not in found:
                found[key] = known[key]
                open_ends.append(known[key])
    return [chain for chain in ruleset.chains if (chain.family, chain.table, chain.name) in found]


@dataclass(frozen=True)
class Opaque:
    """A rule in the way of what comes in that is not understood, and that could let something in: ``ports`` of UDP,
    ``segments``: those of TCP, each as ranges, and ``others``: protocols. ``segments`` are none where the answers of
    all ports tell what it lets in: it asks for nothing that another packet, or tomorrow, changes."""

    text: str
    ports: tuple[tuple[int, int], ...]
    segments: tuple[tuple[int, int], ...] = ()
    others: tuple[str, ...] = ()


def not_understood(ruleset: Ruleset, family: Family, interface: str) -> Iterator[Opaque]:
    """Such rules."""
    chains = reached(ruleset, family, interface)
    untracked = any(rule.untracks for chain in chains for rule in chain.rules)
    protocols = ("udp", "tcp", *named_protocols(ruleset, family))
    readers = {
        protocol: Reader(ruleset, Packet(family, protocol, 0, "", interface), None, untracked=untracked)
        for protocol in protocols
    }
    for chain in chains:
        for rule in chain.rules:
            unread = set(_unread(rule))
            lets = [branch for branch in rule.branches if branch.action in LETS]
            queued = any(branch.action == "queue" for branch in lets)
            if ((unread or queued) and (lets or rule.untracks)) or rule.expects:
                ports = {protocol: tuple(reader.lets(chain, rule)) for protocol, reader in readers.items()}
                steady = not queued and not rule.expects and unread <= _STEADY
                yield Opaque(
                    text=f"{chain.subject}: {rule.text}",
                    ports=ports["udp"],
                    segments=() if steady else ports["tcp"],
                    others=tuple(one for one in protocols[2:] if ports[one]),
                )


def _unread(rule: Rule) -> Iterator[str]:
    """Keys of its conditions that are not understood."""
    for match in rule.matches:
        if not is_readable(match.key, match.values):
            yield match.key
    if rule.key and not is_readable(rule.key, tuple(value for one in rule.branches for value in one.values)):
        yield rule.key


def elsewhere(ruleset: Ruleset, family: Family, packets: Iterable[Packet]) -> tuple[str, ...]:
    """Rules that let in TCP or UDP, but from other sources or cards than those of these packets of a family."""
    found: dict[str, bool] = {}
    known = list(dict.fromkeys((packet.source, packet.interface) for packet in packets))
    for protocol in ("tcp", "udp"):
        kept_out: dict[str, bool] = {}
        for source, interface in known:
            reader = Reader(ruleset, Packet(family, protocol, 0, source, interface), None)
            for chain in reached(ruleset, family, interface):
                for rule in chain.rules:
                    text = f"{chain.subject}: {rule.text}"
                    kept_out[text] = kept_out.get(text, True) and reader.elsewhere(rule)
        found |= {text: True for text, always in kept_out.items() if always}
    return tuple(found)
