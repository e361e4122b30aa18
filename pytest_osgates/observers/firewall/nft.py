"""What ``nft -j list ruleset`` says (libnftables-json(5)), and iptables-save(8) of old tables, as rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from pytest_osgates.checks.firewall.rules import Branch, Chain, Match, Rule, Ruleset
from pytest_osgates.vm.text import one_line

# What json.loads() gives.
Json: TypeAlias = Any
MAX_RULES = 20_000
MAX_ELEMENTS = 10_000
_VERDICTS = frozenset({"accept", "drop", "continue", "return", "jump", "goto"})
# Statements that neither ask nor decide.
_HARMLESS = frozenset(
    {"counter", "log", "comment", "mangle", "notrack", "ct helper", "ct timeout", "secmark", "flow"}
)
_HARMLESS_TOO = frozenset({"set", "map", "dup", "meter update"})
_TRANSLATES = frozenset({"dnat", "redirect", "tproxy", "synproxy"})
_PROTOCOLS = frozenset({"ip", "ip6", "tcp", "udp", "th", "icmp", "icmpv6", "sctp", "dccp", "udplite"})
_FIELDS = frozenset({"dport", "type", "saddr", "daddr", "protocol", "nexthdr"})


# Whoever attacks writes all of a packet, and as many or as few as he likes: such a condition keeps nobody out.
_CHOSEN = "the sender's choice"


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
        # Rules of a dormant table are not asked (nft(8), "Tables").
        self._dormant = {
            (str(table["family"]), str(table["name"]))
            for table in self._of("table")
            if "dormant" in _list(table.get("flags", ()))
        }
        self._sets: dict[tuple[str, str, str], Any] = {}
        for kind in ("set", "map"):
            for entry in self._of(kind):
                self._sets[str(entry["family"]), str(entry["table"]), str(entry["name"])] = entry

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
                    rules=tuple(rules.get((family, table, name), ())),
                )
            )
        if not any(isinstance(entry.get("metainfo"), dict) for entry in self._objects):
            return Ruleset(
                source="nft", chains=tuple(chains), problem="it is cut short: nft does not tell its version"
            )
        return Ruleset(source="nft", chains=tuple(chains))

    def _rule(self, place: tuple[str, str], statements: Json) -> Rule:
        if not isinstance(statements, list):
            raise _Odd("a rule without statements")
        matches: list[Match] = []
        text = one_line(json.dumps(statements), 300)
        translates = False
        for statement in statements:
            if not isinstance(statement, dict) or len(statement) != 1:
                raise _Odd("a statement that is none")
            ((name, value),) = statement.items()
            if name == "match":
                matches.append(self._match(place, value))
            elif name == "vmap":
                key, branches = self._map(place, value)
                return Rule(matches=_settled(matches, branches), branches=branches, key=key, text=text)
            elif name in _VERDICTS or name in ("reject", "queue"):
                branches = (_verdict(statement),)
                return Rule(matches=_settled(matches, branches), branches=branches, text=text)
            elif name in _TRANSLATES:
                translates = True
            elif name == "limit" and isinstance(value, dict) and not value.get("inv"):
                matches.append(Match(key=_CHOSEN))
            elif name not in _HARMLESS and name not in _HARMLESS_TOO:
                # quota, ct count, xt (a match of the old kind), or one that is yet to come.
                matches.append(Match(key=""))
        return Rule(matches=_settled(matches, ()), translates=translates, text=text)

    def _match(self, place: tuple[str, str], value: Json) -> Match:
        operator = str(value["op"])
        key = _key(value["left"])
        values = self._values(place, value["right"], key)
        if not key or values is None or operator not in ("==", "in", "!="):
            return Match(key=_CHOSEN if not key and _is_chosen(value["left"]) else "")
        return Match(key=key, values=values, negated=operator == "!=")

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
            key = "?" if named is None else key
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


def _settled(matches: list[Match], branches: tuple[Branch, ...]) -> tuple[Match, ...]:
    """With conditions that the sender chooses: of a rule that lets in they hold, of another they may."""
    lets = any(branch.action in ("accept", "jump", "goto", "queue") for branch in branches)
    kept = [match for match in matches if match.key != _CHOSEN]
    return tuple(kept if lets or len(kept) == len(matches) else [*kept, Match(key="")])


def _is_chosen(left: Json) -> bool:
    """A field of the packet: its source port, flags, length, time to live, ..."""
    if isinstance(left, dict) and len(left) == 1:
        ((name, value),) = left.items()
        if name in ("&", "|", "^", "<<", ">>") and isinstance(value, list) and value:
            return _is_chosen(value[0])
        return name in ("payload", "tcp option", "ip option", "exthdr", "sctp chunk") or (
            name == "meta" and isinstance(value, dict) and value.get("key") == "length"
        )
    return False


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
    if name == "payload" and value.get("protocol") in _PROTOCOLS and value.get("field") in _FIELDS:
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


_POLICY = re.compile(r":(\S{1,60}) (ACCEPT|DROP|-)(?: |$)")
_APPEND = re.compile(r"-A (\S{1,60})(.*?)(?: -([jg]) (\S{1,60}))?((?: --reject-with \S+)?)$")
_HOOKS = {"INPUT": "input", "PREROUTING": "prerouting"}


def legacy(text: str, family: str) -> tuple[list[Chain], str]:
    """Chains of what iptables-save(8) or ip6tables-save(8) wrote of tables that nft knows nothing of, and what is
    wrong with it. Conditions are not read: such a rule may apply or not, but for a plain ``--dport`` or ``-i``.
    """
    chains: dict[tuple[str, str], Chain] = {}
    rules: dict[tuple[str, str], list[Rule]] = {}
    table, ended = "", True
    for line in text.splitlines()[:MAX_RULES]:
        if line.startswith("*"):
            table, ended = one_line(line[1:].strip(), 60), False
        elif line.strip() == "COMMIT":
            ended = True
        elif (policy := _POLICY.match(line)) is not None:
            name = one_line(policy[1], 60)
            built_in = policy[2] != "-"
            chains[table, name] = Chain(
                family=family,
                table=f"legacy {table}",
                name=name,
                kind="nat" if table == "nat" else "filter",
                hook=_HOOKS.get(name, "other") if built_in else "",
                policy=policy[2].lower() if built_in else "",
            )
        elif (rule := _APPEND.match(line)) is not None:
            rules.setdefault((table, rule[1]), []).append(_legacy_rule(rule, line))
        elif line.strip() and not line.startswith("#"):
            return [], f"iptables-save: {one_line(line, 100)}"
    if not ended:
        return [], "what iptables-save says is cut short"
    found = [chain.model_copy(update={"rules": tuple(rules.get(key, ()))}) for key, chain in chains.items()]
    return found, ""


def _legacy_rule(rule: re.Match[str], line: str) -> Rule:
    words, jump, target = rule[2].strip(), rule[3], rule[4] or ""
    matches: tuple[Match, ...] = (Match(key=""),) if words else ()
    plain = re.fullmatch(r"-p (tcp|udp)(?: -m \1)? --dport (\d{1,5})(?::(\d{1,5}))?", words)
    if plain is not None:
        ports = plain[2] if plain[3] is None else f"{plain[2]}-{plain[3]}"
        matches = (Match(key=f"{plain[1]} dport", values=(ports,)),)
    interface = re.fullmatch(r"(?:(!) )?-i (\S{1,16})", words)
    if interface is not None:
        name = interface[2].replace("+", "*")
        matches = (Match(key="iifname", values=(name,), negated=interface[1] is not None),)
    action = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "QUEUE": "queue"}.get(
        target
    )
    if action is None and target in ("NFQUEUE",):
        action = "queue"
    if action is None:
        branch = Branch(action="goto" if jump == "g" else "jump", target=one_line(target, 60))
        if not target or target in ("LOG", "NFLOG", "MARK", "CONNMARK", "CT", "TRACE", "SECMARK", "AUDIT"):
            branch = Branch(action="continue")
    else:
        branch = Branch(action=action)
    changes = target in ("DNAT", "REDIRECT", "TPROXY")
    return Rule(matches=matches, branches=(branch,), translates=changes, text=one_line(line, 300))
