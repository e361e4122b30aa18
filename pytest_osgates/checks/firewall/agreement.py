"""Whether the rules and what answered agree."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_osgates.checks.firewall.policy import FirewallPolicy
from pytest_osgates.checks.firewall.rules import (
    ACCEPT,
    DENY,
    Family,
    Packet,
    named_ports,
    not_understood,
    outcomes,
    translates,
)
from pytest_osgates.checks.firewall.said import finding, unproven
from pytest_osgates.checks.firewall.seen import FirewallObservation, Sweep
from pytest_osgates.model import Finding, Severity

# Of the segments that were sent: so many may have got past the filter that were somebody else's.
NOISE = 100


def packet_for(seen: FirewallObservation, sweep: Sweep, protocol: str, port: int) -> Packet:
    """As a sweep sends it."""
    interface = next((one.interface for one in seen.addresses if one.address == sweep.target), "eth0")
    return Packet(sweep.family, protocol, port, sweep.source, interface, sweep.target)


def agreement(
    seen: FirewallObservation, policy: FirewallPolicy, bare: set[Family], named: set[str]
) -> Iterator[Finding]:
    rules = seen.ruleset
    if rules.problem or translates(rules):
        if translates(rules):
            yield finding(
                *("not-compared", "ruleset", "rules change addresses or ports", "rules that can be compared"),
                Severity.REMARK,
            )
        return
    told: set[tuple[str, str]] = set()
    for sweep in seen.sweeps:
        if sweep.protocol == "kinds" or sweep.family in bare or not sweep.full:
            continue
        for found in (*_unexplained(seen, sweep), *_unheard(seen, sweep), *_accepts(seen, policy, sweep)):
            about = found.rule == "accepts" and found.subject in named
            if found.key not in told and not about:
                told.add(found.key)
                yield found


def _unexplained(seen: FirewallObservation, sweep: Sweep) -> Iterator[Finding]:
    for answer in [one for one in sweep.answers if one.how != "unproven"][:200]:
        ends = outcomes(seen.ruleset, packet_for(seen, sweep, sweep.protocol, answer.first))
        if ACCEPT not in ends and (answer.how == "open" or "reject" not in ends):
            yield unproven(
                *("unexplained", f"{sweep.protocol}/{answer.first}"),
                f"it is {answer.how} by {sweep.where}, and no rule lets it in ({', '.join(sorted(ends))})",
                "an answer that the rules explain: who answers before they are asked?",
            )


def _unheard(seen: FirewallObservation, sweep: Sweep) -> Iterator[Finding]:
    """Of TCP alone: a program may leave a datagram without an answer."""
    heard = sweep.heard_of() if seen.listeners and sweep.protocol == "tcp" else b""
    for one in seen.listeners if heard else ():
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


def accepts(seen: FirewallObservation, sweep: Sweep, port: int) -> bool:
    """Whether the rules let a port in, whatever comes of conditions that are not understood."""
    packet = packet_for(seen, sweep, sweep.protocol, port)
    return not outcomes(seen.ruleset, packet, guess=False) & DENY


def _accepts(seen: FirewallObservation, policy: FirewallPolicy, sweep: Sweep) -> Iterator[Finding]:
    """Doors that are open though nobody stands behind them today."""
    for first, last in named_ports(seen.ruleset, sweep.protocol):
        low, high = first, last
        while low <= high and policy.allows(sweep.protocol, low, sweep.family, sweep.origin) is not None:
            low += 1
        while high > low and policy.allows(sweep.protocol, high, sweep.family, sweep.origin) is not None:
            high -= 1
        if low <= high and any(accepts(seen, sweep, port) for port in {low, high}):
            ports = str(first) if first == last else f"{first}-{last}"
            yield finding(
                *("accepts", f"{sweep.protocol}/{ports}", f"a rule lets it in, {sweep.where}"),
                "no rule for what is not in gate.firewall.allowed",
            )


def let_in(seen: FirewallObservation, bare: set[Family], policy: FirewallPolicy) -> Iterator[Finding]:
    """By the guest's own counters: probes that nobody answered, and that got past the filter nevertheless."""
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
    for protocol, count in sent.items():
        reached = accounts.reached.get(protocol)
        if reached is None:
            yield finding(
                *("not-counted", protocol, "the guest does not count what reaches its programs"),
                *("a counter", Severity.REMARK),
            )
            continue
        other = accounts.sent - accounts.own
        more = reached - answered[protocol] - other
        few = count // NOISE if protocol == "tcp" else count // 2
        if more > max(few, 20):
            yield finding(
                *("let-in", protocol, f"{more} of {count} probes got past the filter, without an answer"),
                "none: what has no answer can still be heard",
            )
        elif more > 0:
            # Where a rule may let something in, and nobody can say what, this may be it.
            opaque = any(True for family in policy.families for _ in not_understood(seen.ruleset, family))
            yield finding(
                *("let-in", protocol, f"{more} more than were answered got past the filter"),
                "none, but for what else was on the wire",
                Severity.UNPROVEN if opaque else Severity.REMARK,
            )
