"""From captures, counts and canaries to an observation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_osgates.checks.telemetry.seen import (
    DISPUTED,
    PHASES,
    TUNNELS,
    CanarySeen,
    CardSeen,
    FactSeen,
    FlowSeen,
    NameSeen,
    Phase,
    QuerySeen,
    ResolverSeen,
    Unvalidated,
    VpnSeen,
)
from pytest_osgates.checks.telemetry.ways import ENCRYPTED
from pytest_osgates.observers.telemetry.attribution import Journal
from pytest_osgates.observers.telemetry.canary import Planted
from pytest_osgates.observers.telemetry.declared import inside_of, resolver_seen, vpn_seen
from pytest_osgates.observers.telemetry.secure import SecureQuery, merged, secure_query
from pytest_osgates.vm.capture.analysis import analyse
from pytest_osgates.vm.capture.flows import MAX_NOTES, Flow, Query, Traffic
from pytest_osgates.vm.errors import CaptureError
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.network.wire import text_of

MAX_EVENTS = 256 << 20
MAX_UNVALIDATED = 50
MAX_FLOWS = 5_000
# A canary's name is asked for by its own look-up, for either kind of address, and again where an answer is slow.
MAX_ASKED = 32
_KINDS = frozenset({"A", "AAAA"})
_MACS = 20
# Which programs send a canary, in turn (`canary.plant`).
PROGRAMS = ("bash", "python3", "perl", "busybox", "nc", "socat")
EMPTY = Traffic(0, 0, 0.0, 0.0, (), (), (), 0, (), "", "", {})


@dataclass
class Card:
    """What is known of one card besides its capture."""

    index: int
    mac: str
    settings: Settings
    capture: Path
    events: Path
    name: str
    stats: Mapping[str, Any] | None
    trouble: str = ""
    owners: dict[tuple[str, int], str] = field(default_factory=dict)
    tunnel: bool = False


@dataclass
class EventsSeen:
    """What of the sinkhole's log is needed: names that it was asked for, leases, and whether it is whole."""

    queries: set[str] = field(default_factory=set)
    lease: str = ""
    addresses: set[str] = field(default_factory=set)
    problem: str = ""
    secure: list[SecureQuery] = field(default_factory=list)
    # Which name an address was given for, in answers that no capture shows.
    answers: dict[str, str] = field(default_factory=dict)
    unvalidated: dict[Unvalidated, None] = field(default_factory=dict)


def read_events(path: Path) -> EventsSeen:
    """The log of a sinkhole that has ended."""
    seen = EventsSeen()
    size = 0
    try:
        with path.open("rb") as file:
            for line in file:
                size += len(line)
                if size > MAX_EVENTS:
                    seen.problem = "the sinkhole's log is too long"
                    break
                try:
                    event = json.loads(line)
                except ValueError:
                    seen.problem = "the sinkhole's log is cut short or corrupt"
                    break
                kind = event.get("event")
                if kind == "dns" and event.get("transport") in ENCRYPTED:
                    seen.secure.append(secure_query(event))
                elif kind == "secure-answer":
                    seen.answers.update(dict.fromkeys(map(str, event["addresses"]), str(event["query"])))
                elif kind == "dns":
                    seen.queries.add(str(event["query"]))
                elif kind == "dhcp" and event.get("granted"):
                    seen.lease = str(event["granted"])
                elif kind == "tls-accepted" and len(seen.unvalidated) < MAX_UNVALIDATED:
                    who = Unvalidated(name=str(event["sni"]), address=str(event["dst"]), port=int(event["dport"]))
                    seen.unvalidated[who] = None
                elif kind == "address":
                    seen.addresses.add(str(event["address"]))
    except OSError as error:
        seen.problem = f"the sinkhole's log cannot be read: {error.strerror}"
    return seen


@dataclass
class Built:
    """The parts of an observation that come from the wire."""

    cards: list[CardSeen] = field(default_factory=list)
    flows: list[FlowSeen] = field(default_factory=list)
    queries: list[QuerySeen] = field(default_factory=list)
    facts: list[FactSeen] = field(default_factory=list)
    canaries: list[CanarySeen] = field(default_factory=list)
    vpn: list[VpnSeen] = field(default_factory=list)
    resolver: list[ResolverSeen] = field(default_factory=list)
    unvalidated: dict[Unvalidated, None] = field(default_factory=dict)
    idle_s: float = 0.0
    boot_s: float = 0.0
    latency: float | None = None


def build(
    cards: Sequence[Card], planted: Sequence[Planted], probed: Mapping[str, bool], begun: float, journal: Journal
) -> Built:
    """`begun`: power-on, by the clock of the captures. `probed`: whether the guest answered at each moment."""
    built = Built()
    first = {card.index: _analyse(card, ()) for card in cards}
    # Where there is a tunnel, canaries go through it; one that does not is no less a mark.
    marks = _marks(first, planted)
    logs = {card.index: read_events(card.events) for card in cards}
    for log in logs.values():
        built.unvalidated.update(log.unvalidated)
    answers = {address: name for log in logs.values() for address, name in log.answers.items()}
    edges = sorted(at for moment, at in marks.items() if moment in {"start", "end"})
    complete = {"start", "end"} <= marks.keys()
    boundaries = edges if complete else []
    shift = _clock_shift(planted, marks)
    ours = _ours(first, planted)
    for card in cards:
        traffic = _analyse(card, boundaries) if boundaries else first[card.index]
        _add(built, card, traffic, logs[card.index], answers, planted, ours, begun, shift, journal)
        _add_secure(built, card, logs[card.index].secure, planted, begun, shift, boundaries, journal)
    if complete:
        built.idle_s = round(marks["end"] - marks["start"], 3)
        built.boot_s = round(marks["start"] - begun, 3)
    for card in cards:
        if not card.tunnel:
            built.vpn += vpn_seen(card, built.flows)
            logged = sum(len(logs[index].secure) for index in (card.index, TUNNELS + card.index) if index in logs)
            built.resolver += resolver_seen(card, logged)
    for plant in planted:
        built.canaries.append(_canary(plant, built, marks, begun, probed.get(plant.canary.moment, False)))
    return built


def _analyse(card: Card, boundaries: Sequence[float]) -> Traffic:
    try:
        return analyse(card.capture, boundaries, card.settings.mac)
    except CaptureError as error:
        card.trouble = card.trouble or error.what
        return EMPTY


def _marks(traffic: Mapping[int, Traffic], planted: Sequence[Planted]) -> dict[str, float]:
    """When each canary's datagram was captured."""
    found: dict[str, float] = {}
    for plant in planted:
        times = [flow.first for seen in traffic.values() for flow in seen.flows if is_canary_flow(flow, plant)]
        if times:
            found[plant.canary.moment] = min(times)
    return found


def _ours(traffic: Mapping[int, Traffic], planted: Sequence[Planted]) -> dict[tuple[int, int], str]:
    """Card and number of each canary's datagrams. Whoever repeats it later on is not us; but a program may have sent
    it and then said that it failed, so that the next one was tried.
    """
    found: dict[tuple[int, int], str] = {}
    for plant in planted:
        flows = [
            (flow.first, card, flow.frame)
            for card, seen in traffic.items()
            for flow in seen.flows
            if is_canary_flow(flow, plant)
        ]
        tries = PROGRAMS.index(plant.how) + 1 if plant.how in PROGRAMS else len(PROGRAMS)
        for _, card, frame in sorted(flows)[:tries]:
            found[card, frame] = plant.canary.moment
    return found


def is_canary_flow(flow: Flow, plant: Planted) -> bool:
    """Whether a flow is this canary and nothing else: one datagram, to its address, with its token."""
    canary = plant.canary
    return (
        flow.dst == canary.address
        and flow.protocol == "udp"
        and flow.dport == 9
        and flow.packets_out == 1
        and canary.mark in flow.notes
    )


def _clock_shift(planted: Sequence[Planted], marks: Mapping[str, float]) -> float:
    """What to add to a time of the captures for the guest's own clock."""
    shifts = [
        plant.clock - marks[plant.canary.moment]
        for plant in planted
        if plant.clock is not None and plant.canary.moment in marks
    ]
    return min(shifts, key=abs) if shifts else 0.0


def _phases(counts: Sequence[int]) -> dict[Phase, int]:
    if len(counts) == 1:
        # Without both canaries nobody can say where idle begins.
        return {Phase.BOOT: counts[0]} if counts[0] else {}
    return {phase: count for phase, count in zip(PHASES, counts, strict=False) if count}


def _add(
    built: Built,
    card: Card,
    traffic: Traffic,
    events: EventsSeen,
    answers: Mapping[str, str],
    planted: Sequence[Planted],
    ours: Mapping[tuple[int, int], str],
    begun: float,
    shift: float,
    journal: Journal,
) -> None:
    settings, gateway = card.settings, card.settings.mac
    asked = {query.name for query in traffic.queries}
    often: Counter[str] = Counter()
    for query in traffic.queries:
        often[query.name] += query.count
    trouble = [card.trouble, events.problem, *_troubles(card.stats)]
    missing = sorted(events.queries - asked)
    if missing:
        trouble.append(f"the sinkhole was asked for {len(missing)} names that the capture lacks: {missing[0]}")
    # What is in a tunnel is answered as soon as it is out of it: that is not how long the guest waited.
    for latency in () if card.tunnel else traffic.latency:
        if latency is not None:
            built.latency = round(max(built.latency or 0.0, latency), 6)
    incoming = traffic.from_macs.get(gateway, 0)
    stats = card.stats
    addresses = tuple(str(address) for address in stats["addresses"]) if stats else tuple(sorted(events.addresses))
    built.cards.append(
        CardSeen(
            index=card.index,
            mac=card.mac,
            capture=card.name,
            captured_out=traffic.packets - incoming,
            captured_in=incoming,
            tunnel=card.tunnel,
            counted_out=None if stats is None else int(stats["rx_frames"]),
            counted_in=None if stats is None else int(stats["tx_frames"]),
            unparsed=traffic.unparsed,
            unparsed_examples=traffic.unparsed_examples[:5],
            problem=traffic.problem or traffic.overflow,
            trouble="; ".join(text for text in trouble if text),
            lease=events.lease or _global(addresses, settings),
            gateway_mac=gateway,
            link=inside_of(settings)[0] if card.tunnel else _link(settings),
            resolvers=inside_of(settings)[1]
            if card.tunnel
            else (text_of(settings.resolver), text_of(settings.resolver6)),
            addresses=addresses,
            macs=tuple(sorted(traffic.from_macs.keys() - {gateway}))[:_MACS],
        )
    )
    if len(traffic.flows) > MAX_FLOWS or len(traffic.queries) > MAX_FLOWS:
        last = built.cards[-1]
        why = (
            f"holds {len(traffic.flows)} flows and {len(traffic.queries)} queries; {MAX_FLOWS} of each are told apart"
        )
        built.cards[-1] = last.model_copy(update={"problem": last.problem or why})
    for flow in traffic.flows[:MAX_FLOWS]:
        seen = _flow(flow, card, ours, begun, gateway, journal.around(flow.first + shift))
        if flow.dst in answers and not any(entry.how in {"dns", "cname"} for entry in seen.names):
            named = (*seen.names, NameSeen(name=answers[flow.dst], how="dns"))
            seen = seen.model_copy(update={"names": named})
        built.flows.append(seen)
    for query in traffic.queries[:MAX_FLOWS]:
        built.queries.append(
            QuerySeen(
                card=card.index,
                tunnel=card.tunnel,
                name=query.name,
                kind=query.kind,
                server=query.server,
                transport=query.transport,
                first=round(query.first - begun, 3),
                last=round(query.last - begun, 3),
                frame=query.frame,
                count=query.count,
                aliases=tuple(query.aliases),
                phases={PHASES[min(phase, 2)]: count for phase, count in sorted(query.phases.items())},
                suspects=journal.around(query.first + shift),
                canary=next((p.canary.moment for p in planted if _asks_for(query, p, often[query.name])), ""),
            )
        )
    built.facts += [
        FactSeen(
            card=card.index,
            kind=fact.kind,
            mac=fact.src if ":" in fact.src and len(fact.src) == 17 else card.mac,
            details=fact.details,
            first=round(fact.first - begun, 3),
            frame=fact.frame,
            count=fact.count,
        )
        for fact in traffic.facts
    ]


def _asks_for(query: Query | SecureQuery, plant: Planted, times: int) -> bool:
    """Exactly the canary's name, for an address, and not so often that it is something else."""
    return query.name == plant.canary.name and query.kind in _KINDS and times <= MAX_ASKED


def _add_secure(
    built: Built,
    card: Card,
    asked: Sequence[SecureQuery],
    planted: Sequence[Planted],
    begun: float,
    shift: float,
    boundaries: Sequence[float],
    journal: Journal,
) -> None:
    often = Counter(query.name for query in asked)
    found = merged(asked, card, built.flows, begun, boundaries)
    if len(found) > MAX_FLOWS:
        last = built.cards[-1]
        why = f"holds {len(found)} different queries over TLS; {MAX_FLOWS} are told apart"
        built.cards[-1] = last.model_copy(update={"problem": last.problem or why})
    for first, query in found[:MAX_FLOWS]:
        ours = next((p.canary.moment for p in planted if _asks_for(first, p, often[query.name])), "")
        suspects = journal.around(first.at + shift)
        built.queries.append(query.model_copy(update={"canary": ours, "suspects": suspects}))


def _flow(
    flow: Flow, card: Card, ours: Mapping[tuple[int, int], str], begun: float, gateway: str, busy: tuple[str, ...]
) -> FlowSeen:
    owner = card.owners.get((flow.protocol, flow.sport))
    suspects = tuple(dict.fromkeys((*([owner] if owner else []), *busy)))
    # What the analysis gives to the outside is of the outside alone: a direction of its own, or nothing came back.
    return FlowSeen(
        card=card.index,
        tunnel=card.tunnel,
        protocol=flow.protocol,
        src=flow.src,
        dst=flow.dst,
        sport=flow.sport,
        dport=flow.dport,
        from_guest=flow.source_mac != gateway or flow.disputed,
        first=round(flow.first - begun, 3),
        last=round(flow.last - begun, 3),
        frame=flow.frame,
        packets_out=flow.packets_out,
        packets_in=flow.packets_in,
        octets_out=flow.octets_out,
        octets_in=flow.octets_in,
        applications=flow.applications,
        names=tuple(NameSeen(name=name, how=how) for name, how in flow.names),
        notes=((DISPUTED,) if flow.disputed else ()) + flow.notes[:MAX_NOTES],
        phases=_phases(flow.phases),
        suspects=suspects,
        canary=ours.get((card.index, flow.frame), ""),
        to_gateway=card.tunnel or flow.target_mac == gateway,
    )


def _troubles(stats: Mapping[str, Any] | None) -> list[str]:
    if stats is None:
        return []
    found = []
    if stats["broken"]:
        found.append("QEMU's stream was not framed as documented")
    if stats["events_dropped"]:
        found.append(f"{stats['events_dropped']} events are not in the log: {stats['log_failure']}")
    if stats["answers_dropped"]:
        found.append(f"{stats['answers_dropped']} answers were dropped: the guest did not take them")
    if stats["names_full"]:
        found.append("there were too many names")
    if stats["fragments_lost"]:
        found.append(f"{stats['fragments_lost']} fragmented packets were given up")
    if stats["partial_bytes"]:
        found.append(f"QEMU ended in the middle of a frame: {stats['partial_bytes']} bytes of it came")
    return found


def _global(addresses: Sequence[str], settings: Settings) -> str:
    """An address by router advertisement, in the prefix that was announced."""
    prefix = text_of(settings.prefix + bytes(8)).removesuffix("::")
    return next((address for address in addresses if address.startswith(prefix + ":")), "")


def _link(settings: Settings) -> tuple[str, ...]:
    own = (settings.gateway, settings.resolver, settings.link_local, settings.resolver6)
    return tuple(text_of(address) for address in own)


def _canary(plant: Planted, built: Built, marks: Mapping[str, float], begun: float, probe: bool) -> CanarySeen:
    moment = plant.canary.moment
    flows = [flow for flow in built.flows if flow.canary == moment]
    asked = [query for query in built.queries if query.canary == moment]
    at = marks.get(moment)
    return CanarySeen(
        moment=moment,
        sent=plant.sent,
        how=plant.how,
        why=plant.why,
        at=None if at is None else round(at - begun, 3),
        datagram=bool(flows),
        through_gateway=any(flow.to_gateway for flow in flows),
        query=bool(asked),
        probe=probe,
        resolved=plant.resolved,
        clock=plant.clock,
        tunnel=any(flow.tunnel for flow in flows),
        ways=tuple(sorted({f"{'tunnel ' * query.tunnel}{query.transport}" for query in asked})),
    )
