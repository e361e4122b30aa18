"""Reads what Lynis wrote: its report (``KEY=VALUE`` lines) and its log (one dated line for each step).

Both are written by Lynis 3 as it goes (include/functions: Report, LogText, Register, AddHP). The report tells the
outcome, the log how it came about: which test gave how many points, and why a test was skipped.
"""

from __future__ import annotations

import re
from typing import Literal

from pytest_osgates.model import Model

MAX_ENTRIES = 5000
MAX_TEXT = 500

_STAMP = re.compile(r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2} ")
_TEST_ID = r"[A-Z][A-Z0-9]{1,15}-[0-9]{1,6}"
_PERFORMING = re.compile(rf"^Performing test ID ({_TEST_ID}) \(")
_SKIPPED = re.compile(rf"^Skipped test ({_TEST_ID}) \(")
_REASON = re.compile(r"^Reason to skip: (.*)$")
_POINTS = re.compile(
    r"^Hardening: assigned (?:maximum number of hardening points for this item \((?P<all>\d{1,5})\)|"
    r"partial number of hardening points \((?P<some>\d{1,5}) of (?P<max>\d{1,5})\))\. "
    r"Currently having (?P<points>\d{1,7}) points \(out of (?P<total>\d{1,7})\)$"
)
_INDEX = re.compile(r"^Hardening index : \[(\d{1,3})\]")
_NUMBER = re.compile(r"^\d{1,7}$")


class LynisTest(Model):
    """One test as the log has it. Points are what it added, of how many; several awards of one test are summed up."""

    id: str
    outcome: Literal["run", "skipped"]
    reason: str = ""
    points: int = 0
    maximum: int = 0


class LynisRemark(Model):
    """One warning, suggestion or exception of the report."""

    test: str
    text: str
    details: str = ""
    solution: str = ""


class LynisLog(Model):
    """What the log says. ``points`` and ``maximum``: its last running totals; ``breaks``: how often a running total
    did not follow from the one before."""

    tests: tuple[LynisTest, ...] = ()
    points: int = 0
    maximum: int = 0
    index: int | None = None
    breaks: int = 0


class LynisReport(Model):
    """What the report says; None: it does not say."""

    version: str = ""
    index: int | None = None
    tests_done: int | None = None
    executed: tuple[str, ...] | None = None
    skipped: tuple[str, ...] | None = None
    finished: bool = False
    warnings: tuple[LynisRemark, ...] = ()
    suggestions: tuple[LynisRemark, ...] = ()
    exceptions: tuple[LynisRemark, ...] = ()


def read_log(text: str) -> LynisLog:
    """The log of one run. Lines without a date are the tail of what a test printed, and decide nothing."""
    tests: list[LynisTest] = []
    points = total = breaks = 0
    index: int | None = None
    # Not splitlines(), which knows a dozen other ends that a name of the guest's may hold.
    for line in text.split("\n"):
        stamp = _STAMP.match(line)
        if stamp is None:
            continue
        said = line[stamp.end() :]
        if match := _PERFORMING.match(said):
            tests.append(LynisTest(id=match[1], outcome="run"))
        elif match := _SKIPPED.match(said):
            tests.append(LynisTest(id=match[1], outcome="skipped"))
        elif (match := _REASON.match(said)) and tests and tests[-1].outcome == "skipped" and not tests[-1].reason:
            tests[-1] = tests[-1].model_copy(update={"reason": match[1][:MAX_TEXT]})
        elif match := _POINTS.match(said):
            got, most = (int(match["all"]),) * 2 if match["all"] else (int(match["some"]), int(match["max"]))
            points, total = points + got, total + most
            if (points, total) != (int(match["points"]), int(match["total"])):
                breaks += 1
                points, total = int(match["points"]), int(match["total"])
            if tests:
                last = tests[-1]
                tests[-1] = last.model_copy(update={"points": last.points + got, "maximum": last.maximum + most})
        elif match := _INDEX.match(said):
            index = int(match[1])
        if len(tests) > MAX_ENTRIES:
            break
    return LynisLog(tests=tuple(tests), points=points, maximum=total, index=index, breaks=breaks)


def read_report(text: str) -> LynisReport:
    """The report of one run. Of a key that may stand once, the last one counts, as in Lynis's own reader."""
    once: dict[str, str] = {}
    remarks: dict[str, list[LynisRemark]] = {"warning[]": [], "suggestion[]": [], "exception_event[]": []}
    for line in text.split("\n"):
        key, equals, value = line.partition("=")
        if not equals:
            continue
        if key in remarks:
            if len(remarks[key]) < MAX_ENTRIES:
                remarks[key].append(_remark(value))
        else:
            once[key] = value
    return LynisReport(
        version=once.get("lynis_version", "")[:40],
        index=_number(once.get("hardening_index")),
        tests_done=_number(once.get("lynis_tests_done")),
        executed=_names(once.get("tests_executed")),
        skipped=_names(once.get("tests_skipped")),
        finished=once.get("finish") == "true" and bool(once.get("report_datetime_end")),
        warnings=tuple(remarks["warning[]"]),
        suggestions=tuple(remarks["suggestion[]"]),
        exceptions=tuple(remarks["exception_event[]"]),
    )


def _remark(value: str) -> LynisRemark:
    test, text, details, solution = ([part[:MAX_TEXT] for part in value.split("|")] + [""] * 4)[:4]
    empty = {"-", ""}
    return LynisRemark(
        test=test,
        text=text,
        details="" if details in empty else details,
        solution="" if solution in empty else solution,
    )


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and _NUMBER.match(value) else None


def _names(value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(name[:40] for name in value.split("|") if name)[: MAX_ENTRIES + 1]
