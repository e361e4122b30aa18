"""The gate `lynis`: what a score may rest on."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lynis_samples import OTHER_OS, STAMP, Story
from pydantic import ValidationError

from pytest_osgates.checks import lynis
from pytest_osgates.checks.lynis import GATE, LynisObservation, LynisPolicy
from pytest_osgates.checks.lynis_report import read_log, read_report
from pytest_osgates.judging import judge
from pytest_osgates.model import Finding, Severity, Verdict


def policy(**values: object) -> LynisPolicy:
    """Accepts what the plain story skips."""
    known = {
        "because": "Incorrect guest OS *",
        "reason": "this is Linux",
        "tests": [test for test, _ in Story().skipped],
    }
    return LynisPolicy.model_validate({"accept_skipped": [known], **values})


def decisive(seen: LynisObservation, wanted: LynisPolicy | None = None) -> set[tuple[str, str, str]]:
    """(severity, rule, subject) of what decides."""
    return {
        (str(finding.severity), finding.rule, finding.subject)
        for finding in lynis.judge(seen, wanted or policy())
        if finding.severity in {Severity.VIOLATION, Severity.UNPROVEN}
    }


def only(findings: list[Finding], rule: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.rule == rule]
    return finding


def test_a_whole_run_with_a_score_passes_and_its_controls_are_caught() -> None:
    judgement = judge(GATE, Story().seen(), policy())
    assert judgement.verdict is Verdict.PASS
    assert all(control.caught for control in judgement.controls)
    assert len(judgement.controls) == len(lynis.CONTROLS)
    tests = Story().seen().log.tests
    assert sum(test.outcome == "run" for test in tests) == 300
    assert judgement.considered == len(tests) > 300


def test_a_run_of_skipped_tests_alone_is_none() -> None:
    seen = Story().seen()
    skipped = tuple(test for test in seen.log.tests if test.outcome == "skipped")
    nothing = seen.model_copy(update={"log": seen.log.model_copy(update={"tests": skipped})})
    assert nothing.considered == 0
    assert judge(GATE, nothing, policy()).verdict is not Verdict.PASS


def test_the_demonstrated_score_is_compared_in_points_not_in_rounded_percent() -> None:
    story = Story(run=[(f"TEST-{n}", [(8999, 10000)] if n == 1 else []) for n in range(1, 301)])
    finding = only(lynis.judge(story.seen(), policy()), "score")
    assert finding.severity is Severity.VIOLATION
    assert finding.seen == "89 (8999 of 10000 points)"
    assert "TEST-1 8999/10000" in finding.hint
    story.run[0] = ("TEST-1", [(9000, 10000)])
    assert decisive(story.seen()) == set()


def test_points_that_nobody_gave_prove_nothing() -> None:
    story = Story()
    text = "".join(line for line in story.log().splitlines(keepends=True) if "Hardening" not in line)
    assert ("unproven", "score", "hardening index") in decisive(story.seen(log=text))


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (lambda s: s.replace("hardening_index=100", "hardening_index=99"), "hardening index"),
        (lambda s: s.replace("hardening_index=100\n", ""), "hardening index"),
        (lambda s: s.replace("tests_executed=TEST-1299|", "tests_executed="), "tests run"),
        (lambda s: s.replace("tests_executed=", "other="), "tests run"),
        (lambda s: s.replace("tests_skipped=", "tests_skipped=TEST-1|"), "tests skipped"),
        (lambda s: s.replace("lynis_tests_done=300", "lynis_tests_done=301"), "number of tests"),
        (lambda s: s.replace("lynis_tests_done=300\n", ""), "number of tests"),
    ],
)
def test_a_report_that_does_not_add_up_is_unproven(broken: object, expected: str) -> None:
    story = Story()
    report = broken(story.report())  # type: ignore[operator]
    assert report != story.report()
    assert ("unproven", "report-mismatch", expected) in decisive(story.seen(report=report))
    assert judge(GATE, story.seen(report=report), policy()).verdict is Verdict.NOT_PROVEN


def test_a_forged_report_of_another_run_is_unproven() -> None:
    """Internally sound, but not what the log of this run says."""
    forged = Story(run=[(f"TEST-{n}", [(3, 3)]) for n in range(1000, 1299)])
    poor = Story(run=[(f"TEST-{n}", [(1, 3)]) for n in range(1000, 1300)])
    seen = poor.seen(report=forged.report())
    rules = {(rule, subject) for _, rule, subject in decisive(seen)}
    assert {
        ("report-mismatch", "hardening index"),
        ("report-mismatch", "tests run"),
        ("score", "hardening index"),
    } <= rules


def test_a_log_whose_running_total_jumps_is_unproven() -> None:
    story = Story()
    text = story.log().replace("Currently having 30 points (out of 30)", "Currently having 40 points (out of 30)")
    assert ("unproven", "report-mismatch", "points") in decisive(story.seen(log=text))


@pytest.mark.parametrize("status", [None, 1, 137, 255])
def test_a_run_whose_end_is_not_good_is_unproven(status: int | None) -> None:
    assert decisive(Story().seen(status=status)) == {("unproven", "ended-early", "lynis")}


@given(st.integers(min_value=0, max_value=Story().log().index("Hardening index")))
def test_no_cut_log_passes(length: int) -> None:
    story = Story()
    assert decisive(story.seen(log=story.log()[:length]))


@given(st.integers(min_value=0, max_value=len(Story().report()) - 2))
def test_no_cut_report_passes(length: int) -> None:
    story = Story()
    assert decisive(story.seen(report=story.report()[:length]))


@given(st.text(max_size=300))
def test_any_text_is_read_without_an_error_and_never_passes(text: str) -> None:
    assert decisive(Story().seen(log=text, report=text))


def test_lines_without_a_date_decide_nothing() -> None:
    story = Story()
    forged = "Hardening: assigned maximum number of hardening points for this item (9). "
    forged += "Currently having 9 points (out of 9)\n"
    log = read_log(forged + story.log() + forged + "Performing test ID FAKE-1 (x)\n")
    assert log == read_log(story.log())


def test_a_test_that_the_profile_does_not_list_is_unproven() -> None:
    story = Story()
    story.skipped.append(("FILE-1", "Prerequisites not met (ie missing tool, other type of Linux distribution)"))
    assert decisive(story.seen()) == {("unproven", "skipped", "FILE-1")}


@pytest.mark.parametrize(
    "reason",
    ["Skipped by profile setting (skip-test)", "Skipped by configuration", "This test needs root permissions", ""],
)
def test_a_listed_test_that_is_skipped_for_another_reason_is_unproven(reason: str) -> None:
    story = Story()
    story.skipped[0] = (story.skipped[0][0], reason)
    finding = next(f for f in lynis.judge(story.seen(), policy()) if f.severity is Severity.UNPROVEN)
    assert finding.subject == "SKIP-1000"
    assert "another reason" in finding.hint


def test_a_skipped_test_that_only_the_report_names_is_unproven() -> None:
    story = Story()
    report = story.report().replace("tests_skipped=", "tests_skipped=MISS-1|")
    assert ("unproven", "skipped", "MISS-1") in decisive(story.seen(report=report))


def test_an_acceptance_without_a_reason_counts_as_none() -> None:
    story = Story(warnings=["WARN-1|Something|-|-|"])
    wanted = policy(
        accept_skipped=[{"because": "Incorrect *", "reason": " ", "tests": [test for test, _ in story.skipped]}],
        accept_warnings=[{"test": "WARN-1", "text": "Some*", "reason": ""}],
        accept_profiles=[{"path": "/etc/lynis/custom.prf"}],
    )
    found = decisive(story.seen(guest_profiles=("/etc/lynis/custom.prf",)), wanted)
    assert ("violation", "warning", "WARN-1") in found
    assert ("violation", "guest-profile", "/etc/lynis/custom.prf") in found
    assert len([rule for _, rule, _ in found if rule == "skipped"]) == len(story.skipped)


def test_a_warning_is_accepted_by_its_text_not_by_its_test_alone() -> None:
    story = Story(warnings=["WARN-1|Old news|-|-|", "WARN-1|New trouble|detail|text:do this|"])
    wanted = policy(accept_warnings=[{"test": "WARN-1", "text": "Old *", "reason": "known since 2020"}])
    findings = [finding for finding in lynis.judge(story.seen(), wanted) if finding.rule == "warning"]
    assert [(finding.seen, str(finding.severity)) for finding in findings] == [
        ("Old news", "accepted"),
        ("New trouble", "violation"),
    ]
    assert findings[0].reason == "known since 2020"


def test_an_exception_is_unproven() -> None:
    story = Story(extra=["exception_event[]=PROC-1|Could not find a tool|"])
    assert decisive(story.seen()) == {("unproven", "exception", "PROC-1")}
    wanted = policy(accept_exceptions=[{"test": "PROC-1", "text": "Could not*", "reason": "there is none"}])
    assert decisive(story.seen(), wanted) == set()


def test_the_guests_own_profile_is_a_violation() -> None:
    seen = Story().seen(guest_profiles=("/etc/lynis/custom.prf",))
    assert decisive(seen) == {("violation", "guest-profile", "/etc/lynis/custom.prf")}
    wanted = policy(accept_profiles=[{"path": "/etc/lynis/custom.prf", "reason": "for its users' own audits"}])
    assert decisive(seen, wanted) == set()


def test_a_tool_that_changed_or_is_another_version_is_unproven() -> None:
    assert decisive(Story().seen(altered=("include/functions",))) == {("unproven", "tool-altered", "lynis")}
    assert decisive(Story().seen(tool_version="3.1.5-1")) == {("unproven", "other-version", "lynis")}


def test_too_few_tests_are_unproven() -> None:
    story = Story(run=[(f"TEST-{n}", [(3, 3)]) for n in range(1000, 1200)])
    assert decisive(story.seen()) == {("unproven", "too-few-tests", "lynis")}


def test_unused_acceptances_are_told_and_decide_nothing() -> None:
    wanted = policy(
        accept_warnings=[{"test": "WARN-1", "text": "x*", "reason": "r"}],
        accept_profiles=[{"path": "/etc/lynis/x.prf", "reason": "r"}],
        accept_skipped=[
            {"because": "In*", "reason": "r", "tests": [*(test for test, _ in Story().skipped), "RUNS-1"]},
        ],
    )
    findings = lynis.judge(Story().seen(), wanted)
    told = [finding.subject for finding in findings if finding.rule == "unused-acceptance"]
    assert told == ["the warning WARN-1: x*", "skipped tests: RUNS-1", "the profile /etc/lynis/x.prf"]
    assert judge(GATE, Story().seen(), wanted).verdict is Verdict.PASS


def test_a_baseline_fills_in_to_a_pass_and_passes_nothing_by_itself() -> None:
    story = Story(warnings=['WARN-1|A "quoted" [bracket] \\ text|-|-|'], extra=["exception_event[]=PROC-1|x|"])
    story.skipped.append(("FILE-1", "Other [reason]*"))
    seen = story.seen(guest_profiles=("/etc/lynis/custom.prf",))
    text = lynis.baseline(seen, LynisPolicy())
    table = tomllib.loads(text)["gate"]["lynis"]
    assert judge(GATE, seen, LynisPolicy.model_validate(table)).verdict is Verdict.FAIL
    filled = tomllib.loads(text.replace('reason = ""', 'reason = "r"'))["gate"]["lynis"]
    assert judge(GATE, seen, LynisPolicy.model_validate(filled)).verdict is Verdict.PASS
    assert lynis.baseline(seen, LynisPolicy.model_validate(filled)) == ""


def test_two_runs_are_compared_test_by_test() -> None:
    old = Story(warnings=["WARN-1|Old|-|-|"])
    new = Story(warnings=["WARN-2|New|-|-|"])
    new.run[0] = ("TEST-1000", [(1, 3), (2, 2)])
    name, _ = new.run.pop()
    new.skipped.append((name, "Prerequisites not met"))
    lines = lynis.compare(old.seen(), new.seen())
    assert lines == [
        "hardening index: 100 (900 of 900 points) -> 99 (897 of 899 points)",
        "TEST-1000: 3 of 3 points -> 3 of 5 points",
        "TEST-1299: 3 of 3 points -> skipped (Prerequisites not met)",
        "warning gone: WARN-1: Old",
        "warning new: WARN-2: New",
    ]
    assert lynis.compare(old.seen(), old.seen()) == []


def test_the_report_is_read_as_it_is_written() -> None:
    report = read_report(
        "lynis_version=3.1.4\nwarning[]=A-1|t|d|s|\nsuggestion[]=B-1|only text\nhardening_index=x\nfinish=true\n"
    )
    assert (report.version, report.index, report.finished) == ("3.1.4", None, False)
    assert report.warnings[0].model_dump() == {"test": "A-1", "text": "t", "details": "d", "solution": "s"}
    assert report.suggestions[0].text == "only text"


def test_an_award_belongs_to_the_test_that_is_being_performed() -> None:
    text = (
        f"{STAMP}Performing test ID AUTH-1 (x)\n"
        f"{STAMP}Hardening: assigned partial number of hardening points (1 of 3). "
        "Currently having 1 points (out of 3)\n"
        f"{STAMP}Hardening: assigned maximum number of hardening points for this item (2). "
        "Currently having 3 points (out of 5)\n"
        f"{STAMP}Skipped test AUTH-2 (y)\n{STAMP}Reason to skip: {OTHER_OS}\n"
    )
    log = read_log(text)
    assert [(test.id, test.outcome, test.reason, test.points, test.maximum) for test in log.tests] == [
        ("AUTH-1", "run", "", 3, 5),
        ("AUTH-2", "skipped", OTHER_OS, 0, 0),
    ]
    assert (log.points, log.maximum, log.breaks) == (3, 5, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"minimum": 0},
        {"minimum": 101},
        {"minimum": True},
        {"minimum": 89.6},
        {"deadline_s": 0},
        {"deadline_s": float("inf")},
        {"accept_skipped": [{"because": "*", "tests": ["A-1"], "reason": "r"}]},
        {"accept_warnings": [{"test": "A-1", "text": "?*", "reason": "r"}]},
        {"accept_exceptions": [{"test": "A-1", "text": " * ", "reason": "r"}]},
        {"accept_skipped": [{"tests": ["A-1"], "reason": "r"}]},
        {"accept_skipped": [{"because": "Incorrect *", "tests": [], "reason": "r"}]},
        {"accept_warnings": [{"test": "A-1", "reason": "r"}]},
    ],
)
def test_a_policy_that_would_accept_too_much_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LynisPolicy.model_validate(values)
