"""What a ruleset of nftables does with one packet that comes in: rules as data, and a reader of them. Pure.

Netfilter asks all base chains of a hook, by priority; one that drops decides, one that accepts only ends its own part
(nft(8), "Chains"). A condition that is not understood may hold or not: both ways are followed; or, where it is asked
what surely comes in, such a rule neither lets in nor keeps out, but may end its chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_osgates.checks.firewall.words import (
    ALL,
    EXTENSIONS,
    address_ends,
    has_address,
    has_name,
    has_port,
    has_protocol,
    has_word,
    is_word,
    port_ends,
    protocol_ends,
    protocol_number,
)
from pytest_osgates.model import Model

Family = Literal["ipv4", "ipv6"]
# Hooks that a packet for this machine passes before a program gets it.
HOOKS = ("ingress", "prerouting", "input")
_FAMILIES: dict[str, frozenset[str]] = {"ipv4": frozenset({"ip", "inet"}), "ipv6": frozenset({"ip6", "inet"})}
PORTS = ("tcp dport", "udp dport", "th dport", "sctp dport", "dccp dport", "udplite dport")
_TYPES = ("icmp type", "icmpv6 type")
ADDRESSES = ("ip saddr", "ip6 saddr", "ip daddr", "ip6 daddr")
# Of IP's protocol. The first asks for the last header, whatever is before it; the others for the next one, in their
# own family alone.
PROTOCOLS = ("meta l4proto", "ip protocol", "ip6 nexthdr")
CARDS = ("iif", "iifname")
_FACTS = (
    *("ct state", "ct status", "ct direction", "meta nfproto", "meta protocol", "meta pkttype", "fib daddr type"),
)
_UNDERSTOOD = frozenset({*PORTS, *_TYPES, *ADDRESSES, *PROTOCOLS, *CARDS, *_FACTS})
DEPTH = 16
BUDGET = 200_000
# Steps that one packet may take at most: more are not followed for thousands of packets.
MOST_STEPS = 50_000
# Values of a condition that are looked at in the time of one step.
_VALUES = 16
Cast = Literal["host", "multicast", "broadcast"]


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
    name alone. ``untracks``: the connection table does not follow what comes by. ``expects``: it opens the way for
    another connection. ``text``: for people."""

    matches: tuple[Match, ...] = ()
    branches: tuple[Branch, ...] = ()
    key: str = ""
    translates: bool = False
    foreign: bool = False
    untracks: bool = False
    expects: bool = False
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
    """An unsolicited packet. ``protocol``: tcp, udp, icmp, icmpv6, or another by its name or number; ``port``: to
    which, 0: it has none. ``cast``: whom it is for. ``frame``: whom its frame is for, if that is somebody else."""

    family: Family
    protocol: str
    port: int
    source: str
    interface: str
    target: str = ""
    icmp_type: str = ""
    cast: Cast = "host"
    frame: Cast | None = None


ACCEPT, DENY = "accept", frozenset({"drop", "reject"})
# Whoever attacks writes all of a packet, and as many or as few as he likes: such a condition keeps nobody out. In a
# rule that lets in it is left out; where a rule jumps, the sender chooses.
CHOSEN = "the sender's choice"


def steps(ruleset: Ruleset) -> int:
    """The most that one packet may take through all its base chains, however often chains lead back to themselves."""
    chains = {(chain.family, chain.table, chain.name): chain for chain in ruleset.chains}
    own = {
        key: [(1 + _values(rule), _targets(chain, rule, chains)) for rule in chain.rules]
        for key, chain in chains.items()
    }
    beyond = dict.fromkeys(chains, 1)
    for _ in range(DEPTH + 1):
        beyond = {
            key: min(sum(cost + sum(beyond[target] for target in targets) for cost, targets in rules), 10**9)
            for key, rules in own.items()
        }
    return sum(beyond[chain.family, chain.table, chain.name] for chain in ruleset.chains if chain.hook in HOOKS)


def _values(rule: Rule) -> int:
    of_matches = sum(len(match.values) for match in rule.matches)
    return (of_matches + sum(len(branch.values) for branch in rule.branches)) // _VALUES


def _targets(chain: Chain, rule: Rule, chains: Mapping[tuple[str, str, str], Chain]) -> list[tuple[str, str, str]]:
    keys = (
        (chain.family, chain.table, branch.target) for branch in rule.branches if branch.action in ("jump", "goto")
    )
    return [key for key in keys if key in chains]


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
        mine = bool(interface) and has_name(chain.devices, interface)
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
    reader = Reader(ruleset, packet, guess)
    found: set[str] = set()
    for chain in base_chains(ruleset, packet.family, packet.interface):
        ends = reader.base(chain)
        found |= ends & DENY
        if ACCEPT not in ends:
            return frozenset(found), reader.translated
    return frozenset(found | {ACCEPT}), reader.translated


def is_readable(key: str, values: tuple[str, ...]) -> bool:
    """Whether it can be told for every packet whether a condition holds."""
    if key in PORTS:
        return all(value == ALL or port_ends(value) is not None for value in values)
    if key in ADDRESSES:
        return all(value == ALL or address_ends(value) is not None for value in values)
    if key in PROTOCOLS:
        return all(value == ALL or protocol_ends(value) is not None for value in values)
    if key in _FACTS:
        return all(is_word(value) for value in values)
    return key == CHOSEN or key in _UNDERSTOOD


LETS = ("accept", "queue", "jump", "goto")
EVERY = (1, 65535)


class Reader:
    """Follows one packet. ``translated``: a rule may change its address or port."""

    def __init__(self, ruleset: Ruleset, packet: Packet, guess: bool | None, *, untracked: bool = False) -> None:
        self._chains = {(chain.family, chain.table, chain.name): chain for chain in ruleset.chains}
        self._packet = packet
        self._guess = guess
        self._left = BUDGET
        # Of its connection. Behind a rule that has it not followed it may be another.
        self._states = frozenset({"new", "untracked"} if untracked else {"new"})
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
            if rule.untracks and (holds or self._guess is None):
                self._states |= {"untracked"}
            taken = self._branches(chain, rule, depth, unsure=holds is None and self._guess is False)
            ends |= taken - {"continue"}
            sure = holds and not any(self._chosen(match) for match in rule.matches)
            if sure and "continue" not in taken:
                return ends - {"return"} | ({"continue"} if "return" in ends else set())
        return ends - {"return"} | {"continue"}

    def _branches(self, chain: Chain, rule: Rule, depth: int, *, unsure: bool) -> set[str]:
        if not rule.key:
            return self._follow(chain, rule.branches[0], depth, unsure) if rule.branches else {"continue"}
        ends: set[str] = set()
        sure = False
        # The element for all others is asked last, wherever it is listed.
        for branch in sorted(rule.branches, key=lambda one: ALL in one.values):
            match = Match(key=rule.key, values=branch.values)
            chosen = self._chosen(match)
            holds = chosen or self._holds(match)
            if holds is not False:
                ends |= self._follow(chain, branch, depth, unsure or (holds is None and self._guess is False))
                sure = sure or (bool(holds) and not chosen)
            if holds and not chosen:
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

    def lets(self, chain: Chain, rule: Rule, depth: int = 0) -> Iterator[tuple[int, int]]:
        """Ports that a rule may let in, whatever addresses it speaks of: an unsolicited packet to one of them, or to
        a group."""
        self._left -= 1
        if depth > DEPTH or self._left < 0:
            yield EVERY
            return
        named: list[tuple[int, int]] = []
        for match in rule.matches:
            if not self._can(match):
                return
            if match.key in PORTS:
                named += [EVERY] if match.negated else _spans(match.values)
        by_port = rule.key in PORTS
        found: list[tuple[int, int]] = [EVERY] if rule.untracks or rule.expects else []
        for branch in rule.branches:
            if rule.key and not self._can(Match(key=rule.key, values=branch.values)):
                continue
            if branch.action in ("accept", "queue"):
                found += _spans(branch.values) if by_port else [EVERY]
            elif branch.action in ("jump", "goto"):
                target = self._chains.get((chain.family, chain.table, branch.target), chain)
                for inner in target.rules if target is not chain else ():
                    if inner.untracks or any(one.action in LETS for one in inner.branches):
                        found += self.lets(target, inner, depth + 1)
        yield from named if found and named and not by_port and not rule.expects else found

    def _can(self, match: Match) -> bool:
        """Whether it may hold of some packet of this protocol, to whatever port and address."""
        if match.key in PORTS:
            return match.key.startswith(("th ", f"{self._packet.protocol} "))
        if match.key in ADDRESSES:
            return (match.key[:3] == "ip6") == (self._packet.family == "ipv6")
        # Rules before may have had its connection not followed.
        if match.key in (CHOSEN, "meta pkttype", "fib daddr type"):
            return True
        return self._chosen(match) or self._holds(match) is not False

    def elsewhere(self, rule: Rule) -> bool:
        """Whether a rule lets in, but for another source or card than the packet's."""
        if rule.key or not any(branch.action == "accept" for branch in rule.branches):
            return False
        kept_out = False
        for match in rule.matches:
            if match.key in CARDS and not match.negated and set(match.values) == {"lo"}:
                return False
            own = match.key in CARDS or (match.key in ADDRESSES and match.key.endswith("saddr"))
            if own and match.key in ADDRESSES and not self._can(match):
                return False
            if own:
                kept_out = kept_out or self._holds(match) is False
            elif not self._can(match):
                return False
        return kept_out

    def _all(self, matches: Iterable[Match]) -> bool | None:
        known: bool | None = True
        for match in matches:
            holds = self._chosen(match) or self._holds(match)
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

    def _chosen(self, match: Match) -> bool:
        """Whether the sender chooses whether it holds."""
        return match.key == CHOSEN or {True, False} <= self._answers(match)

    def _any(self, match: Match) -> bool | None:
        packet = self._packet
        if match.key in PORTS:
            if not match.key.startswith(("th ", packet.protocol + " ")) or packet.protocol.startswith("icmp"):
                return _never(match)
            return has_port(match.values, packet.port)
        if match.key in _TYPES:
            if match.key.split()[0] != packet.protocol:
                return _never(match)
            return (ALL in match.values or packet.icmp_type in match.values) if packet.icmp_type else None
        if match.key.startswith(("ip ", "ip6 ")) and (match.key[:3] == "ip6") != (packet.family == "ipv6"):
            return _never(match)
        if match.key in ADDRESSES:
            address = packet.source if match.key.endswith("saddr") else packet.target
            return has_address(match.values, address) if address else None
        if match.key in CARDS:
            return has_name(match.values, packet.interface)
        if match.key == "ct status":
            return False
        found = self._answers(match)
        return next(iter(found)) if len(found) == 1 else None

    def _answers(self, match: Match) -> set[bool | None]:
        """Of a condition on a fact: whether it holds, for each that may be one of this packet."""
        packet = self._packet
        if match.key in PROTOCOLS:
            own = protocol_number(packet.protocol)
            if own is None:
                return {None}
            before = EXTENSIONS if match.key == "ip6 nexthdr" and packet.family == "ipv6" else ()
            return {has_protocol(match.values, one) for one in (own, *before)}
        if match.key == "ct state":
            return {has_word(match.values, state) for state in self._states}
        facts = {
            "ct direction": "original",
            "meta nfproto": packet.family,
            "meta protocol": "ip" if packet.family == "ipv4" else "ip6",
            "meta pkttype": packet.frame or packet.cast,
            "fib daddr type": "local" if packet.cast == "host" else packet.cast,
        }
        return {has_word(match.values, facts[match.key]) if match.key in facts else None}


def _spans(values: tuple[str, ...]) -> list[tuple[int, int]]:
    """Ports as ranges; what is none is all of them."""
    return [port_ends(value) or EVERY for value in values]


def _never(match: Match) -> bool:
    """A field that the packet has not: the rule does not apply, negated or not."""
    return match.negated
