"""Whether the rules and what answered agree, and what rules let in that nobody answered."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_osgates.checks.firewall.named import (
    EVERYBODY,
    MAX_ADDRESSES,
    MAX_PORTS,
    elsewhere,
    is_host,
    named_groups,
    named_hosts,
    named_ports,
    named_protocols,
    not_understood,
    reached,
    unnamed_port,
)
from pytest_osgates.checks.firewall.policy import FirewallPolicy
from pytest_osgates.checks.firewall.rules import ACCEPT, Cast, Family, Packet, is_translated, outcomes, steps
from pytest_osgates.checks.firewall.said import finding, unproven
from pytest_osgates.checks.firewall.seen import FirewallObservation, Sweep, datagram
from pytest_osgates.model import Finding, Severity

# Of the segments that were sent: so many may have got past the filter that were somebody else's.
NOISE = 100
# Packets that nobody explains and that prove nothing: a sound machine has none, or a few of its own.
STRAY = 20
# Conditions of which a datagram for many fulfils others than one for this machine.
_TARGETS = frozenset({"ip daddr", "ip6 daddr"})
_OF_MANY = frozenset({*_TARGETS, "meta pkttype", "fib daddr type"})
# Addresses and groups that are nobody's (RFC 5737, RFC 3849, RFC 6676): for all that no rule names.
_NOBODYS = {"ipv4": "198.51.100.77", "ipv6": "2001:db8:ffff::77"}
_NO_GROUP = {"ipv4": "233.252.0.77", "ipv6": "ff0e::db8:0:77"}
# As many questions to the rules a sweep, and as many sockets that wait, as are looked at.
MAX_ASKED = 20_000
_WORK = 20_000_000
MAX_LISTENERS = 500


def _most_asked(seen: FirewallObservation) -> int:
    """As many questions as can be answered in a minute or so."""
    return min(MAX_ASKED, _WORK // max(1, steps(seen.ruleset)))


def card_of(seen: FirewallObservation) -> str:
    """The interface that is probed."""
    return next((one.interface for one in seen.addresses if one.interface), "eth0")


@dataclass(frozen=True)
class Aim:
    """Another target than the one that is swept. ``frame``: whom the frame is for, if that is somebody else."""

    address: str
    cast: Cast = "host"
    frame: Cast | None = None

    @property
    def name(self) -> str:
        """For findings."""
        return (self.frame or self.cast) if (self.frame or self.cast) != "host" else self.address


def packet_for(seen: FirewallObservation, sweep: Sweep, protocol: str, port: int, aim: Aim | None = None) -> Packet:
    """As a sweep sends it; `aim`: to another target."""
    to = aim or Aim(sweep.target)
    return Packet(
        *(sweep.family, protocol, port, sweep.source, card_of(seen), to.address),
        icmp_type="",
        cast=to.cast,
        frame=to.frame,
    )


def agreement(
    seen: FirewallObservation, policy: FirewallPolicy, bare: set[Family], named: set[str]
) -> Iterator[Finding]:
    """What answers and the rules. Where these change addresses or ports, they are not compared."""
    if seen.ruleset.problem:
        return
    sweeps = [one for one in seen.sweeps if one.protocol != "kinds" and one.family not in bare and one.full]
    turned = {text for sweep in sweeps for text in _turned(seen, policy, sweep, [None])}
    # For other targets, too; but nobody answered there who could be compared.
    others = {text for sweep in sweeps for text in _turned(seen, policy, sweep, _aims(seen, sweep))}
    if turned or any(text.endswith("!") for text in others):
        compared = not turned
        turned |= others
        unknown = sorted(text.removesuffix("!") for text in turned if text.endswith("!"))
        unknown = [text for text in unknown if text not in named]
        yield finding(
            *(
                "not-compared",
                "ruleset",
                f"rules change addresses or ports: {', '.join(unknown or sorted(turned))[:200]}",
            ),
            "rules that can be compared",
            Severity.UNPROVEN if unknown else Severity.REMARK,
        )
        if not compared:
            return
    told: set[tuple[str, str]] = set()
    ways = _heard_ways(seen)
    for sweep in sweeps:
        heard = ways[sweep.family, sweep.origin]
        for found in (*_unexplained(seen, sweep), *_unheard(seen, sweep, heard)):
            if found.key not in told:
                told.add(found.key)
                yield found


def _turned(
    seen: FirewallObservation, policy: FirewallPolicy, sweep: Sweep, aims: Sequence[Aim | None]
) -> Iterator[str]:
    """Ports whose address or number rules change on the way in; with ``!`` where they are not allowed."""
    rules = seen.ruleset
    if not any(rule.translates for chain in reached(rules, sweep.family, card_of(seen)) for rule in chain.rules):
        return
    ranges = named_ports(rules, sweep.protocol)
    ports = {port for first, last in ranges for port in (first, last)} | {unnamed_port(rules, sweep.protocol)}
    aims = aims[:MAX_ADDRESSES]
    most = _most_asked(seen) // max(1, len(aims))
    if len(ports) > most:
        yield f"{sweep.protocol}/more ports than are asked about!"
    for port in sorted(ports)[:most]:
        packets = (packet_for(seen, sweep, sweep.protocol, port, aim) for aim in aims)
        if any(is_translated(rules, packet) for packet in packets):
            allowed = policy.documented(sweep.protocol, port, sweep.family, sweep.origin)
            yield f"{sweep.protocol}/{port}{'' if allowed else '!'}"


def _unexplained(seen: FirewallObservation, sweep: Sweep) -> Iterator[Finding]:
    for answer in [one for one in sweep.answers if one.how != "unproven"][:200]:
        ends = outcomes(seen.ruleset, packet_for(seen, sweep, sweep.protocol, answer.first))
        if ACCEPT not in ends and (answer.how == "open" or "reject" not in ends):
            yield unproven(
                *("unexplained", f"{sweep.protocol}/{answer.first}"),
                f"it is {answer.how} by {sweep.where}, and no rule lets it in ({', '.join(sorted(ends))})",
                "an answer that the rules explain: who answers before they are asked?",
            )


def _heard_ways(seen: FirewallObservation) -> dict[tuple[str, str], bytearray]:
    """By family and origin, one byte a TCP port: 1 where anything answered at any time. A rule with a rate lets the
    first ones through."""
    ways: dict[tuple[str, str], bytearray] = defaultdict(lambda: bytearray(65536))
    for sweep in seen.sweeps:
        if sweep.protocol == "tcp":
            known = ways[sweep.family, sweep.origin]
            both = int.from_bytes(known, "big") | int.from_bytes(sweep.heard_of(), "big")
            ways[sweep.family, sweep.origin] = bytearray(both.to_bytes(65536, "big"))
    for watch in seen.boot:
        for answer in watch.answers:
            if 0 < answer.port < 65536:
                ways[watch.family, answer.origin][answer.port] = 1
    return ways


def _unheard(seen: FirewallObservation, sweep: Sweep, heard: bytearray) -> Iterator[Finding]:
    """Of TCP alone: a program may leave a datagram without an answer."""
    for one in seen.listeners if sweep.protocol == "tcp" else ():
        wild = {"0.0.0.0", "::"}  # noqa: S104  (what a socket is bound to, in the guest)
        if one.address not in (*wild, sweep.target) or (one.family != sweep.family and one.address != "::"):
            continue
        if not heard[one.port] and one.family == sweep.family:
            ends = outcomes(seen.ruleset, packet_for(seen, sweep, "tcp", one.port))
            if ends == {ACCEPT}:
                yield unproven(
                    *(
                        "unheard",
                        f"tcp/{one.port}",
                        f"{one.text} listens, the rules let it, and {sweep.where} it is silent",
                    ),
                    "an answer: is something else in the way?",
                )


# -- doors that are open though nobody stands behind them today ------------------------------------------------------


def accepts(seen: FirewallObservation, sweep: Sweep, port: int, protocol: str = "", aim: Aim | None = None) -> bool:
    """Whether the rules may let a port in, without those rules that are not understood."""
    packet = packet_for(seen, sweep, protocol or sweep.protocol, port, aim)
    return ACCEPT in outcomes(seen.ruleset, packet, guess=False)


def doors(seen: FirewallObservation, policy: FirewallPolicy, bare: set[Family], named: set[str]) -> Iterator[Finding]:
    """What rules let in that the profile does not allow. `named`: what is a finding already."""
    if seen.ruleset.problem:
        return
    told: set[str] = set()
    for sweep in seen.sweeps:
        if sweep.family in bare or not sweep.full:
            continue
        found = _others(seen, policy, sweep) if sweep.protocol == "kinds" else _ports(seen, policy, sweep)
        for one in found:
            if one.subject not in told and one.subject not in named:
                told.add(one.subject)
                yield one
    yield from _narrow(seen, bare)
    if len(seen.listeners) >= MAX_LISTENERS:
        yield unproven(
            *("too-many", "listeners", f"{MAX_LISTENERS} or more sockets wait"),
            "as many as are looked at: the rest was not tried by name",
        )


def _narrow(seen: FirewallObservation, bare: set[Family]) -> Iterator[Finding]:
    """Rules for sources and cards that nobody tries."""
    for family in dict.fromkeys(sweep.family for sweep in seen.sweeps if sweep.family not in bare):
        packets = [packet_for(seen, sweep, "udp", 0) for sweep in seen.sweeps if sweep.family == family]
        for text in elsewhere(seen.ruleset, family, packets)[:20]:
            yield finding(
                *("accepts-elsewhere", family, f"a rule lets in another source, or by another card: {text}"),
                *("no rule for what is not in gate.firewall.allowed", Severity.REMARK),
            )


def _door(subject: str, what: str) -> Finding:
    return finding(
        *("accepts", subject, f"a rule lets it in, {what}", "no rule for what is not in gate.firewall.allowed")
    )


def _many(subject: str, what: str) -> Finding:
    return unproven("too-many", subject, what, "as many as can be asked about one by one")


def _ports(seen: FirewallObservation, policy: FirewallPolicy, sweep: Sweep) -> Iterator[Finding]:
    every = _aims(seen, sweep)
    aims = every[:MAX_ADDRESSES]
    if len(every) > len(aims):
        yield _many(f"{sweep.protocol} targets", f"the rules name {len(every)} targets, {sweep.where}")
    free = unnamed_port(seen.ruleset, sweep.protocol)
    # Where a target is let in whatever the port, that is the finding.
    whole = [aim for aim in aims if accepts(seen, sweep, free, "", aim)]
    for aim in whole:
        yield _door(f"{sweep.protocol}/{aim.name}", f"{sweep.where}, to {aim.address}")
    targets = [None, *(aim for aim in aims if aim not in whole)]
    named = named_ports(seen.ruleset, sweep.protocol)
    ranges = named[:MAX_PORTS]
    if len(named) > len(ranges):
        yield _many(f"{sweep.protocol} ports", f"the rules name {len(named)} ranges of ports")
    points = _points(ranges, policy)
    left = _most_asked(seen)
    for first, last in ranges:
        ports = [
            port
            for port in points[bisect_left(points, first) : bisect_right(points, last)]
            if not policy.documented(sweep.protocol, port, sweep.family, sweep.origin)
        ]
        left -= len(ports) * len(targets)
        if left < 0:
            yield _many(f"{sweep.protocol} ports", f"the rules name {len(ranges)} ranges, for {len(targets)} targets")
            return
        by = next(
            (one or Aim("") for one in targets if any(accepts(seen, sweep, port, "", one) for port in ports)), None
        )
        if by is not None:
            text = str(first) if first == last else f"{first}-{last}"
            yield _door(f"{sweep.protocol}/{text}", f"{sweep.where}{f', to {by.address}' if by.address else ''}")


def _points(ranges: Iterable[tuple[int, int]], policy: FirewallPolicy) -> list[int]:
    """Ports at which what rules say may change: ends of ranges, and their neighbours; those of allowances."""
    found = {end for first, last in ranges for end in (first - 1, first, last, last + 1)}
    found |= {port + step for entry in policy.allowed for port in entry.ports for step in (-1, 1)}
    return sorted(port for port in found if 0 < port < 65536)


def _aims(seen: FirewallObservation, sweep: Sweep) -> list[Aim]:
    """Targets for which a packet may fare otherwise than for the one that is swept: those that rules name, groups,
    everybody, other addresses of the machine, one that is nobody's; and frames for many."""
    rules = seen.ruleset
    keys = {
        key
        for chain in reached(rules, sweep.family, card_of(seen))
        for rule in chain.rules
        for key in (rule.key, *(match.key for match in rule.matches))
    }
    if not keys & _OF_MANY:
        return []
    six = sweep.family == "ipv6"
    found: list[Aim] = []
    hosts: list[str] = []
    if keys & _TARGETS:
        own = (*(one.address for one in seen.addresses), *(one.address for one in seen.listeners))
        own = tuple(one.partition("%")[0] for one in own if (":" in one) == six)
        hosts = [one for one in (*named_hosts(rules, sweep.family), *own) if is_host(one)]
        hosts = [one for one in dict.fromkeys((*hosts, _NOBODYS[sweep.family])) if one != sweep.target]
    if sweep.protocol != "tcp":
        known = [group for group in seen.groups if (":" in group) == six]
        for group in dict.fromkeys((*named_groups(rules, sweep.family), *known, _NO_GROUP[sweep.family])):
            found.append(Aim(group, "broadcast" if group == EVERYBODY else "multicast"))
        if not six and keys & {"meta pkttype", "fib daddr type"}:
            # That of the network, of which nobody told how large it is; any that a rule names may be it.
            nets = [f"{sweep.target.rpartition('.')[0]}.255", *hosts]
            found += [Aim(one, "broadcast") for one in dict.fromkeys(nets) if one != _NOBODYS["ipv4"]]
        if "meta pkttype" in keys:
            found += [Aim(sweep.target, "host", "broadcast"), Aim(sweep.target, "host", "multicast")]
    return [*found, *(Aim(one) for one in hosts)]


def _others(seen: FirewallObservation, policy: FirewallPolicy, sweep: Sweep) -> Iterator[Finding]:
    """Protocols that are in no sweep."""
    every = _aims(seen, sweep)
    # Where a target is let in with whatever protocol, the finding is that of UDP.
    free = unnamed_port(seen.ruleset, "udp")
    aims = [None, *(aim for aim in every[:MAX_ADDRESSES] if not accepts(seen, sweep, free, "udp", aim))]
    left = _most_asked(seen)
    for protocol in named_protocols(seen.ruleset, sweep.family):
        if policy.documented("other", protocol, sweep.family, sweep.origin):
            continue
        ports = {port for ends in named_ports(seen.ruleset, protocol) for port in ends}
        ports.add(unnamed_port(seen.ruleset, protocol))
        left -= len(ports) * len(aims)
        if left < 0 or len(every) > MAX_ADDRESSES:
            yield _many("other protocols", f"the rules name {len(every)} targets and {len(ports)} ports")
            return
        for aim in aims:
            if any(accepts(seen, sweep, port, protocol, aim) for port in sorted(ports)):
                yield _door(f"other/{protocol}", f"{sweep.where}{f', to {aim.address}' if aim else ''}")
                break


# -- by the guest's own counters -------------------------------------------------------------------------------------


def let_in(seen: FirewallObservation, bare: set[Family], policy: FirewallPolicy) -> Iterator[Finding]:
    """Probes that nobody answered, and that got past the filter nevertheless."""
    accounts = seen.accounts
    if accounts.problem or bare & set(policy.families):
        return
    answered = {"tcp": 0, "udp": 0}
    sent = {"tcp": 0, "udp": 0}
    for sweep in seen.sweeps:
        if sweep.protocol != "kinds":
            sent[sweep.protocol] += sweep.asked
            # Of an open port the reset, too, and each once more where it was asked again.
            answered[sweep.protocol] += 3 * sum(one.count for one in sweep.answers)
        else:
            sent["udp"] += sum(datagram(kind) is not None for kind in sweep.kinds)
            answered["udp"] += 3 * sum(datagram(kind) is not None for kind in sweep.heard)
    for protocol, count in sent.items():
        reached_ = accounts.reached.get(protocol)
        if reached_ is None:
            yield unproven(
                *("not-counted", protocol, "the guest does not count what reaches its programs"),
                "a counter: /proc/net/snmp",
            )
            continue
        other = accounts.sent - accounts.own
        more = reached_ - answered[protocol] - other
        own = min(max(0, more), accounts.loopback)
        few = max(count // NOISE if protocol == "tcp" else count // 2, STRAY)
        if more - own > few:
            yield finding(
                *("let-in", protocol, f"{more - own} of {count} probes got past the filter, without an answer"),
                "none: what has no answer can still be heard",
            )
        elif more > 0:
            # Where a rule may let something in, and nobody can say what, this may be it; and what the guest sends to
            # itself must not hide it. Nor is it noise where many are left that nothing explains.
            opaque = any(
                True for family in policy.families for _ in not_understood(seen.ruleset, family, card_of(seen))
            )
            hidden = more > few or more - own > STRAY
            yield finding(
                *("let-in", protocol, f"{more} more than were answered got past the filter, or came from the guest"),
                "none, but for what else was on the wire",
                Severity.UNPROVEN if hidden or (opaque and more > own) else Severity.REMARK,
            )
