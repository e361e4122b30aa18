"""The demo ISO passes its gates, on every firmware, and says so in every form."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates

pytestmark = pytest.mark.boots

ROWS = {f"{firmware}-{way}" for firmware in ("bios", "uefi", "uefi-secureboot") for way in ("channel", "bare")}


def test_demo_passes_every_gate_on_every_firmware(gates: Gates, demo_iso: Path) -> None:
    """Six boots, one run of Lynis, one verdict a gate."""
    junit = gates.directory / "junit.xml"
    outcome = gates.run("--iso", demo_iso, "--junitxml", junit, "-n", "2", "--dist", "loadgroup")
    assert outcome.status == 0
    assert outcome.last_line.startswith("LAUNCH: ALL REQUIRED PASS (not a sign-off")
    boot = outcome.verdicts["gates"]["boot"]
    assert boot["verdict"] == "PASS"
    assert set(boot["rows"]) == ROWS
    assert all(control["caught"] for gate in outcome.verdicts["gates"].values() for control in gate["controls"])
    assert outcome.root is not None
    # Two workers, and no state was made twice.
    assert {path.name for path in (outcome.root / "machines").iterdir()} == {*ROWS, "firewall", "telemetry"}
    _check_boots(outcome.root)
    _check_manifest(outcome.root)
    _check_junit(junit, len(ROWS) + len(outcome.verdicts["selected"]) - 1)
    considered = {
        "kconfig": 300,
        "lynis": 400,
        "packages": 100,
        "settings": 20,
        "telemetry": 4,
        "firewall": 131_000,
        "apparmor": 200,
    }
    for gate, fewest in considered.items():
        assert outcome.verdicts["gates"][gate]["verdict"] == "PASS", gate
        assert outcome.verdicts["gates"][gate]["considered"] > fewest, gate
    lynis = json.loads((outcome.root / "observations/lynis.json").read_text())
    assert lynis["report"]["index"] >= 90
    tests = lynis["log"]["tests"]
    assert lynis["report"]["tests_done"] == sum(test["outcome"] == "run" for test in tests)
    assert outcome.verdicts["gates"]["lynis"]["considered"] == len(tests)
    assert "PASS (" in outcome.output


def _check_boots(root: Path) -> None:
    for row in ROWS:
        seen = json.loads((root / f"observations/boot/{row}.json").read_text())
        assert seen["outcome"] == "ready", row
        assert {"firmware", "ready"} <= set(seen["screenshots"]), row
        for shot in seen["screenshots"].values():
            assert (root / shot).read_bytes().startswith(b"\x89PNG"), row
        if row.endswith("-channel"):
            assert seen["watched_s"] >= 60
            assert seen["units_asked"]
            assert seen["system_state"] == "running"
            assert {"firmware and boot loader", "userspace"} <= set(seen["phases"])
        else:
            # Nothing was injected where nothing is to help or harm.
            arguments = json.loads((root / f"machines/{row}/qemu.json").read_text())["arguments"]
            assert not any("smbios" in argument or "virtserialport" in argument for argument in arguments)
    secure = json.loads((root / "observations/boot/uefi-secureboot-channel.json").read_text())
    assert secure["secure_boot"] is True


def _check_manifest(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    listed = set(manifest["files"])
    present = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {"manifest.json"}
    assert listed == present
    for path, record in manifest["files"].items():
        assert hashlib.sha256((root / path).read_bytes()).hexdigest() == record["sha256"], path


def _check_junit(path: Path, expected: int) -> None:
    """Every required gate is one test, but for the gate `boot`, which is one a row."""
    cases = ET.parse(path).getroot().findall(".//testcase")  # noqa: S314  (our own output)
    assert len(cases) == expected
    for case in cases:
        properties = {(entry.get("name"), entry.get("value")) for entry in case.findall("./properties/property")}
        assert ("verdict", "PASS") in properties


def test_one_gate_boots_once_and_is_partial(gates: Gates, demo_iso: Path) -> None:
    """By marker; and a test of the user's own asks the guest through testinfra, on the same machine."""
    own = Path(__file__).parent / "guest" / "guest_checks.py"
    outcome = gates.run("--iso", demo_iso, "-m", "kconfig or own", own, "--pyargs", "pytest_osgates.gates")
    assert outcome.status == 0
    assert outcome.last_line == "LAUNCH: PARTIAL (1 of 8 required gates)"
    assert outcome.root is not None
    assert len(list((outcome.root / "machines").iterdir())) == 1
    assert outcome.verdicts["selected"] == ["kconfig"]
    seen = json.loads((outcome.root / "observations/kconfig.json").read_text())
    assert seen["config"]["name"] == f"image:/boot/config-{seen['release']}"
