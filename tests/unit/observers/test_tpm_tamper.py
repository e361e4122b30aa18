"""Tampers made on a small machine that is off, with the real tools; the original stays what it is."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.checks.tpm_model import Tamper, tampers
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.image.disk.partitions import read_table
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.observers import tpm_tamper
from pytest_osgates.observers.tpm import passphrase, pin
from pytest_osgates.observers.tpm_files import change_files
from pytest_osgates.observers.tpm_slots import slots
from pytest_osgates.observers.tpm_talk import PROBE_TEXT
from pytest_osgates.observers.tpm_tamper import Workshop, with_option
from pytest_osgates.vm import host, tpm, variables
from pytest_osgates.vm.errors import HostError, ImageError, MissingTool, UsageError
from pytest_osgates.vm.home import TPM_STATE, Home, kept
from pytest_osgates.vm.spec import Firmware
from tests.disk_builders import ESP, fat, gpt, luks2, metadata, newc, slot
from tests.pe_builders import program, signed
from tests.unit.tpm_samples import PASSPHRASE, PIN_POLICY, PIN_TEXT, TPM_POLICY

MIB = 1 << 20
MENU = b"set timeout=1\r\nmenuentry x {\n\tlinux /vmlinuz root=/dev/sda1 quiet\n\tinitrd /initrd.img\n}\nlinuxfoo x\n"
ENTRY = b"title x\nlinux /vmlinuz\noptions root=/dev/sda1 quiet\n"
FILES = {"boot/grub/grub.cfg": MENU, "loader/entries/x.conf": ENTRY, "initrd.img": newc({"init": b"#!/bin/sh\n"})}
TOKEN = {
    "type": "systemd-tpm2",
    "keyslots": ["1"],
    "tpm2-blob": "AAAA",
    "tpm2-pcrs": [7, 9],
    "tpm2-pcr-bank": "sha256",
    "tpm2-primary-alg": "ecc",
    "tpm2-policy-hash": "11" * 32,
    "tpm2-pin": False,
}


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """An ESP and a LUKS2 volume with a TPM's slot; a firmware's variables; a TPM."""
    home = Home.at(tmp_path_factory.mktemp("machine"))
    esp = fat(home.directory / "esp", FILES).read_bytes()
    volume = luks2(metadata(keyslots={"0": slot(), "1": slot(1)}, tokens={"0": TOKEN}, digests=digests()), bytes(MIB))
    start = MIB + len(esp)
    disk = gpt(
        (start + 2 * MIB + len(volume)) // 512,
        (ESP, 2048, len(esp) // 512, "esp"),
        ("ca7d7ccb-63ed-4c53-861c-1742536059cc", start // 512, -(-len(volume) // 512), "root"),
    )
    disk[MIB:start] = esp
    disk[start : start + len(volume)] = volume
    raw = home.directory / "raw"
    raw.write_bytes(disk)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(home.disk)], check=True)
    files = host.find_firmware(Firmware.UEFI_SECUREBOOT)
    assert files is not None
    shutil.copyfile(files.variables.path, home.variables)
    home.tpm.mkdir()
    tpm.clear(home.tpm, home.directory / "log")
    return home


def digests() -> dict[str, object]:
    made = metadata()["digests"]["0"]
    return {"0": {**made, "keyslots": ["0", "1"]}}


@pytest.fixture
def workshop(machine: Home, tmp_path: Path) -> Workshop:
    home = machine.copy(tmp_path / "copy")
    return Workshop(machine, home, Firmware.UEFI_SECUREBOOT, "osgates.tampered=1", tmp_path, tmp_path / "log")


def file_of(overlay: Path, name: str, tmp_path: Path) -> bytes:
    """A file of the ESP in an overlay."""
    raw = tmp_path / "flat"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(overlay), str(raw)], check=True)
    with open_disk(raw) as disk:
        part = read_table(disk).partitions[0]
        (tmp_path / "flat-esp").write_bytes(disk.read_at(part.start, part.size))
    subprocess.run(["mcopy", "-n", "-o", "-i", str(tmp_path / "flat-esp"), f"::/{name}", str(raw)], check=True)
    return raw.read_bytes()


# Each of the others starts virt-fw-vars, which takes a second or two: see below.
@pytest.mark.parametrize("name", ["fresh", "absent", "cleared", "moved", "command-line-edited", "initrd-replaced"])
def test_each_tamper_changes_what_it_says_and_can_be_undone(name: str, workshop: Workshop, machine: Home) -> None:
    before = {path: path.read_bytes() for path in machine.directory.rglob("*") if path.is_file()}
    tamper = tampers()[name]
    if name == "moved":
        # Its variables have been used: they are no longer those that a new machine begins with.
        workshop.home.variables.write_bytes(b"used")
    changes = workshop.apply(tamper)
    assert {change.what for change in changes if change.before != change.after} == set(tamper.changes)
    assert len(changes) == len(tamper.changes)
    workshop.undo(tamper)
    assert workshop.home.digests() == machine.digests()
    assert {path: path.read_bytes() for path in machine.directory.rglob("*") if path.is_file()} == before
    check = ["qemu-img", "compare", str(machine.disk), str(workshop.home.disk)]
    assert subprocess.run(check, check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_the_command_line_is_edited_in_each_menu(workshop: Workshop, tmp_path: Path) -> None:
    workshop.apply(tampers()["command-line-edited"])
    read = [file_of(workshop.home.disk, name, tmp_path) for name in FILES]
    assert read[0] == MENU.replace(b"quiet\n", b"quiet osgates.tampered=1\n")
    # The kernel of an entry is a file: with a parameter behind its name there would be none.
    assert read[1] == ENTRY.replace(b"quiet\n", b"quiet osgates.tampered=1\n")
    assert read[2] == FILES["initrd.img"]
    workshop.undo(tampers()["command-line-edited"])
    assert file_of(workshop.home.disk, "boot/grub/grub.cfg", tmp_path) == MENU


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (b"linux /k\noptions a\noptions b\n", b"linux /k\noptions a\noptions b x=1\n"),
        (b"linux /k\r\noptions a \r\n", b"linux /k\r\noptions a x=1 \r\n"),
        (b"linux /k\noptions\n", b"linux /k\noptions x=1\n"),
        (b"title t\nlinux /k", b"title t\nlinux /k\noptions x=1\n"),
        (b"linux /k\n", b"linux /k\noptions x=1\n"),
        # A unified kernel image.
        (b"title t\nefi /EFI/Linux/a.efi\noptions a\n", b"title t\nefi /EFI/Linux/a.efi\noptions a\n"),
        (b"", b""),
    ],
)
def test_an_entry_gets_one_more_option(entry: bytes, wanted: bytes) -> None:
    assert with_option(entry, b"x=1") == wanted


@given(st.lists(st.sampled_from([b"linux /k", b"options a", b"options", b"# x", b"", b"title t\r"]), max_size=8))
def test_an_entry_keeps_all_that_it_had(lines: list[bytes]) -> None:
    entry = b"\n".join(lines)
    made = with_option(entry, b"x=1")
    assert made.count(b"x=1") == (b"linux /k" in lines)
    assert made.replace(b" x=1", b"").replace(b"options\n", b"options\n").startswith(entry.rstrip(b"\n"))


@pytest.mark.parametrize("name", ["init-shell", "debug-shell"])
def test_a_way_to_a_shell_is_added_to_the_command_line(name: str, workshop: Workshop, tmp_path: Path) -> None:
    workshop.apply(tampers()[name])
    added = tampers()[name].parameter.encode()
    assert file_of(workshop.home.disk, "boot/grub/grub.cfg", tmp_path) == MENU.replace(
        b"quiet\n", b"quiet " + added + b"\n"
    )


def test_files_on_ext4_are_changed_as_well(tmp_path: Path) -> None:
    """As on a /boot of its own; names that debugfs would not take are left alone."""
    tree = tmp_path / "tree"
    (tree / "grub").mkdir(parents=True)
    (tree / "grub/grub.cfg").write_bytes(MENU)
    (tree / 'grub/x";y grub.cfg').write_bytes(MENU)
    (tree / "initrd.img-6.12").write_bytes(FILES["initrd.img"])
    boot = tmp_path / "boot"
    command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(boot), "8M"]
    subprocess.run(command, check=True)
    raw = gpt(8 * 2048 + 4096, ("0fc63daf-8483-4772-8e79-3d69d8477de4", 2048, 8 * 2048, "boot"))
    raw[MIB : 9 * MIB] = boot.read_bytes()
    (tmp_path / "disk.img").write_bytes(raw)
    overlay = tmp_path / "overlay.qcow2"
    host.create_overlay(tmp_path / "disk.img", overlay)
    (tmp_path / "work").mkdir()
    changed = change_files(
        tmp_path / "disk.img",
        overlay,
        [
            (
                re.compile(r"(?:^|/)(?:grub\.cfg|initrd.*)$"),
                lambda old: old.replace(b"quiet", b"quiet more") + b"!" * 100_000,
            )
        ],
        tmp_path / "work",
    )
    assert set(changed) == {"/grub/grub.cfg", "/initrd.img-6.12"}
    flat = tmp_path / "flat"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(overlay), str(flat)], check=True)
    boot.write_bytes(flat.read_bytes()[MIB : 9 * MIB])
    subprocess.run(["/usr/sbin/e2fsck", "-f", "-n", str(boot)], check=True, stdout=subprocess.DEVNULL)
    shown = subprocess.run(
        ["/usr/sbin/debugfs", "-R", "cat /grub/grub.cfg", str(boot)], check=True, capture_output=True
    )
    assert b"root=/dev/sda1 quiet more\n" in shown.stdout
    assert shown.stdout.endswith(b"!" * 100)
    assert (tmp_path / "disk.img").read_bytes() == bytes(raw)


def test_the_initrd_gets_one_more_file(workshop: Workshop, tmp_path: Path) -> None:
    workshop.apply(tampers()["initrd-replaced"])
    read = file_of(workshop.home.disk, "initrd.img", tmp_path)
    assert read.startswith(FILES["initrd.img"])
    assert b"etc/osgates-tampered" in read


def test_secure_boot_and_keys(workshop: Workshop) -> None:
    """As a firmware reads them: three tampers on top of each other."""
    changes = [
        change
        for name in ("db-key-added", "secure-boot-off", "keys-replaced")
        for change in workshop.apply(tampers()[name])
    ]
    assert [change.what for change in changes] == ["variables"] * 3
    assert len({digest for change in changes for digest in (change.before, change.after)}) == 4
    command = [*variables.program(), "-i", str(workshop.home.variables), "-p", "-v"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def entry(name: str) -> str:
        return shown.partition(f"name={name} ")[2].partition("name=")[0]

    assert "bool: off" in entry("SecureBootEnable")
    for name in ("PK", "KEK"):
        assert re.findall(r"subject CN=(.*)", entry(name)) == ["osgates tamper"]
    db = re.findall(r"subject CN=(.*)", entry("db"))
    assert db.count("osgates tamper") == 2
    assert "Microsoft Corporation UEFI CA 2011" in db
    workshop.undo(tampers()["keys-replaced"])
    assert workshop.home.digests() == workshop.original.digests()


def test_a_disk_without_a_menu(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm_tamper, "_GRUBS", re.compile("nothing"))
    monkeypatch.setattr(tpm_tamper, "_ENTRIES", re.compile("nothing"))
    with pytest.raises(ImageError, match="has no boot menu"):
        workshop.apply(tampers()["command-line-edited"])


def test_a_way_that_nobody_knows(workshop: Workshop) -> None:
    odd: Tamper = tampers()["fresh"].model_copy(update={"how": "magic"})
    with pytest.raises(UsageError, match="no way is called 'magic'"):
        workshop.apply(odd)


def test_a_cleared_tpm_has_another_seed_each_time(machine: Home, tmp_path: Path) -> None:
    home = machine.copy(tmp_path / "copy")
    seen = {home.digests()["tpm"]}
    for _ in range(2):
        tpm.clear(home.tpm, tmp_path / "log")
        seen.add(home.digests()["tpm"])
    assert len(seen) == 3


def test_a_tpm_whose_state_is_damaged_is_not_cleared(machine: Home, tmp_path: Path) -> None:
    home = machine.copy(tmp_path / "copy")
    home.tpm_state.write_bytes(b"\xff" * 100)
    with pytest.raises(HostError):
        tpm.clear(home.tpm, tmp_path / "log")


def test_what_lies_beside_a_disk(machine: Home, tmp_path: Path) -> None:
    assert Home.beside(machine.disk) == machine
    lonely = tmp_path / "disk.qcow2"
    lonely.write_bytes(b"")
    with pytest.raises(UsageError, match=r"variables\.fd is not there"):
        Home.beside(lonely)
    (tmp_path / "variables.fd").write_bytes(b"")
    with pytest.raises(UsageError, match=TPM_STATE):
        Home.beside(lonely)


def test_an_original_that_changes_meanwhile(machine: Home, tmp_path: Path) -> None:
    home = machine.copy(tmp_path / "copy")
    with pytest.raises(UsageError, match="changed while copies of them were in use"), kept(home):
        home.variables.write_bytes(b"x")


def test_slots_are_read_from_the_header(machine: Home) -> None:
    (found,) = slots(machine.disk).slots
    assert (found.subject, found.pcrs, found.bank) == ("partition 2, token 0", (7, 9), "sha256")


def test_where_the_passphrase_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TPM_POLICY.model_copy(update={"passphrase": "", "wrong": ("factory",)})
    monkeypatch.delenv("OSGATES_PASSPHRASE", raising=False)
    with pytest.raises(UsageError, match="OSGATES_PASSPHRASE is not set"):
        passphrase(policy)
    monkeypatch.setenv("OSGATES_PASSPHRASE", "secret")
    assert passphrase(policy) == "secret"
    for bad in ("factory", PROBE_TEXT, "a\nb"):
        monkeypatch.setenv("OSGATES_PASSPHRASE", bad)
        with pytest.raises(UsageError, match="typed as a wrong one"):
            passphrase(policy)


def test_where_the_pin_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pin(TPM_POLICY) == ""
    assert pin(PIN_POLICY) == PIN_TEXT
    policy = PIN_POLICY.model_copy(update={"pin": "", "pin_env": "OSGATES_PIN"})
    monkeypatch.delenv("OSGATES_PIN", raising=False)
    with pytest.raises(UsageError, match="OSGATES_PIN is not set"):
        pin(policy)
    monkeypatch.setenv("OSGATES_PIN", "1234")
    assert pin(policy) == "1234"
    for bad in ("000000", PASSPHRASE, PROBE_TEXT, "1\n2"):
        monkeypatch.setenv("OSGATES_PIN", bad)
        with pytest.raises(UsageError, match="is a passphrase, or typed as a wrong one"):
            pin(policy)


def test_a_tpm_is_locked_out_for_good(workshop: Workshop, machine: Home) -> None:
    home = workshop.home
    assert not tpm.in_lockout(home.tpm, workshop.log)
    (change,) = workshop.apply(tampers()["pin-lockout"])
    assert (change.what, change.before != change.after) == ("tpm", True)
    assert tpm.in_lockout(home.tpm, workshop.log)
    workshop.undo(tampers()["pin-lockout"])
    assert home.digests() == machine.digests()
    assert not tpm.in_lockout(home.tpm, workshop.log)


def test_a_lockout_that_the_tpm_denies(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm, "_LOCKOUT_PARAMETERS", tpm._CLEAR)
    with pytest.raises(HostError):
        workshop.apply(tampers()["pin-lockout"])
    monkeypatch.undo()
    monkeypatch.setattr(tpm, "in_lockout", lambda *_: False)
    with pytest.raises(HostError, match="is in none once it is started again"):
        workshop.apply(tampers()["pin-lockout"])


def test_wrong_pins_are_typed(workshop: Workshop, machine: Home) -> None:
    (change,) = workshop.apply(tampers()["wrong-pin"])
    assert change.what == "pin"
    assert change.before != change.after
    assert workshop.home.digests() == machine.digests()


def test_without_virt_firmware(monkeypatch: pytest.MonkeyPatch, workshop: Workshop) -> None:
    monkeypatch.setattr(variables, "_MODULE", "osgates_no_such.module")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingTool, match="virt-fw-vars"):
        workshop.apply(tampers()["secure-boot-off"])


def test_digests_of_several_files_are_one() -> None:
    assert tpm_tamper._digest({"/a": ("1", "2")}, 1) == "/a 2"
    both = tpm_tamper._digest({"/b": ("1", "2"), "/a": ("3", "4")}, 0)
    assert both == "2 files " + hashlib.sha256(b"/a 3\n/b 1\n").hexdigest()


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.made("shipped")


@pytest.fixture
def programs(machine: Home, signer: Signer, tmp_path: Path) -> Workshop:
    """A machine whose ESP has a signed loader and kernel, and others to come in their place."""
    files = {
        "EFI/BOOT/grubx64.efi": signed({".text": b"grub"}, signer),
        "vmlinuz": signed({".text": b"kernel"}, signer),
        "vmlinuz.txt": b"no program",
        "initrd.img": b"initrd",
    }
    home = Home.at(tmp_path / "machine")
    home.directory.mkdir()
    esp = fat(tmp_path / "esp", files).read_bytes()
    disk = gpt((2 * MIB + len(esp)) // 512, (ESP, 2048, len(esp) // 512, "esp"))
    disk[MIB : MIB + len(esp)] = esp
    (tmp_path / "raw").write_bytes(disk)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(tmp_path / "raw"), str(home.disk)], check=True)
    machine.put_variables(home)
    machine.put_tpm(home)
    others = {name: tmp_path / name for name in ("other_kernel", "other_initrd", "other_loader")}
    others["other_kernel"].write_bytes(signed({".text": b"another kernel" * 2000}, signer))
    others["other_initrd"].write_bytes(b"another initrd")
    others["other_loader"].write_bytes(signed({".text": b"another grub" * 900}, signer))
    copy = home.copy(tmp_path / "copy")
    return Workshop(home, copy, Firmware.UEFI_SECUREBOOT, "x", tmp_path, tmp_path / "log", others=others)


def test_other_signed_programs_come_in_the_place_of_the_machines(programs: Workshop, tmp_path: Path) -> None:
    (change,) = programs.apply(tampers()["kernel-replaced"])
    assert (change.what, change.before.partition(" ")[0]) == ("disk", "2")
    others = programs.others
    assert file_of(programs.home.disk, "vmlinuz", tmp_path) == others["other_kernel"].read_bytes()
    assert file_of(programs.home.disk, "vmlinuz.txt", tmp_path) == b"no program"
    assert file_of(programs.home.disk, "initrd.img", tmp_path) == b"another initrd"
    programs.undo(tampers()["kernel-replaced"])
    (loader,) = programs.apply(tampers()["boot-loader-replaced"])
    assert loader.before.startswith("/EFI/BOOT/grubx64.efi ")
    assert file_of(programs.home.disk, "EFI/BOOT/grubx64.efi", tmp_path) == others["other_loader"].read_bytes()


def test_a_program_that_proves_nothing_is_refused(programs: Workshop, signer: Signer) -> None:
    path = programs.others["other_loader"]
    tamper = tampers()["boot-loader-replaced"]
    path.write_bytes(program({".text": b"x"}))
    with pytest.raises(UsageError, match="is not signed: Secure Boot would refuse it"):
        programs.apply(tamper)
    path.write_bytes(b"no program")
    with pytest.raises(UsageError, match="no PE file"):
        programs.apply(tamper)
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        programs.apply(tamper)
    path.write_bytes(signed({".text": b"grub"}, signer))
    with pytest.raises(ImageError, match="is the same program"):
        programs.apply(tamper)


def test_an_option_rom_is_the_machines(workshop: Workshop) -> None:
    (change,) = workshop.apply(tampers()["option-rom-added"])
    assert change.what == "machine"
    assert change.before != change.after
