"""The demo's unified kernel image, and a firmware that starts nothing but what its key signed.

The kernel, the initrd and the parameters are those of the machine with shim and GRUB, in systemd-stub of Debian's
package systemd-boot-efi. The key is made for one machine, and lies beside it: whoever tries what a signed image can
do needs it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_osgates.image import authenticode, uki
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.image.uki_build import with_sections
from pytest_osgates.vm.errors import HostError, ImageError, MissingTool
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import find_firmware
from pytest_osgates.vm.spec import Firmware
from pytest_osgates.vm.variables import Keys, enrol
from pytest_osgates.vm.workdir import temporary

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
INSTALL = "apt-get install systemd-boot-efi (Fedora: dnf install systemd-boot-unsigned)"
# Where a firmware looks by itself, without an entry of its own (UEFI 2.10, 3.5.1.1).
PATH = "EFI/BOOT/BOOTX64.EFI"
KEY, CERTIFICATE = "uki-key.pem", "uki-certificate.pem"
# Longer than that of any key that a test signs with: theirs has to fit in its place.
_NAME = "osgates demo, key of a machine with a unified kernel image"
_LINUX = ("linux", "linux16", "linuxefi")


def new_signer() -> Signer:
    """A key for one machine."""
    return Signer.made(_NAME)


def stub() -> bytes:
    """:raise MissingTool: systemd-stub is not installed."""
    try:
        return STUB.read_bytes()
    except OSError as error:
        raise MissingTool(f"systemd-stub is not installed: {STUB}: {error.strerror}", remedy=INSTALL) from error


def parameters_of(menu: str) -> tuple[str, ...]:
    """The kernel's parameters in a configuration of GRUB's: of its first entry, without the name of the kernel.

    :raise ImageError: it has none.
    """
    for line in menu.splitlines():
        words = line.split()
        if words and words[0] in _LINUX:
            return tuple(words[2:])
    raise ImageError("a boot loader's configuration has no line with kernel parameters")


def assemble(
    kernel: bytes, initrd: bytes, parameters: Sequence[str], os_release: bytes, signer: Signer | None
) -> bytes:
    """A unified kernel image; without `signer`, one that is not signed.

    :raise MissingTool: there is no systemd-stub.
    :raise ImageError: the stub is none, or has no room.
    """
    # os-release(5) is text, and so is the command line: systemd-stub takes both up to their first zero.
    parts = {
        ".osrel": os_release,
        ".cmdline": " ".join(parameters).encode("ascii"),
        ".linux": kernel,
        ".initrd": initrd,
    }
    made = with_sections(stub(), parts)
    if not uki.is_uki(uki.sections(made)):
        raise ImageError(f"no unified kernel image came of {STUB}")
    return made if signer is None else authenticode.newly_signed(made, signer)


def keep_key(home: Home, signer: Signer) -> None:
    """Beside the disk, and not on it. :raise HostError: no room."""
    key, certificate = signer.pem()
    with temporary("the key of a machine"):
        for name, content, mode in ((KEY, key, 0o600), (CERTIFICATE, certificate, 0o644)):
            path = home.directory / name
            path.touch(mode=mode)
            path.write_bytes(content)


def own_keys(home: Home, signer: Signer, scratch: Path, patience: float) -> None:
    """A firmware whose PK, KEK and db are this key's alone, with Secure Boot on.

    :raise HostError: there is no such firmware, no virt-fw-vars, or no room.
    """
    firmware = find_firmware(Firmware.UEFI_SECUREBOOT)
    if firmware is None:
        raise HostError("no firmware with Secure Boot", remedy="run: osgates doctor")
    with temporary("the firmware's variables"):
        scratch.mkdir(exist_ok=True)
        shutil.copyfile(firmware.variables.path, home.variables)
    der = signer.der
    keys = Keys(pk=der, kek=(der,), db=(der,), own=True, microsoft=False)
    enrol(home.variables, keys, scratch, patience)


def esp_files(
    files: Path, menu: str, initrd: str, kernel: str, os_release: bytes, signer: Signer
) -> Mapping[str, bytes]:
    """What the EFI system partition holds instead of `files`: one image, by its path.

    :raise ImageError: it cannot be made of them.
    :raise MissingTool: there is no systemd-stub.
    """
    with temporary("the files that boot"):
        text = (files / menu).read_text(encoding="utf-8")
        parts = (files / kernel).read_bytes(), (files / initrd).read_bytes()
    return {PATH: assemble(*parts, parameters_of(text), os_release, signer)}
