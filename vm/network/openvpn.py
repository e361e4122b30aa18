"""Recognises the first packet of OpenVPN (openvpn-protocol(7), P_CONTROL_HARD_RESET_CLIENT_*)."""

from __future__ import annotations

# Opcode in the upper five bits, key id in the lower three: version 1, 2 and 3 (tls-crypt-v2).
_RESETS = {1: "reset v1", 7: "reset v2", 10: "reset v3"}
_LEAST = 14


def recognise(payload: bytes, *, stream: bool = False) -> str:
    """``reset v1`` to ``reset v3``; empty for anything else. On TCP a length of 2 bytes stands before."""
    if stream:
        if len(payload) < 2 or int.from_bytes(payload[:2], "big") != len(payload) - 2:
            return ""
        payload = payload[2:]
    if len(payload) < _LEAST or payload[0] & 7:
        return ""
    kind = _RESETS.get(payload[0] >> 3, "")
    # Without tls-auth: session, no acknowledgements, packet number 0. With it: a MAC and a time in between.
    plain = len(payload) == _LEAST and payload[9:14] == bytes(5)
    return kind if kind and (plain or 30 <= len(payload) <= 1100) else ""
