"""LUKS headers: version 2 with both copies, version 1 as far as to name its cipher.

After "LUKS2 On-Disk Format Specification" 1.1.2 (2.1 binary header, 2.2 JSON area, 3 JSON objects), and
lib/luks2/luks2_json_metadata.c of cryptsetup for what that refuses. Nothing is decrypted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NoReturn

from pytest_osgates.image.diff.ranges import Content
from pytest_osgates.vm.errors import ImageError

_PRIMARY = b"LUKS\xba\xbe"
_SECONDARY = b"SKUL\xba\xbe"
_BINARY = 4096
# 2.1, hdr_size: of one copy, binary and JSON area together.
SIZES = tuple(1 << bits for bits in range(14, 23))
_CHECKSUMS = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
_MAX_OBJECTS = 64
_MAX_SLOT = 31
_NUMBER = re.compile(r"^[0-9]{1,20}$")
_MAX_KEYSLOTS = 128 << 20
# A key of RSA with 16384 bits has 3 KiB as PEM.
_MAX_PUBKEY = 16 << 10
# Of all metadata together.
MOST = 2 * SIZES[-1] + _MAX_KEYSLOTS


@dataclass(frozen=True, slots=True)
class Kdf:
    """How a passphrase becomes a key: `memory` in KiB and `cpus` of Argon2; `iterations` and `hash` of PBKDF2."""

    type: str
    time: int = 0
    memory: int = 0
    cpus: int = 0
    iterations: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Keyslot:
    """One way to the volume key: `key_size` of that in bits; `cipher` and `cipher_bits` of its own area; `volume`:
    its digest is that of a segment, so that it opens the volume; `tried`: also where nobody names it (priority);
    `start` and `length` of its area in the partition, in bytes."""

    number: int
    type: str
    key_size: int
    cipher: str
    cipher_bits: int
    kdf: Kdf | None
    volume: bool
    tried: bool = True
    start: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """What unlocks keyslots without a passphrase. Of ``systemd-tpm2``: PCRs that its policy names, PCRs that a signed
    policy names, their bank, whether a PIN is asked for, whether PCRs are left to a systemd-pcrlock policy, the key
    that signs policies (PEM)."""

    number: int
    type: str
    keyslots: tuple[int, ...]
    pcrs: tuple[int, ...] = ()
    signed_pcrs: tuple[int, ...] = ()
    bank: str = ""
    pin: bool = False
    pcrlock: bool = False
    pubkey: bytes = b""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the partition, place and size in bytes, with its cipher; ``crypt`` is the only type that encrypts."""

    name: str
    type: str
    start: int
    size: int
    cipher: str = ""
    integrity: str = ""
    flags: tuple[str, ...] = ()

    @property
    def in_use(self) -> bool:
        """Reencryption keeps what was, and what will be, as backups."""
        return not any(flag.startswith("backup-") for flag in self.flags)


@dataclass(frozen=True, slots=True)
class Header:
    """A LUKS header. `faults`: what is wrong with one of the copies. `spare`: ranges after the metadata that belong
    to no segment; `area`: where keyslots may be. Both as (offset, bytes)."""

    version: int
    uuid: str
    sequence: int = 0
    cipher: str = ""
    key_size: int = 0
    keyslots: tuple[Keyslot, ...] = ()
    tokens: tuple[Token, ...] = ()
    segments: tuple[Segment, ...] = ()
    requirements: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    spare: tuple[tuple[int, int], ...] = field(default=())
    area: tuple[int, int] = (0, 0)


def read_luks(content: Content) -> Header:
    """The header at the beginning of `content`, a partition.

    :raise ImageError: neither copy is valid, or the metadata contradict themselves.
    """
    head = content.read(0, _BINARY)
    if len(head) < _BINARY:
        raise ImageError("the partition is too small for a LUKS header")
    if not head.startswith((_PRIMARY, _SECONDARY)):
        raise ImageError("no LUKS header")
    (version,) = struct.unpack_from(">H", head, 6)
    if version == 1 and head.startswith(_PRIMARY):
        return _luks1(head)
    if version != 2:
        raise ImageError(f"a LUKS header of version {version}")
    return _luks2(content)


def _text(raw: bytes) -> str:
    return raw.split(b"\x00")[0].decode("ascii", "backslashreplace")


def _luks1(head: bytes) -> Header:
    """LUKS1 On-Disk Format, figure 1."""
    (key_bytes,) = struct.unpack_from(">I", head, 108)
    cipher = f"{_text(head[8:40])}-{_text(head[40:72])}"
    return Header(1, _text(head[168:208]), cipher=cipher, key_size=min(key_bytes, 1 << 16) * 8)


@dataclass(frozen=True, slots=True)
class _Copy:
    size: int
    sequence: int
    uuid: str
    json: bytes


def _luks2(content: Content) -> Header:
    copies: list[_Copy] = []
    faults: list[str] = []
    for name, magic, places in (("first", _PRIMARY, (0,)), ("second", _SECONDARY, SIZES)):
        # The first copy knows where the second one is; without it, it may be at any of these places.
        where = (copies[0].size,) if copies else places
        found = None
        why = "not there"
        for at in where:
            try:
                found = _copy(content, at, magic)
                break
            except ImageError as error:
                if content.read(at, 6) == magic or len(where) == 1:
                    why = error.what
        if found is None:
            faults.append(f"the {name} copy: {why}")
        else:
            copies.append(found)
    if not copies:
        raise ImageError("; ".join(faults))
    if len(copies) == 2:
        one, other = copies
        if one.sequence != other.sequence:
            faults.append(f"the copies have the sequence ids {one.sequence} and {other.sequence}")
        elif (one.json, one.uuid) != (other.json, other.uuid):
            faults.append("the copies have one sequence id and differ")
    newest = max(copies, key=lambda copy: copy.sequence)
    return _metadata(newest, content.size, tuple(faults))


def _copy(content: Content, at: int, magic: bytes) -> _Copy:
    """:raise ImageError: no valid copy of the header is at `at`."""
    binary = content.read(at, _BINARY)
    if not binary.startswith(magic) or len(binary) < _BINARY:
        raise ImageError(f"no header at byte {at}")
    version, size, sequence = struct.unpack_from(">HQQ", binary, 6)
    (offset,) = struct.unpack_from(">Q", binary, 256)
    if version != 2 or size not in SIZES or offset != at or (at and at != size):
        raise ImageError(f"version {version}, {size} bytes, at {at} while it says {offset}")
    name = _text(binary[72:104])
    length = _CHECKSUMS.get(name)
    if length is None:
        raise ImageError(f"its checksum is of the kind {name!r}")
    area = content.read(at + _BINARY, size - _BINARY)
    if len(area) != size - _BINARY:
        raise ImageError("it is cut short")
    digest = hashlib.new(name, usedforsecurity=False)
    digest.update(binary[:448] + bytes(64) + binary[512:])
    digest.update(area)
    if digest.digest() != binary[448 : 448 + length]:
        raise ImageError("its checksum is wrong")
    text, _, rest = area.partition(b"\x00")
    if rest.strip(b"\x00"):
        raise ImageError("bytes after the end of its JSON")
    return _Copy(size, sequence, _text(binary[168:208]), text)


class _Json:
    """Values out of JSON, each with its path for the message."""

    def __init__(self, value: object, path: str) -> None:
        self.value = value
        self.path = path

    def wrong(self, what: str) -> NoReturn:
        raise ImageError(f"its metadata: {self.path}: {what}")

    def __getitem__(self, key: str) -> _Json:
        found = self.get(key)
        if found is None:
            self.wrong(f"no {key!r}")
        return found

    def get(self, key: str) -> _Json | None:
        inside = self.dict()
        return _Json(inside[key], f"{self.path}.{key}") if key in inside else None

    def dict(self) -> Mapping[str, Any]:
        if not isinstance(self.value, dict):
            self.wrong("not an object")
        if len(self.value) > _MAX_OBJECTS:
            self.wrong(f"{len(self.value)} entries")
        return self.value

    def list(self) -> Iterable[_Json]:
        if not isinstance(self.value, list) or len(self.value) > _MAX_OBJECTS:
            self.wrong("not a list, or a long one")
        return [_Json(value, f"{self.path}[{number}]") for number, value in enumerate(self.value)]

    def numbered(self) -> Iterable[tuple[int, _Json]]:
        """The entries of an object whose keys are numbers, in their order."""
        for key in self.dict():
            if not _NUMBER.match(key) or str(int(key)) != key or int(key) > _MAX_SLOT:
                self.wrong(f"{key[:40]!r} is no number up to {_MAX_SLOT}")
        return [(int(key), self[key]) for key in sorted(self.dict(), key=int)]

    def text(self) -> str:
        if not isinstance(self.value, str) or len(self.value) > 256 or not self.value.isprintable():
            self.wrong("not a short text")
        return self.value

    def number(self) -> int:
        """A JSON number of 32 bits."""
        if type(self.value) is not int or not 0 <= self.value < 1 << 32:
            self.wrong("not a number")
        return self.value

    def uint64(self) -> int:
        """A number of 64 bits, written as text (2.2)."""
        if not isinstance(self.value, str) or not _NUMBER.match(self.value) or int(self.value) >= 1 << 64:
            self.wrong("not a number in quotes")
        return int(self.value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One parser may take the first of two equal keys, another the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    if any("\x00" in key for key in found):
        # cryptsetup's parser takes it for the end of the key, so that it may be another one.
        raise ValueError("a key with a NUL")
    return found


def _foreign(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _parse(text: bytes) -> _Json:
    try:
        return _Json(json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_foreign), "JSON")
    except (ValueError, RecursionError) as error:
        raise ImageError(f"its metadata are no JSON: {str(error)[:200]}") from error


def _metadata(copy: _Copy, size: int, faults: tuple[str, ...]) -> Header:
    root = _parse(copy.json)
    config = root["config"]
    area = config["keyslots_size"].uint64()
    if config["json_size"].uint64() != copy.size - _BINARY or area % 4096 or area > _MAX_KEYSLOTS:
        config.wrong("the sizes of its areas contradict the header")
    first = 2 * copy.size
    if first + area > size:
        config.wrong("the area of the keyslots reaches beyond the partition")
    segments = _segments(root["segments"], first + area, size)
    encrypted = {segment.name for segment in segments if segment.type == "crypt" and segment.in_use}
    volume, known = _digests(root["digests"], {segment.name for segment in segments}, encrypted)
    keyslots = _keyslots(root["keyslots"], first, first + area, volume)
    numbers = {slot.number for slot in keyslots}
    if known - numbers:
        root["digests"].wrong(f"keyslots that are not there: {sorted(known - numbers)}")
    requirements = config.get("requirements")
    mandatory = requirements.get("mandatory") if requirements is not None else None
    flags = config.get("flags")
    ciphers = {segment.cipher for segment in segments if segment.type == "crypt"}
    sizes = {slot.key_size for slot in keyslots if slot.volume}
    return Header(
        version=2,
        uuid=copy.uuid,
        sequence=copy.sequence,
        cipher=", ".join(sorted(ciphers)),
        key_size=min(sizes, default=0),
        keyslots=keyslots,
        tokens=_tokens(root["tokens"], numbers),
        segments=segments,
        requirements=tuple(entry.text() for entry in mandatory.list()) if mandatory is not None else (),
        flags=tuple(entry.text() for entry in flags.list()) if flags is not None else (),
        faults=faults,
        spare=_spare(segments, first + area, size),
        area=(first, area),
    )


def _keyslots(slots: _Json, first: int, end: int, volume: set[int]) -> tuple[Keyslot, ...]:
    found = []
    areas: list[tuple[int, int, int]] = []
    for number, slot in slots.numbered():
        kind = slot["type"].text()
        area = slot["area"]
        start, length = area["offset"].uint64(), area["size"].uint64()
        if start < first or start + length > end or not length or start % 4096:
            area.wrong(f"{length} bytes at {start}, outside the area of the keyslots ({first} to {end})")
        areas.append((start, length, number))
        key_size = slot["key_size"].number()
        if key_size > 4096:
            slot.wrong(f"a key of {key_size} bytes")
        kdf, cipher, bits = None, "", 0
        if kind == "luks2":
            kdf = _kdf(slot["kdf"])
            cipher, bits = area["encryption"].text(), area["key_size"].number() * 8
            stripes = slot["af"]["stripes"].number()
            if key_size * stripes > length:
                area.wrong(f"too small for {stripes} stripes of {key_size} bytes")
        priority = slot.get("priority")
        tried = priority is None or priority.number() > 0
        opens = number in volume
        found.append(Keyslot(number, kind, key_size * 8, cipher, bits, kdf, opens, tried, start, length))
    for (start, length, one), (following, _, other) in pairwise(sorted(areas)):
        if following < start + length:
            slots.wrong(f"the areas of {one} and {other} overlap")
    return tuple(found)


def _kdf(kdf: _Json) -> Kdf:
    kind = kdf["type"].text()
    if kind == "pbkdf2":
        return Kdf(kind, iterations=kdf["iterations"].number(), hash=kdf["hash"].text())
    if kind in ("argon2i", "argon2id"):
        return Kdf(kind, kdf["time"].number(), kdf["memory"].number(), kdf["cpus"].number())
    kdf.wrong(f"unknown type {kind!r}")


def _segments(segments: _Json, first: int, size: int) -> tuple[Segment, ...]:
    found = []
    for number, segment in segments.numbered():
        kind = segment["type"].text()
        start = segment["offset"].uint64()
        length = size - start if segment["size"].value == "dynamic" else segment["size"].uint64()
        flags = segment.get("flags")
        marks = tuple(entry.text() for entry in flags.list()) if flags is not None else ()
        cipher = segment["encryption"].text() if kind == "crypt" else ""
        integrity = segment.get("integrity")
        protects = "" if integrity is None else integrity["type"].text()
        made = Segment(str(number), kind, start, length, cipher, protects, marks)
        # What is kept aside during a reencryption may be the whole partition.
        least = first if made.in_use else 0
        if start < least or length <= 0 or start + length > size or start % 512:
            segment.wrong(f"{length} bytes at {start}, outside the partition or in the metadata")
        found.append(made)
    live = sorted((s for s in found if s.in_use), key=lambda segment: segment.start)
    if not live:
        segments.wrong("none that is in use")
    for one, other in pairwise(live):
        if other.start < one.start + one.size:
            segments.wrong(f"{one.name} and {other.name} overlap")
    return tuple(found)


def _digests(digests: _Json, segments: set[str], encrypted: set[str]) -> tuple[set[int], set[int]]:
    """Keyslots that open a segment, and all that a digest names. Each that is `encrypted` has one."""
    volume: set[int] = set()
    known: set[int] = set()
    covered: set[str] = set()
    for _, digest in digests.numbered():
        of = {entry.text() for entry in digest["segments"].list()}
        if of - segments:
            digest.wrong("a segment that is not there")
        slots = {_slot(entry) for entry in digest["keyslots"].list()}
        known |= slots
        if of:
            volume |= slots
            covered |= of
    if not covered:
        digests.wrong("none of a segment")
    if encrypted - covered:
        digests.wrong(f"none of segment {', '.join(sorted(encrypted - covered))}")
    return volume, known


def _slot(entry: _Json) -> int:
    text = entry.text()
    if not _NUMBER.match(text) or int(text) > _MAX_SLOT:
        entry.wrong("no number of a keyslot")
    return int(text)


def _tokens(tokens: _Json, slots: set[int]) -> tuple[Token, ...]:
    found = []
    for number, token in tokens.numbered():
        kind = token["type"].text()
        of = tuple(sorted({_slot(entry) for entry in token["keyslots"].list()}))
        if set(of) - slots:
            token.wrong("a keyslot that is not there")
        if kind != "systemd-tpm2":
            found.append(Token(number, kind, of))
            continue
        # systemd's src/shared/tpm2-util.c, tpm2_parse_luks2_json() and tpm2_make_luks2_json().
        pcrs, signed = _pcrs(token["tpm2-pcrs"]), _pcrs(token.get("tpm2_pubkey_pcrs"))
        if (pcrs or signed) and _is_open(token.get("tpm2-policy-hash")):
            token.wrong("it names PCRs, and its policy demands nothing")
        pubkey = _pem(token.get("tpm2_pubkey"))
        found.append(
            Token(
                number,
                kind,
                of,
                pcrs=pcrs,
                # Without the key, there is nobody whose signature would be asked for.
                signed_pcrs=signed if pubkey else (),
                bank=bank.text() if (bank := token.get("tpm2-pcr-bank")) is not None else "",
                pin=_flag(token.get("tpm2-pin")),
                pcrlock=_flag(token.get("tpm2_pcrlock")),
                pubkey=pubkey,
            )
        )
    return tuple(found)


def has_second(content: Content) -> bool:
    """Whether there is a second copy of a header somewhere: cryptsetup opens a volume by that alone.

    :raise ImageError: the disk cannot be read.
    """
    return any(
        content.read(at, len(_SECONDARY)) == _SECONDARY for at in SIZES if at + len(_SECONDARY) <= content.size
    )


def _is_open(policy: _Json | None) -> bool:
    """Whether a policy digest, or one of several, is the one that any session has at its beginning: zeros."""
    if policy is None:
        return False
    digests = policy.list() if isinstance(policy.value, list) else [policy]
    return any(not digest.text().strip("0") for digest in digests)


def _pem(entry: _Json | None) -> bytes:
    """A file in base64; empty if there is none."""
    if entry is None:
        return b""
    if not isinstance(entry.value, str) or len(entry.value) > _MAX_PUBKEY * 4 // 3 + 4:
        entry.wrong("no text, or a long one")
    try:
        return base64.b64decode(entry.value, validate=True)
    except (binascii.Error, ValueError):
        entry.wrong("no base64")


def _pcrs(entry: _Json | None) -> tuple[int, ...]:
    if entry is None:
        return ()
    found = sorted({number.number() for number in entry.list()})
    if any(number > 23 for number in found):
        entry.wrong("a TPM has the PCRs 0 to 23")
    return tuple(found)


def _flag(entry: _Json | None) -> bool:
    if entry is None:
        return False
    if not isinstance(entry.value, bool):
        entry.wrong("neither true nor false")
    return entry.value


def _spare(segments: tuple[Segment, ...], first: int, size: int) -> tuple[tuple[int, int], ...]:
    """What no segment in use covers, as (offset, bytes)."""
    found, position = [], first
    for segment in sorted((s for s in segments if s.in_use), key=lambda segment: segment.start):
        if segment.start > position:
            found.append((position, segment.start - position))
        position = max(position, segment.start + segment.size)
    if position < size:
        found.append((position, size - position))
    return tuple(found)
