"""The gate `firewall` on images for which its faults' shared test has no profile; and its account."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates
from tests.e2e.quick import quick_profile

pytestmark = [pytest.mark.boots, pytest.mark.slow]

HERE = Path(__file__).parent


def test_a_listener_in_ipv6_alone(gates: Gates, fault_iso: Callable[[str | Path], Path]) -> None:
    """In a family that the demo has not; from the link, by its link-local address, and from beyond the gateway."""
    path = quick_profile(gates.directory)
    text = path.read_text(encoding="utf-8").replace('families = ["ipv4"]', 'families = ["ipv4", "ipv6"]')
    path.write_text(text, encoding="utf-8")
    outcome = gates.run(
        *("--iso", fault_iso(HERE / "faults" / "firewall-ipv6-only"), "--iso-distro", path, "-m", "firewall")
    )
    assert outcome.verdicts["gates"]["firewall"]["verdict"] == "FAIL"
    assert outcome.findings("firewall") == {("open", "tcp/8081")}
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/firewall.json").read_text())
    opened = {
        (sweep["scope"], sweep["origin"])
        for sweep in seen["sweeps"]
        if sweep["family"] == "ipv6" and any(answer["how"] == "open" for answer in sweep["answers"])
    }
    assert opened == {("link-local", "link"), ("global", "link"), ("global", "beyond")}


def test_every_probe_is_accounted_for(gates: Gates, demo_iso: Path) -> None:
    """Frames sent are frames received, exactly."""
    outcome = gates.run("--iso", demo_iso, "--iso-distro", quick_profile(gates.directory), "-m", "firewall")
    assert outcome.verdicts["gates"]["firewall"]["verdict"] == "PASS"
    assert all(control["caught"] for control in outcome.verdicts["gates"]["firewall"]["controls"])
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/firewall.json").read_text())
    accounts = seen["accounts"]
    assert accounts["sent"] == accounts["received"] >= accounts["own"] > 131_070
    assert (accounts["runs"], accounts["drops"], accounts["problem"]) == (1, {}, "")
    assert accounts["reached"]["tcp"] <= 20
    full = [sweep for sweep in seen["sweeps"] if sweep["protocol"] == "tcp" and sweep["full"]]
    assert [sweep["asked"] for sweep in full] == [65535, 65535]
    assert all(sweep["paced"] == "answers" and not sweep["repeated"] for sweep in full)
    (watch,) = seen["boot"]
    assert watch["proven"] >= 20
    assert watch["alive_s"] > 0
