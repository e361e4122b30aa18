"""Rows of a sound machine with a TPM, to be spoiled by tests one thing at a time."""

from __future__ import annotations

from typing import Any

from pytest_osgates.checks.tpm_model import (
    PIN,
    Answer,
    BootSeen,
    Change,
    GrubSeen,
    KeySeen,
    Outcome,
    SysrqSeen,
    TpmObservation,
    TpmPolicy,
    TpmSlot,
    Try,
    tamper_of,
)
from pytest_osgates.model import State

PASSPHRASE = "correct horse"
TPM_POLICY = TpmPolicy(pcrs=(4, 7, 8, 9), passphrase=PASSPHRASE)
PIN_TEXT = "7531-pin"
PIN_POLICY = TpmPolicy(pcrs=(4, 7, 8, 9), passphrase=PASSPHRASE, pin=PIN_TEXT)
SLOT = TpmSlot(subject="partition 2, token 1", pcrs=(4, 7, 8, 9), bank="sha256")


def tries(policy: TpmPolicy = TPM_POLICY, **answers: Answer) -> tuple[Try, ...]:
    """All guesses refused, the passphrase taken; `answers` by name, spaces as underscores."""
    found = [
        Try(what=what, answer=answers.get(what.replace(" ", "_"), Answer.REFUSED), line="x")
        for what in policy.guesses()
    ]
    return (*found, Try(what="right", answer=answers.get("right", Answer.OPENED), line="host login:"))


def boot(role: Any = "tampered", outcome: Outcome = Outcome.ASKED, **changes: Any) -> BootSeen:
    asked = outcome is Outcome.ASKED
    fields = {
        "role": role,
        "outcome": outcome,
        "line": "the line",
        "at": 40.0,
        "tries": tries() if asked else (),
        "reasons": ("Current policy digest does not match",) if asked else (),
        **changes,
    }
    return BootSeen(**fields)


# GRUB's menu opened, and the chosen entry booted with one more parameter.
EDITED = GrubSeen(
    menu="GNU GRUB version 2.12",
    command_line="grub>",
    editor="Minimum Emacs-like screen editing is supported.",
    parameter="osgates.tampered=1",
    line="linux /live/vmlinuz boot=live osgates.tampered=1",
    booting="Booting a command list",
)
# GRUB wants a password for both.
BARRED = GrubSeen(
    menu="GNU GRUB version 2.12",
    command_line="Enter username:",
    command_line_locked=True,
    editor="Enter username:",
    editor_locked=True,
    parameter="osgates.tampered=1",
)
PRESSED = SysrqSeen(
    keys=tuple(KeySeen(key=key, line="sysrq: This sysrq operation is disabled.") for key in "rkfei"),
    answer=Answer.ASKED_AGAIN,
)


def typed(how: str) -> dict[str, Any]:
    """What there is more to see of a boot in which somebody was at the keyboard."""
    return {"type-at-grub": {"grub": EDITED}, "press-sysrq": {"sysrq": PRESSED}}.get(how, {})


PIN_SLOT = SLOT.model_copy(update={"pin": True})


def pin(answer: Answer = Answer.REFUSED, what: str = PIN, **changes: Any) -> Try:
    """A PIN that was typed."""
    return Try(**{"what": what, "answer": answer, "line": "a line", "seconds": 5.0, **changes})


def pin_row(case: str, **changes: Any) -> TpmObservation:
    """A row of a sound machine whose TPM wants a PIN."""
    tamper = tamper_of(case)
    opened = {"pins": (pin(Answer.OPENED),)}
    if tamper is None:
        made = row(case, boots=(boot("untampered", Outcome.UNLOCKED, **opened),))
    else:
        shown: dict[str, dict[str, Any]] = {
            "wrong": {"pins": (pin(what="wrong PIN 1", why=("bad-pin",)),), "bad_pin": "Bad PIN."},
            "right": {"pins": (pin(),), "lockout": "TPM is in dictionary attack lock-out mode."},
        }
        tampered = boot(**shown.get(tamper.pin, {"pins": (pin(),)}))
        made = row(case, boots=(tampered, *((boot("undone", Outcome.UNLOCKED, **opened),) if tamper.undo else ())))
    return made.model_copy(update={"slots": (PIN_SLOT,), **changes})


def row(case: str, **changes: Any) -> TpmObservation:
    tamper = tamper_of(case)
    if tamper is None:
        made: dict[str, Any] = {"state": State.INSTALLED, "boots": (boot("untampered", Outcome.UNLOCKED),)}
    else:
        undone = (boot("undone", Outcome.UNLOCKED),) if tamper.undo else ()
        made = {
            "state": State.TAMPERED,
            "boots": (boot(**typed(tamper.how)), *undone),
            "changes": tuple(Change(what=what, before="a", after="b") for what in tamper.changes),
        }
    name = "" if tamper is None else tamper.name
    return TpmObservation(**{"case": case, "tamper": name, "slots": (SLOT,), **made, **changes})
