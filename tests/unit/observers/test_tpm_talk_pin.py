"""The talk with a machine whose TPM wants a PIN: each word at its own prompt, and what came of it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_osgates.checks.tpm_model import PIN, Answer, Outcome, TpmPolicy
from pytest_osgates.observers.tpm_talk import PROBE_TEXT, Login, Phrases, Talk, signs
from tests.unit.talk_samples import (
    LOCKED,
    LOGIN,
    REFUSES,
    Clock,
    Console,
    Guest,
    honest,
    journal_guest,
    shell_behind,
)
from tests.unit.tpm_samples import PASSPHRASE, PIN_POLICY, PIN_TEXT

TOKEN = b"Enter token PIN: "
TPM2 = "\U0001f510 Please enter TPM2 PIN: ".encode()
PROMPT = b"\r\nEnter passphrase for /dev/vda2: "
BAD = b"\r\nBad PIN.\r\n"
LOCKOUT = b"\r\nTPM2 device is in dictionary attack lockout mode.\r\n"
PHRASES = Phrases.of(PIN_POLICY, PASSPHRASE, PIN_TEXT)


def talk_to(
    console: Console, pins: tuple[tuple[str, str], ...], policy: TpmPolicy = PIN_POLICY, seconds: float = 900.0
) -> Talk:
    end = console.clock.now + seconds
    return Talk(console, policy, lambda: None, lambda: end - console.clock.now, 1.0, pins)


class Machine:
    """A guest that knows what it asked for, and notes what was typed at which prompt."""

    def __init__(self, *, opens: bool = True, more: int = 0, refuses: bytes = BAD) -> None:
        self.asks = "pin"
        self.opens = opens
        self.more = more
        self.refuses = refuses
        self.typed: list[tuple[str, str]] = []

    def __call__(self, text: str) -> bytes:
        self.typed.append((self.asks, text))
        if self.asks == "prompt":
            return honest(text)
        if self.opens and text == PIN_TEXT:
            return LOGIN
        if self.more:
            self.more -= 1
            return self.refuses + TOKEN
        self.asks = "prompt"
        return self.refuses + PROMPT


@pytest.mark.parametrize("asks", [TOKEN, TPM2])
def test_the_right_pin_opens(clock: Clock, asks: bytes) -> None:
    console = Console(clock, asks, Machine())
    talk = talk_to(console, PHRASES.pins(once=True))
    assert talk.outcome() == (Outcome.UNLOCKED, "host login:")
    assert console.typed == [PIN_TEXT]
    assert [(each.what, each.answer) for each in talk.pins] == [(PIN, Answer.OPENED)]


def test_without_a_pin_nothing_is_typed(clock: Clock) -> None:
    console = Console(clock, TOKEN, Machine())
    talk = talk_to(console, ())
    assert talk.outcome()[0] is Outcome.PIN
    assert (console.typed, talk.pins) == ([], ())


@pytest.mark.parametrize("more", [0, 1, 4])
def test_a_wrong_pin_then_the_passphrase(clock: Clock, more: int) -> None:
    machine = Machine(more=more)
    talk = talk_to(Console(clock, TOKEN, machine), PHRASES.pins("wrong"))
    assert talk.outcome()[0] is Outcome.ASKED
    assert [each.answer for each in talk.pins] == [Answer.REFUSED] * (more + 1)
    assert {each.what for each in talk.pins} == {"wrong PIN 1"}
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    assert talk.guess("blank", "").answer is Answer.REFUSED
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    assert {asked for asked, text in machine.typed if text in (PASSPHRASE, PROBE_TEXT, "")} == {"prompt"}
    assert {text for asked, text in machine.typed if asked == "pin"} == {"000000"}
    assert talk.said("bad-pin") == "Bad PIN."
    assert talk.said("lockout") == ""


def test_a_wrong_pin_that_opens(clock: Clock) -> None:
    talk = talk_to(Console(clock, TOKEN, lambda text: LOGIN), PHRASES.pins("wrong"))
    assert talk.outcome()[0] is Outcome.UNLOCKED
    assert [(each.what, each.answer) for each in talk.pins] == [("wrong PIN 1", Answer.OPENED)]


def test_a_lockout_in_which_the_right_pin_opens_nothing(clock: Clock) -> None:
    talk = talk_to(Console(clock, TOKEN, Machine(opens=False, refuses=LOCKOUT)), PHRASES.pins())
    assert talk.outcome()[0] is Outcome.ASKED
    assert [each.answer for each in talk.pins] == [Answer.REFUSED]
    assert "lockout mode" in talk.said("lockout")


def test_one_that_asks_for_the_pin_for_ever(clock: Clock) -> None:
    console = Console(clock, TOKEN, Machine(opens=False, more=100))
    talk = talk_to(console, PHRASES.pins(), seconds=9000)
    assert talk.outcome()[0] is Outcome.PIN
    assert console.typed == [PIN_TEXT] * 10
    once = talk_to(Console(clock, TOKEN, Machine(opens=False, more=100)), PHRASES.pins(once=True))
    assert once.outcome()[0] is Outcome.PIN
    assert [each.answer for each in once.pins] == [Answer.REFUSED]


def test_a_prompt_that_is_only_drawn_again_is_no_refusal(clock: Clock) -> None:
    """The PIN is still tried: what it opens ten seconds later was opened by it."""

    def slow(text: str) -> bytes:
        console.pending.append((clock.now + 15, LOGIN))
        return b"\r\n" + TPM2

    console = Console(clock, TPM2, slow)
    talk = talk_to(console, PHRASES.pins("wrong"))
    assert talk.outcome()[0] is Outcome.UNLOCKED
    assert [each.answer for each in talk.pins] == [Answer.OPENED]
    silent = talk_to(Console(clock, TPM2, lambda text: b"\r\n" + TPM2), PHRASES.pins(once=True))
    assert silent.outcome()[0] is Outcome.PIN
    assert silent.pins[0].answer is Answer.ASKED_AGAIN
    assert silent.pins[0].seconds >= PIN_POLICY.settle_s


def test_a_shell_behind_a_wrong_pin(clock: Clock) -> None:
    talk = talk_to(Console(clock, TOKEN, lambda text: b"\r\n/ # "), PHRASES.pins("wrong"))
    assert talk.outcome()[0] is Outcome.SHELL
    assert talk.pins[0].answer is Answer.SHELL
    maintenance = b"\r\nPress Enter for maintenance\r\n"
    guest: Guest = lambda text: maintenance if text == "000000" else shell_behind(text)  # noqa: E731
    behind = talk_to(Console(clock, TOKEN, guest), PHRASES.pins("wrong"))
    assert behind.outcome()[0] is Outcome.SHELL
    assert behind.pins[0].answer is Answer.SHELL


def test_an_emergency_behind_a_wrong_pin(clock: Clock) -> None:
    talk = talk_to(Console(clock, TOKEN, lambda text: BAD + LOCKED), PHRASES.pins("wrong"))
    assert talk.outcome()[0] is Outcome.LOCKED
    assert talk.pins[0].answer is Answer.LOCKED


@pytest.mark.parametrize("more", [0, 2])
def test_one_that_asks_for_the_pin_again_after_a_wrong_passphrase(clock: Clock, more: int) -> None:
    class Back(Machine):
        def __call__(self, text: str) -> bytes:
            said = super().__call__(text)
            if self.asks == "prompt" and self.typed[-1][0] == "prompt" and text != PASSPHRASE:
                self.asks, self.more = "pin", more
                return b"\r\nNo key available with this passphrase.\r\n" + TOKEN
            return said

    machine = Back(more=more, opens=False)
    talk = talk_to(Console(clock, TOKEN, machine), PHRASES.pins())
    assert talk.outcome()[0] is Outcome.ASKED
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    assert talk.guess("blank", "").answer is Answer.REFUSED
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    assert {text for asked, text in machine.typed if asked == "pin"} == {PIN_TEXT}
    assert PIN_TEXT not in {text for asked, text in machine.typed if asked == "prompt"}
    assert len(talk.pins) == 3 * (more + 1)


def test_no_passphrase_is_typed_where_it_goes_on_asking_for_the_pin(clock: Clock) -> None:
    def guest(text: str) -> bytes:
        return b"\r\nNo key available with this passphrase.\r\n" + TOKEN if text == PROBE_TEXT else BAD + TOKEN

    console = Console(clock, PROMPT, guest)
    talk = talk_to(console, PHRASES.pins(), seconds=9000)
    assert talk.outcome()[0] is Outcome.ASKED
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    assert talk.guess("blank", "").answer is Answer.TIMEOUT
    assert talk.unlock(PASSPHRASE).answer is Answer.TIMEOUT
    assert console.typed == [PROBE_TEXT, *[PIN_TEXT] * 10]


def test_a_prompt_of_the_profiles_own(clock: Clock) -> None:
    policy = PIN_POLICY.model_copy(update={"pin_prompts": (r"^Number\? ?$",), "prompts": (r"^(?:Number|Word)\? ?$",)})
    console = Console(clock, b"Number? ", lambda text: LOGIN)
    assert talk_to(console, PHRASES.pins(once=True), policy).outcome()[0] is Outcome.UNLOCKED
    # What fits both is the PIN's: a passphrase typed there would be worse.
    assert console.typed == [PIN_TEXT]
    assert [sign.name for sign in signs(policy)].index("pin") < [sign.name for sign in signs(policy)].index("prompt")


def test_the_journal_tells_of_the_lockout(clock: Clock) -> None:
    shown = b"\r\nTPM is in dictionary attack lock-out mode.\r\nosgates-journal-42\r\n# "
    guest = journal_guest(shown=shown)
    console = Console(clock, PROMPT, guest)
    talk = talk_to(console, PHRASES.pins())
    talk.outcome()
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    talk.ask_journal(Login("tester", "word"))
    assert "lock-out" in talk.said("lockout")
    assert talk.said("bad-pin") == ""


def test_phrases() -> None:
    assert Phrases.of(PIN_POLICY, PASSPHRASE).pins() == ()
    assert PHRASES.pins(once=True) == ((PIN, PIN_TEXT),)
    assert PHRASES.pins() == ((PIN, PIN_TEXT),) * 10
    policy = PIN_POLICY.model_copy(update={"wrong_pins": ("1", "2")})
    wrong = Phrases.of(policy, PASSPHRASE, PIN_TEXT).pins("wrong")
    assert wrong == (("wrong PIN 1", "1"), *[("wrong PIN 2", "2")] * 9)
    assert PIN_TEXT not in repr(PHRASES)


PIECES = st.lists(
    st.sampled_from([TOKEN, TPM2, PROMPT, BAD, REFUSES, LOCKOUT, b"\r\n", b"x", LOCKED, b"# "]), max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(first=PIECES, answers=PIECES)
def test_whatever_it_shows_the_talk_ends(clock: Clock, first: list[bytes], answers: list[bytes]) -> None:
    console = Console(clock, b"".join(first), lambda text: b"".join(answers))
    talk = talk_to(console, PHRASES.pins(), seconds=120.0)
    begun = clock.now
    if talk.outcome()[0] is Outcome.ASKED:
        talk.guess("blank", "")
        talk.unlock(PASSPHRASE)
    assert clock.now - begun < 3000
    assert len(talk.pins) <= 10
    if not any(prompt in b"".join([*first, *answers]) for prompt in (TOKEN, TPM2)):
        assert PIN_TEXT not in console.typed
    if PROMPT[2:] not in b"".join([*first, *answers]):
        assert PASSPHRASE not in console.typed
