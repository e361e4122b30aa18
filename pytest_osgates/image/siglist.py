"""Signature databases of a firmware: the variables PK, KEK, db, dbx and shim's MokListRT (UEFI 2.10, 32.4.1)."""

from __future__ import annotations

import hashlib
import struct
import uuid
from dataclasses import dataclass

from pytest_osgates.vm.errors import ImageError

X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
_HEADER = struct.Struct("<16sIII")
_OWNER = 16
_MOST_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class Signature:
    """One entry: what kind it is, and a DER certificate or a digest."""

    kind: uuid.UUID
    data: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate; of a digest, itself."""
        return self.data.hex() if self.kind == SHA256 else hashlib.sha256(self.data).hexdigest()


def parse(raw: bytes) -> tuple[Signature, ...]:
    """EFI_SIGNATURE_LISTs, one after another.

    :raise ImageError: they break off, or contradict themselves.
    """
    found: list[Signature] = []
    at = 0
    while at < len(raw):
        if len(raw) - at < _HEADER.size:
            raise ImageError(f"a signature list breaks off at {at}")
        kind, size, header, each = _HEADER.unpack_from(raw, at)
        first, end = at + _HEADER.size + header, at + size
        if end > len(raw) or first > end or each <= _OWNER or (end - first) % each:
            raise ImageError(f"the signature list at {at} contradicts itself")
        for place in range(first, end, each):
            if len(found) >= _MOST_ENTRIES:
                raise ImageError(f"more than {_MOST_ENTRIES} signatures")
            found.append(Signature(uuid.UUID(bytes_le=kind), raw[place + _OWNER : place + each]))
        at = end
    return tuple(found)


def subject(der: bytes) -> str:
    """Of a certificate, as RFC 4514 writes it; empty text where it cannot be read."""
    # Here, because it takes long, and only certificates need it.
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(der).subject.rfc4514_string()
    except ValueError:
        return ""
