"""The judge of the gate `firewall`. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pytest_osgates.checks.firewall.agreement import accepts, agreement, card_of, doors, let_in, packet_for
from pytest_osgates.checks.firewall.named import Opaque, not_understood, unnamed_port
from pytest_osgates.checks.firewall.policy import Allowed, FirewallPolicy
from pytest_osgates.checks.firewall.proof import forwards, losses, vacuity
from pytest_osgates.checks.firewall.rules import ACCEPT, MOST_STEPS, Family, Ruleset, input_chains, outcomes, steps
from pytest_osgates.checks.firewall.said import finding, places, unproven
from pytest_osgates.checks.firewall.seen import Answers, BootAnswer, FirewallObservation, Sweep, datagram, place
from pytest_osgates.model import Finding, Severity

# What an unfriendly host could open: shown one by one up to here.
SHOWN = 60
MOST = 500
# The ports of which the light probe takes one at random each time: nobody would listen there.
CANARIES = range(0x8000, 0x10000)


def judge(seen: FirewallObservation, policy: FirewallPolicy) -> list[Finding]:
    """First whether what was tried can be believed, then the rules, then what answered, then whether they agree."""
    seen = _bounded(seen)
    findings = [*vacuity(seen, policy), *losses(seen, policy), *_ruleset(seen, policy)]
    # Whatever holds of the rules before must hold of those after.
    later = None if seen.again is None else seen.model_copy(update={"ruleset": seen.again})
    if later is not None:
        before = {finding.key for finding in findings}
        findings += [finding for finding in _ruleset(later, policy) if finding.key not in before]
    if later is not None or seen.changed:
        findings.append(_changed(seen))
    bare = {
        family
        for family in policy.families
        for finding in findings
        if finding.rule == "no-ruleset" or finding.key == ("not-default-deny", family)
    }
    used: set[int] = set()
    answers = [*_open(seen, policy, used), *_quiet(seen, policy, bare, used), *_kinds(seen, policy, bare, used)]
    findings += answers
    # What is accepted in one place, or a remark, speaks for no other.
    findings += _booting(seen, policy, bare, {finding.key for finding in _wrong(answers)}, used)
    findings += agreement(seen, policy, bare, {finding.subject for finding in _wrong(findings)})
    findings += doors(seen, policy, bare, {finding.subject for finding in _wrong(findings)})
    if later is not None:
        findings += doors(later, policy, bare, {finding.subject for finding in _wrong(findings)})
    findings += let_in(seen, bare, policy)
    findings += forwards(seen, policy)
    for number, entry in enumerate(policy.allowed):
        if number not in used and entry.protocol != "other":
            what = ", ".join(map(str, (*entry.ports, *entry.kinds)))
            findings.append(
                finding(
                    *("unused", f"{entry.protocol}/{what}", "nothing answered there"),
                    *("no allowance without need", Severity.REMARK),
                )
            )
    return findings


def _bounded(seen: FirewallObservation) -> FirewallObservation:
    """Rules that take too long to follow count as not read: a guest may write chains that jump at each other."""
    changes: dict[str, Ruleset] = {}
    for name, rules in (("ruleset", seen.ruleset), ("again", seen.again)):
        if rules is not None and not rules.problem and (count := steps(rules)) > MOST_STEPS:
            what = f"following one packet may take {count} steps: more than {MOST_STEPS} are not followed"
            changes[name] = rules.model_copy(update={"problem": what})
    return seen.model_copy(update=changes) if changes else seen


def _wrong(findings: list[Finding]) -> Iterator[Finding]:
    return (finding for finding in findings if finding.severity is Severity.VIOLATION)


def _changed(seen: FirewallObservation) -> Finding:
    said = "the rules were others after the sweeps than before" if seen.changed else "sets of the rules have changed"
    severity = Severity.UNPROVEN if seen.changed else Severity.REMARK
    return finding("ruleset-changed", "input", said, "rules that stay: which ones were tried?", severity)


def _ways(seen: FirewallObservation, family: Family) -> list[Sweep]:
    """One sweep for each way in."""
    ways = {(sweep.origin, sweep.scope): sweep for sweep in seen.sweeps if sweep.family == family}
    return list(ways.values())


def _ruleset(seen: FirewallObservation, policy: FirewallPolicy) -> Iterator[Finding]:
    rules = seen.ruleset
    if rules.problem:
        yield unproven("ruleset-not-read", "input", rules.problem, "all rules that are in force")
        return
    if not any(input_chains(rules, family) for family in policy.families):
        yield finding(
            *("no-ruleset", "input", "no base chain filters what comes in", "a default-deny ruleset"),
            hint="nft(8): table inet filter, a chain with hook input and policy drop; enable nftables.service",
        )
        return
    for family in policy.families:
        yield from _default_deny(seen, policy, family)
        yield from _not_understood(seen, policy, family)


def _not_understood(seen: FirewallObservation, policy: FirewallPolicy, family: Family) -> Iterator[Finding]:
    """Of UDP few ports are tried, and of TCP all, but once: what a rule may let in there, or later, or for others,
    only the rule can tell."""
    found = []
    for opaque in not_understood(seen.ruleset, family, card_of(seen)):
        free = _not_allowed(opaque, policy, family)
        may = "datagrams" if free == "udp" else "connections, later or from others" if free == "tcp" else free
        wanted = f"a rule that can be read: it may let in {may}" if free else "the sweep says what it lets in"
        severity = Severity.UNPROVEN if free else Severity.REMARK
        found.append(finding("not-understood", family, opaque.text, wanted, severity))
    yield from sorted(found, key=lambda one: one.severity is Severity.REMARK)[:20]


def _not_allowed(opaque: Opaque, policy: FirewallPolicy, family: Family) -> str:
    """A protocol of which such a rule may let in what no entry with a reason allows, from somewhere."""
    for origin in policy.origins:
        for protocol, ranges in (("udp", opaque.ports), ("tcp", opaque.segments)):
            ports = {port for entry in policy.allowed if entry.protocol == protocol for port in entry.ports}
            allowed = {port for port in ports if policy.documented(protocol, port, family, origin)}
            if any(last - first + 1 > sum(first <= port <= last for port in allowed) for first, last in ranges):
                return protocol
        for protocol in opaque.others:
            if not policy.documented("other", protocol, family, origin):
                return protocol
    return ""


def _default_deny(seen: FirewallObservation, policy: FirewallPolicy, family: Family) -> Iterator[Finding]:
    chains = input_chains(seen.ruleset, family)
    open_ways = {}
    for sweep in _ways(seen, family):
        for protocol in ("tcp", "udp"):
            port = unnamed_port(seen.ruleset, protocol)
            packet = packet_for(seen, sweep, protocol, port)
            # Conditions that are not understood do not hold here: what falls through is to be denied.
            if ACCEPT in outcomes(seen.ruleset, packet, guess=False):
                open_ways[f"{protocol} from {place(sweep.origin)}"] = port
    if open_ways or not chains:
        said = "; ".join(f"{chain.subject}: policy {chain.policy or 'accept'}" for chain in chains[:5])
        ways = ", ".join(f"{way} (port {port})" for way, port in open_ways.items())
        yield finding(
            *("not-default-deny", family, f"{said or 'no base chain'}: lets in {ways or 'everything'}"),
            "whatever no rule names is dropped",
            hint="policy drop, or a last rule that drops",
        )
        return
    if policy.chain_policy == "drop":
        for chain in chains:
            if chain.policy != "drop":
                yield finding("chain-policy", chain.subject, f"policy {chain.policy or 'accept'}", "policy drop")


def _note(policy: FirewallPolicy, entry: Allowed, used: set[int]) -> None:
    used.add(policy.allowed.index(entry))


def _open(seen: FirewallObservation, policy: FirewallPolicy, used: set[int]) -> Iterator[Finding]:
    where: dict[tuple[str, int], list[str]] = defaultdict(list)
    allowed: dict[tuple[str, int], Allowed] = {}
    many: dict[tuple[str, str], list[Answers]] = defaultdict(list)
    for sweep in seen.sweeps:
        found: list[tuple[str, int, str]] = []
        for answer in sweep.of("open"):
            if answer.count > SHOWN:
                many[sweep.protocol, sweep.where].append(answer)
                continue
            found += [(sweep.protocol, port, sweep.where) for port in range(answer.first, answer.last + 1)]
        for kind, how in sweep.heard.items():
            if (asked := datagram(kind)) is not None and not how.startswith("error"):
                found.append(("udp", asked[0], f"{sweep.where}, to {asked[1]}"))
        for protocol, port, by in found:
            entry = policy.allows(protocol, port, sweep.family, sweep.origin)
            if entry is not None:
                _note(policy, entry, used)
                allowed[protocol, port] = entry
            if entry is None or not entry.documented:
                where[protocol, port].append(by)
    for (protocol, port), entry in sorted(allowed.items()):
        if entry.documented and (protocol, port) not in where:
            yield finding(
                *("open", f"{protocol}/{port}", "it answers", "closed to everybody"),
                *(Severity.ACCEPTED, "", entry.reason),
            )
    for (protocol, port), ways in sorted(where.items())[: 4 * SHOWN]:
        by = ", ".join(dict.fromkeys(ways))
        yield finding(
            *("open", f"{protocol}/{port}", f"it answers, by {by}{_who(seen, protocol, port)}"),
            "no answer, or an entry in gate.firewall.allowed with its reason",
            hint="close the port in the ruleset, or do not start what listens",
        )
    for (protocol, place_), answers in sorted(many.items()):
        text = ", ".join(answer.text for answer in answers[:10])
        yield finding("open", f"{protocol}/{text}", f"all of them answer, by {place_}", "no answer")
    for sweep in seen.sweeps:
        for port in sweep.elsewhere:
            if not policy.documented("udp", port, sweep.family, sweep.origin):
                yield finding(
                    *("open", f"udp/{port}", f"it answered a datagram to another port, by {sweep.where}"),
                    "no answer",
                )
                break


def _who(seen: FirewallObservation, protocol: str, port: int) -> str:
    who = [one.text for one in seen.listeners if (one.protocol, one.port) == (protocol, port)]
    return f": {', '.join(dict.fromkeys(who))}"[:300] if who else ": nobody in the guest is known to listen there"


def _quiet(seen: FirewallObservation, policy: FirewallPolicy, bare: set[Family], used: set[int]) -> Iterator[Finding]:
    """Ports, and other protocols, that say that they are closed."""
    found: dict[tuple[str, Family], dict[str, list[Answers]]] = defaultdict(lambda: defaultdict(list))
    for sweep in seen.sweeps:
        for number, answer in enumerate(sweep.answers):
            if answer.how in ("closed", "rejected"):
                rule = "refused" if answer.how == "closed" else "rejected"
                # No firewall has so many exceptions.
                parts = [answer] if number > MOST else _not_accepted(seen, policy, sweep, answer, bare, used)
                for part in parts:
                    found[rule, sweep.family][f"{sweep.protocol} by {sweep.where}"].append(part)
    errors = [sweep for sweep in seen.sweeps if any(how.startswith("error") for how in sweep.heard.values())]
    if policy.closed_answers == "refused":
        return
    for sweep in errors:
        _ = found["rejected", sweep.family][f"ICMP by {sweep.where}"]
    for (rule, family), ways in found.items():
        said = "; ".join(f"{where}{_count(answers)}" for where, answers in ways.items())
        yield finding(
            *(rule, family, f"what is closed says so: {said}"),
            *("silence", Severity.REMARK if family in bare else Severity.VIOLATION),
            'drop instead of reject, or closed_answers = "refused"',
        )


def _not_accepted(
    seen: FirewallObservation,
    policy: FirewallPolicy,
    sweep: Sweep,
    answer: Answers,
    bare: set[Family],
    used: set[int],
) -> Iterator[Answers]:
    """Without what the profile allows, or what a rule lets in: nobody listens there; the finding is the rule."""
    if answer.count > SHOWN:
        yield answer
        return
    for port in range(answer.first, answer.last + 1):
        entry = policy.allows(sweep.protocol, port, sweep.family, sweep.origin)
        if entry is not None:
            _note(policy, entry, used)
            if entry.documented:
                continue
        let = answer.how == "closed" and sweep.family not in bare and not seen.ruleset.problem
        if not let or not accepts(seen, sweep, port):
            yield Answers(how=answer.how, first=port, last=port, code=answer.code)


def _count(answers: list[Answers]) -> str:
    if not answers:
        return ""
    total = sum(answer.count for answer in answers)
    return f": {total} ({', '.join(answer.text for answer in answers[:5])}{', ...' if len(answers) > 5 else ''})"


def _kinds(seen: FirewallObservation, policy: FirewallPolicy, bare: set[Family], used: set[int]) -> Iterator[Finding]:
    found: dict[str, list[tuple[Sweep, str]]] = defaultdict(list)
    allowed: dict[str, Allowed] = {}
    for sweep in seen.sweeps:
        protocol = "icmp" if sweep.family == "ipv4" else "icmpv6"
        for kind, how in sweep.heard.items():
            if how.startswith("error") or datagram(kind) is not None:
                continue
            entry = policy.allows(protocol, kind, sweep.family, sweep.origin)
            if entry is not None:
                _note(policy, entry, used)
            if entry is not None and entry.documented:
                allowed[f"{protocol}/{kind}"] = entry
            else:
                found[f"{protocol}/{kind}"].append((sweep, how))
    for subject, entry in allowed.items():
        if subject not in found:
            yield finding("answers", subject, "it answers", "no answer", Severity.ACCEPTED, reason=entry.reason)
    for subject, heard in found.items():
        sweeps = [sweep for sweep, _ in heard]
        severity = Severity.REMARK if {sweep.family for sweep in sweeps} <= bare else Severity.VIOLATION
        yield finding(
            *("answers", subject, f"{heard[0][1]}, by {places(sweeps)}"),
            *("no answer, or an entry in gate.firewall.allowed with its reason", severity),
        )


def _booting(
    seen: FirewallObservation,
    policy: FirewallPolicy,
    bare: set[Family],
    known: set[tuple[str, str]],
    used: set[int],
) -> Iterator[Finding]:
    """What answered before the machine was ready, and does not any more."""
    opened: dict[int, list[str]] = defaultdict(list)
    refused: dict[Family, list[BootAnswer]] = defaultdict(list)
    untold: dict[Family, list[BootAnswer]] = defaultdict(list)
    steady = [((one.family, one.origin), one.heard_of()) for one in seen.sweeps if one.protocol == "tcp"]
    asked = {answer.port for watch in seen.boot for answer in watch.answers}
    plain: dict[tuple[Family, str], set[int]] = defaultdict(set)
    for one in seen.sweeps:
        if one.protocol == "tcp" and policy.closed_answers == "refused":
            for answers in one.answers:
                if answers.how in ("open", "closed"):
                    now = {port for port in asked if answers.first <= port <= answers.last}
                    plain[one.family, one.origin] |= now
    loud = _loud(seen)
    for watch in seen.boot:
        for answer in watch.answers:
            entry = policy.allows("tcp", answer.port, watch.family, answer.origin)
            if entry is not None:
                _note(policy, entry, used)
                if entry.documented:
                    continue
            if answer.how == "open":
                if ("open", f"tcp/{answer.port}") not in known:
                    opened[answer.port].append(f"{watch.address} {answer.before_s:.1f} s before ready")
            elif policy.closed_answers == "refused":
                # A rule may reject; a reset where nothing, or an error, comes later is a machine's without rules.
                if answer.how == "closed" and answer.port not in plain[watch.family, answer.origin]:
                    refused[watch.family].append(answer)
                elif answer.how == "closed" and (watch.family, answer.origin) in loud:
                    untold[watch.family].append(answer)
            elif not any((rule, watch.family) in known for rule in ("refused", "rejected")) and not any(
                way == (watch.family, answer.origin) and ports[answer.port] for way, ports in steady
            ):
                # One that says so to this day is no finding of the boot's.
                refused[watch.family].append(answer)
    for port, where in sorted(opened.items())[:SHOWN]:
        yield finding(
            *("open-at-boot", f"tcp/{port}", f"it answered while the machine booted: {', '.join(where[:4])}"),
            "the rules stand before the network does",
            hint="systemd.special(7): Before=network-pre.target, Wants=network-pre.target",
        )
    for family, silenced in refused.items():
        if family not in bare:
            first = max(answer.before_s for answer in silenced)
            last = min(answer.before_s for answer in silenced)
            ports = ", ".join(str(answer.port) for answer in silenced[:5])
            yield finding(
                *("refused-at-boot", family),
                f"{len(silenced)} closed ports answered ({ports}), {first:.1f} to {last:.1f} s before ready",
                "the rules stand before the network does",
                hint="systemd.special(7): Before=network-pre.target, Wants=network-pre.target",
            )
    for family, same in untold.items():
        if family not in bare and not refused[family]:
            yield finding(
                *("boot-not-told", family),
                f"{len(same)} ports answered with a reset while the machine booted, as nearly all ports do now",
                "answers of the rules that are others than those of a machine without rules",
                Severity.UNPROVEN,
                hint="let the last rule drop, or reject by ICMP: reject with icmpx type admin-prohibited",
            )


def _loud(seen: FirewallObservation) -> set[tuple[Family, str]]:
    """From where most ports say that they are closed: whether rules that stood said so at boot, nobody can tell."""
    found: set[tuple[Family, str]] = set()
    for one in seen.sweeps:
        if one.protocol == "tcp" and one.full:
            closed = (range(max(answer.first, CANARIES.start), answer.last + 1) for answer in one.of("closed"))
            if 2 * sum(map(len, closed)) > len(CANARIES):
                found.add((one.family, one.origin))
    return found
