"""Hosts that are strange, and no reason to fail: long paths, a clock that jumps, two runs at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates
from tests.faults.quick_guest import write_profile
from tests.faults.table import Fault, check, proves
from tests.faults.warm import Place

# The clock of this process is a year ahead, and a year behind, in turns of a second.
STEPS = """
import time
real = time.time
time.time = lambda: real() + (31536000 if int(time.monotonic()) % 2 else -31536000)
"""


@pytest.mark.boots
@proves("long-paths-and-clock-steps")
def test_a_boot_on_a_strange_host(fault: Fault, gates: Gates, quick_iso: Path) -> None:
    """A directory whose name no socket could have, with what QEMU's options and shells take for their own; and in
    mid-run the clock is set again and again."""
    folder = gates.directory / ("x" * 200 + ", =:%$'\" \t\\")
    folder.mkdir()
    iso = folder / "a,b= c.iso"
    iso.write_bytes(quick_iso.read_bytes())
    (gates.directory / "steps.py").write_text(STEPS)
    gates.evidence = folder / "evidence"
    profile = write_profile(gates.directory)
    env = {"TMPDIR": str(folder), "PYTHONPATH": str(gates.directory)}
    # Not --iso FILE: pytest would look for its ini-file there.
    outcome = gates.run("-p", "steps", f"--iso={iso}", "--iso-distro", profile, env=env)
    check(fault, outcome)
    assert outcome.root is not None
    # What is waited for is shown all the same.
    assert "bios-channel: " in outcome.output
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", outcome.root.name)
    seen = json.loads((outcome.root / "observations/boot/bios-channel.json").read_text())
    # Measured by a clock that nobody can set.
    assert 0 < seen["ready_s"] < 150
    assert not list(folder.glob("osgates-*/vm-*"))


@proves("two-runs-on-a-cold-cache")
def test_two_runs_at_once_on_one_cold_cache(fault: Fault, place: Place, gates: Gates) -> None:
    """Neither waits for the other, takes its half-written files, or writes to its evidence."""
    (gates.directory / "bench.toml").write_text((place.path / "bench.toml").read_text())
    (gates.directory / "test_rows.py").write_text((place.path / "test_rows.py").read_text())
    samples = Path(__file__).parents[1] / "unit"
    env = {"XDG_CACHE_HOME": str(gates.directory / "cache"), "PYTHONPATH": str(samples)}
    # One place for the evidence of both: each has its own directory there.
    given = (f"--iso={place.iso}", "--iso-distro", "bench.toml", "test_rows.py")
    runs = [gates.start(*given, env=env) for _ in range(2)]
    outcomes = [gates.finish(run) for run in runs]
    roots = {path.parent for path in gates.evidence.glob("*/*/verdicts.json")}
    assert len(roots) == 2
    for outcome in outcomes:
        (outcome.root,) = [root for root in roots if f"evidence: {root}" in outcome.output]
        outcome.verdicts = json.loads((outcome.root / "verdicts.json").read_text())
        check(fault, outcome)
    kept = [path.name for path in (gates.directory / "cache").rglob("*") if path.is_file()]
    assert all(re.fullmatch(r"(?:kvm|pace)-[0-9a-f]{24}\.json", name) for name in kept), kept
