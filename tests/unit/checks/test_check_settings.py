"""The judge of the gate `settings`: each demand that is not met is one finding, and nothing unknown is a PASS."""

from __future__ import annotations

import json

import pytest
from gate_samples import keys
from settings_cases import CASES, CLEAN, DEMANDED, SSHD, R, U, V, with_key
from settings_samples import FILE, LIBRARY, POLICY, REASON, a_file, policy

from pytest_osgates.checks.settings import GATE
from pytest_osgates.checks.settings.facts import FileFact, ProcessesFact, SettingsObservation, SysctlFact, TextFact
from pytest_osgates.checks.settings.policy import SettingsPolicy
from pytest_osgates.judging import judge
from pytest_osgates.model import State, Verdict


def test_a_system_that_meets_everything_passes_and_every_control_is_caught() -> None:
    judgement = judge(GATE, CLEAN, DEMANDED)
    assert judgement.findings == ()
    assert [control for control in judgement.controls if not control.caught] == []
    assert len(judgement.controls) == len(DEMANDED.demands(State.LIVE)) > 60
    assert judgement.verdict is Verdict.PASS


@pytest.mark.parametrize("name", CASES)
def test_each_cause_gives_exactly_its_findings(name: str) -> None:
    seen, wanted = CASES[name]
    findings = GATE.judge(seen, DEMANDED)
    assert sorted((*finding.key, finding.severity) for finding in findings) == sorted(wanted)
    for finding in findings:
        assert finding.seen
        assert finding.wanted
        if finding.severity is not R:
            assert finding.reason == REASON
            assert REASON in finding.hint


# One of each kind: each of them judges some sixty times.
SOME = list({findings[0][0]: name for name, (_, findings) in CASES.items() if findings}.values())


@pytest.mark.parametrize("name", SOME)
def test_what_is_still_met_keeps_its_control(name: str) -> None:
    seen, _ = CASES[name]
    assert [control for control in judge(GATE, seen, DEMANDED).controls if not control.caught] == []


def test_what_was_seen_survives_the_way_to_disk_and_back() -> None:
    stored = json.dumps(CLEAN.model_dump(mode="json"))
    assert SettingsObservation.model_validate_json(stored) == CLEAN


def test_an_observation_in_which_nothing_was_asked_proves_nothing() -> None:
    judgement = judge(GATE, SettingsObservation(state=State.LIVE), DEMANDED)
    assert judgement.verdict is Verdict.NOT_PROVEN
    assert judgement.controls == ()
    assert {finding.severity for finding in judgement.findings} == {U}
    assert {finding.key for finding in judgement.findings} == {
        (demand.rule, demand.subject) for demand in DEMANDED.demands(State.LIVE)
    }


def test_an_empty_policy_proves_nothing() -> None:
    judgement = judge(GATE, CLEAN, SettingsPolicy())
    assert judgement.verdict is Verdict.NOT_PROVEN
    assert keys(judgement.findings, U) == [("nothing-demanded", "live")]
    assert GATE.cases(SettingsPolicy(), ("uefi",)) == ("live",)


def test_demands_on_one_state_say_nothing_of_another() -> None:
    installed = policy('[[sysctl]]\nvalues = { "kernel.x" = 1 }\n', state="installed")
    assert GATE.cases(installed, ("uefi",)) == ("installed",)
    assert keys(judge(GATE, CLEAN, installed).findings) == [("nothing-demanded", "live")]
    seen = CLEAN.model_copy(update={"state": State.INSTALLED, "sysctls": {"kernel/x": SysctlFact(value="0")}})
    assert keys(judge(GATE, seen, installed).findings, V) == [("sysctl", "kernel.x")]


def test_rows_are_the_states_that_entries_name() -> None:
    both = SettingsPolicy.model_validate(
        {
            "lockdown": [
                {"state": "installed", "reason": "r", "mode": "integrity"},
                {"state": "live", "reason": "r", "mode": "integrity"},
            ]
        }
    )
    assert GATE.cases(both, ()) == ("live", "installed")
    assert GATE.state_of_case is not None
    assert [GATE.state_of_case(case) for case in ("live", "installed")] == [State.LIVE, State.INSTALLED]


def test_a_demand_that_was_not_asked_for_is_unproven_for_each_kind() -> None:
    """As after judging again by another profile."""
    more = policy(
        POLICY.replace("kernel.kptr_restrict", "kernel.other")
        .replace("fire.service", "other.service")
        .replace("/etc/skel", "/etc/other")
        .replace(LIBRARY, "/usr/lib/other.so")
    )
    findings = GATE.judge(CLEAN, more)
    assert {finding.severity for finding in findings if "other" in finding.subject} == {U}
    assert {finding.rule for finding in findings} == {"sysctl", "unit", "file", "library"}


def test_content_and_capabilities_that_were_not_asked_for_are_unproven() -> None:
    seen = with_key("files", SSHD, FileFact(own=FILE, target=FILE.model_copy(update={"mode": 0o600})))
    assert len(keys(GATE.judge(seen, DEMANDED), U)) == 3
    seen = with_key("files", "/usr/bin/ping", a_file())
    assert keys(GATE.judge(seen, DEMANDED), U) == [("file", "/usr/bin/ping capabilities")]


FIELDS = [name for name in SettingsObservation.model_fields if name not in {"state", "schema_version"}]


@pytest.mark.parametrize("taken", FIELDS)
def test_without_any_part_of_what_was_seen_there_is_no_pass(taken: str) -> None:
    seen = SettingsObservation(**{name: getattr(CLEAN, name) for name in ("state", *FIELDS) if name != taken})
    judgement = judge(GATE, seen, DEMANDED)
    assert judgement.verdict is Verdict.NOT_PROVEN
    assert all(control.caught for control in judgement.controls)


def test_an_unreadable_list_of_processes_is_unproven_once_for_each_demand() -> None:
    seen = CLEAN.model_copy(
        update={"processes": ProcessesFact(preload=TextFact(), libraries={}, problem="the guest did not answer")}
    )
    assert keys(GATE.judge(seen, DEMANDED), U) == [
        ("library", f"{LIBRARY} preload"),
        ("library", f"{LIBRARY} mapped"),
    ]
