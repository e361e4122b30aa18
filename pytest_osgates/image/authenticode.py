"""Signatures of EFI programs: read, taken away, and made anew with another key. All but `newly_signed` keep the
file's size.

Microsoft, "Windows Authenticode Portable Executable Signature Format"; its PE format, revision 11, "Attribute
Certificate Table"; PKCS #7 (RFC 2315). Nothing is verified here: that is the firmware's part.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from pytest_osgates.vm.errors import ImageError

_MAX_SECTIONS = 96
_MOST_CERTIFICATES = 32
_PKCS7 = 2
_REVISION = 0x0200
_BEGUN = datetime(2026, 1, 1)
_VALID = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Places in a PE file; `table` (offset, bytes) are the certificates, (0, 0) without any."""

    checksum_at: int
    security_at: int
    headers: int
    sections: tuple[tuple[int, int], ...]
    table: tuple[int, int]


def _layout(data: bytes) -> _Layout:
    """:raise ImageError: it is no PE file that UEFI would start, or malformed."""
    try:
        if data[:2] != b"MZ":
            raise ImageError("no PE file")
        (at,) = struct.unpack_from("<I", data, 0x3C)
        if data[at : at + 4] != b"PE\x00\x00":
            raise ImageError("no PE header")
        count, size = struct.unpack_from("<2xH12xH", data, at + 4)
        optional = at + 24
        (magic,) = struct.unpack_from("<H", data, optional)
        if magic not in (0x10B, 0x20B) or count > _MAX_SECTIONS:
            raise ImageError("a PE header that is not read here")
        wide = 16 if magic == 0x20B else 0
        (headers,) = struct.unpack_from("<I", data, optional + 60)
        (directories,) = struct.unpack_from("<I", data, optional + 92 + wide)
        if directories < 5:
            raise ImageError("no place for certificates in the PE header")
        security = optional + 96 + wide + 4 * 8
        start, length = struct.unpack_from("<II", data, security)
        places = [struct.unpack_from("<II", data, optional + size + 40 * number + 16) for number in range(count)]
    except struct.error:
        raise ImageError("its PE headers break off") from None
    if not security + 8 <= headers <= len(data):
        raise ImageError(f"PE headers of {headers} bytes")
    # Firmware hashes sections in the order of their places (edk2, DxeImageVerificationLib).
    sections = tuple(sorted((raw_at, raw_size) for raw_size, raw_at in places if raw_size))
    if any(raw_at + raw_size > len(data) for raw_at, raw_size in sections):
        raise ImageError("a section reaches beyond the end")
    if not length:
        start = 0
    elif start < headers or start + length != len(data):
        raise ImageError("its certificates are not at the end of the file")
    return _Layout(optional + 64, security, headers, sections, (start, length))


def digest(data: bytes) -> bytes:
    """The SHA-256 that a signature is about, and that db and dbx hold: without checksum and certificates.

    :raise ImageError: no PE file, or malformed.
    """
    layout = _layout(data)
    found = hashlib.sha256()
    found.update(data[: layout.checksum_at])
    found.update(data[layout.checksum_at + 4 : layout.security_at])
    found.update(data[layout.security_at + 8 : layout.headers])
    summed = layout.headers
    for start, size in layout.sections:
        found.update(data[start : start + size])
        summed += size
    end = layout.table[0] or len(data)
    if summed > end:
        raise ImageError("its sections overlap")
    found.update(data[summed:end])
    return found.digest()


def signatures(data: bytes) -> tuple[bytes, ...]:
    """The PKCS #7 blobs in the certificate table.

    :raise ImageError: no PE file, or the table is malformed.
    """
    start, length = _layout(data).table
    found: list[bytes] = []
    at, end = start, start + length
    while at + 8 < end:
        size, _, kind = struct.unpack_from("<IHH", data, at)
        if size <= 8 or at + size > end or len(found) >= _MOST_CERTIFICATES:
            raise ImageError("its certificate table is malformed")
        if kind == _PKCS7:
            found.append(data[at + 8 : at + size])
        at += -(-size // 8) * 8
    return tuple(found)


def unsigned(data: bytes) -> bytes:
    """Without its signatures; zeros are where they were.

    :raise ImageError: it has none, or is malformed.
    """
    layout = _layout(data)
    start, length = layout.table
    if not length:
        raise ImageError("it has no signature")
    made = bytearray(data)
    made[layout.security_at : layout.security_at + 8] = bytes(8)
    made[start : start + length] = bytes(length)
    return bytes(made)


def signed(data: bytes, signer: Signer) -> bytes:
    """With one signature, by `signer`, in the place of all that it has.

    :raise ImageError: it has none, or less room than this one needs.
    """
    start, length = _layout(data).table
    if not length:
        raise ImageError("it has no signature")
    blob = signer.sign(digest(data))
    if len(blob) + 8 > length:
        raise ImageError(f"its signatures have {length} bytes, and ours needs {len(blob) + 8}")
    # The zeros belong to the entry: firmware looks for the next one behind it, and one of no size would have no end.
    entry = struct.pack("<IHH", length, _REVISION, _PKCS7) + blob
    return data[:start] + entry.ljust(length, b"\x00")


def newly_signed(data: bytes, signer: Signer) -> bytes:
    """With one signature, by `signer`, however many it has: the file's size becomes another one.

    :raise ImageError: no PE file, or malformed.
    """
    layout = _layout(data)
    made = bytearray(data[: layout.table[0] or len(data)])
    made[layout.security_at : layout.security_at + 8] = bytes(8)
    # Certificates begin at a multiple of eight; what is before them is below the signature.
    made += bytes(-len(made) % 8)
    blob = signer.sign(digest(bytes(made)))
    entry = struct.pack("<IHH", len(blob) + 8, _REVISION, _PKCS7) + blob
    entry += bytes(-len(entry) % 8)
    struct.pack_into("<II", made, layout.security_at, len(made), len(entry))
    return bytes(made) + entry


# -- PKCS #7 ------------------------------------------------------------------------------------------------------


def _der(tag: int, *parts: bytes) -> bytes:
    """One element (X.690, definite lengths)."""
    body = b"".join(parts)
    size = len(body)
    if size < 0x80:
        return bytes([tag, size]) + body
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + body


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    body = bytearray([first * 40 + second])
    for number in rest:
        septets = [number & 0x7F]
        while number := number >> 7:
            septets.append(number & 0x7F | 0x80)
        body += bytes(reversed(septets))
    return _der(0x06, bytes(body))


_SEQUENCE, _SET, _OCTETS, _INTEGER = 0x30, 0x31, 0x04, 0x02
_NULL = b"\x05\x00"
_SHA256 = _der(_SEQUENCE, _oid("2.16.840.1.101.3.4.2.1"), _NULL)
_RSA = _der(_SEQUENCE, _oid("1.2.840.113549.1.1.1"), _NULL)
_SIGNED_DATA = _oid("1.2.840.113549.1.7.2")
_INDIRECT = _oid("1.3.6.1.4.1.311.2.1.4")
_CONTENT_TYPE, _MESSAGE_DIGEST = _oid("1.2.840.113549.1.9.3"), _oid("1.2.840.113549.1.9.4")
# SpcPeImageData: no flags, and a file name that nobody reads.
_OBSOLETE = "<<<Obsolete>>>".encode("utf-16-be")
_PE_IMAGE = _der(
    _SEQUENCE,
    _oid("1.3.6.1.4.1.311.2.1.15"),
    _der(_SEQUENCE, b"\x03\x01\x00", _der(0xA0, _der(0xA2, _der(0x80, _OBSOLETE)))),
)


@dataclass(frozen=True)
class Signer:
    """A key and its certificate: made for one run and kept nowhere, or those of a profile."""

    key: Any
    certificate: Any

    @classmethod
    def made(cls, name: str) -> Signer:
        """A new one."""
        # Here, because they take long, and few need them.
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.x509.oid import NameOID

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGUN)
            .not_valid_after(_BEGUN + _VALID)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def read(cls, key: bytes, certificate: bytes) -> Signer:
        """Those of two PEM files, the key without a password.

        :raise ValueError: they are not, are not RSA, or do not belong together.
        """
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            private = load_pem_private_key(key, password=None)
            public = x509.load_pem_x509_certificate(certificate)
            theirs = public.public_key()
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(str(error)) from error
        ours = private.public_key() if isinstance(private, rsa.RSAPrivateKey) else None
        if ours is None or not isinstance(theirs, rsa.RSAPublicKey):
            raise ValueError("no RSA key")
        if ours.public_numbers() != theirs.public_numbers():
            raise ValueError("the certificate is of another key")
        return cls(private, public)

    def pem(self) -> tuple[bytes, bytes]:
        """Key and certificate, for `read`."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key, self.certificate.public_bytes(Encoding.PEM)

    @cached_property
    def der(self) -> bytes:
        """The certificate."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return bytes(self.certificate.public_bytes(Encoding.DER))

    def sign(self, image_digest: bytes) -> bytes:
        """SignedData about a PE file of this digest, as firmware and shim read it."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        message = _der(_SEQUENCE, _SHA256, _der(_OCTETS, image_digest))
        content = _PE_IMAGE + message
        attributes = (
            _der(_SEQUENCE, _CONTENT_TYPE, _der(_SET, _INDIRECT)),
            _der(_SEQUENCE, _MESSAGE_DIGEST, _der(_SET, _der(_OCTETS, hashlib.sha256(content).digest()))),
        )
        # DER orders a set by its elements' bytes; what is signed has the set's own tag (RFC 2315, 9.3).
        ordered = b"".join(sorted(attributes))
        signature = self.key.sign(_der(_SET, ordered), padding.PKCS1v15(), hashes.SHA256())
        serial = self.certificate.serial_number
        number = _der(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, "big"))
        who = _der(
            _SEQUENCE,
            _der(_INTEGER, b"\x01"),
            _der(_SEQUENCE, self.certificate.issuer.public_bytes(), number),
            _SHA256,
            _der(0xA0, ordered),
            _RSA,
            _der(_OCTETS, signature),
        )
        data = _der(
            _SEQUENCE,
            _der(_INTEGER, b"\x01"),
            _der(_SET, _SHA256),
            _der(_SEQUENCE, _INDIRECT, _der(0xA0, _der(_SEQUENCE, content))),
            _der(0xA0, self.der),
            _der(_SET, who),
        )
        return _der(_SEQUENCE, _SIGNED_DATA, _der(0xA0, data))
