"""The gate `settings` in a run: a row for each state that the profile names, and none of them a PASS without need."""

from __future__ import annotations

import pytest

from pytest_osgates.cli import main

from .conftest import Bench

PROFILE = """
schema = 1
name = "bench"
[gate.settings]
promise = "as the handbook says"
[[gate.settings.sysctl]]
state = "live"
reason = "because the handbook says so"
values = { "kernel.x" = 1 }
"""
INSTALLED = """
[[gate.settings.sysctl]]
state = "installed"
reason = "because the handbook says so"
values = { "kernel.x" = 2 }
"""
TESTS = """
from pytest_osgates.checks.settings.facts import SettingsObservation, SysctlFact

@pytest.mark.settings
def test_settings(os_case, os_gate_state, os_judge):
    assert os_case == str(os_gate_state)
    value = {"live": "1", "installed": "2"}[os_case]
    os_judge(SettingsObservation(state=os_gate_state, sysctls={"kernel/x": SysctlFact(value=value)}))
"""


def test_each_state_is_a_row_of_its_own_and_the_line_names_both(bench: Bench) -> None:
    bench.profile(PROFILE + INSTALLED)
    bench.tests(TESTS)
    done = bench.run().check_manifest()
    assert done.status == 0
    assert done.row_verdicts("settings") == {"live": "PASS", "installed": "PASS"}
    assert done.record["gates"]["settings"]["state"] == "live, installed"
    assert "settings       live, installed PASS" in done.output
    assert (done.root / "observations/settings/live.json").is_file()
    assert {control["row"] for control in done.record["gates"]["settings"]["controls"]} == {"live", "installed"}


def test_one_state_alone_leaves_the_gate_not_proven(bench: Bench) -> None:
    bench.profile(PROFILE + INSTALLED)
    bench.tests(TESTS)
    done = bench.run("-k", "live")
    assert done.row_verdicts("settings") == {"live": "PASS"}
    assert done.verdicts == {"settings": "NOT PROVEN"}
    assert done.reasons("settings") == "not run: installed"


def test_an_unmet_demand_fails_with_its_reason(bench: Bench) -> None:
    bench.profile(PROFILE.replace('"kernel.x" = 1', '"kernel.x" = [2, 3]'))
    bench.tests(TESTS)
    done = bench.run()
    assert done.status == 1
    assert "- sysctl: kernel.x [live]: 1" in done.output
    assert "wanted: 2 or 3" in done.output
    assert "hint: demanded because: because the handbook says so" in done.output
    (finding,) = done.record["gates"]["settings"]["findings"]
    assert finding["reason"] == "because the handbook says so"


def test_the_real_gate_without_a_disk_or_without_a_demand_boots_nothing_and_is_not_proven(bench: Bench) -> None:
    bench.profile(PROFILE[: PROFILE.index("[[")] + INSTALLED)
    done = bench.run("-m", "settings", tests=())
    assert done.status == 10
    assert done.row_verdicts("settings") == {"installed": "NOT PROVEN"}
    assert "--iso-disk" in done.reasons("settings")

    bench.profile(PROFILE[: PROFILE.index("[[")])
    done = bench.run("-m", "settings", tests=())
    assert done.status == 10
    assert done.row_verdicts("settings") == {"live": "NOT PROVEN"}
    assert "[gate.settings] has no entry" in done.reasons("settings")
    assert not list((done.root / "machines").iterdir())


def test_judging_again_by_a_profile_that_demands_more_proves_less(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.profile(PROFILE)
    bench.tests(TESTS)
    done = bench.run()
    other = bench.path / "other.toml"
    more = PROFILE + PROFILE[PROFILE.index("[[") :].replace("kernel.x", "kernel.y")
    for text, status, said in (
        (PROFILE, 0, "PASS"),
        (more, 10, "not asked for"),
        (PROFILE.replace('"kernel.x" = 1', '"kernel.x" = 9'), 1, "kernel.x"),
        (PROFILE + INSTALLED, 10, "not run: installed"),
    ):
        other.write_text(text)
        capsys.readouterr()
        assert main(["rejudge", str(done.root), "--iso-distro", str(other)]) == status
        assert said in capsys.readouterr().out
