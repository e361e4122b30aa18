"""Recognises WireGuard by the shape of its messages (whitepaper, section 5.4)."""

from __future__ import annotations

# Type, then three reserved zero bytes; each kind but data has one length.
_LENGTHS = {1: 148, 2: 92, 3: 64}
KINDS = {1: "handshake", 2: "handshake answer", 3: "cookie", 4: "data"}


def recognise(payload: bytes) -> str:
    """``handshake``, ``handshake answer``, ``cookie`` or ``data``; empty for anything else."""
    if len(payload) < 32 or payload[1:4] != b"\0\0\0":
        return ""
    kind = payload[0]
    if kind == 4:
        return KINDS[4] if len(payload) % 16 == 0 else ""
    return KINDS[kind] if _LENGTHS.get(kind) == len(payload) else ""
