"""Gate `install`: the profile's recipe installs the ISO on an empty disk, which then starts by itself; a failed one
leaves nothing that starts."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from pydantic import Field

from pytest_osgates.model import Control, Finding, Gate, Model, Observation, Policy, Severity, State

_UNPROVEN = Severity.UNPROVEN
_SUBJECT = "installation"
_DISK = "installed disk"
_SHOWN = "ready_text in [boot] is what the serial console or a text screen shows; a graphical login cannot be read"


class InstallOutcome(StrEnum):
    """What became of an installation."""

    DONE = "done"
    FAILED = "failed"  # it said so, or the live system did not get ready
    STALLED = "stalled"  # nothing was written, shown or said for too long
    TIMEOUT = "timeout"  # still at work at the deadline
    ENDED = "ended"  # the machine ended before the installer had said that it is done


class Left(Model):
    """Something on the disk that a machine would start: where, and what."""

    place: str
    what: str


class InstallObservation(Observation):
    """One installation. `steps`: how many of the recipe's were gone through; `log`: its last lines. `left`: what on
    the disk would be started, None: it could not be read. `starts`: what the disk alone came to, without the ISO;
    empty if that was not tried. `written`: bytes on the disk. `lost`: bytes of the serial console that nobody looked
    at."""

    state: State = State.INSTALLED
    way: str
    outcome: InstallOutcome
    detail: str = ""
    steps: int = 0
    wanted_steps: int = 0
    seconds: float = 0.0
    log: tuple[str, ...] = ()
    logs: dict[str, str] = Field(default_factory=dict)
    left: tuple[Left, ...] | None = None
    unread: str = ""
    starts: str = ""
    starts_detail: str = ""
    written: int = 0
    lost: int = 0
    records: str = ""

    @property
    def considered(self) -> int | None:
        return 1


class InstallPolicy(Policy):
    """``[gate.install]``: the recipe is ``[install]``."""


def judge(seen: InstallObservation, policy: InstallPolicy) -> list[Finding]:
    """The installation, and what it left."""
    done = seen.outcome is InstallOutcome.DONE
    findings = []
    if not done:
        severity = _UNPROVEN if seen.outcome is InstallOutcome.TIMEOUT else Severity.VIOLATION
        what = f"{seen.outcome} after {seen.seconds:.0f} s, step {seen.steps} of {seen.wanted_steps}: {seen.detail}"
        wanted = "the recipe gone through to its end"
        findings.append(_finding(seen, f"install-{seen.outcome}", _SUBJECT, what, wanted, severity))
    elif seen.steps < seen.wanted_steps or not seen.wanted_steps:
        what = f"{seen.steps} of {seen.wanted_steps} steps"
        findings.append(_finding(seen, "install-steps", _SUBJECT, what, "all steps of the recipe", _UNPROVEN))
    if done and seen.lost:
        what = f"{seen.lost} bytes of the serial console came too fast to be looked at"
        wanted = "every line looked at: any of them may say that it failed"
        findings.append(_finding(seen, "lost-output", _SUBJECT, what, wanted, _UNPROVEN))
    if seen.left is None:
        findings.append(
            _finding(seen, "disk-unread", _DISK, seen.unread or "not read", "what on it would start", _UNPROVEN)
        )
    elif not done and seen.left:
        what = "; ".join(f"{entry.place}: {entry.what}" for entry in seen.left)
        findings.append(
            _finding(
                seen,
                "half-installed",
                _DISK,
                f"would start {what}",
                "nothing that starts, after an installation that did not end well",
                hint="install boot loaders last, and remove what is there when a step fails",
            )
        )
    elif done and not seen.left:
        findings.append(_finding(seen, "nothing-to-start", _DISK, "no boot loader", "a boot loader"))
    if done:
        findings += _started(seen)
    return findings


def _started(seen: InstallObservation) -> list[Finding]:
    wanted = "a login or a prompt for the passphrase, from the disk alone"
    if seen.starts == "started":
        return []
    if seen.starts in ("ended", "refused"):
        return [_finding(seen, "does-not-start", _DISK, f"{seen.starts}: {seen.starts_detail}", wanted)]
    what = f"{seen.starts or 'not tried'}: {seen.starts_detail}"
    return [_finding(seen, "start-unproven", _DISK, what, wanted, _UNPROVEN, hint=_SHOWN)]


def _finding(
    seen: InstallObservation,
    rule: str,
    subject: str,
    what: str,
    wanted: str,
    severity: Severity = Severity.VIOLATION,
    hint: str = "",
) -> Finding:
    return Finding(
        rule=rule, subject=subject, seen=what, wanted=wanted, severity=severity, hint=hint, evidence=seen.records
    )


Sabotage = Callable[[InstallObservation], InstallObservation]


def _with(**changes: object) -> Sabotage:
    return lambda seen: seen.model_copy(update=changes)


_LEFT = (Left(place="partition 1", what="/EFI/BOOT/BOOTX64.EFI"),)
CONTROLS = (
    Control("it says that it failed", _with(outcome=InstallOutcome.FAILED), "install-failed", _SUBJECT),
    Control("it stands still", _with(outcome=InstallOutcome.STALLED), "install-stalled", _SUBJECT),
    Control("it goes on for ever", _with(outcome=InstallOutcome.TIMEOUT), "install-timeout", _SUBJECT, _UNPROVEN),
    Control("a half", _with(outcome=InstallOutcome.FAILED, left=_LEFT), "half-installed", _DISK),
    Control("no boot loader", _with(outcome=InstallOutcome.DONE, left=()), "nothing-to-start", _DISK),
    Control("the disk was not read", _with(left=None), "disk-unread", _DISK, _UNPROVEN),
    Control("the disk does not start", _with(outcome=InstallOutcome.DONE, starts="ended"), "does-not-start", _DISK),
    Control(
        "whether it starts was not tried",
        _with(outcome=InstallOutcome.DONE, starts=""),
        "start-unproven",
        _DISK,
        _UNPROVEN,
    ),
    Control("a console too fast", _with(outcome=InstallOutcome.DONE, lost=1), "lost-output", _SUBJECT, _UNPROVEN),
    Control("a step was left out", _with(outcome=InstallOutcome.DONE, steps=0), "install-steps", _SUBJECT, _UNPROVEN),
)

GATE = Gate(
    name="install",
    title="the installer completes, and the disk starts by itself; a failed installation leaves nothing that does",
    states=(State.INSTALLED,),
    observation=InstallObservation,
    policy=InstallPolicy,
    judge=judge,
    controls=CONTROLS,
)
