"""A panic that only an emulated processor comes to is nobody's fault but the emulation's."""

from __future__ import annotations

import pytest

from pytest_osgates.checks.emulated import panic
from pytest_osgates.checks.tpm import GATE
from pytest_osgates.checks.tpm_model import Answer, Outcome, TpmObservation
from pytest_osgates.judging import judge
from pytest_osgates.model import Verdict
from tests.unit.tpm_samples import PRESSED, TPM_POLICY, boot, row, tries

PANIC = "[    9.1] Kernel panic - not syncing: Fatal exception in interrupt"
ALARM = "kernel-panic after 12.3 s on pvpanic: the guest's kernel reported a panic"
INSIDE = "[    9.0] Code: ff ff c3 0f 1f 44 00 00 55 48 89 e5 0f <1f> 44 00 00 5d c3 cc cc"
ELSEWHERE = "[    9.0] Code: ff ff c3 0f 1f 44 00 00 55 48 89 e5 <0f> 0b 5d c3 cc cc cc"


def told(seen: TpmObservation, accelerator: str = "tcg") -> tuple[Verdict, set[str]]:
    done = judge(GATE, seen.model_copy(update={"accelerator": accelerator}), TPM_POLICY)
    return done.verdict, {finding.rule for finding in done.findings}


def rows(line: str, console: tuple[str, ...]) -> dict[str, TpmObservation]:
    """A panic at each place of a row, by the rule that tells it."""
    ended = {"line": line, "console": console, "outcome": Outcome.ENDED}
    stopped = {**ended, "outcome": Outcome.STOPPED}
    after = tuple(
        each.model_copy(update={"line": line, "answer": Answer.STOPPED}) if each.what == "right" else each
        for each in tries()
    )
    return {
        "not-booted": row("untampered-1", boots=(boot("untampered", **stopped),)),
        "not-booted ": row("fresh", boots=(boot(), boot("undone", **ended))),
        "no-prompt": row("fresh", boots=(boot(**stopped),)),
        "no-login": row("fresh", boots=(boot(tries=after, console=console),)),
    }


@pytest.mark.parametrize("line", [PANIC, ALARM])
@pytest.mark.parametrize("rule", list(rows("", ())))
def test_the_emulators_own_panic_proves_nothing(rule: str, line: str) -> None:
    seen = rows(line, ("booting", INSIDE, PANIC))[rule]
    verdict, found = told(seen)
    assert verdict is Verdict.NOT_PROVEN
    assert rule.strip() in found
    assert told(seen, "kvm")[0] is Verdict.FAIL


@pytest.mark.parametrize("rule", list(rows("", ())))
def test_any_other_end_is_the_machines(rule: str) -> None:
    for line, console in ((PANIC, (ELSEWHERE, PANIC)), (PANIC, ()), ("grub rescue>", (INSIDE, PANIC))):
        verdict, found = told(rows(line, console)[rule])
        assert (verdict, rule.strip() in found) == (Verdict.FAIL, True)


def test_it_is_no_answer_to_sysrq() -> None:
    sysrq = PRESSED.model_copy(update={"answer": Answer.STOPPED, "line": PANIC})
    for console, verdict in (((INSIDE, PANIC), Verdict.NOT_PROVEN), ((ELSEWHERE, PANIC), Verdict.PASS)):
        made = boot(sysrq=sysrq, tries=(), reasons=(), console=console)
        assert told(row("sysrq", boots=(made, boot("undone", Outcome.UNLOCKED))))[0] is verdict


def test_the_hint_says_so() -> None:
    assert "only an emulated one" in panic("tcg", PANIC, [INSIDE])
    assert panic("tcg", PANIC, [ELSEWHERE]) == ""
    assert panic("kvm", PANIC, [INSIDE]) == ""
    assert panic("tcg", "powered off", [INSIDE]) == ""
