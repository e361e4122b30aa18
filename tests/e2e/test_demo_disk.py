"""The demo's installed disk passes the gate `luks`; each weakened one fails it with exactly its finding."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_osgates.cli import main
from pytest_osgates.demo import build_demo_disk
from pytest_osgates.demo.disk_variants import load_disk_file, variant_names
from pytest_osgates.image.disk.luks import read_luks
from pytest_osgates.image.disk.partitions import read_table
from pytest_osgates.image.disk.source import SourceContent, open_disk
from tests.e2e.conftest import Gates, quiet

QUICK = ("blank-passphrase", "key-in-initrd", "clear-swap", "luks1")
WEAK = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in variant_names()]


def test_the_sound_disk_passes(gates: Gates, demo_iso: Path) -> None:
    """As `osgates demo-disk` makes it; and its passphrases open it."""
    disk = gates.directory / "demo.qcow2"
    assert main(["demo-disk", "--iso", str(demo_iso), "-o", str(disk)]) == 0
    outcome = gates.run("--iso", demo_iso, "--iso-disk", disk, "--iso-distro", "demo-installed")
    assert outcome.verdicts["gates"]["luks"]["verdict"] == "PASS"
    assert outcome.status == 0
    assert outcome.findings("luks") == set()
    assert all(control["caught"] for control in outcome.verdicts["gates"]["luks"]["controls"])
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/luks.json").read_text())
    files = [file["path"] for file in seen["partitions"][0]["boot"]["files"]]
    assert "/init" in files
    assert "/EFI/BOOT/BOOTX64.EFI" in files


def test_its_passphrases_open_it_and_nothing_else_does(demo_iso: Path, tmp_path: Path) -> None:
    built = build_demo_disk(demo_iso, tmp_path / "demo.img", quiet)
    with open_disk(built.path) as disk:
        root = read_table(disk).partitions[1]
        volume = tmp_path / "volume"
        volume.write_bytes(disk.read_at(root.start, root.size))
    spec = load_disk_file()
    for passphrase, status in ((built.passphrase, 0), (spec.recovery_key.encode(), 0), (b"factory", 2), (b"", 2)):
        (tmp_path / "key").write_bytes(passphrase)
        command = ["/usr/sbin/cryptsetup", "open", "--test-passphrase", "--batch-mode"]
        done = subprocess.run([*command, "--key-file", str(tmp_path / "key"), str(volume)], check=False)
        assert done.returncode == status
    # Nothing of the live root is left in the clear: neither its beginning nor what stands a mebibyte after it.
    iso, stored = demo_iso.read_bytes(), volume.read_bytes()
    begin = iso.index(b"hsqs")
    assert not any(iso[at : at + 64] in stored for at in (begin, begin + (1 << 20)))


def test_two_at_the_same_time(demo_iso: Path, tmp_path: Path) -> None:
    """All of them get the same UUID; cryptsetup encrypts no two volumes that have the same at a time."""
    names = ("one.img", "two.img")
    with ThreadPoolExecutor() as threads:
        made = list(threads.map(lambda name: build_demo_disk(demo_iso, tmp_path / name, quiet), names))
    for built in made:
        with open_disk(built.path) as disk:
            root = read_table(disk).partitions[1]
            assert read_luks(SourceContent(disk, root.start, root.size)).uuid == load_disk_file().luks.uuid


@pytest.mark.parametrize("name", WEAK)
def test_each_weakness_is_found(name: str, gates: Gates, demo_iso: Path) -> None:
    disk = gates.directory / "weak.img"
    build_demo_disk(demo_iso, disk, quiet, name)
    outcome = gates.run("--iso", demo_iso, "--iso-disk", disk, "--iso-distro", "demo-installed")
    expects = load_disk_file().named(name).expects
    assert outcome.verdicts["gates"][expects.gate]["verdict"] == expects.verdict
    assert outcome.findings(expects.gate) == {(expects.rule, expects.subject)}
    assert outcome.status == 1
    assert outcome.last_line == "LAUNCH: NOT READY"
