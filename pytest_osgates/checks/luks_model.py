"""What is seen of an installed disk, and what a profile may demand of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pytest_osgates.model import Acceptance, Model, Observation, Policy, State

# GPT types by the names that profiles use: UEFI 2.10, table 5.7; the Discoverable Partitions Specification (UAPI.2).
TYPES = {
    "esp": "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
    "xbootldr": "bc13c2ff-59e6-4262-a352-b275fd6f7172",
    "bios-boot": "21686148-6449-6e6f-744e-656564454649",
    "swap": "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f",
    "linux": "0fc63daf-8483-4772-8e79-3d69d8477de4",
    "luks": "ca7d7ccb-63ed-4c53-861c-1742536059cc",
    "lvm": "e6d6d379-f507-44c2-a23c-238f2a3df928",
    "root-x86-64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "root-x86-64-verity": "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
    "usr-x86-64": "8484680c-9521-48c6-9c11-b0720656f69e",
    "usr-x86-64-verity": "77ff5f63-e7b6-4633-acf4-1565b864c0e6",
}
NAMES = {guid: name for name, guid in TYPES.items()}
_TYPE = re.compile(r"^(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]{2}|)$")


class KdfSeen(Model):
    """`memory` in KiB and `cpus` of Argon2; `iterations` and `hash` of PBKDF2."""

    type: str
    time: int = 0
    memory: int = 0
    cpus: int = 0
    iterations: int = 0
    hash: str = ""


class KeyslotSeen(Model):
    """A way to the volume key. Sizes in bits; `cipher` is of the slot's own area; `volume`: it opens the data.
    `tried`: also when nobody names its number, as at boot; `wiped`: there are only zeros in its area."""

    number: int
    type: str
    key_size: int
    cipher: str
    cipher_bits: int
    kdf: KdfSeen | None
    volume: bool
    tried: bool = True
    wiped: bool = False

    @property
    def helps(self) -> bool:
        """Whether who knows its passphrase gets in with it."""
        return self.volume and self.type == "luks2" and self.tried and not self.wiped


class TokenSeen(Model):
    """What unlocks keyslots without a passphrase; of a TPM, what that is bound to."""

    number: int
    type: str
    keyslots: tuple[int, ...]
    pcrs: tuple[int, ...] = ()
    signed_pcrs: tuple[int, ...] = ()
    bank: str = ""
    pin: bool = False
    pcrlock: bool = False


class SegmentSeen(Model):
    """A part of the volume, place and size in bytes within the partition.

    `holds`: signatures of file systems in its stored bytes. `blocks`: how many of these were sampled; `entropy`: the
    least of a block, in bits a byte.
    """

    name: str
    type: str
    start: int
    size: int
    cipher: str = ""
    integrity: str = ""
    flags: tuple[str, ...] = ()
    in_use: bool = True
    holds: tuple[str, ...] = ()
    blocks: int = 0
    entropy: float = 0.0


class Guess(Model):
    """A passphrase that was tried on a keyslot. `opened` None: it could not be tried, `error` says why."""

    keyslot: int
    passphrase: str
    opened: bool | None
    error: str = ""


class VolumeSeen(Model):
    """A LUKS header. `cipher` and `key_size` (bits) of the data; `faults`: what is wrong with one of its two copies;
    `spare`: offsets in the partition, outside of all segments, at which there is something; where keyslots may be,
    something that is not random."""

    version: int
    uuid: str
    sequence: int = 0
    cipher: str = ""
    key_size: int = 0
    keyslots: tuple[KeyslotSeen, ...] = ()
    tokens: tuple[TokenSeen, ...] = ()
    segments: tuple[SegmentSeen, ...] = ()
    requirements: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    spare: tuple[int, ...] = ()
    guesses: tuple[Guess, ...] = ()


class FileSeen(Model):
    """A regular file that can be read before unlocking. `container`: the initrd it is in; empty: the file system.
    `named`: it could be a key by its bytes, and a text in the same initrd has its name."""

    container: str
    path: str
    size: int
    random: bool
    named: bool = False


class CrypttabSeen(Model):
    """A line of crypttab(5) in an initrd."""

    container: str
    path: str
    name: str
    device: str
    key: str
    options: str


class BootFilesSeen(Model):
    """What a partition that is not encrypted shows. `words`: (file, word) of boot configurations that name keys;
    `free`: bytes that are not zero, in space that belongs to no file."""

    files: tuple[FileSeen, ...] = ()
    crypttab: tuple[CrypttabSeen, ...] = ()
    words: tuple[tuple[str, str], ...] = ()
    initrds: tuple[str, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    free: int = 0


class PartitionSeen(Model):
    """A partition, or (number 0) a disk without any: place and size in bytes; `holds` as blkid(8) names it, ``empty``
    or ``unknown``; `also`: what it could be besides; `error`: why its header or its files could not be read;
    `system`: where files are not looked into, names of some that a system or its users have."""

    number: int
    type: str
    name: str
    start: int
    size: int
    holds: str
    also: tuple[str, ...] = ()
    entropy: float | None = None
    volume: VolumeSeen | None = None
    boot: BootFilesSeen | None = None
    system: tuple[str, ...] = ()
    error: str = ""

    @property
    def subject(self) -> str:
        return f"partition {self.number}" if self.number else "the whole disk"

    @property
    def type_name(self) -> str:
        return NAMES.get(self.type, self.type)


class GapSeen(Model):
    """Space that belongs to no partition, in bytes; `first`: where in the disk its first byte is that is not zero;
    `holds`: signatures of file systems at its start; `grub`: after an MBR, there is GRUB's core image and nothing
    else."""

    start: int
    size: int
    first: int | None
    holds: tuple[str, ...] = ()
    grub: bool = False


class DiskSeen(Model):
    """The image as a file: `format` is raw or qcow2, `size` and `sha256` are the file's, `capacity` the disk's."""

    path: str
    format: str
    size: int
    sha256: str
    capacity: int


class LuksObservation(Observation):
    """An installed disk: `table` is gpt, dos or none."""

    state: State = State.INSTALLED
    disk: DiskSeen
    table: str
    partitions: tuple[PartitionSeen, ...]
    gaps: tuple[GapSeen, ...] = ()
    tool: str = ""

    @property
    def considered(self) -> int | None:
        return len(self.partitions)


def _partition_type(text: str) -> str:
    low = text.lower()
    if low not in TYPES and not _TYPE.match(low):
        raise ValueError(f"no partition type: one of {', '.join(TYPES)}, a GUID, or 0x83 of an MBR")
    return TYPES.get(low, low)


def _specific(text: str) -> str:
    if not text.strip("*?/"):
        raise ValueError("a pattern that fits anything")
    return text


def _each_once(numbers: Sequence[int]) -> tuple[int, ...]:
    if len(set(numbers)) != len(numbers):
        raise ValueError("a number is there twice")
    return tuple(numbers)


PartitionType = Annotated[str, AfterValidator(_partition_type)]
Pattern = Annotated[str, AfterValidator(_specific)]
Slot = Annotated[int, Field(ge=0, le=31)]
Pcr = Annotated[int, Field(ge=0, le=23)]


class PlainPartition(Acceptance):
    """Partitions that may be read without a passphrase: of this type, holding this; at most so many. `boots`: kernels
    and initrds may be on it, so that it has to be looked into."""

    type: PartitionType
    holds: str
    most: int = Field(default=1, ge=1)
    boots: bool = True


class PlainKey(Acceptance):
    """A file that looks like a key and is none: `path` is a pattern for it, and for its initrd: ``*!/etc/x``."""

    path: Pattern


class LuksPolicy(Policy):
    """``[gate.luks]`` of a distro profile. Sizes in bits, memory in KiB."""

    memory_kib: int = Field(default=524288, ge=8)
    time: int = Field(default=4, ge=1)
    ciphers: tuple[str, ...] = Field(default=("aes-xts-plain64",), min_length=1)
    key_size: int = Field(default=512, ge=128)
    passphrase_slots: int = Field(default=1, ge=0, le=32)
    recovery: bool = True
    recovery_slots: Annotated[tuple[Slot, ...], AfterValidator(_each_once)] = ()
    refused: tuple[str, ...] = ("",)
    tokens: tuple[str, ...] = ("systemd-recovery", "systemd-tpm2")
    tpm: Literal["required", "allowed", "forbidden"] = "allowed"
    pcrs: Annotated[tuple[Pcr, ...], AfterValidator(_each_once)] = (7,)
    initrd: Literal["plain", "encrypted"] = "plain"
    accept_plaintext: tuple[PlainPartition, ...] = ()
    accept_keys: tuple[PlainKey, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.passphrase_slots and not self.recovery:
            raise ValueError(
                "neither a passphrase nor a recovery key: nothing would open the disk once the TPM fails"
            )
        if any("cipher_null" in cipher for cipher in self.ciphers):
            raise ValueError("cipher_null does not encrypt")
        if any("\x00" in guess or "\n" in guess or len(guess) > 512 for guess in self.refused):
            raise ValueError("refused: one line each, at most 512 characters")
        return self
