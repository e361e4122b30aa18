"""Gate `boot`: the image reaches its ready target, on each firmware, with and without the guest channel."""

from __future__ import annotations

import re
from enum import StrEnum

from pydantic import Field, field_validator

from pytest_osgates.checks.emulated import excuses
from pytest_osgates.data import load
from pytest_osgates.model import Acceptance, Control, Finding, Gate, Model, Observation, Policy, Severity, State
from pytest_osgates.vm.watch import Pattern

CONTROL_UNIT = "osgates-control.service"
# Failures that the guest notices by the clock.
TIMING_ALARMS = frozenset({"soft-lockup"})


class Outcome(StrEnum):
    """How a boot ended."""

    READY = "ready"
    FAILED = "failed"  # a known failure was seen; waiting stopped there
    ENDED = "ended"  # the guest powered the machine off
    TIMEOUT = "timeout"  # the deadline passed


class AlarmSeen(Model):
    """A known failure: pattern, where it stood, the line, seconds after power-on."""

    name: str
    source: str
    line: str
    at: float
    fatal: bool


class UnitFailure(Model):
    """A unit that failed. `at`: seconds since the kernel started, None where the journal does not say."""

    unit: str
    result: str = ""
    at: float | None = None
    still_failed: bool = False
    user: bool = False


class KeyPress(Model):
    """What was pressed to get on, seconds after power-on, and why."""

    at: float
    keys: str
    why: str


class BootObservation(Observation):
    """One boot.

    `console` holds the last lines of every text source, so that the patterns can be applied again later. `watched_s`:
    guest seconds for which units and console were watched after ready. `legible`: whether the screen's text could be
    read at the end.
    """

    case: str
    firmware: str
    channel: bool
    accelerator: str
    outcome: Outcome
    detail: str = ""
    ready_target: str = ""
    ready_by: str = ""
    ready_s: float | None = None
    ready_guest_s: float | None = None
    deadline_s: float
    pace: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    phases: dict[str, float] = Field(default_factory=dict)
    alarms: tuple[AlarmSeen, ...] = ()
    console: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    legible: bool = False
    resets: int = 0
    units_asked: bool = False
    system_state: str = ""
    failures: tuple[UnitFailure, ...] = ()
    injected: tuple[str, ...] = ()
    watched_s: float = 0.0
    secure_boot: bool | None = None
    keys: tuple[KeyPress, ...] = ()
    screenshots: dict[str, str] = Field(default_factory=dict)


class UnitAcceptance(Acceptance):
    """A unit that may fail."""

    unit: str


class AlarmAcceptance(Acceptance):
    """A known failure that this image may show, such as a kernel warning of a driver.

    One after which a boot is ended cannot be accepted: the machine would not get any further.
    """

    alarm: str

    @field_validator("alarm")
    @classmethod
    def _acceptable(cls, name: str) -> str:
        fatal = {entry["name"]: entry["fatal"] for entry in load("console_failures")["pattern"]}
        if name not in fatal:
            raise ValueError(f"no known failure is called {name!r}; there are: {', '.join(sorted(fatal))}")
        if fatal[name] and name not in TIMING_ALARMS:
            raise ValueError(f"{name} ends the boot, so it cannot be accepted")
        return name


NO_REASON = "the profile's acceptance has no reason: it counts as none"


class BootPolicy(Policy):
    """``[gate.boot]`` of a distro profile. Seconds."""

    deadline_s: float = Field(default=900.0, gt=0)
    watch_s: float = Field(default=60.0, ge=0)
    accept_units: tuple[UnitAcceptance, ...] = ()
    accept_alarms: tuple[AlarmAcceptance, ...] = ()


def patterns(*, emulated: bool = False, asked: bool = False) -> tuple[Pattern, ...]:
    """The known failures of ``data/console_failures.toml``.

    `emulated`: the guest's watchdogs count real seconds, of which emulation needs many times more for the same work;
    so what they report ends no boot there. `asked`: of a boot that asks for a passphrase, and waits for it.
    """
    return tuple(
        Pattern(
            entry["name"],
            re.compile(f"(?!{entry['waits']})(?:{entry['regex']})" if asked and "waits" in entry else entry["regex"]),
            entry["fatal"] and not (emulated and entry["name"] in TIMING_ALARMS),
            entry["meaning"],
        )
        for entry in load("console_failures")["pattern"]
    )


def subject_of(alarm: str) -> str:
    """What a known failure is about."""
    for entry in load("console_failures")["pattern"]:
        if entry["name"] == alarm:
            return str(entry["subject"])
    return alarm


def cases(policy: BootPolicy, firmwares: tuple[str, ...]) -> tuple[str, ...]:
    """Each firmware with the channel (to ask about units) and bare (nothing injected that could help or harm)."""
    return tuple(f"{firmware}-{way}" for firmware in firmwares for way in ("channel", "bare"))


def judge(seen: BootObservation, policy: BootPolicy) -> list[Finding]:
    """Ready in time, nothing known as a failure shown, no unit failed then or in the time watched after it."""
    findings = _alarms(seen, policy)
    if seen.resets:
        findings.append(
            Finding(
                rule="rebooted",
                subject="machine",
                seen=f"{seen.resets} resets by the guest before ready",
                wanted="none",
                evidence="events.jsonl",
            )
        )
    if seen.outcome is not Outcome.READY:
        # A failure that explains it says enough; one that the profile accepts explains nothing.
        fatal = {alarm.name for alarm in seen.alarms if alarm.fatal} | {p.name for p in patterns() if p.fatal}
        explained = any(finding.severity is not Severity.ACCEPTED and finding.rule in fatal for finding in findings)
        if not explained and not (seen.resets and seen.outcome is Outcome.FAILED):
            findings.append(_not_ready(seen))
        return findings + _units(seen, policy)
    allowed = policy.deadline_s * seen.pace
    if seen.ready_s is None or not seen.ready_s <= allowed:
        findings.append(
            Finding(
                rule="late",
                subject=seen.ready_target or "ready",
                seen=f"ready after {seen.ready_s} s",
                wanted=f"within {allowed:.0f} s",
            )
        )
    if seen.channel:
        findings += _units(seen, policy)
        findings += _watched(seen, policy)
    if seen.firmware == "uefi-secureboot" and seen.channel and seen.secure_boot is not True:
        findings.append(
            Finding(
                rule="secure-boot-off",
                subject="firmware",
                seen={None: "the guest has no SecureBoot variable", False: "SecureBoot=0"}.get(seen.secure_boot, "?"),
                wanted="SecureBoot=1 inside the guest",
                hint="the machine's firmware enforces Secure Boot: how did the image start without it?",
            )
        )
    return findings


def _alarms(seen: BootObservation, policy: BootPolicy) -> list[Finding]:
    accepted = {entry.alarm: entry for entry in policy.accept_alarms if entry.documented}
    undocumented = {entry.alarm for entry in policy.accept_alarms} - accepted.keys()
    lines: dict[str, tuple[str, str]] = {alarm.name: (alarm.line, alarm.source) for alarm in reversed(seen.alarms)}
    for source, text in seen.console.items():
        for line in text:
            for pattern in patterns():
                if pattern.name not in lines and pattern.regex.search(line):
                    lines[pattern.name] = (line, source)
    findings = []
    emulated = excuses(seen.accelerator, seen.console.values())
    for name, (line, source) in sorted(lines.items()):
        entry = accepted.get(name)
        meaning = next((pattern.meaning for pattern in patterns() if pattern.name == name), "")
        if name in undocumented:
            meaning = NO_REASON + (f"; {meaning}" if meaning else "")
        severity = Severity.ACCEPTED if entry else Severity.VIOLATION
        if name in TIMING_ALARMS and seen.accelerator == "tcg" and not entry:
            # The guest's watchdogs count real seconds, of which emulation needs many times more for the same work.
            severity = Severity.UNPROVEN
            meaning += (
                "; an emulated guest on a busy host shows this without any fault: use KVM, or run less beside it"
            )
        elif name in emulated:
            severity = Severity.UNPROVEN
            meaning += f"; {emulated[name]}"
        findings.append(
            Finding(
                rule=name,
                subject=subject_of(name),
                seen=line,
                wanted="no such message during boot",
                evidence=source,
                hint=meaning,
                severity=severity,
                reason=entry.reason if entry else "",
            )
        )
    for name in sorted(accepted.keys() - lines.keys()):
        findings.append(_unused(name))
    return findings


def _not_ready(seen: BootObservation) -> Finding:
    if seen.outcome is Outcome.TIMEOUT and not seen.channel and not seen.legible:
        return Finding(
            rule="unobservable",
            subject=seen.ready_target or "ready",
            seen=f"no console with readable text within {seen.deadline_s:.0f} s",
            wanted="a login prompt on the serial console or on a text screen",
            hint="set ready_text in [boot] of the profile to something that the screen shows once it is ready",
            severity=Severity.UNPROVEN,
        )
    rule = {Outcome.TIMEOUT: "not-ready", Outcome.ENDED: "powered-off", Outcome.FAILED: "failed"}[seen.outcome]
    return Finding(
        rule=rule,
        subject=seen.ready_target or "ready",
        seen=seen.detail or seen.outcome,
        wanted=f"{seen.ready_target or 'ready'} within {seen.deadline_s:.0f} s",
        evidence="serial.log, kmsg.log and screenshots of this boot",
    )


def _units(seen: BootObservation, policy: BootPolicy) -> list[Finding]:
    accepted = {entry.unit: entry for entry in policy.accept_units if entry.documented}
    undocumented = {entry.unit for entry in policy.accept_units} - accepted.keys()
    findings = []
    units: dict[tuple[bool, str], UnitFailure] = {}
    for failure in seen.failures:
        if failure.unit not in seen.injected:
            units.setdefault((failure.user, failure.unit), failure)
    for (user, unit), failure in sorted(units.items()):
        entry = accepted.get(unit)
        when = "" if failure.at is None else f" {failure.at:.1f} s after the kernel started"
        state = "is failed" if failure.still_failed else "failed and was started again"
        findings.append(
            Finding(
                rule="failed-user-unit" if user else "failed-unit",
                subject=unit,
                seen=f"{state}{when}" + (f", result {failure.result}" if failure.result else ""),
                wanted="no unit fails during boot or in the time watched after it",
                hint=(f"{NO_REASON}; " if unit in undocumented else "")
                + f"in the guest: systemctl status {unit}; journalctl -u {unit}",
                severity=Severity.ACCEPTED if entry else Severity.VIOLATION,
                reason=entry.reason if entry else "",
            )
        )
    if seen.outcome is Outcome.READY and seen.units_asked:
        for unit in sorted(accepted.keys() - {unit for _, unit in units}):
            findings.append(_unused(unit))
    return findings


def _watched(seen: BootObservation, policy: BootPolicy) -> list[Finding]:
    findings = []
    if not seen.units_asked:
        findings.append(
            Finding(
                rule="units-unknown",
                subject="systemd",
                seen=seen.detail or "the guest did not say which units failed",
                wanted="the list of failed units and the journal's record of failures",
                severity=Severity.UNPROVEN,
            )
        )
    elif seen.system_state not in {"running", "degraded"}:
        findings.append(
            Finding(
                rule="system-state",
                subject="systemd",
                seen=f"systemctl is-system-running: {seen.system_state or 'no answer'}",
                wanted="running",
                hint="a job may be waiting for ever: systemctl list-jobs",
            )
        )
    if not seen.watched_s >= policy.watch_s:  # what is not a number is not enough
        findings.append(
            Finding(
                rule="watch-cut-short",
                subject="systemd",
                seen=f"watched for {seen.watched_s:.0f} s after ready" + (f": {seen.detail}" if seen.detail else ""),
                wanted=f"{policy.watch_s:.0f} s",
                severity=Severity.UNPROVEN,
            )
        )
    return findings


def _unused(subject: str) -> Finding:
    return Finding(
        rule="unused-acceptance",
        subject=subject,
        seen="the profile accepts it, and it did not happen",
        wanted="no acceptance without need",
        hint="remove it from the profile",
        severity=Severity.REMARK,
    )


def _with_failed_unit(seen: BootObservation) -> BootObservation:
    extra = UnitFailure(unit=CONTROL_UNIT, result="exit-code", still_failed=True)
    return seen.model_copy(update={"failures": (*seen.failures, extra), "outcome": Outcome.READY, "channel": True})


def _with_panic(seen: BootObservation) -> BootObservation:
    lines = (*seen.console.get("serial", ()), "Kernel panic - not syncing: osgates control")
    return seen.model_copy(update={"console": {**seen.console, "serial": lines}})


def _never_ready(seen: BootObservation) -> BootObservation:
    return seen.model_copy(
        update={"outcome": Outcome.TIMEOUT, "ready_target": "osgates-control", "legible": True, "alarms": ()}
    )


GATE = Gate(
    name="boot",
    title="boots to its ready target on every firmware",
    states=(State.LIVE,),
    observation=BootObservation,
    policy=BootPolicy,
    judge=judge,
    controls=(
        Control("a unit that failed", _with_failed_unit, "failed-unit", CONTROL_UNIT),
        Control("a kernel panic on the console", _with_panic, "kernel-panic", "kernel"),
        Control("a boot that never gets ready", _never_ready, "not-ready", "osgates-control"),
    ),
    cases=cases,
)
