"""EFI programs for tests, with a table of certificates as a signing tool leaves it."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pytest_osgates.image import authenticode
from pytest_osgates.image.authenticode import Signer

HEADERS = 1024
_PE = 64
_OPTIONAL = _PE + 24
_SECURITY = _OPTIONAL + 112 + 4 * 8


def program(sections: Mapping[str, bytes], *, room: int = 0) -> bytes:
    """An EFI program; with `room`, a certificate table of so many bytes, in which nothing makes sense yet."""
    head = bytearray(HEADERS)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, _PE)
    struct.pack_into("<4sHH12xHH", head, _PE, b"PE\0\0", 0x8664, len(sections), 240, 0x22)
    struct.pack_into("<H", head, _OPTIONAL, 0x20B)
    struct.pack_into("<II", head, _OPTIONAL + 32, 0x1000, 512)
    struct.pack_into("<I", head, _OPTIONAL + 60, HEADERS)
    struct.pack_into("<I", head, _OPTIONAL + 108, 16)
    body = b""
    for number, (name, content) in enumerate(sections.items()):
        raw = content + bytes(-len(content) % 512)
        struct.pack_into(
            "<8sIIII",
            head,
            _OPTIONAL + 240 + 40 * number,
            name.encode(),
            len(content),
            0x1000 * (number + 1),
            len(raw),
            HEADERS + len(body),
        )
        body += raw
    if room:
        struct.pack_into("<II", head, _SECURITY, HEADERS + len(body), room)
        body += struct.pack("<IHH", room, 0x0200, 2) + b"?" * (room - 8)
    return bytes(head) + body


def signed(sections: Mapping[str, bytes], signer: Signer, *, room: int = 2048) -> bytes:
    """An EFI program that `signer` signed."""
    return authenticode.signed(program(sections, room=room), signer)
