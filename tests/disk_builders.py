"""Disks made of bytes: partition tables, LUKS headers, FAT file systems, initrds."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_osgates.image.source import check_range

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
SECTOR = 512


@dataclass
class BytesDisk:
    """A raw disk in memory; all of it counts as written."""

    data: bytes
    name: str = "test.img"
    format: str = "raw"

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, size: int) -> bytes:
        check_range(self, offset, size)
        return self.data[offset : offset + size]

    def written(self, start: int, size: int) -> Iterator[tuple[int, int]]:
        yield start, min(size, self.size - start)


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """A sector with a table: type, start and size in sectors."""
    raw = bytearray(SECTOR)
    for number, (kind, start, size) in enumerate(entries):
        struct.pack_into("<4xB3xII", raw, 446 + 16 * number, kind, start, size)
    raw[510:512] = b"\x55\xaa"
    return bytes(raw)


def gpt(sectors: int, *parts: tuple[str, int, int, str], count: int = 128) -> bytearray:
    """A disk of so many sectors: type, first sector, number of sectors, name."""
    entries = bytearray(count * 128)
    for number, (kind, start, size, name) in enumerate(parts):
        raw = uuid.UUID(kind).bytes_le + uuid.UUID(int=number + 1).bytes_le
        raw += struct.pack("<QQQ", start, start + size - 1, 0) + name.encode("utf-16-le").ljust(72, b"\0")
        entries[128 * number : 128 * number + 128] = raw
    room = len(entries) // SECTOR
    disk = bytearray(sectors * SECTOR)
    disk[:SECTOR] = mbr((0xEE, 1, sectors - 1))
    for own, other, at in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - room)):
        header = bytearray(92)
        struct.pack_into("<8sIIIIQQQQ", header, 0, b"EFI PART", 0x10000, 92, 0, 0, own, other, 2 + room,
                         sectors - 2 - room)  # fmt: skip
        header[56:72] = uuid.UUID(int=7).bytes_le
        struct.pack_into("<QIII", header, 72, at, count, 128, zlib.crc32(entries))
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        disk[own * SECTOR : own * SECTOR + 92] = header
        disk[at * SECTOR : at * SECTOR + len(entries)] = entries
    return disk


def reseal(disk: bytearray) -> bytearray:
    """The checksums of both copies of a GPT made right again."""
    for at in (SECTOR, len(disk) - SECTOR):
        entries_at, count, size = struct.unpack_from("<QII", disk, at + 72)
        entries = bytes(disk[entries_at * SECTOR : entries_at * SECTOR + count * size])
        struct.pack_into("<I", disk, at + 88, zlib.crc32(entries))
        struct.pack_into("<I", disk, at + 16, 0)
        struct.pack_into("<I", disk, at + 16, zlib.crc32(bytes(disk[at : at + 92])))
    return disk


HEADER = 16384
KEYSLOTS = 4 * 65536 + 8192
DATA = 2 * HEADER + KEYSLOTS


def slot(number: int = 0, **kdf: Any) -> dict[str, Any]:
    """A keyslot as cryptsetup writes it; its area is the n-th."""
    return {
        "type": "luks2",
        "key_size": 64,
        "af": {"type": "luks1", "stripes": 1000, "hash": "sha256"},
        "area": {
            "type": "raw",
            "offset": str(2 * HEADER + number * 65536),
            "size": "65536",
            "encryption": "aes-xts-plain64",
            "key_size": 64,
        },
        "kdf": kdf or {"type": "argon2id", "time": 4, "memory": 1048576, "cpus": 4, "salt": "AAAA"},
    }


def metadata(**changes: Any) -> dict[str, Any]:
    """A volume with one passphrase."""
    made: dict[str, Any] = {
        "keyslots": {"0": slot()},
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": str(DATA),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": "aes-xts-plain64",
                "sector_size": 512,
            }
        },
        "digests": {"0": {"type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256"}},
        "config": {"json_size": str(HEADER - 4096), "keyslots_size": str(KEYSLOTS)},
    }
    return {**made, **changes}


def luks2_copy(text: bytes, *, second: bool = False, sequence: int = 3) -> bytes:
    """One copy of a header."""
    binary = bytearray(4096)
    struct.pack_into(">6sHQQ48s32s", binary, 0, b"SKUL\xba\xbe" if second else b"LUKS\xba\xbe", 2, HEADER, sequence,
                     b"", b"sha256")  # fmt: skip
    binary[168:208] = b"05c0de01-0000-4000-8000-000000000002".ljust(40, b"\0")
    struct.pack_into(">Q", binary, 256, HEADER if second else 0)
    area = text.ljust(HEADER - 4096, b"\0")
    binary[448:480] = hashlib.sha256(bytes(binary) + area).digest()
    return bytes(binary) + area


def luks2(data: Mapping[str, Any] | bytes | None = None, payload: bytes = b"", **copies: Any) -> bytes:
    """A partition: both copies, an area for keyslots, a payload."""
    text = data if isinstance(data, bytes) else json.dumps(metadata() if data is None else data).encode()
    first = luks2_copy(copies.get("first", text), sequence=copies.get("sequence", 3))
    second = luks2_copy(copies.get("second", text), second=True, sequence=copies.get("second_sequence", 3))
    return first + second + bytes(KEYSLOTS) + payload


def newc(members: Mapping[str, bytes], mode: int = 0o100600) -> bytes:
    """A cpio archive."""
    made = bytearray()
    for name, content in (*members.items(), ("TRAILER!!!", b"")):
        raw = name.encode() + b"\0"
        fields = (1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        made += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        made += bytes(-(110 + len(raw)) % 4) + content + bytes(-len(content) % 4)
    return bytes(made)


def pe(sections: Mapping[str, bytes]) -> bytes:
    """An EFI program with these sections, each at a place of its own."""
    head = bytearray(1024)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 64)
    struct.pack_into("<4s2xH12xH", head, 64, b"PE\0\0", len(sections), 240)
    struct.pack_into("<H", head, 88, 0x20B)
    body = b""
    for number, (name, content) in enumerate(sections.items()):
        struct.pack_into("<8s8xII", head, 88 + 240 + 40 * number, name.encode(), len(content), 1024 + len(body))
        body += content
    return bytes(head) + body


def fat(path: Path, files: Mapping[str, bytes], mib: int = 4) -> Path:
    """A FAT file system made by mkfs.fat(8) and mtools(1)."""
    subprocess.run(["/usr/sbin/mkfs.fat", "-C", str(path), str(mib * 1024)], check=True, capture_output=True)
    made: set[str] = set()
    for name, content in files.items():
        parts = name.split("/")
        for count in range(1, len(parts)):
            folder = "/".join(parts[:count])
            if folder not in made:
                subprocess.run(["mmd", "-i", str(path), f"::/{folder}"], check=True)
                made.add(folder)
        subprocess.run(["mcopy", "-i", str(path), "-", f"::/{name}"], input=content, check=True)
    return path


def flipped(raw: bytes, flips: Iterable[tuple[int, int]]) -> bytes:
    """Some bytes replaced."""
    made = bytearray(raw)
    for at, value in flips:
        made[at % len(made)] = value
    return bytes(made)
