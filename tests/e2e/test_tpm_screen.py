"""The demo's installed machine that asks on its screen: read there, and typed at by keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_osgates.cli import main
from pytest_osgates.demo.disk_variants import load_disk_file
from pytest_osgates.demo.machine import build_demo_machine
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.home import Home
from tests.e2e.conftest import Gates, quiet
from tests.e2e.test_tpm import profile

pytestmark = [pytest.mark.boots, pytest.mark.slow]
# One worker makes the machine, by a boot, for all its rows.
one_worker = pytest.mark.xdist_group("tpm-screen-machine")


@pytest.fixture(scope="session")
def machine(demo_iso: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """As `osgates demo-disk --tpm --screen` makes it."""
    directory = tmp_path_factory.mktemp("tpm-screen") / "machine"
    assert main(["demo-disk", "--tpm", "--screen", "--iso", str(demo_iso), "-o", str(directory)]) == 0
    return Home.at(directory)


def screen_profile(gates: Gates) -> Path:
    """The gate `tpm` alone, on the screen."""
    path = profile(gates)
    path.write_text(path.read_text() + 'console = "screen"\n')
    return path


@one_worker
@pytest.mark.parametrize("row", ["untampered-1", "fresh"])
def test_the_sound_machine_passes(row: str, gates: Gates, demo_iso: Path, machine: Home) -> None:
    disk = ("--iso-disk", machine.disk, "--iso-distro", screen_profile(gates))
    outcome = gates.run("--iso", demo_iso, *disk, "-k", f"tpm[{row}]")
    assert outcome.findings("tpm") == set()
    gate = outcome.verdicts["gates"]["tpm"]
    assert gate["rows"][row]["verdict"] == "PASS"
    assert all(control["caught"] for control in gate["controls"])
    assert outcome.root is not None
    seen = json.loads((outcome.root / f"observations/tpm/{row}.json").read_text())
    assert seen["talked_on"] == "screen"
    records = outcome.root / seen["boots"][0]["records"]
    assert "login:" in (records / "screen.log").read_text()
    # Nothing was asked, or answered, on the serial console.
    assert b"Enter passphrase" not in (records / "serial.log").read_bytes()


@one_worker
def test_a_machine_that_asks_on_its_screen_is_not_proven_on_the_serial_console(
    gates: Gates, demo_iso: Path, machine: Home
) -> None:
    distro = profile(gates)
    distro.write_text(distro.read_text() + "deadline_s = 120\n")
    disk = ("--iso-disk", machine.disk, "--iso-distro", distro)
    outcome = gates.run("--iso", demo_iso, *disk, "-k", "tpm[fresh]")
    assert {rule for rule, _ in outcome.findings("tpm")} == {"timeout", "undo-not-tried"}
    assert outcome.verdicts["gates"]["tpm"]["rows"]["fresh"]["verdict"] == "NOT PROVEN"


def test_a_shell_on_the_screen_is_found(gates: Gates, demo_iso: Path) -> None:
    host = vm_host.select("auto", None)
    host = replace(host, pace=vm_host.measure_pace(host.qemu, host.accelerator))
    weak = load_disk_file().named("tpm-shell")
    made = build_demo_machine(demo_iso, gates.directory / "machine", quiet, host, weak, screen=True)
    disk = ("--iso-disk", made.home.disk, "--iso-distro", screen_profile(gates))
    outcome = gates.run("--iso", demo_iso, *disk, "-k", "tpm[fresh]")
    assert outcome.findings("tpm") == {("shell", "fresh")}
    assert outcome.verdicts["gates"]["tpm"]["rows"]["fresh"]["verdict"] == "FAIL"
    assert outcome.status == 1
