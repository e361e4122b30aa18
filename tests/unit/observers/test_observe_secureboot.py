"""What a row of the gate `secureboot` is made of: keys, a guest's words, modules, and what consoles show."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import re
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.checks.secureboot_model import MODULES, Came, SecureBootPolicy, Stage, microsofts
from pytest_osgates.image import siglist
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.model import State
from pytest_osgates.observers import secureboot, secureboot_guest
from pytest_osgates.observers.secureboot import Launch, Place, loaded, signs, told
from pytest_osgates.observers.secureboot_guest import (
    ask,
    database,
    signed_by_another,
    stands_alone,
    try_module,
    unpacked,
    with_another_byte,
    without_signature,
)
from pytest_osgates.vm import variables
from pytest_osgates.vm.errors import GuestFailed, ImageError, MachineDied, UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import find_firmware
from pytest_osgates.vm.spec import Firmware
from tests.unit.observers.fake_shell import FakeShell, shell

POLICY = SecureBootPolicy()
MODULE = b"\x7fELF" + bytes(200) + b"\x00license=GPL\x00depends=\x00name=ts_fsm\x00" + bytes(64)
SHA256_ID = bytes.fromhex("0609608648016503040201")
SIGNED = (
    MODULE
    + (b"s" * 50 + SHA256_ID).ljust(100, b"s")
    + struct.pack(">5B3xI", 0, 0, 2, 0, 0, 100)
    + b"~Module signature appended~\n"
)


def esl(kind: bytes, entry: bytes) -> bytes:
    return kind + struct.pack("<III", 28 + 16 + len(entry), 0, 16 + len(entry)) + bytes(16) + entry


# -- modules


@pytest.fixture(scope="module")
def stranger() -> Signer:
    return Signer.made("osgates, trusted by nobody")


def nobody() -> Signer:
    raise AssertionError("no key is needed")


@pytest.mark.parametrize(("number", "name"), [(1, "sha256"), (2, "sha384"), (3, "sha512")])
def test_a_module_is_signed_by_a_stranger_over_the_same_bytes(
    number: int, name: str, stranger: Signer, tmp_path: Path
) -> None:
    """As openssl reads it: detached, without certificates and attributes, by the digest of the module's own."""
    shipped = SIGNED.replace(SHA256_ID, SHA256_ID[:-1] + bytes([number]))
    made = signed_by_another(shipped, lambda: stranger)
    assert made != shipped
    assert without_signature(made, nobody) == MODULE
    signature = made[len(MODULE) : -40]
    files = {"signature": signature, "module": MODULE, "other": MODULE[:-1] + b"x", "certificate": stranger.der}
    for each, data in files.items():
        (tmp_path / each).write_bytes(data)
    command = ["openssl", "x509", "-inform", "DER", "-in", str(tmp_path / "certificate"), "-out"]
    subprocess.run([*command, str(tmp_path / "pem")], check=True)

    def verified(content: str) -> bool:
        command = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", str(tmp_path / "signature")]
        command += ["-content", str(tmp_path / content), "-certfile", str(tmp_path / "pem"), "-noverify", "-nointern"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    assert verified("module")
    assert not verified("other")
    shown = subprocess.run(
        ["openssl", "cms", "-cmsout", "-print", "-inform", "DER", "-in", str(tmp_path / "signature")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "d.signedData" in shown
    assert name in shown
    assert re.search(r"signedAttrs:\s+<ABSENT>", shown)
    assert re.search(r"certificates:\s+<ABSENT>", shown)
    assert re.search(r"eContent:\s+<ABSENT>", shown)


def test_a_digest_that_is_not_known_is_not_signed_with() -> None:
    with pytest.raises(ImageError, match="not one of SHA-256"):
        signed_by_another(SIGNED.replace(SHA256_ID, SHA256_ID[:-1] + b"\x08"), nobody)


def test_a_signature_is_taken_from_a_module() -> None:
    assert without_signature(SIGNED, nobody) == MODULE
    other = with_another_byte(SIGNED, nobody)
    assert len(other) == len(SIGNED)
    assert [at for at in range(len(other)) if other[at] != SIGNED[at]] == [15]
    assert stands_alone(SIGNED)
    assert not stands_alone(SIGNED.replace(b"depends=", b"depends=x"))
    assert not stands_alone(b"\x7fELF")
    for bare in (MODULE, SIGNED[:-1], b"~Module signature appended~\n"):
        with pytest.raises(ImageError):
            without_signature(bare, nobody)
        with pytest.raises(ImageError):
            with_another_byte(bare, nobody)
        with pytest.raises(ImageError):
            signed_by_another(bare, nobody)


@given(st.binary(min_size=12, max_size=12))
def test_a_signature_of_any_size_is_within_the_module(raw: bytes) -> None:
    spoilt = SIGNED[:-40] + raw + SIGNED[-28:]
    try:
        kept = without_signature(spoilt, nobody)
    except ImageError:
        return
    assert 64 < len(kept) < len(spoilt) - 40


@pytest.mark.parametrize("pack", [bytes, lzma.compress, zstandard.ZstdCompressor().compress])
def test_packed_modules(pack: Any) -> None:
    assert unpacked(pack(SIGNED)) == SIGNED


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x7fEL", b"\xfd7zXZ\x00cut", b"\x28\xb5\x2f\xfdcut", b"\x1f\x8bcut", lzma.compress(bytes(20 << 20))],
)
def test_what_is_no_module(raw: bytes) -> None:
    with pytest.raises(ImageError):
        unpacked(raw)


class ModuleShell(FakeShell):
    """A guest that loads a module if its SHA-256 is among `takes`."""

    directory = "/run/osgates-x"

    def __init__(self, takes: set[str], refusal: str) -> None:
        super().__init__({"/proc/modules": b"ts_bm 1 0 - Live 0x0\n", "find ": b"/lib/modules/6/ts_fsm.ko\n"})
        self.takes = takes
        self.refusal = refusal
        self.there = b""

    def read_file(self, path: str, *, timeout: float = 60.0, max_size: int = 0) -> bytes:
        assert path == "/lib/modules/6/ts_fsm.ko"
        return SIGNED

    def write_file(self, path: str, data: bytes, **_: Any) -> None:
        assert path == "/run/osgates-x/ts_fsm.ko"
        self.there = data

    def run(self, command: str, **rest: Any) -> Any:
        if "insmod" in command:
            taken = hashlib.sha256(self.there).hexdigest() in self.takes
            self.answers["insmod"] = (0, b"osgates-loaded\n", b"") if taken else (1, self.refusal.encode(), b"")
            self.asked.append(command)
            status, out, err = cast("tuple[int, bytes, bytes]", self.answers["insmod"])
            return SimpleNamespace(status=status, text=out.decode(), stdout=out, stderr=err)
        return super().run(command, **rest)


@pytest.mark.parametrize("way", MODULES)
def test_a_module_is_tried_spoilt_and_intact(way: str, stranger: Signer) -> None:
    guest = ModuleShell({hashlib.sha256(SIGNED).hexdigest()}, "insmod: Key was rejected by service")
    seen = try_module(cast("Any", guest), ("ts_bm", "ts_fsm"), way=way, signer=lambda: stranger)
    assert seen is not None
    assert (seen.way, seen.name, seen.intact.loaded, seen.tampered.loaded) == (way, "ts_fsm", True, False)
    assert seen.tampered.said == "insmod: Key was rejected by service"
    assert seen.before != seen.after
    assert sum("rmmod ts_fsm" in command for command in guest.asked) == 1


def test_without_a_module_none_is_tried() -> None:
    empty = shell({"/proc/modules": b"", "find ": b"\n"})
    assert try_module(empty, ("ts_fsm",), way="module-unsigned", signer=nobody) is None


# -- the guest's words


def test_what_the_guest_says_of_secure_boot() -> None:
    der = Signer.made("db key").der
    seen = ask(
        shell(
            {
                "SecureBoot-8be4": b"\x06\0\0\0\x01",
                "SetupMode-8be4": b"\x06\0\0\0\x00",
                "security/lockdown": b"none [integrity] confidentiality\n",
                "sig_enforce": b"Y\n",
                "efivars/db-d719": b"\x27\0\0\0" + esl(siglist.X509.bytes_le, der),
                "efivars/dbx-d719": b"\x27\0\0\0" + esl(siglist.SHA256.bytes_le, bytes(32)),
                "efivars/KEK-8be4": b"\x27\0\0\0cut",
            }
        )
    )
    assert (seen.secure_boot, seen.setup_mode, seen.sig_enforce) == (1, 0, "Y")
    assert seen.lockdown == "none [integrity] confidentiality"
    db, dbx, kek, pk = (seen.database(name) for name in ("db", "dbx", "KEK", "PK"))
    assert db is not None
    assert db.certificates == {hashlib.sha256(der).hexdigest(): "CN=db key"}
    assert dbx is not None
    assert dbx.digests == 1
    assert kek is not None
    assert "breaks off" in kek.error
    assert pk is not None
    assert pk.error == "it is not there"


@given(st.binary(max_size=120))
def test_any_variable_is_read_or_said_to_be_damaged(raw: bytes) -> None:
    seen = database("db", raw)
    assert bool(seen.error) or seen.digests >= 0


def test_a_guest_that_says_nothing() -> None:
    seen = ask(shell({}))
    assert (seen.secure_boot, seen.setup_mode, seen.lockdown, seen.sig_enforce) == (None, None, "", "")
    assert all(entry.error for entry in seen.databases)


# -- consoles

FIRMWARE = (
    'BdsDxe: loading Boot0001 "UEFI QEMU QEMU CD-ROM " from PciRoot(0x0)/Pci(0x4,0x0)/Scsi(0x0,0x0)\r\n'
    'BdsDxe: failed to load Boot0001 "UEFI QEMU QEMU CD-ROM " from PciRoot(0x0)/Pci(0x4,0x0)/Scsi(0x0,\r\n'
    "0x0): Access Denied\r\n"
)


@pytest.mark.parametrize(
    ("text", "wanted", "by"),
    [
        (FIRMWARE, "first", "firmware"),
        (FIRMWARE, "later", "firmware"),
        (FIRMWARE.replace("Access", "Acc\r\ness"), "first", "firmware"),
        ("ERROR\r\nVerification failed: (0x1A) Security Violation\r\n", "later", "shim"),
        ("error: ../../grub-core/kern/efi/sb.c:182:bad shim signature.\r\n", "later", "GRUB"),
        ("error: bad shim signature.\r\n" + FIRMWARE, "later", "GRUB"),
        ("error: bad shim signature.\r\n" + FIRMWARE, "first", "firmware"),
        (FIRMWARE.replace("Access Denied", "Not Found"), "first", ""),
        (FIRMWARE.replace("Access Denied", "Not Found") + "BdsDxe: x\r\nerror: Access Denied", "first", ""),
        ("", "first", ""),
    ],
)
def test_who_refuses(text: str, wanted: str, by: str) -> None:
    found = told((text, ""), signs(POLICY, Stage.KERNEL), wanted)
    assert (found[0].row.by if found else "") == by


HARMLESS = (
    "error: prohibited by secure boot policy.\r\n",
    "error: ../../grub-core/kern/verifiers.c:119:verification requested but nobody cares: /boot/x.pf2.\r\n",
    "error: Secure Boot forbids loading module from /boot/grub/x86_64-efi/all_video.mod.\r\n",
)


@pytest.mark.parametrize("line", HARMLESS)
def test_what_grub_also_says_of_fonts_and_modules(line: str) -> None:
    """Of a kernel only if it misses that next."""
    known = signs(POLICY, Stage.KERNEL)
    assert told((line * 3, ""), known, "later") is None
    found = told((line + "error: you need to load the kernel first.\r\n", ""), known, "later")
    assert found is not None
    assert (found[0].row.by, found[0].refuses) == ("GRUB", "later")


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("error: bad shim signature.\r\n", "another"),
        ("Verification failed: (0x1A) Security Violation\r\n", "later"),
        (FIRMWARE.replace("failed to load", "failed to start"), "later"),
        (FIRMWARE, "first"),
    ],
)
def test_a_loader_is_refused_by_shim_or_the_firmware_alone(text: str, refuses: str) -> None:
    found = told((text, ""), signs(POLICY, Stage.LOADER), "later")
    assert found is not None
    assert found[0].refuses == refuses


@pytest.mark.parametrize(
    ("console", "wanted"),
    [
        ("", ""),
        (
            'BdsDxe: starting Boot0001 "UEFI QEMU DVD" from PciRoot(0x0)/Pci(0x4,0x0)/Scsi(0x0,0x0)\r\nx',
            secureboot._DEFAULT,
        ),
        (
            'BdsDxe: starting Boot0003 "debian" from HD(1,GPT,8A,0x800)/\\EFI\\debian\\shi\r\nmx64.efi\r\nx.efi',
            "/EFI/debian/shimx64.efi",
        ),
        (
            "".join(
                f'BdsDxe: {verb} Boot000{number} "x" from HD(1,GPT)/\\EFI\\{name}.efi\r\n'
                for verb, number, name in (("starting", 1, "a"), ("loading", 2, "no"), ("starting", 2, "b"))
            ),
            "/EFI/b.efi",
        ),
        # Its own shell and menu, and what a network gives, are on no medium.
        (
            "".join(
                f'BdsDxe: starting Boot0001 "x" from {place}\r\n'
                for place in (
                    "PciRoot(0x0)/Pci(0x4)",
                    "Fv(7CB8)/FvFile(462C)",
                    "PciRoot(0x0)/MAC(5254,0x1)/IPv4(0.0)",
                )
            ),
            secureboot._DEFAULT,
        ),
        ('BdsDxe: starting Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9)/FvFile(7C04A583)\r\n', ""),
    ],
)
def test_which_program_the_firmware_started(console: str, wanted: str) -> None:
    assert loaded(console) == wanted


@given(st.text(max_size=200))
def test_any_console_names_a_program_or_none(text: str) -> None:
    assert isinstance(loaded('BdsDxe: starting Boot0001 "x" from ' + text), str)


def test_a_profiles_own_words() -> None:
    found = told(("", "gummi: nope"), signs(SecureBootPolicy(refusals=("nope$",)), Stage.LOADER), "later")
    assert found is not None
    assert (found[0].row.by, found[1]) == ("profile", "nope")


class FakeMachine:
    """A machine whose serial console says `script` (seconds, text), and whose kernel runs from `kernel_at` on."""

    def __init__(
        self,
        script: dict[float, str],
        kernel_at: float | None = None,
        ends: float | None = None,
        reads_until: float = 0.0,
    ) -> None:
        self.script, self.kernel_at, self.ends, self.reads_until = script, kernel_at, ends, reads_until
        self.elapsed = 0.0
        self.resets = 0
        self.serial = self
        self.host = SimpleNamespace(pace=1.0)

    def check_guest(self) -> None:
        if self.ends is not None and self.elapsed >= self.ends:
            raise GuestFailed("the machine was powered off by its guest")

    @property
    def spoken(self) -> int:
        return len(self.tail())

    def tail(self, limit: int = 4096) -> str:
        return "".join(text for at, text in self.script.items() if at <= self.elapsed)

    def wait_for_more(self, timeout: float) -> None:
        self.elapsed += timeout


class FakeLaunch(Launch):
    def __init__(self, machine: FakeMachine) -> None:
        self.machine = cast("Any", machine)
        self.fake = machine
        self._plan = cast("Any", SimpleNamespace(deadline_s=60.0, case="x"))
        self._kernel_at = None
        self._screen = cast("Any", SimpleNamespace(text="", reads=0.0, changed_at=0.0))

    def _look(self) -> None:
        self._screen.reads = min(self.fake.elapsed, self.fake.reads_until)
        if self.fake.kernel_at is not None and self.fake.elapsed >= self.fake.kernel_at:
            self._kernel_at = self.fake.elapsed

    def _say(self) -> None: ...

    def _shoot(self, name: str) -> None: ...

    def _last_look(self) -> None:
        self._look()


def came(wanted: str, *machine: Any, **more: Any) -> tuple[Came, str, float]:
    found = FakeLaunch(FakeMachine(*machine, **more)).come(signs(POLICY, Stage.KERNEL), wanted, 10.0)
    return found.came, "" if found.sign is None else found.sign.row.by, found.at


def test_a_refusal_counts_once_nothing_happens_any_more() -> None:
    # Slow, but on its way: what is read keeps the window open.
    assert came("later", {5.0: "error: bad shim signature.\r\n"}, 40.0, reads_until=39.0)[0] is Came.STARTED
    words = {5.0: "error: bad shim signature.\r\n", 12.0: "x", 20.0: "y", 28.0: "z"}
    assert came("later", words, 37.0)[0] is Came.STARTED
    assert came("later", words)[:2] == (Came.REFUSED, "GRUB")

    def landing(**more: Any) -> secureboot.Landing:
        machine = FakeMachine({5.0: "error: bad shim signature.\r\n"}, **more)
        return FakeLaunch(machine).come(signs(POLICY, Stage.KERNEL), "later", 10.0)

    assert not landing(reads_until=30.0).restless
    assert landing(reads_until=30.0).at < 45
    busy = landing(reads_until=1e9)
    assert (busy.came, busy.restless) == (Came.REFUSED, True)


def test_what_a_boot_comes_to() -> None:
    assert came("first", {5.0: FIRMWARE})[:2] == (Came.REFUSED, "firmware")
    # Another boot option is tried, and has a kernel.
    assert came("first", {5.0: FIRMWARE}, 12.0)[:2] == (Came.STARTED, "firmware")
    assert came("first", {}, 20.0)[:2] == (Came.STARTED, "")
    assert came("first", {1.0: "GNU GRUB\r\n"}) == (Came.SILENT, "", 60.0)
    assert came("first", {}, ends=7.0)[:2] == (Came.ENDED, "")
    # shim says it, and switches the machine off.
    assert came("later", {5.0: "Verification failed: (0x1A) Security Violation"}, ends=6.0)[:2] == (
        Came.REFUSED,
        "shim",
    )
    # The right one comes while the wrong one's time runs.
    both = {5.0: FIRMWARE, 8.0: "error: bad shim signature.\r\n"}
    assert came("later", both)[:2] == (Came.REFUSED, "GRUB")


def test_a_machine_of_ours_that_dies_is_no_refusal() -> None:
    class Dying(FakeMachine):
        def check_guest(self) -> None:
            raise MachineDied("QEMU was killed")

    with pytest.raises(MachineDied):
        FakeLaunch(Dying({0.0: FIRMWARE})).come(signs(POLICY, Stage.SHIM), "first", 10.0)


# -- keys


def place(policy: SecureBootPolicy, directory: Path) -> Place:
    return Place(
        policy=policy,
        state=State.LIVE,
        medium=cast("Any", SimpleNamespace(path=directory / "x.iso", iso=True)),
        machine=cast("Any", SimpleNamespace(memory_mib=512, cpus=1, cpu_model=None, tpm=True)),
        boot=cast("Any", None),
        login=None,
        host=cast("Any", SimpleNamespace(pace=1.0)),
        progress=cast("Any", None),
        records=lambda role: directory / role,
        directory=directory,
        guest_deadline_s=60.0,
    )


def test_the_profiles_keys_are_in_the_firmware(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    made = Signer.made("own")
    (tmp_path / "own.der").write_bytes(made.der)
    (tmp_path / "own.pem").write_bytes(made.certificate.public_bytes(Encoding.PEM))
    policy = SecureBootPolicy(keys="own", pk="own.pem", kek=("own.der",), db=("own.pem",), mok=("own.der",))
    own = place(policy, tmp_path)
    own.variables(tmp_path / "vars.fd", tmp_path)
    found = {entry.name: entry for entry in own.enrolled(tmp_path / "vars.fd", tmp_path)}
    fingerprint = hashlib.sha256(made.der).hexdigest()
    assert {name: set(entry.certificates) for name, entry in found.items()} == {
        name: {fingerprint} for name in ("PK", "KEK", "db", "MokList")
    }
    (tmp_path / "own.der").write_bytes(b"no certificate")
    with pytest.raises(UsageError, match="is no certificate"):
        _ = place(policy, tmp_path).keys
    (tmp_path / "own.der").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        _ = place(policy, tmp_path).keys


def test_a_machine_keeps_its_boot_entries_and_gets_other_keys(tmp_path: Path, stranger: Signer) -> None:
    home = Home.at(tmp_path / "machine")
    home.directory.mkdir()
    files = find_firmware(Firmware.UEFI_SECUREBOOT)
    assert files is not None
    (tmp_path / "stranger.der").write_bytes(stranger.der)
    key = ["05c0de01-0000-4000-8000-00000000000f", str(tmp_path / "stranger.der")]
    changes = ["--append-boot-filepath", "EFI/own/loader.efi", "--add-db", *key, "--add-mok", *key]
    changes += ["--set-false", "SecureBootEnable"]
    command = [*variables.program(), "-i", str(files.variables.path), *changes, "-o", str(home.variables)]
    subprocess.run(command, check=True, capture_output=True)
    made = dataclasses.replace(place(POLICY, tmp_path), home=home)
    assert made.entries
    made.variables(tmp_path / "vars.fd", tmp_path)
    command = [*variables.program(), "-i", str(tmp_path / "vars.fd"), "--output-json", str(tmp_path / "json")]
    subprocess.run(command, check=True, capture_output=True)
    told = json.loads((tmp_path / "json").read_bytes())["variables"]
    found = {each["name"]: bytes.fromhex(each["data"]) for each in told}
    assert "MokList" not in found
    assert found["SecureBootEnable"] == b"\x01"
    assert "loader.efi".encode("utf-16-le") in b"".join(each for name, each in found.items() if name[:4] == "Boot")
    assert set(database("db", found["db"]).certificates) <= microsofts("db")
    assert database("PK", found["PK"]).certificates


def test_what_a_profile_expects_of_a_machine(tmp_path: Path) -> None:
    der = Signer.made("project").der
    (tmp_path / "project.der").write_bytes(der)
    policy = SecureBootPolicy(keys="machine", microsoft=True, mok=("project.der",))
    here = place(policy, tmp_path)
    expected = {each.name: each.certificates for each in here.expected()}
    assert expected == {"PK": {}, "KEK": {}, "db": {}, "MokList": {hashlib.sha256(der).hexdigest(): "CN=project"}}
    vendor = {each.name: each for each in here.vendor(tmp_path)}
    assert vendor["PK"].certificates
    assert set(vendor["db"].certificates) <= microsofts("db")
    assert place(POLICY, tmp_path).vendor(tmp_path) == ()


def test_microsofts_keys_stay_where_they_are_wanted(tmp_path: Path) -> None:
    plain = place(POLICY, tmp_path)
    plain.variables(tmp_path / "vars.fd", tmp_path)
    (db,) = (entry for entry in plain.enrolled(tmp_path / "vars.fd", tmp_path) if entry.name == "db")
    assert db.microsoft


def test_a_machines_keys_are_beside_its_disk(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="beside an installed disk"):
        place(SecureBootPolicy(keys="machine", microsoft=True), tmp_path).variables(tmp_path / "x", tmp_path)


def test_an_iso_is_booted_from_its_overlay(tmp_path: Path) -> None:
    made = place(POLICY, tmp_path).spec("x", tmp_path, tmp_path / "vars.fd", tmp_path / "copy.qcow2", None)
    assert (made.cdrom, made.cdrom_format, made.variables) == (tmp_path / "copy.qcow2", "qcow2", tmp_path / "vars.fd")
    assert made.channel is None
    asked = place(POLICY, tmp_path).spec("x", tmp_path, tmp_path / "vars.fd", None, "0123456789abcdef")
    assert (asked.cdrom, asked.cdrom_format) == (tmp_path / "x.iso", "raw")
    assert asked.smbios_strings


def test_modules_of_both_ways_are_known() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", secureboot._ANOTHER)
    assert set(secureboot_guest._WAYS) == set(MODULES)
