"""Runs of which only a part happened: what was not run is not proven, and the run says that it was a part."""

from __future__ import annotations

import re

import pytest

from .conftest import BOOT_ROWS, PROFILE, Bench

FIRST_FAILS = """
import os

def change(case, seen):
    if case == "uefi-channel" and not os.environ.get("MENDED"):
        {what}
    return seen
"""


def test_after_a_fail_with_x_the_rest_is_not_proven_and_lf_alone_proves_no_gate(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.rows(FIRST_FAILS.format(what='return seen.model_copy(update={"resets": 1})'))
    done = bench.run("-x").check_manifest()
    assert done.status == 1
    assert done.verdicts == {"boot": "FAIL", "kconfig": "NOT PROVEN"}
    assert done.row_verdicts("boot") == {"uefi-channel": "FAIL"}
    assert "not run: uefi-bare, bios-channel, bios-bare" in done.reasons("boot")
    assert done.reasons("kconfig") == "not run"
    assert done.lines[-1] == "LAUNCH: NOT READY"

    monkeypatch.setenv("MENDED", "1")
    again = bench.run("--lf")
    assert again.row_verdicts("boot") == {"uefi-channel": "PASS"}
    assert again.verdicts == {"boot": "NOT PROVEN", "kconfig": "NOT PROVEN"}
    assert again.status == 10
    assert again.lines[-1] == "LAUNCH: NOT READY"
    assert again.root != done.root


def test_a_not_proven_counts_for_maxfail(bench: Bench) -> None:
    bench.rows(FIRST_FAILS.format(what="pytest.skip('x')"))
    done = bench.run("--maxfail=1")
    assert done.status == 10
    assert done.verdicts == {"boot": "NOT PROVEN", "kconfig": "NOT PROVEN"}
    assert set(done.row_verdicts("boot")) == {"uefi-channel"}


def test_rows_that_were_deselected_leave_their_gate_not_proven(bench: Bench) -> None:
    done = bench.run("-k", "not bios-bare")
    assert done.row_verdicts("boot") == dict.fromkeys(BOOT_ROWS[:3], "PASS")
    assert done.verdicts == {"boot": "NOT PROVEN", "kconfig": "PASS"}
    assert done.reasons("boot") == "not run: bios-bare"
    assert done.status == 10
    assert done.lines[-1] == "LAUNCH: NOT READY"


def test_a_gate_chosen_by_its_marker_makes_a_partial_run(bench: Bench) -> None:
    done = bench.run("-m", "kconfig").check_manifest()
    assert done.status == 0
    assert done.verdicts == {"boot": "NOT PROVEN", "kconfig": "PASS"}
    assert done.record["selected"] == ["kconfig"]
    assert done.lines[-1] == "LAUNCH: PARTIAL (1 of 2 required gates)"
    assert "not selected: boot" in done.output


def test_nothing_chosen_proves_nothing(bench: Bench) -> None:
    done = bench.run("-k", "no_such_test")
    assert done.status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert set(done.verdicts.values()) == {"NOT PROVEN"}
    assert done.lines[-1] == "LAUNCH: PARTIAL (0 of 2 required gates)"


def test_gates_that_this_version_lacks_are_not_proven_even_where_no_path_is_named(bench: Bench) -> None:
    """Without a path the built-in gates are collected, whatever `testpaths` says, wherever they are installed."""
    bench.profile(
        PROFILE + "[gate.mesh-offline]\nstate = 'installed'\n[gate.house-rule]\n[gate.amnesic]\nrequired = false\n"
    )
    (bench.path / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    done = bench.run("-v", "-m", "mesh-offline or house-rule or amnesic", tests=())
    assert done.status == 10
    assert done.record["selected"] == ["amnesic", "house-rule", "mesh-offline"]
    assert set(done.verdicts.values()) == {"NOT PROVEN"}
    for gate in ("mesh-offline", "house-rule", "amnesic"):
        assert f"no gate '{gate}'" in done.reasons(gate)
    assert done.record["gates"]["mesh-offline"]["state"] == "installed"
    assert "amnesic        live       NOT PROVEN [not required]" in done.output
    assert done.lines[-1] == "LAUNCH: NOT READY"
    assert re.search(r"\d+ deselected, 3 not proven in", done.output)
    assert "test_rows.py" not in done.output


def test_a_gate_of_another_profile_is_left_out_and_other_tests_run_beside(bench: Bench) -> None:
    bench.profile(PROFILE.replace('[gate.kconfig]\nparameters = ["BOOT_IMAGE=*", "quiet"]\n', ""))
    bench.rows(
        """
def test_beside(os_run, os_image):
    assert os_image.read("/etc/os-release", 100) == b"ID=osgates-test\\n"

@pytest.mark.skip
def test_skipped():
    pass
"""
    )
    done = bench.run()
    assert done.status == 0
    assert done.verdicts == {"boot": "PASS"}
    assert "5 passed, 1 skipped" in done.output
    assert done.lines[-1].startswith("LAUNCH: ALL REQUIRED PASS")


def test_a_broken_test_beside_the_gates_keeps_the_run_from_being_ready(bench: Bench) -> None:
    (bench.path / "test_beside.py").write_text("def test_beside():\n    assert 0\n")
    (bench.path / "test_other.py").write_text("import no_such_module\n")
    done = bench.run("--continue-on-collection-errors", tests=["test_rows.py", "test_beside.py", "test_other.py"])
    assert done.status == 1
    assert set(done.verdicts.values()) == {"PASS"}
    assert done.lines[-1] == "LAUNCH: NOT READY"
