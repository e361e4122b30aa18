"""QEMU and swtpm are killed, ended or stopped at ten points of a run."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Gates, until
from tests.faults.points import POINTS, QEMU, SWTPM, name_of, state_of, wait_for_point
from tests.faults.quick_guest import write_profile
from tests.faults.table import Fault, check, proves
from tests.faults.table import rows as table_rows

pytestmark = pytest.mark.boots

STRIKES = {
    "qemu-term": (QEMU, signal.SIGTERM),
    "qemu-kill": (QEMU, signal.SIGKILL),
    "qemu-stop": (QEMU, signal.SIGSTOP),
    "swtpm-term": (SWTPM, signal.SIGTERM),
    "swtpm-kill": (SWTPM, signal.SIGKILL),
    "swtpm-stop": (SWTPM, signal.SIGSTOP),
}
# Where it is done in the quick tier.
QUICK = {
    "qemu-term": "loading",
    "qemu-kill": "watching",
    "qemu-stop": "asking",
    "swtpm-term": "kernel",
    "swtpm-kill": "begun",
    "swtpm-stop": "channel",
}
# From when the process is dead or stopped to when the verdict is on disk.
REPORTED_SECONDS = 2.0


@proves(*STRIKES)
def test_a_program_of_ours_is_struck(fault: Fault, gates: Gates, quick_iso: Path) -> None:
    """Whoever does it: NOT PROVEN, the reason, the evidence, within two seconds."""
    strike(fault, QUICK[fault.name], gates, quick_iso)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", STRIKES)
def test_a_program_of_ours_is_struck_at_any_time(name: str, point: str, gates: Gates, quick_iso: Path) -> None:
    """The same at all of the points."""
    strike(table_rows()[name], point, gates, quick_iso)


def strike(fault: Fault, point: str, gates: Gates, quick_iso: Path) -> None:
    """Start a run, wait until it is at `point`, send the signal, and look what becomes of it."""
    program, number = STRIKES[fault.name]
    profile = write_profile(gates.directory)
    selection = ("-m", "boot or asks", "-k", "channel or asks")
    process = gates.start("--iso", quick_iso, "--iso-distro", profile, *selection)
    seen = wait_for_point(gates, process, point)
    gate, row = ("asks", "") if point == "asking" else ("boot", "bios-channel")
    assert row not in rows(seen.root, gate)
    victim = seen.pids[program]
    os.kill(victim, number)
    struck = "T" if number == signal.SIGSTOP else "Z"
    # Reaped at once, or replaced by another process of that number: as dead as a zombie.
    until(lambda: state_of(victim) in {struck, "gone"} or name_of(victim) != program, 10, "the signal took effect")
    visible = time.monotonic()
    until(lambda: row in rows(seen.root, gate) or process.poll() is not None, 60, "a verdict")
    took = time.monotonic() - visible
    outcome = gates.finish(process)
    check(fault, outcome, "asks")
    assert outcome.verdicts["gates"][gate]["rows"][row]["verdict"] == "NOT PROVEN"
    assert outcome.verdicts["gates"]["boot"]["verdict"] == "NOT PROVEN"
    assert not gates.machines()
    assert took < REPORTED_SECONDS, f"reported after {took:.2f} s"


def rows(root: Path, gate: str) -> dict[str, Any]:
    """The rows of a gate that have been judged so far."""
    found: dict[str, Any] = json.loads((root / "verdicts.json").read_text())["gates"][gate]["rows"]
    return found
