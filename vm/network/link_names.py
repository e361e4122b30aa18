"""Names that are shouted over the link: mDNS (RFC 6762) and LLMNR (RFC 4795), both in DNS's own format."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_osgates.vm.network import dns

MDNS_PORT, LLMNR_PORT, NETBIOS_PORT = 5353, 5355, 137
MAX_NAMES = 20


@dataclass(frozen=True)
class Shout:
    """``asked``: whom it looks for; ``told``: what it says of itself, which may identify it."""

    asked: tuple[str, ...]
    told: tuple[str, ...]


def parse(data: bytes) -> Shout:
    """What a message tells whoever listens.

    :raise Malformed: it is not DNS.
    """
    message = dns.parse(data)
    # Whoever probes for its own name asks for any record of it, and adds its own (RFC 6762 8.1).
    asked: dict[str, set[int]] = {}
    for name, kind in message.questions:
        asked.setdefault(name, set()).add(kind)
    told = dict.fromkeys(
        text
        for record in message.records
        if record.kind != dns.OPT
        for text in (record.owner, record.value)
        if text and (text not in asked or dns.ANY in asked[text])
    )
    return Shout(tuple(asked)[:MAX_NAMES], tuple(told)[:MAX_NAMES])
