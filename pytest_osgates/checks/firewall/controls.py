"""Controls of the gate `firewall`, and what `osgates baseline` and `osgates compare` say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from pytest_osgates.checks.firewall.judge import judge
from pytest_osgates.checks.firewall.policy import FirewallPolicy
from pytest_osgates.checks.firewall.rules import Chain, Family, Ruleset
from pytest_osgates.checks.firewall.said import scopes
from pytest_osgates.checks.firewall.seen import Answers, BootAnswer, FirewallObservation, Sweep
from pytest_osgates.model import Control, Severity

Sabotage = Callable[[FirewallObservation], FirewallObservation]


def controls(seen: FirewallObservation, policy: FirewallPolicy) -> tuple[Control[FirewallObservation], ...]:
    """An open port, everything let in, loss, no address, an answer while it boots, a port that says it is closed."""
    broken = {finding.key for finding in judge(seen, policy) if finding.severity is not Severity.REMARK}
    family = policy.families[0]
    # Where no filter stands, that is the finding, and what comes of it is none of its own.
    bare = bool({("no-ruleset", "input"), ("not-default-deny", family)} & broken)
    made = [
        Control("the guest has no address", _homeless, "no-address", f"{family} {scopes(family, 'link')[0]}", _NOT),
        Control("the rules cannot be read", _unread, "ruleset-not-read", "input", _NOT),
        Control("no rules", _ruleless, "no-ruleset", "input"),
        Control("every chain accepts", _accepting, "not-default-deny", family),
        Control("a frame is lost", _lossy, "lost", "card", _NOT),
    ]
    tcp = next((one for one in seen.sweeps if one.protocol == "tcp" and one.full and one.family == family), None)
    if tcp is not None:
        port = next(
            port
            for port in range(65000, 0, -1)
            if tcp.state(port) != "open"
            and ("open", f"tcp/{port}") not in broken
            and policy.allows("tcp", port, family, tcp.origin) is None
        )
        made += [
            Control("a port is open", _answering(tcp, "open", port), "open", f"tcp/{port}"),
            Control("a probe may be lost", _answering(tcp, "unproven", port), "not-proven", tcp.name, _NOT),
        ]
        if policy.closed_answers == "silent" and not bare:
            made.append(Control("a port says it is closed", _answering(tcp, "closed", port), "refused", family))
        if any(watch.family == family for watch in seen.boot):
            made.append(Control("a port is open at boot", _early(family, port), "open-at-boot", f"tcp/{port}"))
    kinds = next((one for one in seen.sweeps if one.protocol == "kinds" and one.family == family), None)
    if kinds is not None and not bare:
        protocol = "icmp" if family == "ipv4" else "icmpv6"
        made.append(Control("a message is answered", _chatty(kinds), "answers", f"{protocol}/{_CONTROL}"))
    return tuple(control for control in made if (control.rule, control.subject) not in broken)


_NOT = Severity.UNPROVEN
_CONTROL = "osgates-control"


def _homeless(seen: FirewallObservation) -> FirewallObservation:
    return seen.model_copy(update={"addresses": ()})


def _unread(seen: FirewallObservation) -> FirewallObservation:
    return seen.model_copy(update={"ruleset": Ruleset(source="nft", problem="osgates-control")})


def _ruleless(seen: FirewallObservation) -> FirewallObservation:
    return seen.model_copy(update={"ruleset": Ruleset(source="nft")})


def _accepting(seen: FirewallObservation) -> FirewallObservation:
    chain = Chain(family="inet", table="t", name="input", kind="filter", hook="input", policy="accept")
    return seen.model_copy(update={"ruleset": Ruleset(source="nft", chains=(chain,))})


def _lossy(seen: FirewallObservation) -> FirewallObservation:
    accounts = seen.accounts
    changed = accounts.model_copy(update={"received": accounts.sent - 1, "own": accounts.own or 1, "problem": ""})
    return seen.model_copy(update={"accounts": changed})


def _answering(sweep: Sweep, how: Literal["open", "closed", "unproven"], port: int) -> Sabotage:
    def sabotage(seen: FirewallObservation) -> FirewallObservation:
        planted = sweep.model_copy(update={"answers": (*sweep.answers, Answers(how=how, first=port, last=port))})
        return seen.model_copy(update={"sweeps": tuple(planted if one is sweep else one for one in seen.sweeps)})

    return sabotage


def _early(family: Family, port: int) -> Sabotage:
    def sabotage(seen: FirewallObservation) -> FirewallObservation:
        answer = BootAnswer(port=port, how="open", origin="link", before_s=1.0)
        boot = tuple(
            watch.model_copy(update={"answers": (*watch.answers, answer)}) if watch.family == family else watch
            for watch in seen.boot
        )
        return seen.model_copy(update={"boot": boot})

    return sabotage


def _chatty(sweep: Sweep) -> Sabotage:
    def sabotage(seen: FirewallObservation) -> FirewallObservation:
        planted = sweep.model_copy(update={"heard": {**sweep.heard, _CONTROL: "type 0"}})
        return seen.model_copy(update={"sweeps": tuple(planted if one is sweep else one for one in seen.sweeps)})

    return sabotage


def baseline(seen: FirewallObservation, policy: FirewallPolicy) -> str:
    """Allowances for what answers, to be given reasons."""
    lines = []
    for finding in judge(seen, policy):
        protocol, _, what = finding.subject.partition("/")
        if finding.rule in ("open", "answers") and finding.severity is Severity.VIOLATION:
            key = f"ports = [{what}]" if what.isdecimal() else f"kinds = [{json.dumps(what)}]"
            if what.isdecimal() or protocol.startswith("icmp"):
                lines.append(f'[[gate.firewall.allowed]]\nprotocol = "{protocol}"\n{key}\nreason = ""\n\n')
    return "".join(lines)


def compare(before: FirewallObservation, now: FirewallObservation) -> list[str]:
    """What answers now and did not, or the reverse."""

    def told(seen: FirewallObservation) -> set[str]:
        ports = {
            f"{sweep.name}: {answer.text} {answer.how}" for sweep in seen.sweeps for answer in sweep.answers[:200]
        }
        return ports | {f"{sweep.name}: {kind}" for sweep in seen.sweeps for kind in sweep.heard}

    then, since = told(before), told(now)
    lines = [f"{text}: not any more" for text in sorted(then - since)]
    lines += [f"{text}: new" for text in sorted(since - then)]
    if before.ruleset != now.ruleset:
        lines.append("the ruleset is another one")
    return lines
