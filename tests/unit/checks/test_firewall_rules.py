"""What rules do with a packet: against rules as nft 1.0.6 and firewalld 2 write them, and with unknown conditions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from firewall_samples import ESTABLISHED, LOOPBACK, clean_rules, field, match, port, read, table
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_osgates.checks.firewall.named import named_ports, unnamed_port
from pytest_osgates.checks.firewall.rules import (
    _UNDERSTOOD,
    PORTS,
    PROTOCOLS,
    Branch,
    Chain,
    Match,
    Packet,
    Rule,
    Ruleset,
    input_chains,
    is_translated,
    outcomes,
)

SSH = Packet("ipv4", "tcp", 22, "192.0.43.70", "eth0", "10.0.2.15")
SIX = Packet("ipv6", "tcp", 22, "fe80::1", "eth0", "fe80::2")
UDP = Packet("ipv4", "udp", 22, "192.0.43.70", "eth0", "10.0.2.15")


def ends(
    *rules: list[Any], packet: Packet = SSH, guess: bool | None = None, policy: str = "drop", **more: Any
) -> str:
    found = outcomes(read(table(*rules, policy=policy, **more)), packet, guess=guess)
    return "|".join(sorted(found))


def test_a_policy_and_what_comes_before_it() -> None:
    assert ends() == "drop"
    assert ends(policy="accept") == "accept"
    assert ends(LOOPBACK, ESTABLISHED) == "drop"
    assert ends(port(22)) == "accept"
    assert ends(port(22), packet=UDP) == "drop"
    assert ends(port(22, "th"), packet=UDP) == "accept"
    assert ends(port(22, verdict="drop"), [{"accept": None}]) == "drop"
    assert ends([{"reject": {"type": "icmpx", "expr": "port-unreachable"}}], policy="accept") == "reject"
    assert ends(packet=SIX, family="ip") == "accept"
    assert outcomes(Ruleset(source="nft"), SSH) == {"accept"}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (match(field("tcp", "dport"), {"set": [21, {"range": [22, 25]}]}), True),
        (match(field("tcp", "dport"), 22, "!="), False),
        (match(field("udp", "dport"), 22, "!="), False),
        (match({"meta": {"key": "iifname"}}, "eth*"), True),
        (match({"meta": {"key": "iifname"}}, {"set": ["wlan0", "wg0"]}), False),
        (match({"meta": {"key": "iif"}}, "lo", "!="), True),
        (match({"meta": {"key": "nfproto"}}, "ipv4"), True),
        (match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), True),
        (match({"meta": {"key": "l4proto"}}, 6), True),
        (match({"meta": {"key": "l4proto"}}, "ipv6-icmp"), False),
        (match(field("ip", "protocol"), "tcp"), True),
        (match(field("ip6", "nexthdr"), "tcp"), False),
        (match({"ct": {"key": "state"}}, {"set": ["new", "untracked"]}, "in"), True),
        (match({"ct": {"key": "state"}}, "invalid", "in"), False),
        (match({"ct": {"key": "status"}}, "dnat", "in"), False),
        (match(field("ip", "saddr"), {"prefix": {"addr": "192.0.0.0", "len": 16}}), True),
        (match(field("ip", "saddr"), {"range": ["192.0.43.1", "192.0.43.99"]}), True),
        (match(field("ip", "saddr"), "10.0.0.1"), False),
        (match(field("ip6", "saddr"), {"prefix": {"addr": "fe80::", "len": 10}}, "!="), False),
        (match(field("ip", "daddr"), "10.0.2.15"), True),
        (match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), True),
        (match({"meta": {"key": "mark"}}, 1), None),
        (match({"&": [{"meta": {"key": "mark"}}, 1]}, 1), None),
        (match({"concat": [field("ip", "saddr"), field("tcp", "dport")]}, {"set": []}), None),
        (match(field("tcp", "dport"), "@gone"), None),
        (match(field("tcp", "flags"), "syn"), True),
        (match({"&": [field("tcp", "flags"), ["syn", "ack"]]}, "syn"), True),
        (match(field("udp", "sport"), 53), True),
        (match(field("ip", "ttl"), 1, "!="), True),
        ({"limit": {"rate": 5, "per": "second"}}, True),
        ({"limit": {"rate": 5, "per": "second", "inv": True}}, None),
        ({"xt": {"type": "match", "name": "recent"}}, None),
        ({"quota": {"val": 1}}, None),
    ],
)
def test_conditions(condition: dict[str, Any], holds: bool | None) -> None:
    both = {True: "accept", False: "drop", None: "accept|drop"}
    assert ends([condition, {"accept": None}]) == both[holds]
    if holds is None:
        assert ends([condition, {"accept": None}], guess=False) == "drop"
        assert ends([condition, {"accept": None}], guess=True) == "accept"


def test_what_the_sender_chooses_keeps_nobody_out() -> None:
    """A rule for answers of name servers lets everybody in who sends from port 53."""
    from_53 = match(field("tcp", "sport"), 53)
    assert ends([from_53, {"accept": None}]) == "accept"
    assert ends([from_53, {"drop": None}], policy="accept") == "accept|drop"
    assert ends([from_53, {"drop": None}], policy="accept", guess=False) == "accept"


def test_maps_of_verdicts() -> None:
    ways = [[22, {"accept": None}], [{"range": [80, 90]}, {"drop": None}]]
    vmap = [{"vmap": {"key": field("tcp", "dport"), "data": {"set": ways}}}]
    assert ends(vmap) == "accept"
    assert ends(vmap, policy="accept", packet=Packet("ipv4", "tcp", 85, "10.0.0.1", "eth0")) == "drop"
    state = [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": None}]]}}}]
    assert ends(state) == "drop"
    odd = [{"vmap": {"key": {"concat": []}, "data": {"set": [[{"concat": [1, 2]}, {"accept": None}]]}}}]
    assert ends(odd) == "accept|drop"
    jump = [[22, {"goto": {"target": "ssh"}}], ["*", {"drop": None}]]
    by_port = [{"vmap": {"key": field("tcp", "dport"), "data": {"set": jump}}}]
    assert ends(by_port, ssh=[[{"accept": None}]]) == "accept"


def test_jumps_returns_and_loops() -> None:
    to = [{"jump": {"target": "more"}}]
    assert ends(to, more=[port(22)]) == "accept"
    assert ends(to, port(22), more=[[{"return": None}], [{"drop": None}]]) == "accept"
    assert ends(to, port(22), more=[port(22, verdict="drop")]) == "drop"
    # After a goto nothing of its own chain is asked any more.
    assert ends([{"goto": {"target": "more"}}], port(22), more=[]) == "drop"
    assert "accept" in ends(to, more=[to])
    assert ends([{"jump": {"target": "nowhere"}}]) == "accept|drop"
    assert ends([{"queue": {}}]) == "accept|drop"


def test_firewalld() -> None:
    """Policy accept, zones behind jumps, and a last rule that rejects."""
    rules = (
        [match({"ct": {"key": "state"}}, {"set": ["established", "related"]}, "in"), {"accept": None}],
        [match({"ct": {"key": "status"}}, "dnat", "in"), {"accept": None}],
        [match({"meta": {"key": "iifname"}}, "lo"), {"accept": None}],
        [match({"ct": {"key": "state"}}, "invalid", "in"), {"drop": None}],
        [{"jump": {"target": "zones"}}],
        [{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}],
    )
    zones = [[{"goto": {"target": "public"}}]]
    public = [
        [{"jump": {"target": "allow"}}],
        [match({"meta": {"key": "l4proto"}}, {"set": ["icmp"]}), {"accept": None}],
    ]
    allow = [port(22)]
    more = {"zones": zones, "public": public, "allow": allow}
    assert ends(*rules, policy="accept", **more) == "accept"
    closed = Packet("ipv4", "tcp", 23, "10.0.2.70", "eth0")
    assert ends(*rules, policy="accept", packet=closed, **more) == "reject"


def test_all_base_chains_are_asked_and_those_of_other_hooks_are_not() -> None:
    """Whoever drops decides; to accept ends one's own part only (nft(8), "Chains")."""

    def chain(name: str, hook: str, policy: str, **more: Any) -> Chain:
        return Chain(**{"family": "inet", "table": "t", "name": name, "hook": hook, "policy": policy, **more})

    drop, accept = chain("a", "input", "drop"), chain("b", "input", "accept")
    assert outcomes(Ruleset(source="nft", chains=(accept, drop)), SSH) == {"drop"}
    assert outcomes(Ruleset(source="nft", chains=(accept,)), SSH) == {"accept"}
    early = chain("c", "prerouting", "drop", priority=-300)
    assert outcomes(Ruleset(source="nft", chains=(accept, early)), SSH) == {"drop"}
    assert input_chains(Ruleset(source="nft", chains=(early,)), "ipv4") == []
    other = chain("d", "forward", "drop")
    assert outcomes(Ruleset(source="nft", chains=(other,)), SSH) == {"accept"}
    six = chain("e", "input", "drop", family="ip6")
    assert outcomes(Ruleset(source="nft", chains=(six,)), SSH) == {"accept"}
    assert outcomes(Ruleset(source="nft", chains=(six,)), SIX) == {"drop"}


def test_what_is_said_to_be_understood_is() -> None:
    for key in _UNDERSTOOD:
        address = {"ip saddr": "10.0.0.1", "ip daddr": "10.0.0.1"}
        values = address.get(key, "1" if key in (*PORTS, *PROTOCOLS) else "new")
        one = Rule(matches=(Match(key=key, values=(values,)),), branches=(Branch(action="accept"),))
        chain = Chain(family="inet", table="t", name="i", hook="input", policy="drop", rules=(one,))
        typed = replace(SSH, icmp_type="echo-request")
        assert len(outcomes(Ruleset(source="nft", chains=(chain,)), typed)) == 1, key


def test_ports_that_rules_speak_of() -> None:
    rules = read(table(port(22), port({"set": [80, {"range": [8000, 8010]}]}), port(53, "udp"), port(5, "th")))
    assert named_ports(rules, "tcp") == ((5, 5), (22, 22), (80, 80), (8000, 8010))
    assert named_ports(rules, "udp") == ((5, 5), (53, 53))
    assert unnamed_port(rules, "tcp") == 1
    assert unnamed_port(read(table(port({"range": [1, 1023]}))), "tcp") == 1024
    assert unnamed_port(read(table(port({"range": [0, 65535]}))), "tcp") == 47001
    assert not is_translated(clean_rules(), SSH)


_VALUES = st.sampled_from(["22", "1-99", "x", "tcp", "new", "0.0.0.0/0", "9-", "-", "1-x"])
_NAMES = st.sampled_from(["input", "a", "b"])
_MATCHES = st.lists(
    st.builds(
        Match,
        key=st.sampled_from(["", "tcp dport", "iifname", "ct state", "ip saddr", "nonsense", "meta l4proto"]),
        values=st.lists(
            st.sampled_from(["22", "1-99", "x", "tcp", "new", "0.0.0.0/0", "9-", "-", "1-x"]), max_size=2
        ).map(tuple),
        negated=st.booleans(),
    ),
    max_size=2,
).map(tuple)
_BRANCHES = st.lists(
    st.builds(
        Branch,
        action=st.sampled_from(["accept", "drop", "reject", "jump", "goto", "return", "continue", "queue", "odd"]),
        target=_NAMES,
        values=st.lists(st.sampled_from(["22", "*", ""]), max_size=1).map(tuple),
    ),
    max_size=3,
).map(tuple)
_RULES = st.lists(
    st.builds(Rule, matches=_MATCHES, branches=_BRANCHES, key=st.sampled_from(["", "", "tcp dport", "?"])), max_size=4
).map(tuple)


@settings(max_examples=40, deadline=None)
@given(_RULES, _RULES, _RULES, st.sampled_from(["accept", "drop", ""]))
def test_any_rules_end_and_guesses_are_among_what_may_be(
    first: tuple[Rule, ...], second: tuple[Rule, ...], third: tuple[Rule, ...], policy: str
) -> None:
    chains = (
        Chain(family="inet", table="t", name="input", hook="input", policy=policy, rules=first),
        Chain(family="inet", table="t", name="a", rules=second),
        Chain(family="inet", table="t", name="b", rules=third),
    )
    rules = Ruleset(source="nft", chains=chains)
    may = outcomes(rules, SSH)
    assert may
    assert may <= {"accept", "drop", "reject"}
    assert outcomes(rules, SSH, guess=False)
    assert outcomes(rules, SSH, guess=True)


# -- what surely comes in -----------------------------------------------------------------------------------------

OPAQUE = {"xt": {"type": "match", "name": "addrtype"}}


def test_a_rule_that_is_not_understood_neither_lets_in_nor_keeps_out_but_may_return() -> None:
    """As ufw-not-local: what is for this machine returns, the rest is dropped."""
    local = [[OPAQUE, {"return": None}], [{"drop": None}]]
    assert ends([{"jump": {"target": "local"}}], port(22), guess=False, local=local) == "accept|drop"
    assert ends([OPAQUE, {"drop": None}], port(22), guess=False) == "accept"
    assert ends([OPAQUE, {"accept": None}], guess=False) == "drop"
    assert ends([OPAQUE, {"jump": {"target": "more"}}], guess=False, more=[[{"accept": None}]]) == "drop"
    assert ends([OPAQUE, {"jump": {"target": "more"}}], port(22), guess=False, more=[[{"drop": None}]]) == "accept"
    # A goto may end its chain.
    inner = [[OPAQUE, {"goto": {"target": "more"}}], [{"drop": None}]]
    found = ends([{"jump": {"target": "inner"}}], port(22), guess=False, inner=inner, more=[])
    assert found == "accept|drop"


def test_whoever_chooses_may_jump_or_not() -> None:
    chosen = [match(field("udp", "sport"), 53), {"jump": {"target": "more"}}]
    assert ends(chosen, port(22), guess=False, more=[[{"drop": None}]]) == "accept|drop"
    assert ends(chosen, guess=False, more=[[{"accept": None}]]) == "accept|drop"


@pytest.mark.parametrize(
    ("operator", "number", "holds"),
    [("<", 22, False), ("<=", 22, True), (">", 21, True), (">", 22, False), (">=", 22, True), ("<", 0, False)],
)
def test_ports_that_are_compared(operator: str, number: int, holds: bool) -> None:
    found = ends([match(field("tcp", "dport"), number, operator), {"accept": None}])
    assert found == ("accept" if holds else "drop")


@pytest.mark.parametrize(
    "statement",
    [
        {"limit": {"rate": 30, "per": "second", "inv": True}},
        {"ct count": {"val": 10, "inv": True}},
        {"quota": {"val": 1}},
        {"limit": {"rate": 30, "per": "second"}},
    ],
)
def test_a_set_with_a_rate_drops_only_beyond_it(statement: dict[str, Any]) -> None:
    update = {"set": {"op": "add", "elem": field("ip", "saddr"), "set": "@meter", "stmt": [statement]}}
    assert ends([update, {"drop": None}], port(22), guess=False) == "accept"
    plain = {"set": {"op": "add", "elem": field("ip", "saddr"), "set": "@seen"}}
    assert ends([plain, {"drop": None}], port(22), guess=False) == "drop"


def test_chains_of_other_cards_and_bridges_do_not_count() -> None:
    base = {"family": "netdev", "table": "t", "name": "i", "handle": 1, "type": "filter", "hook": "ingress"}
    for device, found in (("eth0", "drop"), (["wlan0", "eth0"], "drop"), ("wlan0", "accept"), (None, "accept")):
        chain = {**base, "prio": -500, "policy": "drop", **({"dev": device} if device else {})}
        assert outcomes(read([*table(port(22)), {"chain": chain}]), SSH) == {found}
    bridge = {**base, "family": "bridge", "hook": "input", "prio": -200, "policy": "drop"}
    assert outcomes(read([*table(port(22)), {"chain": bridge}]), SSH) == {"accept"}


def test_targets_of_iptables_that_nft_names() -> None:
    assert ends([{"xt": {"type": "target", "name": "REJECT"}}], port(22)) == "reject"
    assert ends([{"xt": {"type": "target", "name": "LOG"}}], port(22)) == "accept"
    assert ends([{"xt": {"type": "target", "name": "NFQUEUE"}}]) == "accept|drop"
    assert ends([{"xt": {"type": "match", "name": "comment"}}, {"accept": None}]) == "accept"
    assert is_translated(read(table([{"xt": {"type": "target", "name": "REDIRECT"}}])), SSH)
    assert not is_translated(read(table([match(field("tcp", "dport"), 5), {"redirect": {"port": 6}}])), SSH)
