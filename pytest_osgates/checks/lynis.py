"""Gate `lynis`: the pinned Lynis, run in the guest, and what its score rests on.

The score alone misleads: its maximum depends on which tests ran and how they ended. So it only counts when every test
that was not run is known to the profile, the run came to its end, and log and report tell the same story.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator, Field

from pytest_osgates.checks.lynis_report import LynisLog, LynisRemark, LynisReport, LynisTest
from pytest_osgates.model import Acceptance, Control, Finding, Gate, Observation, Policy, Severity, State

# Lynis 3.1.4 has 450 tests besides plugins; a run that registered far fewer left out whole categories.
FEWEST_TESTS = 400
# How many tests are named in the hint of a missed score.
NAMED = 12


class LynisObservation(Observation):
    """One run of Lynis. ``status``: its exit status, None if nobody saw it end. ``altered``: files of the tool that
    are not what was copied into the guest. ``guest_profiles``: Lynis profiles that the guest has, none of
    them used."""

    state: State
    report: LynisReport
    log: LynisLog
    status: int | None
    detail: str = ""
    guest_profiles: tuple[str, ...]
    altered: tuple[str, ...]
    duration_s: float
    tool: str
    tool_version: str
    tool_sha256: str

    @property
    def considered(self) -> int | None:
        # Run and skipped, for acceptances are of those that were skipped; but a run of skipped tests alone is none.
        return len(self.log.tests) if any(test.outcome == "run" for test in self.log.tests) else 0


def _telling(pattern: str) -> str:
    if not pattern.strip("*? "):
        raise ValueError(f"{pattern!r} fits anything: write what Lynis says")
    return pattern


Telling = Annotated[str, AfterValidator(_telling)]


class AcceptedRemark(Acceptance):
    """A warning or an exception of a test, by its text (with ``*`` and ``?``)."""

    test: str = Field(min_length=1)
    text: Telling

    def fits(self, remark: LynisRemark) -> bool:
        """Whether it is this one."""
        return self.test == remark.test and fnmatchcase(remark.text, self.text)


class AcceptedTests(Acceptance):
    """Tests that may be skipped, as long as Lynis says that it does so `because` of this (with ``*`` and ``?``): one
    that is skipped by somebody's configuration instead is not meant."""

    because: Telling
    tests: tuple[str, ...] = Field(min_length=1)

    def fits(self, test: LynisTest) -> bool:
        """Whether it is this one, for this reason."""
        return test.id in self.tests and fnmatchcase(test.reason, self.because)


class AcceptedFile(Acceptance):
    """A Lynis profile that the guest may have. It is not used all the same."""

    path: str = Field(min_length=1)


class LynisPolicy(Policy):
    """``[gate.lynis]`` of a distro profile. ``minimum``: the least hardening index, of 100."""

    minimum: int = Field(default=90, ge=1, le=100, strict=True)
    deadline_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    accept_warnings: tuple[AcceptedRemark, ...] = ()
    accept_exceptions: tuple[AcceptedRemark, ...] = ()
    accept_skipped: tuple[AcceptedTests, ...] = ()
    accept_profiles: tuple[AcceptedFile, ...] = ()


def judge(seen: LynisObservation, policy: LynisPolicy) -> list[Finding]:
    """The score, the warnings and the guest's own profiles violate; whatever the score cannot rest on is unproven.

    Of a run that did not end, what is missing says nothing: then that alone is told.
    """
    sound = _sound(seen)
    if any(finding.rule == "ended-early" for finding in sound):
        return [*sound, *_profiles(seen, policy)]
    return [
        *sound,
        *_adds_up(seen),
        *_score(seen, policy),
        *_remarks("warning", seen.report.warnings, policy.accept_warnings, Severity.VIOLATION),
        *_remarks("exception", seen.report.exceptions, policy.accept_exceptions, Severity.UNPROVEN),
        *_skipped(seen, policy),
        *_profiles(seen, policy),
    ]


def _unproven(rule: str, subject: str, found: str, wanted: str, hint: str = "") -> Finding:
    return Finding(rule=rule, subject=subject, seen=found, wanted=wanted, hint=hint, severity=Severity.UNPROVEN)


def _sound(seen: LynisObservation) -> list[Finding]:
    findings = []
    if not seen.report.finished or seen.status != 0:
        # 78 would say that there were warnings, but only with error-on-warnings=yes, which is not set (default.prf).
        said = "nobody saw it end" if seen.status is None else f"exit status {seen.status}"
        last = seen.log.tests[-1].id if seen.log.tests else "no test"
        end = "has an end" if seen.report.finished else "has no end"
        findings.append(
            _unproven(
                "ended-early",
                "lynis",
                f"{said}; its report {end}; last in its log: {last}" + (f"; {seen.detail}" if seen.detail else ""),
                "exit status 0 and a finished report",
                "something in the guest ended it, or it ran into its deadline: see inputs/lynis/ in the evidence",
            )
        )
    if seen.altered:
        findings.append(
            _unproven(
                "tool-altered",
                "lynis",
                f"{len(seen.altered)} of its files changed in the guest: {', '.join(seen.altered[:NAMED])}",
                "the files of the pinned package",
            )
        )
    if seen.report.finished and seen.report.version != seen.tool_version.partition("-")[0]:
        findings.append(
            _unproven(
                "other-version",
                "lynis",
                f"the report is of {seen.report.version or 'no version'}",
                f"{seen.tool_version}",
            )
        )
    return findings


def _adds_up(seen: LynisObservation) -> list[Finding]:
    """Report and log are written side by side by one program: they must tell the same."""
    report, log = seen.report, seen.log
    run = Counter(test.id for test in log.tests if test.outcome == "run")
    skipped = Counter(test.id for test in log.tests if test.outcome == "skipped")
    index = log.points * 100 // log.maximum if log.maximum else None
    counted = sum(test.points for test in log.tests), sum(test.maximum for test in log.tests)
    findings = []

    def differs(subject: str, found: str, wanted: str) -> None:
        findings.append(
            _unproven("report-mismatch", subject, found, wanted, "the report was not written by this run")
        )

    if index is None or report.index != index or log.index != index:
        differs(
            "hardening index",
            f"report: {report.index}, log: {log.index}",
            f"{log.points} of {log.maximum} points, which is {index}",
        )
    if report.executed is None or Counter(report.executed) != run:
        differs("tests run", _difference(report.executed, run), "the same tests in report and log")
    if report.skipped is None or Counter(report.skipped) != skipped:
        differs("tests skipped", _difference(report.skipped, skipped), "the same tests in report and log")
    if report.tests_done is None or report.tests_done != run.total():
        differs("number of tests", f"report: {report.tests_done}", f"{run.total()}, as in the log")
    if log.breaks or counted != (log.points, log.maximum):
        differs(
            "points",
            f"{counted[0]} of {counted[1]} line by line, {log.breaks} breaks",
            f"{log.points} of {log.maximum}, the last running total",
        )
    if len(log.tests) < FEWEST_TESTS:
        findings.append(
            _unproven(
                "too-few-tests",
                "lynis",
                f"{len(log.tests)} tests, run and skipped",
                f"at least {FEWEST_TESTS}",
                "whole categories were left out, or the log was cut",
            )
        )
    return findings


def _difference(reported: tuple[str, ...] | None, logged: Counter[str]) -> str:
    if reported is None:
        return "the report does not name them"
    ours = Counter(reported)
    only_report, only_log = sorted((ours - logged).elements()), sorted((logged - ours).elements())
    return f"only in the report: {_some(only_report)}; only in the log: {_some(only_log)}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return (", ".join(listed[:NAMED]) + (f", {len(listed) - NAMED} more" if len(listed) > NAMED else "")) or "none"


def _score(seen: LynisObservation, policy: LynisPolicy) -> list[Finding]:
    points, maximum = seen.log.points, seen.log.maximum
    if maximum <= 0:
        return [_unproven("score", "hardening index", "no points were given", f"at least {policy.minimum}")]
    if points * 100 >= policy.minimum * maximum:
        return []
    lost = sorted(
        (test for test in seen.log.tests if test.points < test.maximum),
        key=lambda test: (test.points - test.maximum, test.id),
    )
    named = [f"{test.id} {test.points}/{test.maximum}" for test in lost]
    return [
        Finding(
            rule="score",
            subject="hardening index",
            seen=f"{points * 100 // maximum} ({points} of {maximum} points)",
            wanted=f"at least {policy.minimum}",
            hint=f"points were lost in {_some(named)}",
        )
    ]


def _remarks(
    rule: str, remarks: tuple[LynisRemark, ...], accepted: tuple[AcceptedRemark, ...], severity: Severity
) -> list[Finding]:
    findings = []
    used: set[int] = set()
    for remark in remarks:
        fitting = [number for number, entry in enumerate(accepted) if entry.fits(remark)]
        documented = [number for number in fitting if accepted[number].documented]
        used |= set(documented)
        hint = remark.solution or remark.details
        if fitting and not documented:
            hint = "the profile's acceptance has no reason: it counts as none"
        findings.append(
            Finding(
                rule=rule,
                subject=remark.test,
                seen=remark.text,
                wanted=f"no {rule}, or one that the profile accepts",
                hint=hint,
                severity=Severity.ACCEPTED if documented else severity,
                reason=accepted[documented[0]].reason if documented else "",
            )
        )
    findings += [
        _unused(f"the {rule} {entry.test}: {entry.text}")
        for number, entry in enumerate(accepted)
        if entry.documented and number not in used
    ]
    return findings


def _unused(what: str) -> Finding:
    return Finding(
        rule="unused-acceptance",
        subject=what,
        seen="the profile accepts it, and it did not come",
        wanted="no acceptance without need",
        hint="remove it from the profile",
        severity=Severity.REMARK,
    )


def _skipped(seen: LynisObservation, policy: LynisPolicy) -> list[Finding]:
    findings = []
    used: set[tuple[int, str]] = set()
    skipped = [test for test in seen.log.tests if test.outcome == "skipped"]
    logged = {test.id for test in skipped}
    # A report may name skipped tests that the log does not.
    unlogged = [name for name in seen.report.skipped or () if name not in logged]
    for test in (*skipped, *(LynisTest(id=name, outcome="skipped") for name in unlogged)):
        fitting = [number for number, group in enumerate(policy.accept_skipped) if group.fits(test)]
        documented = [number for number in fitting if policy.accept_skipped[number].documented]
        used |= {(number, test.id) for number in documented}
        hint = ""
        if fitting and not documented:
            hint = "the profile's acceptance has no reason: it counts as none"
        elif not fitting and any(test.id in group.tests for group in policy.accept_skipped):
            hint = "the profile accepts that it is skipped, but for another reason of Lynis's"
        findings.append(
            Finding(
                rule="skipped",
                subject=test.id,
                seen=test.reason or "skipped, without a reason",
                wanted="run, or listed in accept_skipped",
                hint=hint,
                severity=Severity.ACCEPTED if documented else Severity.UNPROVEN,
                reason=policy.accept_skipped[documented[0]].reason if documented else "",
            )
        )
    unused = sorted(
        {
            name
            for number, group in enumerate(policy.accept_skipped)
            if group.documented
            for name in group.tests
            if (number, name) not in used
        }
    )
    if unused:
        findings.append(_unused(f"skipped tests: {_some(unused)}"))
    return findings


def _profiles(seen: LynisObservation, policy: LynisPolicy) -> list[Finding]:
    known = {entry.path: entry for entry in policy.accept_profiles}
    findings = []
    for path in seen.guest_profiles:
        entry = known.get(path)
        accepted = entry is not None and entry.documented
        findings.append(
            Finding(
                rule="guest-profile",
                subject=path,
                seen="the image brings its own settings for Lynis; they were not used",
                wanted="none: a profile can switch tests off",
                hint="remove it from the image, or accept it in the profile with a reason",
                severity=Severity.ACCEPTED if accepted else Severity.VIOLATION,
                reason="" if entry is None else entry.reason,
            )
        )
    findings += [
        _unused(f"the profile {path}")
        for path, entry in known.items()
        if entry.documented and path not in seen.guest_profiles
    ]
    return findings


def compare(old: LynisObservation, new: LynisObservation) -> list[str]:
    """What changed from test to test: the score's maximum depends on the outcome, so the score alone misleads."""
    lines = []
    scores = [f"{_index(seen)} ({seen.log.points} of {seen.log.maximum} points)" for seen in (old, new)]
    if scores[0] != scores[1]:
        lines.append(f"hardening index: {scores[0]} -> {scores[1]}")
    before, now = _by_test(old), _by_test(new)
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name, "not in the run"), now.get(name, "not in the run")
        if was != is_:
            lines.append(f"{name}: {was} -> {is_}")
    for rule, was_said, is_said in (
        ("warning", old.report.warnings, new.report.warnings),
        ("suggestion", old.report.suggestions, new.report.suggestions),
    ):
        texts = [{(entry.test, entry.text) for entry in said} for said in (was_said, is_said)]
        lines += [f"{rule} gone: {test}: {text}" for test, text in sorted(texts[0] - texts[1])]
        lines += [f"{rule} new: {test}: {text}" for test, text in sorted(texts[1] - texts[0])]
    return lines


def _index(seen: LynisObservation) -> str:
    return str(seen.log.points * 100 // seen.log.maximum) if seen.log.maximum else "none"


def _by_test(seen: LynisObservation) -> dict[str, str]:
    said: dict[str, list[str]] = {}
    for test in seen.log.tests:
        text = f"skipped ({test.reason})" if test.outcome == "skipped" else "run"
        if test.maximum:
            text = f"{test.points} of {test.maximum} points"
        said.setdefault(test.id, []).append(text)
    return {name: ", ".join(texts) for name, texts in said.items()}


def baseline(seen: LynisObservation, policy: LynisPolicy) -> str:
    """Acceptances, as TOML with empty reasons, for what the policy does not accept yet."""
    open_findings = [
        finding
        for finding in judge(seen, policy)
        if finding.severity in {Severity.VIOLATION, Severity.UNPROVEN}
        and finding.rule in {"warning", "exception", "skipped", "guest-profile"}
    ]
    lines = []
    by_reason: dict[str, list[str]] = {}
    for finding in open_findings:
        if finding.rule == "skipped":
            by_reason.setdefault(finding.seen, []).append(finding.subject)
    for said, tests in by_reason.items():
        lines += [
            "[[gate.lynis.accept_skipped]]",
            f"because = {_toml(glob.escape(said))}",
            'reason = ""',
            "tests = [",
        ]
        lines += [f"    {_toml(test)}," for test in sorted(tests)]
        lines += ["]", ""]
    for finding in open_findings:
        if finding.rule in {"warning", "exception"}:
            lines += [
                f"[[gate.lynis.accept_{finding.rule}s]]",
                f"test = {_toml(finding.subject)}",
                f"text = {_toml(glob.escape(finding.seen))}",
                'reason = ""',
                "",
            ]
        elif finding.rule == "guest-profile":
            lines += ["[[gate.lynis.accept_profiles]]", f"path = {_toml(finding.subject)}", 'reason = ""', ""]
    return "\n".join(lines)


def _toml(text: str) -> str:
    """A TOML basic string (TOML 1.0, section String)."""
    escaped = "".join(
        f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\u{ord(c):04x}" for c in text if ord(c) < 0x10000
    )
    return f'"{escaped}"'


# -- controls --------------------------------------------------------------------------------------------------

_INVENTED = "OSGATES-1"


def _with_log(seen: LynisObservation, **changes: object) -> LynisObservation:
    return seen.model_copy(update={"log": seen.log.model_copy(update=changes)})


def _with_report(seen: LynisObservation, **changes: object) -> LynisObservation:
    return seen.model_copy(update={"report": seen.report.model_copy(update=changes)})


def _no_points(seen: LynisObservation) -> LynisObservation:
    tests = tuple(test.model_copy(update={"points": 0}) for test in seen.log.tests)
    return _with_report(_with_log(seen, tests=tests, points=0, index=0), index=0)


def _one_skipped(seen: LynisObservation) -> LynisObservation:
    test = LynisTest(id=_INVENTED, outcome="skipped", reason="Skipped by profile setting (skip-test)")
    planted = _with_log(seen, tests=(*seen.log.tests, test))
    return _with_report(planted, skipped=(*(seen.report.skipped or ()), _INVENTED))


def _one_warning(seen: LynisObservation) -> LynisObservation:
    return _with_report(seen, warnings=(*seen.report.warnings, LynisRemark(test=_INVENTED, text="planted")))


def _one_exception(seen: LynisObservation) -> LynisObservation:
    return _with_report(seen, exceptions=(*seen.report.exceptions, LynisRemark(test=_INVENTED, text="planted")))


def _own_profile(seen: LynisObservation) -> LynisObservation:
    return seen.model_copy(update={"guest_profiles": (*seen.guest_profiles, f"/etc/lynis/{_INVENTED}.prf")})


def _forged_index(seen: LynisObservation) -> LynisObservation:
    return _with_report(seen, index=(seen.report.index or 0) + 1)


def _forged_list(seen: LynisObservation) -> LynisObservation:
    return _with_report(seen, executed=(*(seen.report.executed or ()), _INVENTED))


def _no_end(seen: LynisObservation) -> LynisObservation:
    return _with_report(seen, finished=False)


def _cut(seen: LynisObservation) -> LynisObservation:
    return _with_log(seen, tests=seen.log.tests[:10])


CONTROLS = (
    Control("no points at all", _no_points, "score", "hardening index"),
    Control("a test skipped by a profile", _one_skipped, "skipped", _INVENTED, Severity.UNPROVEN),
    Control("a warning", _one_warning, "warning", _INVENTED),
    Control("an exception", _one_exception, "exception", _INVENTED, Severity.UNPROVEN),
    Control("the guest's own profile", _own_profile, "guest-profile", f"/etc/lynis/{_INVENTED}.prf"),
    Control("a report with another index", _forged_index, "report-mismatch", "hardening index", Severity.UNPROVEN),
    Control("a report with another test", _forged_list, "report-mismatch", "tests run", Severity.UNPROVEN),
    Control("a run without an end", _no_end, "ended-early", "lynis", Severity.UNPROVEN),
    Control("a log cut off", _cut, "too-few-tests", "lynis", Severity.UNPROVEN),
)

GATE = Gate(
    name="lynis",
    title="Lynis gives at least the score that the profile demands, on tests that really ran",
    states=(State.LIVE, State.INSTALLED),
    observation=LynisObservation,
    policy=LynisPolicy,
    judge=judge,
    controls=CONTROLS,
    baseline=baseline,
    compare=compare,
)
