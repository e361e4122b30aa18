"""What may open a disk without a passphrase, read from its headers."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from pytest_osgates.image.uki_sign import PolicyKey
from pytest_osgates.observers.tpm_slots import slots
from tests.disk_builders import gpt, luks2, metadata, slot

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
MIB = 1 << 20
TPM2 = {
    "type": "systemd-tpm2",
    "keyslots": ["1"],
    "tpm2-blob": "AAAA",
    "tpm2-pcrs": [4, 7],
    "tpm2-pcr-bank": "sha256",
    "tpm2-policy-hash": "11" * 32,
}


def volume(**tokens: Any) -> bytes:
    made = metadata(keyslots={"0": slot(), "1": slot(1)}, tokens={str(n): t for n, t in enumerate(tokens.values())})
    made["digests"]["0"]["keyslots"] = ["0", "1"]
    return bytes(luks2(made, hashlib.shake_128(b"payload").digest(MIB)))


def disk(path: Path, *parts: bytes) -> Path:
    at, table = 2048, []
    for number, part in enumerate(parts):
        table.append((LINUX, at, -(-len(part) // 512), f"p{number}"))
        at += -(-len(part) // 512)
    made = gpt(at + 64, *table)
    for (_, start, _, _), part in zip(table, parts, strict=True):
        made[start * 512 : start * 512 + len(part)] = part
    path.write_bytes(made)
    return path


def test_systemds_slots_are_known_and_keys_that_are_no_tpms(tmp_path: Path) -> None:
    keys = [{"type": f"systemd-{kind}", "keyslots": ["0"]} for kind in ("recovery", "fido2", "pkcs11")]
    found = slots(disk(tmp_path / "d", volume(a=TPM2, b=keys[0], c=keys[1], d=keys[2])))
    assert [(each.subject, each.pcrs) for each in found.slots] == [("partition 1, token 0", (4, 7))]
    assert (found.others, found.policy_keys) == ((), ())


def test_another_token_may_open_it_as_well(tmp_path: Path) -> None:
    """Clevis writes its own, with PCRs that systemd's tools do not show."""
    found = slots(disk(tmp_path / "d", volume(a=TPM2, b={"type": "clevis", "keyslots": ["0"], "jwe": {}})))
    assert len(found.slots) == 1
    assert found.others == ("partition 1, token 1: of the type 'clevis'",)


def test_a_volume_may_lie_where_it_is_not_looked_for(tmp_path: Path) -> None:
    lvm = bytearray(MIB)
    lvm[512:520] = b"LABELONE"
    headless = bytes(6) + volume(a={**TPM2, "tpm2-pcrs": []})[6:]
    # Of a partition with hashes, which hold nothing, nobody opens a volume.
    verity = b"verity\0\0".ljust(MIB, b"\1")
    parts = (volume(a=TPM2), bytes(lvm) + volume(a=TPM2), headless, bytes(MIB), b"x" * MIB, verity)
    found = slots(disk(tmp_path / "d", *parts))
    assert [each.subject for each in found.slots] == ["partition 1, token 0"]
    assert found.others == (
        "partition 2: LVM2_member, in which a volume may lie",
        "partition 3: a LUKS2 header whose first copy is gone",
    )


def test_whose_key_signs_policies(tmp_path: Path) -> None:
    pem = PolicyKey.made().public_pem()
    signed = {**TPM2, "tpm2_pubkey_pcrs": [11], "tpm2_pubkey": base64.b64encode(pem).decode()}
    found = slots(disk(tmp_path / "d", volume(a=signed)))
    assert (found.slots[0].signed_pcrs, found.policy_keys) == ((11,), (pem,))
