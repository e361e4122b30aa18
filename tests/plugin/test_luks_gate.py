"""The gate `luks` as users run it, on small disks; and a disk that changes while the run goes on."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.disk_builders import ESP, fat, gpt, newc

from .conftest import Bench

MIB = 1 << 20
PROFILE = """
schema = 1
name = "bench"
[machine]
firmware = ["bios"]
[gate.luks]
memory_kib = 64
recovery = false
[[gate.luks.accept_plaintext]]
type = "esp"
holds = "vfat"
reason = "UEFI reads it"
"""
ARGON = ("--pbkdf", "argon2id", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1")
# A gate on the live session, which has nothing to do with the disk.
LIVE = """
schema = 1
name = "bench"
[machine]
firmware = ["bios"]
[gate.kconfig]
parameters = ["BOOT_IMAGE=*", "quiet"]
"""
TOUCH = """
import os
@pytest.mark.kconfig
def test_kernel(os_judge, os_run):
    os.utime(os_run.request.disk, (1, 1))
    os_judge(kernel(state={state!r}))
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ESP with an initrd, and LUKS2 with one passphrase."""
    top = tmp_path_factory.mktemp("disk")
    (top / "key").write_bytes(b"passphrase")
    volume = top / "volume"
    volume.write_bytes(bytes(18 * MIB))
    command = ["/usr/sbin/cryptsetup", "--batch-mode", "luksFormat", "--type", "luks2", "--key-size", "512"]
    subprocess.run([*command, "--key-file", str(top / "key"), *ARGON, str(volume)], check=True)
    raw = bytearray(volume.read_bytes())
    raw[16 * MIB :] = hashlib.shake_128(b"payload").digest(2 * MIB)
    esp = fat(top / "esp", {"initrd": newc({"init": b"#!/bin/sh\n"})}).read_bytes()
    second = MIB + len(esp)
    table = gpt(
        (second + len(raw)) // 512 + 64,
        (ESP, 2048, len(esp) // 512, "esp"),
        ("ca7d7ccb-63ed-4c53-861c-1742536059cc", second // 512, len(raw) // 512, "root"),
    )
    table[MIB:second] = esp
    table[second : second + len(raw)] = raw
    (top / "disk.img").write_bytes(table)
    return top / "disk.img"


@pytest.fixture
def disk(bench: Bench, made: Path) -> Path:
    """A copy that a test may change."""
    bench.profile(PROFILE)
    return Path(shutil.copyfile(made, bench.path / "disk.img"))


def test_a_sound_disk_passes_and_its_digest_is_in_the_evidence(bench: Bench, disk: Path) -> None:
    done = bench.run("--iso-disk", disk, tests=()).check_manifest()
    assert done.status == 0, done.output
    assert done.verdicts == {"luks": "PASS"}
    record = done.record["gates"]["luks"]
    assert record["state"] == "installed"
    assert all(control["caught"] for control in record["controls"])
    digest = hashlib.sha256(disk.read_bytes()).hexdigest()
    assert done.record["disk"] == {"path": str(disk), "sha256": digest, "size": disk.stat().st_size}
    assert f"disk {disk.name}" in done.output
    assert list((done.root / "machines").iterdir()) == [], "nothing was booted"


def test_under_xdist_too(bench: Bench, disk: Path) -> None:
    done = bench.run("--iso-disk", disk, "-n", "1", tests=())
    assert done.status == 0, done.output
    assert done.verdicts == {"luks": "PASS"}


def test_a_weak_disk_fails(bench: Bench, disk: Path) -> None:
    bench.profile(PROFILE.replace("memory_kib = 64", "memory_kib = 65"))
    done = bench.run("--iso-disk", disk, tests=()).check_manifest()
    assert done.status == 1
    assert "keyslot-memory: partition 2, keyslot 0: argon2id with 64 KiB" in done.output


def test_without_a_disk_nothing_is_proven(bench: Bench) -> None:
    bench.profile(PROFILE)
    done = bench.run(tests=())
    assert done.status == 10
    assert done.verdicts == {"luks": "NOT PROVEN"}
    assert "--iso-disk" in done.reasons("luks")


def test_a_disk_that_cannot_be_read_is_not_proven(bench: Bench, disk: Path) -> None:
    disk.write_bytes(b"QFI\xfb" + bytes(1000))
    done = bench.run("--iso-disk", disk, tests=())
    assert done.status == 10
    assert "a qcow2 image of version 0" in done.reasons("luks")


@pytest.mark.parametrize(("state", "status"), [("installed", 10), ("live", 0)])
def test_a_disk_that_changes_proves_nothing_of_what_is_on_it(
    bench: Bench, made: Path, state: str, status: int
) -> None:
    """And nothing against what was seen of a live session."""
    bench.profile(LIVE + f'state = "{state}"\n')
    disk = shutil.copyfile(made, bench.path / "disk.img")
    bench.tests(TOUCH.format(state=state))
    done = bench.run("--iso-disk", disk)
    assert done.status == status, done.output
    if status:
        assert "disk.img changed after its SHA-256 was taken" in done.reasons("kconfig")
