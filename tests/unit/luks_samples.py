"""A clean installed disk, to be spoiled by tests one thing at a time."""

from __future__ import annotations

from typing import Any

from pytest_osgates.checks.luks_model import (
    TYPES,
    BootFilesSeen,
    DiskSeen,
    FileSeen,
    GapSeen,
    Guess,
    KdfSeen,
    KeyslotSeen,
    LuksObservation,
    LuksPolicy,
    PartitionSeen,
    PlainPartition,
    SegmentSeen,
    TokenSeen,
    VolumeSeen,
)

MIB = 1 << 20
ESP = PlainPartition(type="esp", holds="vfat", reason="UEFI reads it")
LUKS_POLICY = LuksPolicy(memory_kib=65536, accept_plaintext=(ESP,))


def kdf(**changes: Any) -> KdfSeen:
    return KdfSeen(**{"type": "argon2id", "time": 4, "memory": 65536, "cpus": 4, **changes})


def keyslot(number: int = 0, how: KdfSeen | None = None, **changes: Any) -> KeyslotSeen:
    fields: dict[str, Any] = {
        "number": number,
        "type": "luks2",
        "key_size": 512,
        "cipher": "aes-xts-plain64",
        "cipher_bits": 512,
        "kdf": how or kdf(),
        "volume": True,
    }
    return KeyslotSeen(**{**fields, **changes})


MINIMAL = KdfSeen(type="pbkdf2", iterations=1000, hash="sha512")


def volume(**changes: Any) -> VolumeSeen:
    """A passphrase and a recovery key; unless `changes` say otherwise, an empty passphrase opens no slot of it."""
    fields: dict[str, Any] = {
        "version": 2,
        "uuid": "05c0de01-0000-4000-8000-000000000002",
        "sequence": 5,
        "cipher": "aes-xts-plain64",
        "key_size": 512,
        "keyslots": (keyslot(), keyslot(1, MINIMAL)),
        "tokens": (TokenSeen(number=0, type="systemd-recovery", keyslots=(1,)),),
        "segments": (segment(),),
        **changes,
    }
    guesses = tuple(Guess(keyslot=slot.number, passphrase="", opened=False) for slot in fields["keyslots"])
    return VolumeSeen(**{"guesses": guesses, **fields})


def segment(**changes: Any) -> SegmentSeen:
    fields: dict[str, Any] = {
        "name": "0",
        "type": "crypt",
        "start": 16 * MIB,
        "size": 100 * MIB,
        "cipher": "aes-xts-plain64",
        "blocks": 256,
        "entropy": 7.97,
    }
    return SegmentSeen(**{**fields, **changes})


def boot_files(**changes: Any) -> BootFilesSeen:
    fields: dict[str, Any] = {
        "files": (
            FileSeen(container="", path="/live/initrd.img", size=9 * MIB, random=False),
            FileSeen(container="/live/initrd.img", path="/init", size=900, random=False),
        ),
        "initrds": ("/live/initrd.img",),
    }
    return BootFilesSeen(**{**fields, **changes})


def esp(**changes: Any) -> PartitionSeen:
    fields: dict[str, Any] = {
        "number": 1,
        "type": TYPES["esp"],
        "name": "esp",
        "start": MIB,
        "size": 64 * MIB,
        "holds": "vfat",
        "boot": boot_files(),
    }
    return PartitionSeen(**{**fields, **changes})


def encrypted(made: VolumeSeen | None = None, **changes: Any) -> PartitionSeen:
    fields: dict[str, Any] = {
        "number": 2,
        "type": TYPES["luks"],
        "name": "root",
        "start": 65 * MIB,
        "size": 116 * MIB,
        "holds": "crypto_LUKS",
        "volume": made or volume(),
    }
    return PartitionSeen(**{**fields, **changes})


def plain(holds: str, kind: str = "linux", **changes: Any) -> PartitionSeen:
    fields: dict[str, Any] = {
        "number": 3,
        "type": TYPES.get(kind, kind),
        "name": "data",
        "start": 181 * MIB,
        "size": 10 * MIB,
        "holds": holds,
    }
    return PartitionSeen(**{**fields, **changes})


def installed(*more: PartitionSeen, **changes: Any) -> LuksObservation:
    """An ESP and an encrypted root, and what else there is."""
    fields: dict[str, Any] = {
        "disk": DiskSeen(path="/d.qcow2", format="qcow2", size=99 * MIB, sha256="d" * 64, capacity=200 * MIB),
        "table": "gpt",
        "partitions": (esp(), encrypted(), *more),
        "gaps": (GapSeen(start=17408, size=MIB - 17408, first=None),),
        "tool": "cryptsetup 2.6.1",
    }
    return LuksObservation(**{**fields, **changes})


def with_volume(**changes: Any) -> LuksObservation:
    return installed(partitions=(esp(), encrypted(volume(**changes))))


def with_boot(**changes: Any) -> LuksObservation:
    return installed(partitions=(esp(boot=boot_files(**changes)), encrypted()))


def policy(**changes: Any) -> LuksPolicy:
    """The samples' policy, changed; validated."""
    return LuksPolicy(**{**LUKS_POLICY.model_dump(), **changes})


def file(path: str, container: str = "", *, size: int = 64, random: bool = False) -> FileSeen:
    return FileSeen(container=container, path=path, size=size, random=random)


def files(*more: FileSeen) -> dict[str, Any]:
    return {"files": (*boot_files().files, *more)}
