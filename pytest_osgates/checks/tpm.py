"""Gate `tpm`: an untampered machine unlocks its disk by itself; a tampered one asks, and there is no third way in."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_osgates.checks import emulated, tpm_grub, tpm_sysrq
from pytest_osgates.checks.tpm_controls import controls
from pytest_osgates.checks.tpm_model import (
    PIN,
    REFUSALS,
    RIGHT,
    UNTAMPERED,
    Answer,
    BootSeen,
    Outcome,
    Tamper,
    TpmObservation,
    TpmPolicy,
    TpmSlot,
    Try,
    as_made,
    opened,
    tamper_of,
)
from pytest_osgates.checks.tpm_options import is_ignored, not_taken, options, untaken
from pytest_osgates.model import Finding, Gate, Severity, State

_UNPROVEN = Severity.UNPROVEN
_STRONG_BANKS = frozenset({"sha256", "sha384", "sha512"})
_ROUNDING = 0.1
# Tries that fail before libtpms is in lockout: three, and one of them may be the machine's that was switched off.
_SURE_PINS = 2
_OPENED = (Answer.OPENED, Answer.EARLY)
_PROMPT = "the prompt for the passphrase"
_CONSOLES = {"serial": "the serial console", "screen": "the screen"}
# Of what a screen says not all is read; and what is typed there is typed by keys, and arrives in the guest's layout.
_MISSED = {"serial": Severity.VIOLATION, "screen": _UNPROVEN}
_LAYOUT = {
    "serial": "",
    "screen": "it was typed by keys of the US layout: the guest must have it, and from its start on",
}


def judge(seen: TpmObservation, policy: TpmPolicy) -> list[Finding]:
    """One row."""
    try:
        tamper = tamper_of(seen.case)
    except KeyError:
        return [_finding(seen, "unknown-row", f"a row called {seen.case!r}", "a tamper of this version", _UNPROVEN)]
    if seen.tamper != ("" if tamper is None else tamper.name):
        return [_finding(seen, "unknown-row", f"the tamper {seen.tamper!r}", f"{seen.case!r}", _UNPROVEN)]
    findings = [*_binding(seen, policy), *_pin_slots(seen, policy)]
    if seen.error:
        findings.append(_finding(seen, "not-applied", seen.error, "the tamper, made and undone", _UNPROVEN))
    findings += _lost(seen)
    findings += _on_screen(seen)
    findings += _untampered(seen, policy) if tamper is None else _tampered(seen, tamper, policy)
    return findings


def _finding(
    seen: TpmObservation, rule: str, what: str, wanted: str, severity: Severity = Severity.VIOLATION, hint: str = ""
) -> Finding:
    records = next((boot.records for boot in seen.boots if boot.records), "")
    return Finding(
        rule=rule, subject=seen.case, seen=what, wanted=wanted, severity=severity, hint=hint, evidence=records
    )


def _binding(seen: TpmObservation, policy: TpmPolicy) -> Iterable[Finding]:
    """What the disk's own header says of its TPM slots."""
    if not seen.slots:
        yield Finding(
            rule="no-tpm-slot",
            subject="disk",
            seen="no token of the type systemd-tpm2",
            wanted=f"a keyslot for the TPM, bound to the PCRs {_numbers(policy.pcrs)}",
            hint="systemd-cryptenroll --tpm2-device=auto --tpm2-pcrs=...",
        )
    for other in seen.others:
        subject, _, what = other.partition(": ")
        yield Finding(
            rule="other-way",
            subject=subject,
            seen=what,
            wanted="nothing that may open the disk but slots of systemd's for the TPM, passphrases and security keys",
            severity=_UNPROVEN,
            hint="what it is bound to is not known here, and no boot of this machine's tries it: remove it",
        )
    for slot in seen.slots:
        if slot.bound and slot.bank not in _STRONG_BANKS:
            yield Finding(
                rule="bank",
                subject=slot.subject,
                seen=f"the bank {slot.bank}" if slot.bank else "no bank: it is chosen anew at each boot",
                wanted="sha256, sha384 or sha512",
            )
        if slot.pcrlock:
            yield Finding(
                rule="pcrs",
                subject=slot.subject,
                seen="its PCRs are in a systemd-pcrlock policy in the TPM, which was not read",
                wanted=f"bound to the PCRs {_numbers(policy.pcrs)}",
                severity=_UNPROVEN,
            )
        elif missing := sorted(set(policy.pcrs) - slot.bound):
            yield Finding(
                rule="pcrs",
                subject=slot.subject,
                seen=f"bound to {_bound(slot)}",
                wanted=f"bound to the PCRs {_numbers(policy.pcrs)}: {_numbers(missing)} as well",
                hint="enrol it again: systemd-cryptenroll --wipe-slot=tpm2 --tpm2-device=auto --tpm2-pcrs=...",
            )


def _pin_slots(seen: TpmObservation, policy: TpmPolicy) -> Iterable[Finding]:
    """Whether the slots want a PIN, as the profile says."""
    for slot in seen.slots:
        if slot.pin and not policy.has_pin:
            yield _finding(
                seen,
                "pin",
                f"{slot.subject} wants a PIN, and the profile knows of none",
                "the PIN typed, a wrong one refused, and the TPM in lockout",
                _UNPROVEN,
                hint="write pin or pin_env into [gate.tpm] of the distro profile",
            )
        elif policy.has_pin and not slot.pin:
            yield Finding(
                rule="no-pin",
                subject=slot.subject,
                seen="the TPM opens the disk without a PIN",
                wanted="a PIN, which the profile knows of",
                hint="systemd-cryptenroll --wipe-slot=tpm2 --tpm2-device=auto --tpm2-with-pin=yes --tpm2-pcrs=...",
            )


def _lost(seen: TpmObservation) -> Iterable[Finding]:
    for boot in seen.boots:
        if boot.lost:
            what = f"{boot.lost} bytes of {_CONSOLES[seen.talked_on]} came too fast to be looked at"
            yield _finding(seen, "lost-output", what, "every line looked at: any of them may be a shell", _UNPROVEN)
            return


def _on_screen(seen: TpmObservation) -> Iterable[Finding]:
    """Another console than the one that was talked to. Where the disk was opened, a login by itself may be meant."""
    for boot in seen.boots:
        if boot.screen:
            other = "screen" if seen.talked_on == "serial" else "serial"
            what, wanted = f"on {_CONSOLES[other]}: {boot.screen[0]}", "no shell without a login"
            if boot.role == "tampered":
                yield _finding(seen, f"{other}-shell", what, wanted)
            else:
                hint = "nothing tells a login by itself from a shell for anybody: turn it off for the test"
                yield _finding(seen, f"{other}-shell", what, wanted, _UNPROVEN, hint=hint)
            return


def _untampered(seen: TpmObservation, policy: TpmPolicy) -> Iterable[Finding]:
    if [boot.role for boot in seen.boots] != [UNTAMPERED]:
        yield _finding(seen, "no-boot", f"{len(seen.boots)} boots", "one boot of the untampered machine", _UNPROVEN)
        return
    yield from _unlocks(seen, seen.boots[0], "asked", "the untampered machine", policy)


def _unlocks(seen: TpmObservation, boot: BootSeen, rule: str, what: str, policy: TpmPolicy) -> Iterable[Finding]:
    """A boot that must unlock by itself, or by the PIN."""
    how = "with the PIN" if policy.has_pin else "by itself"
    wanted = f"{what} unlocks {how} and reaches its login"
    if boot.pins and boot.outcome is not Outcome.UNLOCKED:
        wanted = f"{wanted}; {_typed(boot)}"
    match boot.outcome:
        case Outcome.UNLOCKED:
            yield from _by_pin(seen, boot, policy, wanted)
        case Outcome.PIN if not policy.has_pin:
            yield _finding(seen, "pin", f"it asks for a PIN: {boot.line}", wanted, _UNPROVEN)
        case Outcome.PIN if boot.pins and boot.pins[-1].answer is Answer.REFUSED:
            what = f"it asks again: {boot.line}"
            yield _finding(seen, "right-pin-refused", what, wanted, _MISSED[seen.talked_on], _LAYOUT[seen.talked_on])
        case Outcome.PIN:
            yield _finding(seen, "pin-undecided", f"it asks for the PIN: {boot.line}", wanted, _UNPROVEN)
        case Outcome.ASKED:
            hint = "a PCR that it is bound to is not the same on each boot: compare the TPM's event logs"
            yield _finding(seen, rule, f"it asks: {boot.line}", wanted, hint=hint)
        case Outcome.SHELL:
            yield _finding(seen, "shell", f"a shell: {boot.line}", wanted)
        case Outcome.EMERGENCY | Outcome.LOCKED | Outcome.STOPPED | Outcome.ENDED:
            excuse = emulated.panic(seen.accelerator, boot.line, boot.console)
            severity = _UNPROVEN if excuse else Severity.VIOLATION
            yield _finding(seen, "not-booted", f"{boot.outcome}: {boot.line}", wanted, severity, excuse)
        case Outcome.TIMEOUT | Outcome.GRUB:
            yield _finding(seen, "timeout", f"neither login nor prompt after {boot.at:.0f} s", wanted, _UNPROVEN)


def _by_pin(seen: TpmObservation, boot: BootSeen, policy: TpmPolicy, wanted: str) -> Iterable[Finding]:
    """Of a machine that was unlocked: by the PIN, which was asked for and typed once, if there is one."""
    if not boot.pins:
        if policy.has_pin:
            what = f"it was unlocked, and nobody asked for the PIN: {boot.line}"
            yield _finding(seen, "pin-not-asked", what, wanted)
        return
    early = next((attempt for attempt in boot.pins if attempt.early or attempt.answer is Answer.EARLY), None)
    if early is not None:
        what = f"it was unlocked before the PIN was typed: {early.line}"
        yield _finding(seen, "pin-not-asked", what, wanted)
    elif [(attempt.what, attempt.answer) for attempt in boot.pins] != [(PIN, Answer.OPENED)]:
        yield _finding(seen, "pin-undecided", _typed(boot), f"{wanted}, by the right PIN alone", _UNPROVEN)


def _typed(boot: BootSeen) -> str:
    return "typed at the prompt for the PIN: " + ", ".join(f"{each.what} ({each.answer})" for each in boot.pins)


def _tampered(seen: TpmObservation, tamper: Tamper, policy: TpmPolicy) -> Iterable[Finding]:
    tamper = as_made(tamper, seen.changes)
    if not _applied(seen, tamper):
        made = ", ".join(f"{change.what}: {change.before} -> {change.after}" for change in seen.changes) or "nothing"
        yield _finding(
            seen, "not-applied", f"changed: {made}", f"another {' and another '.join(tamper.changes)}", _UNPROVEN
        )
    tampered, twins, undone = (
        [boot for boot in seen.boots if boot.role == role] for role in ("tampered", "twin", "undone")
    )
    known = len(tampered) + len(twins) + len(undone)
    if not tampered or len(undone) > tamper.undo or len(twins) > tamper.ignored or known != len(seen.boots):
        roles = ", ".join(boot.role for boot in seen.boots) or "none"
        yield _finding(
            seen, "no-boot", f"boots: {roles}", "boots of the tampered machine, one once undone", _UNPROVEN
        )
        return
    # Where GRUB lets nobody edit, there is nothing that a PCR would have to see.
    blind = None if all(tpm_grub.barred(boot) for boot in tampered) else _blind(seen.slots, tamper)
    if is_ignored(tampered, tamper):
        found = list(options(seen, tampered[0], twins, tamper, policy, blind))
        wanted = "the PIN, before it opens: the load options are ignored"
        found += _by_pin(seen, tampered[0], policy, wanted)
    elif asks := untaken(tampered, tamper, policy):
        found = [*_fallback(seen, tampered, tamper, policy, None), not_taken(seen, asks)]
    else:
        found = list(_fallback(seen, tampered, tamper, policy, blind))
        if blind and not any(finding.rule in ("unlocked", "which-boots") for finding in found):
            found.append(_finding(seen, "blind", *blind))
    yield from found
    if any(finding.severity is Severity.VIOLATION for finding in found):
        # The rest of the row is not gone through once it has failed.
        return
    if not tamper.undo:
        return
    if not undone:
        yield _finding(seen, "undo-not-tried", "no boot after it was undone", "one that unlocks by itself", _UNPROVEN)
        return
    yield from _unlocks(seen, undone[0], "not-undone", "the machine, once the tamper is undone,", policy)
    yield from _hasty_pins(seen, tampered, undone[0])


def _applied(seen: TpmObservation, tamper: Tamper) -> bool:
    changed = {change.what for change in seen.changes if change.before != change.after}
    return changed == set(tamper.changes)


def _blind(slots: Iterable[TpmSlot], tamper: Tamper) -> tuple[str, str] | None:
    """What the slot is bound to and what would have seen the tamper, if none of that is the same."""
    if tamper.sealed != "pcrs":
        return None
    sees = {entry.pcr for entry in tamper.pcrs}
    for slot in slots:
        if not slot.pcrlock and not slot.bound & sees:
            would = "; ".join(f"PCR {entry.pcr} ({entry.what}: {entry.source})" for entry in tamper.pcrs)
            return (
                f"{slot.subject} is bound to {_bound(slot)}, which {tamper.name} does not change",
                f"one of {would}",
            )
    return None


def _fallback(
    seen: TpmObservation, boots: list[BootSeen], tamper: Tamper, policy: TpmPolicy, blind: tuple[str, str] | None
) -> Iterable[Finding]:
    """Prompt, refusal, unlocking, and nothing else."""
    yield from _pins(seen, boots, tamper, policy)
    if tamper.how == tpm_sysrq.HOW:
        yield from tpm_sysrq.judge(seen, boots, policy)
    for boot in boots:
        yield from _asks(seen, boot, tamper, blind, policy)
        for attempt in boot.tries:
            if attempt.what != RIGHT or not opened(attempt, tamper):
                yield from _answered(seen, boot, attempt)
    if any(boot.outcome is not Outcome.ASKED for boot in boots):
        if len({boot.outcome for boot in boots}) > 1:
            what = ", ".join(boot.outcome for boot in boots)
            yield _finding(seen, "boots-differ", what, "the same end of each tampered boot", _UNPROVEN)
        return
    tries = [attempt for boot in boots for attempt in boot.tries]
    opening = max((attempt.seconds for attempt in tries if attempt.what == RIGHT), default=0.0)
    decided = {attempt.what for attempt in tries if attempt.answer is not Answer.TIMEOUT}
    # Whoever asks again without a word may be opening the disk all the while, as long as the passphrase takes.
    hasty = [
        attempt for attempt in tries if attempt.answer is Answer.ASKED_AGAIN and attempt.seconds < opening - _ROUNDING
    ]
    for attempt in hasty:
        what = f"{attempt.what}: it asks again without a word, and was watched for {attempt.seconds:.0f} s"
        wanted = f"a word of refusal, or {opening:.0f} s without a login: so long the passphrase took"
        yield _finding(seen, "guess-undecided", what, wanted, _UNPROVEN, hint="raise settle_s in [gate.tpm]")
    if tpm_sysrq.ended(boots[-1]):
        # Nobody asks any more.
        return
    if not any(attempt.answer in (Answer.OPENED, Answer.SHELL) for attempt in tries if attempt.what != RIGHT):
        for guess in policy.guesses():
            if guess not in decided:
                yield _finding(
                    seen, "guess-undecided", f"{guess}: no answer", "typed at the prompt, and refused", _UNPROVEN
                )
        if RIGHT not in decided:
            yield _finding(
                seen,
                "right-undecided",
                "the passphrase: no answer",
                "it opens the disk, and the login comes",
                _UNPROVEN,
            )
    # A shell instead of the system has no journal to be asked, nor is it asked behind one.
    behind = any(attempt.answer is Answer.SHELL for attempt in tries if attempt.what != RIGHT)
    unasked = seen.reason_from == "journal" and (tamper.after == "shell" or behind)
    if not unasked and not any(_reason(boot, tamper) for boot in boots):
        why = {"right": "that the TPM is locked out", "wrong": "that the PIN was wrong"}
        yield _finding(
            seen,
            "no-reason",
            f"{'the journal' if seen.reason_from == 'journal' else _CONSOLES[seen.talked_on]} does not say"
            f" {why.get(tamper.pin, 'why the TPM did not unlock the disk')}",
            "a line that says so: whoever is asked for the passphrase must be able to learn why",
            _MISSED[seen.talked_on],
        )


def _reason(boot: BootSeen, tamper: Tamper) -> bool:
    """Whether it is said why the TPM did not unlock the disk; of a PIN's rows, in so many words."""
    match tamper.pin:
        case "right":
            return bool(boot.lockout)
        case "wrong":
            # Where a wrong one too many leads to the lockout, that is the reason.
            return bool(boot.bad_pin or boot.lockout)
        case _:
            return bool(boot.reasons)


def _pins(seen: TpmObservation, boots: list[BootSeen], tamper: Tamper, policy: TpmPolicy) -> Iterable[Finding]:
    """What PINs came to: none opens a tampered machine."""
    if locked := _locked_before(boots, tamper):
        what = f"the TPM was in lockout: {locked}"
        yield _finding(seen, "pin-undecided", what, f"refused because of this: {tamper.title}", _UNPROVEN)
    tries = [attempt for boot in boots for attempt in boot.pins]
    unlocked = any(boot.outcome is Outcome.UNLOCKED for boot in boots)
    for attempt in tries:
        what = f"{attempt.what}: {attempt.line}"
        if attempt.answer is Answer.SHELL:
            yield _finding(seen, "shell", f"after {what}", "no shell without a login")
        elif attempt.answer in _OPENED and attempt.what == PIN:
            if not unlocked:
                yield _finding(seen, "pin-opens", what, f"the right PIN opens nothing: {tamper.title}")
        elif attempt.answer in _OPENED:
            yield _finding(seen, "wrong-pin-opens", what, "nothing but the PIN makes the TPM open the disk")
        elif attempt.answer not in REFUSALS:
            yield _finding(
                seen,
                "pin-undecided",
                f"{attempt.what}: {attempt.answer}",
                "typed at its prompt, and refused",
                _UNPROVEN,
            )
    wanted = policy.pin_guesses() if tamper.pin == "wrong" else (PIN,)
    if odd := sorted({attempt.what for attempt in tries} - set(wanted)):
        yield _finding(seen, "pin-undecided", f"typed: {', '.join(odd)}", ", ".join(wanted), _UNPROVEN)
    for boot in boots:
        # What comes to an emergency may have opened the disk before.
        if not (boot.bad_pin or boot.lockout or boot.reasons) and any(
            attempt.answer is Answer.LOCKED for attempt in boot.pins
        ):
            what = f"an emergency came, and nobody said that the PIN was refused: {boot.line}"
            yield _finding(seen, "pin-undecided", what, "a word of refusal", _UNPROVEN)
    if not tamper.pin:
        return
    # After so many, or once it says so, it may be the lockout alone that refuses.
    doubtful = len(wanted) > _SURE_PINS or any(boot.lockout for boot in boots)
    for guess in wanted:
        refused = [attempt for attempt in tries if attempt.what == guess and attempt.answer in REFUSALS]
        if tamper.pin == "right" and any(attempt.answer in _OPENED for attempt in tries):
            # That is said already.
            continue
        if not refused:
            what = f"{guess}: not refused, or never asked for"
            yield _finding(seen, "pin-undecided", what, "typed at the prompt for the PIN, and refused", _UNPROVEN)
        elif tamper.pin == "wrong" and doubtful and not any("bad-pin" in attempt.why for attempt in refused):
            what = f"{guess}: refused, and nobody said that it was wrong: the TPM may have been in lockout"
            hint = "name fewer wrong_pins: libtpms allows three failed tries"
            yield _finding(seen, "pin-undecided", what, "a word that this PIN was wrong", _UNPROVEN, hint=hint)


def _locked_before(boots: list[BootSeen], tamper: Tamper) -> str:
    """The line that says that a lockout refused, where something else was to. One into which the row's own wrong PINs
    or its later boots led does not count."""
    if tamper.pin == "right" or (tamper.pin == "wrong" and any(boot.bad_pin for boot in boots)):
        return ""
    looked = boots if tamper.pin == "wrong" else boots[:1]
    return next((boot.lockout for boot in looked if boot.lockout), "")


def _hasty_pins(seen: TpmObservation, boots: list[BootSeen], undone: BootSeen) -> Iterable[Finding]:
    """Whoever asks again without a word may be opening the disk all the while, as long as the PIN takes."""
    opening = max((attempt.seconds for attempt in undone.pins), default=0.0)
    for attempt in (attempt for boot in boots for attempt in boot.pins):
        if attempt.answer is Answer.ASKED_AGAIN and attempt.seconds < opening - _ROUNDING:
            what = f"{attempt.what}: it asks again without a word, and was watched for {attempt.seconds:.0f} s"
            wanted = f"a word of refusal, or {opening:.0f} s without a login: so long the PIN took"
            yield _finding(seen, "pin-undecided", what, wanted, _UNPROVEN, hint="raise settle_s in [gate.tpm]")


def _asks(
    seen: TpmObservation, boot: BootSeen, tamper: Tamper, blind: tuple[str, str] | None, policy: TpmPolicy
) -> Iterable[Finding]:
    wanted = f"{_PROMPT}: {tamper.title}"
    if tamper.how == tpm_grub.HOW:
        for told in tpm_grub.told(boot):
            yield _finding(seen, told.rule, told.what, told.wanted, _UNPROVEN, told.hint)
        if not tpm_grub.edited(boot) and boot.outcome not in (Outcome.SHELL, Outcome.TIMEOUT):
            return
    match boot.outcome:
        case Outcome.ASKED:
            return
        case Outcome.PIN:
            # It may come to the passphrase after many more; nobody has seen it.
            what = f"it asks for a PIN: {boot.line}"
            typed = f"; {_typed(boot)}" if boot.pins else ""
            yield _finding(
                seen, "no-passphrase-prompt" if policy.has_pin else "pin", f"{what}{typed}", wanted, _UNPROVEN
            )
        case Outcome.UNLOCKED if any(each.answer in _OPENED and each.what != PIN for each in boot.pins):
            # By a wrong PIN: that is said already.
            return
        case Outcome.UNLOCKED if seen.besides:
            what = f"the disk was unlocked, and may boot something else, which was not changed: {seen.besides}"
            hint = "try a copy of the disk without what does not boot"
            yield _finding(seen, "which-boots", what, wanted, _UNPROVEN, hint=hint)
        case Outcome.UNLOCKED:
            what = f"the disk was unlocked, and nobody was asked: {boot.line}"
            if boot.pins:
                what = f"the disk was unlocked, and nobody was asked for the passphrase: {boot.line}; {_typed(boot)}"
            if blind:
                what, wanted = f"{what}; {blind[0]}", f"{wanted}; bound to {blind[1]}"
            hint = "" if tamper.pin else _see_it(seen.slots, tamper)
            yield _finding(seen, "unlocked", what, wanted, hint=hint)
        case Outcome.SHELL:
            yield _finding(seen, "shell", f"a shell: {boot.line}", wanted)
        case Outcome.LOCKED if tamper.locked:
            return
        case Outcome.EMERGENCY | Outcome.LOCKED | Outcome.STOPPED | Outcome.ENDED if (
            tamper.locked or tamper.how == tpm_grub.HOW
        ):
            # It asks for nothing, and gave nobody a shell; but nothing says that it would not. At GRUB nothing was
            # changed on the disk: its owner boots again.
            if tamper.locked:
                wanted = f"{wanted}; or an emergency that says that nobody gets a shell"
            excuse = emulated.panic(seen.accelerator, boot.line, boot.console)
            what = f"{boot.outcome}: {boot.line}"
            yield _finding(seen, "emergency-undecided", what, wanted, _UNPROVEN, hint=excuse)
        case Outcome.EMERGENCY | Outcome.LOCKED | Outcome.STOPPED | Outcome.ENDED:
            excuse = emulated.panic(seen.accelerator, boot.line, boot.console)
            severity = _UNPROVEN if excuse else Severity.VIOLATION
            hint = excuse or "its owner cannot get in any more"
            yield _finding(seen, "no-prompt", f"{boot.outcome}: {boot.line}", wanted, severity, hint)
        case Outcome.TIMEOUT | Outcome.GRUB:
            yield _finding(seen, "timeout", f"neither prompt nor login after {boot.at:.0f} s", wanted, _UNPROVEN)


def _see_it(slots: Iterable[TpmSlot], tamper: Tamper) -> str:
    """What to bind, so that it is seen."""
    sees = {entry.pcr for entry in tamper.pcrs}
    signed = sorted({pcr for slot in slots for pcr in set(slot.signed_pcrs) & sees - set(slot.pcrs)})
    if signed and sees - set(signed):
        others = " or ".join(map(str, sorted(sees - set(signed))))
        return (
            f"of PCR {_numbers(signed)}, a signed policy lets in whatever its key has signed; bind the TPM's slot to"
            f" PCR {others} as well, or have that key sign nothing else"
        )
    return "bind the TPM's slot to PCRs that see it"


def _answered(seen: TpmObservation, boot: BootSeen, attempt: Try) -> Iterable[Finding]:
    if attempt.answer is Answer.SHELL:
        # Also after the right passphrase: a login was expected.
        yield _finding(seen, "shell", f"after {attempt.what}: {attempt.line}", "no shell without a login")
    elif attempt.what == RIGHT:
        if attempt.answer in REFUSALS:
            what, wanted = attempt.line or str(attempt.answer), "the passphrase opens the disk"
            yield _finding(seen, "right-refused", what, wanted, _MISSED[seen.talked_on], _LAYOUT[seen.talked_on])
        elif attempt.answer is Answer.EARLY:
            yield _finding(seen, "opened-early", attempt.line, "no login before the passphrase was typed")
        elif attempt.answer in (Answer.STOPPED, Answer.ENDED):
            excuse = emulated.panic(seen.accelerator, attempt.line, boot.console)
            severity = _UNPROVEN if excuse else Severity.VIOLATION
            what, wanted = f"{attempt.answer}: {attempt.line}", "the login, after the passphrase"
            yield _finding(seen, "no-login", what, wanted, severity, excuse)
    elif attempt.answer in (Answer.OPENED, Answer.EARLY):
        yield _finding(
            seen,
            "wrong-passphrase-opens",
            f"{attempt.what}: {attempt.line}",
            "nothing but the passphrase opens the disk",
            hint="see the keyslots: cryptsetup luksDump",
        )
    elif attempt.answer in (Answer.STOPPED, Answer.ENDED):
        yield _finding(
            seen,
            "gave-up",
            f"after {attempt.what}: {attempt.answer}: {attempt.line}",
            "it asks again, or is an emergency in which nobody gets a shell",
            _UNPROVEN,
        )


def _numbers(pcrs: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(pcrs)))


def _bound(slot: TpmSlot) -> str:
    return f"the PCRs {_numbers(slot.bound)}" if slot.bound else "no PCR"


def _state(case: str) -> State:
    return State.INSTALLED if case.startswith(f"{UNTAMPERED}-") else State.TAMPERED


def compare(before: TpmObservation, now: TpmObservation) -> list[str]:
    """Boots that ended otherwise."""
    told = [[f"{boot.role}: {boot.outcome}" for boot in seen.boots] for seen in (before, now)]
    return [] if told[0] == told[1] else [f"{', '.join(told[0]) or 'no boot'} -> {', '.join(told[1]) or 'no boot'}"]


GATE = Gate(
    name="tpm",
    title="the TPM unlocks the untampered machine alone; every tamper ends at the passphrase",
    states=(State.INSTALLED, State.TAMPERED),
    observation=TpmObservation,
    policy=TpmPolicy,
    judge=judge,
    controls=controls,
    cases=lambda policy, firmwares: policy.rows(),
    state_of_case=_state,
    compare=compare,
)
