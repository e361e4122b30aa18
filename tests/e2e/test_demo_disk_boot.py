"""The demo's installed disk boots with Secure Boot on, asks for its passphrase, and opens to nothing else."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pytest_osgates.checks import boot as boot_check
from pytest_osgates.demo import build_demo_disk
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.console import ConsoleSpawn
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.spec import Firmware, MachineSpec
from tests.e2e.conftest import quiet

pytestmark = [pytest.mark.boots, pytest.mark.slow]

PROMPT = r"Enter passphrase for /dev/disk/by-uuid/[0-9a-f-]+: ?$"
LOGIN = r"osgates-demo login: ?$"
# Nobody gets any of these before the disk is open.
SHELL = r"\(initramfs\)|emergency|[#$] ?$"
SECONDS = 600.0
AGAIN_SECONDS = 60.0


class Talk:
    """A dialogue on the serial console of a machine that has to live."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.spawn = ConsoleSpawn(machine.serial, timeout=1.0)

    def expect(self, *wanted: str, typed: str | None = None) -> int:
        """Which of them comes first. `typed`: what is answered to a prompt, again if nothing comes of it.

        cryptsetup throws away what was typed before it stopped the echo, which is after it wrote the prompt.
        """
        patterns: list[Any] = [re.compile(text, re.MULTILINE) for text in wanted]
        patience = self.machine.host.pace
        deadline = time.monotonic() + SECONDS * patience
        again = time.monotonic()
        while time.monotonic() < deadline:
            self.machine.check()
            if typed is not None and time.monotonic() >= again:
                self.spawn.sendline(typed)
                again = time.monotonic() + AGAIN_SECONDS * patience
            try:
                return int(self.spawn.expect(patterns, timeout=1.0))
            except pexpect.TIMEOUT:
                continue
        pytest.fail(f"none of {wanted}: {self.machine.serial.tail(600)!r}")


def test_it_asks_until_the_passphrase_is_right(demo_iso: Path, tmp_path: Path) -> None:
    """Wrong and empty ones are asked for again; the right one leads to the login."""
    built = build_demo_disk(demo_iso, tmp_path / "demo.qcow2", quiet)
    spec = MachineSpec("installed", Firmware.UEFI_SECUREBOOT, disks=(built.path,))
    with Machine(spec, vm_host.select("auto", None), tmp_path / "records", boot_check.patterns()) as machine:
        talk = Talk(machine)
        assert talk.expect(PROMPT, SHELL, LOGIN) == 0
        for wrong in ("factory", "", built.passphrase.decode()[:-1]):
            assert talk.expect(r"was not unlocked", SHELL, LOGIN, typed=wrong) == 0
            assert talk.expect(PROMPT, SHELL, LOGIN) == 0
        # What was open to nobody before is now.
        right = built.passphrase.decode()
        assert talk.expect(r"was unlocked", r"was not unlocked", SHELL, LOGIN, typed=right) == 0
        assert talk.expect(LOGIN, r"\(initramfs\)") == 0
