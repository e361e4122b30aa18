"""The gate `install` in a run, and gates on an installed disk that nobody has made."""

from __future__ import annotations

from .conftest import Bench

PROFILE = """
schema = 1
name = "bench"
[machine]
firmware = ["uefi"]
[gate.install]
[gate.luks]
state = "installed"
"""
RECIPE = """
[install]
script = "true"
"""
FAILED = """
import pytest
from pytest_osgates import installed
from pytest_osgates.checks.install import InstallObservation, InstallOutcome, Left
from pytest_osgates.observers import install

def fake(site, home):
    left = (Left(place="partition 1", what="/EFI/BOOT/BOOTX64.EFI"),)
    return InstallObservation(
        way="script", outcome=InstallOutcome.FAILED, detail="no space", wanted_steps=1, left=left, records="x"
    )

install.install = fake

from pytest_osgates.gates.test_install import observation, test_install
from pytest_osgates.gates.test_luks import observation as luks_observation

@pytest.mark.luks
def test_luks(os_judge, os_run):
    from pytest_osgates.fixtures.states import os_disk
    os_disk(os_run)

test_install = pytest.mark.install(test_install)
"""


def test_without_a_recipe_nothing_is_installed(bench: Bench) -> None:
    bench.profile(PROFILE)
    done = bench.run(tests=())
    assert done.status == 10, done.output
    assert "the profile has no recipe for an installation" in done.reasons("install")
    assert "no disk with an installed system" in done.reasons("luks")


def test_a_given_disk_is_no_installation(bench: Bench) -> None:
    bench.profile(PROFILE + RECIPE)
    (bench.path / "disk.img").write_bytes(bytes(1 << 20))
    done = bench.run("--iso-disk", bench.path / "disk.img", tests=())
    assert "so nothing was installed" in done.reasons("install")


def test_a_failed_installation_is_no_disk_for_anybody(bench: Bench) -> None:
    bench.profile(PROFILE + RECIPE)
    bench.tests(FAILED)
    done = bench.run()
    assert done.verdicts == {"install": "FAIL", "luks": "NOT PROVEN"}, done.output
    assert "the installation failed after 0 s: no space" in done.reasons("luks")
    rules = {finding["rule"] for finding in done.record["gates"]["install"]["findings"]}
    assert rules == {"install-failed", "half-installed"}


def test_a_recipe_that_is_none_is_refused(bench: Bench) -> None:
    bench.profile(PROFILE + "[install]\ndisk_mib = 1024\n")
    done = bench.plain(*bench.options())
    assert done.status == 4
    assert "give a script or a dialogue" in done.errors
