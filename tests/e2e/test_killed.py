"""Something dies half-way: never a PASS, never an orphan, the evidence stays."""

from __future__ import annotations

import json
import os
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


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().rpartition("/")[2]


@pytest.mark.parametrize(("program", "words"), [("qemu-system-x86_64", "QEMU was killed"), ("swtpm", "swtpm ended")])
def test_a_program_of_ours_is_killed(program: str, words: str, gates: Gates, demo_iso: Path) -> None:
    """NOT PROVEN, with the reason; exit status 10."""
    profile = quick_profile(gates.directory)
    process = gates.start("--iso", demo_iso, "--iso-distro", profile, "-m", "kconfig")
    victim = next(pid for pid in _booting(gates, process) if _name(pid) == program)
    os.kill(victim, signal.SIGKILL)
    outcome = gates.finish(process)
    assert outcome.status == 10
    assert outcome.verdicts["gates"]["kconfig"]["verdict"] == "NOT PROVEN"
    assert words in outcome.output
    assert outcome.last_line == "LAUNCH: NOT READY"
    assert outcome.root is not None
    assert (outcome.root / "manifest.json").is_file()
    assert "Traceback" not in outcome.output


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
