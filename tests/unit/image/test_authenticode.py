"""Signatures of EFI programs, against other tools' view of them."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.image import authenticode, siglist
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.vm.errors import ImageError
from tests.pe_builders import HEADERS, program, signed

SECTIONS = {".text": b"code" * 300, ".data": b"data", ".sbat": b"sbat,1"}


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.made("test key")


def test_a_signature_is_about_everything_but_itself(signer: Signer) -> None:
    made = signed(SECTIONS, signer)
    digest = authenticode.digest(made)
    (blob,) = authenticode.signatures(made)
    assert digest in blob
    assert signer.der in blob
    # The checksum is not hashed, and neither are the certificates.
    at = 64 + 24 + 64
    assert authenticode.digest(made[:at] + b"\x01\x02\x03\x04" + made[at + 4 :]) == digest
    other = authenticode.signed(made, Signer.made("another"))
    assert (len(other), authenticode.digest(other)) == (len(made), digest)
    assert other != made
    for place in (HEADERS, HEADERS + 1500, 300):
        assert authenticode.digest(made[:place] + bytes([made[place] ^ 1]) + made[place + 1 :]) != digest


def test_virt_firmware_and_osslsigncode_agree(signer: Signer, tmp_path: Path) -> None:
    pefile = pytest.importorskip("pefile")
    pesign = pytest.importorskip("virt.peutils.pesign")
    made = signed(SECTIONS, signer)
    path = tmp_path / "x.efi"
    path.write_bytes(made)
    parsed = pefile.PE(str(path), fast_load=True)
    assert pesign.pe_authenticode_hash(parsed) == authenticode.digest(made)
    assert [bytes(each).rstrip(b"\x00") for each in pesign.pe_type2_signatures(parsed)] == [
        blob.rstrip(b"\x00") for blob in authenticode.signatures(made)
    ]
    if shutil.which("osslsigncode") is None:
        return
    from cryptography.hazmat.primitives.serialization import Encoding

    (tmp_path / "ca.pem").write_bytes(signer.certificate.public_bytes(Encoding.PEM))
    check = ["osslsigncode", "verify", "-CAfile", str(tmp_path / "ca.pem"), str(path)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert "Signature verification: ok" in done.stdout, done.stdout + done.stderr


def test_a_signature_is_taken_away_in_its_place(signer: Signer) -> None:
    made = signed(SECTIONS, signer)
    bare = authenticode.unsigned(made)
    assert len(bare) == len(made)
    assert authenticode.signatures(bare) == ()
    assert authenticode.digest(bare) != authenticode.digest(made)
    with pytest.raises(ImageError, match="no signature"):
        authenticode.unsigned(bare)
    with pytest.raises(ImageError, match="no signature"):
        authenticode.signed(bare, signer)
    with pytest.raises(ImageError, match="have 600 bytes, and ours needs"):
        authenticode.signed(program(SECTIONS, room=600), signer)


def test_firmware_finds_the_algorithm_at_its_fixed_place(signer: Signer) -> None:
    """edk2 looks 32 bytes into the blob (DxeImageVerificationLib, HashPeImageByType)."""
    blob = signer.sign(bytes(32))
    assert blob[1] == 0x82
    assert blob[32:41] == bytes.fromhex("608648016503040201")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, b"XX", "no PE file"),
        (64, b"XX", "no PE header"),
        (88, b"\x00\x00", "not read here"),
        (88 + 60, b"\xff\xff\xff\x7f", "PE headers of"),
        (88 + 108, b"\x01\x00\x00\x00", "no place for certificates"),
        (88 + 112 + 32, b"\x00\x04\x00\x00", "not at the end"),
        (88 + 240 + 16, b"\xff\xff\xff\x7f", "beyond the end"),
    ],
)
def test_a_damaged_program(place: int, value: bytes, said: str, signer: Signer) -> None:
    made = signed(SECTIONS, signer)
    with pytest.raises(ImageError, match=said):
        authenticode.digest(made[:place] + value + made[place + len(value) :])


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(noise: bytes, place: int) -> None:
    made = program({".text": b"x"}, room=64)
    spoilt = made[:place] + noise + made[place + len(noise) :]
    for read in (authenticode.digest, authenticode.signatures, authenticode.unsigned):
        with contextlib.suppress(ImageError):
            read(spoilt)


def test_an_endless_table_of_certificates() -> None:
    made = bytearray(program({".text": b"x"}, room=64))
    struct.pack_into("<I", made, len(made) - 64, 0)
    with pytest.raises(ImageError, match="malformed"):
        authenticode.signatures(bytes(made))


def esl(kind: bytes, *entries: bytes) -> bytes:
    size = len(entries[0]) + 16 if entries else 17
    body = b"".join(bytes(16) + entry for entry in entries)
    return kind + struct.pack("<III", 28 + len(body), 0, size) + body


def test_signature_lists(signer: Signer) -> None:
    raw = esl(siglist.X509.bytes_le, signer.der) + esl(siglist.SHA256.bytes_le, b"\x01" * 32, b"\x02" * 32)
    certificate, *digests = siglist.parse(raw)
    assert siglist.subject(certificate.data) == "CN=test key"
    assert [entry.fingerprint for entry in digests] == ["01" * 32, "02" * 32]
    assert siglist.parse(b"") == ()
    for spoilt in (raw[:-1], raw[:20], raw + b"\x00", b"\x00" * 28):
        with pytest.raises(ImageError):
            siglist.parse(spoilt)
    assert siglist.subject(b"nothing") == ""


@given(st.binary(max_size=200))
def test_any_signature_list_is_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ImageError):
        assert all(entry.data for entry in siglist.parse(raw))
