"""The judge of the gate `tpm`, where the TPM wants a PIN: who types what, and what opens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_osgates.checks.tpm import GATE
from pytest_osgates.checks.tpm_model import (
    PIN,
    Answer,
    BootSeen,
    Outcome,
    TpmObservation,
    TpmPolicy,
    pin_tampers,
    required_tampers,
    tamper_of,
    tampers,
)
from pytest_osgates.judging import judge as judge_gate
from pytest_osgates.model import Severity, Verdict
from tests.unit.tpm_samples import (
    PASSPHRASE,
    PIN_POLICY,
    PIN_SLOT,
    PIN_TEXT,
    SLOT,
    TPM_POLICY,
    boot,
    pin,
    pin_row,
    row,
)

ROWS = PIN_POLICY.rows()
TAMPERED = (*required_tampers(), *pin_tampers())
UNDONE = boot("undone", Outcome.UNLOCKED, pins=(pin(Answer.OPENED),))


def verdict(seen: TpmObservation, policy: TpmPolicy = PIN_POLICY) -> tuple[Verdict, set[tuple[str, str]]]:
    done = judge_gate(GATE, seen, policy)
    return done.verdict, {finding.key for finding in done.findings}


def spoiled(case: str, role: str, **changes: Any) -> TpmObservation:
    """The sound row, with its boot in `role` changed."""
    seen = pin_row(case)
    boots = tuple(each.model_copy(update=changes) if each.role == role else each for each in seen.boots)
    return seen.model_copy(update={"boots": boots})


def test_rows_of_a_pin_are_required_with_one_and_not_asked_for_without() -> None:
    assert pin_tampers() == ("wrong-pin", "pin-lockout")
    assert PIN_POLICY.rows()[3:] == TAMPERED
    assert not set(TPM_POLICY.rows()) & set(pin_tampers())
    assert TpmPolicy(pcrs=(7,), pin_env="PIN").rows() == PIN_POLICY.rows()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tampers": required_tampers()}, "no profile with a PIN resists fewer than wrong-pin, pin-lockout"),
        ({"tampers": (*required_tampers(), "wrong-pin")}, "missing: pin-lockout"),
        ({"pin": "", "tampers": TAMPERED}, "is for a slot with a PIN"),
        ({"pin": PASSPHRASE}, "the PIN is a passphrase"),
        ({"pin": "000000"}, "the PIN is a passphrase or a wrong one"),
        ({"wrong": (PIN_TEXT,)}, "the PIN is a passphrase or a wrong one"),
        ({"wrong_pins": (PASSPHRASE,)}, "no passphrase is typed at the PIN"),
        ({"wrong_pins": ()}, "at least 1 item"),
        ({"wrong_pins": ("1", "1")}, "an entry is there twice"),
        ({"pin_prompts": ("x*",)}, "fits anything"),
        ({"pin": "a\nb"}, "one line of printable text"),
    ],
)
def test_policies_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TpmPolicy(**{"pcrs": (7,), "passphrase": PASSPHRASE, "pin": PIN_TEXT, **changes})


@pytest.mark.parametrize("case", ROWS)
def test_a_sound_row_passes_and_all_its_controls_are_caught(case: str) -> None:
    done = judge_gate(GATE, pin_row(case), PIN_POLICY)
    assert [control for control in done.controls if not control.caught] == []
    assert done.findings == ()
    assert done.verdict is Verdict.PASS


@pytest.mark.parametrize("case", ["untampered-1", "fresh"])
def test_a_pin_that_the_profile_does_not_know(case: str) -> None:
    assert verdict(row(case, slots=(PIN_SLOT,)), TPM_POLICY) == (Verdict.NOT_PROVEN, {("pin", case)})
    asks = boot("untampered" if case == "untampered-1" else "tampered", Outcome.PIN)
    found, keys = verdict(row(case, slots=(PIN_SLOT,), boots=(asks,)), TPM_POLICY)
    assert found is Verdict.NOT_PROVEN
    assert ("pin", case) in keys
    # Whatever the header says.
    assert verdict(row(case, boots=(asks,)), TPM_POLICY)[0] is Verdict.NOT_PROVEN


@pytest.mark.parametrize("case", ROWS)
def test_a_slot_without_the_pin_that_the_profile_knows(case: str) -> None:
    found, keys = verdict(pin_row(case, slots=(PIN_SLOT, SLOT.model_copy(update={"subject": "another"}))))
    assert (found, keys) == (Verdict.FAIL, {("no-pin", "another")})


@pytest.mark.parametrize(
    ("changes", "rule", "expected"),
    [
        ({"pins": ()}, "pin-not-asked", Verdict.FAIL),
        ({"pins": (pin(Answer.EARLY, early=True),)}, "pin-not-asked", Verdict.FAIL),
        ({"pins": (pin(Answer.OPENED, "wrong PIN 1"),)}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"pins": (pin(), pin(Answer.OPENED))}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"pins": (pin(Answer.TIMEOUT),)}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"outcome": Outcome.PIN, "pins": (pin(),)}, "right-pin-refused", Verdict.FAIL),
        ({"outcome": Outcome.PIN, "pins": (pin(Answer.ASKED_AGAIN),)}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"outcome": Outcome.PIN, "pins": ()}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"outcome": Outcome.TIMEOUT}, "timeout", Verdict.NOT_PROVEN),
        ({"outcome": Outcome.SHELL}, "shell", Verdict.FAIL),
        ({"outcome": Outcome.ASKED, "pins": (pin(),)}, "asked", Verdict.FAIL),
    ],
)
def test_the_pin_opens_the_untampered_machine(changes: dict[str, Any], rule: str, expected: Verdict) -> None:
    assert verdict(spoiled("untampered-1", "untampered", **changes)) == (expected, {(rule, "untampered-1")})
    for case in ("fresh", "wrong-pin", "pin-lockout"):
        undone = "not-undone" if rule == "asked" else rule
        assert verdict(spoiled(case, "undone", **changes)) == (expected, {(undone, case)})


def test_a_wrong_pin_that_opens() -> None:
    opened = (pin(Answer.OPENED, "wrong PIN 1"),)
    seen = pin_row("wrong-pin", boots=(boot(outcome=Outcome.UNLOCKED, pins=opened),))
    found, keys = verdict(seen)
    assert found is Verdict.FAIL
    assert ("wrong-pin-opens", "wrong-pin") in keys
    assert ("unlocked", "wrong-pin") not in keys
    # Also where the prompt for the passphrase had been there.
    assert ("wrong-pin-opens", "wrong-pin") in verdict(spoiled("wrong-pin", "tampered", pins=opened))[1]


@pytest.mark.parametrize("case", [name for name in TAMPERED if name != "wrong-pin"])
def test_a_right_pin_that_opens_a_tampered_machine(case: str) -> None:
    seen = pin_row(case, boots=(boot(outcome=Outcome.UNLOCKED, pins=(pin(Answer.OPENED),)),))
    assert verdict(seen) == (Verdict.FAIL, {("unlocked", case)})
    assert verdict(spoiled(case, "tampered", pins=(pin(Answer.OPENED),))) == (Verdict.FAIL, {("pin-opens", case)})


@pytest.mark.parametrize(
    ("changes", "rule", "expected"),
    [
        # Nobody was asked for a PIN, or not for each of them; or its right one was typed.
        ({"pins": ()}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"pins": (pin(),)}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"pins": (pin(Answer.TIMEOUT, "wrong PIN 1"),)}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"pins": (pin(Answer.SHELL, "wrong PIN 1"),)}, "shell", Verdict.FAIL),
        ({"pins": (pin(Answer.ASKED_AGAIN, "wrong PIN 1", seconds=1.0),)}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"bad_pin": ""}, "no-reason", Verdict.FAIL),
        # Refused, but by the lockout.
        ({"bad_pin": "", "lockout": "in DA lockout mode"}, "pin-undecided", Verdict.NOT_PROVEN),
        ({"outcome": Outcome.PIN, "tries": ()}, "no-passphrase-prompt", Verdict.NOT_PROVEN),
    ],
)
def test_a_wrong_pin_is_typed_and_refused_for_being_wrong(
    changes: dict[str, Any], rule: str, expected: Verdict
) -> None:
    found, keys = verdict(spoiled("wrong-pin", "tampered", **changes))
    assert found is expected
    assert (rule, "wrong-pin") in keys


def test_each_wrong_pin_of_the_profile_is_typed() -> None:
    policy = PIN_POLICY.model_copy(update={"wrong_pins": ("1", "2")})
    assert verdict(pin_row("wrong-pin"), policy) == (Verdict.NOT_PROVEN, {("pin-undecided", "wrong-pin")})
    both = (pin(what="wrong PIN 1"), pin(what="wrong PIN 2"))
    assert verdict(spoiled("wrong-pin", "tampered", pins=both), policy) == (Verdict.PASS, set())
    # The second one led into the lockout; or it was the lockout that refused it.
    said = tuple(each.model_copy(update={"why": ("bad-pin",)}) for each in both)
    locked = spoiled("wrong-pin", "tampered", pins=said, lockout="in DA lockout mode")
    assert verdict(locked, policy) == (Verdict.PASS, set())
    late = spoiled("wrong-pin", "tampered", pins=(said[0], both[1]), lockout="in DA lockout mode")
    assert verdict(late, policy) == (Verdict.NOT_PROVEN, {("pin-undecided", "wrong-pin")})
    # The console may say nothing of the lockout: after so many, each must have been called wrong.
    many = PIN_POLICY.model_copy(update={"wrong_pins": ("1", "2", "3")})
    three = (*both, pin(what="wrong PIN 3"))
    quiet = spoiled("wrong-pin", "tampered", pins=three)
    assert verdict(quiet, many) == (Verdict.NOT_PROVEN, {("pin-undecided", "wrong-pin")})
    told = tuple(each.model_copy(update={"why": ("bad-pin",)}) for each in three)
    assert verdict(spoiled("wrong-pin", "tampered", pins=told), many) == (Verdict.PASS, set())


def test_a_lockout_is_said_by_its_name() -> None:
    assert verdict(spoiled("pin-lockout", "tampered", lockout="")) == (Verdict.FAIL, {("no-reason", "pin-lockout")})
    # Nobody tried whether the right one opens all the same.
    unasked = verdict(spoiled("pin-lockout", "tampered", pins=()))
    assert unasked == (Verdict.NOT_PROVEN, {("pin-undecided", "pin-lockout")})


def test_an_emergency_after_the_pin_is_no_refusal_by_itself() -> None:
    """The disk may be open by then."""
    policy = PIN_POLICY.model_copy(update={"tampers": (*PIN_POLICY.tampers, "initrd-emergency")})
    came = {"outcome": Outcome.LOCKED, "tries": (), "pins": (pin(Answer.LOCKED),)}
    silent = spoiled("initrd-emergency", "tampered", **came, reasons=())
    assert ("pin-undecided", "initrd-emergency") in verdict(silent, policy)[1]
    told = spoiled("initrd-emergency", "tampered", **came)
    assert ("pin-undecided", "initrd-emergency") not in verdict(told, policy)[1]


@pytest.mark.parametrize("case", required_tampers())
def test_a_lockout_hides_whether_the_tamper_was_seen(case: str) -> None:
    seen = spoiled(case, "tampered", lockout="in DA lockout mode")
    assert verdict(seen) == (Verdict.NOT_PROVEN, {("pin-undecided", case)})


BOOTS = st.builds(
    BootSeen,
    role=st.sampled_from(["untampered", "tampered", "undone"]),
    outcome=st.sampled_from(list(Outcome)),
    tries=st.sampled_from([(), boot().tries]),
    reasons=st.sampled_from([(), ("why",)]),
    bad_pin=st.sampled_from(["", "why"]),
    lockout=st.sampled_from(["", "why"]),
    pins=st.lists(
        st.builds(
            pin,
            st.sampled_from(list(Answer)),
            st.sampled_from([PIN, "wrong PIN 1"]),
            seconds=st.sampled_from([0.0, 90.0]),
        ),
        max_size=2,
    ).map(tuple),
)


@given(st.sampled_from(ROWS), st.one_of(st.lists(BOOTS, max_size=3), st.tuples(BOOTS, st.just(UNDONE)).map(list)))
def test_whatever_was_seen_no_wrong_pin_passes(case: str, boots: list[BootSeen]) -> None:
    """A PASS has no PIN that opened a tampered machine, and one that opened the other."""
    done = judge_gate(GATE, pin_row(case).model_copy(update={"boots": tuple(boots)}), PIN_POLICY)
    if any(finding.severity is not Severity.ACCEPTED for finding in done.findings):
        return
    tamper = tamper_of(case)
    sound = [each for each in boots if each.role != "tampered"]
    assert len(sound) == (tamper is None or tamper.undo)
    for each in sound:
        assert [(attempt.what, attempt.answer) for attempt in each.pins] == [(PIN, Answer.OPENED)]
    tampered = [each for each in boots if each.role == "tampered"]
    assert bool(tampered) is (tamper is not None)
    refused = {Answer.REFUSED, Answer.ASKED_AGAIN, Answer.LOCKED}
    assert all(attempt.answer in refused for each in tampered for attempt in each.pins)
    if case == "wrong-pin":
        assert {attempt.what for each in tampered for attempt in each.pins} == {"wrong PIN 1"}
        assert any(each.bad_pin for each in tampered)
    if case == "pin-lockout":
        assert any(each.lockout for each in tampered)


def test_what_a_pins_rows_change() -> None:
    assert [tampers()[name].changes for name in pin_tampers()] == [("pin",), ("tpm",)]
    assert all(tampers()[name].undo for name in pin_tampers())
