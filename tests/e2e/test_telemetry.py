"""Every planted emitter is caught and named; none is in the clean ISO."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates
from tests.e2e.emitters import EMITTERS, plant
from tests.e2e.quick import quick_profile

pytestmark = pytest.mark.boots


def test_forty_emitters(gates: Gates, fault_iso: Callable[[str | Path], Path], tmp_path: Path) -> None:
    """One boot with all of them: exactly their findings, each in the phase in which it was sent."""
    directory = tmp_path / "emitters"
    directory.mkdir()
    profile = quick_profile(gates.directory, idle_s=100, cards=2)
    outcome = gates.run("--iso", fault_iso(plant(directory)), "--iso-distro", profile, "-m", "telemetry")
    assert outcome.verdicts["gates"]["telemetry"]["verdict"] == "FAIL"
    assert outcome.findings("telemetry") == {(emitter.rule, emitter.subject) for emitter in EMITTERS}
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/telemetry.json").read_text())
    phases = {flow["dst"]: set(flow["phases"]) for flow in seen["flows"]}
    assert phases["203.0.113.26"] == {"boot"}
    assert phases["203.0.113.27"] == {"shutdown"}
    assert phases["203.0.113.29"] <= {"boot", "idle"}
    # The service that sends is the one that is suspected.
    suspects = {suspect for flow in seen["flows"] if flow["dst"] == "203.0.113.8" for suspect in flow["suspects"]}
    assert any("osgates-fault-idle" in suspect for suspect in suspects)


@pytest.mark.slow
def test_half_an_hour_in_real_time(gates: Gates, demo_iso: Path) -> None:
    """The window of a sign-off: thirty minutes by the host's clock in which the clean demo says nothing."""
    profile = quick_profile(gates.directory)
    begun = time.monotonic()
    outcome = gates.run(
        *("--iso", demo_iso, "--iso-distro", profile, "-m", "telemetry", "--iso-time", "real", "--iso-idle", "30m")
    )
    assert time.monotonic() - begun > 1800
    assert outcome.status == 0
    assert outcome.verdicts["gates"]["telemetry"]["verdict"] == "PASS"
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/telemetry.json").read_text())
    assert seen["timing"]["mode"] == "real"
    assert seen["timing"]["idle_s"] >= 1800
    assert [(canary["moment"], canary["datagram"]) for canary in seen["canaries"]] == [
        ("start", True),
        ("middle", True),
        ("end", True),
    ]
    assert {flow["dst"] for flow in seen["flows"] if not flow["canary"]} <= {"255.255.255.255", "10.0.2.2"}
    (card,) = seen["cards"]
    assert (card["captured_out"], card["captured_in"]) == (card["counted_out"], card["counted_in"])
