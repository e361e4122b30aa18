"""Flows and queries grouped by whom they are for: one contact is one finding, however often it was tried."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from pytest_osgates.checks import vendors
from pytest_osgates.checks.telemetry import ways
from pytest_osgates.checks.telemetry.seen import CardSeen, FlowSeen, Phase, QuerySeen, TelemetryObservation
from pytest_osgates.checks.vendors import Vendor

# RFC 2131; RFC 8415; RFC 4861, RFC 2710, RFC 3810 (all hosts, routers, snoopers, solicited nodes); RFC 3376.
_LINK_SERVERS = frozenset({"255.255.255.255", "ff02::1:2"})
_LISTENERS = frozenset({"224.0.0.22", "224.0.0.2", "224.0.0.1"})
# A lease is taken and kept, and late answers are complained of, with fewer packets than this.
_MAX_TALK = 64
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ERRORS = {"icmp": "ICMP type 3", "icmpv6": "ICMPv6 type 1"}
# Notes of what a host says to the link: errors about what came in (RFC 1122 3.2.2, RFC 4443 3), router and neighbour
# solicitations and advertisements of a neighbour, reports of groups.
_ABOUT = frozenset(
    {*(f"ICMP type {kind}" for kind in (3, 11, 12)), *(f"ICMPv6 type {kind}" for kind in (1, 2, 3, 4))}
)
_NEIGHBOUR = frozenset(f"ICMPv6 type {kind}" for kind in (131, 132, 133, 135, 136, 143))
# Names that say more than the address; the outer name of an encrypted hello does not.
_SAID = ("sni", "host", "quic")


@dataclass
class Contact:
    """Everything for one name, or one address without a name, by one way: through the declared VPN, or not."""

    subject: str
    literal: bool = False
    tunnel: bool = False
    flows: list[FlowSeen] = field(default_factory=list)
    queries: list[QuerySeen] = field(default_factory=list)
    aliases: dict[str, None] = field(default_factory=dict)

    @property
    def entries(self) -> list[FlowSeen | QuerySeen]:
        """All of it."""
        return [*self.flows, *self.queries]

    @property
    def first(self) -> float:
        return min(entry.first for entry in self.entries)

    @property
    def last(self) -> float:
        return max(entry.last for entry in self.entries)

    @property
    def frame(self) -> tuple[int, int]:
        """Card and number of the first packet."""
        entry = min(self.entries, key=lambda seen: seen.first)
        return entry.card, entry.frame

    @property
    def phases(self) -> dict[Phase, int]:
        """Packets in each phase."""
        total: dict[Phase, int] = {}
        for entry in self.entries:
            for phase, count in entry.phases.items():
                if count:
                    total[phase] = total.get(phase, 0) + count
        return total

    @property
    def services(self) -> dict[str, int]:
        """How often by which service; queries are ``dns``."""
        counts: dict[str, int] = {}
        if self.queries:
            counts["dns"] = sum(query.count for query in self.queries)
        for flow in self.flows:
            counts[flow.service] = counts.get(flow.service, 0) + 1
        return counts

    @property
    def applications(self) -> frozenset[str]:
        return frozenset(application for flow in self.flows for application in flow.applications)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for flow in self.flows for note in flow.notes))

    @property
    def suspects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(suspect for entry in self.entries for suspect in entry.suspects))

    @property
    def octets(self) -> int:
        return sum(flow.octets_out for flow in self.flows)

    @property
    def vendor(self) -> Vendor | None:
        """Who stands behind any of its names, aliases or, without a name, its addresses."""
        names = [] if self.literal else [self.subject]
        names += self.aliases
        names += [entry.name for flow in self.flows for entry in flow.names]
        for name in names:
            if (vendor := vendors.of_name(name)) is not None:
                return vendor
        for address in (*(flow.dst for flow in self.flows), *(query.server for query in self.queries)):
            for text in (address, *_embedded(address)):
                if (vendor := vendors.of_address(text)) is not None:
                    return vendor
        return None


def _embedded(text: str) -> list[str]:
    """IPv4 addresses that an IPv6 address leads to: mapped (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo."""
    address = ipaddress.ip_address(text)
    if address.version == 4:
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(address.packed[12:]))
    return [str(inner) for inner in found if inner is not None]


def is_link_business(flow: FlowSeen, card: CardSeen) -> bool:
    """Whether a flow belongs to having a network at all, and goes no further than the link. A tunnel is no link.

    What it carries is read elsewhere (`vm.capture.dissect`): what is more than these protocols need has a note here,
    or is a packet that cannot be read.
    """
    applications, notes = set(flow.applications), set(flow.notes)
    local = flow.dst in card.link
    if flow.tunnel and not (applications == {"dns"} or (applications and applications <= {"icmp", "icmpv6"})):
        return False
    if flow.protocol == "udp" and applications in ({"dhcp"}, {"dhcpv6"}):
        server = 67 if "dhcp" in applications else 547
        few = not notes and flow.packets_out <= _MAX_TALK
        return few and flow.dport == server and (flow.dst in _LINK_SERVERS or local)
    if flow.protocol == "icmpv6" and applications and applications <= {"nd", "mld"}:
        return notes <= _NEIGHBOUR and (flow.dst.startswith("ff02:") or local or _same_link(flow.dst))
    if flow.protocol == "igmp":
        return not notes and (flow.dst in _LISTENERS or flow.dst.startswith("224.0.0."))
    if flow.protocol in {"icmp", "icmpv6"} and applications and applications <= {"icmp", "icmpv6"}:
        # Errors about what came in ("port unreachable" for a late answer) go back to where it came from.
        return notes <= _ABOUT and local and flow.packets_out <= _MAX_TALK
    # A query is judged as one, by its name and its server.
    return applications == {"dns"} and flow.dport == 53 and not notes


def _is_complaint(flow: FlowSeen) -> bool:
    """Whether a flow is nothing but "unreachable" (RFC 792 type 3, RFC 4443 type 1), a few times."""
    if flow.packets_out > _MAX_TALK:
        return False
    return flow.protocol in _ERRORS and bool(flow.notes) and set(flow.notes) <= {_ERRORS[flow.protocol]}


def _same_link(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return address.is_link_local or text.startswith("ff02:")


def is_multicast(text: str) -> bool:
    """Whether an address is for whoever listens."""
    address = ipaddress.ip_address(text)
    return address.is_multicast or text == "255.255.255.255"


def group(seen: TelemetryObservation) -> list[Contact]:
    """Contacts in the order of their first packet; canaries and the business of the link are left out.

    A canary that went another way than the declared one (beside the VPN, past the encrypted resolver) is a contact:
    so would anything of the user's have gone.
    """
    cards = {card.index: card for card in seen.cards}
    found: dict[tuple[bool, str], Contact] = {}

    def contact_of(entry: FlowSeen | QuerySeen, subject: str, *, literal: bool = False) -> Contact:
        made = Contact(subject, literal=literal, tunnel=entry.tunnel)
        return found.setdefault((entry.tunnel, subject), made)

    # Servers that were asked for a canary's name, and that the network does not offer: that is how this system asks.
    strays = {
        (query.card, query.server)
        for query in seen.queries
        if query.canary and query.card in cards and query.server not in cards[query.card].resolvers
    }
    reached = {query.server for query in seen.queries}
    reached |= {
        flow.dst
        for flow in seen.flows
        if flow.from_guest and not flow.canary and flow.protocol not in _ERRORS and not is_multicast(flow.dst)
    }
    for query in seen.queries:
        if not (query.canary and ways.query_as_declared(query, seen)):
            contact = contact_of(query, query.name or ".")
            contact.queries.append(query)
            contact.aliases.update(dict.fromkeys(query.aliases))
    for flow in seen.flows:
        if not flow.from_guest or (flow.canary and ways.flow_as_declared(flow, seen)):
            continue
        card = cards.get(flow.card)
        stray = "dns" in flow.applications and (flow.card, flow.dst) in strays
        if card is not None and not stray and is_link_business(flow, card):
            continue
        if _is_complaint(flow) and flow.dst in reached:
            # About an answer that came too late: it belongs to what asked for it, which is judged.
            continue
        subject = _subject(flow)
        contact_of(flow, subject or flow.dst, literal=not subject).flows.append(flow)
    return sorted(found.values(), key=lambda contact: (contact.first, contact.subject))


def _subject(flow: FlowSeen) -> str:
    """The name that the flow itself says; else the one that was asked for; empty if there is none."""
    for how in (*_SAID, "dns"):
        for entry in flow.names:
            if entry.how == how and not _is_address(entry.name):
                return entry.name
    return ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
