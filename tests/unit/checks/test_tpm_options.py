"""The judge of the gate `tpm`, of a unified kernel image that is handed a command line."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pytest_osgates.checks.tpm import GATE
from pytest_osgates.checks.tpm_model import (
    Answer,
    BootSeen,
    Change,
    Outcome,
    TpmObservation,
    TpmPolicy,
    as_made,
    pin_tampers,
    required_tampers,
    tampers,
)
from pytest_osgates.judging import judge as judge_gate
from pytest_osgates.model import Verdict
from tests.unit.tpm_samples import PASSPHRASE, PIN_TEXT, SLOT, boot, pin, row

POLICY = TpmPolicy(pcrs=(7, 11, 12), passphrase=PASSPHRASE, tampers=(*required_tampers(), "credential-added"))
BOUND = SLOT.model_copy(update={"pcrs": (7, 11, 12)})
ROW = "command-line-edited"
HANDED = (Change(what="load-options", before="a", after="b"),)
TAKEN = ("osgates.tampered=1 quiet",)


def ignored(**changes: Any) -> BootSeen:
    return boot(outcome=Outcome.UNLOCKED, **{"command_lines": ("quiet",), **changes})


def twin(outcome: Outcome = Outcome.ASKED, **changes: Any) -> BootSeen:
    return boot("twin", outcome, **{"tries": (), "command_lines": TAKEN, **changes})


UNDECIDED = "options-undecided"
UNDONE = boot("undone", Outcome.UNLOCKED)


def seen(*boots: BootSeen, **changes: Any) -> TpmObservation:
    return row(ROW, **{"slots": (BOUND,), "changes": HANDED, "boots": boots, **changes})


def verdict(observed: TpmObservation) -> tuple[Verdict, set[tuple[str, str]]]:
    done = judge_gate(GATE, observed, POLICY)
    assert [control for control in done.controls if not control.caught] == []
    return done.verdict, {finding.key for finding in done.findings}


@pytest.mark.parametrize("pcrs", [(7, 11, 12), (7, 11)])
def test_load_options_that_nobody_takes_may_unlock(pcrs: tuple[int, ...]) -> None:
    slot = BOUND.model_copy(update={"pcrs": pcrs})
    policy = POLICY.model_copy(update={"pcrs": pcrs})
    done = judge_gate(GATE, seen(ignored(), twin(), UNDONE, slots=(slot,)), policy)
    assert [control for control in done.controls if not control.caught] == []
    assert (done.verdict, done.findings) == (Verdict.PASS, ())
    names = {control.name for control in done.controls}
    assert {"the kernel took the parameter", "the kernel does not say", "no twin"} < names


@pytest.mark.parametrize(
    ("boots", "wanted", "rule"),
    [
        ((ignored(command_lines=()), twin(), UNDONE), Verdict.NOT_PROVEN, "options-undecided"),
        ((ignored(), UNDONE), Verdict.NOT_PROVEN, "options-undecided"),
        ((ignored(), twin(command_lines=()), UNDONE), Verdict.NOT_PROVEN, "options-undecided"),
        ((ignored(), twin(command_lines=("quiet",)), UNDONE), Verdict.NOT_PROVEN, "options-undecided"),
        ((ignored(), twin(Outcome.TIMEOUT), UNDONE), Verdict.NOT_PROVEN, "options-undecided"),
        ((ignored(), twin(Outcome.UNLOCKED), UNDONE), Verdict.FAIL, "unlocked"),
        ((ignored(), twin(Outcome.SHELL), UNDONE), Verdict.FAIL, "shell"),
        ((ignored(command_lines=TAKEN), twin(), UNDONE), Verdict.FAIL, "unlocked"),
        ((ignored(command_lines=("quiet", *TAKEN)), twin(), UNDONE), Verdict.FAIL, "unlocked"),
        ((ignored(), twin()), Verdict.NOT_PROVEN, "undo-not-tried"),
        ((ignored(), twin(), boot("undone")), Verdict.FAIL, "not-undone"),
        ((ignored(), twin(), twin(), UNDONE), Verdict.NOT_PROVEN, "no-boot"),
        ((twin(), UNDONE), Verdict.NOT_PROVEN, "no-boot"),
    ],
)
def test_each_deviation_has_its_name(boots: tuple[BootSeen, ...], wanted: Verdict, rule: str) -> None:
    done = judge_gate(GATE, seen(*boots), POLICY)
    assert (done.verdict, {finding.key for finding in done.findings}) == (wanted, {(rule, ROW)})


@pytest.mark.parametrize(
    ("said", "twins", "wanted"),
    [
        ("q", "osgates.tampered=1 quiet", Verdict.NOT_PROVEN),
        ("quiet splash", "osgates.tampered=1 quiet", Verdict.NOT_PROVEN),
        ("", "osgates.tampered=1", Verdict.PASS),
        ("x " * 500, "osgates.tampered=1 " + "x " * 490 + "x", Verdict.PASS),
        ("x " * 500, "osgates.tampered=1 " + "x " * 480 + "y y", Verdict.NOT_PROVEN),
        ("x", "osgates.tampered=1 " + "x " * 490, Verdict.NOT_PROVEN),
    ],
)
def test_what_the_console_says_is_the_kernels_own_line(said: str, twins: str, wanted: Verdict) -> None:
    """A service says command lines as well, and lacks the parameter."""
    done = judge_gate(GATE, seen(ignored(command_lines=(said,)), twin(command_lines=(twins,)), UNDONE), POLICY)
    assert done.verdict is wanted
    rules = {"options-undecided"} if wanted is Verdict.NOT_PROVEN else set()
    assert {finding.rule for finding in done.findings} == rules


@pytest.mark.parametrize("pcrs", [(7, 12), (1, 7, 11, 12), (4, 7, 11), (1, 7, 11)])
@pytest.mark.parametrize("lines", [(), ("quiet",)])
def test_whoever_asks_without_having_taken_them_is_not_proven(pcrs: tuple[int, ...], lines: tuple[str, ...]) -> None:
    """The entry is measured as well (PCR 1), and that no boot loader was started (PCR 4)."""
    slot = BOUND.model_copy(update={"pcrs": pcrs})
    policy = POLICY.model_copy(update={"pcrs": pcrs})
    done = judge_gate(GATE, seen(boot(command_lines=lines), UNDONE, slots=(slot,)), policy)
    assert [control for control in done.controls if not control.caught] == []
    (finding,) = done.findings
    assert (done.verdict, finding.rule) == (Verdict.NOT_PROVEN, "options-undecided")
    assert "command line on the serial console" in finding.hint


def pin_seen(*boots: BootSeen) -> TpmObservation:
    return seen(*boots, slots=(BOUND.model_copy(update={"pin": True}),))


TYPED = (pin(Answer.OPENED),)
BY_PIN = boot("undone", Outcome.UNLOCKED, pins=TYPED)


@pytest.mark.parametrize(
    ("boots", "wanted", "rule"),
    [
        ((ignored(pins=TYPED), twin(pins=(pin(),)), BY_PIN), Verdict.PASS, ""),
        ((ignored(pins=TYPED), twin(Outcome.PIN, pins=(pin(),)), BY_PIN), Verdict.PASS, ""),
        ((ignored(), twin(pins=(pin(),)), BY_PIN), Verdict.FAIL, "pin-not-asked"),
        ((ignored(pins=(pin(Answer.OPENED, early=True),)), twin(), BY_PIN), Verdict.FAIL, "pin-not-asked"),
        (
            (ignored(pins=TYPED), twin(Outcome.PIN, pins=(pin(Answer.TIMEOUT),)), BY_PIN),
            Verdict.NOT_PROVEN,
            UNDECIDED,
        ),
        ((ignored(pins=TYPED), twin(Outcome.PIN), BY_PIN), Verdict.NOT_PROVEN, UNDECIDED),
    ],
)
def test_the_pin_is_asked_for_as_ever(boots: tuple[BootSeen, ...], wanted: Verdict, rule: str) -> None:
    tampered = (*required_tampers(), *pin_tampers(), "credential-added")
    policy = TpmPolicy(pcrs=(7, 11, 12), passphrase=PASSPHRASE, pin=PIN_TEXT, tampers=tampered)
    done = judge_gate(GATE, pin_seen(*boots), policy)
    assert (done.verdict, {finding.rule for finding in done.findings}) == (wanted, {rule} - {""})
    if wanted is Verdict.PASS:
        assert [control for control in done.controls if not control.caught] == []
        assert "its twin says nothing of the PIN" in {control.name for control in done.controls}


def test_one_that_takes_them_must_ask() -> None:
    """An image without a command line of its own: PCR 12 sees it."""
    taken = boot(command_lines=TAKEN)
    assert verdict(seen(taken, UNDONE)) == (Verdict.PASS, set())
    names = {control.name for control in judge_gate(GATE, seen(taken, UNDONE), POLICY).controls}
    assert {"it asks, and took nothing", "a TPM that ignores the tamper"} < names
    blind = BOUND.model_copy(update={"pcrs": (7, 11)})
    done = judge_gate(GATE, seen(taken, UNDONE, slots=(blind,)), POLICY.model_copy(update={"pcrs": (7, 11)}))
    assert {finding.key for finding in done.findings} == {("blind", ROW)}
    unlocked = seen(ignored(command_lines=TAKEN), slots=(blind,))
    (finding, *_) = judge_gate(GATE, unlocked, POLICY.model_copy(update={"pcrs": (7, 11)})).findings
    assert (finding.rule, "PCR 12" in finding.wanted) == ("unlocked", True)


def test_a_menu_of_grub_is_never_ignored() -> None:
    menu = (Change(what="disk", before="a", after="b"),)
    slot = BOUND.model_copy(update={"pcrs": (7, 8, 11, 12)})
    found = judge_gate(GATE, seen(ignored(), UNDONE, changes=menu, slots=(slot,)), POLICY)
    assert {finding.key for finding in found.findings} == {("unlocked", ROW)}
    # Nor does a twin belong to it.
    found = judge_gate(GATE, seen(ignored(), twin(), UNDONE, changes=menu, slots=(slot,)), POLICY)
    assert {finding.key for finding in found.findings} == {("no-boot", ROW)}


def test_what_sees_an_initrd_depends_on_where_it_is() -> None:
    tamper = tampers()["initrd-replaced"]
    pcrs = {entry.pcr for entry in tamper.pcrs}
    image = (Change(what="image", before="a", after="b"),)
    assert (pcrs, {entry.pcr for entry in as_made(tamper, image).pcrs}) == ({9}, {4, 9, 11})
    assert as_made(tamper, ()) == tamper
    for slot, wanted in ((BOUND, Verdict.PASS), (BOUND.model_copy(update={"pcrs": (7,)}), Verdict.FAIL)):
        policy = POLICY.model_copy(update={"pcrs": slot.pcrs})
        done = judge_gate(GATE, row("initrd-replaced", slots=(slot,), changes=image), policy)
        assert done.verdict is wanted
    # In a file of its own, PCR 11 sees nothing of it.
    done = judge_gate(GATE, row("initrd-replaced", slots=(BOUND,)), POLICY)
    assert {finding.key for finding in done.findings} == {("blind", "initrd-replaced")}


@pytest.mark.parametrize(("name", "pcr"), [("image-command-line-edited", "PCR 11"), ("credential-added", "PCR 12")])
def test_what_pcr_7_alone_does_not_see(name: str, pcr: str) -> None:
    slot = BOUND.model_copy(update={"pcrs": (7,)})
    policy = POLICY.model_copy(update={"pcrs": (7,)})
    observed = row(name, slots=(slot,), boots=(boot(outcome=Outcome.UNLOCKED),))
    (finding,) = judge_gate(GATE, observed, policy).findings
    assert (finding.rule, pcr in finding.wanted) == ("unlocked", True)
    assert judge_gate(GATE, row(name, slots=(BOUND,)), POLICY).verdict is Verdict.PASS


def test_who_signs_images_is_named() -> None:
    rows = (*required_tampers(), "image-command-line-edited")
    with pytest.raises(ValidationError, match="uki_key names it"):
        TpmPolicy(pcrs=(7,), tampers=rows)
    with pytest.raises(ValidationError, match="belong together"):
        TpmPolicy(pcrs=(7,), tampers=rows, uki_key="k")
    assert TpmPolicy(pcrs=(7,), tampers=rows, uki_key="k", uki_certificate="c").rows()[-1] == rows[-1]


def test_the_required_row_alone_says_nothing_of_an_image() -> None:
    """A disk bound to PCR 7 alone would pass, and whoever can write to it adds credentials."""
    slot = BOUND.model_copy(update={"pcrs": (7,)})
    plain = TpmPolicy(pcrs=(7,), passphrase=PASSPHRASE)
    keyed = plain.model_copy(
        update={"uki_key": "k", "uki_certificate": "c", "tampers": (*plain.tampers, "credential-added")}
    )
    for policy, missing in ((plain, "credential-added"), (keyed, "image-command-line-edited")):
        done = judge_gate(GATE, seen(ignored(), twin(), UNDONE, slots=(slot,)), policy)
        (finding,) = done.findings
        assert (done.verdict, finding.rule, missing in finding.hint) == (Verdict.NOT_PROVEN, "options-alone", True)
    complete = keyed.model_copy(update={"tampers": (*keyed.tampers, "image-command-line-edited")})
    assert judge_gate(GATE, seen(ignored(), twin(), UNDONE, slots=(slot,)), complete).verdict is Verdict.PASS


@pytest.mark.parametrize(("case", "changes"), [(ROW, HANDED), ("image-command-line-edited", None)])
def test_the_kernels_own_efi_stub_measures_its_command_line(case: str, changes: tuple[Change, ...] | None) -> None:
    """In PCR 9, whoever started it: UAPI.7."""
    slot = BOUND.model_copy(update={"pcrs": (7, 9)})
    more = {} if changes is None else {"changes": changes}
    observed = row(case, slots=(slot,), boots=(boot(command_lines=TAKEN), UNDONE), **more)
    done = judge_gate(GATE, observed, POLICY.model_copy(update={"pcrs": (7, 9)}))
    assert (done.verdict, done.findings) == (Verdict.PASS, ())


@pytest.mark.parametrize("pcrs", [(7, 11), (7, 9)])
def test_where_something_else_may_boot_an_unlocked_disk_decides_nothing(pcrs: tuple[int, ...]) -> None:
    """An initrd that was left behind was changed, and nobody starts it."""
    slot = BOUND.model_copy(update={"pcrs": pcrs})
    policy = POLICY.model_copy(update={"pcrs": pcrs})
    left = (Change(what="disk", before="a", after="b", besides="unified kernel images: /EFI/Linux/x.efi"),)
    unlocked = row("initrd-replaced", slots=(slot,), changes=left, boots=(boot(outcome=Outcome.UNLOCKED), UNDONE))
    done = judge_gate(GATE, unlocked, policy)
    (finding,) = done.findings
    assert (done.verdict, finding.rule) == (Verdict.NOT_PROVEN, "which-boots")
    assert "/EFI/Linux/x.efi" in finding.seen
    alone = (left[0].model_copy(update={"besides": ""}),)
    assert judge_gate(GATE, unlocked.model_copy(update={"changes": alone}), policy).verdict is Verdict.FAIL
    asked = judge_gate(GATE, row("initrd-replaced", slots=(slot,), changes=left), policy)
    # Whoever asks is one who saw it.
    assert asked.verdict is (Verdict.PASS if 9 in pcrs else Verdict.FAIL)
    control = next(control for control in asked.controls if control.name == "a TPM that ignores the tamper")
    assert control.caught
