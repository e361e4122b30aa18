"""The demo's installed machine with Plymouth, whose pictures are read by OCR, and typed at by keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_osgates.demo.disk_variants import Variant, load_disk_file
from pytest_osgates.demo.machine import build_demo_machine
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.home import Home
from tests.e2e.conftest import Gates, quiet
from tests.e2e.test_tpm import profile

pytestmark = [pytest.mark.boots, pytest.mark.slow]
PCRS = (4, 7, 8, 9)
# Whoever types a user's name is in (login(1) of util-linux 2.40, "CREDENTIALS"): the demo itself lets nobody in, and
# where Plymouth hides what was said, the journal has to be read.
LETS_ROOT_IN = "systemd.set_credential=login.noauth:yes"
ON_SCREEN = 'console = "screen"\nreason = "journal"\nsettle_s = 180\n\n[login]\nuser = "root"\n'


def machine(gates: Gates, demo_iso: Path, weak: Variant) -> Home:
    host = vm_host.select("auto", None)
    host = replace(host, pace=vm_host.measure_pace(host.qemu, host.accelerator))
    return build_demo_machine(demo_iso, gates.directory / "machine", quiet, host, weak, plymouth=True).home


def graphical(gates: Gates) -> Path:
    path = profile(gates)
    path.write_text(path.read_text() + ON_SCREEN)
    return path


def test_the_sound_machine_passes(gates: Gates, demo_iso: Path) -> None:
    sound = (
        load_disk_file()
        .named("pcr7-only")
        .model_copy(update={"name": "lets-root-in", "enrol": PCRS, "parameters": (LETS_ROOT_IN,)})
    )
    disk = ("--iso-disk", machine(gates, demo_iso, sound).disk, "--iso-distro", graphical(gates))
    outcome = gates.run("--iso", demo_iso, *disk, "-k", "tpm[fresh]")
    assert outcome.findings("tpm") == set()
    gate = outcome.verdicts["gates"]["tpm"]
    assert gate["rows"]["fresh"]["verdict"] == "PASS"
    assert gate["controls"]
    assert all(control["caught"] for control in gate["controls"])
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/tpm/fresh.json").read_text())
    tampered, undone = seen["boots"]
    assert (tampered["outcome"], undone["outcome"]) == ("asked", "unlocked")
    assert "disk root" in tampered["line"]
    # Enter alone, too: its prompt was seen to go away, and to come back.
    assert {tried["what"]: tried["answer"] for tried in tampered["tries"]}["blank"] in ("asked again", "refused")
    assert any("did not unlock" in reason for reason in tampered["reasons"])


def test_a_shell_behind_plymouth_is_found(gates: Gates, demo_iso: Path) -> None:
    home = machine(gates, demo_iso, load_disk_file().named("tpm-shell"))
    disk = ("--iso-disk", home.disk, "--iso-distro", graphical(gates))
    outcome = gates.run("--iso", demo_iso, *disk, "-k", "tpm[fresh]")
    assert outcome.findings("tpm") == {("shell", "fresh")}
    assert outcome.verdicts["gates"]["tpm"]["rows"]["fresh"]["verdict"] == "FAIL"
    assert outcome.status == 1
