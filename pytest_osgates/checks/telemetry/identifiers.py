"""What the machine tells of itself on the link: names and numbers by which it is known again."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import CardSeen, FactSeen, TelemetryObservation
from pytest_osgates.model import Finding, Severity

# An empty or a meaningless name tells nothing (RFC 7844 3.7 wants none at all).
_NOTHING = frozenset({""})
_FEW = "no options or fields but those that anonymous clients send (RFC 7844)"
_SHOUTS = frozenset({"mdns", "llmnr", "ssdp"})


def eui64(mac: str) -> bytes:
    """The interface identifier that is made of a MAC address (RFC 4291, appendix A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return bytes((raw[0] ^ 2,)) + raw[1:3] + b"\xff\xfe" + raw[3:]


def identifiers(seen: TelemetryObservation, policy: TelemetryPolicy) -> list[Finding]:
    """One finding for each thing told, however often."""
    findings: dict[tuple[str, str], Finding] = {}
    cards = {card.index: card for card in seen.cards}
    for kind, value, wanted, where in (
        *(told for fact in seen.facts if fact.card in cards for told in _told(fact, cards[fact.card])),
        *(told for card in seen.cards for told in _addresses(card, seen)),
        *(told for card in seen.cards if policy.random_mac for told in _mac(card, seen)),
    ):
        entry = next((entry for entry in policy.allow_identifier if entry.covers(kind, value)), None)
        reason = entry.reason if entry is not None and entry.documented else ""
        findings.setdefault(
            (kind, value),
            Finding(
                rule=kind,
                subject=value,
                seen=f"told on the link: {value}",
                wanted=wanted,
                evidence=where,
                hint="" if reason else "see docs/telemetry.md for the settings that keep it back",
                severity=Severity.ACCEPTED if reason else Severity.VIOLATION,
                reason=reason,
            ),
        )
    return [*findings.values(), *_unused(policy, list(findings))]


def _unused(policy: TelemetryPolicy, told: list[tuple[str, str]]) -> Iterator[Finding]:
    for entry in policy.allow_identifier:
        if not entry.documented or not any(entry.covers(kind, value) for kind, value in told):
            yield Finding(
                rule="unused-acceptance",
                subject=f"{entry.kind} {entry.value}",
                seen="the profile allows it, and it was not needed"
                if entry.documented
                else "the profile allows it without a reason: it counts as none",
                wanted="no acceptance without need",
                hint="remove it from the profile",
                severity=Severity.REMARK,
            )


def _told(fact: FactSeen, card: CardSeen) -> Iterator[tuple[str, str, str, str]]:
    if fact.mac == card.gateway_mac:
        return
    where = f"{card.capture} packet {fact.frame}"
    details = fact.details
    if fact.kind == "dhcp":
        if details.get("host", "") not in _NOTHING:
            yield "dhcp-host-name", details["host"], "no host name in DHCP (RFC 7844)", where
        if details.get("fqdn", "") not in _NOTHING:
            yield "dhcp-host-name", details["fqdn"], "no host name in DHCP (RFC 7844)", where
        if details.get("hardware", "") not in _NOTHING:
            yield "dhcp-hardware-address", details["hardware"], "the address that the frame comes from", where
        ident = details.get("client_id", "")
        # The hardware address once more tells nothing new (RFC 7844 3.5); a DUID or a text does.
        if ident and ident != "01" + fact.mac.replace(":", ""):
            yield "dhcp-client-id", ident, "no client identifier but the card's address (RFC 7844)", where
        if details.get("vendor", "") not in _NOTHING:
            yield "dhcp-vendor-class", details["vendor"], "no vendor class in DHCP (RFC 7844)", where
        if details.get("user_class", "") not in _NOTHING:
            yield "dhcp-user-class", details["user_class"], "no user class in DHCP (RFC 7844)", where
        yield from (("dhcp-option", text, _FEW, where) for text in _others(details))
    elif fact.kind == "dhcpv6":
        if details.get("host", "") not in _NOTHING:
            yield "dhcpv6-host-name", details["host"], "no host name in DHCPv6 (RFC 7844)", where
        duid = details.get("duid", "")
        # DUID-LL (type 3) is the hardware address once more; all others outlast it (RFC 8415 11).
        if duid and duid != "00030001" + fact.mac.replace(":", ""):
            yield "dhcpv6-duid", duid, "a DUID that is only the card's address (RFC 7844 4.3)", where
        if details.get("vendor", "") not in _NOTHING:
            yield "dhcpv6-vendor-class", details["vendor"], "no vendor class in DHCPv6 (RFC 7844)", where
        yield from (("dhcpv6-option", text, _FEW, where) for text in _others(details))
    elif fact.kind in _SHOUTS:
        told = details.get("told") or details.get("server")
        if told:
            yield f"{fact.kind}-name", told, f"no name of its own over {fact.kind}", where


def _others(details: dict[str, str]) -> list[str]:
    return [text for text in details.get("other", "").split("; ") if text]


def _addresses(card: CardSeen, seen: TelemetryObservation) -> Iterator[tuple[str, str, str, str]]:
    own = eui64(card.mac)
    # Those that it only claimed (duplicate address detection) were told as well.
    claimed = [
        fact.details["claims"]
        for fact in seen.facts
        if fact.card == card.index and fact.kind == "address" and "claims" in fact.details
    ]
    for text in dict.fromkeys((*card.addresses, *claimed)):
        address = ipaddress.ip_address(text)
        if address.version == 6 and address.packed[8:] == own:
            yield "eui64-address", text, "addresses that are not made of the card's address (RFC 7217, RFC 8981)", ""


def _mac(card: CardSeen, seen: TelemetryObservation) -> Iterator[tuple[str, str, str, str]]:
    facts = {fact.mac for fact in seen.facts if fact.card == card.index}
    if card.mac in card.macs or card.mac in facts:
        yield "permanent-mac", card.mac, "a random address instead of the card's own", card.capture
