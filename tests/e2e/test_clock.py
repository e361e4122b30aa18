"""A machine that is saved and goes on with its idle time skipped: no image is needed for that."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from pytest_osgates.vm import clock, workdir
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


def test_time_goes_on_where_it_stopped_and_faster(tmp_path: Path) -> None:
    iso = tmp_path / "empty.iso"
    iso.write_bytes(bytes(1 << 20))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    spec = MachineSpec(
        *("mini", Firmware.BIOS, iso),
        memory_mib=128,
        channel=new_nonce(),
        network=(Settings(capture=str(tmp_path / "one/net0.pcap")),),
        rtc=RTC,
    )
    host = vm_host.select("tcg", None)
    with (
        Machine(spec, host, tmp_path / "one") as machine,
        tempfile.TemporaryFile(dir=workdir.base_directory()) as file,
    ):
        _until(machine, 2)
        resumed = machine.save(file)
        stopped = clock.guest_time(machine)
        machine.halt()
        with Machine(dataclasses.replace(spec, warp=True), host, tmp_path / "two", (), resumed) as faster:
            assert faster.power_on_at == machine.power_on_at
            assert clock.guest_time(faster) - stopped < 30
            with clock.Governor(faster) as governor:
                assert _until(faster, 120) < 40
            assert governor.failure is None
            faster.check()
            assert faster.sinkholes[0].stats()["link_open"] is True
    # Both wrote a capture; both processes are gone.
    assert all((tmp_path / name / "net0.pcap").stat().st_size >= 24 for name in ("one", "two"))


@pytest.mark.slow
def test_without_any_network(tmp_path: Path) -> None:
    """The same in a network namespace of its own, where not even the loopback is up."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this host lets users make no namespaces")
    test = f"{__file__}::test_time_goes_on_where_it_stopped_and_faster"
    inner = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(tmp_path / "inner"),
        test,
    ]
    done = subprocess.run([*alone, *inner], check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
