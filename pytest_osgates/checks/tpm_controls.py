"""Controls of the gate `tpm`: what a weak disk would have shown instead."""

from __future__ import annotations

from collections.abc import Callable

from pytest_osgates.checks import tpm_grub, tpm_sysrq
from pytest_osgates.checks.tpm_model import (
    BLANK,
    PIN,
    PROBE,
    RIGHT,
    Answer,
    BootSeen,
    Outcome,
    TpmObservation,
    TpmPolicy,
    Try,
    as_made,
    tamper_of,
)
from pytest_osgates.checks.tpm_options import is_ignored, untaken
from pytest_osgates.model import Control, Severity

UNPROVEN = Severity.UNPROVEN
_VIOLATION = Severity.VIOLATION

Sabotage = Callable[[TpmObservation], TpmObservation]


def controls(seen: TpmObservation, policy: TpmPolicy) -> tuple[Control[TpmObservation], ...]:
    """What a weak disk would have shown instead."""
    case = seen.case
    try:
        tamper = tamper_of(case)
    except KeyError:
        return ()
    made = [
        Control("a shell that nobody logged in to", _outcome(Outcome.SHELL), "shell", case),
        Control("nothing was seen", _outcome(Outcome.TIMEOUT), "timeout", case, UNPROVEN),
        Control("no boot", _with(boots=()), "no-boot", case, UNPROVEN),
        Control("a console too fast to be read", _lossy, "lost-output", case, UNPROVEN),
        Control(
            "a shell on another console",
            _on_another_console,
            "serial-shell" if seen.talked_on == "screen" else "screen-shell",
            case,
            UNPROVEN if tamper is None else _VIOLATION,
        ),
        Control("no slot for a TPM", _with(slots=()), "no-tpm-slot", "disk"),
    ]
    made += [
        Control(
            f"{slot.subject} is bound to no PCR",
            _with(slots=(slot.model_copy(update={"pcrs": (), "signed_pcrs": ()}),)),
            "pcrs",
            slot.subject,
        )
        for slot in seen.slots[:1]
    ]
    if policy.has_pin:
        made += [
            Control(
                f"{slot.subject} wants no PIN",
                _with(slots=(slot.model_copy(update={"pin": False}),)),
                "no-pin",
                slot.subject,
            )
            for slot in seen.slots[:1]
        ]
    if policy.has_pin and (tamper is None or tamper.undo):
        role = "untampered" if tamper is None else "undone"
        made.append(Control("it opens, and wants no PIN", _pins(role, typed=False), "pin-not-asked", case))
    if tamper is None:
        return (*made, Control("it asks", _outcome(Outcome.ASKED), "asked", case))
    if tamper.pin == "wrong":
        made += [
            Control("a wrong PIN opens", _pins("tampered", Answer.OPENED), "wrong-pin-opens", case),
            Control("no wrong PIN was typed", _pins("tampered", typed=False), "pin-undecided", case, UNPROVEN),
            Control("the lockout alone refused it", _unsaid, "pin-undecided", case, UNPROVEN),
            Control("the TPM was in lockout before", _locked_out, "pin-undecided", case, UNPROVEN),
        ]
    if tamper.pin == "right":
        made.append(Control("the PIN was not typed", _pins("tampered", typed=False), "pin-undecided", case, UNPROVEN))
    if tamper.how == tpm_grub.HOW:
        made += tpm_grub.controls(seen)
    if tamper.how == tpm_sysrq.HOW:
        made += tpm_sysrq.controls(seen)
    tampered = [boot for boot in seen.boots if boot.role == "tampered"]
    tamper = as_made(tamper, seen.changes)
    if is_ignored(tampered, tamper):
        words = tamper.parameter or policy.parameter
        made += [
            Control("the kernel took the parameter", _line("tampered", words), "unlocked", case),
            Control("the kernel does not say", _line("tampered", None), "options-undecided", case, UNPROVEN),
            Control("another line than the kernel's", _line("tampered", "x"), "options-undecided", case, UNPROVEN),
            Control("nobody handed it on", _line("twin", "quiet"), "options-undecided", case, UNPROVEN),
            Control("with Secure Boot off it opens", _outcome(Outcome.UNLOCKED, "twin"), "unlocked", case),
            Control("no twin", _no_twin, "options-undecided", case, UNPROVEN),
            Control("nothing was changed", _with(changes=()), "not-applied", case, UNPROVEN),
            Control("it still asks once undone", _outcome(Outcome.ASKED, "undone"), "not-undone", case),
        ]
        if policy.has_pin:
            made += [
                Control("it ignores them, and wants no PIN", _pins("tampered", typed=False), "pin-not-asked", case),
                Control("its twin says nothing of the PIN", _silent_twin, "options-undecided", case, UNPROVEN),
            ]
        return tuple(made)
    barred = any(tpm_grub.barred(boot) for boot in seen.boots)
    if not barred:
        ignores = _outcome(Outcome.UNLOCKED)
        if tamper.ignored:
            ignores = _both(_line("tampered", tamper.parameter or policy.parameter), ignores)
            if untaken(tampered, tamper, policy) is None:
                silent = _line("tampered", None)
                made.append(Control("it asks, and took nothing", silent, "options-undecided", case, UNPROVEN))
        rule, severity = ("which-boots", UNPROVEN) if seen.besides else ("unlocked", _VIOLATION)
        made.append(Control("a TPM that ignores the tamper", ignores, rule, case, severity))
    made.append(Control("nothing was changed", _with(changes=()), "not-applied", case, UNPROVEN))
    if tamper.undo:
        made.append(Control("it still asks once undone", _outcome(Outcome.ASKED, "undone"), "not-undone", case))
    if barred or any(tpm_sysrq.ended(boot) and not boot.tries for boot in tampered[-1:]):
        return tuple(made)
    if tamper.locked and any(boot.outcome is Outcome.LOCKED for boot in seen.boots):
        # Nothing was typed: nobody asked.
        made.append(
            Control("an emergency for anybody", _outcome(Outcome.EMERGENCY), "emergency-undecided", case, UNPROVEN)
        )
        return tuple(made)
    missed = UNPROVEN if seen.talked_on == "screen" else _VIOLATION
    made += [
        Control("a keyslot that opens with nothing", _answer(BLANK, Answer.OPENED), "wrong-passphrase-opens", case),
        Control("an emergency with a root shell", _answer(PROBE, Answer.SHELL), "shell", case),
        Control("the passphrase is refused", _answer(RIGHT, Answer.REFUSED), "right-refused", case, missed),
        Control("the passphrase comes to nothing", _answer(RIGHT, Answer.TIMEOUT), "right-undecided", case, UNPROVEN),
        Control("no answer to a guess", _answer(BLANK, Answer.TIMEOUT), "guess-undecided", case, UNPROVEN),
    ]
    if seen.reason_from != "journal" or tamper.after == "login":
        made.append(Control("nobody says why", _without_reasons, "no-reason", case, missed))
    return tuple(made)


def _with(**changes: object) -> Sabotage:
    return lambda seen: seen.model_copy(update=changes)


def _boots(seen: TpmObservation, change: Callable[[BootSeen], BootSeen]) -> TpmObservation:
    return seen.model_copy(update={"boots": tuple(change(boot) for boot in seen.boots)})


def _outcome(outcome: Outcome, role: str = "") -> Sabotage:
    """Of the first boot, or of that in `role`."""

    def sabotage(seen: TpmObservation) -> TpmObservation:
        wanted = role or (seen.boots[0].role if seen.boots else "")
        return _boots(
            seen, lambda boot: boot.model_copy(update={"outcome": outcome}) if boot.role == wanted else boot
        )

    return sabotage


def _answer(what: str, answer: Answer) -> Sabotage:
    def change(boot: BootSeen) -> BootSeen:
        tries = tuple(
            attempt.model_copy(update={"answer": answer}) if attempt.what == what else attempt
            for attempt in boot.tries
        )
        return boot.model_copy(update={"tries": tries})

    return lambda seen: _boots(seen, change)


def _line(role: str, text: str | None) -> Sabotage:
    """What the console of the boots in `role` says of the kernel's command line."""
    said = () if text is None else (text,)
    return lambda seen: _boots(
        seen, lambda boot: boot.model_copy(update={"command_lines": said}) if boot.role == role else boot
    )


def _both(first: Sabotage, second: Sabotage) -> Sabotage:
    return lambda seen: second(first(seen))


def _silent_twin(seen: TpmObservation) -> TpmObservation:
    """The PIN was typed, and nothing came of it."""
    pin = (Try(what=PIN, answer=Answer.TIMEOUT),)
    change = {"outcome": Outcome.PIN, "pins": pin}
    return _boots(seen, lambda boot: boot.model_copy(update=change) if boot.role == "twin" else boot)


def _no_twin(seen: TpmObservation) -> TpmObservation:
    return seen.model_copy(update={"boots": tuple(boot for boot in seen.boots if boot.role != "twin")})


def _lossy(seen: TpmObservation) -> TpmObservation:
    return _boots(seen, lambda boot: boot.model_copy(update={"lost": 1}))


def _on_another_console(seen: TpmObservation) -> TpmObservation:
    return _boots(seen, lambda boot: boot.model_copy(update={"screen": ("(initramfs)",)}))


def _without_reasons(seen: TpmObservation) -> TpmObservation:
    return _boots(seen, lambda boot: boot.model_copy(update={"reasons": (), "bad_pin": "", "lockout": ""}))


def _locked_out(seen: TpmObservation) -> TpmObservation:
    return _boots(seen, lambda boot: boot.model_copy(update={"bad_pin": "", "lockout": "it is in lockout"}))


def _unsaid(seen: TpmObservation) -> TpmObservation:
    """The console speaks of a wrong PIN and of the lockout, and of the PINs that were typed of neither."""

    def change(boot: BootSeen) -> BootSeen:
        pins = tuple(each.model_copy(update={"why": ()}) for each in boot.pins)
        return boot.model_copy(update={"pins": pins, "lockout": "it is in lockout", "bad_pin": "it was wrong"})

    return _boots(seen, change)


def _pins(role: str, answer: Answer = Answer.REFUSED, *, typed: bool = True) -> Sabotage:
    """What the PINs of the boots in `role` came to; or none were typed."""

    def change(boot: BootSeen) -> BootSeen:
        if boot.role != role:
            return boot
        pins = tuple(each.model_copy(update={"answer": answer}) for each in boot.pins) if typed else ()
        return boot.model_copy(update={"pins": pins})

    return lambda seen: _boots(seen, change)
