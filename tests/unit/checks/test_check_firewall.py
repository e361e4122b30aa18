"""The judge of the gate `firewall`: each thing that is wrong is one finding, and nothing that was lost passes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from firewall_samples import (
    ESTABLISHED,
    LOOPBACK,
    NEIGHBOURS,
    POLICY,
    WAYS,
    answering,
    clean_rules,
    field,
    listener,
    match,
    observed,
    port,
    read,
    sweeps,
    table,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_osgates.checks.firewall import GATE, FirewallObservation, FirewallPolicy, judge
from pytest_osgates.checks.firewall.rules import Ruleset
from pytest_osgates.checks.firewall.seen import Accounts, Answers, BootAnswer
from pytest_osgates.judging import judge as verdict_of
from pytest_osgates.model import Severity, Verdict

IPV4 = tuple(way for way in WAYS if way[0] == "ipv4")
IPV6 = tuple(way for way in WAYS if way[0] == "ipv6")


def keys(seen: FirewallObservation, policy: FirewallPolicy = POLICY, severity: Severity | None = None) -> set[Any]:
    decisive = (Severity.VIOLATION, Severity.UNPROVEN) if severity is None else (severity,)
    return {finding.key for finding in judge(seen, policy) if finding.severity in decisive}


def allowing(**entry: Any) -> FirewallPolicy:
    return FirewallPolicy(allowed=({"reason": "it is needed", **entry},), **entry.pop("policy", {}))


def test_silence_passes_with_every_control_caught() -> None:
    judgement = verdict_of(GATE, observed(), POLICY)
    assert judgement.verdict is Verdict.PASS
    assert judgement.findings == ()
    assert len(judgement.controls) == 10
    assert judgement.considered is not None
    assert judgement.considered > 5 * 65535


def test_an_open_port_is_one_finding_wherever_it_answers() -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(8080)))
    seen = observed(sweeps=answering("open", 8080), ruleset=rules, listeners=(listener(8080),))
    (finding,) = judge(seen, POLICY)
    assert finding.key == ("open", "tcp/8080")
    assert "IPv6 link-local from the link" in finding.seen
    assert "/usr/bin/python3 on 0.0.0.0" in finding.seen


def test_an_ipv6_only_listener() -> None:
    """The rule is for both families; in IPv4 the port is closed, and says so, for the same rule's sake."""
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(6666)))
    both = tuple(
        one.model_copy(
            update={"answers": (Answers(how="open" if one.family == "ipv6" else "closed", first=6666, last=6666),)}
        )
        if one.protocol == "tcp"
        else one
        for one in sweeps()
    )
    seen = observed(sweeps=both, ruleset=rules, listeners=(listener(6666, "::"),))
    (finding,) = judge(seen, POLICY)
    assert finding.key == ("open", "tcp/6666")
    assert "IPv4" not in finding.seen


def test_what_the_profile_allows_is_accepted_with_its_reason() -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(22)))
    seen = observed(sweeps=answering("open", 22), ruleset=rules, listeners=(listener(22),))
    policy = allowing(protocol="tcp", ports=(22,))
    (finding,) = judge(seen, policy)
    assert (finding.severity, finding.reason) == (Severity.ACCEPTED, "it is needed")
    assert verdict_of(GATE, seen, policy).verdict is Verdict.PASS
    assert keys(seen, allowing(protocol="tcp", ports=(22,), reason=" ")) == {("open", "tcp/22")}
    assert keys(seen, allowing(protocol="tcp", ports=(22,), origin="link")) == {("open", "tcp/22")}
    assert keys(seen, allowing(protocol="tcp", ports=(22,), family="ipv6")) == {("open", "tcp/22")}
    assert keys(seen, allowing(protocol="udp", ports=(22,))) == {("open", "tcp/22")}
    # And nobody listens there: it is closed, says so, and may.
    assert keys(observed(sweeps=answering("closed", 22), ruleset=rules), policy) == set()


def test_an_allowance_that_is_not_needed_is_told() -> None:
    policy = allowing(protocol="icmp", kinds=("echo",))
    assert keys(observed(), policy, Severity.REMARK) == {("unused", "icmp/echo")}
    assert verdict_of(GATE, observed(), policy).verdict is Verdict.PASS


def test_a_rule_for_nobody_is_a_finding() -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port({"range": [7000, 7002]})))
    seen = observed(sweeps=answering("closed", 7000, 7001, 7002), ruleset=rules)
    assert keys(seen) == {("accepts", "tcp/7000-7002")}
    policy = allowing(protocol="tcp", ports=(7000, 7001, 7002))
    assert keys(seen, policy) == set()


@pytest.mark.parametrize(("how", "rule"), [("closed", "refused"), ("rejected", "rejected")])
def test_ports_that_say_that_they_are_closed(how: str, rule: str) -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, [{"reject": {"type": "tcp reset"}}], policy="accept"))
    seen = observed(sweeps=answering(how, 1, 2, 3, ways=IPV4), ruleset=rules)
    assert keys(seen) == {(rule, "ipv4")}
    assert keys(seen, FirewallPolicy(closed_answers="refused")) == set()


def test_everything_let_in_is_the_finding_and_not_what_comes_of_it() -> None:
    rules = read(table(policy="accept"))
    everywhere = tuple(
        one.model_copy(update={"answers": (Answers(how="closed", first=1, last=65535),)})
        if one.protocol == "tcp"
        else one.model_copy(update={"heard": {"echo": "type 0"}})
        for one in sweeps()
    )
    watched = tuple(
        one.model_copy(update={"answers": (BootAnswer(port=1, how="closed", origin="link"),)})
        for one in observed().boot
    )
    seen = observed(
        sweeps=everywhere,
        ruleset=rules,
        boot=watched,
        accounts=Accounts(sent=9, own=9, received=9, reached={"tcp": 9}),
    )
    assert keys(seen) == {("not-default-deny", "ipv4"), ("not-default-deny", "ipv6")}
    assert ("refused", "ipv4") in keys(seen, severity=Severity.REMARK)
    assert all(control.caught for control in verdict_of(GATE, seen, POLICY).controls)
    bare = seen.model_copy(update={"ruleset": Ruleset(source="nft")})
    assert keys(bare) == {("no-ruleset", "input")}
    # What listens is open, whatever the reason.
    listening = observed(sweeps=answering("open", 80), ruleset=rules)
    assert ("open", "tcp/80") in keys(listening)


def test_one_family_without_rules() -> None:
    seen = observed(ruleset=read(table(LOOPBACK, ESTABLISHED, family="ip")))
    assert keys(seen) == {("not-default-deny", "ipv6")}


def test_a_policy_that_drops_may_be_demanded() -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, [{"drop": None}], policy="accept"))
    assert keys(observed(ruleset=rules)) == set()
    assert keys(observed(ruleset=rules), FirewallPolicy(chain_policy="drop")) == {
        ("chain-policy", "inet filter input")
    }


def test_rules_that_let_the_neighbours_in() -> None:
    near = [match(field("ip", "saddr"), {"prefix": {"addr": "10.0.0.0", "len": 8}}), {"accept": None}]
    assert keys(observed(ruleset=read(table(LOOPBACK, NEIGHBOURS, near)))) == {("not-default-deny", "ipv4")}


def test_other_protocols() -> None:
    chatty = tuple(
        one.model_copy(update={"heard": {"echo": "type 0", "timestamp": "type 14", "sctp-init": "error 3/2"}})
        if one.protocol == "kinds" and one.family == "ipv4"
        else one
        for one in sweeps()
    )
    seen = observed(sweeps=chatty)
    assert keys(seen) == {("answers", "icmp/echo"), ("answers", "icmp/timestamp"), ("rejected", "ipv4")}
    policy = FirewallPolicy(
        closed_answers="refused",
        allowed=({"protocol": "icmp", "kinds": ("echo", "timestamp"), "reason": "others look for this machine"},),
    )
    assert keys(seen, policy) == set()
    assert {finding.severity for finding in judge(seen, policy)} == {Severity.ACCEPTED}


# -- what was lost ------------------------------------------------------------------------------------------------


def _accounts(**changes: Any) -> dict[str, Any]:
    return {"accounts": observed().accounts.model_copy(update=changes)}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (_accounts(received=5), ("lost", "card")),
        (_accounts(received=10**9), ("lost", "card")),
        (_accounts(drops={"softnet.dropped": 1}), ("lost", "softnet.dropped")),
        (_accounts(problem="no"), ("not-counted", "card")),
        (_accounts(own=0, sent=0, received=0), ("not-counted", "card")),
        ({"problems": ("sockets: no find",)}, ("not-observed", "guest")),
        ({"default_routes": ("ipv4",)}, ("no-way-back", "ipv6")),
        ({"ruleset": clean_rules().model_copy(update={"problem": "no nft"})}, ("ruleset-not-read", "input")),
        ({"boot": ()}, ("boot-not-watched", "ipv4")),
        ({"sweeps": sweeps()[1:]}, ("not-tried", "tcp ipv4 global link")),
        (
            {"sweeps": (sweeps()[0].model_copy(update={"done": False}), *sweeps()[1:])},
            ("not-proven", sweeps()[0].name),
        ),
        ({"sweeps": answering("unproven", 22, ways=IPV4[:1])}, ("not-proven", sweeps()[0].name)),
        (
            {"sweeps": (*sweeps()[:2], sweeps()[2].model_copy(update={"unproven_kinds": ("echo",)}), *sweeps()[3:])},
            ("not-proven", sweeps()[2].name),
        ),
    ],
)
def test_what_was_not_tried_or_lost_proves_nothing(changes: dict[str, Any], key: tuple[str, str]) -> None:
    seen = observed(**changes)
    assert key in keys(seen)
    assert verdict_of(GATE, seen, POLICY).verdict is Verdict.NOT_PROVEN


def test_a_family_without_an_address_was_not_tried() -> None:
    only4 = tuple(one for one in observed().addresses if one.family == "ipv4")
    seen = observed(addresses=only4, sweeps=tuple(one for one in sweeps() if one.family == "ipv4"))
    assert keys(seen) == {("no-address", "ipv6 global"), ("no-address", "ipv6 link-local")}
    assert keys(seen, FirewallPolicy(families=("ipv4",))) == set()
    # A profile that leaves a family out does not make one that is there go away.
    assert keys(observed(), FirewallPolicy(families=("ipv4",))) == {("family-not-tried", "ipv6")}


def test_probes_that_got_past_the_filter_without_an_answer() -> None:
    assert keys(observed(**_accounts(reached={"tcp": 60000, "udp": 0}))) == {("let-in", "tcp")}
    assert keys(observed(**_accounts(reached={"tcp": 0, "udp": 400}))) == {("let-in", "udp")}
    few = observed(**_accounts(reached={"tcp": 12, "udp": 8}))
    assert keys(few) == set()
    assert keys(few, severity=Severity.REMARK) == {("let-in", "tcp"), ("let-in", "udp")}
    own = observed(**_accounts(reached={"tcp": 500, "udp": 300}, loopback=600))
    assert keys(own) == {("let-in", "udp")}
    assert keys(own, severity=Severity.UNPROVEN) == {("let-in", "udp")}
    assert keys(observed(**_accounts(reached={"tcp": 60000, "udp": 0}, loopback=60000))) == {("let-in", "tcp")}
    assert keys(observed(**_accounts(reached={})), severity=Severity.UNPROVEN) == {
        ("not-counted", "tcp"),
        ("not-counted", "udp"),
    }


# -- at boot ------------------------------------------------------------------------------------------------------


def test_what_answers_while_it_boots() -> None:
    def booting(*answers: BootAnswer) -> FirewallObservation:
        first, *rest = observed().boot
        return observed(boot=(first.model_copy(update={"answers": answers}), *rest))

    early = BootAnswer(port=8080, how="open", origin="link", before_s=3.0)
    closed = BootAnswer(port=50000, how="closed", origin="beyond", before_s=4.0)
    assert keys(booting(early)) == {("open-at-boot", "tcp/8080")}
    assert keys(booting(closed)) == {("refused-at-boot", "ipv4")}
    # Where closed ports may say so, the filter that says nothing, or rejects, was not there yet.
    aloud = FirewallPolicy(closed_answers="refused")
    assert keys(booting(closed), aloud) == {("refused-at-boot", "ipv4")}
    boot = booting(closed).boot
    rejecting = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, [{"reject": {"type": "icmp"}}], policy="accept"))
    filtered = observed(sweeps=answering("rejected", 50000, ways=IPV4), ruleset=rejecting, boot=boot)
    assert keys(filtered, aloud) == {("refused-at-boot", "ipv4")}
    still = observed(sweeps=answering("closed", 50000, ways=IPV4), ruleset=rejecting, boot=boot)
    assert keys(still, aloud) == set()
    assert keys(booting(closed), allowing(protocol="tcp", ports=(50000,))) == set()
    assert keys(booting(early), allowing(protocol="tcp", ports=(8080,))) == set()
    # What is open for good is no finding of the boot's; nor is a door that nobody stands behind.
    door = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(50000)))
    seen = observed(sweeps=answering("closed", 50000), ruleset=door, boot=booting(closed).boot)
    assert keys(seen) == {("accepts", "tcp/50000")}
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(8080)))
    seen = observed(sweeps=answering("open", 8080), ruleset=rules, boot=booting(early).boot)
    assert keys(seen) == {("open", "tcp/8080")}


# -- rules and answers --------------------------------------------------------------------------------------------


def test_an_answer_that_no_rule_explains() -> None:
    seen = observed(sweeps=answering("open", 22, ways=IPV4))
    assert keys(seen) == {("open", "tcp/22"), ("unexplained", "tcp/22")}
    assert keys(seen, allowing(protocol="tcp", ports=(22,))) == {("unexplained", "tcp/22")}


def test_a_listener_that_the_rules_let_answer_and_that_is_silent() -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(22)))
    seen = observed(ruleset=rules, listeners=(listener(22),))
    policy = allowing(protocol="tcp", ports=(22,))
    assert keys(seen, policy) == {("unheard", "tcp/22")}
    # With a rate, the first ones were answered.
    first = tuple(
        one.model_copy(update={"full": False, "answers": (Answers(how="open", first=22, last=22),)})
        for one in sweeps()
        if one.protocol == "tcp" and one.origin == "link"
    )
    early = BootAnswer(port=22, how="open", origin="beyond", before_s=-1.0)
    boot = tuple(one.model_copy(update={"answers": (early,)}) for one in seen.boot)
    assert keys(seen.model_copy(update={"sweeps": (*first, *seen.sweeps), "boot": boot}), policy) == set()
    assert keys(seen.model_copy(update={"sweeps": (*first, *seen.sweeps)}), policy) == {("unheard", "tcp/22")}


def test_rules_that_change_ports_are_not_compared() -> None:
    turned = [match(field("tcp", "dport"), 80), {"redirect": {"port": 8080}}]
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, turned))
    seen = observed(sweeps=answering("open", 80, ways=IPV4), ruleset=rules)
    assert keys(seen) == {("open", "tcp/80")}
    assert ("not-compared", "ruleset") in keys(seen, severity=Severity.REMARK)


def test_conditions_that_are_not_understood_are_told() -> None:
    marked = [match(field("udp", "dport"), 9999), match({"meta": {"key": "mark"}}, 7), {"accept": None}]
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, marked))
    seen = observed(ruleset=rules)
    both = {("not-understood", "ipv4"), ("not-understood", "ipv6")}
    # Nobody tried all ports of UDP.
    assert keys(seen, severity=Severity.UNPROVEN) == keys(seen) == both
    allowed = allowing(protocol="udp", ports=(9999,))
    assert keys(seen, allowed) == set()
    assert keys(seen, allowed, severity=Severity.REMARK) == {*both, ("unused", "udp/9999")}
    # One datagram that got past the filter may be what such a rule lets in.
    seen = observed(ruleset=rules, **_accounts(reached={"tcp": 0, "udp": 6}))
    assert keys(seen, allowed) == {("let-in", "udp")}
    # What is of TCP, was tried, but not with that mark.
    marked[0] = match(field("tcp", "dport"), 9999)
    seen = observed(ruleset=read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, marked)))
    assert keys(seen, severity=Severity.UNPROVEN) == keys(seen) == both
    assert keys(seen, allowing(protocol="tcp", ports=(9999,))) == set()
    # What the card is, it stays.
    marked[1] = match({"meta": {"key": "iiftype"}}, "ether")
    seen = observed(ruleset=read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, marked)))
    assert keys(seen) == set()
    assert keys(seen, severity=Severity.REMARK) == both


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ([match({"ct": {"key": "state"}}, "established", "in"), {"xt": None}, {"accept": None}], Severity.REMARK),
        ([match({"meta": {"key": "iifname"}}, "lo"), {"xt": None}, {"accept": None}], Severity.REMARK),
        ([match({"meta": {"key": "l4proto"}}, "tcp"), {"xt": None}, {"accept": None}], Severity.UNPROVEN),
        ([match({"meta": {"key": "l4proto"}}, "udp"), {"xt": None}, {"accept": None}], Severity.UNPROVEN),
        ([{"xt": None}, {"jump": {"target": "more"}}], Severity.UNPROVEN),
        ([{"xt": None}, {"jump": {"target": "drops"}}], Severity.REMARK),
        ([{"queue": {}}], Severity.UNPROVEN),
        ([match(field("tcp", "dport"), 5), {"queue": {}}], Severity.UNPROVEN),
        ([{"xt": None}, {"drop": None}], None),
        ([{"xt": None}, {"return": None}], None),
    ],
)
def test_rules_that_are_not_understood_and_datagrams(rule: list[Any], told: Severity | None) -> None:
    more = {"more": [port(5, "udp")], "drops": [[{"drop": None}]], "unused": [[{"xt": None}, {"accept": None}]]}
    seen = observed(ruleset=read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, rule, **more)))
    severities = {finding.severity for finding in judge(seen, POLICY) if finding.rule == "not-understood"}
    assert severities == (set() if told is None else {told})


def test_a_limit_keeps_nobody_out() -> None:
    limited = [match(field("udp", "dport"), 9999), {"limit": {"rate": 5, "per": "second"}}, {"accept": None}]
    assert keys(observed(ruleset=read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, limited)))) == {
        ("accepts", "udp/9999")
    }


def test_a_rule_for_a_source_port_is_a_rule_for_everybody() -> None:
    answers = [match(field("udp", "sport"), 53), {"accept": None}]
    seen = observed(ruleset=read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, answers)))
    assert keys(seen) == {("not-default-deny", "ipv4"), ("not-default-deny", "ipv6")}


def test_rules_that_change_are_told() -> None:
    key = ("ruleset-changed", "input")
    assert keys(observed(changed=True), severity=Severity.UNPROVEN) == {key}
    # Elements of sets come and go; what they let in is judged.
    same = clean_rules()
    assert keys(observed(again=same)) == set()
    assert keys(observed(again=same), severity=Severity.REMARK) == {key}
    more = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(5)))
    assert keys(observed(again=more)) == {("accepts", "tcp/5")}
    assert ("not-default-deny", "ipv4") in keys(observed(again=read(table(policy="accept"))))
    assert ("no-ruleset", "input") in keys(observed(again=Ruleset(source="nft")))
    assert ("ruleset-not-read", "input") in keys(observed(again=Ruleset(source="nft", problem="no answer")))


# -- what speaks for nothing else ---------------------------------------------------------------------------------


def test_an_allowance_in_one_family_is_none_in_the_other() -> None:
    """The rule is for both; in IPv6 the port says that it is closed."""
    both = tuple(
        one.model_copy(
            update={"answers": (Answers(how="open" if one.family == "ipv4" else "closed", first=22, last=22),)}
        )
        if one.protocol == "tcp"
        else one
        for one in sweeps()
    )
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(22)))
    seen = observed(sweeps=both, ruleset=rules)
    assert keys(seen, allowing(protocol="tcp", ports=(22,), family="ipv4")) == {("accepts", "tcp/22")}
    assert keys(seen, allowing(protocol="tcp", ports=(22,))) == set()


def test_an_allowance_from_the_link_is_none_for_the_boot_from_beyond() -> None:
    near = tuple(way for way in WAYS if way[2] == "link")
    only = [match(field("ip", "saddr"), {"prefix": {"addr": "10.0.2.0", "len": 24}}), *port(22)]
    first, *rest = observed().boot
    early = BootAnswer(port=22, how="open", origin="beyond", before_s=3.0)
    boot = (first.model_copy(update={"answers": (early,)}), *rest)
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, only))
    seen = observed(sweeps=answering("open", 22, ways=near[:1]), ruleset=rules, boot=boot)
    policy = allowing(protocol="tcp", ports=(22,), origin="link")
    assert keys(seen, policy) == {("open-at-boot", "tcp/22")}


# -- datagrams for many -------------------------------------------------------------------------------------------

MDNS = [match(field("ip", "daddr"), "224.0.0.251"), *port(5353, "udp")]


def test_rules_for_groups_are_doors() -> None:
    seen = observed(ruleset=read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, MDNS)))
    (finding,) = judge(seen, POLICY)
    assert finding.key == ("accepts", "udp/5353")
    assert "to 224.0.0.251" in finding.seen
    assert keys(seen, allowing(protocol="udp", ports=(5353,))) == set()
    six = [match(field("ip6", "daddr"), {"prefix": {"addr": "ff02::", "len": 16}}), *port(5353, "udp")]
    assert keys(observed(ruleset=read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, six)))) == {("accepts", "udp/5353")}


@pytest.mark.parametrize(
    ("condition", "subjects"),
    [
        (
            match({"meta": {"key": "pkttype"}}, {"set": ["multicast", "broadcast"]}),
            {"udp/multicast", "udp/broadcast"},
        ),
        (match({"fib": {"result": "type", "flags": ["daddr"]}}, "multicast"), {"udp/multicast"}),
        (match(field("ip", "daddr"), "255.255.255.255"), {"udp/broadcast"}),
        (match(field("ip", "daddr"), {"prefix": {"addr": "224.0.0.0", "len": 4}}), {"udp/multicast"}),
        (match(field("ip", "daddr"), "10.0.2.99"), {"tcp/10.0.2.99", "udp/10.0.2.99"}),
    ],
)
def test_rules_for_whatever_is_for_many(condition: dict[str, Any], subjects: set[str]) -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, [condition, {"accept": None}]))
    found = keys(observed(ruleset=rules, groups=("224.0.0.251", "255.255.255.255", "ff02::fb")))
    # To a group, whoever is behind other protocols is not asked.
    assert found == {("accepts", subject) for subject in subjects}


def test_a_hole_between_the_ends_of_a_range_is_a_door() -> None:
    ends = port({"set": [7000, 7009]}, verdict="drop")
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, ends, port({"range": [7000, 7009]})))
    assert keys(observed(ruleset=rules)) == {("accepts", "tcp/7000-7009")}
    allowed = allowing(protocol="tcp", ports=tuple(range(7001, 7009)))
    assert keys(observed(ruleset=rules), allowed) == set()


def test_an_answer_to_a_group_is_an_open_port() -> None:
    kind = "udp/5353 to 224.0.0.251"
    heard = tuple(
        one.model_copy(update={"heard": {kind: "protocol 17"}})
        if (one.protocol, one.family, one.origin) == ("kinds", "ipv4", "link")
        else one
        for one in sweeps()
    )
    seen = observed(sweeps=heard, ruleset=read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, MDNS)))
    (finding,) = judge(seen, POLICY)
    assert finding.key == ("open", "udp/5353")
    assert "IPv4 from the link, to 224.0.0.251" in finding.seen
    (finding,) = judge(seen, allowing(protocol="udp", ports=(5353,)))
    assert finding.severity is Severity.ACCEPTED


@pytest.mark.parametrize("protocol", ["esp", "gre", "sctp", "udplite"])
def test_protocols_that_nobody_tries(protocol: str) -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, [match({"meta": {"key": "l4proto"}}, protocol), {"accept": None}]))
    seen = observed(ruleset=rules)
    assert keys(seen) == {("accepts", f"other/{protocol}")}
    assert keys(seen, allowing(protocol="other", kinds=(protocol,))) == set()
    if protocol == "sctp":
        ported = read(table(LOOPBACK, ESTABLISHED, port(9000, "sctp")))
        assert keys(observed(ruleset=ported)) == {("accepts", "other/sctp")}


def test_odd_answers_are_told() -> None:
    odd = (sweeps()[0].model_copy(update={"strange": 1}), *sweeps()[1:])
    assert keys(observed(sweeps=odd)) == {("strange", sweeps()[0].name)}


# -- addresses that rules change ----------------------------------------------------------------------------------


def _nat(hook: str, *rules: list[Any]) -> list[dict[str, Any]]:
    base = {"family": "ip", "table": "nat", "name": hook, "handle": 1}
    return [
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
        {"chain": {**base, "type": "nat", "hook": hook, "prio": -100, "policy": "accept"}},
        *({"rule": {"family": "ip", "table": "nat", "chain": hook, "handle": 1, "expr": rule}} for rule in rules),
    ]


def test_what_goes_out_may_be_redirected() -> None:
    names = [match(field("udp", "dport"), 53), {"redirect": {"port": 5353}}]
    rules = read([*table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(7)), *_nat("output", names)])
    assert keys(observed(ruleset=rules)) == {("accepts", "tcp/7")}
    assert ("not-compared", "ruleset") not in keys(observed(ruleset=rules), severity=Severity.REMARK)


def test_what_comes_in_and_is_redirected_is_not_compared_and_doors_are() -> None:
    turned = [match(field("udp", "dport"), 53), {"redirect": {"port": 5353}}]
    rules = read([*table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(7)), *_nat("prerouting", turned)])
    seen = observed(sweeps=answering("closed", 7), ruleset=rules)
    assert keys(seen) == {("accepts", "tcp/7"), ("not-compared", "ruleset")}
    assert keys(seen, allowing(protocol="udp", ports=(53,))) == {("accepts", "tcp/7")}


@pytest.mark.parametrize("how", ["open", "closed"])
def test_a_guest_that_answers_every_second_port_holds_nobody_up(how: str) -> None:
    every = tuple(Answers(how=how, first=number, last=number) for number in range(1, 65536, 2))
    loud = tuple(one.model_copy(update={"answers": every}) if one.protocol == "tcp" else one for one in sweeps())
    boot = tuple(
        one.model_copy(
            update={
                "answers": tuple(BootAnswer(port=number, how="closed", origin="link") for number in range(1, 2000))
            }
        )
        for one in observed().boot
    )
    seen = observed(sweeps=loud, boot=boot, listeners=tuple(listener(number) for number in range(2, 1000, 2)))
    begun = time.process_time()
    assert 1 < len(judge(seen, POLICY)) < 2000
    assert time.process_time() - begun < 4.0


def test_thousands_of_open_ports_are_few_findings() -> None:
    many = tuple(
        one.model_copy(update={"answers": (Answers(how="open", first=1, last=65535),)})
        if one.protocol == "tcp"
        else one
        for one in sweeps()
    )
    assert len(judge(observed(sweeps=many, ruleset=read(table(policy="accept"))), POLICY)) < 20


# -- baseline, compare, policy ------------------------------------------------------------------------------------


def test_baseline_and_compare() -> None:
    rules = read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, port(22)))
    seen = observed(sweeps=answering("open", 22), ruleset=rules)
    assert GATE.baseline is not None
    assert GATE.compare is not None
    assert GATE.baseline(seen, POLICY) == '[[gate.firewall.allowed]]\nprotocol = "tcp"\nports = [22]\nreason = ""\n\n'
    lines = GATE.compare(observed(), seen)
    assert "tcp ipv4 global link: 22 open: new" in lines
    assert "the ruleset is another one" in lines
    assert GATE.compare(seen, seen) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed": [{"protocol": "tcp", "reason": "x"}]},
        {"allowed": [{"protocol": "tcp", "ports": [0], "reason": "x"}]},
        {"allowed": [{"protocol": "icmp", "ports": [1], "reason": "x"}]},
        {"families": []},
        {"closed_answers": "loud"},
        {"boot_probes": 0},
    ],
)
def test_profiles_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FirewallPolicy.model_validate(wrong)


@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "closed", "rejected", "unproven"]), st.integers(1, 65535)),
        max_size=4,
        unique_by=lambda pair: pair[1],
    ),
    st.sampled_from(sorted(WAYS)),
    st.booleans(),
)
def test_nothing_that_answers_or_was_lost_passes(
    answers: list[tuple[str, int]], way: tuple[str, str, str], udp: bool
) -> None:
    protocol = "udp" if udp else "tcp"
    planted = tuple(Answers(how=how, first=number, last=number) for how, number in answers)
    changed = tuple(
        one.model_copy(update={"answers": planted})
        if (one.protocol, one.family, one.scope, one.origin) == (protocol, *way)
        else one
        for one in sweeps()
    )
    seen = observed(sweeps=changed)
    assert FirewallObservation.model_validate_json(seen.model_dump_json()) == seen
    assert bool(keys(seen)) == bool(answers)
