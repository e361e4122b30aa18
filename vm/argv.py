"""MachineSpec to QEMU arguments: pure, so that golden files can hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.spec import (
    Accelerator,
    Firmware,
    FirmwareFiles,
    FlashImage,
    MachineSpec,
    card_mac,
    journal_port_name,
    log_port_name,
    port_name,
)

# The object whose timer bounds each jump of a machine that skips idle time, and its interval in microseconds: about
# as fast as real time, for a boot.
TICK = "tick0"
TICK_US = 100
# An instruction takes 2**SHIFT nanoseconds of the guest's time.
SHIFT = 3


@dataclass(frozen=True)
class Wiring:
    """What exists only once a machine is about to run: inherited descriptors and private files.

    The descriptors are ends of socket pairs, so that nothing listens anywhere, no path is too long, and there is
    no moment at which a peer could connect too early.
    """

    qmp_fd: int
    serial_fd: int
    channel_fd: int | None = None
    log_fd: int | None = None
    journal_fd: int | None = None
    variables: FlashImage | None = None
    overlays: tuple[Path, ...] = ()
    swtpm_fd: int | None = None
    nic_fd: int | None = None
    cards: tuple[tuple[int, Path], ...] = ()


def quote(path: Path) -> str:
    """A path inside a comma-separated QEMU option: commas are doubled (qemu(1), "Standard options")."""
    return str(path).replace(",", ",,")


def build(spec: MachineSpec, accelerator: Accelerator, firmware: FirmwareFiles | None, wiring: Wiring) -> list[str]:
    """The arguments after the program's name.

    :raise UsageError: the wiring lacks what the spec needs.
    """
    smm = firmware is not None and firmware.requires_smm
    args = [
        *("-name", f"osgates-{spec.name},process=osgates-{spec.name}"),
        # -S: nothing runs before the monitor is connected and every console has its reader.
        *("-nodefaults", "-no-user-config", "-S"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "q35,smm=on" if smm else "q35"),
        *_accelerator(spec, accelerator),
        *("-cpu", spec.cpu_model or accelerator.cpu),
        *("-smp", str(spec.cpus)),
        *("-m", f"{spec.memory_mib}M"),
        *("-display", "none"),
        *("-device", "VGA"),
        *("-rtc", f"base={spec.rtc},clock=vm" if spec.rtc else "base=utc,clock=host"),
        # A reboot is counted, a panic reported, and the machine goes on: its last screen is evidence.
        *("-action", "panic=none"),
        *("-device", "pvpanic-pci"),
        *("-chardev", f"socket,id=qmp,fd={wiring.qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=serial,fd={wiring.serial_fd}", "-serial", "chardev:serial"),
        *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        *("-device", "virtio-scsi-pci,id=scsi"),
    ]
    args += _firmware(spec, firmware, wiring)
    if spec.cdrom is not None:
        args += [
            "-drive",
            f"if=none,id=cd,format={spec.cdrom_format},media=cdrom,readonly=on,file={quote(spec.cdrom)}",
            *("-device", f"scsi-cd,bus=scsi.0,drive=cd,bootindex={len(wiring.overlays)}"),
        ]
    disks = len(spec.disks) if spec.home is None else 1
    if len(wiring.overlays) != disks:
        raise UsageError(f"machine {spec.name}: {disks} disks but {len(wiring.overlays)} overlays")
    for index, overlay in enumerate(wiring.overlays):
        args += [
            *("-drive", f"if=none,id=disk{index},format=qcow2,file={quote(overlay)}"),
            *("-device", f"virtio-blk-pci,drive=disk{index},bootindex={index}"),
        ]
    args += _network(spec, wiring)
    if spec.tpm:
        if wiring.swtpm_fd is None:
            raise UsageError(f"machine {spec.name}: a TPM without a swtpm")
        args += [
            *("-chardev", f"socket,id=tpm,fd={wiring.swtpm_fd}"),
            *("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"),
        ]
    args += _channel(spec, wiring)
    if spec.option_rom:
        # The last device, so that no other one has another address. iPXE's ROM, by its name: QEMU knows where it is.
        args += ["-device", "virtio-net-pci,id=rom,romfile=efi-virtio.rom"]
    return args


def _accelerator(spec: MachineSpec, accelerator: Accelerator) -> list[str]:
    if not spec.rtc:
        return ["-accel", accelerator.argument]
    # Instructions are counted, and an idle processor jumps to the next timer instead of waiting for it (QEMU's
    # docs/devel/tcg-icount.rst). The filter on a network that leads nowhere has such a timer, whose interval bounds
    # each jump: vm/clock.py sets it.
    return [
        *("-accel", "tcg", "-icount", f"shift={SHIFT},sleep=off"),
        *("-netdev", "hubport,id=tick,hubid=9"),
        *("-object", f"filter-buffer,id={TICK},netdev=tick,interval={TICK_US}"),
    ]


def _network(spec: MachineSpec, wiring: Wiring) -> list[str]:
    """Never a netdev of type user, tap, bridge or socket: nothing here can reach this host's network."""
    args: list[str] = []
    if len(wiring.cards) != len(spec.network):
        raise UsageError(f"machine {spec.name}: {len(spec.network)} cards but {len(wiring.cards)} sinkholes")
    for index, (number, capture) in enumerate(wiring.cards):
        args += [
            *("-netdev", f"stream,id=net{index},server=off,addr.type=fd,addr.str={number}"),
            *("-object", f"filter-dump,id=dump{index},netdev=net{index},file={quote(capture)}"),
            *("-device", f"virtio-net-pci,netdev=net{index},mac={card_mac(index)},romfile="),
        ]
    if spec.nic and not spec.network:
        if wiring.nic_fd is None:
            raise UsageError(f"machine {spec.name}: a network card without a peer")
        args += [
            *("-netdev", f"stream,id=net0,server=off,addr.type=fd,addr.str={wiring.nic_fd}"),
            *("-device", "virtio-net-pci,netdev=net0,romfile="),
        ]
    return args


def _firmware(spec: MachineSpec, firmware: FirmwareFiles | None, wiring: Wiring) -> list[str]:
    if spec.firmware is Firmware.BIOS:
        return []
    if firmware is None or wiring.variables is None:
        raise UsageError(f"machine {spec.name}: {spec.firmware} without firmware files")
    code, variables = firmware.code, wiring.variables
    args = [
        *("-drive", f"if=pflash,unit=0,readonly=on,format={code.format},file={quote(code.path)}"),
        *("-drive", f"if=pflash,unit=1,format={variables.format},file={quote(variables.path)}"),
    ]
    if firmware.requires_smm:
        # Only SMM may write the variables, and no resume from S3 gets around it (edk2 OvmfPkg/README).
        args += [
            *("-global", "driver=cfi.pflash01,property=secure,value=on"),
            *("-global", "ICH9-LPC.disable_s3=1"),
        ]
    return args


def _channel(spec: MachineSpec, wiring: Wiring) -> list[str]:
    args: list[str] = []
    for text in spec.smbios_strings:
        args += ["-smbios", f"type=11,value={text.replace(',', ',,')}"]
    if spec.channel is None:
        return args
    if wiring.channel_fd is None or wiring.log_fd is None or wiring.journal_fd is None:
        raise UsageError(f"machine {spec.name}: a guest channel without its sockets")
    return [
        *args,
        *("-device", "virtio-serial-pci,id=vser"),
        *("-chardev", f"socket,id=channel,fd={wiring.channel_fd}"),
        *("-device", f"virtserialport,bus=vser.0,chardev=channel,id=channel,name={port_name(spec.channel)}"),
        *("-chardev", f"socket,id=kmsg,fd={wiring.log_fd}"),
        *("-device", f"virtserialport,bus=vser.0,chardev=kmsg,id=kmsg,name={log_port_name(spec.channel)}"),
        *("-chardev", f"socket,id=journal,fd={wiring.journal_fd}"),
        *("-device", f"virtserialport,bus=vser.0,chardev=journal,id=journal,name={journal_port_name(spec.channel)}"),
    ]
