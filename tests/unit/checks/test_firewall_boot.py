"""The judge of the gate `firewall` and what is known of the boot, and of counters that nobody kept."""

from __future__ import annotations

from typing import Any

from firewall_samples import (
    ESTABLISHED,
    LOOPBACK,
    NEIGHBOURS,
    POLICY,
    TARGETS,
    clean_rules,
    observed,
    read,
    sweeps,
    table,
)

from pytest_osgates.checks.firewall import FirewallObservation, FirewallPolicy, judge
from pytest_osgates.checks.firewall.rules import Chain
from pytest_osgates.checks.firewall.seen import Answers, BootAnswer
from pytest_osgates.model import Severity

ALOUD = FirewallPolicy(closed_answers="refused")
RESETS = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, [{"reject": {"type": "tcp reset"}}]))


def keys(seen: FirewallObservation, policy: FirewallPolicy = POLICY, severity: Severity | None = None) -> set[Any]:
    decisive = (Severity.VIOLATION, Severity.UNPROVEN) if severity is None else (severity,)
    return {finding.key for finding in judge(seen, policy) if finding.severity in decisive}


def _closed(*ranges: tuple[int, int]) -> Any:
    """Later, these ports of TCP say that they are closed."""
    answers = tuple(Answers(how="closed", first=first, last=last) for first, last in ranges)
    return tuple(one.model_copy(update={"answers": answers}) if one.protocol == "tcp" else one for one in sweeps())


def _boot(*answers: BootAnswer) -> Any:
    return tuple(watch.model_copy(update={"answers": answers}) for watch in observed().boot)


def test_resets_at_boot_that_may_be_of_rules_or_of_no_rules() -> None:
    early = _boot(*(BootAnswer(port=number, how="closed", origin="link", before_s=9.0) for number in (22, 40001)))
    seen = observed(ruleset=RESETS, sweeps=_closed((1, 65535)), boot=early)
    assert keys(seen, ALOUD, Severity.UNPROVEN) == keys(seen, ALOUD)
    assert keys(seen, ALOUD) == {("boot-not-told", "ipv4"), ("boot-not-told", "ipv6")}
    assert all(finding.hint for finding in judge(seen, ALOUD))
    # Nothing answered: whatever stood, it dropped. A rule that rejects otherwise was one, too.
    assert keys(observed(ruleset=RESETS, sweeps=_closed((1, 65535))), ALOUD) == set()
    other = _boot(BootAnswer(port=40001, how="rejected", origin="link", code=13, before_s=9.0))
    assert keys(observed(ruleset=RESETS, sweeps=_closed((1, 65535)), boot=other), ALOUD) == set()
    # Where most are silent later, the light probe would have heard others, too.
    some = observed(ruleset=RESETS, sweeps=_closed((1, 40000), (40001, 42000)), boot=early)
    assert keys(some, ALOUD) == set()
    # Without rules, that is the finding.
    assert keys(observed(ruleset=read(table(policy="accept")), sweeps=_closed((1, 65535)), boot=early), ALOUD) == {
        ("not-default-deny", "ipv4"),
        ("not-default-deny", "ipv6"),
    }


def test_each_address_that_is_tried_was_watched_while_it_booted() -> None:
    four, link_local, six = observed().boot
    assert keys(observed(boot=(four, link_local))) == {("boot-not-watched", "ipv6")}
    (finding,) = judge(observed(boot=(four, link_local)), POLICY)
    assert TARGETS["ipv6", "global"] in finding.seen
    former = four.model_copy(update={"address": "10.0.2.77"})
    assert keys(observed(boot=(former, link_local, six))) == {("boot-not-watched", "ipv4")}
    # One that came when it was ready was watched as the one before it.
    late = {"late": ("10.0.2.15",)}
    assert keys(observed(boot=(former, link_local, six), **late)) == set()
    assert keys(observed(boot=(link_local, six), **late)) == {("boot-not-watched", "ipv4")}
    assert keys(observed(unwatched=("10.0.2.99",)), severity=Severity.UNPROVEN) == {("boot-not-watched", "addresses")}


def test_a_boot_of_which_long_parts_were_not_watched() -> None:
    four, *rest = observed().boot
    gone = four.model_copy(update={"proven": 20, "longest_gap": 19.0})
    assert keys(observed(boot=(gone, *rest)), severity=Severity.UNPROVEN) == {("boot-gap", "10.0.2.15")}
    # A slow host takes longer over everything; an address of before is not there any more.
    assert keys(observed(boot=(gone, *rest), pace=4.0)) == set()
    assert keys(observed(boot=(gone, *rest), pace=0.1)) == {("boot-gap", "10.0.2.15")}
    assert keys(observed(boot=(four, gone.model_copy(update={"address": "10.0.2.77"}), *rest))) == set()


def test_probes_that_nobody_can_explain_are_not_noise() -> None:
    def reached(loopback: int = 0, **counts: int) -> FirewallObservation:
        accounts = observed().accounts.model_copy(
            update={"reached": {"tcp": 0, "udp": 0, **counts}, "loopback": loopback}
        )
        return observed(accounts=accounts)

    for protocol, many in (("tcp", 3276), ("udp", 240), ("tcp", 26), ("udp", 26)):
        seen = reached(**{protocol: many})
        assert keys(seen) == keys(seen, severity=Severity.UNPROVEN) == {("let-in", protocol)}
    # Five other frames were sent; what the guest sent to itself is taken off.
    assert keys(reached(tcp=25, udp=25)) == set()
    assert keys(reached(tcp=600, loopback=580)) == set()
    assert keys(reached(tcp=600, loopback=570)) == {("let-in", "tcp")}


def test_packets_that_are_passed_on_are_told() -> None:
    def forward(name: str, policy: str) -> Chain:
        return Chain(family="ip", table="filter", name=name, kind="filter", hook="forward", policy=policy, priority=0)

    assert keys(observed(forwarding=("ipv4",)), severity=Severity.REMARK) == {("forwards", "ipv4")}
    assert keys(observed(forwarding=("ipv4",))) == set()
    for policy, told in (("drop", set()), ("accept", {("forwards", "ipv4")})):
        rules = clean_rules()
        rules = rules.model_copy(update={"chains": (*rules.chains, forward("f", policy))})
        assert keys(observed(forwarding=("ipv4",), ruleset=rules), severity=Severity.REMARK) == told
