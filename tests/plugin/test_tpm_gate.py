"""The gate `tpm` in a run: a row for each tamper, none left out, and none of them a PASS without a boot."""

from __future__ import annotations

import pytest

from .conftest import Bench

PROFILE = """
schema = 1
name = "bench"
[machine]
firmware = ["uefi-secureboot"]
[gate.tpm]
pcrs = [4, 7, 8, 9]
passphrase = "correct horse"
"""
REQUIRED = ("fresh", "absent", "cleared", "moved", "secure-boot-off", "keys-replaced", "command-line-edited")
ROWS = ("untampered-1", "untampered-2", "untampered-3", *REQUIRED)
TESTS = """
from tpm_samples import *

@pytest.mark.tpm
def test_tpm(os_case, os_judge):
    os_judge(row(os_case))
"""


def test_each_tamper_is_a_row_of_its_own(bench: Bench) -> None:
    bench.profile(PROFILE)
    bench.tests(TESTS)
    done = bench.run().check_manifest()
    assert done.status == 0, done.output
    assert done.row_verdicts("tpm") == dict.fromkeys(ROWS, "PASS")
    assert done.record["gates"]["tpm"]["state"] == "installed, tampered"
    assert (done.root / "observations/tpm/command-line-edited.json").is_file()
    assert "correct horse" not in (done.root / "observations/tpm/fresh.json").read_text()


def test_rows_of_a_pin_are_rows_of_the_gate(bench: Bench) -> None:
    bench.profile(PROFILE + 'pin = "7531-pin"\n')
    bench.tests(TESTS.replace("row(os_case)", "pin_row(os_case)"))
    done = bench.run().check_manifest()
    assert done.status == 0, done.output
    assert done.row_verdicts("tpm") == dict.fromkeys((*ROWS, "wrong-pin", "pin-lockout"), "PASS")
    assert "7531-pin" not in (done.root / "observations/tpm/wrong-pin.json").read_text()


def test_a_row_that_was_not_run_leaves_the_gate_not_proven(bench: Bench) -> None:
    bench.profile(PROFILE)
    bench.tests(TESTS)
    done = bench.run("-k", "not moved")
    assert done.verdicts == {"tpm": "NOT PROVEN"}
    assert done.reasons("tpm") == "not run: moved"


def test_fewer_tampers_are_refused_before_anything_is_booted(bench: Bench) -> None:
    bench.profile(PROFILE + 'tampers = ["fresh", "absent"]\n')
    done = bench.plain(*bench.options())
    assert done.status == 4
    assert "line 9: gate.tpm: no profile resists fewer than" in done.errors
    assert "missing: cleared, moved, secure-boot-off, keys-replaced, command-line-edited" in done.errors


@pytest.mark.parametrize(
    ("profile", "with_disk", "said"),
    [
        (PROFILE, False, "no disk with an installed system"),
        (PROFILE, True, "variables.fd is not there"),
        (PROFILE.replace("uefi-secureboot", "bios"), True, "the machine's first firmware is bios"),
        (PROFILE.replace('passphrase = "correct horse"', ""), True, "OSGATES_PASSPHRASE is not set"),
    ],
)
def test_without_a_machine_no_row_is_proven(
    bench: Bench, profile: str, with_disk: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OSGATES_PASSPHRASE", raising=False)
    bench.profile(profile)
    (bench.path / "disk.img").write_bytes(bytes(1 << 20))
    done = bench.run(*(["--iso-disk", bench.path / "disk.img"] if with_disk else []), tests=())
    assert done.status == 10, done.output
    assert done.row_verdicts("tpm") == dict.fromkeys(ROWS, "NOT PROVEN")
    assert said in done.reasons("tpm")
    assert "correct horse" not in done.output


def test_evidence_is_judged_again_by_a_stricter_profile(bench: Bench) -> None:
    """A PCR more than the disk is bound to."""
    bench.profile(PROFILE.replace("[4, 7, 8, 9]", "[4, 7, 8, 9, 14]"))
    bench.tests(TESTS)
    done = bench.run()
    assert done.status == 1
    assert "bound to the PCRs 4, 7, 8, 9, 14: 14 as well" in done.output
