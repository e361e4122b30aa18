"""The demo's ISO installed by a recipe: one that ends well, one that breaks off half-way, one that hangs."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import pytest

from pytest_osgates.image.iso9660 import IsoImage
from tests.disk_builders import ESP, gpt
from tests.e2e.conftest import Gates

pytestmark = [pytest.mark.boots, pytest.mark.slow]

MIB = 2048
DISK_MIB = 512
EFI_IMAGE = "/boot/grub/efi.img"
# The demo's allocator gives dd no buffer of less than a page: dd wants it aligned to one.
BLOCKS = "bs=64k oflag=seek_bytes conv=notrunc"
PROFILE = """
schema = 1
name = "install"
[machine]
firmware = ["uefi"]
[boot]
ready_target = "multi-user.target"
[install]
disk_mib = {disk_mib}
stall_s = 60
logs = ["/proc/partitions"]
script = '''
set -e
{script}
'''
[gate.install]
promise = "the medium is copied to the disk, which starts"
"""


def recipe(iso: Path) -> str:
    """A partition table, the ISO's own ESP, and the ISO."""
    with IsoImage.open(iso) as image:
        esp = image.lookup(EFI_IMAGE)
    assert esp is not None
    esp_sectors = -(-esp.size // 512)
    second = MIB + -(-esp_sectors // MIB) * MIB
    sectors = -(-iso.stat().st_size // 512)
    table = gpt(
        DISK_MIB * MIB,
        (ESP, MIB, esp_sectors, "esp"),
        ("0fc63daf-8483-4772-8e79-3d69d8477de4", second, sectors, "iso"),
    )
    pieces = {0: bytes(table[: 34 * 512]), DISK_MIB * MIB - 33: bytes(table[-33 * 512 :])}
    lines = [
        f"echo {base64.b64encode(gzip.compress(piece, mtime=0)).decode()} | base64 -d | gzip -d |"
        f" dd of=/dev/vda {BLOCKS} seek={start * 512}"
        for start, piece in pieces.items()
    ]
    lines += [
        "echo copying",
        f"dd if=/run/live/medium{EFI_IMAGE} of=/dev/vda {BLOCKS} seek={MIB * 512}",
        f"dd if=/dev/sr0 of=/dev/vda {BLOCKS},fsync seek={second * 512}",
    ]
    return "\n".join(lines)


def profile(gates: Gates, script: str) -> Path:
    path = gates.directory / "install.toml"
    path.write_text(PROFILE.format(disk_mib=DISK_MIB, script=script))
    return path


def test_a_recipe_that_ends_well(gates: Gates, demo_iso: Path) -> None:
    outcome = gates.run("--iso", demo_iso, "--iso-distro", profile(gates, recipe(demo_iso)))
    assert outcome.findings("install") == set()
    assert outcome.verdicts["gates"]["install"]["verdict"] == "PASS"
    assert outcome.status == 0
    assert outcome.root is not None
    records = outcome.root / "machines/install"
    assert b"copying" in (records / "installer.log").read_bytes()
    assert b"vda" in (records / "log-0.txt").read_bytes()
    assert (records / "screen-last.png").exists()


def test_half_an_installation_that_starts_is_found(gates: Gates, demo_iso: Path) -> None:
    script = recipe(demo_iso).rpartition("\n")[0] + "\nexit 7"
    outcome = gates.run("--iso", demo_iso, "--iso-distro", profile(gates, script))
    assert outcome.findings("install") == {
        ("install-failed", "installation"),
        ("half-installed", "installed disk"),
    }
    assert outcome.status == 1


def test_an_installer_that_hangs_ends_at_once(gates: Gates, demo_iso: Path) -> None:
    outcome = gates.run("--iso", demo_iso, "--iso-distro", profile(gates, "echo waiting\nsleep 100000"))
    assert outcome.findings("install") == {("install-stalled", "installation")}
    assert outcome.status == 1
