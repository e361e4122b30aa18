"""The demo's unified kernel image, and a firmware that starts nothing but what its key signed.

The kernel, the initrd and the parameters are those of the machine with shim and GRUB, in systemd-stub of Debian's
package systemd-boot-efi. The key is made for one machine, and lies beside it: whoever tries what a signed image can
do needs it. So does the one that signs policies for PCR 11, which is another: who can sign images cannot sign those.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.image import authenticode, uki
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.image.uki_build import with_sections
from pytest_osgates.image.uki_sign import PolicyKey
from pytest_osgates.vm import variables
from pytest_osgates.vm.errors import HostError, ImageError, MissingTool
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import find_firmware
from pytest_osgates.vm.spec import Firmware
from pytest_osgates.vm.workdir import temporary

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
INSTALL = "apt-get install systemd-boot-efi (Fedora: dnf install systemd-boot-unsigned)"
# Where a firmware looks by itself, without an entry of its own (UEFI 2.10, 3.5.1.1).
PATH = "EFI/BOOT/BOOTX64.EFI"
KEY, CERTIFICATE = "uki-key.pem", "uki-certificate.pem"
PCR_KEY = "pcr-key.pem"
# Longer than that of any key that a test signs with: theirs has to fit in its place.
_NAME = "osgates demo, key of a machine with a unified kernel image"
_LINUX = ("linux", "linux16", "linuxefi")


@dataclass(frozen=True)
class Keys:
    """Of one machine: what signs its image and, where PCR 11 is bound by a policy, what signs that."""

    image: Signer
    policy: PolicyKey | None = None


def new_keys(*, signed_pcrs: bool = False) -> Keys:
    """For one machine."""
    return Keys(Signer.made(_NAME), PolicyKey.made() if signed_pcrs else None)


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


def assemble(kernel: bytes, initrd: bytes, parameters: Sequence[str], os_release: bytes, keys: Keys | None) -> bytes:
    """A unified kernel image; without `keys`, one that is not signed.

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
    if keys is not None and keys.policy is not None:
        parts[".pcrpkey"] = keys.policy.public_pem()
    made = with_sections(stub(), parts)
    there = uki.sections(made)
    if not uki.is_uki(there):
        raise ImageError(f"no unified kernel image came of {STUB}")
    if keys is None:
        return made
    if keys.policy is not None:
        # Its initrd unlocks the disk before anybody measures a phase.
        made = with_sections(made, {".pcrsig": keys.policy.policies(there)})
    return authenticode.newly_signed(made, keys.image)


def keep_keys(home: Home, keys: Keys) -> None:
    """Beside the disk, and not on it. :raise HostError: no room."""
    key, certificate = keys.image.pem()
    files = [(KEY, key, 0o600), (CERTIFICATE, certificate, 0o644)]
    if keys.policy is not None:
        files.append((PCR_KEY, keys.policy.pem(), 0o600))
    with temporary("the keys of a machine"):
        for name, content, mode in files:
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
    keys = variables.Keys(pk=der, kek=(der,), db=(der,), own=True, microsoft=False)
    variables.enrol(home.variables, keys, scratch, patience)


def esp_files(files: Path, menu: str, initrd: str, kernel: str, os_release: bytes, keys: Keys) -> Mapping[str, bytes]:
    """What the EFI system partition holds instead of `files`: one image, by its path.

    :raise ImageError: it cannot be made of them.
    :raise MissingTool: there is no systemd-stub.
    """
    with temporary("the files that boot"):
        text = (files / menu).read_text(encoding="utf-8")
        parts = (files / kernel).read_bytes(), (files / initrd).read_bytes()
    return {PATH: assemble(*parts, parameters_of(text), os_release, keys)}
