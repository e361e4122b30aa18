"""A unified kernel image that is handed a command line, and unlocks: whether anybody took it.

systemd-stub(7): with Secure Boot on and a ``.cmdline`` of its own, an image ignores the load options that it is
started with. So nothing that boots is changed, no PCR has anything to see, and the machine may unlock. That it is so
must show: the kernel's own command line lacks the parameter; and the same machine takes it once Secure Boot is off
(the twin), so that it was really handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pytest_osgates.checks.tpm_model import Answer, BootSeen, Outcome, Tamper, TpmObservation, TpmPolicy
from pytest_osgates.model import Finding, Severity

# A line of the kernel's log has 1024 characters at most (kernel/printk/printk.c, LOG_LINE_MAX and PREFIX_MAX), and
# the parameter some 200.
_CUT = 700
_HINT = "let the kernel say its command line on the serial console: without `quiet`, or from the initrd"


def is_ignored(tampered: Sequence[BootSeen], tamper: Tamper) -> bool:
    """Whether it was unlocked, and that need not be wrong."""
    return tamper.ignored and len(tampered) == 1 and tampered[0].outcome is Outcome.UNLOCKED


def untaken(boots: Iterable[BootSeen], tamper: Tamper, policy: TpmPolicy) -> BootSeen | None:
    """One that asks, and does not say that it took the parameter: nobody knows what it asks for. The entry itself may
    be measured (PCR 1), or that a boot loader was left out (PCR 4)."""
    if not tamper.ignored:
        return None
    words = (tamper.parameter or policy.parameter).split()
    return next((boot for boot in boots if boot.outcome is Outcome.ASKED and not _has(boot, words)), None)


def not_taken(seen: TpmObservation, boot: BootSeen) -> Finding:
    """Of such a boot."""
    said = f": {boot.command_lines[0]}" if boot.command_lines else ""
    return Finding(
        rule="options-undecided",
        subject=seen.case,
        seen=f"it asks, and the console does not say that the kernel was given the parameter{said}",
        wanted="the parameter in the kernel's command line, or a machine that ignores it and unlocks",
        severity=Severity.UNPROVEN,
        hint=_HINT,
        evidence=boot.records,
    )


def options(
    seen: TpmObservation,
    boot: BootSeen,
    twins: Sequence[BootSeen],
    tamper: Tamper,
    policy: TpmPolicy,
    blind: tuple[str, str] | None,
) -> Iterable[Finding]:
    """Of a machine that unlocked."""
    words = (tamper.parameter or policy.parameter).split()
    wanted = f"{' '.join(words)} in the kernel's command line with Secure Boot off, and not with it on"

    def finding(rule: str, what: str, wanted: str, severity: Severity, hint: str = "") -> Finding:
        return Finding(
            rule=rule,
            subject=seen.case,
            seen=what,
            wanted=wanted,
            severity=severity,
            hint=hint,
            evidence=boot.records,
        )

    yield from _alone(seen, policy, finding)
    if not boot.command_lines:
        what = "it was unlocked, and the console does not say the kernel's command line"
        yield finding("options-undecided", what, wanted, Severity.UNPROVEN, _HINT)
    elif _has(boot, words):
        what = f"the disk was unlocked, nobody was asked, and the kernel took the parameter: {boot.command_lines[0]}"
        prompt = f"the prompt for the passphrase: {tamper.title}"
        if blind:
            what, prompt = f"{what}; {blind[0]}", f"{prompt}; bound to {blind[1]}"
        yield finding("unlocked", what, prompt, Severity.VIOLATION, "give the image a .cmdline, or bind PCR 12")
    elif len(twins) != 1 or not _has(twins[0], words):
        what = "the kernel was not given the parameter, and nor was it with Secure Boot off"
        if not twins:
            what = "the kernel was not given the parameter, and nothing shows that it was handed on"
        yield finding("options-undecided", what, wanted, Severity.UNPROVEN)
    elif not _same_line(boot, twins[0], words):
        what = f"the console says another command line than with Secure Boot off: {boot.command_lines[0]}"
        wanted = f"the same one, but for {' '.join(words)}: {twins[0].command_lines[0]}"
        yield finding("options-undecided", what, wanted, Severity.UNPROVEN, _HINT)
    elif twins[0].outcome is Outcome.SHELL:
        what = f"with Secure Boot off, a shell: {twins[0].line}"
        yield finding("shell", what, "no shell without a login", Severity.VIOLATION)
    elif twins[0].outcome is Outcome.UNLOCKED:
        what = f"with Secure Boot off, the kernel took the parameter, and the disk was unlocked: {twins[0].line}"
        prompt = "the prompt for the passphrase"
        yield finding("unlocked", what, prompt, Severity.VIOLATION, "bind PCR 7, or 12")
    elif not _asks(twins[0], policy):
        what = f"with Secure Boot off, neither a prompt nor a login: {twins[0].outcome}"
        if twins[0].pins:
            what = f"with Secure Boot off, nobody knows what the PIN came to: {twins[0].pins[-1].answer}"
        yield finding("options-undecided", what, wanted, Severity.UNPROVEN)


def _alone(seen: TpmObservation, policy: TpmPolicy, finding: Callable[..., Finding]) -> Iterable[Finding]:
    """Where nothing was changed that a TPM could see, the rows that change something must be there: else the required
    one would say nothing of this disk. No control can spoil it: it is about the profile, not about what was seen."""
    others = ("credential-added", "image-command-line-edited") if policy.uki_key else ("credential-added",)
    if missing := [name for name in others if name not in policy.tampers]:
        what = f"the unified kernel image ignored its load options; the profile does not try {' or '.join(missing)}"
        wanted = "a row that changes what is measured of a unified kernel image, or beside it"
        hint = f"add {', '.join(missing)} to tampers in [gate.tpm] of the distro profile"
        yield finding("options-alone", what, wanted, Severity.UNPROVEN, hint)


def _asks(twin: BootSeen, policy: TpmPolicy) -> bool:
    """For the passphrase; or again for the PIN, which was refused."""
    if twin.outcome is Outcome.PIN:
        return twin.pins[-1].answer is Answer.REFUSED if twin.pins else not policy.has_pin
    return twin.outcome is Outcome.ASKED


def _same_line(boot: BootSeen, twin: BootSeen, words: Sequence[str]) -> bool:
    """Whether a line of each is the same but for `words`; of long ones, as far as the shorter one goes."""
    for handed in (line for line in twin.command_lines if set(words) <= set(line.split())):
        rest = [word for word in handed.split() if word not in words]
        for line in boot.command_lines:
            own = line.split()
            # The last word of a line that was cut off may be a piece of one.
            end = min(len(rest), len(own)) - 1 if min(len(handed), len(line)) >= _CUT else None
            if rest[:end] == own[:end]:
                return True
    return False


def _has(boot: BootSeen, words: Sequence[str]) -> bool:
    return any(set(words) <= set(line.split()) for line in boot.command_lines)
