"""Recognises WireGuard by the shape of its messages (whitepaper, section 5.4), and reads its keys."""

from __future__ import annotations

import base64
import binascii

# Type, then three reserved zero bytes; each kind but data has one length.
LENGTHS = {1: 148, 2: 92, 3: 64}
KINDS = {1: "handshake", 2: "handshake answer", 3: "cookie", 4: "data"}
KEY_BYTES = 32


def recognise(payload: bytes) -> str:
    """``handshake``, ``handshake answer``, ``cookie`` or ``data``; empty for anything else."""
    if len(payload) < 32 or payload[1:4] != b"\0\0\0":
        return ""
    kind = payload[0]
    if kind == 4:
        return KINDS[4] if len(payload) % 16 == 0 else ""
    return KINDS[kind] if LENGTHS.get(kind) == len(payload) else ""


def decode_key(text: str) -> bytes:
    """A key as ``wg genkey``, ``wg pubkey`` and ``wg genpsk`` write it: base64 of 32 bytes.

    :raise ValueError: it is none; the text says what is wrong, and not the key.
    """
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("a WireGuard key is base64, as wg genkey writes it") from error
    if len(raw) != KEY_BYTES:
        raise ValueError(f"a WireGuard key has {KEY_BYTES} bytes (44 characters of base64), this has {len(raw)}")
    return raw
