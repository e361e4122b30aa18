"""A clean observation of the gate `firewall`, and rules as nft writes them."""

from __future__ import annotations

import json
from typing import Any

from pytest_osgates.checks.firewall import FirewallObservation, FirewallPolicy
from pytest_osgates.checks.firewall.rules import Ruleset
from pytest_osgates.checks.firewall.seen import Accounts, Address, Answers, BootWatch, Listener, Sweep
from pytest_osgates.model import State
from pytest_osgates.observers.firewall import nft

POLICY = FirewallPolicy()
CARD = "eth0"
TARGETS = {
    ("ipv4", "global"): "10.0.2.15",
    ("ipv6", "link-local"): "fe80::5054:ff:fe12:3456",
    ("ipv6", "global"): "2001:db8:2:0:5054:ff:fe12:3456",
}
NEAR = {"10.0.2.15": "10.0.2.70", "fe80::5054:ff:fe12:3456": "fe80::4f53:0:0:46"}
SOURCES = {("link", "2001:db8:2:0:5054:ff:fe12:3456"): "2001:db8:2:0:4f53::46"}


def table(*rules: list[Any], policy: str = "drop", family: str = "inet", **more: Any) -> list[dict[str, Any]]:
    """One table with one base chain; `more`: other chains, by name."""
    base = {"family": family, "table": "filter", "name": "input", "handle": 1}
    objects: list[dict[str, Any]] = [
        {"metainfo": {"version": "1.1.3", "json_schema_version": 1}},
        {"table": {"family": family, "name": "filter", "handle": 1}},
        {"chain": {**base, "type": "filter", "hook": "input", "prio": 0, "policy": policy}},
    ]
    for name, listed in {"input": rules, **more}.items():
        if name != "input":
            objects.append({"chain": {**base, "name": name}})
        objects += [
            {"rule": {"family": family, "table": "filter", "chain": name, "handle": number, "expr": rule}}
            for number, rule in enumerate(listed)
        ]
    return objects


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def field(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


LOOPBACK = [match({"meta": {"key": "iif"}}, "lo"), {"accept": None}]
ESTABLISHED = [match({"ct": {"key": "state"}}, ["established", "related"], "in"), {"accept": None}]
NEIGHBOURS = [
    match(field("icmpv6", "type"), {"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]}),
    {"accept": None},
]


def port(number: Any, protocol: str = "tcp", verdict: str = "accept") -> list[Any]:
    return [match(field(protocol, "dport"), number), {"counter": {"packets": 0, "bytes": 0}}, {verdict: None}]


def read(objects: list[dict[str, Any]]) -> Ruleset:
    return nft.ruleset(json.dumps({"nftables": objects}).encode())


def clean_rules() -> Ruleset:
    """Nothing comes in that was not asked for."""
    return read(table(LOOPBACK, ESTABLISHED, NEIGHBOURS))


def sweep(protocol: str, family: str, scope: str, origin: str, **changes: Any) -> Sweep:
    target = TARGETS[family, scope]
    beyond = "192.0.43.70" if family == "ipv4" else "2620:0:2d0:200::46"
    source = beyond if origin == "beyond" else SOURCES.get(("link", target)) or NEAR[target]
    fields: dict[str, Any] = {
        "name": f"{protocol} {family} {scope} {origin}",
        "protocol": protocol,
        "family": family,
        "scope": scope,
        "origin": origin,
        "target": target,
        "source": source,
        "full": True,
        "asked": {"tcp": 65535, "udp": 99, "kinds": 9}[protocol],
        "frames": {"tcp": 66050, "udp": 103, "kinds": 13}[protocol],
    }
    return Sweep(**{**fields, **changes})


WAYS = (
    *(("ipv4", "global", "link"), ("ipv4", "global", "beyond"), ("ipv6", "link-local", "link")),
    *(("ipv6", "global", "link"), ("ipv6", "global", "beyond")),
)


def sweeps() -> tuple[Sweep, ...]:
    return tuple(sweep(protocol, *way) for way in WAYS for protocol in ("tcp", "udp", "kinds"))


def observed(**changes: Any) -> FirewallObservation:
    """A machine that answers nothing."""
    all_of = changes.pop("sweeps", None) or sweeps()
    own = sum(one.frames for one in all_of)
    fields: dict[str, Any] = {
        "state": State.LIVE,
        "addresses": tuple(
            Address(address=address, family=family, scope=scope, interface=CARD)
            for (family, scope), address in TARGETS.items()
        ),
        "default_routes": ("ipv4", "ipv6"),
        "sweeps": all_of,
        "accounts": Accounts(sent=own + 5, own=own, received=own + 5, reached={"tcp": 0, "udp": 0}),
        "boot": tuple(
            BootWatch(
                address=address, family=family, groups=200, proven=199, alive_s=20.0, longest_gap=0.3, answers=()
            )
            for (family, _), address in TARGETS.items()
        ),
        "ruleset": clean_rules(),
    }
    return FirewallObservation(**{**fields, **changes})


def answering(how: str, *numbers: int, ways: tuple[tuple[str, str, str], ...] = WAYS, protocol: str = "tcp") -> Any:
    """Sweeps in which these ports answer."""
    answers = tuple(Answers(how=how, first=number, last=number) for number in numbers)
    return tuple(
        one.model_copy(update={"answers": answers})
        if one.protocol == protocol and (one.family, one.scope, one.origin) in ways
        else one
        for one in sweeps()
    )


def listener(number: int, address: str = "0.0.0.0", protocol: str = "tcp") -> Listener:  # noqa: S104
    family = "ipv6" if ":" in address else "ipv4"
    return Listener(protocol=protocol, family=family, address=address, port=number, program="/usr/bin/python3")
