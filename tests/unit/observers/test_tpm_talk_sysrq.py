"""SysRq at the prompt: what the kernel answers, and what is left of whoever asked."""

from __future__ import annotations

import pytest

from pytest_osgates.checks.tpm_model import Answer, Outcome, SysrqSeen
from pytest_osgates.observers.tpm_talk import PROBE_TEXT, Talk
from pytest_osgates.vm.errors import GuestFailed
from tests.unit.talk_samples import ASKS, LOCKED, LOGIN, MAINTENANCE, Clock, Console, honest, shell_behind
from tests.unit.tpm_samples import PASSPHRASE, TPM_POLICY

KEYS = ("r", "k", "e")
DISABLED = b"[   25.0] sysrq: This sysrq operation is disabled.\r\n"


def press(console: Console, answers: dict[str, bytes]) -> tuple[Talk, SysrqSeen]:
    """At the prompt; `answers`: what the machine says to each key."""
    clock = console.clock
    end = clock.now + 900.0
    talk = Talk(console, TPM_POLICY, lambda: None, lambda: end - clock.now, 1.0)
    assert talk.outcome()[0] is Outcome.ASKED

    def key(name: str) -> None:
        if said := answers.get(name, b""):
            console.pending.append((clock.now + 0.5, said))
            console.pending.sort(key=lambda entry: entry[0])

    return talk, talk.press(key, KEYS)


def test_disabled_keys_change_nothing(clock: Clock) -> None:
    console = Console(clock, ASKS, honest)
    talk, seen = press(console, dict.fromkeys(KEYS, DISABLED))
    assert [entry.key for entry in seen.keys] == list(KEYS)
    assert {entry.line for entry in seen.keys} == {"[ 25.0] sysrq: This sysrq operation is disabled."}
    assert (seen.answer, console.typed) == (Answer.ASKED_AGAIN, [])
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED


def test_a_kernel_that_says_nothing(clock: Clock) -> None:
    _, seen = press(Console(clock, ASKS, honest), {})
    assert [entry.line for entry in seen.keys] == ["", "", ""]
    assert seen.answer is Answer.ASKED_AGAIN


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"\r\n(initramfs) ", Answer.SHELL),
        (LOGIN, Answer.OPENED),
        (LOCKED, Answer.LOCKED),
        (b"\r\n[   9.0] Kernel panic - not syncing: x\r\n", Answer.STOPPED),
    ],
)
def test_what_a_key_leads_to_is_the_end_of_it(said: bytes, answer: Answer, clock: Clock) -> None:
    _, seen = press(Console(clock, ASKS), {"r": DISABLED, "k": b"sysrq: SAK\r\n" + said})
    assert [entry.key for entry in seen.keys] == ["r", "k"]
    assert seen.keys[1].line == "sysrq: SAK"
    assert seen.answer is answer


def test_a_shell_that_takes_its_time(clock: Clock) -> None:
    console = Console(clock, ASKS)
    console.pending.append((clock.now + 40.0, b"\r\n(initramfs) "))
    _, seen = press(console, dict.fromkeys(KEYS, DISABLED))
    assert (len(seen.keys), seen.answer) == (3, Answer.SHELL)


def test_an_emergency_is_tried(clock: Clock) -> None:
    console = Console(clock, ASKS, shell_behind)
    _, seen = press(console, {"e": b"sysrq: Terminate All Tasks\r\n" + MAINTENANCE})
    assert seen.answer is Answer.SHELL
    assert console.typed[0] == ""


def test_a_machine_that_ends(clock: Clock) -> None:
    console = Console(clock, ASKS)
    pressed: list[str] = []

    def alive() -> None:
        if pressed:
            raise GuestFailed("the machine was powered off by its guest")

    talk = Talk(console, TPM_POLICY, alive, lambda: 900.0, 1.0)
    assert talk.outcome()[0] is Outcome.ASKED
    seen = talk.press(pressed.append, KEYS)
    assert (pressed, seen.answer, seen.line) == (["r"], Answer.ENDED, "the machine was powered off by its guest")
