"""The medium: boot loaders for BIOS and UEFI, an El Torito catalogue, and a USB stick's partition tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pytest_osgates.debian import DebStore, LockedPackage
from pytest_osgates.demo.definition import Definition
from pytest_osgates.demo.tools import environment
from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.process import run

EFI_IMAGE = "boot/grub/efi.img"
_EFI_KIB = 8192
_FAT_SERIAL = "05c0de01"


def unpack_media(
    definition: Definition, packages: Mapping[str, LockedPackage], store: DebStore, scratch: Path
) -> dict[str, Path]:
    """Unpack the locked packages of which only single files are used: where, by package.

    :raise HostError: a package does not have a file that the definition names.
    """
    where = {}
    for entry in definition.media:
        unpacked = where[entry.package] = scratch / f"media-{entry.package}"
        unpacked.mkdir()
        deb = store.path(packages[entry.package])
        run(["dpkg-deb", "--extract", str(deb), str(unpacked)], timeout=120, env=environment(0))
        for source in (*entry.files, *entry.root_files):
            if not (unpacked / source).is_file():
                raise HostError(f"{entry.package} {packages[entry.package].version} has no {source}")
    return where


def root_files(definition: Definition, unpacked: Mapping[str, Path]) -> dict[str, Path]:
    """Files for the root file system, by their path there."""
    return {
        destination: unpacked[entry.package] / source
        for entry in definition.media
        for source, destination in entry.root_files.items()
    }


def place_loaders(definition: Definition, unpacked: Mapping[str, Path], medium: Path) -> Path:
    """Copy boot loaders to `medium`. Returns the boot sector for hybrid images.

    :raise HostError: the definition names no boot sector.
    """
    boot_sector: Path | None = None
    for entry in definition.media:
        for source, destination in entry.files.items():
            found = unpacked[entry.package] / source
            if destination:
                target = medium / destination
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, target)
            elif found.name.startswith("isohdp"):
                boot_sector = found
    if boot_sector is None:
        raise HostError("the definition has no boot sector for hybrid images")
    return boot_sector


def place_configs(definition: Definition, medium: Path) -> None:
    """The boot loaders' configurations, and the file by which Debian's signed GRUB finds its medium."""
    info = medium / ".disk/info"
    info.parent.mkdir(parents=True, exist_ok=True)
    info.write_text(f"{definition.title}\n", encoding="utf-8")
    for path, text in definition.boot_configs().items():
        (medium / path).parent.mkdir(parents=True, exist_ok=True)
        (medium / path).write_text(text, encoding="utf-8")


def make_efi_image(medium: Path, epoch: int) -> None:
    """A FAT file system with EFI/BOOT, as UEFI firmware wants it (UEFI 2.10, 13.3.2.1)."""
    image = medium / EFI_IMAGE
    image.parent.mkdir(parents=True, exist_ok=True)
    env = environment(epoch)
    run(
        [
            *("mkfs.fat", "--invariant", "-F", "16", "-s", "1", "-i", _FAT_SERIAL, "-n", "ESP", "-C"),
            *(str(image), str(_EFI_KIB)),
        ],
        timeout=60,
        env=env,
    )
    for directory in ("::/EFI", "::/EFI/BOOT"):
        run(["mmd", "-i", str(image), directory], timeout=60, env=env)
    for loader in sorted((medium / "EFI/BOOT").iterdir()):
        run(["mcopy", "-i", str(image), str(loader), f"::/EFI/BOOT/{loader.name}"], timeout=60, env=env)


def volume_date(epoch: int) -> str:
    """ECMA-119 8.4.26.1 in xorriso's form: YYYYMMDDhhmmsscc, UTC."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y%m%d%H%M%S00")


def write_iso(
    definition: Definition, medium: Path, boot_sector: Path, output: Path, on_poll: Callable[[float], None]
) -> None:
    """The ISO: bootable from CD and USB, by BIOS and UEFI; all dates fixed."""
    run(
        xorriso_arguments(definition, medium, boot_sector, output),
        timeout=600,
        env=environment(definition.source_date_epoch),
        on_poll=on_poll,
    )


def xorriso_arguments(definition: Definition, medium: Path, boot_sector: Path, output: Path) -> list[str]:
    """The command line of xorrisofs(1). -r: owners and modes do not come from the scratch directory."""
    date = volume_date(definition.source_date_epoch)
    return [
        *("xorriso", "-no_rc", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-r"),
        *("-V", definition.label, "-A", definition.title.upper(), "-publisher", "", "-p", ""),
        f"--modification-date={date}",
        *("--set_all_file_dates", date),
        *("-isohybrid-mbr", str(boot_sector), "-partition_offset", "16"),
        *("-c", "isolinux/boot.cat", "-b", "isolinux/isolinux.bin", "-no-emul-boot"),
        *("-boot-load-size", "4", "-boot-info-table"),
        *("-eltorito-alt-boot", "-e", EFI_IMAGE, "-no-emul-boot", "-isohybrid-gpt-basdat"),
        *("-o", str(output), str(medium)),
    ]
