"""What a ruleset of nftables does with one packet that comes in: rules as data, and a reader of them. Pure.

Netfilter asks all base chains of a hook, by priority; one that drops decides, one that accepts only ends its own part
(nft(8), "Chains"). A condition that is not understood may hold or not: both ways are followed; or, where it is asked
what surely comes in, such a rule neither lets in nor keeps out, but may end its chain.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pytest_osgates.model import Model

Family = Literal["ipv4", "ipv6"]
# Hooks that a packet for this machine passes before a program gets it.
HOOKS = ("ingress", "prerouting", "input")
_FAMILIES: dict[str, frozenset[str]] = {"ipv4": frozenset({"ip", "inet"}), "ipv6": frozenset({"ip6", "inet"})}
_PORTS = ("tcp dport", "udp dport", "th dport", "sctp dport", "dccp dport", "udplite dport")
_TYPES = ("icmp type", "icmpv6 type")
_ADDRESSES = ("ip saddr", "ip6 saddr", "ip daddr", "ip6 daddr")
_FACTS = (
    *("iif", "iifname", "ct state", "ct status", "ct direction", "meta l4proto", "ip protocol", "ip6 nexthdr"),
    *("meta nfproto", "meta protocol", "meta pkttype", "fib daddr type"),
)
_UNDERSTOOD = frozenset({*_PORTS, *_TYPES, *_ADDRESSES, *_FACTS})
_PORT = re.compile(r"[0-9]{1,5}")
DEPTH = 16
BUDGET = 200_000
# IP protocols by number, where a rule names them so (IANA, protocol-numbers).
_NUMBERS = {
    "1": "icmp",
    "6": "tcp",
    "17": "udp",
    "33": "dccp",
    "47": "gre",
    "50": "esp",
    "51": "ah",
    "58": "icmpv6",
    "132": "sctp",
    "136": "udplite",
    "ipv6-icmp": "icmpv6",
}
# Those that no sweep asks about, and that a kernel gives to programs or tunnels.
OTHERS = ("ah", "dccp", "esp", "gre", "sctp", "udplite")
Cast = Literal["host", "multicast", "broadcast"]
EVERYBODY = "255.255.255.255"


class Match(Model):
    """A condition: ``key`` as nft writes it (``tcp dport``, ``iifname``, ``ip saddr``, ``ct state``), empty if it is
    not understood. ``values``: single ones, ``FIRST-LAST``, ``NETWORK/LENGTH``; any of them will do. ``negated``:
    none may.
    """

    key: str
    values: tuple[str, ...] = ()
    negated: bool = False


class Branch(Model):
    """What follows: accept, drop, reject, queue, return, continue, jump, goto (with ``target``)."""

    action: str
    target: str = ""
    values: tuple[str, ...] = ()


class Rule(Model):
    """Conditions, all of which must hold, and what follows; of a verdict map ``key`` and its branches, each with its
    values. ``translates``: it changes address or port. ``foreign``: a part of it is iptables', of which nft tells the
    name alone. ``text``: for people."""

    matches: tuple[Match, ...] = ()
    branches: tuple[Branch, ...] = ()
    key: str = ""
    translates: bool = False
    foreign: bool = False
    text: str = ""


class Chain(Model):
    """Of ``family`` and ``table``; a base chain has ``hook``, ``priority`` and ``policy``; one of the hook
    ingress ``devices``."""

    family: str
    table: str
    name: str
    kind: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = ""
    devices: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def subject(self) -> str:
        """For findings."""
        return f"{self.family} {self.table} {self.name}"


class Ruleset(Model):
    """What a guest says of its filter. ``source``: by which tool; ``problem``: why it cannot be known, or not wholly.
    ``legacy``: tables of the old iptables, whose rules are among ``chains``, under the table ``legacy NAME``.
    """

    source: str
    chains: tuple[Chain, ...] = ()
    problem: str = ""
    legacy: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packet:
    """An unsolicited packet. ``protocol``: tcp, udp, icmp, icmpv6, or one of `OTHERS`; ``port``: to which, 0: it has
    none. ``cast``: whom the frame is for."""

    family: Family
    protocol: str
    port: int
    source: str
    interface: str
    target: str = ""
    icmp_type: str = ""
    cast: Cast = "host"


ACCEPT, DENY = "accept", frozenset({"drop", "reject"})
# Whoever attacks writes all of a packet, and as many or as few as he likes: such a condition keeps nobody out. In a
# rule that lets in it is left out; where a rule jumps, the sender chooses.
CHOSEN = "the sender's choice"


def base_chains(ruleset: Ruleset, family: Family, interface: str = "") -> list[Chain]:
    """Those that an incoming packet passes, first things first; of the hook ingress those of this `interface`. Not:
    chains of bridges, which pass what is for a bridge's ports."""
    found = [
        chain
        for chain in ruleset.chains
        if chain.hook in HOOKS and chain.kind in ("", "filter", "nat") and _passes(chain, family, interface)
    ]
    return sorted(found, key=lambda chain: (HOOKS.index(chain.hook), chain.priority))


def _passes(chain: Chain, family: Family, interface: str) -> bool:
    if chain.hook == "ingress":
        mine = bool(interface) and any(_fits(interface, device) for device in chain.devices)
        return mine and chain.family in _FAMILIES[family] | {"netdev"}
    return chain.family in _FAMILIES[family]


def input_chains(ruleset: Ruleset, family: Family) -> list[Chain]:
    """Those that decide what comes in."""
    return [
        chain
        for chain in base_chains(ruleset, family)
        if chain.hook == "input" and chain.family in _FAMILIES[family] and chain.kind in ("", "filter")
    ]


def outcomes(ruleset: Ruleset, packet: Packet, *, guess: bool | None = None) -> frozenset[str]:
    """What may become of it: ``accept``, ``drop``, ``reject``. Without any base chain it is accepted.

    `guess`: how rules with conditions that are not understood are taken. None: both ways. True: they hold. False: for
    what surely comes in: they neither let in nor keep out; but those that return may do so, or not.
    """
    return _walk(ruleset, packet, guess)[0]


def is_translated(ruleset: Ruleset, packet: Packet) -> bool:
    """Whether a rule on its way may change its address or port: then rules behind it speak of another packet."""
    return _walk(ruleset, packet, None)[1]


def _walk(ruleset: Ruleset, packet: Packet, guess: bool | None) -> tuple[frozenset[str], bool]:
    reader = _Reader(ruleset, packet, guess)
    found: set[str] = set()
    for chain in base_chains(ruleset, packet.family, packet.interface):
        ends = reader.base(chain)
        found |= ends & DENY
        if ACCEPT not in ends:
            return frozenset(found), reader.translated
    return frozenset(found | {ACCEPT}), reader.translated


def _ranges(ruleset: Ruleset, protocol: str) -> Iterator[tuple[int, int]]:
    """Of ports that rules speak of."""
    keys = {f"{protocol} dport", "th dport"}
    for chain in ruleset.chains:
        for rule in chain.rules:
            lists = [match.values for match in rule.matches if match.key in keys]
            lists += [branch.values for branch in rule.branches if rule.key in keys]
            for value in (value for values in lists for value in values):
                ends = [int(end) for end in value.split("-")[:2] if _PORT.fullmatch(end)]
                if ends:
                    yield ends[0], ends[-1]


def named_ports(ruleset: Ruleset, protocol: str) -> tuple[tuple[int, int], ...]:
    """Ranges of ports that rules speak of."""
    found = {(max(first, 1), last) for first, last in _ranges(ruleset, protocol) if first <= last < 65536 and last}
    return tuple(sorted(found)[:4096])


def unnamed_port(ruleset: Ruleset, protocol: str) -> int:
    """One that no rule speaks of, but for ranges that leave none out."""
    port = 1
    for first, last in sorted(_ranges(ruleset, protocol)):
        if first > port:
            break
        port = max(port, last + 1)
    return port if port < 65536 else 47001


def named_groups(ruleset: Ruleset, family: Family) -> tuple[str, ...]:
    """Addresses of groups, and that of everybody, that rules speak of as a packet's target."""
    key = "ip daddr" if family == "ipv4" else "ip6 daddr"
    found: dict[str, None] = {}
    for chain in ruleset.chains:
        for rule in chain.rules:
            lists = [match.values for match in rule.matches if match.key == key]
            lists += [branch.values for branch in rule.branches if rule.key == key]
            for value in (value for values in lists for value in values):
                found |= dict.fromkeys(_groups(value))
    return tuple(found)[:64]


def _groups(value: str) -> Iterator[str]:
    """Of an address, a network or a range: its first and last that are groups."""
    first, _, last = value.partition("-")
    try:
        network = ipaddress.ip_network(first, strict=False)
        ends = [network[0], network[-1], *([ipaddress.ip_address(last)] if last else [])]
    except ValueError:
        return
    yield from (str(end) for end in ends if end.is_multicast or str(end) == EVERYBODY)


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
    """A rule in the way of what comes in that is not understood, and that could let something in. ``ports``: of UDP,
    those that it may let in: ranges; empty: none."""

    text: str
    ports: tuple[tuple[int, int], ...]


def not_understood(ruleset: Ruleset, family: Family, interface: str) -> Iterator[Opaque]:
    """Such rules."""
    reader = _Reader(ruleset, Packet(family, "udp", 0, "", interface), None)
    for chain in reached(ruleset, family, interface):
        for rule in chain.rules:
            lets = [branch for branch in rule.branches if branch.action in _LETS]
            keys = {match.key for match in rule.matches} | ({rule.key} if rule.key else set())
            asks = any(branch.action == "queue" for branch in lets)
            if lets and (asks or not keys - {CHOSEN} <= _UNDERSTOOD):
                yield Opaque(f"{chain.subject}: {rule.text}", tuple(reader.datagrams(chain, rule)))


_LETS = ("accept", "queue", "jump", "goto")
_ALL = (1, 65535)


class _Reader:
    def __init__(self, ruleset: Ruleset, packet: Packet, guess: bool | None) -> None:
        self._chains = {(chain.family, chain.table, chain.name): chain for chain in ruleset.chains}
        self._packet = packet
        self._guess = guess
        self._left = BUDGET
        self.translated = False

    def base(self, chain: Chain) -> set[str]:
        """Its ends; a packet that falls through meets the policy, which is accept where there is none."""
        ends = self._chain(chain, 0)
        if "continue" in ends:
            ends = (ends - {"continue"}) | {chain.policy if chain.policy in ("accept", "drop") else ACCEPT}
        return ends

    def _chain(self, chain: Chain, depth: int) -> set[str]:
        ends: set[str] = set()
        for rule in chain.rules:
            self._left -= 1
            if depth > DEPTH or self._left < 0:
                return ends | {ACCEPT, "drop", "continue"}
            holds = self._all(rule.matches)
            if holds is False:
                continue
            self.translated = self.translated or rule.translates
            taken = self._branches(chain, rule, depth, unsure=holds is None and self._guess is False)
            ends |= taken - {"continue"}
            sure = holds and not any(match.key == CHOSEN for match in rule.matches)
            if sure and "continue" not in taken:
                return ends - {"return"} | ({"continue"} if "return" in ends else set())
        return ends - {"return"} | {"continue"}

    def _branches(self, chain: Chain, rule: Rule, depth: int, *, unsure: bool) -> set[str]:
        if not rule.key:
            return self._follow(chain, rule.branches[0], depth, unsure) if rule.branches else {"continue"}
        ends: set[str] = set()
        sure = False
        for branch in rule.branches:
            holds = True if branch.values == ("*",) else self._holds(Match(key=rule.key, values=branch.values))
            if holds is not False:
                ends |= self._follow(chain, branch, depth, unsure or (holds is None and self._guess is False))
                sure = sure or bool(holds)
            if holds:
                break
        return ends if sure else ends | {"continue"}

    def _follow(self, chain: Chain, branch: Branch, depth: int, unsure: bool) -> set[str]:
        """`unsure`: nobody knows whether it is taken, and asked is what is sure. Behind such a jump nothing is."""
        if unsure:
            return {"return", "continue"} if branch.action in ("return", "goto") else {"continue"}
        if branch.action in ("accept", "drop", "reject", "return", "continue"):
            return {branch.action}
        if branch.action == "queue":
            # A program decides.
            return {ACCEPT, "drop"} if self._guess is None else {ACCEPT if self._guess else "drop"}
        target = self._chains.get((chain.family, chain.table, branch.target))
        if branch.action not in ("jump", "goto") or target is None:
            return {ACCEPT, "drop", "continue"} if self._guess is None else {"continue"}
        ends = self._chain(target, depth + 1)
        if branch.action == "goto" and "continue" in ends:
            return ends - {"continue"} | {"return"}
        return ends

    def datagrams(self, chain: Chain, rule: Rule, depth: int = 0) -> Iterator[tuple[int, int]]:
        """Ports of UDP that a rule may let in, whatever addresses it speaks of: an unsolicited datagram to one of
        them, or to a group."""
        self._left -= 1
        if depth > DEPTH or self._left < 0:
            yield _ALL
            return
        named: list[tuple[int, int]] = []
        for match in rule.matches:
            if not self._can(match):
                return
            if match.key in _PORTS:
                named += [_ALL] if match.negated else _spans(match.values)
        by_port = rule.key in ("udp dport", "th dport")
        found: list[tuple[int, int]] = []
        for branch in rule.branches:
            if rule.key and branch.values != ("*",) and not self._can(Match(key=rule.key, values=branch.values)):
                continue
            if branch.action in ("accept", "queue"):
                found += _spans(branch.values) if by_port else [_ALL]
            elif branch.action in ("jump", "goto"):
                target = self._chains.get((chain.family, chain.table, branch.target), chain)
                for inner in target.rules if target is not chain else ():
                    if any(one.action in _LETS for one in inner.branches):
                        found += self.datagrams(target, inner, depth + 1)
        yield from named if found and named and not by_port else found

    def _can(self, match: Match) -> bool:
        """Whether it may hold of some datagram, to whatever port and address."""
        if match.key in _PORTS:
            return match.key.startswith(("th ", "udp "))
        if match.key in _ADDRESSES:
            return (match.key[:3] == "ip6") == (self._packet.family == "ipv6")
        return match.key in (CHOSEN, "meta pkttype", "fib daddr type") or self._holds(match) is not False

    def _all(self, matches: Iterable[Match]) -> bool | None:
        known: bool | None = True
        for match in matches:
            holds = match.key == CHOSEN or self._holds(match)
            if holds is False:
                return False
            if holds is None:
                known = None
        return known

    def _holds(self, match: Match) -> bool | None:
        holds = self._any(match)
        if holds is None:
            return self._guess or None
        return not holds if match.negated else holds

    def _any(self, match: Match) -> bool | None:
        packet = self._packet
        if match.key in _PORTS:
            if not match.key.startswith(("th ", packet.protocol + " ")) or packet.protocol.startswith("icmp"):
                return _never(match)
            return _has_port(match.values, packet.port)
        if match.key in _TYPES:
            if match.key.split()[0] != packet.protocol:
                return _never(match)
            return packet.icmp_type in match.values if packet.icmp_type else None
        if match.key in _ADDRESSES:
            if (match.key[:3] == "ip6") != (packet.family == "ipv6"):
                return _never(match)
            address = packet.source if match.key.endswith("saddr") else packet.target
            return _has_address(match.values, address) if address else None
        facts = {
            "iif": packet.interface,
            "iifname": packet.interface,
            "ct state": "new",
            "ct status": "",
            "ct direction": "original",
            "meta l4proto": packet.protocol,
            "ip protocol": packet.protocol if packet.family == "ipv4" else "",
            "ip6 nexthdr": packet.protocol if packet.family == "ipv6" else "",
            "meta nfproto": packet.family,
            "meta protocol": "ip" if packet.family == "ipv4" else "ip6",
            "meta pkttype": packet.cast,
            "fib daddr type": "local" if packet.cast == "host" else packet.cast,
        }
        if match.key not in facts:
            return None
        values = [_NUMBERS.get(value, value) for value in match.values]
        if match.key == "ct status":
            return False
        return any(_fits(facts[match.key], value) for value in values)


def _spans(values: tuple[str, ...]) -> list[tuple[int, int]]:
    """Ports as ranges; what is none is all of them."""
    found = []
    for value in values:
        first, _, last = value.partition("-")
        known = _PORT.fullmatch(first) and (not last or _PORT.fullmatch(last))
        found.append((int(first), int(last or first)) if known else _ALL)
    return found


def _never(match: Match) -> bool:
    """A field that the packet has not: the rule does not apply, negated or not."""
    return match.negated


def _fits(fact: str, value: str) -> bool:
    return fact.startswith(value[:-1]) if value.endswith("*") else fact == value


def _has_port(values: tuple[str, ...], port: int) -> bool | None:
    unknown = False
    for value in values:
        first, _, last = value.partition("-")
        if not _PORT.fullmatch(first) or (last and not _PORT.fullmatch(last)):
            unknown = True
        elif int(first) <= port <= int(last or first):
            return True
    return None if unknown else False


def _has_address(values: tuple[str, ...], address: str) -> bool | None:
    unknown = False
    own = ipaddress.ip_address(address)
    for value in values:
        first, _, last = value.partition("-")
        try:
            if last:
                low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
                if low.version == own.version and int(low) <= int(own) <= int(high):
                    return True
            else:
                network = ipaddress.ip_network(value, strict=False)
                if own.version == network.version and own in network:
                    return True
        except ValueError:
            unknown = True
    return None if unknown else False
