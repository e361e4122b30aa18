"""What is done to a machine that is switched off, and how it is undone. By the words of ``data/tampers.toml``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_osgates.checks.tpm_model import Change, Tamper
from pytest_osgates.image import authenticode, uki
from pytest_osgates.image.medium import files_of_disk
from pytest_osgates.image.newc import appended_archive
from pytest_osgates.observers.tpm_files import Changes, add_files, change_files
from pytest_osgates.observers.tpm_images import (
    PROGRAMS,
    Image,
    Parts,
    credentials,
    images_of,
    options_for,
    sections_of,
    signed_again,
    signer,
    with_members,
    with_parameter,
)
from pytest_osgates.observers.tpm_slots import slots
from pytest_osgates.observers.tpm_start import check_started
from pytest_osgates.vm import tpm, variables
from pytest_osgates.vm.errors import ImageError, UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import find_firmware
from pytest_osgates.vm.spec import Firmware
from pytest_osgates.vm.workdir import temporary

# GRUB's configuration, and entries of boot loaders by the Boot Loader Specification.
_GRUBS = re.compile(r"(?:^|/)grub\.cfg$", re.IGNORECASE)
_ENTRIES = re.compile(r"^(?:/boot)?/loader/entries/[^/]+\.conf$", re.IGNORECASE)
# With its parameters in GRUB's language. An entry names the kernel by `linux`, and the parameters by `options`.
_KERNEL_LINE = re.compile(rb"^([ \t]*linux(?:16|efi)?[ \t][^\r\n]*?)([ \t]*\r?)$", re.MULTILINE)
_OPTIONS_LINE = re.compile(rb"^([ \t]*options(?:[ \t][^\r\n]*?)?)([ \t]*\r?)$", re.MULTILINE)
_LINUX_LINE = re.compile(rb"^[ \t]*linux[ \t]", re.MULTILINE)
_INITRDS = re.compile(r"(?:^|/)initr[^/]*$", re.IGNORECASE)
_KERNELS = re.compile(r"(?:^|/)(?:[^/]*vmlinuz|bzimage)[^/]*$|/linux$", re.IGNORECASE)
_LOADERS = re.compile(r"^/efi/[^/]+/(?:grub|gcd)(?:x64[^/]*)?\.efi$|^/efi/[^/]+/systemd-bootx64\.efi$", re.IGNORECASE)
_MOST_NAMED = 4
_OWN_KEYS = ("PK", "KEK", "db")
_MARK = {"etc/osgates-tampered": (0o644, b"This initrd is not what was shipped.\n")}


@dataclass(frozen=True)
class Workshop:
    """Where a row's machine is changed: `original` stays what it is, `home` is the copy; `parameter`: for the kernel.
    `log`: what swtpm says. `others`: files that come in the place of others, or sign them, by their keys in
    [gate.tpm]. `on_images`: the tamper has a way of its own with unified kernel images."""

    original: Home
    home: Home
    firmware: Firmware
    parameter: str
    scratch: Path
    log: Path
    patience: float = 1.0
    others: Mapping[str, Path] = field(default_factory=dict)
    on_images: bool = False

    def apply(self, tamper: Tamper) -> tuple[Change, ...]:
        """:raise UsageError: this version does not know how.
        :raise ImageError: the disk has nothing to be changed in that way, or cannot be read.
        :raise HostError: a tool is missing or fails.
        """
        try:
            how = _WAYS[tamper.how]
        except KeyError:
            raise UsageError(f"the tamper {tamper.name}: no way is called {tamper.how!r}") from None
        return how(replace(self, parameter=tamper.parameter or self.parameter, on_images=tamper.uki is not None))

    def undo(self, tamper: Tamper) -> None:
        """What was changed is what it was; and so is the TPM, whose counters have counted.

        :raise HostError: no room.
        """
        self.original.put_tpm(self.home)
        changed = {*tamper.changes, *(() if tamper.uki is None else tamper.uki.changes)}
        if changed & {"variables", "load-options"}:
            self.original.put_variables(self.home)
        if changed & {"disk", "image"}:
            self.original.put_disk(self.home)

    def make_twin(self, tamper: Tamper) -> None:
        """The same, made anew, with Secure Boot off. :raise OsgatesError: as `apply`."""
        self.undo(tamper)
        self.apply(tamper)
        variables.secure_boot_off(self.home.variables, self.patience)

    # -- ways

    def new_tpm(self) -> tuple[Change, ...]:
        before = self.home.digests()["tpm"]
        self.home.remove_tpm()
        return (Change(what="tpm", before=before, after="a new one"),)

    def no_tpm(self) -> tuple[Change, ...]:
        """The rest is the machine's: see `Tamper.how`."""
        return (Change(what="machine", before="with a TPM", after="without a TPM"),)

    def clear_tpm(self) -> tuple[Change, ...]:
        before = self.home.digests()["tpm"]
        tpm.clear(self.home.tpm, self.log, self.patience)
        return (Change(what="tpm", before=before, after=self.home.digests()["tpm"]),)

    def lock_out_tpm(self) -> tuple[Change, ...]:
        before = self.home.digests()["tpm"]
        tpm.lock_out(self.home.tpm, self.log, self.patience)
        return (Change(what="tpm", before=before, after=self.home.digests()["tpm"]),)

    def type_wrong_pins(self) -> tuple[Change, ...]:
        """The rest is typed: see `Tamper.pin`."""
        return (Change(what="pin", before="the PIN", after="another one"),)

    def type_at_grub(self) -> tuple[Change, ...]:
        """The rest is typed, once it is powered on: see observers/tpm_grub.py. Whether it was, `GrubSeen` says."""
        return (Change(what="keyboard", before="nobody types", after=f"to be typed at GRUB: {self.parameter}"),)

    def press_sysrq(self) -> tuple[Change, ...]:
        """The rest is typed, at the prompt. Whether it was, `SysrqSeen` says."""
        return (*self.new_tpm(), Change(what="keyboard", before="nobody types", after="SysRq, to be pressed"))

    def other_machine(self) -> tuple[Change, ...]:
        files = find_firmware(self.firmware)
        if files is None:
            raise UsageError(f"{self.firmware} has no variables", remedy="use the firmware uefi-secureboot")
        before = self.home.digests()["variables"]
        with temporary("the variables of another machine"):
            self.home.variables.write_bytes(files.variables.path.read_bytes())
        ours, theirs = (
            variables.databases(path, _OWN_KEYS, self.scratch, self.patience)
            for path in (self.original.variables, self.home.variables)
        )
        if ours != theirs:
            # Without the keys that its programs are signed by, another machine starts nothing of the disk.
            variables.give_keys(self.home.variables, self.original.variables, self.scratch, self.patience)
        changed = Change(what="variables", before=before, after=self.home.digests()["variables"])
        return (*self.new_tpm(), changed)

    def secure_boot_off(self) -> tuple[Change, ...]:
        return self._variables(lambda: variables.secure_boot_off(self.home.variables, self.patience))

    def replace_keys(self) -> tuple[Change, ...]:
        return self._variables(lambda: variables.replace_keys(self.home.variables, self.scratch, self.patience))

    def add_key(self) -> tuple[Change, ...]:
        return self._variables(lambda: variables.add_key(self.home.variables, self.scratch, self.patience))

    def _variables(self, change: Callable[[], None]) -> tuple[Change, ...]:
        before = self.home.digests()["variables"]
        change()
        return (Change(what="variables", before=before, after=self.home.digests()["variables"]),)

    def edit_command_line(self) -> tuple[Change, ...]:
        """In GRUB's menus, and in the entries of systemd-boot and of GRUB's blscfg.

        :raise ImageError: there are none with a command line of their own.
        """
        added = self.parameter.encode("ascii")
        what = "boot menu with a kernel's command line (grub.cfg, loader/entries/*.conf)"
        try:
            changes = self._files(
                _GRUBS,
                lambda text: _KERNEL_LINE.sub(lambda match: match[1] + b" " + added + match[2], text),
                what,
                [(_ENTRIES, lambda text: with_option(text, added))],
            )
            return self._beside_images(changes)
        except ImageError as error:
            images = self._images()
            if not images:
                raise
            if self.on_images:
                return self._hand_options(images)
            raise ImageError(
                f"{error.what}; its unified kernel images have their command line below their signature",
                remedy="this version cannot add this parameter to that one; see image-command-line-edited",
            ) from error

    def extend_initrd(self) -> tuple[Change, ...]:
        try:
            changes = self._files(_INITRDS, lambda old: old + appended_archive(len(old), _MARK), "initrd (initr*)")
            return self._beside_images(changes)
        except ImageError:
            if not self._images():
                raise
            return self._sign_again(with_members(_MARK))

    def edit_image_command_line(self) -> tuple[Change, ...]:
        """:raise ImageError: there is no unified kernel image with a command line of its own."""
        return self._sign_again(with_parameter(self.parameter))

    def add_credential(self) -> tuple[Change, ...]:
        """:raise ImageError: there is no unified kernel image whose stub takes one."""
        found: dict[str, tuple[str, str]] = {}
        for number, added in credentials(self._images()).items():
            found |= add_files(self.original.disk, self.home.disk, number, added, self.scratch)
        change = Change(what="disk", before=_digest(found, 0), after=_digest(found, 1))
        return self._beside_initrds((change,))

    def _beside_images(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """Where files of their own were changed, an image may be what boots."""
        try:
            paths = [image.path for image in self._images()]
        except ImageError as error:
            paths = [error.what]
        besides = f"unified kernel images: {', '.join(paths[:_MOST_NAMED])}" if paths else ""
        return tuple(change.model_copy(update={"besides": besides}) for change in changes)

    def _beside_initrds(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """Where images were changed, a kernel with an initrd of its own may be what boots."""
        try:
            paths = [file.path for file in files_of_disk(self.original.disk, _INITRDS)]
        except ImageError as error:
            paths = [error.what]
        besides = f"initrds of their own: {', '.join(paths[:_MOST_NAMED])}" if paths else ""
        return tuple(change.model_copy(update={"besides": besides}) for change in changes)

    def _images(self) -> tuple[Image, ...]:
        return images_of(self.original.disk)

    def _hand_options(self, images: tuple[Image, ...]) -> tuple[Change, ...]:
        """The firmware's variables get an entry of their own, which is the first."""
        image, option = options_for(images, self.parameter)
        check_started(image, self.original.variables, self.scratch, self.patience)
        before = self.home.digests()["variables"]
        variables.boot_first(self.home.variables, option, self.scratch, self.patience)
        after = self.home.digests()["variables"]
        if after == before:
            raise ImageError(f"the firmware's variables took no boot entry for {image.path}")
        return (Change(what="load-options", before=before, after=f"{after} with an entry for {image.path}"),)

    def _sign_again(self, change: Callable[[Parts], Parts]) -> tuple[Change, ...]:
        """Each unified kernel image."""
        owner = signer(self.others.get("uki_key"), self.others.get("uki_certificate"))
        again = signed_again(change, owner, slots(self.original.disk).policy_keys)
        (changed,) = self._files(PROGRAMS, again, "unified kernel image")
        return self._beside_initrds((changed.model_copy(update={"what": "image"}),))

    def replace_kernel(self) -> tuple[Change, ...]:
        new = self._other("other_kernel")
        is_image = uki.is_uki(uki.sections(new))
        more: list[tuple[re.Pattern[str], Callable[[bytes], bytes]]] = []
        if "other_initrd" in self.others:
            initrd = self._read(self.others["other_initrd"])
            more.append((_INITRDS, lambda old: initrd))
        named = PROGRAMS if is_image else _KERNELS
        changes = self._replaced(named, new, "kernel (vmlinuz*, EFI/Linux/*.efi)", more)
        if not is_image:
            return self._beside_images(changes)
        return self._beside_initrds(tuple(change.model_copy(update={"what": "image"}) for change in changes))

    def replace_loader(self) -> tuple[Change, ...]:
        return self._replaced(_LOADERS, self._other("other_loader"), "boot loader (grubx64.efi, systemd-bootx64.efi)")

    def add_option_rom(self) -> tuple[Change, ...]:
        """The rest is the machine's: see `Tamper.how`."""
        return (Change(what="machine", before="as it was", after="with one more network card, and iPXE in its ROM"),)

    def _other(self, key: str) -> bytes:
        """:raise UsageError: it is not there, or is no signed program."""
        path = self.others[key]
        new = self._read(path)
        try:
            signed = bool(authenticode.signatures(new))
        except ImageError as error:
            raise UsageError(
                f"{key} of [gate.tpm], {path}: {error.what}", remedy="name a signed EFI program"
            ) from None
        if not signed:
            raise UsageError(
                f"{key} of [gate.tpm], {path}, is not signed: Secure Boot would refuse it before any TPM is asked",
                remedy="name one that the machine would start",
            )
        return new

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path}, which [gate.tpm] names, cannot be read: {error.strerror}") from error

    def _replaced(self, named: re.Pattern[str], new: bytes, what: str, more: Changes = ()) -> tuple[Change, ...]:
        """:raise ImageError: there is no such program, or it is the same one."""
        digest = authenticode.digest(new)
        replaced: list[str] = []

        def change(old: bytes) -> bytes:
            # What is no program for a firmware is not started by this chain.
            if old[:2] != b"MZ" or (named is PROGRAMS and sections_of(old) is None):
                return old
            if authenticode.digest(old) == digest:
                raise ImageError(f"the other {what} is the same program: nothing would see it")
            replaced.append(hashlib.sha256(old).hexdigest())
            return new

        changes = self._files(named, change, what, more)
        if not replaced:
            raise ImageError(f"{self.original.disk.name} has no {what} that a firmware or GRUB would start")
        return changes

    def _files(
        self, named: re.Pattern[str], change: Callable[[bytes], bytes], what: str, more: Changes = ()
    ) -> tuple[Change, ...]:
        found = change_files(self.original.disk, self.home.disk, [(named, change), *more], self.scratch)
        if not found:
            raise ImageError(
                f"{self.original.disk.name} has no {what} on a FAT or ext partition that can be read",
                remedy="this version changes no files elsewhere: it cannot try this tamper on this disk",
            )
        before, after = (_digest(found, side) for side in (0, 1))
        return (Change(what="disk", before=before, after=after),)


def with_option(entry: bytes, added: bytes) -> bytes:
    """An entry of the Boot Loader Specification whose kernel gets one more parameter, on the last line of its
    options, or on one of their own; one without `linux` is left alone: a unified kernel image does not listen."""
    if not _LINUX_LINE.search(entry):
        return entry
    lines = list(_OPTIONS_LINE.finditer(entry))
    if not lines:
        ending = b"" if entry.endswith(b"\n") else b"\n"
        return entry + ending + b"options " + added + b"\n"
    last = lines[-1]
    return entry[: last.end(1)] + b" " + added + entry[last.end(1) :]


def _digest(found: Mapping[str, tuple[str, str]], side: int) -> str:
    """One file by its name and digest, several by the digest of all."""
    if len(found) == 1:
        ((path, digests),) = found.items()
        return f"{path} {digests[side]}"
    together = "".join(f"{path} {digests[side]}\n" for path, digests in sorted(found.items()))
    return f"{len(found)} files {hashlib.sha256(together.encode()).hexdigest()}"


_WAYS: Mapping[str, Callable[[Workshop], tuple[Change, ...]]] = {
    "new-tpm": Workshop.new_tpm,
    "no-tpm": Workshop.no_tpm,
    "clear-tpm": Workshop.clear_tpm,
    "lock-out-tpm": Workshop.lock_out_tpm,
    "type-wrong-pins": Workshop.type_wrong_pins,
    "type-at-grub": Workshop.type_at_grub,
    "press-sysrq": Workshop.press_sysrq,
    "other-machine": Workshop.other_machine,
    "secure-boot-off": Workshop.secure_boot_off,
    "replace-keys": Workshop.replace_keys,
    "add-key": Workshop.add_key,
    "edit-command-line": Workshop.edit_command_line,
    "extend-initrd": Workshop.extend_initrd,
    "replace-kernel": Workshop.replace_kernel,
    "replace-loader": Workshop.replace_loader,
    "add-option-rom": Workshop.add_option_rom,
    "edit-image-command-line": Workshop.edit_image_command_line,
    "add-credential": Workshop.add_credential,
}
WAYS = frozenset(_WAYS)
