"""One row with somebody at the keyboard: at GRUB, and with SysRq at the prompt."""

from __future__ import annotations

import pytest

from pytest_osgates.checks.tpm import GATE
from pytest_osgates.checks.tpm_model import Answer, GrubSeen, Outcome
from pytest_osgates.judging import judge
from pytest_osgates.model import Verdict
from tests.unit.observers.test_observe_tpm import Play, Script, original, play, verdict
from tests.unit.tpm_samples import BARRED, EDITED, PRESSED, TPM_POLICY

__all__ = ["original", "play"]


def test_where_grub_wants_a_password_nothing_is_booted(play: Play) -> None:
    script = Script([Outcome.TIMEOUT, Outcome.UNLOCKED], grub=BARRED)
    seen = play(script, "grub-console")
    assert [boot.outcome for boot in seen.boots] == [Outcome.GRUB, Outcome.UNLOCKED]
    assert script.typed == []
    assert verdict(seen) is Verdict.PASS


@pytest.mark.parametrize(
    "grub",
    [
        GrubSeen(parameter="x", missed="a kernel runs, and GRUB's menu did not come"),
        EDITED.model_copy(update={"missed": "the machine was powered off"}),
        EDITED.model_copy(update={"booting": "", "missed": "no line in the editor begins with linux"}),
    ],
)
def test_keys_that_came_to_nothing_at_grub_end_the_row(grub: GrubSeen, play: Play) -> None:
    script = Script([Outcome.UNLOCKED], grub=grub)
    seen = play(script, "grub-console")
    assert [(boot.outcome, boot.line) for boot in seen.boots] == [(Outcome.GRUB, grub.missed)]
    assert verdict(seen) is Verdict.NOT_PROVEN


def test_sysrq_is_pressed_before_anything_is_typed(play: Play) -> None:
    script = Script([Outcome.ASKED, Outcome.UNLOCKED])
    seen = play(script, "sysrq")
    assert verdict(seen) is Verdict.PASS
    assert [what for _, what, _ in script.typed] == ["sysrq", "shell probe", "blank", "right"]
    assert script.typed[0][2] == "rkfei"


def test_keys_that_are_left_are_pressed_in_the_next_boot(play: Play) -> None:
    sysrq = PRESSED.model_copy(update={"answer": Answer.LOCKED, "line": "it says so"})
    script = Script([Outcome.ASKED] * 3 + [Outcome.UNLOCKED], sysrq=sysrq, most_keys=2)
    seen = play(script, "sysrq")
    assert [text for _, _, text in script.typed] == ["rkfei", "fei", "i"]
    assert verdict(seen) is Verdict.PASS


def test_each_key_that_does_something_has_a_boot_in_which_all_is_typed(play: Play) -> None:
    script = Script([Outcome.ASKED] * 3 + [Outcome.UNLOCKED], most_keys=2)
    seen = play(script, "sysrq")
    assert [text for _, what, text in script.typed if what == "sysrq"] == ["rkfei", "fei", "i"]
    assert [what for _, what, _ in script.typed] == ["sysrq", "shell probe", "blank", "right"] * 3
    assert verdict(seen) is Verdict.PASS


def test_a_shell_after_a_later_key(play: Play) -> None:
    script = Script([Outcome.ASKED] * 2, [{}, {"shell probe": Answer.SHELL}], most_keys=3)
    seen = play(script, "sysrq")
    assert (len(seen.boots), verdict(seen)) == (2, Verdict.FAIL)


def test_a_machine_that_starts_anew_forgets_what_was_typed(play: Play) -> None:
    """What unlocks then was not edited, and keys that are left would go to the firmware."""
    seen = play(Script([Outcome.UNLOCKED], resets=1), "grub-console")
    assert [(boot.outcome, boot.line[:15]) for boot in seen.boots] == [(Outcome.ENDED, "the guest reset")]
    done = judge(GATE, seen, TPM_POLICY)
    assert done.verdict is Verdict.NOT_PROVEN
    assert {finding.rule for finding in done.findings} == {"emergency-undecided", "undo-not-tried"}


def test_keys_are_pressed_on_after_a_reset(play: Play) -> None:
    script = Script([Outcome.ASKED, Outcome.ASKED, Outcome.UNLOCKED], resets=1)
    seen = play(script, "sysrq")
    assert [(what, text) for _, what, text in script.typed] == [("sysrq", "rkfei"), ("sysrq", "ei")]
    assert verdict(seen) is Verdict.PASS


def test_a_reset_in_any_other_row_changes_nothing(play: Play) -> None:
    """The tamper is on the disk, in the variables or in the TPM: it is there after it as well."""
    assert verdict(play(Script([Outcome.ASKED, Outcome.UNLOCKED], resets=1), "fresh")) is Verdict.PASS


@pytest.mark.parametrize(
    ("answer", "said", "boots"),
    [
        (Answer.LOCKED, Verdict.PASS, 2),
        (Answer.STOPPED, Verdict.PASS, 2),
        (Answer.ENDED, Verdict.PASS, 2),
        (Answer.SHELL, Verdict.FAIL, 1),
        (Answer.OPENED, Verdict.FAIL, 1),
        (Answer.TIMEOUT, Verdict.NOT_PROVEN, 1),
    ],
)
def test_nothing_is_typed_once_sysrq_has_ended_it(answer: Answer, said: Verdict, boots: int, play: Play) -> None:
    sysrq = PRESSED.model_copy(update={"answer": answer, "line": "it says so"})
    script = Script([Outcome.ASKED, Outcome.UNLOCKED], sysrq=sysrq)
    seen = play(script, "sysrq")
    assert [what for _, what, _ in script.typed] == ["sysrq"]
    assert (verdict(seen), len(seen.boots)) == (said, boots)
