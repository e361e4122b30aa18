"""Every planted fault is found, and nothing else: this tests observers and judges together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_osgates.demo import fault_names, load_fault
from tests.e2e.conftest import Gates
from tests.e2e.quick import quick_profile

pytestmark = pytest.mark.boots

QUICK = ("failing-unit", "kernel-panic", "weak-sysctl", "unknown-parameter")
FAULTS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in fault_names()]


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name: str, gates: Gates, fault_iso: Callable[[str], Path]) -> None:
    """The gate that must find it fails with exactly its finding."""
    expects = load_fault(name).file.expects
    deadline = 150 if name == "no-ready" else 400
    profile = quick_profile(gates.directory, deadline_s=deadline)
    outcome = gates.run("--iso", fault_iso(name), "--iso-distro", profile, "-m", expects.gate)
    gate = outcome.verdicts["gates"][expects.gate]
    assert gate["verdict"] == "FAIL"
    assert outcome.findings(expects.gate) == {(expects.rule, expects.subject)}
    assert outcome.status == 1
    assert outcome.last_line == "LAUNCH: NOT READY"
    assert f"{expects.rule}: {expects.subject}" in outcome.output


def test_panic_is_noticed_at_once(gates: Gates, fault_iso: Callable[[str], Path]) -> None:
    """Not at the deadline: the boot without the channel, where only the screen tells."""
    profile = quick_profile(gates.directory)
    outcome = gates.run("--iso", fault_iso("kernel-panic"), "--iso-distro", profile, "-m", "boot", "-k", "bare")
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/boot/bios-bare.json").read_text())
    panic = next(alarm for alarm in seen["alarms"] if alarm["name"] == "kernel-panic")
    assert seen["outcome"] == "failed"
    assert panic["at"] < 200
    assert any("Kernel panic" in line for lines in seen["console"].values() for line in lines)
    # The other row of the gate was not run: a gate with a missing row never passes.
    assert outcome.verdicts["gates"]["boot"]["verdict"] == "FAIL"
