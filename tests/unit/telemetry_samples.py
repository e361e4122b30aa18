"""A quiet machine that was well watched, to be spoiled one thing at a time."""

from __future__ import annotations

from typing import Any

from pytest_osgates.checks.telemetry import TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import (
    CanarySeen,
    CardSeen,
    FactSeen,
    FlowSeen,
    Moment,
    NameSeen,
    Phase,
    QuerySeen,
    TelemetryObservation,
    Timing,
)
from pytest_osgates.model import State

MAC = "52:54:00:6f:73:00"
EUI = "2001:db8:2::5054:ff:fe6f:7300"
POLICY = TelemetryPolicy(idle_s=60)


def card(**changes: Any) -> CardSeen:
    fields: dict[str, Any] = {
        "mac": MAC,
        "capture": "machines/telemetry/net0.pcap",
        "captured_out": 40,
        "captured_in": 20,
        "counted_out": 40,
        "counted_in": 20,
        "lease": "10.0.2.15",
        "gateway_mac": "52:55:0a:00:02:02",
        "link": ("10.0.2.2", "10.0.2.3", "fe80::2", "2001:db8:2::3"),
        "resolvers": ("10.0.2.3", "2001:db8:2::3"),
        "addresses": ("10.0.2.15",),
    }
    return CardSeen(**{**fields, **changes})


def canary(moment: Moment, **changes: Any) -> CanarySeen:
    fields: dict[str, Any] = {
        "moment": moment,
        "sent": True,
        "how": "bash",
        "at": {Moment.START: 60.0, Moment.MIDDLE: 90.5, Moment.END: 121.0}[moment],
        "datagram": True,
        "through_gateway": True,
        "query": True,
        "probe": True,
        "resolved": True,
    }
    return CanarySeen(**{**fields, **changes})


def timing(**changes: Any) -> Timing:
    return Timing(**{"idle_s": 61.0, "wanted_s": 60.0, "boot_s": 40.0, **changes})


def flow(dst: str, protocol: str, dport: int, *names: tuple[str, str], **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "protocol": protocol,
        "src": "10.0.2.15",
        "dst": dst,
        "sport": 40000,
        "dport": dport,
        "first": 70.0,
        "last": 72.0,
        "frame": 9,
        "octets_out": 100,
        "names": tuple(NameSeen(name=name, how=how) for name, how in names),
        "phases": {Phase.IDLE: 3},
    }
    return {"flows": (FlowSeen(**{**fields, **changes}),)}


def query(name: str, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": name,
        "kind": "A",
        "server": "10.0.2.3",
        "first": 69.0,
        "last": 69.0,
        "frame": 7,
        "phases": {Phase.IDLE: 1},
    }
    return {"queries": (QuerySeen(**{**fields, **changes}),)}


def fact(kind_: str, mac: str = MAC, **details: str) -> dict[str, Any]:
    return {"facts": (FactSeen(kind=kind_, mac=mac, details=details, first=5.0, frame=1),)}


def clean(**changes: Any) -> TelemetryObservation:
    fields: dict[str, Any] = {
        "state": State.LIVE,
        "timing": timing(),
        "cards": (card(),),
        "flows": (),
        "queries": (),
        "facts": (),
        "canaries": tuple(canary(moment) for moment in Moment),
    }
    return TelemetryObservation(**{**fields, **changes})
