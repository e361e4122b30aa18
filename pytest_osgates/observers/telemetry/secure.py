"""Queries over TLS: no capture shows them, so they come out of the sinkhole's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_osgates.checks.telemetry.seen import PHASES, FlowSeen, QuerySeen

if TYPE_CHECKING:
    from pytest_osgates.observers.telemetry.build import Card


@dataclass
class SecureQuery:
    """A query over TLS, which no capture shows: out of the sinkhole's log."""

    at: float
    name: str
    kind: str
    src: str
    sport: int
    server: str
    transport: str


def secure_query(event: Mapping[str, Any]) -> SecureQuery:
    """Of a line of the log."""
    return SecureQuery(
        *(float(event["t"]), str(event["query"]), str(event["type"]), str(event["src"]), int(event["sport"])),
        *(str(event["dst"]), str(event["transport"])),
    )


def merged(
    asked: Sequence[SecureQuery],
    card: Card,
    flows: Sequence[FlowSeen],
    begun: float,
    boundaries: Sequence[float],
) -> list[tuple[SecureQuery, QuerySeen]]:
    """Each different query as the capture would have shown it, and the first time that it was asked.

    Its frame is that of its connection's first packet, among `flows`. `boundaries`: as for the capture's analysis.
    """
    frames = {
        (flow.src, flow.sport, flow.dst): flow.frame
        for flow in flows
        if flow.card == card.index and flow.protocol == "tcp"
    }
    found: dict[tuple[str, str, str, str], tuple[SecureQuery, QuerySeen]] = {}
    for query in asked:
        key = (query.name, query.kind, query.server, query.transport)
        at = round(query.at - begun, 3)
        phase = PHASES[min(2, sum(query.at >= boundary for boundary in boundaries))]
        if key not in found:
            seen = QuerySeen(
                card=card.index,
                tunnel=card.tunnel,
                name=query.name,
                kind=query.kind,
                server=query.server,
                transport=query.transport,
                first=at,
                last=at,
                frame=frames.get((query.src, query.sport, query.server), 0),
                phases={phase: 1},
            )
            found[key] = (query, seen)
            continue
        first, seen = found[key]
        phases = {**seen.phases, phase: seen.phases.get(phase, 0) + 1}
        found[key] = (first, seen.model_copy(update={"last": at, "count": seen.count + 1, "phases": phases}))
    return list(found.values())
