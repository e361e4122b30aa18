"""What ``demo/disk.toml`` says: the demo's installed disk, and what is wrong with each weakened one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pytest_osgates.demo.definition import Parameter, RelativePath, Strict, load_toml
from pytest_osgates.demo.fault import Expectation
from pytest_osgates.demo.unlock import WayIn
from pytest_osgates.vm.errors import UsageError

DISK = Path(__file__).resolve().parent / "disk.toml"
Kdf = Literal["argon2id", "pbkdf2"]
Memory = Annotated[int, Field(ge=32, le=4 << 20)]
Pcr = Annotated[int, Field(ge=0, le=23)]
Time = Annotated[int, Field(ge=4, le=1000)]


class Slot(Strict):
    """One more passphrase."""

    passphrase: str = Field(max_length=512)
    kdf: Kdf = "argon2id"


class ExtraPartition(Strict):
    """One more partition, not encrypted. `type`: a GUID of the GPT."""

    type: str = Field(pattern=r"^[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}$")
    name: str = Field(pattern=r"^[a-z]{1,16}$")
    size_mib: int = Field(ge=8, le=1024)
    holds: Literal["swap", "ext4"]


class Variant(Strict):
    """One weakened disk. Without any of these keys it is the sound one.

    `passphrase_in`, `passphrase_on_esp`: the passphrase is the content of this file, in the initrd or on the EFI
    system partition. `crypttab`: of the initrd. `tpm_pcrs`: a token as systemd-cryptenroll(1) writes it, bound to
    these PCRs, with a keyslot of its own; its key is in no TPM. `enrol`: instead, the first boot enrols the TPM,
    bound to these. `way_in`: what is behind a wrong passphrase. `parameters`: of the kernel, besides the disk's.
    `grub`: commands before GRUB's menu, whose entry then needs no password to be booted as it is. Without
    `passphrase`, the recovery key alone opens it. `uki`: of the machine that starts a unified kernel image.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    title: str = Field(min_length=1)
    expects: Expectation
    kdf: Kdf = "argon2id"
    memory_kib: Memory | None = None
    luks1: bool = False
    recovery: bool = True
    slots: tuple[Slot, ...] = ()
    passphrase_in: RelativePath | None = None
    passphrase_on_esp: RelativePath | None = None
    crypttab: str = ""
    tpm_pcrs: tuple[int, ...] | None = None
    enrol: tuple[Pcr, ...] | None = None
    way_in: WayIn = ""
    grub: str = ""
    passphrase: bool = True
    uki: bool = False
    parameters: tuple[Parameter, ...] = ()
    partitions: tuple[ExtraPartition, ...] = ()


class LuksSection(Strict):
    """Key size in bits, memory in KiB."""

    uuid: str = Field(pattern=r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    cipher: str
    key_size: int
    memory_kib: Memory
    time: Time


class DiskFile(Strict):
    """``disk.toml``."""

    schema_: Literal[1] = Field(alias="schema")
    passphrase: str = Field(min_length=1)
    pin: str = Field(min_length=4)
    recovery_key: str = Field(pattern=r"^(?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8}$")
    pcrs: tuple[Pcr, ...] = Field(min_length=1)
    uki_pcrs: tuple[Pcr, ...] = Field(min_length=1)
    esp_mib: int = Field(ge=40, le=1024)
    spare_mib: int = Field(ge=1, le=1024)
    parameters: tuple[Parameter, ...] = ()
    luks: LuksSection
    variant: tuple[Variant, ...] = ()

    def named(self, name: str) -> Variant:
        """:raise UsageError: there is no such variant."""
        for variant in self.variant:
            if variant.name == name:
                return variant
        raise UsageError(
            f"there is no weakened disk {name!r}", remedy=f"one of: {', '.join(each.name for each in self.variant)}"
        )


def load_disk_file() -> DiskFile:
    """The demo's disk as it is shipped."""
    return load_toml(DISK, DiskFile)


def variant_names(gate: str = "luks", *, uki: bool = False) -> tuple[str, ...]:
    """The weakened disks that `gate` must find, in the order of the file. `uki`: of unified kernel images alone."""
    variants = load_disk_file().variant
    return tuple(variant.name for variant in variants if variant.expects.gate == gate and variant.uki is uki)
