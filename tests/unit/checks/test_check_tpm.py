"""The judge of the gate `tpm`: what passes, and what each deviation is called."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_osgates.checks.tpm import GATE, judge
from pytest_osgates.checks.tpm_model import (
    Answer,
    BootSeen,
    Change,
    Outcome,
    TpmObservation,
    TpmPolicy,
    TpmSlot,
    pin_tampers,
    required_tampers,
    tamper_of,
    tampers,
)
from pytest_osgates.judging import judge as judge_gate
from pytest_osgates.model import Severity, State, Verdict
from pytest_osgates.observers.tpm_tamper import WAYS
from tests.unit.tpm_samples import PASSPHRASE, SLOT, TPM_POLICY, boot, row, tries

REQUIRED = ("fresh", "absent", "cleared", "moved", "secure-boot-off", "keys-replaced", "command-line-edited")
FILES = {"other_kernel": "k", "other_loader": "l", "uki_key": "y", "uki_certificate": "c"}
ALL = TpmPolicy(pcrs=(7,), passphrase="x", pin="y", tampers=tuple(tampers()), **FILES)
ROWS = tuple(name for name in ALL.rows() if name not in pin_tampers())


def verdict(seen: TpmObservation, policy: TpmPolicy = TPM_POLICY) -> tuple[Verdict, set[tuple[str, str]]]:
    done = judge_gate(GATE, seen, policy)
    return done.verdict, {finding.key for finding in done.findings}


def test_the_tampers_that_no_profile_may_leave_out() -> None:
    assert required_tampers() == REQUIRED
    assert {tamper.how for tamper in tampers().values()} == WAYS


def test_each_tamper_names_where_it_is_written_that_a_pcr_sees_it() -> None:
    for tamper in tampers().values():
        assert all(entry.source and entry.what for entry in tamper.pcrs)
    assert {entry.pcr for entry in tampers()["command-line-edited"].pcrs} == {8, 9, 12}
    assert {entry.pcr for entry in tampers()["keys-replaced"].pcrs} == {7}


@pytest.mark.parametrize("case", ROWS)
def test_a_sound_row_passes_and_all_its_controls_are_caught(case: str) -> None:
    # No disk that is not bound to PCR 2 resists an option ROM.
    slot = SLOT.model_copy(update={"pcrs": (2, *SLOT.pcrs, 11, 12)})
    done = judge_gate(GATE, row(case, slots=(slot,)), TPM_POLICY)
    assert [control for control in done.controls if not control.caught] == []
    assert done.findings == ()
    assert done.verdict is Verdict.PASS
    assert len(done.controls) >= 7


@pytest.mark.parametrize("case", ["fresh", "command-line-edited"])
def test_what_a_screen_does_not_say_and_keys_do_not_open_is_not_proven(case: str) -> None:
    """Not all of it is read, and the guest may have another layout."""
    sound = row(case, talked_on="screen")
    done = judge_gate(GATE, sound, TPM_POLICY)
    assert (done.verdict, [control for control in done.controls if not control.caught]) == (Verdict.PASS, [])
    silent = tuple(each.model_copy(update={"reasons": ()}) for each in sound.boots)
    assert verdict(row(case, talked_on="screen", boots=silent)) == (Verdict.NOT_PROVEN, {("no-reason", case)})
    assert verdict(row(case, boots=silent)) == (Verdict.FAIL, {("no-reason", case)})
    refused = (boot(tries=tries(right=Answer.REFUSED)), *sound.boots[1:])
    done = judge_gate(GATE, row(case, talked_on="screen", boots=refused), TPM_POLICY)
    assert (done.verdict, "US layout" in done.findings[0].hint) == (Verdict.NOT_PROVEN, True)


def test_an_option_rom_is_seen_by_pcr_2_alone() -> None:
    said, keys = verdict(row("option-rom-added"))
    assert (said, keys) == (Verdict.FAIL, {("blind", "option-rom-added")})


@pytest.mark.parametrize(
    ("name", "key"), [("kernel-replaced", "other_kernel"), ("boot-loader-replaced", "other_loader")]
)
def test_what_comes_in_the_place_of_another_is_named(name: str, key: str) -> None:
    with pytest.raises(ValidationError, match=f"{key} names it"):
        TpmPolicy(pcrs=(7,), tampers=(*REQUIRED, name))
    with pytest.raises(ValidationError, match="comes along with other_kernel"):
        TpmPolicy(pcrs=(7,), other_initrd="x")


LOCKING = tuple(name for name, tamper in tampers().items() if tamper.locked)
SHELLS = tuple(name for name, tamper in tampers().items() if tamper.after == "shell")


def test_known_ways_to_a_shell_are_all_there() -> None:
    edits = {tamper.name: tamper.parameter for tamper in tampers().values() if tamper.parameter}
    assert set(edits) == {*LOCKING, *SHELLS}
    words = " ".join(edits.values()).split()
    for word in ("init=/bin/sh", "rdinit=/bin/sh", "rd.break=cmdline", "break=premount", "systemd.debug_shell=ttyS0"):
        assert word in words
    assert all(tampers()[name].how == "edit-command-line" for name in edits)


@pytest.mark.parametrize("case", LOCKING)
def test_an_emergency_for_nobody_is_as_good_as_a_prompt(case: str) -> None:
    end = boot("undone", Outcome.UNLOCKED)
    done = judge_gate(GATE, row(case, boots=(boot(outcome=Outcome.LOCKED), end)), TPM_POLICY)
    assert [control for control in done.controls if not control.caught] == []
    assert (done.verdict, done.findings) == (Verdict.PASS, ())
    for outcome in (Outcome.EMERGENCY, Outcome.STOPPED, Outcome.ENDED):
        found = verdict(row(case, boots=(boot(outcome=outcome), end)))
        assert found == (Verdict.NOT_PROVEN, {("emergency-undecided", case)})
    mixed = (boot(outcome=Outcome.LOCKED), boot(), end)
    assert verdict(row(case, boots=mixed)) == (Verdict.NOT_PROVEN, {("boots-differ", case)})
    on_screen = (boot(outcome=Outcome.LOCKED, screen=("(initramfs)",)), end)
    assert verdict(row(case, boots=on_screen)) == (Verdict.FAIL, {("screen-shell", case)})


@pytest.mark.parametrize("case", [*REQUIRED, *SHELLS])
@pytest.mark.parametrize("answer", [Answer.SHELL, Answer.LOCKED])
def test_a_shell_after_the_passphrase_is_its_owners_where_the_tamper_leads_there(case: str, answer: Answer) -> None:
    seen = row(case)
    boots = (boot(tries=tries(right=answer)), *seen.boots[1:])
    found, keys = verdict(seen.model_copy(update={"boots": boots}))
    rule = {Answer.SHELL: "shell", Answer.LOCKED: "right-refused"}[answer]
    assert (found, keys) == ((Verdict.PASS, set()) if case in SHELLS else (Verdict.FAIL, {(rule, case)}))
    early = tuple(each.model_copy(update={"early": each.what == "right"}) for each in boots[0].tries)
    was_there = (boots[0].model_copy(update={"tries": early}), *seen.boots[1:])
    assert verdict(seen.model_copy(update={"boots": was_there})) == (Verdict.FAIL, {(rule, case)})


@pytest.mark.parametrize("case", SHELLS)
def test_a_shell_has_no_journal_to_be_asked(case: str) -> None:
    seen = row(case, boots=(boot(tries=tries(right=Answer.SHELL), reasons=()), boot("undone", Outcome.UNLOCKED)))
    assert verdict(seen) == (Verdict.FAIL, {("no-reason", case)})
    done = judge_gate(GATE, seen.model_copy(update={"reason_from": "journal"}), TPM_POLICY)
    assert (done.verdict, done.findings) == (Verdict.PASS, ())


def test_behind_a_shell_no_journal_is_asked() -> None:
    """One finding says it all; a console would have said why all the same."""
    seen = row("fresh", boots=(boot(tries=tries(shell_probe=Answer.SHELL)[:1], reasons=()),))
    assert verdict(seen) == (Verdict.FAIL, {("shell", "fresh"), ("no-reason", "fresh")})
    assert verdict(seen.model_copy(update={"reason_from": "journal"})) == (Verdict.FAIL, {("shell", "fresh")})
    # Nor is anybody the wiser where nothing answered.
    silent = row("fresh", boots=(boot(tries=tries(shell_probe=Answer.TIMEOUT)[:1], reasons=()),))
    _, keys = verdict(silent.model_copy(update={"reason_from": "journal"}))
    assert ("no-reason", "fresh") in keys


def test_rows_and_their_states() -> None:
    assert TPM_POLICY.rows() == ("untampered-1", "untampered-2", "untampered-3", *REQUIRED)
    assert GATE.state_of_case is not None
    assert GATE.state_of_case("untampered-2") is State.INSTALLED
    assert GATE.state_of_case("fresh") is State.TAMPERED


@pytest.mark.parametrize("left_out", REQUIRED)
def test_a_profile_resists_no_fewer(left_out: str) -> None:
    with pytest.raises(ValidationError, match=f"missing: {left_out}"):
        TpmPolicy(pcrs=(7,), passphrase="x", tampers=tuple(name for name in REQUIRED if name != left_out))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tampers": (*REQUIRED, "fresh")}, "there twice"),
        ({"tampers": (*REQUIRED, "frehs")}, "no tamper is called 'frehs'"),
        ({"untampered": 2}, "greater than or equal to 3"),
        ({"pcrs": ()}, "at least 1 item"),
        ({"pcrs": (24,)}, "less than or equal to 23"),
        ({"wrong": (PASSPHRASE,)}, "a wrong passphrase is the right one"),
        ({"passphrase": "a\nb"}, "one line of printable text"),
        ({"prompts": ("(",)}, "not a regular expression"),
        ({"prompts": ("x*",)}, "fits anything"),
        ({"login": ""}, "fits anything"),
        ({"parameter": "a b"}, "should match pattern"),
        ({"deadline_s": float("inf")}, "finite"),
        ({"passphrase_env": "A-B"}, "should match pattern"),
    ],
)
def test_policies_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TpmPolicy(**{"pcrs": (7,), "passphrase": PASSPHRASE, **changes})


@pytest.mark.parametrize(
    ("outcome", "rule", "expected"),
    [
        (Outcome.UNLOCKED, "unlocked", Verdict.FAIL),
        (Outcome.SHELL, "shell", Verdict.FAIL),
        (Outcome.EMERGENCY, "no-prompt", Verdict.FAIL),
        (Outcome.STOPPED, "no-prompt", Verdict.FAIL),
        (Outcome.ENDED, "no-prompt", Verdict.FAIL),
        (Outcome.TIMEOUT, "timeout", Verdict.NOT_PROVEN),
    ],
)
@pytest.mark.parametrize("case", REQUIRED)
def test_a_tampered_machine_that_does_not_ask(case: str, outcome: Outcome, rule: str, expected: Verdict) -> None:
    seen = row(case, boots=(boot(outcome=outcome),))
    found, keys = verdict(seen)
    assert found is expected
    assert (rule, case) in keys


@pytest.mark.parametrize(
    ("outcome", "rule", "expected"),
    [
        (Outcome.ASKED, "asked", Verdict.FAIL),
        (Outcome.SHELL, "shell", Verdict.FAIL),
        (Outcome.EMERGENCY, "not-booted", Verdict.FAIL),
        (Outcome.STOPPED, "not-booted", Verdict.FAIL),
        (Outcome.ENDED, "not-booted", Verdict.FAIL),
        (Outcome.TIMEOUT, "timeout", Verdict.NOT_PROVEN),
    ],
)
def test_an_untampered_machine_that_does_not_unlock(outcome: Outcome, rule: str, expected: Verdict) -> None:
    found, keys = verdict(row("untampered-1", boots=(boot("untampered", outcome),)))
    assert (found, keys) == (expected, {(rule, "untampered-1")})


@pytest.mark.parametrize(
    ("answers", "rule", "expected"),
    [
        ({"blank": Answer.OPENED}, "wrong-passphrase-opens", Verdict.FAIL),
        ({"shell_probe": Answer.OPENED}, "wrong-passphrase-opens", Verdict.FAIL),
        ({"blank": Answer.SHELL}, "shell", Verdict.FAIL),
        ({"shell_probe": Answer.SHELL}, "shell", Verdict.FAIL),
        ({"right": Answer.SHELL}, "shell", Verdict.FAIL),
        ({"right": Answer.REFUSED}, "right-refused", Verdict.FAIL),
        ({"right": Answer.LOCKED}, "right-refused", Verdict.FAIL),
        ({"right": Answer.EARLY}, "opened-early", Verdict.FAIL),
        ({"blank": Answer.EARLY}, "wrong-passphrase-opens", Verdict.FAIL),
        ({"right": Answer.STOPPED}, "no-login", Verdict.FAIL),
        ({"right": Answer.ENDED}, "no-login", Verdict.FAIL),
        ({"right": Answer.TIMEOUT}, "right-undecided", Verdict.NOT_PROVEN),
        ({"blank": Answer.TIMEOUT}, "guess-undecided", Verdict.NOT_PROVEN),
        ({"blank": Answer.ENDED}, "gave-up", Verdict.NOT_PROVEN),
    ],
)
def test_what_a_passphrase_comes_to(answers: dict[str, Answer], rule: str, expected: Verdict) -> None:
    asked = boot(tries=tries(**answers))
    found, keys = verdict(row("fresh", boots=(asked, boot("undone", Outcome.UNLOCKED))))
    assert found is expected
    assert (rule, "fresh") in keys


@pytest.mark.parametrize("answer", [Answer.REFUSED, Answer.ASKED_AGAIN])
def test_ways_to_refuse(answer: Answer) -> None:
    asked = boot(tries=tries(blank=answer, shell_probe=answer))
    assert verdict(row("fresh", boots=(asked, boot("undone", Outcome.UNLOCKED)))) == (Verdict.PASS, set())


def test_a_silent_refusal_is_watched_as_long_as_the_passphrase_takes() -> None:
    """Else what the empty one opened, slowly, would be taken for the work of the passphrase."""
    probe, blank, right = tries(blank=Answer.ASKED_AGAIN)
    for watched, rules in ((60.0, {("guess-undecided", "fresh")}), (90.0, set())):
        timed = (probe, blank.model_copy(update={"seconds": watched}), right.model_copy(update={"seconds": 90.0}))
        keys = verdict(row("fresh", boots=(boot(tries=timed), boot("undone", Outcome.UNLOCKED))))[1]
        assert keys == rules


def test_an_emergency_for_nobody_takes_further_boots() -> None:
    probe, blank, right = tries(shell_probe=Answer.LOCKED, blank=Answer.LOCKED)
    boots = [boot(tries=(probe,)), boot(tries=(blank,)), boot(tries=(right,)), boot("undone", Outcome.UNLOCKED)]
    assert verdict(row("fresh", boots=tuple(boots))) == (Verdict.PASS, set())
    # One of the guesses was never typed.
    found, keys = verdict(row("fresh", boots=(boots[0], *boots[2:])))
    assert (found, keys) == (Verdict.NOT_PROVEN, {("guess-undecided", "fresh")})
    # The passphrase neither: the row is not whole.
    found, keys = verdict(row("fresh", boots=(boots[0], boots[1])))
    assert found is Verdict.NOT_PROVEN
    assert keys == {("right-undecided", "fresh"), ("undo-not-tried", "fresh")}


def test_each_guess_of_the_profile_is_typed() -> None:
    policy = TpmPolicy(pcrs=(7,), passphrase=PASSPHRASE, wrong=("factory",))
    found, keys = verdict(row("fresh"), policy)
    assert (found, keys) == (Verdict.NOT_PROVEN, {("guess-undecided", "fresh")})


def test_nobody_says_why() -> None:
    boots = (boot(reasons=()), boot("undone", Outcome.UNLOCKED))
    assert verdict(row("fresh", boots=boots)) == (Verdict.FAIL, {("no-reason", "fresh")})


def test_once_undone_it_unlocks_again() -> None:
    assert verdict(row("moved", boots=(boot(), boot("undone")))) == (Verdict.FAIL, {("not-undone", "moved")})
    assert verdict(row("moved", boots=(boot(),))) == (Verdict.NOT_PROVEN, {("undo-not-tried", "moved")})
    assert verdict(row("cleared", boots=(boot(),))) == (Verdict.PASS, set())


@pytest.mark.parametrize("case", REQUIRED)
def test_a_tamper_that_was_none(case: str) -> None:
    for changes in (
        (),
        (Change(what="disk", before="a", after="a"),),
        (Change(what="other", before="a", after="b"),),
    ):
        found, keys = verdict(row(case, changes=changes))
        assert (found, keys) == (Verdict.NOT_PROVEN, {("not-applied", case)})


def test_a_tamper_that_the_pcrs_do_not_see_names_those_that_would() -> None:
    slot = TpmSlot(subject="partition 2, token 1", pcrs=(7,), bank="sha256")
    policy = TpmPolicy(pcrs=(7,), passphrase=PASSPHRASE)
    case = "command-line-edited"
    unlocked = row(case, slots=(slot,), boots=(boot(outcome=Outcome.UNLOCKED),))
    (finding,) = judge(unlocked, policy)
    assert finding.key == ("unlocked", case)
    assert "the PCRs 7, which command-line-edited does not change" in finding.seen
    for word in ("PCR 8", "PCR 9", "PCR 12", "GRUB"):
        assert word in finding.wanted
    # That it asked, for whatever reason, does not make the binding right.
    assert verdict(row(case, slots=(slot,)), policy) == (Verdict.FAIL, {("blind", case)})
    # A PCR that is seen is enough, also in a signed policy.
    for other in (slot.model_copy(update={"pcrs": (8,)}), slot.model_copy(update={"signed_pcrs": (12,)})):
        assert ("blind", case) not in verdict(row(case, slots=(other,)), policy)[1]


@pytest.mark.parametrize(
    ("pcrs", "signed", "hint"),
    [
        (
            (7, 12),
            (11,),
            "of PCR 11, a signed policy lets in whatever its key has signed; bind the TPM's slot to PCR 4 as well",
        ),
        # By its value as well: then it is not the key.
        ((7, 11), (11,), "bind the TPM's slot to PCRs that see it"),
        ((7, 11), (), "bind the TPM's slot to PCRs that see it"),
        ((7,), (12,), "bind the TPM's slot to PCRs that see it"),
    ],
)
def test_what_a_signed_policy_lets_in(pcrs: tuple[int, ...], signed: tuple[int, ...], hint: str) -> None:
    """An older image by the same key: it unlocks, fails, and says why."""
    case = "kernel-replaced"
    policy = TPM_POLICY.model_copy(update={"pcrs": tuple(sorted({*pcrs, *signed}))})
    slot = SLOT.model_copy(update={"pcrs": pcrs, "signed_pcrs": signed})
    images = (Change(what="image", before="a", after="b"),)
    seen = row(case, slots=(slot,), changes=images, boots=(boot(outcome=Outcome.UNLOCKED),))
    (finding,) = judge(seen, policy)
    assert (finding.key, finding.severity) == (("unlocked", case), Severity.VIOLATION)
    assert finding.hint.startswith(hint)


def test_one_of_two_slots_that_is_blind_is_enough() -> None:
    loose = SLOT.model_copy(update={"subject": "partition 2, token 2", "pcrs": (4, 7)})
    found, keys = verdict(row("command-line-edited", slots=(SLOT, loose)))
    assert found is Verdict.FAIL
    assert keys == {("blind", "command-line-edited"), ("pcrs", loose.subject)}


def test_binding() -> None:
    loose = SLOT.model_copy(update={"pcrs": ()})
    assert ("pcrs", SLOT.subject) in verdict(row("fresh", slots=(loose,)))[1]
    assert verdict(row("untampered-1", slots=()))[1] == {("no-tpm-slot", "disk")}
    for bank in ("sha1", ""):
        weak = SLOT.model_copy(update={"bank": bank})
        assert verdict(row("fresh", slots=(weak,))) == (Verdict.FAIL, {("bank", SLOT.subject)})
    locked = SLOT.model_copy(update={"pcrlock": True, "pcrs": ()})
    assert verdict(row("fresh", slots=(locked,))) == (Verdict.NOT_PROVEN, {("pcrs", SLOT.subject)})


@pytest.mark.parametrize("case", ROWS)
def test_what_else_may_open_the_disk(case: str) -> None:
    """No boot of this machine tries it: another system's would."""
    others = ("partition 2, token 1: of the type 'clevis'", "partition 3: LVM2_member, in which a volume may lie")
    keys = {("other-way", "partition 2, token 1"), ("other-way", "partition 3")}
    slot = SLOT.model_copy(update={"pcrs": (2, *SLOT.pcrs, 11, 12)})
    assert verdict(row(case, slots=(slot,), others=others)) == (Verdict.NOT_PROVEN, keys)


@pytest.mark.parametrize("case", ROWS)
def test_no_observation_is_no_pass(case: str) -> None:
    found, keys = verdict(row(case, boots=()))
    assert found is Verdict.NOT_PROVEN
    assert ("no-boot", case) in keys


@pytest.mark.parametrize("case", ["", "untampered", "untampered-0", "untampered-x", "fresher", "../fresh"])
def test_a_row_that_this_version_does_not_know(case: str) -> None:
    seen = row("fresh").model_copy(update={"case": case})
    found, keys = verdict(seen)
    assert found is Verdict.NOT_PROVEN
    assert ("unknown-row", case) in keys
    with pytest.raises(KeyError):
        tamper_of(case)


def test_one_row_is_not_anothers() -> None:
    seen = row("fresh").model_copy(update={"case": "absent"})
    assert verdict(seen) == (Verdict.NOT_PROVEN, {("unknown-row", "absent")})
    boots = (boot("untampered", Outcome.UNLOCKED),)
    assert ("no-boot", "fresh") in verdict(row("fresh", boots=boots))[1]


def test_output_that_nobody_looked_at() -> None:
    boots = (boot(lost=1), boot("undone", Outcome.UNLOCKED))
    assert verdict(row("fresh", boots=boots)) == (Verdict.NOT_PROVEN, {("lost-output", "fresh")})


BOOTS = st.builds(
    BootSeen,
    role=st.sampled_from(["untampered", "tampered", "undone"]),
    outcome=st.sampled_from(list(Outcome)),
    tries=st.sampled_from([(), tries(), tries()[:1], tries(blank=Answer.ENDED), tries(right=Answer.TIMEOUT)]),
    reasons=st.sampled_from([(), ("why",)]),
)


@given(st.sampled_from(ROWS), st.lists(BOOTS, max_size=4))
def test_only_the_sound_sequences_pass(case: str, boots: list[BootSeen]) -> None:
    """Whatever was seen: a PASS has a prompt, refusals, an unlocking, and an end that unlocks by itself."""
    seen = row(case, boots=tuple(boots))
    if any(finding.severity in ("violation", "unproven") for finding in judge(seen, TPM_POLICY)):
        return
    tamper = tamper_of(case)
    roles = [each.role for each in boots]
    if tamper is None:
        assert roles == ["untampered"]
        assert boots[0].outcome is Outcome.UNLOCKED
        return
    tampered = [each for each in boots if each.role == "tampered"]
    assert tampered
    if tamper.locked and tampered[0].outcome is Outcome.LOCKED:
        assert {each.outcome for each in tampered} == {Outcome.LOCKED}
        assert [each.outcome for each in boots if each.role == "undone"] == [Outcome.UNLOCKED]
        return
    assert all(each.outcome is Outcome.ASKED for each in tampered)
    answers = {attempt.what: attempt.answer for each in tampered for attempt in each.tries}
    assert answers["right"] is Answer.OPENED
    assert answers["blank"] is Answer.REFUSED
    assert answers["shell probe"] is Answer.REFUSED
    if tamper.undo:
        assert roles.count("undone") == 1
        assert next(each for each in boots if each.role == "undone").outcome is Outcome.UNLOCKED
