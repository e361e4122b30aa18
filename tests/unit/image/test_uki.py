"""Unified kernel images: what is measured of them, and what their .pcrsig signs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.image import uki
from pytest_osgates.image.uki_build import with_sections
from pytest_osgates.image.uki_sign import PolicyKey
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.process import run
from tests.pe_builders import program

PARTS = {".osrel": b"ID=x\n", ".cmdline": b"quiet", ".linux": b"kernel" * 100, ".initrd": b"initrd", ".text": b"stub"}


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def other_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public(key: rsa.RSAPrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def pcrsig(key: rsa.RSAPrivateKey, *policies: bytes, **changes: Any) -> bytes:
    def entry(policy: bytes) -> dict[str, Any]:
        signature = base64.b64encode(key.sign(policy, padding.PKCS1v15(), hashes.SHA256())).decode()
        return {"pcrs": [11], "pkfp": "00", "pol": policy.hex(), "sig": signature, **changes}

    return json.dumps({"sha256": [entry(policy) for policy in policies]}).encode()


def test_sections_are_as_in_memory() -> None:
    parts = uki.sections(program(PARTS))
    assert parts == PARTS
    assert uki.is_uki(parts)
    assert not uki.is_uki({".linux": b""})
    with pytest.raises(ImageError):
        uki.sections(b"MZ")


def test_an_empty_section_is_none() -> None:
    """systemd-stub takes load options where .cmdline is of no bytes, and measures nothing of it."""
    assert ".cmdline" not in uki.sections(program({**PARTS, ".cmdline": b""}))
    assert uki.sections(program({**PARTS, ".cmdline": b"\0"}))[".cmdline"] == b"\0"


def test_sections_that_overlap_take_no_memory() -> None:
    """Of a small file, 90 of them would be as many copies of it."""
    sections = {f".s{number}": b"" for number in range(12)}
    hostile = bytearray(program({**sections, ".last": bytes(100_000)}))
    for number in range(13):
        # Size in memory, and in the file: all of what is there.
        struct.pack_into("<IIII", hostile, 64 + 24 + 240 + 40 * number + 8, 100_000, 0x1000, 100_000, 1024)
    for read in (uki.sections, lambda data: with_sections(data, {".x": b"y"})):
        with pytest.raises(ImageError, match="its sections overlap"):
            read(bytes(hostile))
    for number in range(13):
        struct.pack_into("<IIII", hostile, 64 + 24 + 240 + 40 * number + 8, 400_000, 0x1000, 8, 1024)
    with pytest.raises(ImageError, match="its sections overlap"):
        uki.sections(bytes(hostile))


def test_pcr_11_is_measured_name_by_name_in_systemds_order() -> None:
    value = bytes(32)
    for name in (".linux", ".osrel", ".cmdline", ".initrd"):
        for text in (name.encode() + b"\0", PARTS[name]):
            value = hashlib.sha256(value + hashlib.sha256(text).digest()).digest()
    assert uki.pcr11(PARTS) == value
    # Not .text, which is the stub itself, and not .pcrsig.
    assert uki.pcr11({**PARTS, ".pcrsig": b"x"}) == value
    entered = hashlib.sha256(value + hashlib.sha256(b"enter-initrd").digest()).digest()
    assert uki.pcr11(PARTS, "enter-initrd") == entered


@pytest.mark.parametrize(
    ("magic", "sees"),
    [
        (b"#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####\0", False),
        (b"#### LoaderInfo: systemd-stub 254.1 ####\0", True),
        (b"#### LoaderInfo: systemd-stub 257.9-1 ####\0", True),
        (b"#### LoaderInfo: another stub 252 ####\0", True),
        (b"", True),
    ],
)
def test_an_older_stub_measures_fewer_sections(magic: bytes, sees: bool) -> None:
    parts = {**PARTS, ".sdmagic": magic}
    for name in (".sbat", ".uname"):
        assert (uki.pcr11({**parts, name: b"x"}) != uki.pcr11(parts)) is sees
    for name in (".splash", ".dtb", ".pcrpkey", ".cmdline"):
        assert uki.pcr11({**parts, name: b"x"}) != uki.pcr11(parts)


@pytest.mark.parametrize("bank", uki.BANKS)
@pytest.mark.parametrize("phase", ["", "enter-initrd", "enter-initrd:leave-initrd"])
def test_systemds_own_program_comes_to_the_same(
    phase: str, bank: str, key: rsa.RSAPrivateKey, tmp_path: Path
) -> None:
    measure = Path("/usr/lib/systemd/systemd-measure")
    if not measure.exists():
        pytest.skip(f"{measure} is not installed")
    parts = {**PARTS, ".pcrpkey": public(key), ".sdmagic": b"systemd-stub 252"}
    options = []
    for name in (".linux", ".osrel", ".cmdline", ".initrd", ".pcrpkey"):
        (tmp_path / name).write_bytes(parts[name])
        options.append(f"--{name[1:]}={tmp_path / name}")
    said = run([str(measure), "calculate", *options, f"--bank={bank}", f"--phase={phase}", "-j"], timeout=30)
    (told,) = json.loads(said.text)[bank]
    assert (told["pcr"], told["hash"]) == (11, uki.pcr11(parts, phase, bank).hex())


@pytest.mark.parametrize("phases", [("",), ("", "enter-initrd")])
def test_what_is_signed_here_is_read_as_systemds(phases: tuple[str, ...], other_key: rsa.RSAPrivateKey) -> None:
    ours = PolicyKey.made()
    parts = {**PARTS, ".pcrpkey": ours.public_pem()}
    raw = ours.policies(parts, phases)
    signed = uki.signed_policies(raw)
    assert [uki.phase_of(uki.policies(parts), entry) for entry in signed] == list(phases)
    assert all(uki.is_by(entry, parts[".pcrpkey"]) for entry in signed)
    assert not any(uki.is_by(entry, public(other_key)) for entry in signed)
    # By which key, systemd knows by the digest of what openssl calls RSAPublicKey.
    pem = serialization.load_pem_public_key(parts[".pcrpkey"])
    der = pem.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    assert {entry["pkfp"] for entry in json.loads(raw)["sha256"]} == {hashlib.sha256(der).hexdigest()}
    assert ours.pem() not in raw


def test_the_digest_of_a_policy() -> None:
    """TPM2_PolicyPCR of PCR 11 of SHA-256, by hand."""
    value = uki.pcr11(PARTS)
    selection = bytes.fromhex("00000001 000b 03 000800")
    by_hand = hashlib.sha256(bytes(32) + bytes.fromhex("0000017f") + selection + hashlib.sha256(value).digest())
    assert uki.policy_of(value) == by_hand.digest()


@pytest.mark.parametrize("phase", uki.PHASES)
def test_a_signed_policy_is_about_this_image_or_not(
    phase: str, key: rsa.RSAPrivateKey, other_key: rsa.RSAPrivateKey
) -> None:
    parts = {**PARTS, ".pcrpkey": public(key)}
    (signed,) = uki.signed_policies(pcrsig(key, uki.policy_of(uki.pcr11(parts, phase))) + b"\x00\x00")
    assert uki.phase_of(uki.policies(parts), signed) == phase
    assert uki.is_by(signed, parts[".pcrpkey"] + b"\x00")
    assert uki.phase_of(uki.policies({**parts, ".cmdline": b"quiet init=/bin/sh"}), signed) is None
    assert not uki.is_by(signed, public(other_key))
    assert not uki.is_by(signed, b"nothing")


def test_each_bank_is_read(key: rsa.RSAPrivateKey) -> None:
    """systemd-measure signs for each bank: an entry of another image's may be in any."""
    sound = {
        bank: json.loads(pcrsig(key, uki.policy_of(uki.pcr11(PARTS, "", bank), bank)))["sha256"] for bank in uki.BANKS
    }
    other = {**PARTS, ".initrd": b"another"}
    for bank in uki.BANKS:
        foreign = json.loads(pcrsig(key, uki.policy_of(uki.pcr11(other, "", bank), bank)))["sha256"]
        for told, fits in ((sound, True), ({**sound, bank: foreign}, False)):
            signed = uki.signed_policies(json.dumps(told).encode())
            assert [entry.bank for entry in signed] == list(uki.BANKS)
            found = {entry.bank: uki.phase_of(uki.policies(PARTS, entry.bank), entry) for entry in signed}
            assert found == {**dict.fromkeys(uki.BANKS, ""), bank: "" if fits else None}
    with pytest.raises(ImageError, match="a bank 'sm3_256'"):
        uki.signed_policies(json.dumps({**sound, "sm3_256": []}).encode())


def test_other_pcrs_are_not_known(key: rsa.RSAPrivateKey) -> None:
    (signed,) = uki.signed_policies(pcrsig(key, uki.policy_of(uki.pcr11(PARTS)), pcrs=[7, 11]))
    assert uki.phase_of(uki.policies(PARTS), signed) is None


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"[]", b"{}", b'{"sha256": 1}', b'{"sha256": [{}]}', b"[" * 100_000),
        b'{"sha256": [{"pcrs": [99], "pol": "", "sig": ""}]}',
        b'{"sha256": [{"pcrs": [11], "pol": "zz", "sig": ""}]}',
        b'{"sha256": [{"pcrs": [11], "pol": "00", "sig": "?"}]}',
    ],
)
def test_a_damaged_pcrsig(raw: bytes) -> None:
    with pytest.raises(ImageError):
        uki.signed_policies(raw)


@given(st.binary(max_size=400))
def test_any_pcrsig_is_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ImageError):
        assert all(entry.pcrs is not None for entry in uki.signed_policies(raw))
