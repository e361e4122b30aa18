"""The gate `secureboot` in a run: a row for each link and way, none left out, none of them a PASS without a boot."""

from __future__ import annotations

import pytest

from .conftest import Bench

PROFILE = """
schema = 1
name = "bench"
[machine]
firmware = ["uefi-secureboot"]
[gate.secureboot]
state = "live"
"""
ROWS = (
    "guest",
    *("shim-unsigned", "shim-wrongly-signed", "loader-unsigned", "loader-wrongly-signed"),
    *(
        "kernel-unsigned",
        "kernel-wrongly-signed",
        "shim-in-dbx",
        "module-unsigned",
        "module-wrongly-signed",
        "module-changed",
    ),
)
TESTS = """
from secureboot_samples import *

@pytest.mark.secureboot
def test_secureboot(os_case, os_judge):
    os_judge(row(os_case))
"""


def test_each_link_and_way_is_a_row_of_its_own(bench: Bench) -> None:
    bench.profile(PROFILE)
    bench.tests(TESTS)
    done = bench.run().check_manifest()
    assert done.status == 0, done.output
    assert done.row_verdicts("secureboot") == dict.fromkeys(ROWS, "PASS")
    assert (done.root / "observations/secureboot/kernel-unsigned.json").is_file()


def test_a_row_that_was_not_run_leaves_the_gate_not_proven(bench: Bench) -> None:
    bench.profile(PROFILE)
    bench.tests(TESTS)
    done = bench.run("-k", "not kernel-unsigned")
    assert done.verdicts == {"secureboot": "NOT PROVEN"}
    assert done.reasons("secureboot") == "not run: kernel-unsigned"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('chain = ["shim", "loader"]\n', "a chain ends with a kernel"),
        ('keys = "own"\n', "own keys are pk and kek at least"),
        ("microsoft = false\n", "without Microsoft's keys"),
    ],
)
def test_what_proves_nothing_is_refused_before_anything_is_booted(bench: Bench, section: str, said: str) -> None:
    bench.profile(PROFILE + section)
    done = bench.plain(*bench.options())
    assert done.status == 4
    assert said in done.errors


def test_without_a_disk_nothing_is_proven(bench: Bench) -> None:
    bench.profile(PROFILE.replace("live", "installed"))
    done = bench.run(tests=())
    assert done.status == 10, done.output
    assert set(done.row_verdicts("secureboot").values()) == {"NOT PROVEN"}
    assert "no disk with an installed system" in done.reasons("secureboot")
