"""What a machine is made of: frozen data, without a path that only exists once it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.network.settings import Settings

if TYPE_CHECKING:
    from pytest_osgates.vm.home import Home


class Firmware(StrEnum):
    """How the machine starts. ``UEFI_SECUREBOOT``: Secure Boot on, with the firmware vendor's keys enrolled."""

    BIOS = "bios"
    UEFI = "uefi"
    UEFI_SECUREBOOT = "uefi-secureboot"


class AccelKind(StrEnum):
    """Who runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Accelerator:
    """An accelerator and the CPU model that was probed with it."""

    kind: AccelKind
    cpu: str

    @property
    def argument(self) -> str:
        """The value of ``-accel``."""
        return "tcg,thread=multi" if self.kind is AccelKind.TCG else "kvm"


@dataclass(frozen=True)
class FlashImage:
    """One firmware file and its QEMU block format (``raw`` or ``qcow2``)."""

    path: Path
    format: str


@dataclass(frozen=True)
class FirmwareFiles:
    """The pair of flash images of one UEFI build, from QEMU's firmware descriptors (docs/interop/firmware.json)."""

    code: FlashImage
    variables: FlashImage
    requires_smm: bool
    descriptor: Path


MAX_CARDS = 8


@dataclass(frozen=True)
class MachineSpec:
    """One machine.

    ``cdrom`` is attached read-only; ``cdrom_format``: ``raw``, or ``qcow2`` for an overlay of an ISO. ``variables``:
    a flash image to begin with instead of the firmware's own template; it is copied. ``disks`` are never written: the
    machine works on overlays of them. ``channel`` is the nonce of the guest channel, None for a machine without one.
    ``smbios_strings`` are SMBIOS type 11 (OEM)
    strings, by which systemd credentials enter (systemd.system-credentials(7)). ``network``: one card a sinkhole,
    each with a capture; without any, ``nic`` is a card that leads nowhere; ``option_rom``: another, with a driver for
    UEFI in its ROM. ``rtc``: where the
    machine's own clock begins (``2026-01-31T12:00:00``), which then counts virtual time, and idle time is skipped
    (vm/clock.py, under emulation only); empty: its clock is the host's. ``home``: where disk, variables and TPM are
    when it is off; they are used where they lie and keep what it writes, so ``disks`` are none.
    """

    name: str
    firmware: Firmware
    cdrom: Path | None = None
    cdrom_format: str = "raw"
    variables: Path | None = None
    disks: tuple[Path, ...] = ()
    memory_mib: int = 2048
    cpus: int = 2
    cpu_model: str | None = None
    tpm: bool = True
    nic: bool = True
    option_rom: bool = False
    channel: str | None = None
    smbios_strings: tuple[str, ...] = field(default=(), repr=False)
    network: tuple[Settings, ...] = ()
    rtc: str = ""
    home: Home | None = None

    def __post_init__(self) -> None:
        # It becomes part of a QEMU option and of a directory's name.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise UsageError(f"the name of a machine is of letters, digits, '.', '_' and '-', not {self.name!r}")
        if self.cdrom_format not in ("raw", "qcow2"):
            raise UsageError(f"machine {self.name}: a CD in the format {self.cdrom_format!r}")
        if self.home is not None and self.variables is not None:
            raise UsageError(f"machine {self.name}: its home has its variables, and it is given others")
        if self.home is not None and self.disks:
            raise UsageError(f"machine {self.name}: its home has its disk, and it is given {len(self.disks)} more")
        if self.cdrom is None and not self.disks and self.home is None:
            raise UsageError(f"machine {self.name}: neither an ISO nor a disk to boot from")
        if not 128 <= self.memory_mib <= 1 << 20:
            raise UsageError(f"machine {self.name}: {self.memory_mib} MiB of memory is not between 128 MiB and 1 TiB")
        if not 1 <= self.cpus <= 255:
            raise UsageError(f"machine {self.name}: {self.cpus} CPUs is not between 1 and 255")
        if len(self.network) > MAX_CARDS or len({settings.subnet for settings in self.network}) < len(self.network):
            raise UsageError(f"machine {self.name}: at most {MAX_CARDS} cards, each with a subnet of its own")


def card_mac(index: int) -> str:
    """The MAC address that the card number `index` has from the start, in QEMU's own range."""
    return f"52:54:00:6f:73:{index:02x}"


def port_name(nonce: str) -> str:
    """The virtio-serial port of the framed shell, under ``/dev/virtio-ports/`` in the guest."""
    return f"org.osgates.{nonce}"


def journal_port_name(nonce: str) -> str:
    """The virtio-serial port on which the guest's journal arrives, one JSON object a line."""
    return f"org.osgates.{nonce}.journal"


def log_port_name(nonce: str) -> str:
    """The virtio-serial port on which the guest's kernel log arrives."""
    return f"org.osgates.{nonce}.kmsg"
