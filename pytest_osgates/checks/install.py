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
_FIRST = "first boot"
_SHOWN = "ready_text in [boot] is what the serial console or a text screen shows; a graphical login cannot be read"


class InstallOutcome(StrEnum):
    """What became of an installation."""

    DONE = "done"
    FAILED = "failed"  # it said so, or the live system did not get ready
    STALLED = "stalled"  # nothing was written, shown or said for too long
    TIMEOUT = "timeout"  # still at work at the deadline
    UNPROVEN = "unproven"  # it cannot be told, as its detail says
    ENDED = "ended"  # the machine ended before the installer had said that it is done


class Left(Model):
    """Something on the disk that a machine would start: where, and what."""

    place: str
    what: str


class FirstBoot(Model):
    """The installed machine started from its disk for the first time, and answered. `outcome`: None, if that was not
    tried; else as of an installation. `log`: the last lines of its console."""

    outcome: InstallOutcome | None = None
    detail: str = ""
    steps: int = 0
    wanted_steps: int = 0
    seconds: float = 0.0
    log: tuple[str, ...] = ()
    lost: int = 0
    records: str = ""


class InstallObservation(Observation):
    """One installation. `steps`: how many of the recipe's were gone through; `log`: its last lines. `left`: what on
    the disk would be started, None: it could not be read. `starts`: what the disk alone came to, without the ISO;
    empty if that was not tried. `written`: bytes on the disk. `lost`: bytes of the serial console that nobody looked
    at. `first_boot`: None, if the profile asks for none."""

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
    first_boot: FirstBoot | None = None

    @property
    def considered(self) -> int | None:
        return 1

    @property
    def complete(self) -> bool:
        """Whether there is a machine that gates may have: installed, and its first boot gone through."""
        first = self.first_boot
        return self.outcome is InstallOutcome.DONE and (first is None or first.outcome is InstallOutcome.DONE)


class InstallPolicy(Policy):
    """``[gate.install]``: the recipe is ``[install]``."""


def judge(seen: InstallObservation, policy: InstallPolicy) -> list[Finding]:
    """The installation, and what it left."""
    done = seen.outcome is InstallOutcome.DONE
    findings = []
    if not done:
        severity = _severity(seen.outcome, seen.lost)
        what = f"{seen.outcome} after {seen.seconds:.0f} s, step {seen.steps} of {seen.wanted_steps}: {seen.detail}"
        wanted = "the recipe gone through to its end"
        findings.append(_finding(seen, f"install-{seen.outcome}", _SUBJECT, what, wanted, severity))
    elif seen.steps < seen.wanted_steps or not seen.wanted_steps:
        what = f"{seen.steps} of {seen.wanted_steps} steps"
        findings.append(_finding(seen, "install-steps", _SUBJECT, what, "all steps of the recipe", _UNPROVEN))
    if seen.lost:
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
    if done and seen.first_boot is not None:
        findings += _first_boot(seen.first_boot)
    if seen.complete:
        findings += _started(seen)
    return findings


def _severity(outcome: InstallOutcome, lost: int) -> Severity:
    """Of an end that is not the wanted one. What was waited for may have been in what was lost; that it failed was
    seen."""
    unproven = outcome in (InstallOutcome.TIMEOUT, InstallOutcome.UNPROVEN)
    unseen = bool(lost) and outcome is not InstallOutcome.FAILED
    return _UNPROVEN if unproven or unseen else Severity.VIOLATION


def _first_boot(seen: FirstBoot) -> list[Finding]:
    """What is done once, before anything else is judged of the installed machine: gone through to its end."""
    findings = []

    def add(rule: str, what: str, wanted: str, severity: Severity) -> None:
        findings.append(
            Finding(rule=rule, subject=_FIRST, seen=what, wanted=wanted, severity=severity, evidence=seen.records)
        )

    wanted = "the dialogue of the first boot gone through to its end"
    if seen.outcome is None:
        add("first-boot-unproven", "not tried", wanted, _UNPROVEN)
    elif seen.outcome is not InstallOutcome.DONE:
        severity = _severity(seen.outcome, seen.lost)
        what = f"{seen.outcome} after {seen.seconds:.0f} s, step {seen.steps} of {seen.wanted_steps}: {seen.detail}"
        add(f"first-boot-{seen.outcome}", what, wanted, severity)
    elif seen.steps < seen.wanted_steps or not seen.wanted_steps:
        add("first-boot-steps", f"{seen.steps} of {seen.wanted_steps} steps", "all steps of the dialogue", _UNPROVEN)
    if seen.lost:
        what = f"{seen.lost} bytes of the serial console came too fast to be looked at"
        add("lost-output", what, "every line looked at: any of them may say that it failed", _UNPROVEN)
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


def _first(**fields: object) -> Sabotage:
    """An installation that ended well, and a first boot as `fields` say."""
    return lambda seen: seen.model_copy(
        update={"outcome": InstallOutcome.DONE, "first_boot": FirstBoot.model_validate(fields)}
    )


def _started_as(starts: str) -> Sabotage:
    return _with(outcome=InstallOutcome.DONE, first_boot=None, starts=starts)


_LEFT = (Left(place="partition 1", what="/EFI/BOOT/BOOTX64.EFI"),)
CONTROLS = (
    Control("it says that it failed", _with(outcome=InstallOutcome.FAILED), "install-failed", _SUBJECT),
    Control("it stands still", _with(outcome=InstallOutcome.STALLED, lost=0), "install-stalled", _SUBJECT),
    Control("it goes on for ever", _with(outcome=InstallOutcome.TIMEOUT), "install-timeout", _SUBJECT, _UNPROVEN),
    Control("a half", _with(outcome=InstallOutcome.FAILED, left=_LEFT), "half-installed", _DISK),
    Control("no boot loader", _with(outcome=InstallOutcome.DONE, left=()), "nothing-to-start", _DISK),
    Control("the disk was not read", _with(left=None), "disk-unread", _DISK, _UNPROVEN),
    Control("the disk does not start", _started_as("ended"), "does-not-start", _DISK),
    Control(
        "whether it starts was not tried",
        _started_as(""),
        "start-unproven",
        _DISK,
        _UNPROVEN,
    ),
    Control("a console too fast", _with(outcome=InstallOutcome.DONE, lost=1), "lost-output", _SUBJECT, _UNPROVEN),
    Control("the first boot says that it failed", _first(outcome=InstallOutcome.FAILED), "first-boot-failed", _FIRST),
    Control("the first boot stands still", _first(outcome=InstallOutcome.STALLED), "first-boot-stalled", _FIRST),
    Control("the first boot ends", _first(outcome=InstallOutcome.ENDED), "first-boot-ended", _FIRST),
    Control(
        "the first boot goes on for ever",
        _first(outcome=InstallOutcome.TIMEOUT),
        "first-boot-timeout",
        _FIRST,
        _UNPROVEN,
    ),
    Control(
        "what the first boot came to cannot be told",
        _first(outcome=InstallOutcome.UNPROVEN),
        "first-boot-unproven",
        _FIRST,
        _UNPROVEN,
    ),
    Control("the first boot was not tried", _first(), "first-boot-unproven", _FIRST, _UNPROVEN),
    Control(
        "a step of the first boot was left out",
        _first(outcome=InstallOutcome.DONE, steps=1, wanted_steps=2),
        "first-boot-steps",
        _FIRST,
        _UNPROVEN,
    ),
    Control(
        "a first boot too fast",
        _first(outcome=InstallOutcome.DONE, steps=1, wanted_steps=1, lost=1),
        "lost-output",
        _FIRST,
        _UNPROVEN,
    ),
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
