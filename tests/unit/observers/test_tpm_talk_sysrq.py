"""SysRq at the prompt: what the kernel answers, and what is left of whoever asked."""

from __future__ import annotations

import pytest

from pytest_osgates.checks.tpm_model import Answer, Outcome, SysrqSeen
from pytest_osgates.observers.tpm_talk import PROBE_TEXT, Talk
from pytest_osgates.vm.errors import GuestFailed, QmpFailed
from tests.unit.talk_samples import ASKS, LOCKED, LOGIN, MAINTENANCE, Clock, Console, honest, shell_behind
from tests.unit.tpm_samples import PASSPHRASE, TPM_POLICY

KEYS = ("r", "k", "e")
DISABLED = b"[   25.0] sysrq: This sysrq operation is disabled.\r\n"


def talking(console: Console) -> Talk:
    end = console.clock.now + 900.0
    return Talk(console, TPM_POLICY, lambda: None, lambda: end - console.clock.now, 1.0)


def press(console: Console, answers: dict[str, bytes]) -> tuple[Talk, SysrqSeen]:
    """At the prompt; `answers`: what the machine says to each key."""
    clock = console.clock
    talk = talking(console)
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
        # The next key would end whoever asks again.
        (b"", Answer.ASKED_AGAIN),
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


def test_a_shell_for_one_key_that_the_next_one_would_end(clock: Clock) -> None:
    """SIGKILL some seconds after SIGTERM hits what that leads to."""
    console = Console(clock, ASKS, honest)

    def answers(key: str) -> None:
        if key == "r":
            console.pending.append((clock.now + 0.5, DISABLED))
        elif key == "e":
            console.pending += [
                (clock.now + 0.5, b"sysrq: Terminate All Tasks\r\n"),
                (clock.now + 12.0, b"\r\n(initramfs) "),
            ]
        else:
            console.pending[:] = [(clock.now + 0.5, b"sysrq: Kill All Tasks\r\n" + ASKS)]

    talk = talking(console)
    assert talk.outcome()[0] is Outcome.ASKED
    seen = talk.press(answers, ("r", "e", "i"))
    assert ([entry.key for entry in seen.keys], seen.answer) == (["r", "e"], Answer.SHELL)


@pytest.mark.parametrize(
    "said",
    [
        b"sysrq: HELP : loglevel(0-9) reboot(b)\r\n",
        b"sysrq: OOM request ignored. No task eligible\r\n",
        b"sysrq: Kill All Tasks\r\n",
    ],
)
def test_a_word_about_another_key_is_no_answer(said: bytes, clock: Clock) -> None:
    _, seen = press(Console(clock, ASKS, honest), {"r": DISABLED, "k": said, "e": DISABLED})
    assert [bool(entry.line) for entry in seen.keys] == [True, False, True]


def test_both_answers_in_one_look(clock: Clock) -> None:
    """An earlier key's is late."""
    _, seen = press(Console(clock, ASKS, honest), {"r": DISABLED, "k": DISABLED + b"sysrq: SAK\r\n", "e": DISABLED})
    assert [entry.line[-3:] for entry in seen.keys] == ["ed.", "SAK"]


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


@pytest.mark.parametrize("error", [GuestFailed("it was powered off"), QmpFailed("QEMU's monitor went away")])
def test_a_machine_that_ends_while_a_key_is_pressed(error: Exception, clock: Clock) -> None:
    """What was seen of it is not lost."""
    console = Console(clock, ASKS)
    gone: list[str] = []

    def alive() -> None:
        if gone:
            raise GuestFailed("it was powered off")

    def key(name: str) -> None:
        if name == "k":
            gone.append(name)
            raise error
        console.pending.append((clock.now + 0.5, DISABLED))

    talk = Talk(console, TPM_POLICY, alive, lambda: 900.0, 1.0)
    assert talk.outcome()[0] is Outcome.ASKED
    seen = talk.press(key, KEYS)
    assert [entry.key for entry in seen.keys] == ["r"]
    assert (seen.answer, seen.line) == (Answer.ENDED, "it was powered off")


def test_a_monitor_that_fails_beside_a_machine_that_lives(clock: Clock) -> None:
    talk = talking(Console(clock, ASKS))
    assert talk.outcome()[0] is Outcome.ASKED

    def key(name: str) -> None:
        raise QmpFailed("QEMU refused it")

    with pytest.raises(QmpFailed):
        talk.press(key, KEYS)
