"""What Lynis writes, made to measure: a log and a report that tell the same story."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_osgates.checks.lynis import LynisObservation
from pytest_osgates.checks.lynis_report import read_log, read_report
from pytest_osgates.model import State

STAMP = "2026-01-02 03:04:05 "
OTHER_OS = "Incorrect guest OS (AIX only)"


@dataclass
class Story:
    """One run. ``run``: (test, awards), an award being (points, of how many); ``skipped``: (test, reason)."""

    run: list[tuple[str, list[tuple[int, int]]]] = field(
        default_factory=lambda: [(f"TEST-{number}", [(3, 3)]) for number in range(1000, 1300)]
    )
    skipped: list[tuple[str, str]] = field(
        default_factory=lambda: [(f"SKIP-{number}", OTHER_OS) for number in range(1000, 1150)]
    )
    warnings: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    def points(self) -> tuple[int, int]:
        """Given, and of how many."""
        awards = [award for _, given in self.run for award in given]
        return sum(got for got, _ in awards), sum(most for _, most in awards)

    def index(self) -> int:
        """As Lynis computes it."""
        got, most = self.points()
        return got * 100 // most

    def log(self) -> str:
        """The log."""
        lines = ["Starting Lynis 3.1.4 with PID 1, build date 2025-01-28"]
        points = total = 0
        for test, reason in self.skipped:
            lines += [f"Skipped test {test} (something)", f"Reason to skip: {reason}", "===="]
        for test, awards in self.run:
            lines += [f"Performing test ID {test} (something)", "Test: looking"]
            for got, most in awards:
                points, total = points + got, total + most
                how = (
                    f"maximum number of hardening points for this item ({most})"
                    if got == most
                    else f"partial number of hardening points ({got} of {most})"
                )
                lines.append(f"Hardening: assigned {how}. Currently having {points} points (out of {total})")
            lines.append("====")
        lines += [f"Hardening index : [{self.index()}] [####      ]", "Lynis ended successfully."]
        return "".join(f"{STAMP}{line}\n" for line in lines)

    def report(self) -> str:
        """The report."""
        lines = [
            "# Lynis Report",
            "lynis_version=3.1.4",
            *(f"warning[]={warning}" for warning in self.warnings),
            *self.extra,
            f"lynis_tests_done={len(self.run)}",
            "report_datetime_end=2026-01-02 03:14:05",
            f"tests_executed={''.join(test + '|' for test, _ in reversed(self.run))}",
            f"tests_skipped={''.join(test + '|' for test, _ in reversed(self.skipped))}",
            f"hardening_index={self.index()}",
            "finish=true",
        ]
        return "".join(f"{line}\n" for line in lines)

    def seen(self, *, log: str | None = None, report: str | None = None, **changes: object) -> LynisObservation:
        """The observation."""
        values: dict[str, object] = {
            "state": State.LIVE,
            "report": read_report(self.report() if report is None else report),
            "log": read_log(self.log() if log is None else log),
            "status": 0,
            "guest_profiles": (),
            "altered": (),
            "duration_s": 1.0,
            "tool": "lynis",
            "tool_version": "3.1.4-1",
            "tool_sha256": "00",
        }
        return LynisObservation.model_validate(values | changes)
