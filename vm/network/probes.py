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
    """A message that a host answers by itself, or a datagram for many, of which programs may answer. `answers`: ICMP
    types that do; of other protocols, any packet does. `to`: ``address``, ``broadcast``, ``group``, or the address of
    many that it goes to; `port`: of a datagram.
    """

    name: str
    family: int
    protocol: int
    message: bytes
    to: str
    answers: frozenset[int]
    port: int = 0

    @property
    def hardware(self) -> bytes:
        """Of a datagram for a group, where its frame goes (RFC 1112 6.4, RFC 2464 7); empty: not to a group."""
        group = wire.address_of(self.to) if self.port else b""
        if len(group) == 4:
            return b"" if group == b"\xff" * 4 else bytes((1, 0, 0x5E, group[1] & 0x7F)) + group[2:]
        return b"\x33\x33" + group[12:] if group else b""


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
    single = [
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
    ]
    many = [
        Kind(f"udp/{row['port']} to {group}", family, wire.UDP, _request(row), group, frozenset(), row["port"])
        for row in _data()["many"]
        for group in row["groups"]
        if (":" in group) == (family == 6)
    ]
    return (*single, *many)


def _request(row: dict[str, Any]) -> bytes:
    if "like" in row:
        return payloads()[row["like"]]
    return bytes.fromhex(row["hex"]) if "hex" in row else str(row["text"]).encode()


@cache
def groups() -> tuple[str, ...]:
    """Addresses of many that datagrams go to."""
    return tuple(dict.fromkeys(group for row in _data()["many"] for group in row["groups"]))
