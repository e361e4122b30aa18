"""A machine that skips idle time: no image is needed for that."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_osgates.vm import clock
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.guest.injection import new_nonce
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.spec import Firmware, MachineSpec

pytestmark = pytest.mark.boots
RTC = "2026-01-31T12:00:00"


def _until(machine: Machine, seconds: float) -> float:
    """Host seconds until the machine's clock shows so much more than at power-on."""
    begun = time.monotonic()
    pause = threading.Event()
    while clock.guest_time(machine) - machine.power_on_at < seconds:
        assert time.monotonic() - begun < 60
        pause.wait(0.05)
    return time.monotonic() - begun


def test_idle_time_is_skipped(tmp_path: Path) -> None:
    """With the governor twenty minutes of a machine that waits for a medium take less than one."""
    iso = tmp_path / "empty.iso"
    iso.write_bytes(bytes(1 << 20))
    spec = MachineSpec(
        *("mini", Firmware.BIOS, iso),
        memory_mib=128,
        cpus=1,
        channel=new_nonce(),
        network=(Settings(capture=str(tmp_path / "net0.pcap")),),
        rtc=RTC,
    )
    with Machine(spec, vm_host.select("tcg", None), tmp_path) as machine:
        _until(machine, 2)
        with clock.Governor(machine) as governor:
            took = _until(machine, 1200)
        assert governor.failure is None
        assert governor.changes > 0
        assert took < 60
        machine.check()
        assert machine.sinkholes[0].stats()["link_open"] is True
    assert (tmp_path / "net0.pcap").stat().st_size >= 24


@pytest.mark.slow
def test_without_any_network(tmp_path: Path) -> None:
    """The same in a network namespace of its own, where not even the loopback is up."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this host lets users make no namespaces")
    test = f"{__file__}::test_idle_time_is_skipped"
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner")]
    inner = [sys.executable, "-m", "pytest", *options, test]
    done = subprocess.run([*alone, *inner], check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
