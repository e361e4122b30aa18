"""Entries of a firmware's boot menu (UEFI 2.10, 3.1.3: EFI_LOAD_OPTION; 10.3: device paths)."""

from __future__ import annotations

import struct
import uuid

_ACTIVE = 1
_MEDIA, _HARD_DRIVE, _FILE = 4, 1, 4
_GPT = b"\x02\x02"
_END = b"\x7f\xff\x04\x00"
_BLOCK = 512


def load_option(title: str, partition: tuple[int, int, int, str], path: str, options: str) -> bytes:
    """An active entry that starts the file `path` (``/EFI/BOOT/BOOTX64.EFI``) and hands it `options`.

    `partition`: its number, place and size in bytes, and its GUID in the GPT.
    """
    number, start, size, guid = partition
    place = struct.pack("<IQQ", number, start // _BLOCK, size // _BLOCK) + uuid.UUID(guid).bytes_le + _GPT
    nodes = _node(_HARD_DRIVE, place) + _node(_FILE, _text(path.replace("/", "\\"))) + _END
    return struct.pack("<IH", _ACTIVE, len(nodes)) + _text(title) + nodes + _text(options)


def _node(kind: int, body: bytes) -> bytes:
    return struct.pack("<BBH", _MEDIA, kind, len(body) + 4) + body


def _text(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\x00\x00"
