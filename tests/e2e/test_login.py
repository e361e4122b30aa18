"""Where systemd's credentials do not reach the guest: log in on the serial console as the profile says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_osgates.checks import boot as boot_check
from pytest_osgates.demo import cached_demo_iso
from pytest_osgates.observers.boot import Boot, Plan
from pytest_osgates.profiles.schema import BootSection, LoginSection
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.guest.injection import new_nonce
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.spec import Firmware, MachineSpec
from tests.e2e.conftest import quiet

pytestmark = pytest.mark.boots


def test_login_on_the_serial_console(tmp_path: Path) -> None:
    """A channel's port, but no credential: getty, password prompt, root shell, framed shell."""
    iso = cached_demo_iso(quiet, Path(__file__).parent / "faults" / "serial-login")
    spec = MachineSpec("login", Firmware.BIOS, cdrom=iso, channel=new_nonce(), smbios_strings=())
    login = LoginSection(user="root", password="osgates")
    plan = Plan("login", BootSection(ready_target="multi-user.target"), login, 400.0)
    with Machine(spec, vm_host.select("auto", None), tmp_path, boot_check.patterns()) as machine:
        boot = Boot(machine, plan, ProgressLog(tmp_path / "progress.jsonl"))
        assert boot.run(), boot.detail
        assert machine.shell.run("id -u").text == "0\n"
        assert "login:" in (tmp_path / "serial.log").read_text(errors="replace")
