"""Entries of a firmware's boot menu (UEFI 2.10, 3.1.3: EFI_LOAD_OPTION; 10.3: device paths)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

from pytest_osgates.vm.errors import ImageError

_ACTIVE = 1
# LOAD_OPTION_CATEGORY: what is in it is an application of the firmware's, and is started by nothing but its menu.
_CATEGORY = 0x1F00
# What a firmware starts of a device whose entry names no file (UEFI 2.10, 3.5.1.1).
FALLBACK = "/EFI/BOOT/BOOTX64.EFI"
_MEDIA, _HARD_DRIVE, _FILE = 4, 1, 4
_GPT = b"\x02\x02"
_LAST = 0x7F
# Messaging: MAC address, IPv4, IPv6, URI.
_NETWORK = frozenset({(3, 11), (3, 12), (3, 13), (3, 24)})
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


def started_path(option: bytes) -> str | None:
    """The file that a firmware starts by this entry, as ``/EFI/BOOT/BOOTX64.EFI``; None: it starts nothing by itself.

    :raise ImageError: it is malformed, or names something that is in no file system.
    """
    try:
        attributes, length = struct.unpack_from("<IH", option)
    except struct.error:
        raise ImageError("a boot entry that breaks off") from None
    if not attributes & _ACTIVE or attributes & _CATEGORY:
        return None
    end = next((at for at in range(6, len(option) - 1, 2) if option[at : at + 2] == b"\x00\x00"), None)
    if end is None or end + 2 + length > len(option):
        raise ImageError("a boot entry that breaks off")
    path = ""
    for kind, subtype, body in _nodes(option[end + 2 : end + 2 + length]):
        if kind == _MEDIA and subtype == _FILE:
            path += "/" + body.decode("utf-16-le", "replace").partition("\0")[0].replace("\\", "/").strip("/")
        elif (kind == _MEDIA and subtype != _HARD_DRIVE) or (kind, subtype) in _NETWORK:
            raise ImageError("a boot entry that names no file of a disk")
    return path or FALLBACK


def _nodes(path: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, subtype and body of each, up to the end of the first path."""
    at = 0
    while at + 4 <= len(path):
        kind, subtype, size = struct.unpack_from("<BBH", path, at)
        if kind == _LAST:
            return
        if size < 4 or at + size > len(path):
            break
        yield kind, subtype, path[at + 4 : at + size]
        at += size
    raise ImageError("a boot entry whose device path breaks off")
