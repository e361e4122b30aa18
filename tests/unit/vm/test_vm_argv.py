"""MachineSpec to QEMU's arguments, against golden files: one argument a line.

After a wanted change, write them anew and read the diff::

    OSGATES_UPDATE_GOLDEN=1 pytest tests/unit/vm/test_vm_argv.py && git diff tests/golden/argv
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from pytest_osgates.vm import argv
from pytest_osgates.vm.argv import Wiring
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.spec import Accelerator, AccelKind, Firmware, FirmwareFiles, FlashImage, MachineSpec

GOLDEN = Path(__file__).parents[2] / "golden" / "argv"
NONCE = "0123456789abcdef"
ISO = Path("/images/distro.iso")
TCG = Accelerator(AccelKind.TCG, "qemu64")
KVM = Accelerator(AccelKind.KVM, "host")
PLAIN = FirmwareFiles(
    FlashImage(Path("/fw/CODE.fd"), "raw"), FlashImage(Path("/fw/VARS.fd"), "raw"), False, Path("/fw/60-ovmf.json")
)
SECURE = FirmwareFiles(
    FlashImage(Path("/fw/CODE.secboot.qcow2"), "qcow2"),
    FlashImage(Path("/fw/VARS.ms.qcow2"), "qcow2"),
    True,
    Path("/fw/40-secboot.json"),
)
# What is truly injected is tested by test_vm_injection.py: in a golden file nobody could read it.
CHANNEL = ("io.systemd.credential.binary:one=Zmlyc3Q=", "io.systemd.credential.binary:two=c2Vjb25k")

CASES: dict[str, tuple[MachineSpec, Accelerator, FirmwareFiles | None, Wiring]] = {
    "bios-live-channel": (
        MachineSpec("live", Firmware.BIOS, ISO, channel=NONCE, smbios_strings=CHANNEL, tpm=False),
        TCG,
        None,
        Wiring(qmp_fd=10, serial_fd=11, channel_fd=12, log_fd=13, journal_fd=14, nic_fd=15),
    ),
    "uefi-bare": (
        MachineSpec("bare", Firmware.UEFI, ISO, tpm=False, nic=False),
        KVM,
        PLAIN,
        Wiring(qmp_fd=3, serial_fd=4, variables=FlashImage(Path("/private/variables.fd"), "raw")),
    ),
    "uefi-secureboot-tpm": (
        MachineSpec("secure", Firmware.UEFI_SECUREBOOT, ISO, memory_mib=4096, cpus=4, cpu_model="Skylake-Client"),
        TCG,
        SECURE,
        Wiring(
            qmp_fd=10,
            serial_fd=11,
            variables=FlashImage(Path("/private/variables.fd"), "qcow2"),
            swtpm_fd=12,
            nic_fd=13,
        ),
    ),
    "installed-two-disks": (
        MachineSpec("installed", Firmware.BIOS, disks=(Path("/d/a.raw"), Path("/d/b.qcow2")), tpm=False),
        TCG,
        None,
        Wiring(
            qmp_fd=10, serial_fd=11, overlays=(Path("/private/disk0.qcow2"), Path("/private/disk1.qcow2")), nic_fd=12
        ),
    ),
    "at-home": (
        MachineSpec("tampered", Firmware.UEFI_SECUREBOOT, home=Home.at(Path("/copies/machine")), nic=False),
        TCG,
        SECURE,
        Wiring(
            qmp_fd=10,
            serial_fd=11,
            variables=FlashImage(Path("/copies/machine/variables.fd"), "raw"),
            overlays=(Path("/copies/machine/disk.qcow2"),),
            swtpm_fd=12,
        ),
    ),
    "iso-beside-a-disk": (
        MachineSpec("install", Firmware.BIOS, ISO, disks=(Path("/d/empty.raw"),), tpm=False, nic=False),
        TCG,
        None,
        Wiring(qmp_fd=10, serial_fd=11, overlays=(Path("/private/disk0.qcow2"),)),
    ),
    "two-sinkholes": (
        MachineSpec(
            "watched",
            Firmware.BIOS,
            ISO,
            channel=NONCE,
            smbios_strings=CHANNEL,
            tpm=False,
            network=(Settings(), Settings(subnet=3)),
        ),
        TCG,
        None,
        Wiring(
            *(10, 11, 12, 13, 14),
            cards=((15, Path("/records/net0.pcap")), (16, Path("/records,2/net1.pcap"))),
        ),
    ),
    "skipping": (
        MachineSpec(
            *("skipping", Firmware.BIOS, ISO),
            tpm=False,
            network=(Settings(),),
            rtc="2026-01-31T12:00:00",
        ),
        TCG,
        None,
        Wiring(qmp_fd=10, serial_fd=11, cards=((15, Path("/records/net0.pcap")),)),
    ),
    "commas-doubled": (
        MachineSpec(
            "commas",
            Firmware.UEFI,
            Path("/my images/a,b,,c.iso"),
            disks=(Path("/d/x,y.raw"),),
            smbios_strings=("a=1,b=2",),
            tpm=False,
            nic=False,
        ),
        TCG,
        dataclasses.replace(PLAIN, code=FlashImage(Path("/fw,1/CODE.fd"), "raw")),
        Wiring(
            qmp_fd=10,
            serial_fd=11,
            variables=FlashImage(Path("/work,2/variables.fd"), "raw"),
            overlays=(Path("/work,2/disk0.qcow2"),),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    built = argv.build(*CASES[name])
    assert not any("\n" in argument for argument in built)
    if os.environ.get("OSGATES_UPDATE_GOLDEN") == "1":
        path.write_text("".join(f"{argument}\n" for argument in built))
    assert built == path.read_text().splitlines(), "OSGATES_UPDATE_GOLDEN=1 writes the file anew"


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def test_the_image_is_never_writable() -> None:
    for spec, *rest in CASES.values():
        built = argv.build(spec, *rest)
        images = [argument for argument in built if spec.cdrom is not None and argv.quote(spec.cdrom) in argument]
        assert all("readonly=on" in argument for argument in images)
        assert len(images) == (spec.cdrom is not None)
        assert not any(str(disk) in argument for disk in spec.disks for argument in built)


def test_nothing_leads_to_the_hosts_network() -> None:
    """Every network back-end is one end of a socket pair, or a hub without a second port."""
    for case in CASES.values():
        built = argv.build(*case)
        backends = [built[at + 1] for at, word in enumerate(built) if word == "-netdev"]
        assert all(
            backend.startswith("stream,") and "server=off,addr.type=fd," in backend
            for backend in backends
            if backend != "hubport,id=tick,hubid=9"
        )
        assert not {"-net", "-nic"} & set(built)
        assert not any(word.startswith(("user,", "tap,", "bridge,", "passt,", "vhost")) for word in built)


def test_each_card_needs_its_sinkhole() -> None:
    spec, accelerator, firmware, wiring = CASES["two-sinkholes"]
    with pytest.raises(UsageError, match="2 cards but 1 sinkholes"):
        argv.build(spec, accelerator, firmware, dataclasses.replace(wiring, cards=wiring.cards[:1]))


def test_a_disk_is_booted_before_the_iso() -> None:
    built = argv.build(*CASES["iso-beside-a-disk"])
    order = {word: argument[-1] for argument in built for word in ("scsi-cd", "virtio-blk-pci") if word in argument}
    assert order == {"virtio-blk-pci": "0", "scsi-cd": "1"}


def test_secure_boot_variables_can_only_be_written_by_smm() -> None:
    built = argv.build(*CASES["uefi-secureboot-tpm"])
    assert "q35,smm=on" in built
    assert "driver=cfi.pflash01,property=secure,value=on" in built
    assert "ICH9-LPC.disable_s3=1" in built


@pytest.mark.parametrize("missing", ["channel_fd", "log_fd", "journal_fd", "nic_fd"])
def test_missing_descriptors_of_a_live_machine(missing: str) -> None:
    spec, accelerator, firmware, wiring = CASES["bios-live-channel"]
    with pytest.raises(UsageError, match=r"^machine live: .* without"):
        argv.build(spec, accelerator, firmware, dataclasses.replace(wiring, **{missing: None}))


def test_missing_swtpm_and_firmware() -> None:
    spec, accelerator, firmware, wiring = CASES["uefi-secureboot-tpm"]
    with pytest.raises(UsageError, match="a TPM without a swtpm"):
        argv.build(spec, accelerator, firmware, dataclasses.replace(wiring, swtpm_fd=None))
    with pytest.raises(UsageError, match="uefi-secureboot without firmware files"):
        argv.build(spec, accelerator, firmware, dataclasses.replace(wiring, variables=None))
    with pytest.raises(UsageError, match="uefi-secureboot without firmware files"):
        argv.build(spec, accelerator, None, wiring)


@pytest.mark.parametrize("overlays", [(), (Path("/private/disk0.qcow2"),), (Path("/a"), Path("/b"), Path("/c"))])
def test_as_many_overlays_as_disks(overlays: tuple[Path, ...]) -> None:
    spec, accelerator, firmware, wiring = CASES["installed-two-disks"]
    with pytest.raises(UsageError, match=f"2 disks but {len(overlays)} overlays"):
        argv.build(spec, accelerator, firmware, dataclasses.replace(wiring, overlays=overlays))


def test_an_overlay_of_an_iso_is_a_cd_like_any_other() -> None:
    spec, *rest = CASES["bios-live-channel"]
    built = argv.build(dataclasses.replace(spec, cdrom_format="qcow2"), *rest)
    (drive,) = (word for word in built if word.startswith("if=none,id=cd,"))
    assert ",format=qcow2,media=cdrom,readonly=on," in drive
    with pytest.raises(UsageError, match="in the format 'vdi'"):
        dataclasses.replace(spec, cdrom_format="vdi")


def test_an_option_rom_takes_no_other_devices_place() -> None:
    spec, *rest = CASES["uefi-secureboot-tpm"]
    assert argv.build(dataclasses.replace(spec, option_rom=True), *rest) == [
        *argv.build(spec, *rest),
        *("-device", "virtio-net-pci,id=rom,romfile=efi-virtio.rom"),
    ]
