"""Whether what was tried can be believed: addresses, ways, losses, and how much was seen of the boot."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_osgates.checks.firewall.policy import FirewallPolicy
from pytest_osgates.checks.firewall.said import finding, scopes, unproven
from pytest_osgates.checks.firewall.seen import FirewallObservation
from pytest_osgates.model import Finding, Severity

# Between two probes of an address that are taken while it boots: an emulated machine on a busy host takes 0.4 s.
GAP_S = 5.0


def vacuity(seen: FirewallObservation, policy: FirewallPolicy) -> Iterator[Finding]:
    """Whether there was anything to try, and whether all of it was tried."""
    for problem in seen.problems:
        yield unproven("not-observed", "guest", problem, "an answer")
    for family in policy.families:
        for scope in scopes(family, "link"):
            if not any((one.family, one.scope) == (family, scope) for one in seen.addresses):
                yield unproven(
                    *("no-address", f"{family} {scope}", "the machine has no such address: nothing of it was tried"),
                    "an address, or a profile whose families leave this one out",
                )
        if "beyond" in policy.origins and family not in seen.default_routes:
            yield unproven(
                *("no-way-back", family, "the machine has no default route: it could not answer to beyond"),
                "a default route, or origins that leave beyond out",
            )
    for one in seen.addresses:
        if one.family not in policy.families:
            yield unproven(
                *("family-not-tried", one.family, f"the machine has {one.address}, and the profile leaves it out"),
                "no address of that family, or the family in the profile",
            )
    tried = {(sweep.protocol, sweep.family, sweep.origin, sweep.scope) for sweep in seen.sweeps if sweep.full}
    there = {(one.family, one.scope) for one in seen.addresses}
    for family in policy.families:
        for origin in policy.origins:
            for scope in scopes(family, origin):
                for protocol in ("tcp", "udp", "kinds") if (family, scope) in there else ():
                    if (protocol, family, origin, scope) not in tried:
                        subject = f"{protocol} {family} {scope} {origin}"
                        yield unproven("not-tried", subject, "it was not tried", "every port and kind tried")


def losses(seen: FirewallObservation, policy: FirewallPolicy) -> Iterator[Finding]:
    """Whether every probe arrived."""
    accounts = seen.accounts
    if accounts.problem:
        yield unproven("not-counted", "card", accounts.problem, "counts of both sides")
    elif not accounts.own:
        yield unproven("not-counted", "card", "nothing was sent", "probes")
    elif accounts.lost:
        yield unproven(
            *("lost", "card", f"{accounts.sent} frames were sent, the guest's card counted {accounts.received}"),
            "the same number: a port that is silent must not be one that was never asked",
        )
    for name, count in sorted(accounts.drops.items()):
        yield unproven("lost", name, f"the guest lost {count} packets ({name})", "none lost for want of room")
    for sweep in seen.sweeps:
        asked = sum(answer.count for answer in sweep.of("unproven")) + len(sweep.unproven_kinds)
        if asked or not sweep.done:
            what = f"{asked} of {sweep.asked} may never have arrived" if asked else "it did not come to its end"
            yield unproven("not-proven", sweep.name, what, "every probe taken by the guest")
    for sweep in seen.sweeps:
        if sweep.strange:
            what = f"{sweep.strange} packets came back that fit no probe: from another address, in fragments, or odd"
            yield unproven("strange", sweep.name, what, "answers that can be told apart")
    yield from _watched(seen, policy)


def _watched(seen: FirewallObservation, policy: FirewallPolicy) -> Iterator[Finding]:
    """Whether the light probe tried, while it booted, each address that was tried later: rules may name addresses."""
    if seen.unwatched:
        many = ", ".join(seen.unwatched[:5])
        yield unproven(
            *("boot-not-watched", "addresses", f"it had too many addresses while it booted: {many} were not watched"),
            "every address watched as soon as it is there",
        )
    for family in policy.families:
        there = [one.address for one in seen.addresses if one.family == family]
        demanded = [address for address in there if address not in seen.late]
        proven = dict.fromkeys(demanded, 0)
        for watch in seen.boot:
            if watch.address in proven:
                proven[watch.address] += watch.proven
        if there and not demanded:
            # They came later: whatever was watched while it booted.
            proven = {family: sum(watch.proven for watch in seen.boot if watch.family == family)}
        few = [f"{address}: {count}" for address, count in proven.items() if count < policy.boot_probes]
        if few:
            yield unproven(
                *("boot-not-watched", family, f"probes taken before the machine was ready: {', '.join(few)}"),
                f"at least {policy.boot_probes} of each address",
            )
        most = GAP_S * max(1.0, seen.pace)
        for watch in seen.boot:
            if watch.address in demanded and watch.longest_gap > most:
                yield unproven(
                    *("boot-gap", watch.address, f"for {watch.longest_gap:.1f} s of the boot it took no probe"),
                    f"not more than {most:.0f} s: what stood meanwhile, nobody knows",
                )


def forwards(seen: FirewallObservation, policy: FirewallPolicy) -> Iterator[Finding]:
    """What is behind a machine that passes packets on, containers of its own too, is not tried, and not judged."""
    for family in policy.families if not seen.ruleset.problem else ():
        kept = any(
            (chain.hook == "forward" or (chain.name == "FORWARD" and chain.table.endswith("filter")))
            and chain.family in ("inet", "ip" if family == "ipv4" else "ip6")
            and chain.policy == "drop"
            for chain in seen.ruleset.chains
        )
        if family in seen.forwarding and not kept:
            yield finding(
                *("forwards", family, "the machine passes packets on, and no chain with hook forward drops the rest"),
                *("no forwarding, or policy drop: whoever is on the link reaches what is behind", Severity.REMARK),
            )
