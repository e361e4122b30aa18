"""docs/writing-a-gate.md, followed on real machines: the gate that it builds passes, and finds what it plants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates, Outcome
from tests.guide import write_out

pytestmark = pytest.mark.boots


def test_the_gate_of_the_text_passes_and_finds_the_fault_of_the_text(
    gates: Gates, demo_iso: Path, fault_iso: Callable[[Path], Path]
) -> None:
    """On the live system; and of the fault also in the image, which boots nothing."""
    write_out(gates.directory)
    profile = gates.directory / "my.toml"
    bad = fault_iso(gates.directory / "writable-hosts")
    found = gates.run("--iso", bad, "--iso-distro", profile)
    _check_fault(found)
    assert found.root is not None
    assert not list((found.root / "machines").iterdir())

    gates.evidence = gates.directory / "good"
    text = profile.read_text()
    profile.write_text(text.replace('state = "image"', 'state = "live"'))
    assert profile.read_text() != text
    good = gates.run("--iso", demo_iso, "--iso-distro", profile)
    assert good.status == 0
    assert good.last_line.startswith("LAUNCH: ALL REQUIRED PASS")
    assert good.root is not None
    seen = json.loads((good.root / "observations/writable.json").read_text())
    assert seen["state"] == "live"
    assert len(seen["entries"]) > 300
    assert len(list((good.root / "machines").iterdir())) == 1
    gates.evidence = gates.directory / "bad"
    _check_fault(gates.run("--iso", bad, "--iso-distro", profile))


def _check_fault(outcome: Outcome) -> None:
    assert outcome.status == 1
    assert outcome.verdicts["gates"]["writable"]["verdict"] == "FAIL"
    assert outcome.findings("writable") == {("world-writable", "/etc/hosts.d/local")}
