"""The demo's installer, as far as no machine has to be booted: its script, its programs, its profile."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_osgates.demo import load_definition
from pytest_osgates.demo import machine as demo_machine
from pytest_osgates.demo.disk_variants import load_disk_file
from pytest_osgates.demo.installer import (
    INSTALLER,
    LOADER,
    Installer,
    installer_digest,
    load_installer,
    place_installer,
)
from pytest_osgates.demo.lock import media_names
from pytest_osgates.demo.unlock import ENROL, PLUGIN, TPM_STACK, TpmUnlock, unlock_script
from pytest_osgates.profiles import loader
from pytest_osgates.profiles.schema import InstallSection
from pytest_osgates.vm.errors import HostError

PLACEHOLDER = re.compile(r"(?<!@)@[A-Z_]+@(?!@)")


@pytest.fixture(scope="module")
def installer() -> Installer:
    return load_installer()


@pytest.fixture(scope="module")
def recipe() -> InstallSection:
    section = loader.load(loader.find("demo-install")).install
    assert section is not None
    return section


def attempt(script: str, *arguments: str, passphrase: bytes = b"secret") -> tuple[int, str]:
    """What the installer says to what it cannot install on."""
    done = subprocess.run(
        ["sh", "-c", script, "install", *arguments],
        input=passphrase,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_both_scripts_are_shell_and_nothing_is_left_to_be_put_in(shell: str, installer: Installer) -> None:
    for text in (installer.script(), installer.unlock_script()):
        subprocess.run([shell, "-n"], input=text.encode(), check=True)
        assert PLACEHOLDER.findall(text) == []


def test_it_stops_at_the_first_thing_that_goes_wrong(installer: Installer) -> None:
    lines = installer.script().splitlines()
    begin = lines.index("set -eu")
    assert all(line.startswith("#") for line in lines[:begin] if line)
    # A failure in front of a pipe would be passed over: what stands there cannot fail, or is looked at behind it.
    pipes = [line.strip() for line in lines if re.search(r"[^|']\|(?!\|)", line) and "|1 " not in line]
    assert {line.split()[0] for line in pipes if not line.startswith(("#", "*"))} == {"printf", "sed", "(cd"}


def test_nothing_starts_before_all_of_it_is_there(installer: Installer) -> None:
    text = installer.script()
    order = [
        text.index(part)
        for part in (
            "use sfdisk ",
            "use cryptsetup luksFormat",
            "systemd-cryptenroll --recovery-key",
            "use mkfs.fat",
            '"$esp/live/initrd.img"',
            '"$esp/boot/grub/grub.cfg"',
            '"$esp/EFI/BOOT/$loader.new"\ndone\nsync\n',
            'mv -- "$esp/EFI/BOOT/$loader.new"',
            'umount "$esp"\nfinished=yes',
        )
    ]
    assert order == sorted(order)
    # Shim, without which no firmware starts the others, is the last one.
    assert "for loader in mmx64.efi grubx64.efi BOOTX64.EFI; do\n    mv" in text
    assert text.rstrip().endswith("finished=yes")
    # Whatever ends it before: tables and the beginning of the first file system are gone.
    assert text.index("trap leave EXIT") < text.index("written=yes") < text.index("use sfdisk ")


def test_it_refuses_what_it_cannot_install_on(installer: Installer, tmp_path: Path) -> None:
    script = installer.script()
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    for arguments, passphrase, said in (
        ((), b"x", "give one disk"),
        (("/dev/null", "/dev/zero"), b"x", "give one disk"),
        (("/dev/null",), b"\n", "give a passphrase on standard input"),
    ):
        status, output = attempt(script, *arguments, passphrase=passphrase)
        assert (status, output) == (1, f"osgates-demo: failed: {said}\n")
    for target in ("/dev/null", str(tmp_path / "file"), str(tmp_path / "none")):
        status, output = attempt(script, target)
        assert status == 1
        assert re.fullmatch(r"osgates-demo: failed: (?:only root can install|\S+ is no disk)\n", output)
    assert (tmp_path / "file").read_bytes() == bytes(1 << 20)


def test_it_makes_the_disk_that_is_made_offline(installer: Installer) -> None:
    disk = load_disk_file()
    luks = disk.luks
    assert (installer.esp_mib, installer.pcrs, installer.parameters) == (disk.esp_mib, disk.pcrs, disk.parameters)
    assert (installer.cipher, installer.key_size, installer.memory_kib, installer.time) == (
        luks.cipher,
        luks.key_size,
        luks.memory_kib,
        luks.time,
    )
    own = unlock_script(luks.uuid, LOADER, ["xts.ko", "dm-crypt.ko"], TpmUnlock(disk.pcrs))
    assert installer.unlock_script().replace("@@UUID@@", luks.uuid) == own


def test_its_programs_are_files_of_packages_that_are_not_installed(installer: Installer) -> None:
    definition = load_definition()
    assert not set(installer.package_names) & set(definition.package_names)
    assert len(set(media_names(definition))) == len(media_names(definition))
    names = [name.rpartition("/")[2] for entry in installer.packages for name in entry.files]
    assert len(names) == len(set(names))
    assert {"sfdisk", "mke2fs", "mkfs.fat", "cryptsetup", ENROL, PLUGIN, *TPM_STACK} < set(names)
    assert all(len(entry.reason) > 5 for entry in installer.packages)
    for name in re.findall(r"\buse ([a-z][\w.-]+)", installer.script()):
        assert name in names


class Packed:
    """Unpacks packages that hold what they should but for what `odd` does to it, and keeps what is packed."""

    def __init__(self, installer: Installer, odd: Callable[[Path], None]) -> None:
        self.files = {f"installer-{entry.package}": entry.files for entry in installer.packages}
        self.odd = odd
        self.modes: dict[str, int] = {}

    def run(self, argv: list[str], **_: Any) -> None:
        unpacked = Path(argv[-1])
        for name in self.files[unpacked.name]:
            path = unpacked / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # As libraries come: a name for the loader, and the file with its version.
            path.with_name(f"{path.name}.0.1").write_text(name)
            path.symlink_to(f"{path.name}.0.1")
            if path.name == "sfdisk":
                self.odd(path)

    def squash(self, tar: Path, output: Path, *_: Any, all_root: bool) -> None:
        assert all_root
        with tarfile.open(tar) as archive:
            self.modes = {member.name: member.mode for member in archive if member.isreg()}
        output.write_bytes(b"squashfs")


def place(installer: Installer, odd: Callable[[Path], None], tmp_path: Path, patch: pytest.MonkeyPatch) -> Packed:
    packed = Packed(installer, odd)
    patch.setattr("pytest_osgates.demo.installer.run", packed.run)
    patch.setattr("pytest_osgates.demo.installer.squash", packed.squash)
    (tmp_path / "medium").mkdir()
    packages = dict.fromkeys(installer.package_names, SimpleNamespace(version="1"))
    store = SimpleNamespace(path=lambda package: "x.deb")
    place_installer(
        load_definition(), cast("Any", packages), cast("Any", store), tmp_path, tmp_path / "medium", lambda _: None
    )
    return packed


def test_it_is_put_on_the_medium(installer: Installer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = place(installer, lambda path: None, tmp_path, monkeypatch)
    names = {name.rpartition("/")[2] for entry in installer.packages for name in entry.files}
    assert packed.modes == dict.fromkeys(names | {"cryptroot"}, 0o755)
    where = tmp_path / "medium/osgates"
    assert sorted(path.name for path in where.iterdir()) == ["install", "tools.squashfs"]
    assert (where / "install").read_text() == installer.script()


def leads_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/bin/sh")


@pytest.mark.parametrize("odd", [Path.unlink, leads_out])
def test_a_package_without_its_file_is_named(
    odd: Callable[[Path], None], installer: Installer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HostError, match="fdisk 1 has no usr/sbin/sfdisk"):
        place(installer, odd, tmp_path, monkeypatch)


def test_its_digest_follows_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = installer_digest()
    for name in ("installer.toml", "install.sh"):
        (tmp_path / name).write_bytes(INSTALLER.with_name(name).read_bytes())
    monkeypatch.setattr("pytest_osgates.demo.installer.INSTALLER", tmp_path / "installer.toml")
    assert installer_digest() == before
    (tmp_path / "install.sh").write_text("true\n")
    assert installer_digest() != before


def test_the_profile_knows_what_it_says_and_asks(installer: Installer, recipe: InstallSection) -> None:
    passphrase = load_disk_file().passphrase
    profile = loader.load(loader.find("demo-install"))
    assert (profile.policy("tpm").passphrase, profile.policy("tpm").pcrs) == (passphrase, installer.pcrs)
    assert f"'{passphrase}' | sh /run/live/medium/osgates/install /dev/vda" in recipe.script
    (failed,) = recipe.failed
    for line in ("osgates-demo: failed: x", "osgates-demo: not installed"):
        assert re.search(failed, line)
    for line in re.findall(r'^step "(.*)"$', installer.script(), re.MULTILINE):
        assert not re.search(failed, f"osgates-demo: {line}")
    first = recipe.first_boot
    assert first is not None
    assert [step.send for step in first.dialogue] == [passphrase] * 2
    shown = (
        "Enter passphrase for /dev/disk/by-uuid/x: ",
        "The TPM is to unlock this disk from now on. The passphrase",
    )
    text = installer.unlock_script()
    assert f"printf '{shown[1]} once more: '" in text
    for step, line, sign in zip(
        first.dialogue, (shown[0], f"{shown[1]} once more: "), ("asked", "again"), strict=True
    ):
        assert re.search(step.expect, line)
        assert next(each for each in demo_machine._SIGNS if each.name == sign).regex.search(line)
    assert 'echo "The TPM was not enrolled."' in text
    assert re.search(first.failed[0], "The TPM was not enrolled.")
