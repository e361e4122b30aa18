"""The judge of a row at GRUB's menu, and of one with SysRq at the prompt."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pytest_osgates.checks.tpm import GATE
from pytest_osgates.checks.tpm_grub import barred, edited
from pytest_osgates.checks.tpm_model import Answer, GrubSeen, KeySeen, Outcome, TpmObservation, TpmPolicy
from pytest_osgates.checks.tpm_sysrq import KEYS
from pytest_osgates.judging import judge as judge_gate
from pytest_osgates.model import Verdict
from tests.unit.tpm_samples import BARRED, EDITED, PRESSED, SLOT, TPM_POLICY, boot, row

GRUB, SYSRQ = "grub-console", "sysrq"
UNDONE = boot("undone", Outcome.UNLOCKED)
LOOSE = SLOT.model_copy(update={"pcrs": (4, 7)})
LOOSE_POLICY = TPM_POLICY.model_copy(update={"pcrs": (4, 7)})


def told(seen: TpmObservation, policy: TpmPolicy = TPM_POLICY) -> tuple[Verdict, set[tuple[str, str]]]:
    done = judge_gate(GATE, seen, policy)
    if done.verdict is Verdict.PASS:
        assert done.controls
    return done.verdict, {finding.key for finding in done.findings}


def at_grub(grub: GrubSeen | None, outcome: Outcome = Outcome.ASKED, **changes: Any) -> TpmObservation:
    return row(GRUB, boots=(boot(outcome=outcome, grub=grub), UNDONE), **changes)


def without(grub: GrubSeen, **changes: Any) -> GrubSeen:
    return grub.model_copy(update=changes)


def test_an_edited_boot_that_asks_passes() -> None:
    assert told(at_grub(EDITED)) == (Verdict.PASS, set())


def test_a_password_of_grubs_passes_whatever_the_tpm_looks_at() -> None:
    assert told(at_grub(BARRED, Outcome.GRUB)) == (Verdict.PASS, set())
    loose = at_grub(BARRED, Outcome.GRUB, slots=(LOOSE,))
    assert told(loose, LOOSE_POLICY) == (Verdict.PASS, set())


def test_an_edited_boot_that_unlocks_is_the_finding() -> None:
    seen = at_grub(EDITED, Outcome.UNLOCKED, slots=(LOOSE,))
    assert told(seen, LOOSE_POLICY) == (Verdict.FAIL, {("unlocked", GRUB)})
    assert told(at_grub(EDITED, Outcome.SHELL)) == (Verdict.FAIL, {("shell", GRUB)})


def test_a_slot_that_sees_no_edit_is_blind_even_where_it_asks() -> None:
    assert told(at_grub(EDITED, slots=(LOOSE,)), LOOSE_POLICY) == (Verdict.FAIL, {("blind", GRUB)})


@pytest.mark.parametrize("outcome", [Outcome.STOPPED, Outcome.ENDED, Outcome.EMERGENCY, Outcome.LOCKED])
def test_an_edited_boot_that_ends_otherwise_proves_nothing(outcome: Outcome) -> None:
    assert told(at_grub(EDITED, outcome)) == (Verdict.NOT_PROVEN, {("emergency-undecided", GRUB)})


MISSED = GrubSeen(parameter=EDITED.parameter, missed="a kernel runs, and GRUB's menu did not come")


@pytest.mark.parametrize(
    ("grub", "rule"),
    [
        (None, "grub-not-reached"),
        (GrubSeen(), "grub-not-reached"),
        (MISSED, "grub-not-reached"),
        (without(EDITED, missed="x"), "grub-undecided"),
        (without(EDITED, booting=""), "grub-undecided"),
        (without(EDITED, editor=""), "grub-undecided"),
        (without(EDITED, parameter=""), "grub-undecided"),
        (without(EDITED, line="linux /vmlinuz osgates.tampered=10"), "grub-undecided"),
        (without(EDITED, editor_locked=True), "grub-undecided"),
        (without(BARRED, command_line_locked=False), "grub-undecided"),
        (without(BARRED, editor_locked=False), "grub-undecided"),
        (without(BARRED, missed="x"), "grub-undecided"),
        (without(BARRED, menu=""), "grub-not-reached"),
    ],
)
@pytest.mark.parametrize("outcome", [Outcome.GRUB, Outcome.ASKED, Outcome.UNLOCKED, Outcome.TIMEOUT])
def test_what_was_not_seen_is_never_a_pass(grub: GrubSeen | None, rule: str, outcome: Outcome) -> None:
    verdict, keys = told(at_grub(grub, outcome))
    assert verdict is Verdict.NOT_PROVEN
    assert (rule, GRUB) in keys
    assert not edited(boot(grub=grub))
    assert not barred(boot(outcome=outcome, grub=grub))


def test_a_password_that_came_with_a_boot_proves_nothing() -> None:
    for outcome in set(Outcome) - {Outcome.GRUB}:
        assert told(at_grub(BARRED, outcome))[0] is not Verdict.PASS
    assert told(at_grub(EDITED, Outcome.GRUB))[0] is Verdict.NOT_PROVEN


def test_an_end_at_grub_in_any_other_row_is_no_answer() -> None:
    seen = row("fresh", boots=(boot(outcome=Outcome.GRUB), UNDONE))
    assert told(seen) == (Verdict.NOT_PROVEN, {("timeout", "fresh")})
    seen = row("untampered-1", boots=(boot("untampered", Outcome.GRUB),))
    assert told(seen) == (Verdict.NOT_PROVEN, {("timeout", "untampered-1")})


# -- SysRq


def pressed(
    policy: TpmPolicy = TPM_POLICY, tried: bool = True, **changes: Any
) -> tuple[Verdict, set[tuple[str, str]]]:
    sysrq = PRESSED.model_copy(update=changes)
    made = boot(sysrq=sysrq) if tried else boot(sysrq=sysrq, tries=(), reasons=())
    return told(row(SYSRQ, boots=(made, UNDONE)), policy)


def silent(*keys: str) -> tuple[KeySeen, ...]:
    return tuple(each.model_copy(update={"line": "" if each.key in keys else each.line}) for each in PRESSED.keys)


def test_a_prompt_that_stands_passes() -> None:
    assert pressed() == (Verdict.PASS, set())
    assert "".join(KEYS) == "".join(each.key for each in PRESSED.keys)


@pytest.mark.parametrize("answer", [Answer.LOCKED, Answer.STOPPED, Answer.ENDED])
def test_an_end_without_a_shell_is_a_refusal(answer: Answer) -> None:
    assert pressed(tried=False, answer=answer) == (Verdict.PASS, set())
    some, rest = PRESSED.model_copy(update={"answer": answer, "keys": PRESSED.keys[:3]}), PRESSED.keys[3:]
    assert pressed(tried=False, answer=answer, keys=some.keys) == (Verdict.NOT_PROVEN, {("sysrq-undecided", SYSRQ)})
    first = boot(sysrq=some, tries=(), reasons=())
    for tried, more in ((True, Answer.ASKED_AGAIN), (False, answer)):
        then = boot(
            sysrq=PRESSED.model_copy(update={"answer": more, "keys": rest}), **({} if tried else {"tries": ()})
        )
        assert told(row(SYSRQ, boots=(first, then, UNDONE))) == (Verdict.PASS, set())
    assert pressed(tried=False, answer=answer, keys=silent("f")) == (Verdict.NOT_PROVEN, {("sysrq-silent", SYSRQ)})


@pytest.mark.parametrize(
    ("answer", "rule"), [(Answer.SHELL, "shell"), (Answer.OPENED, "sysrq-opens"), (Answer.EARLY, "sysrq-opens")]
)
def test_a_way_in_is_the_finding(answer: Answer, rule: str) -> None:
    verdict, keys = pressed(tried=False, answer=answer)
    assert verdict is Verdict.FAIL
    assert (rule, SYSRQ) in keys


def test_keys_without_an_answer_prove_nothing_unless_the_profile_says_why() -> None:
    reason = TPM_POLICY.model_copy(update={"accept_no_sysrq": "CONFIG_MAGIC_SYSRQ is not set"})
    empty = TPM_POLICY.model_copy(update={"accept_no_sysrq": " "})
    none = silent(*KEYS)
    for policy in (TPM_POLICY, empty):
        assert pressed(policy, keys=none) == (Verdict.NOT_PROVEN, {("sysrq-silent", SYSRQ)})
    assert pressed(reason, keys=none) == (Verdict.PASS, {("sysrq-silent", SYSRQ)})
    # One that answers to some is not without it.
    assert pressed(reason, keys=silent("f")) == (Verdict.NOT_PROVEN, {("sysrq-silent", SYSRQ)})


def test_keys_that_were_not_pressed() -> None:
    verdict, keys = told(row(SYSRQ, boots=(boot(), UNDONE)))
    assert verdict is Verdict.NOT_PROVEN
    assert ("sysrq-undecided", SYSRQ) in keys
    assert pressed(keys=PRESSED.keys[:2]) == (Verdict.NOT_PROVEN, {("sysrq-undecided", SYSRQ)})
    assert pressed(answer=Answer.TIMEOUT)[0] is Verdict.NOT_PROVEN


def test_a_hasty_answer_counts_whatever_a_later_key_led_to() -> None:
    """It may be opening the disk all the while."""
    some = PRESSED.model_copy(update={"keys": PRESSED.keys[:3]})
    hasty = tuple(
        each.model_copy(update={"answer": Answer.ASKED_AGAIN, "seconds": 1.0})
        if each.what == "blank"
        else each.model_copy(update={"seconds": 40.0})
        for each in boot().tries
    )
    last = PRESSED.model_copy(update={"keys": PRESSED.keys[3:], "answer": Answer.ENDED})
    boots = (boot(sysrq=some, tries=hasty), boot(sysrq=last, tries=(), reasons=()), UNDONE)
    assert told(row(SYSRQ, boots=boots)) == (Verdict.NOT_PROVEN, {("guess-undecided", SYSRQ)})


def test_a_judge_that_forgets_silent_keys_is_caught() -> None:
    def forgetful(*given: Any) -> list[Any]:
        return [finding for finding in GATE.judge(*given) if finding.rule != "sysrq-silent"]

    seen = row(SYSRQ, boots=(boot(sysrq=PRESSED), UNDONE))
    reason = TPM_POLICY.model_copy(update={"accept_no_sysrq": "CONFIG_MAGIC_SYSRQ is not set"})
    for policy in (TPM_POLICY, reason):
        assert told(seen, policy)[0] is Verdict.PASS
        done = judge_gate(dataclasses.replace(GATE, judge=forgetful), seen, policy)
        assert done.verdict is Verdict.NOT_PROVEN
