"""The demo's installed machine: its disk, its firmware's variables, and a TPM that opens the disk.

The TPM is enrolled by the first boot, as on a machine that somebody installs: the disk's own initrd does it, once the
passphrase was typed on the serial console, or by keys at the screen. So that boot differs in nothing from those that
are judged later, and any PCR can be bound. Over the guest channel it could not: its OEM strings are measured into
PCR 1, and the demo's live root has no systemd-cryptenroll.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_osgates.debian.store import sha256_of
from pytest_osgates.demo.build import ProgressCallback, scratch_beside
from pytest_osgates.demo.disk import BuiltDisk, build_demo_disk
from pytest_osgates.demo.disk_variants import Variant, load_disk_file
from pytest_osgates.demo.uki import keep_keys, new_keys, own_keys, stub
from pytest_osgates.image.disk.luks import Token, read_luks
from pytest_osgates.image.disk.partitions import read_table
from pytest_osgates.image.disk.source import SourceContent, open_disk
from pytest_osgates.vm.console import Console
from pytest_osgates.vm.dialogue import Dialogue, Sign
from pytest_osgates.vm.errors import GuestError, GuestFailed, GuestTimeout, HostError, UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import Host, find_firmware
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.ocr import Reader
from pytest_osgates.vm.screen_line import ScreenLine
from pytest_osgates.vm.spec import Firmware, MachineSpec
from pytest_osgates.vm.text import one_line
from pytest_osgates.vm.tpm import clear
from pytest_osgates.vm.workdir import temporary

TYPE = "systemd-tpm2"
_PARTITION = 2
_SECONDS = 900.0
# cryptsetup throws away what was typed before it turned the echo off, which is after it wrote the prompt.
_AGAIN_SECONDS = 60.0
_TRIES = 8
_SIGNS = tuple(
    Sign(name, re.compile(regex))
    for name, regex in (
        ("failed", r"^The TPM was not enrolled|^\(initramfs\)|Kernel panic - not syncing"),
        ("enrolled", r"^The TPM was enrolled"),
        ("again", r"^The TPM is to unlock this disk .* once more: ?$"),
        ("asked", r"^Enter passphrase for \S+: ?$"),
        ("new-pin", r"^The PIN without which the TPM is not to unlock this disk: ?$"),
    )
)


@dataclass(frozen=True)
class BuiltMachine:
    """A finished machine; `token` is how its TPM opens the disk."""

    home: Home
    disk: BuiltDisk
    token: Token


def build_demo_machine(
    iso: Path,
    directory: Path,
    progress: ProgressCallback,
    host: Host,
    variant: str | Variant | None = None,
    *,
    pin: bool = False,
    uki: bool = False,
    signed_pcrs: bool = False,
    screen: bool = False,
    plymouth: bool = False,
) -> BuiltMachine:
    """Make disk, variables and TPM in the new `directory`, from the demo's `iso`. Boots once, unless
    the variant has a TPM's slot from the start. With `pin`, the TPM wants the demo's PIN as well. With `uki`, it
    starts a unified kernel image, signed by a key of its own, which lies beside the disk; with `signed_pcrs` as well,
    PCR 11 is bound by a policy that another such key signs. With `screen`, the machine asks on its screen, not on the
    serial console; with `plymouth`, there and by Plymouth.

    :raise UsageError: there is something in `directory` already, or no such variant, or one whose slot nobody enrols;
        or Plymouth is to ask for a PIN, or a policy is to be signed for no image.
    :raise OsgatesError: it cannot be made.
    """
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is there already, and not empty", remedy="give the name of a new directory")
    spec = load_disk_file()
    weak = spec.named(variant) if isinstance(variant, str) else variant
    if pin and weak is not None and weak.tpm_pcrs is not None:
        raise UsageError(f"the slot of {weak.name!r} is enrolled by nobody: it has no PIN", remedy="leave --pin out")
    screen = screen or plymouth
    if weak is not None and weak.uki is not uki:
        raise UsageError(f"{weak.name!r} is {'' if weak.uki else 'not '}of the machine with a unified kernel image")
    if signed_pcrs and (not uki or weak is not None):
        raise UsageError("only the sound machine with a unified kernel image has a policy that is signed")
    with scratch_beside(directory) as scratch:
        home = Home.at(scratch / "machine")
        home.directory.mkdir(mode=0o755)
        keys = new_keys(signed_pcrs=signed_pcrs) if uki else None
        if uki:
            # Before the rest is made for nothing.
            stub()
        disk = build_demo_disk(
            iso,
            home.disk,
            lambda stage, done: progress(stage, (done or 0.0) / 3),
            variant,
            tpm=True,
            pin=pin,
            keys=keys,
            screen=screen,
            plymouth=plymouth,
        )
        if keys is not None:
            keep_keys(home, keys)
            own_keys(home, keys.image, scratch / "keys", host.pace)
        if weak is None or weak.tpm_pcrs is None:
            progress("the first boot, in which the TPM is enrolled", 0.35)
            secrets = {"asked": disk.passphrase.decode(), "again": disk.passphrase.decode(), "new-pin": spec.pin}
            _enrol(home, host, secrets, scratch / "records", screen=screen)
        else:
            _never_booted(home, scratch / "swtpm.log")
        token = tpm_token(home.disk)
        if token.pin is not pin:
            raise GuestFailed(f"the token of the TPM says that it wants {'a' if token.pin else 'no'} PIN")
        if directory.exists():
            directory.rmdir()
        shutil.move(home.directory, directory)
    made = Home.at(directory)
    # The first boot wrote to it.
    disk = replace(disk, path=made.disk, sha256=sha256_of(made.disk), size=made.disk.stat().st_size)
    progress("done", 1.0)
    return BuiltMachine(made, disk, token)


def _never_booted(home: Home, log: Path) -> None:
    """:raise HostError: no firmware, no swtpm, or no room."""
    firmware = find_firmware(Firmware.UEFI_SECUREBOOT)
    if firmware is not None:
        with temporary("the firmware's variables"):
            shutil.copyfile(firmware.variables.path, home.variables)
    clear(home.tpm, log)


def tpm_token(disk: Path) -> Token:
    """The token by which a TPM opens the demo's disk.

    :raise ImageError: the disk cannot be read.
    :raise GuestFailed: there is no such token.
    """
    with open_disk(disk) as source:
        part = next(part for part in read_table(source).partitions if part.number == _PARTITION)
        header = read_luks(SourceContent(source, part.start, part.size))
    for token in header.tokens:
        if token.type == TYPE:
            return token
    raise GuestFailed("the first boot said that it enrolled the TPM, and the disk has no token for one")


def _enrol(home: Home, host: Host, secrets: Mapping[str, str], records: Path, *, screen: bool) -> None:
    """`secrets`: what is typed, by what is asked for.

    :raise GuestTimeout: it does not get there.
    :raise GuestFailed: it says so, or the machine stops.
    :raise HostError: QEMU or swtpm died, or a tool is missing.
    """
    spec = MachineSpec("first-boot", Firmware.UEFI_SECUREBOOT, cpus=1, home=home)
    with Machine(spec, host, records) as machine:
        console: Console | ScreenLine = machine.serial
        if screen:
            asking = [Sign("prompt", sign.regex) for sign in _SIGNS if sign.name in secrets]
            console = ScreenLine(machine, Reader(), asking, patience=host.pace)
        with _with_last_words(console):
            _enrol_by(Dialogue(console, _SIGNS, machine.check), machine, _SECONDS * host.pace, secrets)


def _enrol_by(talk: Dialogue, machine: Machine, deadline: float, secrets: Mapping[str, str]) -> None:
    pace = machine.host.pace
    heard = talk.wait(("failed", "asked"), deadline)
    prompts = ("failed", "enrolled", "again", "new-pin", "asked")
    wanted = "asked"
    for _ in range(_TRIES):
        if heard is None or heard.name == "failed":
            break
        if heard.name == "enrolled":
            return
        wanted = heard.name
        talk.say(secrets[wanted])
        heard = talk.wait(prompts, _AGAIN_SECONDS * pace)
        while heard is None and machine.elapsed < deadline:
            # Typed before anybody listened.
            talk.say(secrets[wanted])
            heard = talk.wait(prompts, _AGAIN_SECONDS * pace)
    if heard is None:
        raise GuestTimeout(f"the first boot stood still (last seen: {wanted})")
    raise GuestFailed(f"the first boot did not enrol the TPM: {heard.line}")


@contextmanager
def _with_last_words(console: Console | ScreenLine) -> Iterator[None]:
    """Its records go with it: what it said last is in the message."""
    try:
        yield
    except GuestError as error:
        said = one_line(console.tail(1500), 1200)
        raise type(error)(f"{error.what}; its console ends: {said}", remedy="run: osgates doctor") from error
    except OSError as error:
        raise HostError(f"the console went away: {error}", remedy="run: osgates doctor") from error
