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
# TPM_ALG_ID, of each bank that systemd-measure(1) knows.
BANKS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}


def sections(data: bytes) -> dict[str, bytes]:
    """Each section as it is in memory: of its virtual size. Of a name that is there twice, the first; none of those
    that are empty, which a stub takes for none (systemd src/boot/uki.c, src/boot/pe.c).

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
            if not virtual:
                continue
            label = name.rstrip(b"\x00").decode("latin-1")
            found.setdefault(label, data[raw_at : raw_at + min(raw_size, virtual)].ljust(virtual, b"\x00"))
    except struct.error:
        raise ImageError("its headers break off") from None
    return found


def is_uki(parts: Mapping[str, bytes]) -> bool:
    """Whether a PE file with these sections is one."""
    return ".linux" in parts and ".osrel" in parts


def pcr11(parts: Mapping[str, bytes], phase: str = "", bank: str = "sha256") -> bytes:
    """What PCR 11 of this bank comes to, on a machine that measures nothing else into it."""
    value = bytes(hashlib.new(bank).digest_size)
    for name in measured_by(parts.get(".sdmagic", b"")):
        if name in parts:
            value = _extended(_extended(value, name.encode() + b"\x00", bank), parts[name], bank)
    for word in phase.split(":") if phase else ():
        value = _extended(value, word.encode(), bank)
    return value


def measured_by(magic: bytes) -> tuple[str, ...]:
    """The names of the sections that this stub measures. `magic`: its .sdmagic, which names stub and version."""
    stub = _STUB.search(magic[:_MOST_MAGIC])
    return _MEASURED_ONCE if stub and int(stub[1]) < _FIRST_WITH_ALL else MEASURED


def _extended(value: bytes, data: bytes, bank: str) -> bytes:
    return hashlib.new(bank, value + hashlib.new(bank, data).digest()).digest()


def policy_of(value: bytes, bank: str = "sha256") -> bytes:
    """The digest of a policy that demands this value of PCR 11 of this bank (TPM2_PolicyPCR). The policy itself is of
    SHA-256, as systemd's are."""
    selection = struct.pack(">IHB3s", 1, BANKS[bank], 3, (1 << PCR).to_bytes(3, "little"))
    return hashlib.sha256(
        bytes(32) + struct.pack(">I", _POLICY_PCR) + selection + hashlib.sha256(value).digest()
    ).digest()


@dataclass(frozen=True)
class Signed:
    """An entry of .pcrsig: its PCRs, the digest of its policy, the signature of that, and the bank of the PCRs."""

    pcrs: tuple[int, ...]
    policy: bytes
    signature: bytes = field(repr=False)
    bank: str = "sha256"


def signed_policies(raw: bytes) -> tuple[Signed, ...]:
    """What .pcrsig says, of each bank.

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
    if unknown := set(told) - set(BANKS):
        raise ValueError(f"a bank {str(min(unknown))[:40]!r}")
    entries = [(bank, entry) for bank, listed in told.items() for entry in listed]
    if len(entries) > _MOST_SIGNED:
        raise ValueError(f"{len(entries)} entries")
    for bank, entry in entries:
        pcrs = tuple(entry["pcrs"])
        if not all(isinstance(number, int) and 0 <= number < 24 for number in pcrs):
            raise ValueError("a PCR that is none")
        yield Signed(pcrs, bytes.fromhex(entry["pol"]), base64.b64decode(entry["sig"], validate=True), bank)


def policies(parts: Mapping[str, bytes], bank: str = "sha256") -> dict[bytes, str]:
    """The policies of this very image, and the phase of the boot of each. The image is measured once."""
    begun = pcr11(parts, "", bank)
    found = {}
    for phase in PHASES:
        value = begun
        for word in phase.split(":") if phase else ():
            value = _extended(value, word.encode(), bank)
        found[policy_of(value, bank)] = phase
    return found


def phase_of(known: Mapping[bytes, str], signed: Signed) -> str | None:
    """The phase of the boot in which the policy is one that is `known`; None: in none."""
    return known.get(signed.policy) if signed.pcrs == (PCR,) else None


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
