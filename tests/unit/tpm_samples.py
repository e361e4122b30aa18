"""Rows of a sound machine with a TPM, to be spoiled by tests one thing at a time."""

from __future__ import annotations

from typing import Any

from pytest_osgates.checks.tpm_model import (
    Answer,
    BootSeen,
    Change,
    Outcome,
    TpmObservation,
    TpmPolicy,
    TpmSlot,
    Try,
    tamper_of,
)
from pytest_osgates.model import State

PASSPHRASE = "correct horse"
TPM_POLICY = TpmPolicy(pcrs=(4, 7, 8, 9), passphrase=PASSPHRASE)
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


def row(case: str, **changes: Any) -> TpmObservation:
    tamper = tamper_of(case)
    if tamper is None:
        made: dict[str, Any] = {"state": State.INSTALLED, "boots": (boot("untampered", Outcome.UNLOCKED),)}
    else:
        undone = (boot("undone", Outcome.UNLOCKED),) if tamper.undo else ()
        made = {
            "state": State.TAMPERED,
            "boots": (boot(), *undone),
            "changes": tuple(Change(what=what, before="a", after="b") for what in tamper.changes),
        }
    name = "" if tamper is None else tamper.name
    return TpmObservation(**{"case": case, "tamper": name, "slots": (SLOT,), **made, **changes})
