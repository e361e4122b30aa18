"""The talk at the screen of a machine that asks for its passphrase: on a text console, and at a graphical prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_osgates.checks.tpm_model import Answer, Outcome, TpmPolicy
from pytest_osgates.data import load
from pytest_osgates.observers.tpm_talk import PROBE_TEXT, Login, Talk, signs
from pytest_osgates.vm import screen_line
from pytest_osgates.vm.errors import GuestFailed
from pytest_osgates.vm.screen import Frame
from pytest_osgates.vm.screen_line import ScreenLine
from tests.unit.screen_samples import FONTS, Display, Pictures, Plymouth, TextScreen, draw, reader_of
from tests.unit.talk_samples import (
    ASKS,
    LOCKED,
    LOGIN,
    REFUSES,
    Clock,
    Guest,
    honest,
    journal_guest,
    shell_behind,
)
from tests.unit.tpm_samples import PASSPHRASE, PIN_POLICY, PIN_TEXT, TPM_POLICY

POLICY = TPM_POLICY.model_copy(update={"console": "screen"})
PROMPT = "Please enter passphrase for disk root:"
AGAIN = (PROMPT, "bad password or options?")


@pytest.fixture(autouse=True)
def _time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen_line, "time", clock)


def talk_to(
    display: Display,
    pictures: Pictures | None = None,
    policy: TpmPolicy = POLICY,
    seconds: float = 900.0,
    pins: Sequence[tuple[str, str]] = (),
) -> Talk:
    clock = display.clock
    end = clock.now + seconds
    reader = reader_of(pictures or Pictures())
    if pictures is None:
        reader._by = lambda frame: ()

    def pause(waited: float) -> None:
        clock.now += waited

    def alive() -> None:
        if display.off:
            raise GuestFailed("the machine was powered off by its guest")

    line = ScreenLine(display, reader, signs(policy), pause=pause)
    return Talk(line, policy, alive, lambda: end - clock.now, 1.0, pins, line)


# -- a text console


def test_an_honest_machine(clock: Clock) -> None:
    display = TextScreen(clock, ASKS, honest)
    talk = talk_to(display)
    assert talk.outcome() == (Outcome.ASKED, "Enter passphrase for /dev/vda2:")
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    assert talk.guess("blank", "").answer is Answer.REFUSED
    right = talk.unlock(PASSPHRASE)
    assert (right.answer, right.line) == (Answer.OPENED, "host login:")
    assert display.typed == [PROBE_TEXT, "", PASSPHRASE]
    assert talk.reasons == ("The TPM did not unlock the disk: policy digest does not match",)


@pytest.mark.parametrize(
    ("guest", "answer"),
    [
        (shell_behind, Answer.SHELL),
        (lambda text: b"\r\nHere is a shell\r\n~ # ", Answer.SHELL),
        (lambda text: b"\r\n>>> " if text != PROBE_TEXT else b"\r\nosgates-42\r\n>>> ", Answer.SHELL),
        (lambda text: LOGIN, Answer.OPENED),
        (lambda text: LOCKED, Answer.LOCKED),
        (lambda text: b"\r\nPlease enter passphrase for disk root: ", Answer.ASKED_AGAIN),
        (lambda text: b"", Answer.TIMEOUT),
    ],
)
def test_each_answer_to_a_wrong_one(guest: Guest, answer: Answer, clock: Clock) -> None:
    talk = talk_to(TextScreen(clock, ASKS, guest))
    assert talk.outcome()[0] is Outcome.ASKED
    assert talk.guess("shell probe", PROBE_TEXT).answer is answer


@pytest.mark.parametrize("late", [LOGIN, b"\r\nroot@host:~# ", b"\r\n/ # "])
def test_what_comes_just_before_the_passphrase_is_no_work_of_it(late: bytes, clock: Clock) -> None:
    display = TextScreen(clock, ASKS, lambda text: REFUSES if text == PROBE_TEXT else b"")
    talk = talk_to(display)
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    display.at(0.0, lambda: display.show(late))
    assert talk.unlock(PASSPHRASE).answer in (Answer.EARLY, Answer.SHELL)


def test_one_that_unlocks_by_itself(clock: Clock) -> None:
    display = TextScreen(clock, b"Loading ...\r\n" + LOGIN)
    assert talk_to(display).outcome() == (Outcome.UNLOCKED, "host login:")
    assert display.typed == []


def test_a_machine_that_ends(clock: Clock) -> None:
    display = TextScreen(clock, ASKS)
    talk = talk_to(display)
    assert talk.outcome()[0] is Outcome.ASKED
    display.at(5.0, lambda: setattr(display, "off", True))
    assert talk.guess("blank", "").answer is Answer.ENDED
    assert talk.unlock(PASSPHRASE).answer is Answer.ENDED


@pytest.mark.parametrize("guest", [journal_guest(), journal_guest(become=b"sudo")])
def test_the_journal_is_asked_by_who_logs_in(guest: Guest, clock: Clock) -> None:
    display = TextScreen(clock, ASKS, guest)
    talk = talk_to(display)
    talk.outcome()
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    talk.ask_journal(Login("tester", "word", "sudo sh"))
    assert "falling back" in talk.reasons[0]
    assert any("cut -c1-150 | head -n 6" in text for text in display.typed), "a screen has no room for more"


class Stars(TextScreen):
    """As systemd asks: a hint, which the first key or Enter takes back, and stars."""

    def pressed(self, line: str) -> None:
        self.terminal.rows[-1] = f"{PROMPT} {'*' * len(line)}"
        self.frame = self.terminal.frame()

    def entered(self, text: str) -> None:
        if not text:
            self.terminal.rows[-1] = PROMPT
            self.frame = self.terminal.frame()
        super().entered(text)


@pytest.mark.parametrize("text", [PROBE_TEXT, ""])
def test_a_hint_that_is_taken_back_is_no_answer(text: str, clock: Clock) -> None:
    asks = f"Starting\n{PROMPT} (press TAB for no echo) ".encode()
    talk = talk_to(Stars(clock, asks))
    assert talk.outcome() == (Outcome.ASKED, f"{PROMPT} (press TAB for no echo)")
    assert talk.guess("wrong", text).answer is Answer.TIMEOUT
    talk = talk_to(Stars(clock, asks, lambda text: b"\n" + asks))
    talk.outcome()
    assert talk.guess("wrong", text).answer is Answer.ASKED_AGAIN
    talk = talk_to(
        Stars(clock, asks, lambda text: b"\n" + REFUSES.replace(b"\r\nEnter", b"\r\n" + asks + b"\nEnter"))
    )
    talk.outcome()
    assert talk.guess("wrong", text).answer is Answer.REFUSED


# -- a graphical prompt


Shows = Callable[[str, Pictures], list[tuple[float, Frame]]]


def plymouth(clock: Clock, shows: Shows, **more: Any) -> tuple[Plymouth, Talk]:
    pictures = Pictures()
    display = Plymouth(clock, pictures, (PROMPT,), lambda text: shows(text, pictures), **more)
    return display, talk_to(display, pictures)


def tries(text: str, pictures: Pictures) -> list[tuple[float, Frame]]:
    """As Plymouth does: the prompt goes away while the passphrase is tried."""
    if text == PASSPHRASE:
        return [(1.0, pictures.make("Starting up")), (40.0, pictures.make("Debian GNU/Linux 13", "host login:"))]
    return [(1.0, pictures.make("Starting up")), (8.0, pictures.make(PROMPT))]


def test_an_honest_graphical_machine(clock: Clock) -> None:
    display, talk = plymouth(clock, tries)
    assert talk.outcome() == (Outcome.ASKED, PROMPT)
    probe = talk.guess("shell probe", PROBE_TEXT)
    assert probe.answer is Answer.ASKED_AGAIN
    assert probe.seconds >= POLICY.settle_s, "it may still be tried"
    assert talk.guess("blank", "").answer is Answer.ASKED_AGAIN
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    assert display.typed == [PROBE_TEXT, "", PASSPHRASE]


def test_a_prompt_that_stays_as_it_is_decides_nothing(clock: Clock) -> None:
    """It is not even known whether a key arrived."""
    _, talk = plymouth(clock, lambda text, pictures: [(2.0, pictures.make(PROMPT))], bullets=False)
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.TIMEOUT
    assert talk.guess("blank", "").answer is Answer.TIMEOUT


def test_bullets_that_came_and_went_are_an_answer_and_an_empty_field_is_none(clock: Clock) -> None:
    _, talk = plymouth(clock, lambda text, pictures: [(2.0, pictures.make(PROMPT))])
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.ASKED_AGAIN
    assert talk.guess("blank", "").answer is Answer.TIMEOUT


def refused_once(clock: Clock, enter: Callable[[Pictures], list[tuple[float, Frame]]]) -> tuple[Plymouth, Talk]:
    """At a prompt that has refused the shell probe, and says so; `enter`: what Enter alone shows."""

    def shows(text: str, pictures: Pictures) -> list[tuple[float, Frame]]:
        if text:
            return [(1.0, pictures.make("Starting up")), (4.0, pictures.make(*AGAIN))]
        return enter(pictures)

    display, talk = plymouth(clock, shows)
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    return display, talk


@pytest.mark.parametrize(
    ("passing", "answer"),
    [
        # As Plymouth does where cryptsetup refuses no input at once: what was said before is all that stands there.
        ([(0.1, ()), (0.2, ("bad password or options?",)), (0.4, AGAIN)], Answer.ASKED_AGAIN),
        # In many steps, and later than that.
        (
            [(0.1 + step / 20, ("bad password or options?", f"{step}")) for step in range(40)] + [(2.2, AGAIN)],
            Answer.ASKED_AGAIN,
        ),
        ([(0.1, ("bad password or options?",)), (9.0, AGAIN)], Answer.ASKED_AGAIN),
        # Drawn anew at once, and gone after that.
        (
            [(0.1, (*AGAIN, "Caps Lock")), (0.2, AGAIN), (0.6, ("bad password or options?",)), (0.9, AGAIN)],
            Answer.ASKED_AGAIN,
        ),
        # Too short to be more than a picture that was half drawn.
        ([(0.1, ("bad password or options?",)), (0.14, AGAIN)], Answer.TIMEOUT),
        # Drawn anew, with the prompt in its place all the while, or with nothing to be read.
        ([(0.1, (PROMPT, "bad password or options?")), (0.3, AGAIN)], Answer.TIMEOUT),
        ([(0.1, ()), (0.3, AGAIN)], Answer.TIMEOUT),
        # Not as it was before.
        ([(0.1, ("bad password or options?",)), (0.3, (*AGAIN, "and more"))], Answer.TIMEOUT),
    ],
)
def test_enter_alone_that_is_refused_at_once(
    passing: list[tuple[float, tuple[str, ...]]], answer: Answer, clock: Clock
) -> None:
    """Between two looks."""

    _, talk = refused_once(clock, lambda pictures: [(seconds, pictures.make(*lines)) for seconds, lines in passing])
    assert talk.guess("blank", "").answer is answer


BUSYBOX = draw(["BusyBox v1.37.0 (Debian) built-in shell (ash)", "", "(initramfs) "], FONTS[0]["glyphs"])


@pytest.mark.parametrize("seconds", [0.3, 0.9, 2.4, 2.9, 8.0])
@pytest.mark.parametrize("by", ["ocr", "glyphs"])
def test_a_shell_that_comes_and_goes_after_enter_alone(by: str, seconds: float, clock: Clock) -> None:
    def shows(pictures: Pictures) -> list[tuple[float, Frame]]:
        shell = BUSYBOX if by == "glyphs" else pictures.make("(initramfs}")
        return [(0.1, shell), (0.1 + seconds, pictures.make(*AGAIN))]

    _, talk = refused_once(clock, shows)
    assert talk.guess("blank", "").answer is Answer.SHELL


def test_a_shell_that_comes_while_pictures_are_read(clock: Clock) -> None:
    """OCR of what was kept takes its time."""

    def shows(pictures: Pictures) -> list[tuple[float, Frame]]:
        steps = [(0.1 + step / 20, pictures.make("bad password or options?", f"{step}")) for step in range(8)]
        return [*steps, (0.6, pictures.make(*AGAIN)), (3.2, BUSYBOX), (7.2, pictures.make(*AGAIN))]

    display, talk = refused_once(clock, shows)
    slow = talk._screen._reader  # type: ignore[union-attr]
    by: Callable[[Frame], tuple[str, ...]] = slow._by

    def read(frame: Frame) -> tuple[str, ...]:
        clock.now += 1.0
        return by(frame)

    slow._by = read
    assert talk.guess("blank", "").answer is Answer.SHELL
    assert display.typed == [PROBE_TEXT, ""]


def test_a_prompt_that_ocr_misses_for_once_after_enter_alone_is_no_answer(clock: Clock) -> None:
    def shows(pictures: Pictures) -> list[tuple[float, Frame]]:
        drawn = pictures.make(*AGAIN, spinner=3)
        pictures.read[drawn.digest] = ("noise",)
        return [(0.1, drawn), (0.4, pictures.make(*AGAIN))]

    _, talk = refused_once(clock, shows)
    assert talk.guess("blank", "").answer is Answer.TIMEOUT


def test_a_machine_that_goes_off_at_enter_alone(clock: Clock) -> None:
    display, talk = refused_once(clock, lambda pictures: [])
    # Once it was typed.
    enter = display.entered

    def entered(text: str) -> None:
        enter(text)
        display.at(0.2, lambda: setattr(display, "off", True))

    display.entered = entered  # type: ignore[method-assign]
    assert talk.guess("blank", "").answer is Answer.ENDED


def test_enter_alone_at_a_text_console_is_looked_at_as_ever(clock: Clock) -> None:
    """Not ten times as often: what it shows says enough."""
    display = TextScreen(clock, ASKS, honest)
    talk = talk_to(display)
    talk.outcome()
    looks = display.looks
    assert talk.guess("blank", "").answer is Answer.REFUSED
    assert display.looks - looks < 75


def test_a_word_of_refusal(clock: Clock) -> None:
    wrong = ("Incorrect passphrase",)
    _, talk = plymouth(clock, lambda text, pictures: [(2.0, pictures.make(PROMPT, *wrong))])
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    # The word that stands there is of the guess before.
    assert talk.guess("blank", "").answer is Answer.TIMEOUT


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("host login:", Answer.OPENED),
        ("host Login:", Answer.OPENED),
        ("(initramfs}", Answer.SHELL),
        ("root@osgates -demo:~#", Answer.SHELL),
        ("i #", Answer.SHELL),
        ("osgates -42", Answer.SHELL),
        ("Busy Box v1.37.0 (Debian) built-in shell", Answer.SHELL),
        ("Kernel panic - not syncing", Answer.STOPPED),
    ],
)
def test_what_is_behind_a_wrong_passphrase(line: str, answer: Answer, clock: Clock) -> None:
    """As OCR has it."""
    _, talk = plymouth(
        clock, lambda text, pictures: [(1.0, pictures.make("Starting up")), (9.0, pictures.make(line))]
    )
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is answer


def test_a_passphrase_that_opens_after_the_prompt_was_drawn_again(clock: Clock) -> None:
    def slow(text: str, pictures: Pictures) -> list[tuple[float, Frame]]:
        return [(1.0, pictures.make(PROMPT)), (20.0, pictures.make("Debian GNU/Linux 13", "host login:"))]

    _, talk = plymouth(clock, slow)
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.OPENED


@pytest.mark.parametrize(
    ("answers", "answer"),
    [
        ([("Give root password for maintenance",)], Answer.TIMEOUT),
        ([("Give root password for maintenance",), ("Give root password", "Login incorrect")], Answer.LOCKED),
        ([("Cannot open access to console, the root account is locked.",)], Answer.LOCKED),
    ],
)
def test_silence_in_a_corner_is_no_answer(answers: list[tuple[str, ...]], answer: Answer, clock: Clock) -> None:
    """A shell may be there that OCR does not read."""
    left = list(answers)
    _, talk = plymouth(clock, lambda text, pictures: [(1.0, pictures.make(*left.pop(0)))] if left else [])
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is answer


def test_a_shell_that_was_misread_at_first_is_one(clock: Clock) -> None:
    asks = "Give root password for maintenance"
    left = [(asks,), (), (asks, "osgates-4Z", ">>>"), (asks, "osgates-42", ">>>")]

    def shows(text: str, pictures: Pictures) -> list[tuple[float, Frame]]:
        lines = left.pop(0) if left else ()
        return [(1.0, pictures.make(*lines))] if lines else []

    _, talk = plymouth(clock, shows)
    talk.outcome()
    assert talk.guess("wrong 1", "wrong").answer is Answer.SHELL


def test_nothing_is_typed_where_no_prompt_stands(clock: Clock) -> None:
    """A splash says nothing, and whoever comes after it would get the passphrase as a user's name."""
    display, talk = plymouth(clock, lambda text, pictures: [(1.0, pictures.make())])
    talk.outcome()
    display.at(140.0, lambda: display.show(display.pictures.make("host login:")))
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    assert display.typed == [PASSPHRASE]


def test_keys_that_were_lost_are_typed_again(clock: Clock) -> None:
    display, talk = plymouth(clock, tries)
    talk.outcome()
    display.deaf = True
    display.at(30.0, lambda: setattr(display, "deaf", False))
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.ASKED_AGAIN
    assert display.typed == [PROBE_TEXT]


def test_a_pin_and_then_the_passphrase(clock: Clock) -> None:
    """Each is typed at its own prompt, though only the words differ."""
    pictures = Pictures()
    asks_pin = "Please enter LUKS2 token PIN:"

    def shows(text: str) -> list[tuple[float, Frame]]:
        if text == PIN_TEXT:
            display.prompt = (PROMPT,)
            return [(1.0, pictures.make("Starting up")), (6.0, pictures.make(PROMPT))]
        return tries(text, pictures)

    display = Plymouth(clock, pictures, (asks_pin,), shows)
    talk = talk_to(display, pictures, PIN_POLICY.model_copy(update={"console": "screen"}), pins=[("PIN", PIN_TEXT)])
    assert talk.outcome() == (Outcome.ASKED, PROMPT)
    assert [(tried.what, tried.answer) for tried in talk.pins] == [("PIN", Answer.REFUSED)]
    assert talk.guess("blank", "").answer is Answer.ASKED_AGAIN
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    assert display.typed == [PIN_TEXT, "", PASSPHRASE]


# -- the table


READ = {
    "shell": [
        "(initramfs}",
        "(initramfs) _",
        "[initramfs)",
        "lnitramfs)",
        "sh -5,2#",
        "/#",
        "l#",
        "root@osgates -deno:~#",
        "osgates—42",
    ],
    "login": ["host Login:", "osgates-demo login;"],
    "locked": ["cannot open access to console, the root account is locked."],
    "password": ["Give root Password for maintenance"],
    "emergency": ["Press Enter for maintenance", "You are in Emergency mode."],
    "stopped": ["Kernel Panic - not syncing: VFS", "grub rescue >"],
    "refused": ["cryptsetup: ERROR: vda3_crypt: cryptsetup failed, bad password or options?", "Incorrect passphrase"],
    "pin": ["Please enter TPM2 PIN:", "please enter LUKS2 token PIN :"],
    "prompt": [
        "Please enter passphrase for disk QEMU_ HARDDISK (root):",
        "Please unlock disk uvda3_crypt:",
        "Enter passphrase for /dev/vda2",
        "Password (/dev/vda2)",
        "Enter password to unlock",
    ],
}
INNOCENT = [
    *("Starting up", "Debian GNU/Linux 13", "eeeeee", "@00000060", "oo", "Press any key to continue", "TianoCore"),
    *("Start boot option", "echo osgates-$((6*7))", "Loading initial ramdisk ...", "Password:", "Last Login: Mon"),
    *(
        "The TPM did not unlock the disk.",
        "Unlocking the disk",
        "Console Login",
        "host login",
        "Passphrase policy",
        "GNU GRUB version 2.12",
        "Welcome to Fedora Linux 40 (Server Edition) dracut-059-22.fc40 (Initramfs)!",
        "Running early hook (initramfs)",
        "Linux version 6.6.1 (root@host) (clang version 17.0.6 (https://github.com/llvm 6009708b), LLD 17) #1 SMP",
    ),
]


def found(line: str) -> set[str]:
    return {row["sign"] for row in load("unlock_screen")["line"] if re.search(row["regex"], line)}


@pytest.mark.parametrize(("sign", "line"), [(sign, line) for sign, lines in READ.items() for line in lines])
def test_lines_as_they_are_read(sign: str, line: str) -> None:
    assert found(line) == {sign}


@pytest.mark.parametrize("line", INNOCENT)
def test_innocent_lines(line: str) -> None:
    assert found(line) == set()


def test_the_table_says_where_it_is_from_and_is_for_the_screen_alone() -> None:
    rows = load("unlock_screen")["line"]
    assert {row["sign"] for row in rows} == set(READ)
    for row in rows:
        assert row["source"]
        assert not re.search(row["regex"], "")
    assert len(signs(POLICY)) == len(signs(TPM_POLICY)) + len(rows)
    # The most telling first, from both tables.
    names = [sign.name for sign in signs(POLICY)]
    known = list(dict.fromkeys(row["sign"] for row in load("unlock_console")["line"]))
    rest = names[names.index("secret") + 1 :]
    assert rest == sorted(rest, key=known.index)
