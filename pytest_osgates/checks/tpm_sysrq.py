"""What SysRq comes to at the prompt: whatever it ends, nobody gets a shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pytest_osgates.checks import emulated
from pytest_osgates.checks.tpm_model import Answer, BootSeen, Outcome, SysrqSeen, TpmObservation, TpmPolicy
from pytest_osgates.model import Control, Finding, Severity

HOW = "press-sysrq"
# Linux Documentation/admin-guide/sysrq.rst: the keyboard out of raw mode; secure access key: all programs on the
# console are killed; the OOM killer; SIGTERM, SIGKILL to all processes but init. The mildest first.
KEYS = ("r", "k", "f", "e", "i")
SHELL, SILENT, OPENED, UNDECIDED = "shell", "sysrq-silent", "sysrq-opens", "sysrq-undecided"
_UNPROVEN = Severity.UNPROVEN
# It refused for good, and asks nobody any more.
ENDS = frozenset({Answer.LOCKED, Answer.STOPPED, Answer.ENDED})
_OPENED = frozenset({Answer.OPENED, Answer.EARLY})


def ended(boot: BootSeen) -> bool:
    """Whether the keys ended the machine, or led to an emergency for nobody: nothing more can be typed."""
    return boot.outcome is Outcome.ASKED and boot.sysrq is not None and boot.sysrq.answer in ENDS


def judge(seen: TpmObservation, boots: Sequence[BootSeen], policy: TpmPolicy) -> Iterable[Finding]:
    """The row's tampered boots: where keys ended one, the next one got the keys that were left."""
    boots = [boot for boot in boots if boot.outcome is Outcome.ASKED]
    if not boots:
        return
    finding = partial(Finding, subject=seen.case, evidence=boots[0].records)
    each = [boot.sysrq for boot in boots if boot.sysrq is not None]
    for boot in boots:
        yield from _came_to(seen, boot, finding)
    if any(sysrq.answer in (Answer.SHELL, *_OPENED) for sysrq in each):
        return
    pressed = [entry for sysrq in each for entry in sysrq.keys]
    if missing := [key for key in KEYS if all(entry.key != key for entry in pressed)]:
        what = f"not pressed: {', '.join(missing)}"
        yield finding(rule=UNDECIDED, seen=what, wanted="each key pressed at the prompt", severity=_UNPROVEN)
    silent = list(dict.fromkeys(entry.key for entry in pressed if not entry.line))
    if not silent:
        return
    what = f"the kernel did not answer to Alt+SysRq+{', '.join(silent)}"
    wanted = 'the kernel\'s line "sysrq: ...": that the keys arrived, or that they are disabled'
    # A kernel that answers to some has it.
    if reason := "" if any(entry.line for entry in pressed) else policy.accept_no_sysrq.strip():
        yield finding(rule=SILENT, seen=what, wanted=wanted, severity=Severity.ACCEPTED, reason=reason)
    else:
        hint = "where the kernel has no SysRq, or kernel.sysrq=0 from the start, accept_no_sysrq says so"
        yield finding(rule=SILENT, seen=what, wanted=wanted, severity=_UNPROVEN, hint=hint)


def _came_to(seen: TpmObservation, boot: BootSeen, finding: Callable[..., Finding]) -> Iterable[Finding]:
    """What the keys of one boot led to."""
    sysrq = boot.sysrq
    if sysrq is None:
        return
    after = f"after SysRq ({', '.join(entry.key for entry in sysrq.keys)}): {sysrq.line or sysrq.answer}"
    if sysrq.answer is Answer.SHELL:
        yield finding(rule=SHELL, seen=after, wanted="no shell without a login")
    elif sysrq.answer in _OPENED:
        yield finding(rule=OPENED, seen=after, wanted="nothing but the passphrase opens the disk")
    elif sysrq.answer is not Answer.ASKED_AGAIN and sysrq.answer not in ENDS:
        yield finding(rule=UNDECIDED, seen=after, wanted="it asks, or ends without a shell", severity=_UNPROVEN)
    elif ended(boot) and (excuse := emulated.panic(seen.accelerator, sysrq.line, boot.console)):
        wanted = "an end by what was pressed"
        yield finding(rule=UNDECIDED, seen=after, wanted=wanted, severity=_UNPROVEN, hint=excuse)


# -- controls

Sabotage = Callable[[TpmObservation], TpmObservation]


def controls(seen: TpmObservation) -> Iterable[Control[TpmObservation]]:
    """What SysRq could have come to."""
    case = seen.case
    yield Control("SysRq leads to a shell", _with(answer=Answer.SHELL), SHELL, case)
    yield Control("SysRq opens the disk", _with(answer=Answer.OPENED), OPENED, case)
    yield Control("SysRq was not pressed", _with(keys=()), UNDECIDED, case, _UNPROVEN)
    if any(entry.line for boot in seen.boots if boot.sysrq is not None for entry in boot.sysrq.keys):
        # Else it is told already, and by the profile's leave alone.
        yield Control("the kernel did not answer to a key", _silent, SILENT, case, _UNPROVEN)
    yield Control("nobody knows what came of it", _with(answer=Answer.TIMEOUT), UNDECIDED, case, _UNPROVEN)


def _silent(seen: TpmObservation) -> TpmObservation:
    """One key of all: the others were answered, so that no reason excuses it."""

    def one(sysrq: SysrqSeen) -> SysrqSeen:
        keys = (entry.model_copy(update={"line": ""}) if entry.key == KEYS[-1] else entry for entry in sysrq.keys)
        return sysrq.model_copy(update={"keys": tuple(keys)})

    boots = (
        boot if boot.sysrq is None else boot.model_copy(update={"sysrq": one(boot.sysrq)}) for boot in seen.boots
    )
    return seen.model_copy(update={"boots": tuple(boots)})


def _with(**changes: object) -> Sabotage:
    def one(boot: BootSeen) -> BootSeen:
        return (
            boot if boot.sysrq is None else boot.model_copy(update={"sysrq": boot.sysrq.model_copy(update=changes)})
        )

    return lambda seen: seen.model_copy(update={"boots": tuple(one(boot) for boot in seen.boots)})
