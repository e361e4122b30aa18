"""What the prober sends: `probes.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pytest_osgates.vm.network import wire


@dataclass(frozen=True)
class Kind:
    """A message that a host answers by itself. `answers`: ICMP types that do; of other protocols, any packet does."""

    name: str
    family: int
    protocol: int
    message: bytes
    to: str
    answers: frozenset[int]


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("probes.toml").read_text(encoding="utf-8"))


@cache
def payloads() -> dict[int, bytes]:
    """Requests by UDP port."""
    found = {}
    for row in _data()["udp"]:
        data = bytes.fromhex(row["hex"]) if "hex" in row else row.get("text", "").encode()
        for port in row["ports"]:
            found[port] = data.ljust(row.get("pad", 0), b"\0")
    return found


@cache
def watched() -> tuple[int, ...]:
    """TCP ports that are tried while a machine boots."""
    return tuple(_data()["watched"])


@cache
def kinds(family: int) -> tuple[Kind, ...]:
    """Of IPv4 (4) or IPv6 (6)."""
    icmp = wire.ICMP if family == 4 else wire.ICMPV6
    return tuple(
        Kind(
            row["name"],
            family,
            row.get("protocol", icmp),
            bytes.fromhex(row.get("message", row.get("raw"))),
            row.get("to", "address"),
            frozenset(row.get("answers", ())),
        )
        for row in _data()["kind"]
        if row["family"] == family
    )
