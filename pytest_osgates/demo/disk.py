"""The demo's installed disk, made offline: no root, no loop device, no device-mapper, nothing is booted.

GPT with two partitions. The first is the EFI system partition, with Debian's signed shim and GRUB, and the kernel and
the initrd of the live ISO. The second is LUKS2 over an ext4 file system with the live root in it.
``cryptsetup reencrypt --encrypt`` works on a plain file as long as nobody asks it to do so online.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.debian.store import sha256_of
from pytest_osgates.demo.build import ProgressCallback, scratch_beside
from pytest_osgates.demo.disk_variants import DiskFile, ExtraPartition, Variant, load_disk_file
from pytest_osgates.demo.fault import change_parameters, image_epoch
from pytest_osgates.demo.plymouth import PARAMETERS, plymouth_members
from pytest_osgates.demo.tools import environment, need
from pytest_osgates.demo.uki import Keys, esp_files
from pytest_osgates.demo.unlock import TpmUnlock, unlock_members
from pytest_osgates.image.iso9660 import IsoImage
from pytest_osgates.image.newc import appended_archive
from pytest_osgates.image.rootfs import open_root
from pytest_osgates.image.uki import PCR
from pytest_osgates.vm.errors import ImageError, UsageError
from pytest_osgates.vm.process import run

TOOLS = ("cryptsetup", "sfdisk", "mke2fs", "mkfs.fat", "mcopy", "qemu-img")
MIB = 1 << 20
_PIECE = 1 << 20
_SECTOR = 512
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_LUKS_TYPE = "CA7D7CCB-63ED-4C53-861C-1742536059CC"
# cryptsetup-reencrypt(8): twice the size of the header, which is 16 MiB.
_HEADER_MIB = 32
_FAT_SERIAL = "05c0de02"
_SQUASHFS = "/live/filesystem.squashfs"
_RELEASE = "/usr/lib/os-release"
_MOST_RELEASE = 64 << 10
# From the ISO to the EFI system partition.
_BOOT_FILES = (
    *("/EFI/BOOT/BOOTX64.EFI", "/EFI/BOOT/grubx64.efi", "/EFI/BOOT/mmx64.efi"),
    *("/.disk/info", "/boot/grub/grub.cfg", "/live/vmlinuz", "/live/initrd.img"),
)
_INITRD = "live/initrd.img"
_KERNEL = "live/vmlinuz"
_MENU = "boot/grub/grub.cfg"


@dataclass(frozen=True)
class BuiltDisk:
    """A finished disk; `passphrase` opens it."""

    path: Path
    sha256: str
    size: int
    passphrase: bytes


def build_demo_disk(
    iso: Path,
    output: Path,
    progress: ProgressCallback,
    variant: str | Variant | None = None,
    *,
    tpm: bool = False,
    pin: bool = False,
    keys: Keys | None = None,
    screen: bool = False,
    plymouth: bool = False,
) -> BuiltDisk:
    """Make the installed disk of the demo's `iso` at `output`, a weakened one if `variant` says so. With `tpm`, its
    first boot enrols the machine's TPM; with `pin` as well, with a PIN. With `keys`, what boots is a unified kernel
    image that they signed, and nothing else. With `screen`, it asks on the screen; with `tpm` and `plymouth`, there
    and by Plymouth.

    A name that ends in ``.qcow2`` gets that format, any other a raw image.

    :raise UsageError: there is no such variant, or no directory for `output`; or Plymouth has nothing to ask for.
    :raise ImageError: `iso` is not the demo's.
    :raise HostError: a program is missing or failed.
    """
    spec = load_disk_file()
    weak = spec.named(variant) if isinstance(variant, str) else variant
    if plymouth and (pin or not tpm):
        raise UsageError("Plymouth asks for the passphrase of a disk that a TPM opens without a PIN")
    need(*TOOLS)
    output = output.absolute()
    with scratch_beside(output) as scratch:
        epoch = image_epoch(iso)
        maker = _Maker(scratch, spec, weak, environment(epoch, scratch), screen=screen, plymouth=plymouth)
        progress("reading the ISO", 0.0)
        esp, medium = _take_files(iso, scratch)
        if plymouth:
            # Before the rest is made for nothing.
            progress("fetching Plymouth", 0.1)
        graphical = plymouth_members(scratch, maker.env) if plymouth else {}
        progress("encrypting the root", 0.2)
        volume = maker.volume(medium)
        progress("writing the disk", 0.8)
        with open_root(iso) as root:
            members = unlock_members(
                root,
                spec.luks.uuid,
                maker.env,
                _tpm(spec, weak, keys, pin=pin, by_plymouth=plymouth) if tpm else None,
                way_in="" if weak is None else weak.way_in,
            )
            release = root.read(_RELEASE, _MOST_RELEASE)
        members |= graphical
        maker.more_mib = sum(len(content) for _, content in graphical.values()) * 5 // 4 // MIB
        disk = maker.disk(maker.esp(esp, members, release or b"", keys), volume)
        if output.suffix == ".qcow2":
            packed = scratch / "disk.qcow2"
            run(["qemu-img", "convert", "-O", "qcow2", str(disk), str(packed)], timeout=600, env=maker.env)
            disk = packed
        disk.chmod(0o644)
        digest, size = sha256_of(disk), disk.stat().st_size
        disk.replace(output)
    progress("done", 1.0)
    return BuiltDisk(output, digest, size, maker.passphrase)


def _tpm(spec: DiskFile, weak: Variant | None, keys: Keys | None, *, pin: bool, by_plymouth: bool) -> TpmUnlock:
    bound = spec.pcrs if keys is None else spec.uki_pcrs
    if weak is not None and weak.enrol is not None:
        bound = weak.enrol
    signed = (PCR,) if keys is not None and keys.policy is not None else ()
    return TpmUnlock(tuple(pcr for pcr in bound if pcr not in signed), pin, by_plymouth, signed)


def _take_files(iso: Path, scratch: Path) -> tuple[Path, Path]:
    """The files that boot, and the directory that is to be encrypted.

    :raise ImageError: one is missing.
    """
    esp, medium = scratch / "esp", scratch / "medium"
    with IsoImage.open(iso) as image:
        for name, top in (*((name, esp) for name in _BOOT_FILES), (_SQUASHFS, medium)):
            file = image.lookup(name)
            if file is None or not file.extents:
                raise ImageError(f"{iso} has no {name}: it is not the demo's ISO", remedy="run: osgates demo-iso")
            target = top / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                for extent in file.extents:
                    for offset in range(0, extent.size, _PIECE):
                        size = min(_PIECE, extent.size - offset)
                        out.write(image.source.read_at(extent.offset + offset, size))
    return esp, medium


class _Maker:
    """Makes the parts of one disk in `scratch`."""

    def __init__(
        self,
        scratch: Path,
        spec: DiskFile,
        variant: Variant | None,
        env: Mapping[str, str],
        *,
        screen: bool = False,
        plymouth: bool = False,
    ) -> None:
        self.scratch = scratch
        self.spec = spec
        self.variant = variant
        self.env = env
        self.screen = screen or plymouth
        self.plymouth = plymouth
        # Of the EFI system partition, for what its initrd has besides.
        self.more_mib = 0
        key_file = None if variant is None else variant.passphrase_in or variant.passphrase_on_esp
        self.passphrase = known_bytes(key_file) if key_file else spec.passphrase.encode()
        self._secrets = 0

    def _run(self, *argv: str) -> None:
        run(list(argv), timeout=600, env=self.env)

    def _cryptsetup(self, action: str, *argv: str) -> None:
        """On a file of ours: its locks are in a directory of root's, and would keep anybody else out."""
        self._run("cryptsetup", action, "--disable-locks", *argv)

    def _secret(self, content: bytes) -> str:
        """A file with a passphrase."""
        self._secrets += 1
        path = self.scratch / f"secret-{self._secrets}"
        path.write_bytes(content)
        return str(path)

    def _kdf(self, kdf: str, memory_kib: int | None = None) -> list[str]:
        luks = self.spec.luks
        if kdf == "pbkdf2":
            # The fewest that cryptsetup takes, as systemd-cryptenroll(1) does for keys that need no stretching.
            return ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
        return [
            *("--pbkdf", "argon2id", "--pbkdf-memory", str(memory_kib or luks.memory_kib)),
            *("--pbkdf-force-iterations", str(luks.time), "--pbkdf-parallel", "1"),
        ]

    def volume(self, medium: Path) -> Path:
        """The LUKS partition with the root in it."""
        weak = self.variant
        plain = sum(path.stat().st_size for path in medium.rglob("*") if path.is_file())
        size = (plain // MIB * 21 // 20 + self.spec.spare_mib) * MIB
        image = self.scratch / "root.img"
        self._run(
            *("mke2fs", "-q", "-t", "ext4", "-L", "OSGATES_DEMO", "-m", "0", "-O", "^has_journal"),
            *("-E", "root_owner=0:0", "-d", str(medium), str(image), f"{size // 1024}k"),
        )
        # Room for the header, by which everything else is moved towards the end; all of it is encrypted.
        with image.open("r+b") as file:
            file.truncate(size + _HEADER_MIB * MIB)
        luks = self.spec.luks
        main = self._secret(self.passphrase)
        kdf = "pbkdf2" if weak is not None and weak.luks1 else "argon2id" if weak is None else weak.kdf
        self._cryptsetup(
            *("reencrypt", "--encrypt", "--type", "luks2", "--batch-mode", "--key-file", main),
            # Where it takes a lock all the same, that is by the UUID, whoever's volume it is.
            *("--reduce-device-size", f"{_HEADER_MIB}M", "--force-offline-reencrypt", "--uuid", str(uuid.uuid4())),
            *("--cipher", luks.cipher, "--key-size", str(luks.key_size), "--sector-size", "512"),
            *self._kdf(kdf, None if weak is None else weak.memory_kib),
            str(image),
        )
        self._cryptsetup("luksUUID", "--batch-mode", "--uuid", luks.uuid, str(image))
        if weak is not None and weak.luks1:
            self._cryptsetup("convert", "--batch-mode", "--type", "luks1", str(image))
            return image
        if weak is None or weak.recovery:
            self._add_slot(image, main, self.spec.recovery_key.encode(), "pbkdf2")
            self._add_token(image, {"type": "systemd-recovery", "keyslots": ["1"]})
        if weak is not None:
            for slot in weak.slots:
                self._add_slot(image, main, slot.passphrase.encode(), slot.kdf)
            if weak.tpm_pcrs is not None:
                self._add_slot(image, main, known_bytes("tpm"), "pbkdf2")
                self._add_token(image, tpm_token(weak.tpm_pcrs, slot=weak.recovery + 1 + len(weak.slots)))
            if not weak.passphrase:
                self.passphrase = self.spec.recovery_key.encode()
                self._cryptsetup(
                    *("luksKillSlot", "--batch-mode", "--key-file", self._secret(self.passphrase)),
                    *(str(image), "0"),
                )
        return image

    def _add_slot(self, image: Path, main: str, passphrase: bytes, kdf: str) -> None:
        self._cryptsetup(
            *("luksAddKey", "--batch-mode", "--key-file", main, *self._kdf(kdf)),
            *(str(image), self._secret(passphrase)),
        )

    def _add_token(self, image: Path, token: Mapping[str, object]) -> None:
        path = self.scratch / "token.json"
        path.write_text(json.dumps(token), encoding="utf-8")
        self._cryptsetup("token", "import", "--json-file", str(path), str(image))

    def esp(
        self,
        files: Path,
        members: Mapping[str, tuple[int, bytes]],
        os_release: bytes = b"",
        keys: Keys | None = None,
    ) -> Path:
        """The EFI system partition; `members` and what a variant adds are put behind the initrd. With `keys`, all
        that boots is one image."""
        weak = self.variant
        added = dict(members)
        if weak is not None:
            if weak.passphrase_in:
                added[weak.passphrase_in] = (0o600, self.passphrase)
            if weak.crypttab:
                added["cryptroot/crypttab"] = (0o600, weak.crypttab.encode())
            if weak.passphrase_on_esp:
                (files / weak.passphrase_on_esp).write_bytes(self.passphrase)
        with (files / _INITRD).open("ab") as initrd:
            initrd.write(appended_archive(initrd.tell(), added))
        menu = files / _MENU
        given = on_screen(self.spec.parameters) if self.screen else self.spec.parameters
        if self.plymouth:
            given = (*PARAMETERS, *given)
        parameters = (*given, *(() if weak is None else weak.parameters))
        text = change_parameters(menu.read_text(encoding="utf-8"), parameters)
        if weak is not None and weak.grub:
            text = weak.grub + text.replace("menuentry ", "menuentry --unrestricted ")
        menu.write_text(text, encoding="utf-8")
        if keys is not None:
            image_files = esp_files(files, _MENU, _INITRD, _KERNEL, os_release, keys)
            files = self.scratch / "image"
            for name, content in image_files.items():
                (files / name).parent.mkdir(parents=True)
                (files / name).write_bytes(content)
        image = self.scratch / "esp.img"
        self._run(
            *("mkfs.fat", "--invariant", "-F", "32", "-i", _FAT_SERIAL, "-n", "ESP", "-C"),
            *(str(image), str((self.spec.esp_mib + self.more_mib) * 1024)),
        )
        for top in sorted(files.iterdir()):
            self._run("mcopy", "-s", "-i", str(image), str(top), "::/")
        return image

    def disk(self, esp: Path, volume: Path) -> Path:
        """The partition table, and the partitions at their places."""
        parts: list[tuple[str, str, Path]] = [(_ESP_TYPE, "esp", esp), (_LUKS_TYPE, "root", volume)]
        for extra in () if self.variant is None else self.variant.partitions:
            parts.append((extra.type, extra.name, self._plain(extra)))
        lines = ["label: gpt", "label-id: 05C0DE01-0000-4000-8000-000000000000"]
        places = []
        start = MIB
        for number, (kind, name, path) in enumerate(parts, 1):
            size = -(-path.stat().st_size // MIB) * MIB
            own = f"05C0DE01-0000-4000-8000-0000000001{number:02}"
            lines.append(f'start={start // _SECTOR}, size={size // _SECTOR}, type={kind}, uuid={own}, name="{name}"')
            places.append((start, path))
            start += size
        disk = self.scratch / "disk.img"
        with disk.open("wb") as file:
            file.truncate(start + MIB)
        run(["sfdisk", "--quiet", str(disk)], timeout=60, input="\n".join(lines).encode(), env=self.env)
        with disk.open("r+b") as out:
            for start, path in places:
                out.seek(start)
                with path.open("rb") as part:
                    shutil.copyfileobj(part, out, _PIECE)
        return disk

    def _plain(self, extra: ExtraPartition) -> Path:
        image = self.scratch / f"{extra.name}.img"
        with image.open("wb") as file:
            file.truncate(extra.size_mib * MIB)
        if extra.holds == "swap":
            self._run("mkswap", "--pagesize", "4096", str(image))
        else:
            self._run("mke2fs", "-q", "-t", "ext4", "-F", str(image))
        return image


def on_screen(parameters: tuple[str, ...]) -> tuple[str, ...]:
    """The other way round for consoles: the last one that is named is where the kernel's first process speaks."""
    consoles = [text for text in parameters if text.startswith("console=")]
    return (*(text for text in parameters if text not in consoles), *reversed(consoles))


def known_bytes(name: str, size: int = 64) -> bytes:
    """Bytes that look random and are the same each time."""
    return hashlib.shake_256(f"osgates-demo:{name}".encode()).digest(size)


def tpm_token(pcrs: tuple[int, ...], slot: int) -> dict[str, object]:
    """A token as systemd 257 writes it (src/shared/tpm2-util.c); what should be sealed in a TPM is not."""
    return {
        "type": "systemd-tpm2",
        "keyslots": [str(slot)],
        "tpm2-blob": "AAAA",
        "tpm2-pcrs": list(pcrs),
        "tpm2-pcr-bank": "sha256",
        "tpm2-primary-alg": "ecc",
        # A policy that demands nothing is the digest that any session begins with.
        "tpm2-policy-hash": known_bytes("policy", 32).hex() if pcrs else "00" * 32,
        "tpm2-pin": False,
    }
