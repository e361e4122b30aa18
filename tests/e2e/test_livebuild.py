"""An ISO that this project did not make: a stock image of Debian's live-build, unmodified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_osgates.paths import cache_dir
from tests.e2e.conftest import PROFILES, Gates
from tests.e2e.livebuild import stock_live_iso

pytestmark = [pytest.mark.boots, pytest.mark.slow]


@pytest.fixture(scope="session")
def stock_iso() -> Path:
    """Built once, kept in the cache."""
    return stock_live_iso(cache_dir("live-build"))


def test_stock_image(gates: Gates, stock_iso: Path) -> None:
    """It boots on both firmwares, its menu answered; its kernel's settings fail, and so does its score."""
    profile = PROFILES / "livebuild.toml"
    outcome = gates.run("--iso", stock_iso, "--iso-distro", profile, "-n", "2", "-m", "boot or kconfig or lynis")
    assert outcome.verdicts["gates"]["boot"]["verdict"] == "PASS"
    assert outcome.verdicts["gates"]["kconfig"]["verdict"] == "FAIL"
    assert outcome.verdicts["gates"]["lynis"]["verdict"] == "FAIL"
    assert ("score", "hardening index") in outcome.findings("lynis")
    assert outcome.status == 1
    assert outcome.last_line == "LAUNCH: NOT READY"
    assert outcome.root is not None
    lynis = json.loads((outcome.root / "observations/lynis.json").read_text())
    assert lynis["status"] == 0
    assert 0 < lynis["report"]["index"] < 90
    assert lynis["report"]["tests_done"] > 200
    for row in ("bios-channel", "bios-bare", "uefi-channel", "uefi-bare"):
        seen = json.loads((outcome.root / f"observations/boot/{row}.json").read_text())
        assert [press["keys"] for press in seen["keys"]] == ["ret"], row
        assert "menu" in seen["screenshots"]


def test_stock_image_calls_out(gates: Gates, stock_iso: Path) -> None:
    """Its time service asks a pool of Debian's for the time, and DHCP is told its name."""
    profile = PROFILES / "livebuild.toml"
    outcome = gates.run("--iso", stock_iso, "--iso-distro", profile, "-m", "telemetry")
    assert outcome.verdicts["gates"]["telemetry"]["verdict"] == "FAIL"
    assert outcome.status == 1
    findings = outcome.findings("telemetry")
    vendors = {subject for rule, subject in findings if rule == "vendor"}
    assert vendors
    assert vendors <= {f"{number}.debian.pool.ntp.org" for number in range(4)}
    assert not {rule for rule, _ in findings} & {"canary", "no-lease", "count-mismatch"}
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/telemetry.json").read_text())
    suspects = {
        suspect
        for flow in seen["flows"]
        if vendors & {name["name"] for name in flow["names"]}
        for suspect in flow["suspects"]
    }
    assert any("systemd-timesyncd" in suspect for suspect in suspects), suspects


def test_stock_image_confines_little(gates: Gates, stock_iso: Path) -> None:
    """Who talks on the network is named, and who does not is left alone; AppArmor's own tool sees no more."""
    own = Path(__file__).parent / "guest" / "stock_checks.py"
    arguments = ("--iso", stock_iso, "--iso-distro", PROFILES / "livebuild.toml")
    outcome = gates.run(*arguments, "-m", "apparmor or own", own, "--pyargs", "pytest_osgates.gates")
    assert outcome.verdicts["gates"]["apparmor"]["verdict"] == "FAIL"
    assert "1 failed, 3 passed" in outcome.output
    findings = outcome.findings("apparmor")
    assert {rule for rule, _ in findings} == {"unconfined"}
    unconfined = {subject for _, subject in findings}
    assert unconfined >= {
        "/usr/lib/systemd/systemd-timesyncd",
        "/usr/sbin/dhcpcd",
        "/usr/bin/ping",
        "/usr/bin/rsync",
        "/usr/bin/perl",
        "/usr/bin/python3.13",
        "/usr/lib/apt/methods/http",
    }
    assert not unconfined & {"/usr/bin/ls", "/usr/bin/cat", "/usr/bin/mount", "/usr/bin/dpkg", "/usr/sbin/mkfs.ext4"}
