"""Whether what was tried can be believed: addresses, ways, losses, and how much was seen of the boot."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_osgates.checks.firewall.policy import FirewallPolicy
from pytest_osgates.checks.firewall.said import scopes, unproven
from pytest_osgates.checks.firewall.seen import FirewallObservation
from pytest_osgates.model import Finding


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
    for family in policy.families:
        watched = [watch for watch in seen.boot if watch.family == family]
        if any(one.family == family for one in seen.addresses):
            proven = sum(watch.proven for watch in watched)
            if proven < policy.boot_probes:
                yield unproven(
                    *("boot-not-watched", family, f"{proven} probes were taken before the machine was ready"),
                    f"at least {policy.boot_probes}",
                )
