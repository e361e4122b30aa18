"""Unified kernel images: their sections, what systemd-stub measures of them into PCR 11, and the policies that their
.pcrsig signs (UAPI.5; systemd-stub(7), systemd-measure(1); TCG, TPM 2.0 Library, part 3, 23.7)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pytest_osgates.vm.errors import ImageError

# In the order in which they are measured, whatever theirs is in the file (systemd src/fundamental/uki.c). Not
# .pcrsig: it is about the others.
MEASURED = (
    *(".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"),
    *(".profile", ".dtbauto", ".hwids", ".efifw"),
)
# Before version 254 a stub measured fewer: what systemd-measure(1) of 252 takes.
_MEASURED_ONCE = (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey")
_FIRST_WITH_ALL = 254
_STUB = re.compile(rb"systemd-stub ([0-9]{3})\b")
# Those for which systemd-measure signs a policy: words that are measured on the way (systemd-pcrphase.service(8)).
PHASES = (
    "",
    "enter-initrd",
    "enter-initrd:leave-initrd",
    "enter-initrd:leave-initrd:sysinit",
    "enter-initrd:leave-initrd:sysinit:ready",
)
PCR = 11
_MAX_SECTIONS = 96
_MOST_SIGNED = 64
_MOST_JSON = 1 << 20
_MOST_MAGIC = 1 << 10
_POLICY_PCR = 0x17F
_SHA256 = 0x000B


def sections(data: bytes) -> dict[str, bytes]:
    """Each section as it is in memory: of its virtual size. Of a name that is there twice, the first.

    :raise ImageError: no PE file, or malformed.
    """
    try:
        (at,) = struct.unpack_from("<I", data, 0x3C)
        if data[:2] != b"MZ" or data[at : at + 4] != b"PE\x00\x00":
            raise ImageError("no PE file")
        count, size = struct.unpack_from("<2xH12xH", data, at + 4)
        if count > _MAX_SECTIONS:
            raise ImageError(f"{count} sections")
        found: dict[str, bytes] = {}
        raw = memory = 0
        for number in range(count):
            name, virtual, raw_size, raw_at = struct.unpack_from("<8sI4xII", data, at + 24 + size + 40 * number)
            if raw_at + raw_size > len(data) or virtual > len(data) + (1 << 20):
                raise ImageError("a section reaches beyond the end")
            raw, memory = raw + raw_size, memory + virtual
            if raw > len(data) or memory > 2 * len(data) + (1 << 22):
                raise ImageError("its sections overlap")
            label = name.rstrip(b"\x00").decode("latin-1")
            found.setdefault(label, data[raw_at : raw_at + min(raw_size, virtual)].ljust(virtual, b"\x00"))
    except struct.error:
        raise ImageError("its headers break off") from None
    return found


def is_uki(parts: Mapping[str, bytes]) -> bool:
    """Whether a PE file with these sections is one."""
    return ".linux" in parts and ".osrel" in parts


def pcr11(parts: Mapping[str, bytes], phase: str = "") -> bytes:
    """What PCR 11 of the SHA-256 bank comes to, on a machine that measures nothing else into it."""
    value = bytes(32)
    for name in measured_by(parts.get(".sdmagic", b"")):
        if name in parts:
            value = _extended(_extended(value, name.encode() + b"\x00"), parts[name])
    for word in phase.split(":") if phase else ():
        value = _extended(value, word.encode())
    return value


def measured_by(magic: bytes) -> tuple[str, ...]:
    """The names of the sections that this stub measures. `magic`: its .sdmagic, which names stub and version."""
    stub = _STUB.search(magic[:_MOST_MAGIC])
    return _MEASURED_ONCE if stub and int(stub[1]) < _FIRST_WITH_ALL else MEASURED


def _extended(value: bytes, data: bytes) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(data).digest()).digest()


def policy_of(value: bytes) -> bytes:
    """The digest of a policy that demands this value of PCR 11 (TPM2_PolicyPCR)."""
    selection = struct.pack(">IHB3s", 1, _SHA256, 3, (1 << PCR).to_bytes(3, "little"))
    return hashlib.sha256(
        bytes(32) + struct.pack(">I", _POLICY_PCR) + selection + hashlib.sha256(value).digest()
    ).digest()


@dataclass(frozen=True)
class Signed:
    """An entry of .pcrsig: its PCRs, the digest of its policy, and the signature of that."""

    pcrs: tuple[int, ...]
    policy: bytes
    signature: bytes = field(repr=False)


def signed_policies(raw: bytes) -> tuple[Signed, ...]:
    """What .pcrsig says of the SHA-256 bank.

    :raise ImageError: it cannot be read.
    """
    if len(raw) > _MOST_JSON:
        raise ImageError(f"a .pcrsig of {len(raw)} bytes")
    try:
        return tuple(_entries(json.loads(raw.rstrip(b"\x00 \r\n"))))
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise ImageError(f"its .pcrsig is not what systemd-measure writes: {error}") from None


def _entries(told: object) -> Iterator[Signed]:
    if not isinstance(told, dict) or not isinstance(told.get("sha256"), list):
        raise TypeError("no list for sha256")
    if len(told["sha256"]) > _MOST_SIGNED:
        raise ValueError(f"{len(told['sha256'])} entries")
    for entry in told["sha256"]:
        pcrs = tuple(entry["pcrs"])
        if not all(isinstance(number, int) and 0 <= number < 24 for number in pcrs):
            raise ValueError("a PCR that is none")
        yield Signed(pcrs, bytes.fromhex(entry["pol"]), base64.b64decode(entry["sig"], validate=True))


def phase_of(parts: Mapping[str, bytes], signed: Signed) -> str | None:
    """The phase of the boot in which the policy is that of this very image; None: in none that is known."""
    if signed.pcrs != (PCR,):
        return None
    return next((phase for phase in PHASES if policy_of(pcr11(parts, phase)) == signed.policy), None)


def is_by(signed: Signed, public_key: bytes) -> bool:
    """Whether the signature is by the key of .pcrpkey (PEM)."""
    # Here, because they take long, and only unified kernel images need them.
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    try:
        key = serialization.load_pem_public_key(public_key.rstrip(b"\x00"))
        if not isinstance(key, rsa.RSAPublicKey):
            return False
        key.verify(signed.signature, signed.policy, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
