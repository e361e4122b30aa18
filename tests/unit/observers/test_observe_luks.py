"""Observing an installed disk: a small real one, made by cryptsetup, mkfs.fat and qemu-img."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from pathlib import Path

import pytest

from pytest_osgates.checks.luks import GATE
from pytest_osgates.checks.luks_model import LuksObservation, LuksPolicy, PlainPartition
from pytest_osgates.image.diff.ranges import BytesContent
from pytest_osgates.image.disk.luks import read_luks
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, Verdict
from pytest_osgates.observers import luks
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import ESP, fat, gpt, newc

MIB = 1 << 20
LUKS_TYPE = "ca7d7ccb-63ed-4c53-861c-1742536059cc"
POLICY = LuksPolicy(
    memory_kib=64, accept_plaintext=(PlainPartition(type="esp", holds="vfat", reason="UEFI reads it"),)
)
ARGON = ("--pbkdf", "argon2id", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1")
CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


def cryptsetup(*arguments: str) -> None:
    subprocess.run(["/usr/sbin/cryptsetup", "--batch-mode", *arguments], check=True)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """LUKS2 with a passphrase and a recovery key; its payload is random, as ciphertext is."""
    top = tmp_path_factory.mktemp("volume")
    (top / "key").write_bytes(b"the passphrase")
    (top / "recovery").write_bytes(b"the recovery key")
    (top / "token").write_text(json.dumps({"type": "systemd-recovery", "keyslots": ["1"]}))
    image = top / "image"
    image.write_bytes(bytes(18 * MIB))
    key = ("--key-file", str(top / "key"))
    cryptsetup("luksFormat", "--type", "luks2", "--key-size", "512", *key, *ARGON, str(image))
    cryptsetup("luksAddKey", *key, *CHEAP, str(image), str(top / "recovery"))
    cryptsetup("token", "import", "--json-file", str(top / "token"), str(image))
    raw = bytearray(image.read_bytes())
    raw[16 * MIB :] = hashlib.shake_128(b"payload").digest(2 * MIB)
    return bytes(raw)


def disk(path: Path, volume: bytes, files: dict[str, bytes]) -> Path:
    """An ESP with `files`, and the volume."""
    esp = fat(path.with_suffix(".esp"), files).read_bytes()
    first, second = MIB // 512, (MIB + len(esp)) // 512
    table = gpt(
        second + len(volume) // 512 + 64,
        (ESP, first, len(esp) // 512, "esp"),
        (LUKS_TYPE, second, len(volume) // 512, "root"),
    )
    table[first * 512 : first * 512 + len(esp)] = esp
    table[second * 512 : second * 512 + len(volume)] = volume
    path.write_bytes(table)
    return path


def observe(path: Path, refused: tuple[str, ...] = ("",)) -> LuksObservation:
    return luks.observe(path, "d" * 64, luks.Wanted(refused), lambda stage, fraction: None)


INITRD = newc({"init": b"#!/bin/sh\n"})


def test_a_sound_disk_raw_and_qcow2(volume: bytes, tmp_path: Path) -> None:
    raw = disk(tmp_path / "disk.img", volume, {"initrd": INITRD})
    qcow2 = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", str(raw), str(qcow2)], check=True)
    one, other = observe(raw), observe(qcow2)
    assert judge(GATE, one, POLICY).verdict is Verdict.PASS
    assert (one.disk.format, other.disk.format) == ("raw", "qcow2")
    assert (one.partitions, one.gaps) == (other.partitions, other.gaps)
    assert one.tool.startswith("cryptsetup 2")
    made = one.partitions[1].volume
    assert made is not None
    assert [(guess.keyslot, guess.opened) for guess in made.guesses] == [(0, False), (1, False)]
    again = LuksObservation.model_validate_json(one.model_dump_json())
    assert again == one


def test_what_opens_it_is_found(volume: bytes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(volume)
    for name, content in (("key", b"the passphrase"), ("blank", b""), ("word", b"factory")):
        (tmp_path / name).write_bytes(content)
    for name in ("blank", "word"):
        cryptsetup("luksAddKey", "--key-file", str(tmp_path / "key"), *ARGON, str(image), str(tmp_path / name))
    seen = observe(disk(tmp_path / "disk", image.read_bytes(), {"initrd": INITRD}), ("", "factory"))
    made = seen.partitions[1].volume
    assert made is not None
    opened = {(guess.keyslot, guess.passphrase) for guess in made.guesses if guess.opened}
    assert opened == {(2, ""), (3, "factory")}
    assert all(guess.opened is not None for guess in made.guesses)
    found = judge(GATE, seen, POLICY.model_copy(update={"refused": ("", "factory")}))
    assert [finding.key for finding in found.findings if finding.severity is Severity.VIOLATION] == [
        ("guessable", "partition 2, keyslot 2"),
        ("guessable", "partition 2, keyslot 3"),
    ]


def unbound(raw: bytes, slot: str) -> bytes:
    """The digest of a keyslot taken away from the segment; its key stays the volume's."""
    made = bytearray(raw)
    (size,) = struct.unpack_from(">Q", made, 8)
    for at in (0, size):
        data = json.loads(bytes(made[at + 4096 : at + size]).split(b"\0")[0])
        data["digests"]["0"]["keyslots"].remove(slot)
        data["digests"]["1"] = {**data["digests"]["0"], "keyslots": [slot], "segments": []}
        text = json.dumps(data, separators=(",", ":")).encode().ljust(size - 4096, b"\0")
        made[at + 4096 : at + size] = text
        made[at + 448 : at + 512] = bytes(64)
        made[at + 448 : at + 480] = hashlib.sha256(made[at : at + 4096] + text).digest()
    return bytes(made)


def test_a_slot_of_no_segment_is_tried_as_well(volume: bytes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(volume)
    (tmp_path / "key").write_bytes(b"the passphrase")
    (tmp_path / "blank").write_bytes(b"")
    cryptsetup("luksAddKey", "--key-file", str(tmp_path / "key"), *ARGON, str(image), str(tmp_path / "blank"))
    seen = observe(disk(tmp_path / "disk", unbound(image.read_bytes(), "2"), {"initrd": INITRD}))
    made = seen.partitions[1].volume
    assert made is not None
    assert [(guess.keyslot, guess.opened) for guess in made.guesses] == [(0, False), (1, False), (2, True)]
    decisive = (Severity.VIOLATION, Severity.UNPROVEN)
    assert {finding.key for finding in judge(GATE, seen, POLICY).findings if finding.severity in decisive} == {
        ("unbound-slot", "partition 2, keyslot 2"),
        ("guessable", "partition 2, keyslot 2"),
    }


def test_without_cryptsetup_nothing_is_proven(volume: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = disk(tmp_path / "disk", volume, {"initrd": INITRD})
    monkeypatch.setattr(luks, "TOOL", "osgates-no-such-program")
    seen = observe(path)
    found = judge(GATE, seen, POLICY)
    assert seen.tool == ""
    assert found.verdict is Verdict.NOT_PROVEN
    assert {finding.rule for finding in found.findings if finding.severity is Severity.UNPROVEN} == {"untried"}


def test_plain_text_in_the_volume_and_a_stale_header(volume: bytes, tmp_path: Path) -> None:
    raw = bytearray(volume)
    raw[17 * MIB : 17 * MIB + 4096] = b"a page of a letter to my lawyer\n" * 128
    raw[16384 + 5000] ^= 1
    seen = observe(disk(tmp_path / "disk", bytes(raw), {"initrd": INITRD}))
    found = judge(GATE, seen, POLICY)
    assert {finding.rule for finding in found.findings if finding.severity is Severity.VIOLATION} == {
        "payload",
        "header-copies",
    }


def test_an_ext4_is_looked_into_where_the_profile_says_that_it_boots(volume: bytes, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "initrd").write_bytes(newc({"cryptroot/keyfiles/a.key": b"words"}))
    image = tmp_path / "boot.img"
    command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "tree"), str(image), "4M"]
    subprocess.run(command, check=True, capture_output=True)
    # In place of the ESP, under its type.
    path = disk(tmp_path / "disk", volume, {})
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(image.read_bytes())
    entry = PlainPartition(type="esp", holds="ext4", reason="kernels")
    for boots, verdict in ((True, Verdict.FAIL), (False, Verdict.NOT_PROVEN)):
        accepted = (entry.model_copy(update={"boots": boots}),)
        policy = POLICY.model_copy(update={"accept_plaintext": accepted})
        seen = luks.observe(path, "d" * 64, luks.Wanted.of(policy), lambda stage, fraction: None)
        assert (seen.partitions[0].boot is not None) == boots
        found = judge(GATE, seen, policy)
        assert found.verdict is verdict
        rules = {finding.rule for finding in found.findings}
        assert ("key-in-initrd" in rules) == boots
        assert ("initrd-missing" in rules) != boots


def test_microcode_alone_is_no_initrd(volume: bytes, tmp_path: Path) -> None:
    early = newc({"kernel/x86/microcode/GenuineIntel.bin": hashlib.shake_128(b"microcode").digest(6400)})
    found = judge(GATE, observe(disk(tmp_path / "disk", volume, {"initrd": early})), POLICY)
    assert [finding.key for finding in found.findings if finding.severity is Severity.UNPROVEN] == [
        ("initrd-missing", "initrd")
    ]
    (tmp_path / "disk.esp").unlink()
    found = judge(GATE, observe(disk(tmp_path / "disk", volume, {"initrd": early + INITRD})), POLICY)
    assert found.verdict is Verdict.PASS


@pytest.mark.parametrize("boots", [True, False])
def test_a_root_file_system_is_not_accepted_as_what_boots(boots: bool, volume: bytes, tmp_path: Path) -> None:
    """Whether the profile has it looked into or not."""
    tree = {"initrd": INITRD, "etc/shadow": b"root:x:::::::\n", "home/me/letter.txt": b"dear lawyer\n"}
    for name, content in tree.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    image = tmp_path / "root.img"
    command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "tree"), str(image), "4M"]
    subprocess.run(command, check=True, capture_output=True)
    path = disk(tmp_path / "disk", volume, {})
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(image.read_bytes())
    accepted = (PlainPartition(type="esp", holds="ext4", reason="/boot", boots=boots),)
    policy = POLICY.model_copy(update={"accept_plaintext": accepted, "initrd": "plain" if boots else "encrypted"})
    seen = luks.observe(path, "d" * 64, luks.Wanted.of(policy), lambda stage, fraction: None)
    found = judge(GATE, seen, policy)
    assert {finding.key for finding in found.findings if finding.severity is Severity.VIOLATION} == {
        ("plain-system", "partition 1")
    }


def test_a_broken_esp_and_a_broken_header_are_not_proven(volume: bytes, tmp_path: Path) -> None:
    raw = bytearray(volume)
    raw[5000] ^= 1
    raw[16384 + 5000] ^= 1
    path = disk(tmp_path / "disk", bytes(raw), {"initrd": INITRD})
    whole = bytearray(path.read_bytes())
    at = whole.index(b"INITRD     ")
    whole[at + 28 : at + 32] = b"\xff\xff\xff\x7f"
    path.write_bytes(whole)
    seen = observe(path)
    assert all(part.error for part in seen.partitions)
    found = judge(GATE, seen, POLICY)
    assert found.verdict is Verdict.NOT_PROVEN
    assert {finding.rule for finding in found.findings if finding.severity is Severity.UNPROVEN} == {
        "header",
        "not-looked-into",
        "initrd-missing",
    }


def test_a_disk_with_a_table_that_contradicts_itself_is_an_error(volume: bytes, tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", volume, {"initrd": INITRD})
    raw = bytearray(path.read_bytes())
    raw[1100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="checksum"):
        observe(path)


def test_slots_that_nobody_can_use_and_what_a_gap_holds(volume: bytes, tmp_path: Path) -> None:
    image = tmp_path / "volume"
    raw = bytearray(volume)
    image.write_bytes(raw)
    cryptsetup("config", "--priority", "ignore", "--key-slot", "1", str(image))
    raw = bytearray(image.read_bytes())
    area = read_luks(BytesContent(bytes(raw))).keyslots[0]
    raw[area.start : area.start + area.length] = bytes(area.length)
    path = disk(tmp_path / "disk", bytes(raw), {"initrd": INITRD})
    with path.open("r+b") as file:
        file.seek(34 * 512)
        file.write(b"XFSB")
    seen = observe(path)
    made = seen.partitions[1].volume
    assert made is not None
    assert [(slot.tried, slot.wiped) for slot in made.keyslots] == [(True, True), (False, False)]
    assert [gap.holds for gap in seen.gaps if gap.first is not None] == [("xfs",)]
    rules = {finding.rule for finding in judge(GATE, seen, POLICY).findings}
    assert {"no-passphrase", "no-recovery", "unpartitioned-data"} <= rules


def test_plain_text_between_the_keyslots(volume: bytes, tmp_path: Path) -> None:
    raw = bytearray(volume)
    raw[8 * MIB : 9 * MIB] = b"left by an earlier installation\n" * (MIB // 32)
    for made, rules in ((volume, set()), (bytes(raw), {"spare-data"})):
        (tmp_path / "disk.esp").unlink(missing_ok=True)
        found = judge(GATE, observe(disk(tmp_path / "disk", made, {"initrd": INITRD})), POLICY)
        assert {finding.rule for finding in found.findings if finding.severity is Severity.VIOLATION} == rules
