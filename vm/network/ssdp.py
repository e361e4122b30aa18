"""SSDP (UPnP Device Architecture 2.0, 1.3): looks for devices, or announces one, over the link."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_osgates.vm.network.wire import safe_ascii

PORT = 1900


@dataclass(frozen=True)
class Ssdp:
    """``M-SEARCH`` or ``NOTIFY``; what for; and who says so."""

    method: str
    target: str
    server: str


def parse(data: bytes) -> Ssdp | None:
    """What a datagram says; None if it is not SSDP."""
    lines = data[:4096].split(b"\r\n")
    method = lines[0].split(b" ")[0]
    if method not in {b"M-SEARCH", b"NOTIFY", b"HTTP/1.1"}:
        return None
    headers: dict[bytes, bytes] = {}
    for line in lines[1:50]:
        name, _, value = line.partition(b":")
        headers.setdefault(name.strip().lower(), value.strip())
    return Ssdp(
        safe_ascii(method),
        safe_ascii(headers.get(b"st", b"") or headers.get(b"nt", b"")),
        safe_ascii(headers.get(b"server", b"") or headers.get(b"user-agent", b"")),
    )
