"""What SysRq comes to at the prompt: whatever it ends, nobody gets a shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pytest_osgates.checks.tpm_model import Answer, BootSeen, Outcome, SysrqSeen, TpmObservation, TpmPolicy
from pytest_osgates.model import Control, Finding, Severity

HOW = "press-sysrq"
# Linux Documentation/admin-guide/sysrq.rst: the keyboard out of raw mode; secure access key: all programs on the
# console are killed; the OOM killer; SIGTERM, SIGKILL to all processes but init. The mildest first.
KEYS = ("r", "k", "f", "e", "i")
SHELL, SILENT, OPENED = "shell", "sysrq-silent", "sysrq-opens"
_UNPROVEN = Severity.UNPROVEN
# It refused for good, and asks nobody any more.
ENDS = frozenset({Answer.LOCKED, Answer.STOPPED, Answer.ENDED})
_OPENED = frozenset({Answer.OPENED, Answer.EARLY})


def ended(boot: BootSeen) -> bool:
    """Whether the keys ended the machine, or led to an emergency for nobody: nothing more can be typed."""
    return boot.outcome is Outcome.ASKED and boot.sysrq is not None and boot.sysrq.answer in ENDS


def judge(seen: TpmObservation, boot: BootSeen, policy: TpmPolicy) -> Iterable[Finding]:
    """One boot of the row that came to the prompt."""
    if boot.outcome is not Outcome.ASKED:
        return

    def finding(rule: str, what: str, wanted: str, severity: Severity, hint: str = "", reason: str = "") -> Finding:
        return Finding(
            rule=rule,
            subject=seen.case,
            seen=what,
            wanted=wanted,
            severity=severity,
            hint=hint,
            reason=reason,
            evidence=boot.records,
        )

    sysrq = boot.sysrq or SysrqSeen()
    pressed = {entry.key for entry in sysrq.keys}
    after = f"after SysRq ({', '.join(entry.key for entry in sysrq.keys)}): {sysrq.line}"
    if sysrq.answer is Answer.SHELL:
        yield finding(SHELL, after, "no shell without a login", Severity.VIOLATION)
        return
    if sysrq.answer in _OPENED:
        yield finding(OPENED, after, "nothing but the passphrase opens the disk", Severity.VIOLATION)
        return
    silent = [key for key in KEYS if not any(entry.key == key and entry.line for entry in sysrq.keys)]
    # What comes after the machine's end cannot be pressed.
    if ended(boot):
        silent = [key for key in silent if key in pressed]
    if not sysrq.keys or sysrq.answer is Answer.TIMEOUT:
        what = after if sysrq.keys else "SysRq was not pressed"
        yield finding("sysrq-undecided", what, "each key pressed at the prompt, and no shell", _UNPROVEN)
    if silent:
        what = f"the kernel did not answer to Alt+SysRq+{', '.join(silent)}"
        wanted = 'the kernel\'s line "sysrq: ...": that the keys arrived, or that they are disabled'
        # A kernel that answers to some has it.
        if reason := "" if any(entry.line for entry in sysrq.keys) else policy.accept_no_sysrq.strip():
            yield finding(SILENT, what, wanted, Severity.ACCEPTED, reason=reason)
        else:
            hint = "where the kernel has no SysRq, or kernel.sysrq=0 from the start, accept_no_sysrq says so"
            yield finding(SILENT, what, wanted, _UNPROVEN, hint)


# -- controls

Sabotage = Callable[[TpmObservation], TpmObservation]


def controls(seen: TpmObservation) -> Iterable[Control[TpmObservation]]:
    """What SysRq could have come to."""
    case = seen.case
    yield Control("SysRq leads to a shell", _with(answer=Answer.SHELL), SHELL, case)
    yield Control("SysRq opens the disk", _with(answer=Answer.OPENED), OPENED, case)
    yield Control("SysRq was not pressed", _with(keys=()), "sysrq-undecided", case, _UNPROVEN)
    yield Control("nobody knows what came of it", _with(answer=Answer.TIMEOUT), "sysrq-undecided", case, _UNPROVEN)


def _with(**changes: object) -> Sabotage:
    def one(boot: BootSeen) -> BootSeen:
        return (
            boot if boot.sysrq is None else boot.model_copy(update={"sysrq": boot.sysrq.model_copy(update=changes)})
        )

    return lambda seen: seen.model_copy(update={"boots": tuple(one(boot) for boot in seen.boots)})
