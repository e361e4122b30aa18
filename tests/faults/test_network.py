"""What becomes of the gate `telemetry` when something goes wrong with what it watches.

The quick guest takes an address and is silent: nothing but the fault makes the difference.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates, Outcome, until
from tests.faults.points import look
from tests.faults.quick_guest import ADDRESS, make_quick_iso, write_profile
from tests.faults.table import Fault, check, proves
from tests.faults.test_host_disks import with_full_evidence

pytestmark = pytest.mark.boots

TELEMETRY = """[gate.telemetry]
idle_s = IDLE
names = "none"
names_reason = "nothing in it looks names up"
"""
IDLE_SECONDS = 10


def profile(gates: Gates, idle_s: int = IDLE_SECONDS) -> Path:
    """The quick guest's, with the gate `telemetry` alone."""
    path = write_profile(gates.directory)
    head, _, _ = path.read_text().partition("[gate.")
    path.write_text(head.replace('gates = ["gates"]\n', "") + TELEMETRY.replace("IDLE", str(idle_s)))
    return path


@pytest.fixture(scope="session")
def silent_iso(demo_iso: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest that takes an address and does nothing with it."""
    return make_quick_iso(demo_iso, tmp_path_factory.mktemp("silent"), network=ADDRESS)


def test_without_a_fault_it_passes(gates: Gates, silent_iso: Path) -> None:
    outcome = gates.run("--iso", silent_iso, "--iso-distro", profile(gates))
    assert outcome.verdicts["gates"]["telemetry"]["verdict"] == "PASS", outcome.output
    assert outcome.status == 0


def wait_for_stage(gates: Gates, process: subprocess.Popen[str], stage: str) -> Path:
    """The run's evidence, once it does that."""

    def reached() -> Path | None:
        assert process.poll() is None, process.communicate()[0]
        seen = look(gates)
        return seen.root if seen is not None and stage in seen.stages() else None

    root = until(reached, 150, stage)
    assert isinstance(root, Path)
    return root


def sinkhole(gates: Gates) -> int:
    """The process that plays the internet to the machine of a run."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
            if b"network.peer" in command and str(gates.directory).encode() in command:
                found.append(int(entry.name))
    assert len(found) == 1, found
    return found[0]


def strike_sinkhole(gates: Gates, iso: Path, number: signal.Signals) -> Outcome:
    process = gates.start("--iso", iso, "--iso-distro", profile(gates, 60))
    wait_for_stage(gates, process, "idle")
    os.kill(sinkhole(gates), number)
    return gates.finish(process)


def killed(gates: Gates, iso: Path) -> Outcome:
    return strike_sinkhole(gates, iso, signal.SIGKILL)


def stopped(gates: Gates, iso: Path) -> Outcome:
    return strike_sinkhole(gates, iso, signal.SIGSTOP)


def disk_full(gates: Gates, iso: Path) -> Outcome:
    given = ("--iso", iso, "--iso-distro", profile(gates, 20))
    return with_full_evidence(gates, lambda process: wait_for_stage(gates, process, "idle"), *given)


def capture_cut(gates: Gates, iso: Path) -> Outcome:
    """As by a program that rotates logs."""
    process = gates.start("--iso", iso, "--iso-distro", profile(gates, 20))
    root = wait_for_stage(gates, process, "idle")
    (capture,) = root.glob("machines/*/net0.pcap")
    os.truncate(capture, capture.stat().st_size // 2)
    return gates.finish(process)


HOST: dict[str, Callable[[Gates, Path], Outcome]] = {
    "sinkhole-killed": killed,
    "sinkhole-stopped": stopped,
    "capture-disk-full": disk_full,
    "capture-cut": capture_cut,
}


@proves(*HOST)
def test_the_watcher_is_struck(fault: Fault, gates: Gates, silent_iso: Path) -> None:
    check(fault, HOST[fault.name](gates, silent_iso), "telemetry")


@proves("no-lease")
def test_a_guest_takes_no_address(fault: Fault, gates: Gates, demo_iso: Path) -> None:
    """It has a card, which is up."""
    iso = make_quick_iso(demo_iso, gates.directory, network="ip link set eth0 up\n")
    outcome = gates.run("--iso", iso, "--iso-distro", profile(gates))
    check(fault, outcome)
    assert {rule for rule, _ in outcome.findings("telemetry")} == {"no-lease", "canary", "window"}


@pytest.mark.slow
@proves("network-flood")
def test_a_guest_floods_the_network(fault: Fault, gates: Gates, demo_iso: Path) -> None:
    """A gigabyte and more, to whoever may listen."""
    flood = "bash -c 'exec dd if=/dev/zero bs=1400 count=800000 >/dev/udp/203.0.113.7/4444' &"
    iso = make_quick_iso(demo_iso, gates.directory, network=ADDRESS, late=flood)
    outcome = gates.run("--iso", iso, "--iso-distro", profile(gates, 120))
    check(fault, outcome)
    assert ("literal-address", "203.0.113.7") in outcome.findings("telemetry")
    assert outcome.root is not None
    (capture,) = outcome.root.glob("machines/*/net0.pcap")
    assert capture.stat().st_size > 1 << 30
