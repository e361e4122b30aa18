"""What rules let in that nobody tried: later, for others, by whatever the sender chooses; as nft 1.0.6 lists them."""

from __future__ import annotations

from typing import Any

import pytest
from firewall_samples import (
    ESTABLISHED,
    LOOPBACK,
    NEIGHBOURS,
    POLICY,
    answering,
    field,
    listener,
    match,
    observed,
    port,
    read,
    table,
)

from pytest_osgates.checks.firewall import FirewallPolicy, judge
from pytest_osgates.checks.firewall.policy import Allowed
from pytest_osgates.checks.firewall.rules import Ruleset
from pytest_osgates.checks.firewall.words import has_protocol, protocol_ends, protocol_name, protocol_number
from pytest_osgates.model import Severity
from pytest_osgates.observers.firewall import nft, xt

ACCEPT, DROP = {"accept": None}, {"drop": None}
BOTH = {("not-understood", "ipv4"), ("not-understood", "ipv6")}
OPEN = {("not-default-deny", "ipv4"), ("not-default-deny", "ipv6")}
UNTRACKED = [match({"ct": {"key": "state"}}, ["established", "related", "untracked"], "in"), ACCEPT]


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def rules(*more: list[Any], **changes: Any) -> Ruleset:
    """Those of a machine that lets nothing in, and `more`."""
    return read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS, *more, **changes))


def found(ruleset: Ruleset, policy: FirewallPolicy = POLICY, **changes: Any) -> dict[tuple[str, str], Severity]:
    """Of findings that decide."""
    all_of = judge(observed(ruleset=ruleset, **changes), policy)
    return {one.key: one.severity for one in all_of if one.severity in (Severity.VIOLATION, Severity.UNPROVEN)}


def named(kind: str, name: str, **more: Any) -> dict[str, Any]:
    """A set."""
    return {"set": {"family": "inet", "table": "filter", "name": name, "type": kind, **more}}


def with_set(one: dict[str, Any], *more: list[Any]) -> Ruleset:
    return read([one, *table(LOOPBACK, ESTABLISHED, NEIGHBOURS, *more)])


def before(*listed: list[Any], hook: str = "prerouting") -> list[dict[str, Any]]:
    """A base chain of its own."""
    base = {"family": "inet", "table": "filter", "name": "early"}
    chain = {**base, "type": "filter", "hook": hook, "prio": -300, "policy": "accept"}
    out = [{"rule": {"family": "inet", "table": "filter", "chain": "early", "expr": one}} for one in listed]
    return [{"chain": chain}, *out]


def legacy(*lines: str) -> Ruleset:
    """Of the old iptables, in IPv4; IPv6 lets nothing in."""
    head = ("*filter", ":INPUT DROP [0:0]", "-A INPUT -i lo -j ACCEPT")
    four, problem = xt.saved("\n".join((*head, *lines, "COMMIT")), "ip")
    six, problem_six = xt.saved("\n".join((*head, "COMMIT")), "ip6")
    assert (problem, problem_six) == ("", "")
    return Ruleset(source="none", chains=(*four, *six))


# -- tables, reasons ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "known"),
    [
        (None, True),
        ("owner", True),
        (["owner", "persist"], True),
        ("strict", False),
        ("other", False),
        (["owner", "soon"], False),
    ],
)
def test_flags_of_a_table_that_are_none_hide_whether_it_is_dormant(flags: Any, known: bool) -> None:
    """nft 1.0.6 writes a table's name there, of this one or another."""
    strict = {"family": "inet", "name": "strict", "handle": 2, **({"flags": flags} if flags else {})}
    other = {"family": "inet", "name": "other", "handle": 3}
    seen = read([{"table": strict}, {"table": other}, *table(LOOPBACK, ESTABLISHED, NEIGHBOURS)])
    assert found(seen) == ({} if known else {("ruleset-not-read", "input"): Severity.UNPROVEN})


def test_a_table_that_is_called_dormant_and_one_that_is() -> None:
    drops = {"family": "inet", "table": "t", "name": "input", "type": "filter", "hook": "input", "prio": -9}
    chain = {"chain": {**drops, "policy": "drop"}}
    open_ = table([ACCEPT])
    dormant = {"table": {"family": "inet", "name": "t", "flags": ["dormant"]}}
    assert set(found(read([dormant, chain, *open_]))) == OPEN
    called = {"table": {"family": "inet", "name": "dormant"}}
    assert ("ruleset-not-read", "input") in found(read([dormant, called, chain, *open_]))


@pytest.mark.parametrize("reason", ["", "  "])
def test_an_allowance_without_a_reason_allows_nothing(reason: str) -> None:
    def policy(protocol: Any, **more: Any) -> FirewallPolicy:
        return FirewallPolicy(allowed=(Allowed(protocol=protocol, reason=reason, **more),))

    assert set(found(rules(port(4123, "udp")), policy("udp", ports=(4123,)))) == {("accepts", "udp/4123")}
    esp = rules([match(meta("l4proto"), "esp"), ACCEPT])
    assert set(found(esp, policy("other", kinds=("esp",)))) == {("accepts", "other/esp")}
    marked = rules([match(meta("mark"), 1), *port(4123, "udp")])
    assert set(found(marked, policy("udp", ports=(4123,)))) == BOTH
    closed = found(rules(port(4123)), policy("tcp", ports=(4123,)), sweeps=answering("closed", 4123))
    assert set(closed) == {("accepts", "tcp/4123")}
    nat = {"family": "inet", "table": "filter", "name": "n", "type": "nat", "hook": "prerouting", "prio": -100}
    to = [match(field("udp", "dport"), 4123), {"redirect": {"port": 4124}}]
    turned = [{"chain": {**nat, "policy": "accept"}}]
    turned += [{"rule": {"family": "inet", "table": "filter", "chain": "n", "expr": to}}]
    seen = read([*table(LOOPBACK, ESTABLISHED, NEIGHBOURS), *turned])
    assert found(seen, policy("udp", ports=(4123,))) == {("not-compared", "ruleset"): Severity.UNPROVEN}
    # A second entry that has one does.
    both = (*policy("udp", ports=(4123,)).allowed, Allowed(protocol="udp", ports=(4123,), reason="needed"))
    assert found(rules(port(4123, "udp")), FirewallPolicy(allowed=both)) == {}


def test_an_allowance_from_the_link_does_not_speak_for_what_is_beyond() -> None:
    marked = rules([match(meta("mark"), 1), *port(4123, "udp")])
    one = Allowed(protocol="udp", ports=(4123,), reason="needed", origin="link")
    assert set(found(marked, FirewallPolicy(allowed=(one,)))) == BOTH
    assert found(marked, FirewallPolicy(allowed=(one,), origins=("link",))) == {}


# -- conditions that nobody reads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "condition",
    [
        match(meta("hour"), {"range": ["22:00", "23:00"]}),
        match(meta("day"), "Sunday"),
        match(meta("time"), "2027-01-01 00:00:00", ">"),
        match({"osf": {"key": "name", "ttl": "loose"}}, "Windows"),
        match({"numgen": {"mode": "random", "mod": 100000, "offset": 0}}, 0),
        match({"ct": {"key": "mark"}}, 1),
        match(meta("mark"), 1),
        {"quota": {"val": 10, "val_unit": "mbytes", "inv": True}},
        {"xt": {"type": "match", "name": "recent"}},
    ],
)
def test_a_rule_of_tcp_that_may_let_in_later_or_others_is_not_proven(condition: dict[str, Any]) -> None:
    rule = [match(field("tcp", "dport"), 22), condition, ACCEPT]
    assert found(rules(rule)) == dict.fromkeys(BOTH, Severity.UNPROVEN)
    ssh = FirewallPolicy(allowed=(Allowed(protocol="tcp", ports=(22,), reason="needed"),))
    assert found(rules(rule), ssh) == {}
    # Who keeps out more is welcome to it.
    assert found(rules([*rule[:-1], DROP])) == {}


@pytest.mark.parametrize(
    "line",
    [
        "-m recent --rcheck --seconds 10 --name KNOCK --rsource",
        "-m time --timestart 22:00:00 --timestop 06:00:00",
        '-m string --string "open" --algo bm --to 65535',
        "-m set --match-set knocked src",
    ],
)
def test_the_same_of_iptables(line: str) -> None:
    found_ = found(legacy(f"-A INPUT -p tcp -m tcp --dport 22 {line} -j ACCEPT"))
    assert found_ == {("not-understood", "ipv4"): Severity.UNPROVEN}


def test_the_limit_of_ufw_is_no_door() -> None:
    """What it does not understand leads to a chain that only rejects."""
    ssh = FirewallPolicy(allowed=(Allowed(protocol="tcp", ports=(22,), reason="needed"),))
    told = legacy(
        ":limit - [0:0]",
        "-A INPUT -p tcp -m tcp --dport 23 -m recent --update --seconds 30 --hitcount 6 -j limit",
        "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
        "-A limit -j REJECT --reject-with icmp-port-unreachable",
    )
    assert found(told, ssh) == {}


def test_another_protocol_behind_a_mark_is_not_proven() -> None:
    rule = [match(meta("l4proto"), "esp"), match(meta("mark"), 1), ACCEPT]
    assert set(found(rules(rule))) == BOTH
    esp = FirewallPolicy(allowed=(Allowed(protocol="other", kinds=("50",), reason="needed"),))
    assert found(rules(rule), esp) == {}


def test_a_rule_that_expects_other_connections_is_not_proven() -> None:
    assert set(found(rules([match(field("tcp", "dport"), 22), {"ct expectation": "e"}]))) == BOTH


@pytest.mark.parametrize("name", ["saddr", "dport"])
def test_a_field_of_a_packet_in_a_tunnel_is_another_field(name: str) -> None:
    inner = {"payload": {"tunnel": "vxlan", "protocol": "ip" if name == "saddr" else "udp", "field": name}}
    rule = [match(field("udp", "dport"), 4789), match(inner, "10.9.9.9" if name == "saddr" else 5), ACCEPT]
    assert found(rules(rule)) == dict.fromkeys(BOTH, Severity.UNPROVEN)


# -- what the sender chooses --------------------------------------------------------------------------------------


def test_what_is_not_tracked_is_let_in_as_such() -> None:
    ports = [match(field("udp", "dport"), {"range": [4000, 4100]}), {"notrack": None}]
    plain = table(LOOPBACK, UNTRACKED, NEIGHBOURS)
    assert found(read(plain)) == {}
    assert set(found(read([*plain, *before(ports)]))) == {("accepts", "udp/4000-4100")}
    chosen = [match(field("udp", "sport"), 53), {"notrack": None}]
    assert set(found(read([*plain, *before(chosen)]))) == OPEN
    marked = [match(meta("mark"), 1), {"notrack": None}]
    assert set(found(read([*plain, *before(marked)]))) == BOTH
    # Of what the machine itself sends.
    assert found(read([*plain, *before(ports, hook="output")])) == {}


@pytest.mark.parametrize("target", ["CT --notrack", "NOTRACK"])
def test_the_same_of_iptables_untracked(target: str) -> None:
    states = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED,UNTRACKED -j ACCEPT"
    raw = ("COMMIT", "*raw", ":PREROUTING ACCEPT [0:0]")
    rule = f"-A PREROUTING -p udp -m udp --dport 4000 -j {target}"
    assert set(found(legacy(states, *raw, rule))) == {("accepts", "udp/4000")}
    assert found(legacy(states, *raw, rule.replace(target, "CT --zone 5"))) == {}


def test_a_set_that_packets_fill_lets_in_who_fills_it() -> None:
    ok = named("ipv4_addr", "ok", flags=["timeout", "dynamic"], timeout=10)
    add = {"set": {"op": "add", "elem": field("ip", "saddr"), "set": "@ok"}}
    knock = [match(field("udp", "dport"), 47111), add]
    in_it = match(field("ip", "saddr"), "@ok")
    assert set(found(with_set(ok, knock, [in_it, ACCEPT]))) == {("not-default-deny", "ipv4")}
    assert set(found(with_set(ok, knock, [in_it, *port(22)]))) == {("accepts", "tcp/22")}
    outside = match(field("ip", "saddr"), "@ok", "!=")
    assert set(found(with_set(ok, knock, [outside, DROP], port(22)))) == {("accepts", "tcp/22")}
    # Whoever is put there for knocking may leave it at that.
    assert set(found(with_set(ok, knock, [in_it, DROP], port(22)))) == {("accepts", "tcp/22")}
    # What the machine sends fills it, or nobody knows who does.
    sent = before([match(field("udp", "dport"), 53), add], hook="output")
    seen = read([ok, *table(LOOPBACK, ESTABLISHED, NEIGHBOURS, [in_it, *port(22)]), *sent])
    assert found(seen) == dict.fromkeys(BOTH, Severity.UNPROVEN)
    assert set(found(with_set(ok, [in_it, *port(22)]))) == BOTH


def test_what_is_before_the_protocol_in_ipv6_is_the_senders_choice() -> None:
    def next_header(value: Any, operator: str = "==") -> dict[str, Any]:
        return match(field("ip6", "nexthdr"), value, operator)

    for value in ("hopopt", 0, "ipv6-frag", 60):
        assert set(found(rules([next_header(value), ACCEPT]))) == {("not-default-deny", "ipv6")}
    assert set(found(rules([next_header(60), *port(4123, "udp")]))) == {("accepts", "udp/4123")}
    # It keeps out who sends no other header before it.
    tcp = port(22)
    assert set(found(rules([next_header("tcp"), DROP], tcp))) == {("accepts", "tcp/22")}
    assert found(rules([next_header("icmpv6"), ACCEPT])) == {}


def test_a_map_that_lets_in_and_drops_behind_what_the_sender_chooses() -> None:
    data = {"set": [[53, ACCEPT], [{"range": [54, 65535]}, DROP]]}
    mapped = [match(field("udp", "sport"), 53), {"vmap": {"key": field("udp", "dport"), "data": data}}]
    dns = FirewallPolicy(allowed=(Allowed(protocol="udp", ports=(53,), reason="needed"),))
    assert ("accepts", "udp/4123") in found(rules(mapped, port(4123, "udp")), dns)


# -- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"range": [50, 51]},
        {"range": ["esp", "ah"]},
        {"set": [{"range": [50, 51]}]},
        {"prefix": {"addr": 50, "len": 7}},
        {"set": ["esp", 51]},
    ],
)
def test_ranges_of_protocols(value: Any) -> None:
    both = {("accepts", "other/esp"), ("accepts", "other/ah")}
    assert set(found(rules([match(meta("l4proto"), value), ACCEPT]))) == both


def test_what_a_range_leaves_out_is_not_denied() -> None:
    rest = [match(meta("l4proto"), {"range": [6, 17]}, "!="), {"reject": None}]
    assert set(found(rules(rest, policy="accept"))) == OPEN


def test_protocols_that_nobody_knows_are_not_understood() -> None:
    rule = [match(meta("l4proto"), {"range": ["one", "two"]}), ACCEPT]
    assert found(rules(rule)) == dict.fromkeys(BOTH, Severity.UNPROVEN)


def test_names_and_numbers_of_protocols() -> None:
    assert protocol_ends("ipv6-icmp") == (58, 58)
    assert protocol_ends("ipv6-icmp-iso-tp4") == (58, 29)
    assert protocol_ends("esp-ah") == (50, 51)
    assert protocol_ends("50/7") == (50, 51)
    assert [protocol_ends(one) for one in ("256", "x", "50/9", "x/4", "-", "50-x")] == [None] * 6
    assert has_protocol(("x", "50"), 50) is True
    assert has_protocol(("x", "50"), 51) is None
    assert has_protocol(("*",), 51) is True
    assert all(protocol_number(protocol_name(number)) == number for number in range(256))


@pytest.mark.parametrize(
    ("key", "value", "family"), [("ip protocol", "icmp", "ipv6"), ("ip6 nexthdr", "ipv6-icmp", "ipv4")]
)
def test_a_field_of_one_family_says_nothing_of_the_other(key: str, value: str, family: str) -> None:
    rule = [match(field(*key.split(" ")), value, "!="), {"reject": None}]
    assert ("not-default-deny", family) in found(rules(rule, policy="accept"))


@pytest.mark.parametrize(
    ("kind", "left", "told"),
    [
        ("ipv4_addr", field("ip", "saddr"), {("accepts", "udp/4123")}),
        ("ipv6_addr", field("ip6", "saddr"), {("accepts", "udp/4123")}),
        ("inet_service", field("udp", "dport"), {("accepts", "udp/4123")}),
        ("ifname", meta("iifname"), {("accepts", "udp/4123")}),
    ],
)
def test_the_element_for_all_is_for_all(kind: str, left: dict[str, Any], told: set[Any]) -> None:
    every = named(kind, "any", elem=["*"])
    assert set(found(with_set(every, [match(left, "@any"), *port(4123, "udp")]))) == told


def test_the_element_for_all_of_a_map_is_asked_last_and_of_its_protocol_alone() -> None:
    data = {"set": [["*", DROP], [4123, ACCEPT]]}
    mapped = [{"vmap": {"key": field("udp", "dport"), "data": data}}]
    assert set(found(rules(mapped, port(22)))) == {("accepts", "udp/4123"), ("accepts", "tcp/22")}


# -- other protocols, other targets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [(41, "ipv6"), ("ipencap", "ipencap"), (4, "ipencap"), (115, "l2tp"), ("ospf", "ospf"), (199, "199")],
)
def test_whatever_protocol_a_rule_names_is_asked_about(value: Any, name: str) -> None:
    seen = rules([match(meta("l4proto"), value), ACCEPT])
    assert set(found(seen)) == {("accepts", f"other/{name}")}
    for kind in (name, str(protocol_number(name))):
        assert found(seen, FirewallPolicy(allowed=(Allowed(protocol="other", kinds=(kind,), reason="r"),))) == {}


def test_protocols_of_iptables_and_those_that_none_names() -> None:
    assert set(found(legacy("-A INPUT -p ipv6 -j ACCEPT"))) == {("accepts", "other/ipv6")}
    swept = {"set": ["tcp", "udp", "icmp", "ipv6-icmp", "ah", "dccp", "esp", "gre", "sctp", "udplite"]}
    seen = rules([match(meta("l4proto"), swept, "!="), ACCEPT])
    assert set(found(seen)) == {("accepts", "other/253")}
    # The ends of a range are another rule's.
    ends = [match(meta("l4proto"), {"set": [60, 66]}), DROP]
    seen = rules(ends, [match(meta("l4proto"), {"range": [60, 66]}), ACCEPT])
    assert set(found(seen)) == {("accepts", "other/61"), ("accepts", "other/65")}


def test_another_protocol_to_a_group() -> None:
    rule = [match(field("ip", "daddr"), "224.0.0.18"), match(field("ip", "protocol"), "vrrp"), ACCEPT]
    assert set(found(rules(rule))) == {("accepts", "other/vrrp")}


@pytest.mark.parametrize(
    ("conditions", "subjects"),
    [
        ([match(field("ip", "daddr"), "10.0.2.16"), *port(22)], {"tcp/22"}),
        ([match(field("ip", "daddr"), "10.0.2.16"), ACCEPT], {"tcp/10.0.2.16", "udp/10.0.2.16"}),
        ([match(field("ip6", "daddr"), "2001:db8:2::abcd"), *port(22)], {"tcp/22"}),
        ([match(field("ip", "daddr"), "10.0.2.15", "!="), *port(22)], {"tcp/22"}),
        ([match(field("ip", "daddr"), "10.0.2.255"), *port(137, "udp")], {"udp/137"}),
        ([match({"fib": {"result": "type", "flags": ["daddr"]}}, "broadcast"), *port(137, "udp")], {"udp/137"}),
        (
            [
                match({"fib": {"result": "type", "flags": ["daddr"]}}, "broadcast"),
                match(field("ip", "daddr"), "255.255.255.255", "!="),
                *port(137, "udp"),
            ],
            {"udp/137"},
        ),
        (
            [
                match(meta("pkttype"), "broadcast"),
                match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"),
                *port(9, "udp"),
            ],
            {"udp/9"},
        ),
        ([match(field("ip", "daddr"), "127.0.0.1"), *port(22)], set()),
    ],
)
def test_targets_that_rules_name(conditions: list[Any], subjects: set[str]) -> None:
    assert set(found(rules(conditions))) == {("accepts", subject) for subject in subjects}


def test_the_addresses_on_which_somebody_waits_are_targets() -> None:
    """The rule names another one; what is for the one that is swept it drops."""
    drops = [match(field("ip", "daddr"), "10.0.2.15"), *port(22)[:-1], DROP]
    near = [match(field("ip", "daddr"), {"prefix": {"addr": "10.0.2.12", "len": 30}}), *port(22)]
    ends = [match(field("ip", "daddr"), {"set": ["10.0.2.12", "10.0.2.15"]}), DROP]
    assert found(rules(ends, drops, near)) == {}
    waits = (listener(22, "10.0.2.13"),)
    assert set(found(rules(ends, drops, near), listeners=waits)) == {("accepts", "tcp/22")}


def test_another_target_whose_packets_go_elsewhere_is_told() -> None:
    nat = {"family": "inet", "table": "filter", "name": "n", "type": "nat", "hook": "prerouting", "prio": -100}
    to = [
        match(field("ip", "daddr"), "10.0.2.16"),
        match(field("udp", "dport"), 5000),
        {"dnat": {"addr": "172.17.0.2"}},
    ]
    more = [{"chain": {**nat, "policy": "accept"}}]
    more += [{"rule": {"family": "inet", "table": "filter", "chain": "n", "expr": to}}]
    seen = read([*table(LOOPBACK, ESTABLISHED, NEIGHBOURS), *more])
    assert found(seen) == {("not-compared", "ruleset"): Severity.UNPROVEN}
    # What answers is compared all the same.
    closed = found(seen, sweeps=answering("open", 80))
    assert set(closed) == {("not-compared", "ruleset"), ("open", "tcp/80"), ("unexplained", "tcp/80")}


def test_a_group_between_those_that_rules_drop() -> None:
    ends = [match(field("ip", "daddr"), {"set": ["224.0.0.0", "239.255.255.255"]}), DROP]
    groups = [match(field("ip", "daddr"), {"prefix": {"addr": "224.0.0.0", "len": 4}}), *port(4123, "udp")]
    assert set(found(rules(ends, groups))) == {("accepts", "udp/4123")}


# -- limits -------------------------------------------------------------------------------------------------------


def test_more_than_can_be_asked_about_is_not_proven() -> None:
    odd = named("inet_service", "d", elem=[number * 2 + 1 for number in range(4100)])
    seen = with_set(odd, [match(field("udp", "dport"), "@d"), DROP], port(40123, "udp"))
    assert found(seen) == {("too-many", "udp ports"): Severity.UNPROVEN}
    many = {"set": [f"224.1.{number // 250}.{number % 250 + 1}" for number in range(70)]}
    seen = rules([match(field("ip", "daddr"), many), DROP])
    assert set(found(seen)) == {("too-many", "udp targets"), ("too-many", "other protocols")}
    waits = tuple(listener(number, protocol="udp") for number in range(20000, 20500))
    assert found(rules(), listeners=waits) == {("too-many", "listeners"): Severity.UNPROVEN}


# -- who is not tried ---------------------------------------------------------------------------------------------


def test_rules_for_sources_and_cards_that_nobody_tries_are_remarks() -> None:
    def said(*more: list[Any]) -> list[tuple[str, Severity]]:
        all_of = judge(observed(ruleset=rules(*more)), POLICY)
        return [(one.subject, one.severity) for one in all_of if one.rule == "accepts-elsewhere"]

    network = match(field("ip", "saddr"), {"prefix": {"addr": "192.168.0.0", "len": 16}})
    assert said([network, ACCEPT]) == [("ipv4", Severity.REMARK)]
    assert said([match(meta("iifname"), "eth0", "!="), ACCEPT]) == [
        ("ipv4", Severity.REMARK),
        ("ipv6", Severity.REMARK),
    ]
    assert said() == said([network, DROP]) == said([network, *ESTABLISHED]) == []
    assert said([match(field("ip6", "saddr"), "::1"), match(field("icmpv6", "type"), "x"), ACCEPT]) == []


def test_what_nft_says_may_be_anything() -> None:
    for odd in ({"set": {"family": 1, "table": 2, "name": 3, "flags": 5}}, {"table": {"family": 1, "name": 2}}):
        assert nft.ruleset(b'{"nftables": []}').problem
        assert read([odd, *table(LOOPBACK)]).chains
