"""What ``nft -j list ruleset`` says (libnftables-json(5)), as rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

from pytest_osgates.checks.firewall.rules import CHOSEN, Branch, Chain, Match, Rule, Ruleset
from pytest_osgates.observers.firewall import xt
from pytest_osgates.vm.text import one_line

# What json.loads() gives.
Json: TypeAlias = Any
MAX_RULES = 20_000
MAX_ELEMENTS = 10_000
_VERDICTS = frozenset({"accept", "drop", "continue", "return", "jump", "goto"})
# Statements that neither ask nor decide.
_HARMLESS = frozenset(
    {"counter", "log", "comment", "mangle", "notrack", "ct helper", "ct timeout", "ct expectation", "secmark", "flow"}
)
# They put something into a set: harmless but for what they do with it.
_UPDATES = frozenset({"set", "map", "meter"})
_HARMLESS_TOO = frozenset({"dup"})
_TRANSLATES = frozenset({"dnat", "redirect", "tproxy", "synproxy"})
_PROTOCOLS = frozenset({"ip", "ip6", "tcp", "udp", "th", "icmp", "icmpv6", "sctp", "dccp", "udplite"})
_FIELDS = frozenset({"dport", "type", "saddr", "daddr", "protocol", "nexthdr"})


# Those that a table may have.
_FLAGS = frozenset({"dormant", "owner", "persist"})
# Hooks of what the machine itself sends, or passes on.
_AWAY = frozenset({"output", "postrouting", "forward", "egress"})
_PORTS = frozenset({"tcp dport", "udp dport", "th dport", "sctp dport", "dccp dport", "udplite dport"})


class _Odd(ValueError):
    """JSON of another form than the documented one."""


def ruleset(data: bytes) -> Ruleset:
    """Of nft's JSON; what cannot be read is said in ``problem``."""
    try:
        objects = json.loads(data.decode("utf-8", "replace"))["nftables"]
        if not isinstance(objects, list):
            raise _Odd("no list of objects")
        return _Tables(objects).ruleset()
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        why = one_line(f"{type(error).__name__}: {error}", 200)
        return Ruleset(source="nft", problem=f"what nft says cannot be read: {why}")


class _Tables:
    def __init__(self, objects: list[Any]) -> None:
        self._objects = [entry for entry in objects if isinstance(entry, dict)]
        flags = {(str(one["family"]), str(one["name"])): _words(one.get("flags")) for one in self._of("table")}
        # Rules of a dormant table are not asked (nft(8), "Tables").
        self._dormant = {table for table, words in flags.items() if "dormant" in words}
        # nft 1.0.6 writes a table's name, of any one, where the flags should be.
        names = {name for _, name in flags}
        self._unknown = sorted(name for (_, name), words in flags.items() if not words <= _FLAGS - names)
        self._sets: dict[tuple[str, str, str], Any] = {}
        for kind in ("set", "map"):
            for entry in self._of(kind):
                self._sets[str(entry["family"]), str(entry["table"]), str(entry["name"])] = entry
        self._hooks = {
            (str(one["family"]), str(one["table"]), str(one["name"])): str(one.get("hook", ""))
            for one in self._of("chain")
        }
        # Sets that packets fill: those that come in, and others.
        self._filled: dict[tuple[str, str, str], bool] = {}
        for rule in self._of("rule"):
            place = (str(rule["family"]), str(rule["table"]))
            comes_in = self._hooks.get((*place, str(rule["chain"])), "") not in _AWAY
            for name in _filled(rule["expr"]):
                self._filled[*place, name] = self._filled.get((*place, name), False) or comes_in

    def _of(self, kind: str) -> Iterator[dict[str, Any]]:
        for entry in self._objects:
            if isinstance(entry.get(kind), dict):
                yield entry[kind]

    def ruleset(self) -> Ruleset:
        rules: dict[tuple[str, str, str], list[Rule]] = {}
        for count, entry in enumerate(self._of("rule")):
            if count >= MAX_RULES:
                return Ruleset(source="nft", problem=f"more than {MAX_RULES} rules")
            place = (str(entry["family"]), str(entry["table"]), str(entry["chain"]))
            rules.setdefault(place, []).append(self._rule(place[:2], entry["expr"]))
        chains = []
        for chain in self._of("chain"):
            family, table, name = str(chain["family"]), str(chain["table"]), str(chain["name"])
            if (family, table) in self._dormant:
                continue
            priority = chain.get("prio", 0)
            chains.append(
                Chain(
                    family=one_line(family, 20),
                    table=one_line(table, 100),
                    name=one_line(name, 100),
                    kind=one_line(str(chain.get("type", "")), 20),
                    hook=one_line(str(chain.get("hook", "")), 20),
                    priority=priority if isinstance(priority, int) and abs(priority) < 1 << 31 else 0,
                    policy=one_line(str(chain.get("policy", "")), 20),
                    devices=tuple(one_line(str(device), 20) for device in _list(chain.get("dev", ()))[:100]),
                    rules=tuple(rules.get((family, table, name), ())),
                )
            )
        if not any(isinstance(entry.get("metainfo"), dict) for entry in self._objects):
            return Ruleset(
                source="nft", chains=tuple(chains), problem="it is cut short: nft does not tell its version"
            )
        problem = f"whether tables are dormant is not told: {', '.join(self._unknown)}" if self._unknown else ""
        return Ruleset(source="nft", chains=tuple(chains), problem=one_line(problem, 200))

    def _rule(self, place: tuple[str, str], statements: Json) -> Rule:
        if not isinstance(statements, list):
            raise _Odd("a rule without statements")
        matches: list[Match] = []
        translates = untracks = expects = False
        key = ""
        branches: tuple[Branch, ...] = ()
        for statement in statements:
            if not isinstance(statement, dict) or len(statement) != 1:
                raise _Odd("a statement that is none")
            ((name, value),) = statement.items()
            if name == "match":
                one = self._match(place, value)
                matches += [*(_needs(_key(value["left"])) if one.key == CHOSEN else ()), one]
            elif name == "vmap":
                key, branches = self._map(place, value)
                break
            elif name in _VERDICTS or name in ("reject", "queue"):
                branches = (_verdict(statement),)
                break
            elif name == "xt":
                action, known = _foreign(value)
                translates = translates or action == "translate"
                untracks = untracks or action == "untrack"
                if action == "untrack" and value.get("name") != "NOTRACK":
                    matches.append(Match(key=""))
                matches += [] if known or action else [Match(key="")]
                if action in ("accept", "drop", "reject", "queue", "return"):
                    branches = (Branch(action=action),)
                    break
            elif name in _TRANSLATES:
                translates = True
            else:
                untracks = untracks or name == "notrack"
                expects = expects or name == "ct expectation"
                matches += _choices(name, value)
        return Rule(
            matches=xt.settled(matches, branches),
            branches=branches,
            key=key,
            translates=translates,
            untracks=untracks,
            expects=expects,
            foreign=any("xt" in statement for statement in statements),
            text=one_line(json.dumps(statements), 300),
        )

    def _match(self, place: tuple[str, str], value: Json) -> Match:
        operator = str(value["op"])
        key = _key(value["left"])
        by = self._filled_by(place, value["right"])
        if by is not None:
            # What comes in may have put itself there; of what else does, nobody knows whom it lets in.
            return Match(key=CHOSEN if by and (key or _is_chosen(value["left"])) else "")
        values = self._values(place, value["right"], key)
        if key in _PORTS and values is not None and operator in _COMPARES and len(values) == 1:
            return _compared(key, operator, values[0])
        if not key or values is None or operator not in ("==", "in", "!="):
            return Match(key=CHOSEN if not key and _is_chosen(value["left"]) else "")
        return Match(key=key, values=values, negated=operator == "!=")

    def _filled_by(self, place: tuple[str, str], right: Json) -> bool | None:
        """Of a set: whether packets that come in fill it; None: no packets do."""
        if not isinstance(right, str) or not right.startswith("@"):
            return None
        named = self._sets.get((*place, right[1:]), {})
        return self._filled.get((*place, right[1:]), False if "dynamic" in _words(named.get("flags")) else None)

    def _values(self, place: tuple[str, str], right: Json, key: str) -> tuple[str, ...] | None:
        """None: not understood."""
        if isinstance(right, str) and right.startswith("@"):
            named = self._sets.get((*place, right[1:]))
            # Elements come and go; those of now are what counts now.
            return None if named is None else self._values(place, {"set": named.get("elem", [])}, key)
        if isinstance(right, dict) and "set" in right:
            right = right["set"]
        items = right if isinstance(right, list) else [right]
        if len(items) > MAX_ELEMENTS:
            return None
        found = []
        for item in items:
            text = _value(item)
            if text is None:
                return None
            found.append(text)
        return tuple(found)

    def _map(self, place: tuple[str, str], value: Json) -> tuple[str, tuple[Branch, ...]]:
        key, data = _key(value["key"]) or "?", value["data"]
        if isinstance(data, str) and data.startswith("@"):
            named = self._sets.get((*place, data[1:]))
            pairs = [] if named is None else named.get("elem", [])
            key = "?" if named is None or self._filled_by(place, data) is not None else key
        else:
            pairs = data["set"] if isinstance(data, dict) else data
        branches = []
        for pair in pairs[:MAX_ELEMENTS]:
            left, right = pair
            wanted = _value(left)
            verdict = _verdict(right)
            known = wanted is not None
            branches.append(verdict.model_copy(update={"values": (wanted,) if known else ("",)}))
            key = key if known else "?"
        return ("?" if len(pairs) > MAX_ELEMENTS else key), tuple(branches)


def _needs(key: str) -> list[Match]:
    """What a packet must be that has this field at all, which is not listed."""
    protocol = key.split(" ")[0]
    if protocol in ("ip", "ip6"):
        return [Match(key="meta nfproto", values=("ipv6" if protocol == "ip6" else "ipv4",))]
    return [Match(key="meta l4proto", values=(protocol,))] if key in _PORTS and protocol != "th" else []


_COMPARES = frozenset({"<", ">", "<=", ">="})


def _compared(key: str, operator: str, value: str) -> Match:
    """Of a port: as a range; of no port: nothing is in it."""
    if not value.isascii() or not value.isdigit() or len(value) > 5:
        return Match(key="")
    port = int(value)
    first, last = {
        "<": (0, port - 1),
        "<=": (0, port),
        ">": (port + 1, 65535),
        ">=": (port, 65535),
    }[operator]
    return Match(key=key, values=(f"{first}-{last}",) if first <= last else ())


def _foreign(value: Json) -> tuple[str, bool]:
    """Of a part of iptables': what its target does, and whether it asks nothing; nft tells its kind and name."""
    if not isinstance(value, dict):
        return "", False
    name = str(value.get("name", ""))
    if value.get("type") == "target":
        return xt.target(name), True
    return "", name in xt.harmless()


def _choices(name: str, value: Json) -> list[Match]:
    """What a statement asks, that is no match: a rate, a number of connections, an amount."""
    if name in _UPDATES:
        # In a set, each element has its own.
        inner = _list(value.get("stmt", ())) if isinstance(value, dict) else [None]
        found = [
            _choices(*next(iter(one.items()))) if isinstance(one, dict) and len(one) == 1 else [Match(key="")]
            for one in inner
        ]
        return [match for matches in found for match in matches]
    if name in _HARMLESS or name in _HARMLESS_TOO:
        return []
    if name == "limit" and isinstance(value, dict) and not value.get("inv"):
        return [Match(key=CHOSEN)]
    # quota, ct count, or one that is yet to come.
    return [Match(key="")]


def _is_chosen(left: Json) -> bool:
    """A field of the packet: its source port, flags, length, time to live, ..."""
    if isinstance(left, dict) and len(left) == 1:
        ((name, value),) = left.items()
        if name in ("&", "|", "^", "<<", ">>") and isinstance(value, list) and value:
            return _is_chosen(value[0])
        if name == "payload" and isinstance(value, dict) and "tunnel" in value:
            return False
        return name in ("payload", "tcp option", "ip option", "exthdr", "sctp chunk") or (
            name == "meta" and isinstance(value, dict) and value.get("key") == "length"
        )
    return False


def _filled(statements: Json) -> Iterator[str]:
    """Names of sets and maps into which a rule puts something."""
    for statement in statements if isinstance(statements, list) else []:
        for name, value in statement.items() if isinstance(statement, dict) else []:
            target = value.get(name) if name in ("set", "map") and isinstance(value, dict) else None
            if isinstance(target, str) and value.get("op") != "delete":
                yield target.removeprefix("@")


def _words(flags: Json) -> set[str]:
    return {str(one) for one in _list(flags)}


def _list(value: Json) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _verdict(statement: Json) -> Branch:
    ((name, value),) = statement.items()
    if name not in _VERDICTS and name not in ("reject", "queue"):
        raise _Odd(f"a verdict {one_line(str(name), 40)}")
    target = one_line(str(value["target"]), 100) if name in ("jump", "goto") else ""
    return Branch(action=name, target=target)


def _key(left: Json) -> str:
    """As nft writes it; empty: not understood."""
    if not isinstance(left, dict) or len(left) != 1:
        return ""
    ((name, value),) = left.items()
    if name == "meta":
        word = str(value["key"])
        return word if word in ("iif", "iifname") else f"meta {word}"
    if name == "ct" and "family" not in value:
        return f"ct {value['key']}"
    # With more it is another field: that of a packet in a tunnel.
    if name == "payload" and set(value) == {"protocol", "field"} and value["protocol"] in _PROTOCOLS:
        if value["field"] not in _FIELDS:
            return ""
        return f"{value['protocol']} {value['field']}"
    if name == "fib" and value.get("result") == "type" and _list(value.get("flags")) == ["daddr"]:
        return "fib daddr type"
    return ""


def _value(item: Json) -> str | None:
    if isinstance(item, dict) and "elem" in item:
        # With a time-out, a counter or a comment.
        item = item["elem"]["val"]
    if isinstance(item, bool):
        return None
    if isinstance(item, int | str):
        return one_line(str(item), 200)
    if not isinstance(item, dict):
        return None
    if "range" in item:
        first, last = item["range"]
        return f"{one_line(str(first), 60)}-{one_line(str(last), 60)}" if not _compound(first, last) else None
    if "prefix" in item:
        address, length = item["prefix"]["addr"], item["prefix"]["len"]
        return f"{one_line(str(address), 60)}/{length}" if isinstance(length, int) else None
    return None


def _compound(*values: Json) -> bool:
    return any(not isinstance(value, int | str) or isinstance(value, bool) for value in values)
