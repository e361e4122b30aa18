"""The demo's ISO with Secure Boot on: what is spoilt is refused, and its twin starts; weakened machines fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_osgates.checks.secureboot_model import SecureBootPolicy
from tests.e2e.conftest import Gates

pytestmark = pytest.mark.boots

QUICK = ("kernel-unsigned",)
ROWS = SecureBootPolicy().rows()


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row in QUICK else [pytest.mark.slow]) for row in ROWS])
def test_the_demo_passes_each_row(row: str, gates: Gates, demo_iso: Path) -> None:
    outcome = gates.run("--iso", demo_iso, "--iso-distro", "demo-secureboot", "-k", f"secureboot[{row}]")
    gate = outcome.verdicts["gates"]["secureboot"]
    assert gate["rows"][row]["verdict"] == "PASS", outcome.output
    assert outcome.findings("secureboot") == set()
    assert all(control["caught"] for control in gate["controls"])
    # One row is not the gate.
    assert gate["verdict"] == "NOT PROVEN"
    assert outcome.root is not None
    seen = json.loads((outcome.root / f"observations/secureboot/{row}.json").read_text())
    came = {start["role"]: start["came"] for start in seen["starts"]}
    assert came in ({}, {"tampered": "refused", "twin": "started"})


@pytest.mark.slow
def test_a_kernel_that_is_locked_down_less_than_wanted_fails(gates: Gates, demo_iso: Path) -> None:
    """Confidentiality is wanted, and the demo has integrity: the guest's own word is judged."""
    profile = gates.directory / "strict.toml"
    profile.write_text(
        'schema = 1\nname = "strict"\n[machine]\nfirmware = ["uefi-secureboot"]\n[boot]\n'
        'ready_target = "multi-user.target"\n[gate.secureboot]\nstate = "live"\nlockdown = "confidentiality"\n'
    )
    outcome = gates.run("--iso", demo_iso, "--iso-distro", profile, "-k", "secureboot[guest]")
    assert outcome.findings("secureboot") == {("lockdown", "lockdown")}
    assert outcome.status == 1


@pytest.mark.slow
def test_a_chain_without_microsofts_key_does_not_start(gates: Gates, demo_iso: Path) -> None:
    """Debian's shim, and own keys alone: it does not boot, and no refusal of it proves anything more."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from pytest_osgates.image.authenticode import Signer

    (gates.directory / "own.pem").write_bytes(Signer.made("own").certificate.public_bytes(Encoding.PEM))
    profile = gates.directory / "own.toml"
    profile.write_text(
        'schema = 1\nname = "own"\n[machine]\nfirmware = ["uefi-secureboot"]\n[gate.secureboot]\nstate = "live"\n'
        'keys = "own"\npk = "own.pem"\nkek = ["own.pem"]\ndb = ["own.pem"]\n'
    )
    outcome = gates.run("--iso", demo_iso, "--iso-distro", profile, "-k", "secureboot[shim-in-dbx]")
    # The twin is refused as well, for another reason than dbx.
    assert outcome.findings("secureboot") == {("twin", "shim-in-dbx")}
    assert outcome.status == 10


@pytest.mark.slow
def test_the_whole_gate_passes(gates: Gates, demo_iso: Path) -> None:
    outcome = gates.run("--iso", demo_iso, "--iso-distro", "demo-secureboot", "-n", "2")
    assert outcome.verdicts["gates"]["secureboot"]["verdict"] == "PASS"
    assert outcome.status == 0
