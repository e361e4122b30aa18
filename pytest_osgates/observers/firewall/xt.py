"""What iptables-save(8) writes, as rules; and what the names of its targets mean: `iptables.toml`."""

from __future__ import annotations

import re
import shlex
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from pytest_osgates.checks.firewall.rules import CHOSEN, Branch, Chain, Match, Rule
from pytest_osgates.vm.text import one_line

MAX_RULES = 20_000
_POLICY = re.compile(r":(\S{1,60}) (ACCEPT|DROP|-)(?: |$)")
_APPEND = re.compile(r"(?:\[\d{1,20}:\d{1,20}\] )?-A (\S{1,60})(?: (.*))?")
_HOOKS = {"INPUT": "input", "PREROUTING": "prerouting"}
# What iptables names otherwise than nft.
_OTHERWISE = {"meta pkttype": {"unicast": "host"}}
_PORTED = frozenset({"tcp", "udp", "sctp", "dccp", "udplite"})


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("iptables.toml").read_text(encoding="utf-8"))


def target(name: str) -> str:
    """What a target does; empty: nobody knows."""
    return str(_data()["targets"].get(name, ""))


@cache
def harmless() -> frozenset[str]:
    """Matches that ask nothing."""
    return frozenset(_data()["harmless"])


def saved(text: str, family: str, mark: str = "legacy ") -> tuple[list[Chain], str]:
    """Chains of what iptables-save(8) or ip6tables-save(8) wrote, and what is wrong with it. `mark`: before the names
    of their tables. What is not understood of a rule is a condition that may hold or not.
    """
    chains: dict[tuple[str, str], Chain] = {}
    rules: dict[tuple[str, str], list[Rule]] = {}
    table, ended = "", True
    for number, line in enumerate(text.splitlines()):
        if number >= MAX_RULES:
            return [], f"iptables-save: more than {MAX_RULES} lines"
        if line.startswith("*"):
            table, ended = one_line(line[1:].strip(), 60), False
        elif line.strip() == "COMMIT":
            ended = True
        elif (policy := _POLICY.match(line)) is not None:
            name = one_line(policy[1], 60)
            built_in = policy[2] != "-"
            chains[table, name] = Chain(
                family=family,
                table=f"{mark}{table}",
                name=name,
                kind="nat" if table == "nat" else "filter",
                hook=_HOOKS.get(name, "other") if built_in else "",
                policy=policy[2].lower() if built_in else "",
            )
        elif (rule := _APPEND.fullmatch(line)) is not None:
            rules.setdefault((table, rule[1]), []).append(_rule(rule[2] or "", family, line))
        elif line.strip() and not line.startswith("#"):
            return [], f"iptables-save: {one_line(line, 100)}"
    if not ended:
        return [], "what iptables-save says is cut short"
    found = [chain.model_copy(update={"rules": tuple(rules.get(key, ()))}) for key, chain in chains.items()]
    return found, ""


def _rule(text: str, family: str, line: str) -> Rule:
    shown = one_line(line, 300)
    try:
        words = shlex.split(text)
    except ValueError:
        # Whatever it is, it may accept.
        return Rule(matches=(Match(key=""),), branches=(Branch(action="accept"),), text=shown)
    matches: list[Match] = []
    at, negated, protocol = 0, False, ""
    while at < len(words) and words[at] not in ("-j", "-g"):
        word, at = words[at], at + 1
        if word == "!":
            negated = True
            continue
        option = _data()["options"].get(word)
        count = 1 if option is None else int(option.get("arguments", 1))
        arguments = words[at : at + count]
        at += count
        if option is None:
            # It may have arguments, or none: the next that is understood begins with a dash.
            at = next((n for n in range(at - count, len(words)) if words[n].startswith("-") or words[n] == "!"), at)
            matches.append(Match(key=""))
        elif len(arguments) < count:
            matches.append(Match(key=""))
        else:
            if word == "-p":
                protocol = arguments[0] if not negated else ""
            matches += _match(str(option["key"]), arguments[0], family, protocol, negated=negated)
        negated = False
    jump, name = (words[at], words[at + 1]) if at + 1 < len(words) else ("", "")
    does = target(name)
    if does == "untrack" and name != "NOTRACK" and "--notrack" not in words[at:]:
        does = "continue"
    if does in ("", "translate", "continue", "untrack"):
        branch = Branch(action="goto" if jump == "-g" else "jump", target=one_line(name, 60))
        branches = (branch,) if name and not does else ()
    else:
        branches = (Branch(action=does),)
    return Rule(
        matches=settled(matches, branches),
        branches=branches,
        translates=does == "translate",
        untracks=does == "untrack",
        text=shown,
    )


def _match(key: str, value: str, family: str, protocol: str, *, negated: bool) -> list[Match]:
    if key == "nothing":
        return []
    if key == "chosen":
        return [Match(key=CHOSEN)]
    if key == "module":
        # What it asks is in its options; one that has none is not understood.
        return [] if value in _MODULES or value in harmless() or value == protocol else [Match(key="")]
    if key.startswith("PROTOCOL "):
        if protocol not in _PORTED:
            return [Match(key="")]
        key = key.replace("PROTOCOL", protocol)
    key = key.replace("IP ", "ip6 " if family == "ip6" else "ip ")
    values = value.split(",")
    known = _data()["values"].get(key)
    if known is not None:
        if not set(values) <= set(known):
            return [Match(key="")]
        values = [_OTHERWISE.get(key, {}).get(one, one.lower()) for one in values]
    if key.endswith("dport"):
        values = [one.replace(":", "-") for one in values]
    if key == "iifname":
        values = [value[:-1] + "*" if value.endswith("+") else value]
    return [Match(key=key, values=tuple(one_line(one, 200) for one in values), negated=negated)]


_MODULES = frozenset(
    {"addrtype", "conntrack", "dscp", "hl", "icmp", "icmp6", "length", "limit", "mac", "multiport", "pkttype"}
    | {"state", "tcp", "ttl", "udp", "sctp", "dccp"}
)


def settled(matches: list[Match], branches: tuple[Branch, ...]) -> tuple[Match, ...]:
    """With conditions that the sender chooses: of a rule that does nothing but let in they hold, of another they
    may."""
    kept = [match for match in matches if match.key != CHOSEN]
    if len(kept) == len(matches):
        return tuple(kept)
    actions = {branch.action for branch in branches}
    lets = actions & {"accept", "queue"}
    if lets == actions and lets:
        return tuple(kept)
    # Of one that only keeps out nothing is sure.
    either = lets or not actions or actions & {"jump", "goto"}
    return (*kept, Match(key=CHOSEN if either else ""))
