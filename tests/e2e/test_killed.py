"""pytest ends half-way: never a PASS, never an orphan, the evidence stays."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from pytest_osgates.vm import workdir
from tests.e2e.conftest import Gates, until
from tests.e2e.quick import quick_profile

pytestmark = pytest.mark.boots


def _booting(gates: Gates, process: subprocess.Popen[str]) -> list[int]:
    """Wait until the machine runs; pids of QEMU and swtpm."""

    def running() -> list[int]:
        assert process.poll() is None, process.communicate()[0]
        pids = gates.machines()
        return pids if len(pids) == 2 and list(gates.evidence.glob("*/*/machines/*/events.jsonl")) else []

    found: list[int] = until(running, 120, "QEMU and swtpm started")
    return found


def test_interrupted(gates: Gates, demo_iso: Path) -> None:
    """Ctrl-C: machines end, verdicts.json and the manifest stand, and nothing is a PASS."""
    process = gates.start("--iso", demo_iso, "--iso-distro", quick_profile(gates.directory), "-m", "kconfig")
    _booting(gates, process)
    process.send_signal(signal.SIGINT)
    outcome = gates.finish(process)
    assert outcome.status == 2
    assert outcome.verdicts["gates"]["kconfig"]["verdict"] == "NOT PROVEN"
    assert outcome.verdicts["launch"] != "ALL REQUIRED PASS"
    assert outcome.last_line == "LAUNCH: NOT READY"
    assert outcome.root is not None
    assert json.loads((outcome.root / "manifest.json").read_text())["interrupted"] == "KeyboardInterrupt"
    assert not gates.machines()


def test_killed_without_warning(gates: Gates, demo_iso: Path) -> None:
    """SIGKILL of pytest itself: its machines die with it, and the next start sweeps what it left on disk."""
    process = gates.start("--iso", demo_iso, "--iso-distro", quick_profile(gates.directory), "-m", "kconfig")
    _booting(gates, process)
    left = [path for path in workdir.base_directory().iterdir() if path.name.startswith(f"vm-{process.pid}-")]
    assert left
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not gates.machines(), 10, "machines dead with their parent")
    (path,) = gates.evidence.glob("*/*/verdicts.json")
    verdicts = json.loads(path.read_text())
    assert {gate["verdict"] for gate in verdicts["gates"].values()} == {"NOT PROVEN"}
    workdir.sweep()
    assert not any(path.exists() for path in left)
