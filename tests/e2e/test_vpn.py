"""A real kernel's WireGuard behind the sinkhole: quiet it passes, and leaks through it and beside it are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates
from tests.e2e.quick import quick_profile
from tests.e2e.vpn import ASKED, BESIDE, ENDPOINT, INSIDE, PEER_PRIVATE, PRESHARED, plant, write_profile

pytestmark = [pytest.mark.boots, pytest.mark.slow]


def test_a_quiet_machine_behind_its_vpn_passes(
    gates: Gates, demo_iso: Path, fault_iso: Callable[[str | Path], Path], tmp_path: Path
) -> None:
    directory = tmp_path / "vpn"
    directory.mkdir()
    profile = write_profile(quick_profile(gates.directory, deadline_s=1200))
    iso = fault_iso(plant(directory, demo_iso, leaks=False))
    outcome = gates.run("--iso", iso, "--iso-distro", profile, "-m", "telemetry")
    assert outcome.findings("telemetry") == set()
    assert outcome.verdicts["gates"]["telemetry"]["verdict"] == "PASS"
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/telemetry.json").read_text())
    (peer,) = seen["vpn"]
    assert peer["handshakes"] >= 1
    assert peer["refused"] == {}
    assert peer["datagrams"] == peer["captured"]
    assert all(canary["ways"] == ["tunnel udp"] for canary in seen["canaries"])
    kept = b"".join(path.read_bytes() for path in outcome.root.rglob("*") if path.is_file())
    assert PEER_PRIVATE.encode() not in kept
    assert PRESHARED.encode() not in kept


def test_leaks_through_the_tunnel_and_beside_it(
    gates: Gates, demo_iso: Path, fault_iso: Callable[[str | Path], Path], tmp_path: Path
) -> None:
    directory = tmp_path / "vpn-leaks"
    directory.mkdir()
    profile = write_profile(quick_profile(gates.directory, deadline_s=1200))
    iso = fault_iso(plant(directory, demo_iso, leaks=True))
    outcome = gates.run("--iso", iso, "--iso-distro", profile, "-m", "telemetry")
    assert outcome.verdicts["gates"]["telemetry"]["verdict"] == "FAIL"
    assert outcome.findings("telemetry") == {
        ("literal-address", INSIDE),
        ("contact", ASKED),
        ("literal-address", BESIDE),
    }
    said = {finding["subject"]: finding for finding in outcome.verdicts["gates"]["telemetry"]["findings"]}
    assert said[INSIDE]["seen"].startswith("inside the tunnel: ")
    assert said[ASKED]["seen"].startswith("inside the tunnel: ")
    assert not said[BESIDE]["seen"].startswith("inside")
    assert said[ENDPOINT]["severity"] == "accepted"
