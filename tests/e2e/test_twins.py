"""An accelerated run sees what a run in real time sees: the same contacts, in the same order, at the same times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates
from tests.e2e.quick import quick_profile
from tests.e2e.twins import Contact, compare, contacts, expected, plant

pytestmark = [pytest.mark.boots, pytest.mark.slow]
WINDOW_S = 1300


def _watch(directory: Path, iso: Path, mode: str) -> list[Contact]:
    directory.mkdir()
    gates = Gates(directory)
    profile = quick_profile(directory, idle_s=WINDOW_S)
    options = ("--iso", iso, "--iso-distro", profile, "--iso-time", mode, "--iso-accel", "tcg", "-m", "telemetry")
    outcome = gates.run(*options)
    assert outcome.root is not None
    assert not gates.machines()
    # Nothing but what was planted, and none of it missed.
    assert outcome.verdicts["gates"]["telemetry"]["verdict"] == "FAIL"
    rules = {rule for rule, _ in outcome.findings("telemetry")}
    assert rules == {"contact"}
    (capture,) = outcome.root.glob("machines/*/net0.pcap")
    return [contact for contact in contacts(capture) if contact.at <= WINDOW_S - 60]


def test_an_accelerated_run_and_its_twin(tmp_path: Path, fault_iso: Callable[[str | Path], Path]) -> None:
    """Names and order agree, times within two per cent; timers come within a second of when they are due."""
    fault = tmp_path / "twin"
    fault.mkdir()
    iso = fault_iso(plant(fault))
    quick = _watch(tmp_path / "accelerated", iso, "accelerated")
    real = _watch(tmp_path / "real", iso, "real")
    planted = expected(WINDOW_S - 60)
    found = compare(quick, real)
    assert found.names
    assert found.swapped == ()
    assert sorted(contact.name for contact in quick) == sorted(contact.name for contact in planted)
    assert found.seconds <= 1.0 or found.share <= 0.02
    due = {contact.name: contact.at for contact in planted if contact.name.startswith("once-")}
    for contact in quick:
        if contact.name in due:
            assert abs(contact.at - due[contact.name]) <= 1.5, contact
