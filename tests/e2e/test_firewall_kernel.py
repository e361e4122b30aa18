"""The gate `firewall` against a real kernel: this host's, in a network namespace of its own. No machine is booted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_osgates.demo.definition import DEFINITION
from pytest_osgates.demo.fault import FAULTS

DEMO = DEFINITION.parent / "tree/etc/nftables.conf"
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace with a tap device needs root"),
    pytest.mark.skipif(
        shutil.which("nft") is None or shutil.which("ip") is None, reason="apt-get install nftables iproute2"
    ),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="the host has no /dev/net/tun"),
]


def gate(**asked: Any) -> dict[str, Any]:
    """What the gate says."""
    argv = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.e2e.kernel_guest", json.dumps(asked)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rules(fault: str) -> str:
    return str(FAULTS / fault / "tree/etc/nftables.conf")


def decisive(said: dict[str, Any]) -> set[tuple[str, str]]:
    return {(rule, subject) for severity, rule, subject in said["findings"] if severity in ("violation", "unproven")}


def test_the_demos_rules_pass_and_every_probe_is_accounted_for() -> None:
    said = gate(rules=str(DEMO))
    assert said["verdict"] == "PASS", said["findings"]
    assert all(said["controls"].values())
    accounts = said["accounts"]
    assert accounts["sent"] == accounts["received"] > 131_070
    assert (accounts["drops"], accounts["runs"], accounts["reached"]["tcp"]) == ({}, 1, 0)


@pytest.mark.parametrize(
    ("asked", "finding"),
    [
        ({"rules": rules("firewall-open-port"), "listen": [8080]}, ("open", "tcp/8080")),
        ({"rules": rules("firewall-rule-for-nobody")}, ("accepts", "tcp/2222")),
        ({"rules": rules("firewall-policy-accept")}, ("not-default-deny", "ipv4")),
        ({}, ("no-ruleset", "input")),
        ({"rules": rules("firewall-ping")}, ("answers", "icmp/echo")),
        ({"rules": rules("firewall-reject")}, ("rejected", "ipv4")),
        ({"rules": str(DEMO), "late_s": 3}, ("refused-at-boot", "ipv4")),
        (
            {
                "rules": str(Path(__file__).parent / "faults/firewall-ipv6-only/tree/etc/nftables.conf"),
                "listen6": [8081],
                "policy": {},
            },
            ("open", "tcp/8081"),
        ),
    ],
)
def test_the_rules_of_the_fault_images(asked: dict[str, Any], finding: tuple[str, str]) -> None:
    said = gate(**asked)
    assert said["verdict"] == "FAIL"
    assert decisive(said) == {finding}


def test_a_port_that_is_open_while_it_boots() -> None:
    said = gate(rules=str(DEMO), late_s=4, boot_listen=[8080])
    assert decisive(said) == {("open-at-boot", "tcp/8080"), ("refused-at-boot", "ipv4")}


@pytest.mark.parametrize("asked", [{"lose_every": 5000}, {"swallow": 4000}])
def test_loss_is_never_silence(asked: dict[str, Any]) -> None:
    said = gate(rules=str(DEMO), **asked)
    assert said["verdict"] == "NOT PROVEN"
    assert decisive(said) == {("lost", "card")}
    assert said["accounts"]["runs"] == 2
