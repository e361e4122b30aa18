"""Every planted fault is found, and nothing else: this tests observers and judges together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_osgates.demo import fault_names, load_fault
from tests.e2e.conftest import Gates, Outcome
from tests.e2e.quick import quick_profile

pytestmark = pytest.mark.boots

QUICK = (
    "failing-unit",
    "kernel-panic",
    "weak-sysctl",
    "packages-left",
    "packages-damaged",
    "firewall-open-port",
    "aa-listener",
)
FAULTS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in fault_names()]


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name: str, gates: Gates, fault_iso: Callable[[str], Path]) -> None:
    """The gate that must find it fails with exactly its finding."""
    expects = load_fault(name).file.expects
    deadline = 150 if name == "no-ready" else 400
    profile = quick_profile(gates.directory, deadline_s=deadline)
    # What only the guest itself can say needs only the boot in which it is asked.
    rows = ["-k", "channel"] if "unit" in name and expects.gate == "boot" else []
    outcome = gates.run("--iso", fault_iso(name), "--iso-distro", profile, "-m", expects.gate, *rows)
    gate = outcome.verdicts["gates"][expects.gate]
    assert gate["verdict"] == expects.verdict
    assert outcome.findings(expects.gate) == expects.findings
    assert outcome.status == (1 if expects.verdict == "FAIL" else 10)
    assert outcome.last_line == "LAUNCH: NOT READY"
    assert f"{expects.rule}: {expects.subject}" in outcome.output
    if name == "kernel-panic":
        _noticed_at_once(outcome)


def _noticed_at_once(outcome: Outcome) -> None:
    """Not at the deadline; and in the boot without the channel, where only the screen tells."""
    assert outcome.root is not None
    for row in ("bios-channel", "bios-bare"):
        seen = json.loads((outcome.root / f"observations/boot/{row}.json").read_text())
        panic = next(alarm for alarm in seen["alarms"] if alarm["name"] == "kernel-panic")
        assert seen["outcome"] == "failed"
        assert panic["at"] < seen["deadline_s"] / 2
        assert any("Kernel panic" in line for line in seen["console"]["screen"])
