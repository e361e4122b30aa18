"""The judge: whatever left the machine is a finding, unless it is ours, the link's own business, or allowed."""

from __future__ import annotations

import dataclasses
import ipaddress

from pytest_osgates.checks.telemetry import ways
from pytest_osgates.checks.telemetry.contacts import Contact, group, is_multicast
from pytest_osgates.checks.telemetry.identifiers import identifiers
from pytest_osgates.checks.telemetry.policy import Allowed, TelemetryPolicy
from pytest_osgates.checks.telemetry.proof import proof
from pytest_osgates.checks.telemetry.seen import PHASES, CardSeen, FactSeen, FlowSeen, TelemetryObservation
from pytest_osgates.model import Finding, Severity

MAX_LISTED = 6
# What an ordinary host asks for in a day: a gateway, a resolver, its own addresses, which may change (RFC 8981).
MAX_NEIGHBOURS = 32
MANY = "many addresses"
_NEIGHBOURS = {"arp": "arp", "address": "ndp", "group": "groups"}
_LINK_LOCAL = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"))


def judge(seen: TelemetryObservation, policy: TelemetryPolicy) -> list[Finding]:
    """Contacts, identifiers, and whether it is proven that there was nothing more."""
    used: set[int] = set()
    findings = [contact_finding(contact, seen, policy, used) for contact in group(seen)]
    findings += _foreign(seen)
    findings += _unparsed(seen)
    findings += _unvalidated(seen, policy)
    findings += identifiers(seen, policy)
    findings += proof(seen, policy)
    findings += _unused(policy, used)
    findings += _remarks(seen)
    return findings


def contact_finding(contact: Contact, seen: TelemetryObservation, policy: TelemetryPolicy, used: set[int]) -> Finding:
    """What is to be said of one contact; indices of allowances that it needed go into `used`."""
    rule, wanted = _rule(contact, seen, policy)
    card, frame = contact.frame
    severity, reason, hint = Severity.VIOLATION, "", _hint(contact)
    # Neither a vendor nor a hidden name can be allowed: nobody can say what an encrypted name is.
    if rule not in {"vendor", "ech"}:
        reasons = _allowed(contact, seen, policy, used)
        if reasons is not None:
            severity, reason = Severity.ACCEPTED, "; ".join(dict.fromkeys(reasons))
    captures = {entry.index: entry.capture for entry in seen.cards}
    return Finding(
        rule=rule,
        subject=contact.subject,
        seen=_said(contact),
        wanted=wanted,
        evidence=f"{captures.get(card, '')} packet {frame}",
        hint=hint,
        severity=severity,
        reason=reason,
    )


def _rule(contact: Contact, seen: TelemetryObservation, policy: TelemetryPolicy) -> tuple[str, str]:
    vendor = contact.vendor
    if vendor is not None:
        return "vendor", f"nothing to {vendor.name}" + (", which is analytics" if vendor.analytics else "")
    if "ech" in contact.applications or any(note.startswith("ECH") for note in contact.notes):
        return "ech", "no connection whose true name is hidden"
    if any(
        ways.ENCRYPTED & set(flow.applications) for flow in contact.flows if not ways.is_resolver(flow, seen, policy)
    ):
        return "encrypted-dns", "no names asked past the resolver of the network"
    foreign = [query for query in contact.queries if not ways.is_offered(query, seen, policy)]
    if policy.resolver is not None and any(query.transport not in ways.ENCRYPTED for query in foreign):
        return "plain-dns", f"names are asked of {policy.resolver.name} by {policy.resolver.kind} alone"
    if foreign:
        return (
            "foreign-resolver",
            f"names are asked of the resolver that the network offers, not of {foreign[0].server}",
        )
    if contact.literal:
        if is_multicast(contact.subject):
            return "multicast", "nothing is shouted over the link"
        return "literal-address", "no connection to an address that no name led to"
    return "contact", "no contact that the profile does not allow"


def _allowed(
    contact: Contact, seen: TelemetryObservation, policy: TelemetryPolicy, used: set[int]
) -> list[str] | None:
    """The reasons, if every part of the contact is allowed by an entry that has one; None if any part is not.

    The flow of a declared VPN, connections to a declared resolver, and asking for their names, are allowed by their
    declaration.

    Asking the network's own resolver for an allowed name is part of it; asking another one needs ``dns`` in
    ``services``, and DNS that is encrypted needs an entry that names its port. A name that a flow says itself, at an
    address that was not given for it, may be a lie: the address needs an entry as well, by what it was given for.
    """
    contact, reasons = _without_declared(contact, seen, policy)
    if not contact.entries:
        return reasons
    entries = [
        (index, entry)
        for index, entry in enumerate(policy.allow)
        if contact.tunnel or entry.outside_tunnel or policy.vpn is None
    ]
    for flow in contact.flows:
        if not contact.literal and not _given(contact, flow) and not _leads_there(flow, entries, used):
            return None
    fitting = [(index, entry) for index, entry in entries if _fits(entry, contact)]
    asks_offered = all(ways.is_offered(query, seen, policy) for query in contact.queries)
    touched = set()
    for service in contact.services:
        for phase in contact.phases or dict.fromkeys(PHASES):
            for index, entry in fitting:
                covered = service in entry.services or (service == "dns" and asks_offered)
                if covered and phase in entry.phases and entry.documented:
                    reasons.append(entry.reason)
                    touched.add(index)
                    break
            else:
                return None
    used |= touched
    return reasons or None


def _given(contact: Contact, flow: FlowSeen) -> bool:
    """Whether the address was an answer for the contact's name, or for one that it is an alias of."""
    return any(entry.how in {"dns", "cname"} and entry.name == contact.subject for entry in flow.names)


def _leads_there(flow: FlowSeen, entries: list[tuple[int, Allowed]], used: set[int]) -> bool:
    """Whether the profile allows the address itself, or another name that it was given for."""
    asked = [entry.name for entry in flow.names if entry.how in {"dns", "cname"}]
    for index, entry in entries:
        fits = entry.covers_address(flow.dst) or any(entry.covers_name(name) for name in asked)
        phases = all(phase in entry.phases for phase in flow.phases)
        if fits and phases and entry.documented and flow.service in entry.services:
            used.add(index)
            return True
    return False


def _without_declared(
    contact: Contact, seen: TelemetryObservation, policy: TelemetryPolicy
) -> tuple[Contact, list[str]]:
    """What of a contact is more than the declared VPN and resolver, and the reasons for the rest."""
    reasons, flows, queries = [], [], []
    for flow in contact.flows:
        if policy.vpn is not None and ways.is_vpn(flow, seen, policy.vpn):
            reasons.append(policy.vpn.reason)
        elif policy.resolver is not None and ways.is_resolver(flow, seen, policy):
            reasons.append(policy.resolver.reason)
        else:
            flows.append(flow)
    for query in contact.queries:
        if ways.leads_to_declared(query, policy) and ways.is_offered(query, seen, policy):
            owner = policy.vpn if policy.vpn is not None and query.name == policy.vpn.host else policy.resolver
            reasons += [owner.reason] if owner is not None else []
        else:
            queries.append(query)
    return dataclasses.replace(contact, flows=flows, queries=queries), reasons


def _fits(entry: Allowed, contact: Contact) -> bool:
    if contact.literal:
        return entry.covers_address(contact.subject)
    if not entry.covers_name(contact.subject):
        return False
    # Every other name that those flows say must be allowed as well.
    return all(
        entry.covers_name(name.name)
        for flow in contact.flows
        for name in flow.names
        if name.how not in {"dns", "cname"}
    )


def _said(contact: Contact) -> str:
    services = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in contact.services.items())
    phases = ", ".join(str(phase) for phase in PHASES if phase in contact.phases) or "unknown phase"
    way = "inside the tunnel: " if contact.tunnel else ""
    parts = [f"{way}{services} ({phases}), first {contact.first:.1f} s after power-on"]
    if contact.last - contact.first >= 1:
        parts.append(f"last {contact.last:.1f} s")
    if contact.octets:
        parts.append(f"{contact.octets} bytes out")
    vendor = contact.vendor
    if vendor is not None:
        parts.append(f"{vendor.name} by {vendor.by}")
    if contact.aliases:
        parts.append("also called " + ", ".join(list(contact.aliases)[:MAX_LISTED]))
    others = dict.fromkeys(
        f"{entry.name} ({entry.how})"
        for flow in contact.flows
        for entry in flow.names
        if entry.name != contact.subject
    )
    if others:
        parts.append("names on it: " + ", ".join(list(others)[:MAX_LISTED]))
    if not contact.literal:
        for told, text in ((True, "at "), (False, "at addresses that nobody gave for it: ")):
            addresses = dict.fromkeys(flow.dst for flow in contact.flows if _given(contact, flow) is told)
            if addresses:
                parts.append(text + ", ".join(list(addresses)[:MAX_LISTED]))
    notes = contact.notes[:MAX_LISTED]
    if notes:
        parts.append("; ".join(notes))
    if contact.suspects:
        parts.append("suspected: " + ", ".join(contact.suspects[:MAX_LISTED]))
    return "; ".join(parts)


def _hint(contact: Contact) -> str:
    if contact.vendor is not None:
        return "take out what asks for it, or point it elsewhere: a vendor cannot be allowed"
    return "take out what asks for it, or allow it with a reason in [[gate.telemetry.allow]]"


# Facts of the link that are findings by themselves: the detail that tells them apart, how it is written, where they
# were seen, what is wanted.
_FOREIGN = {
    "ethertype": ("number", "0x{}", "frames to {to}", "IP and ARP, nothing else"),
    "vlan": ("tag", "VLAN {}", "tagged frames", "no frame into another network"),
    "ip-options": (
        *("what", "{}", "in {count} packets"),
        "no headers that carry data, or lead elsewhere than the destination says",
    ),
}


def _foreign(seen: TelemetryObservation) -> list[Finding]:
    """Frames that are no IP: protocols that talk to switches, tags of other networks; and headers that carry data."""
    findings: dict[tuple[str, str], Finding] = {}
    gateways = {card.gateway_mac for card in seen.cards}
    for fact in seen.facts:
        if fact.kind in _FOREIGN and fact.mac not in gateways:
            detail, subject, where, wanted = _FOREIGN[fact.kind]
            which = fact.details.get(detail, "?")
            seen_where = where.format(to=fact.details.get("to", "?"), count=fact.count)
            findings.setdefault(
                (fact.kind, which),
                Finding(
                    rule=fact.kind,
                    subject=subject.format(which),
                    seen=f"{seen_where}, first {fact.first:.1f} s after power-on",
                    wanted=wanted,
                    evidence=f"packet {fact.frame}",
                ),
            )
    return [*findings.values(), *(finding for card in seen.cards for finding in _neighbours(card, seen))]


def _neighbours(card: CardSeen, seen: TelemetryObservation) -> list[Finding]:
    """Neighbours are asked for and groups joined on the link, but few of them, and neighbours that are there.

    More is a search of the link, or says something in the addresses themselves.
    """
    told: dict[str, dict[str, FactSeen]] = {rule: {} for rule in _NEIGHBOURS.values()}
    facts = [fact for fact in seen.facts if fact.card == card.index and fact.kind in _NEIGHBOURS]
    # A machine may answer on one link for its address on another, when the gateway asks there (it asks for all that
    # were used on the link).
    wanted = {(fact.kind, fact.details.get("asks")) for fact in facts if fact.mac == card.gateway_mac}
    for fact in facts:
        if fact.mac != card.gateway_mac:
            for word, address in fact.details.items():
                if word == "answers" and (fact.kind, address) in wanted:
                    continue
                told[_NEIGHBOURS[fact.kind]].setdefault(address, fact)
    links = [ipaddress.ip_network(f"{text}/{24 if '.' in text else 64}", strict=False) for text in card.link]
    links += _LINK_LOCAL
    findings = []
    for rule, asked in told.items():
        far = []
        if rule != "groups":
            far = [text for text in asked if not any(ipaddress.ip_address(text) in link for link in links)]
        for subject in (*far[:MAX_NEIGHBOURS], *([MANY] if len(asked) > MAX_NEIGHBOURS else ())):
            fact = asked.get(subject, list(asked.values())[-1])
            findings.append(
                Finding(
                    rule=rule,
                    subject=subject,
                    seen=f"{len(asked)} addresses, first this {fact.first:.1f} s after power-on",
                    wanted="few addresses, and those of this link",
                    evidence=f"{card.capture} packet {fact.frame}",
                )
            )
    return findings


def _unparsed(seen: TelemetryObservation) -> list[Finding]:
    return [
        Finding(
            rule="unparsed",
            subject=card.word,
            seen=f"{card.unparsed} packets: {'; '.join(card.unparsed_examples[:3])}",
            wanted="packets that can be read",
            evidence=card.capture,
            # In a capture that is damaged, nobody knows who wrote them.
            severity=Severity.UNPROVEN if card.problem else Severity.VIOLATION,
        )
        for card in seen.cards
        if card.unparsed
    ]


def _unvalidated(seen: TelemetryObservation, policy: TelemetryPolicy) -> list[Finding]:
    findings = [
        Finding(
            rule="tls-unvalidated",
            subject=entry.name or entry.address,
            seen=f"TLS with {entry.address} port {entry.port} went on with a certificate that nobody vouches for",
            wanted="clients that refuse it: whoever is in between reads and changes what they send",
            hint="that program does not validate certificates",
            severity=Severity.VIOLATION,
        )
        for entry in seen.unvalidated
    ]
    if policy.tls != seen.tls:
        findings.append(
            Finding(
                rule="tls-answer",
                subject=seen.tls,
                seen=f"TLS clients met {seen.tls!r}",
                wanted=f"tls = {policy.tls!r}, as the profile has it",
                hint="run the gate again",
                severity=Severity.UNPROVEN,
            )
        )
    return findings


def _remarks(seen: TelemetryObservation) -> list[Finding]:
    findings = []
    if seen.timing.mode != "real":
        findings.append(
            Finding(
                rule="virtual-time",
                subject=f"x{seen.timing.warp:.0f}",
                seen=f"{seen.timing.idle_s:.0f} s of the guest's time, {seen.timing.warp:.0f} times as fast as real",
                wanted="real time for a sign-off",
                severity=Severity.REMARK,
            )
        )
    if seen.timers or seen.timers is None:
        due = "due within the window, or within as long again: " + ", ".join((seen.timers or ())[:10])
        findings.append(
            Finding(
                rule="timers",
                subject="not listed" if seen.timers is None else f"{len(seen.timers)} timers",
                seen="systemctl list-timers gave no answer" if seen.timers is None else due,
                wanted="a window in which what is of interest happens",
                severity=Severity.REMARK,
            )
        )
    return findings


def _unused(policy: TelemetryPolicy, used: set[int]) -> list[Finding]:
    return [
        Finding(
            rule="unused-acceptance",
            subject=entry.subject,
            seen="the profile allows it, and it was not needed"
            if entry.documented
            else "the profile allows it without a reason: it counts as none",
            wanted="no acceptance without need",
            hint="remove it from the profile",
            severity=Severity.REMARK,
        )
        for index, entry in enumerate(policy.allow)
        if index not in used
    ]
