"""What is new on a screen, and when a prompt counts as there again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_osgates.vm import screen_line
from pytest_osgates.vm.dialogue import Sign
from pytest_osgates.vm.errors import HostError, QmpFailed, UsageError
from pytest_osgates.vm.screen import Frame
from pytest_osgates.vm.screen_line import ScreenLine, added, changed, unlike
from tests.unit.screen_samples import Display, Pictures, Plymouth, Terminal, TextScreen, reader_of
from tests.unit.talk_samples import Clock

ASKS = Sign("prompt", re.compile("enter passphrase"))
TELLS = Sign("shell", re.compile(r"^\(initramfs\)$|^osgates-42$"))
PROMPT = "Please enter passphrase for disk root:"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(screen_line, "time", made)
    return made


def line_of(display: Display, pictures: Pictures | None = None, **more: Any) -> ScreenLine:
    def pause(seconds: float) -> None:
        display.clock.now += seconds

    # A console that shows a few letters only is read by OCR as well.
    reader = reader_of(pictures or Pictures())
    if pictures is None:
        reader._by = lambda frame: ()
    return ScreenLine(display, reader, [ASKS, TELLS], pause=pause, **more)


def heard(line: ScreenLine, seconds: float) -> str:
    """All that is new in so many seconds."""
    found = b""
    end = screen_line.time.monotonic() + seconds
    while (left := end - screen_line.time.monotonic()) > 0:
        found += line.take_unread(1 << 16, left)
    return found.decode()


# -- what is new on a text console


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ((), ("a", "b"), "\na\nb"),
        (("a", "b"), ("a", "b"), ""),
        (("a", "b"), ("a", "b", "c"), "\nc"),
        (("a", "b"), ("a", "bc", "d"), "c\nd"),
        # Scrolled.
        (("a", "b", "c"), ("b", "c", "d"), "\nd"),
        (("a", "b", "c"), ("c", "c"), "\nc"),
        # The same once more.
        (("x", "ask"), ("x", "ask", "no", "ask"), "\nno\nask"),
        # Drawn anew.
        (("a", "b"), ("z",), "\nz"),
        (("a", "b"), ("z", "b", "a"), "\nz"),
        (("a", "3 s"), ("a", "4 s"), "\n4 s"),
        (("a",), (), ""),
    ],
)
def test_what_is_new(before: tuple[str, ...], now: tuple[str, ...], new: str) -> None:
    assert added(before, now) == new


HINT = " (press TAB for no echo)"


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        (("a", PROMPT + HINT), ("a", PROMPT + " ***"), "***"),
        (("a", PROMPT + HINT), ("a", PROMPT), ""),
        (("a", PROMPT + " ***"), ("a", PROMPT), ""),
        (("a", PROMPT + HINT), ("a", PROMPT, "No key", PROMPT + HINT), f"\nNo key\n{PROMPT}{HINT}"),
        (("a", PROMPT + HINT), (PROMPT + " ***", "No key"), "***\nNo key"),
        (("a", PROMPT, "b"), ("a", PROMPT, "c"), "\nc"),
        (("a", PROMPT + HINT), ("a", "b", PROMPT + HINT), "\nb"),
    ],
)
def test_what_is_taken_back_behind_a_prompt_is_no_line_of_its_own(
    before: tuple[str, ...], now: tuple[str, ...], new: str
) -> None:
    assert added(before, now, [ASKS.regex]) == new


WORDS = st.text(alphabet="ab:# ", min_size=1, max_size=6).filter(lambda text: text.strip() == text)


@given(st.lists(WORDS, max_size=20), st.lists(WORDS, min_size=1, max_size=4, unique=True))
def test_what_is_written_below_is_new(before: list[str], more: list[str]) -> None:
    """Whatever was there: no line that came is missing, as long as it does not repeat what stands there."""
    terminal = Terminal()
    terminal.write("\n".join(before))
    old = tuple(row.rstrip() for row in terminal.rows if row.strip())
    terminal.write("".join("\n" + line + "!" for line in more))
    new = tuple(row.rstrip() for row in terminal.rows if row.strip())
    assert added(old, new) == "".join(f"\n{line}!" for line in more)


def test_a_text_console_is_a_serial_one(clock: Clock) -> None:
    """Also its last line, which goes on."""
    display = TextScreen(clock, b"Loading the system\nhost login:")
    display.at(6.0, lambda: display.show(b"s are counted\nhost login: "))
    line = line_of(display)
    assert heard(line, 5.0) == "\nLoading the system\nhost login:"
    assert heard(line, 5.0) == "s are counted\nhost login:"
    assert line.tail(11) == "host login:"


@pytest.mark.parametrize("long", ["y" * 80, "y" * 160])
def test_a_shell_below_a_line_that_ends_at_the_edge(long: str, clock: Clock) -> None:
    """Once, however long it stands."""
    display = TextScreen(clock, f"Loading\n{long}".encode(), after=1.0)
    line = line_of(display)
    heard(line, 3.0)
    display.at(0.0, lambda: display.show(b"\n(initramfs) "))
    display.at(4.0, lambda: display.show(b"\nand more"))
    said = heard(line, 10.0)
    # As the rest of the long line, and as a line.
    assert said.startswith("(initramfs)\n(initramfs)\n")
    assert said.count("(initramfs)") == 2
    assert "and more" in said
    display.show(f"\n{long}\nno shell".encode())
    assert "\nno shell\n" not in heard(line, 5.0)


def test_a_long_console_that_scrolls(clock: Clock) -> None:
    display = TextScreen(clock, "".join(f"line {number}\n" for number in range(24)).encode(), after=1.0)
    line = line_of(display)
    heard(line, 2.0)
    display.at(1.0, lambda: display.show(b"line 24\nline 25\nThe disk was not unlocked."))
    assert heard(line, 3.0).split() == ["line", "24", "line", "25", "The", "disk", "was", "not", "unlocked."]


def test_a_console_that_is_drawn_anew_says_nothing_new(clock: Clock) -> None:
    """As when another driver takes the screen over: the old prompt is none that came again."""
    display = TextScreen(clock, b"The disk was not unlocked.\nPlease enter passphrase for disk root:", after=1.0)
    line = line_of(display)
    assert PROMPT in heard(line, 3.0)
    line.send(b"wrong\r")
    same = display.frame
    display.at(0.5, lambda: setattr(display, "frame", Frame(640, 400, bytes(640 * 400 * 3))))
    display.at(3.0, lambda: setattr(display, "frame", same))
    assert heard(line, 10.0) == ""


# -- keys


def test_keys_are_pressed(clock: Clock) -> None:
    display = TextScreen(clock, b"x")
    line = line_of(display)
    line.send(b"Pa$ (6*7)\r")
    line.send(b"\r")
    assert display.typed == ["Pa$ (6*7)", ""]
    with pytest.raises(UsageError, match="no key of the US layout"):
        line.send("ä\r".encode())
    assert display.line == "", "nothing of it is typed"


def test_many_keys_are_pressed_in_time(clock: Clock) -> None:
    """QEMU drops what does not fit its queue."""
    display = TextScreen(clock, b"x")
    line = line_of(display)
    at: list[float] = []
    display.pressed = lambda text: at.append(clock.now)  # type: ignore[method-assign]
    line.send(b"$" * 500 + b"\r")
    assert display.typed == ["$" * 500]
    # Eight events each, which take 40 ms to be handed on.
    assert max(8 * number - 8 * (now - at[0]) / 0.04 for number, now in enumerate(at)) < 1024 - 8


def test_a_machine_that_is_off(clock: Clock) -> None:
    display = TextScreen(clock, b"x")
    line = line_of(display)
    display.off = True
    assert line.take_unread(10, 5.0) == b""
    assert line.closed
    with pytest.raises(OSError, match="powered off"):
        line.send(b"x\r")


def test_a_monitor_that_gives_no_picture(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment, while its process ends; not for good."""
    display = TextScreen(clock, b"x")

    def fails() -> Frame:
        raise QmpFailed("QEMU's monitor went silent")

    monkeypatch.setattr(display, "grab", fails)
    line = line_of(display)
    assert line.take_unread(10, 5.0) == b""
    with pytest.raises(QmpFailed):
        line.take_unread(10, 60.0)


def test_the_transcript(clock: Clock, tmp_path: Path) -> None:
    display = TextScreen(clock, b"one two three\nfour five", after=1.0)
    line = line_of(display, transcript=tmp_path / "screen.log", hide=lambda text: text.replace("two", "(hidden)"))
    heard(line, 3.0)
    assert (tmp_path / "screen.log").read_text() == "[1.0] one (hidden) three\n[1.0] four five\n"
    display.at(1.0, lambda: display.show(b"\nsix seven"))
    (tmp_path / "screen.log").unlink()
    (tmp_path / "screen.log").mkdir()
    with pytest.raises(HostError, match=r"evidence cannot be written to .*screen\.log"):
        heard(line, 3.0)


# -- pictures


def test_a_console_in_a_font_that_only_ocr_reads(clock: Clock) -> None:
    """What it says once more below is new, however it is read; but that it asks again is not proven by that."""
    pictures = Pictures()
    display = Plymouth(clock, pictures, ("Loading", PROMPT), lambda typed: [])
    display.bullets = False
    line = line_of(display, pictures)
    assert heard(line, 6.0) == f"\nLoading\n\n{PROMPT}\n"
    line.send(b"wrong\r")
    shown = ("Loading", "P1ease enter passphrase for disk root:", "The disk was not unlocked.", PROMPT)
    display.at(2.0, lambda: display.show(pictures.make(*shown)))
    assert heard(line, 6.0) == "\nThe disk was not unlocked.\n"
    line.send(b"wrong\r")
    assert heard(line, 6.0) == ""
    display.at(2.0, lambda: display.show(pictures.make(*shown, "The disk was n0t unlocked", PROMPT)))
    assert heard(line, 6.0) == "\nThe disk was n0t unlocked\n"


def test_lines_that_are_read_a_little_differently_are_not_new() -> None:
    known = ("Please enter passphrase for disk root:", "/ #", "host login:")
    lines = ["Please enter passphrase for d1sk r00t:", "please enter passphrase for disk root;", "/#", "/ #"]
    assert unlike(lines[:1] + lines[2:], [known]) == ["/#"]
    assert unlike(lines[1:], [("x",), known]) == ["/#"]
    # Below the first one: it was there once.
    assert unlike(lines, [known, known]) == [lines[1], "/#"]
    assert unlike(["Please enter TPM2 PIN:", "root@host:~#", "osgates-42"], [known]) == [
        "Please enter TPM2 PIN:",
        "root@host:~#",
        "osgates-42",
    ]


def asked_again(clock: Clock, guest: Any, *texts: str, **more: Any) -> str:
    """What is heard after the last of `texts` was typed at a prompt that stands. `guest` gets the pictures."""
    pictures = Pictures()
    display = Plymouth(clock, pictures, (PROMPT,), lambda typed: guest(pictures), **more)
    line = line_of(display, pictures)
    said = heard(line, 6.0)
    assert said == f"\n{PROMPT}\n"
    for text in texts or ("wrong",):
        line.send(text.encode() + b"\r")
        assert display.typed[-1] == text
        said = heard(line, 20.0)
    return said


@pytest.mark.parametrize("after", [0.0, 0.3, 1.0, 2.0])
def test_bullets_that_came_and_went(after: float, clock: Clock) -> None:
    """Also at once: it is the picture that was read already."""
    assert asked_again(clock, lambda pictures: [(after, pictures.make(PROMPT))]) == f"\n{PROMPT}\n"


def starting_up(pictures: Pictures) -> list[tuple[float, Frame]]:
    return [(1.0, pictures.make("Starting up")), (8.0, pictures.make(PROMPT))]


def test_a_prompt_that_goes_and_comes(clock: Clock) -> None:
    """What is not shown is not known to have arrived; Enter alone is, once keys are."""
    again = f"\n{PROMPT}\n"
    assert asked_again(clock, starting_up) == f"\nStarting up\n{again}"
    assert asked_again(clock, starting_up, "wrong", "").endswith(again)
    assert asked_again(clock, starting_up, "") == "\nStarting up\n"
    assert asked_again(clock, starting_up, "wrong", "wrong", bullets=False) == ""


def test_a_prompt_that_goes_late_did_not_go_by_enter(clock: Clock) -> None:
    late = lambda pictures: [(at + 4.0, frame) for at, frame in starting_up(pictures)]  # noqa: E731
    assert asked_again(clock, late, "wrong", "") == ""
    assert asked_again(clock, late, "wrong") == f"\nStarting up\n\n{PROMPT}\n"


def test_another_driver_that_draws_it_anew_is_no_answer(clock: Clock) -> None:
    """Nothing at all is shown in between."""
    blank = Frame(200, 64, bytes(200 * 64 * 3))
    guest = lambda pictures: [(1.0, pictures.make(PROMPT)), (2.0, blank), (4.0, pictures.make(PROMPT))]  # noqa: E731
    typed: list[None] = []

    def once(pictures: Pictures) -> list[tuple[float, Frame]]:
        typed.append(None)
        return guest(pictures)[: 1 if len(typed) == 1 else 3]

    assert asked_again(clock, once, "wrong") == f"\n{PROMPT}\n"
    assert asked_again(clock, once, "wrong", "") == ""


@pytest.mark.parametrize("read", [("noise and more of it",), (PROMPT, "noise and more of it")])
def test_a_hint_beside_the_prompt_is_no_answer_to_enter_alone(read: tuple[str, ...], clock: Clock) -> None:
    """Whether OCR misses the prompt that stands there, or not."""
    typed: list[None] = []

    def guest(pictures: Pictures) -> list[tuple[float, Frame]]:
        typed.append(None)
        hint = pictures.make(PROMPT, "Press F1 for help on this")
        pictures.read[hint.digest] = read
        return [(1.0, pictures.make(PROMPT)), *([(1.5, hint), (6.0, pictures.make(PROMPT))] if typed[1:] else [])]

    assert asked_again(clock, guest, "wrong", "") == "\nnoise and more of it\n"


@pytest.mark.parametrize("begin", [8.2, 8.6, 9.0, 10.0, 12.0])
def test_a_hint_that_blinks_is_no_answer(begin: float, clock: Clock) -> None:
    """A keyboard that nobody listens to, and a picture that stood still until something was typed."""
    pictures = Pictures()
    display = Plymouth(clock, pictures, (PROMPT,), lambda typed: [])
    display.deaf = True
    hint, plain = pictures.make(PROMPT, "Press F1 for help on this"), pictures.make(PROMPT)
    for number in range(20):
        shown = plain if number % 2 else hint
        display.at(begin + number * 2.0, lambda shown=shown: display.show(shown))  # type: ignore[misc]
    line = line_of(display, pictures)
    heard(line, 8.0)
    for _ in range(2):
        line.send(b"wrong\r")
        assert PROMPT not in heard(line, 20.0)


def test_a_prompt_that_has_not_stood_for_long_is_no_answer(clock: Clock) -> None:
    pictures = Pictures()
    display = Plymouth(clock, pictures, (PROMPT,), lambda typed: [(2.0, pictures.make(PROMPT))])
    line = line_of(display, pictures)
    assert heard(line, 3.5) == f"\n{PROMPT}\n"
    line.send(b"wrong\r")
    assert heard(line, 20.0) == ""


def test_a_prompt_that_is_drawn_in_steps(clock: Clock) -> None:
    pictures = Pictures()
    whole = pictures.make(PROMPT, spinner=2)
    display = Plymouth(clock, pictures, (PROMPT,), lambda typed: [(2.0, whole)])
    display.at(4.0, lambda: display.show(whole))
    line = line_of(display, pictures)
    assert heard(line, 9.0) == f"\n{PROMPT}\n"
    line.send(b"wrong\r")
    assert heard(line, 20.0) == f"\n{PROMPT}\n"


@pytest.mark.parametrize(
    "read",
    [
        ("Please enter passphrase for disk root: Incorrect passphrase",),
        ("Please enter passphrase for disk root: eeeeeeeeeeeeeeeeeeeee",),
        (PROMPT, PROMPT),
        ("Please", "enter passphrase for disk root"),
        ("A picture that says: enter passphrase",),
    ],
)
def test_a_prompt_that_is_read_in_another_way_is_no_answer(read: tuple[str, ...], clock: Clock) -> None:
    pictures = Pictures()
    display = Plymouth(clock, pictures, (PROMPT,), lambda typed: [])
    display.deaf = True
    line = line_of(display, pictures)
    heard(line, 8.0)
    line.send(b"\r")
    other = pictures.make(PROMPT, spinner=3)
    pictures.read[other.digest] = read
    display.at(3.0, lambda: display.show(other))
    assert "enter passphrase" not in heard(line, 20.0)


@pytest.mark.parametrize(("wrong", "right"), [("osgates-4Z", "osgates-42"), ("(initramfe)", "(initramfs)")])
def test_a_misread_line_hides_no_shell(wrong: str, right: str, clock: Clock) -> None:
    pictures = Pictures()
    display = Plymouth(clock, pictures, ("Starting up",), lambda typed: [])
    for number, text in enumerate((wrong, right, right)):
        display.at(6.0 + 4 * number, lambda text=text, n=number: display.show(pictures.make(text, spinner=n)))  # type: ignore[misc]
    line = line_of(display, pictures)
    assert heard(line, 30.0).split("\n")[3:] == ["", wrong, "", right, ""][1:]


def test_bullets_that_stay_are_no_answer(clock: Clock) -> None:
    assert asked_again(clock, lambda pictures: []) == ""


def test_a_word_of_refusal_comes_with_the_prompt(clock: Clock) -> None:
    """The field is empty again: whatever else is new is told."""
    guest = lambda pictures: [(2.0, pictures.make(PROMPT, "Incorrect passphrase"))]  # noqa: E731
    assert asked_again(clock, guest) == f"\nIncorrect passphrase\n\n{PROMPT}\n"


def test_a_picture_that_moves_by_itself_proves_nothing(clock: Clock) -> None:
    """The bullets cannot be told from it."""
    pictures = Pictures()
    display = Plymouth(clock, pictures, (PROMPT,), lambda typed: [(2.0, pictures.make(PROMPT))])
    for number in range(400):
        display.at(2.5 + number * 0.3, lambda number=number: display.show(pictures.make(PROMPT, spinner=number)))  # type: ignore[misc]
    line = line_of(display, pictures)
    heard(line, 10.0)
    line.send(b"wrong\r")
    assert heard(line, 30.0) == ""


def test_a_prompt_that_was_not_read_for_once_is_no_answer(clock: Clock) -> None:
    """OCR misses a line now and then."""
    pictures = Pictures()
    display = Plymouth(clock, pictures, (PROMPT,), lambda typed: [])
    display.deaf = True
    line = line_of(display, pictures)
    heard(line, 6.0)
    line.send(b"wrong\r")
    again = pictures.make(PROMPT, spinner=5)
    unread = pictures.make(PROMPT, spinner=3)
    pictures.read[unread.digest] = ("noise",)
    for at, frame in ((1.0, unread), (4.0, again)):
        display.at(at, lambda frame=frame: display.show(frame))  # type: ignore[misc]
    assert heard(line, 20.0) == "\nnoise\n"


def test_another_prompt_is_new(clock: Clock) -> None:
    guest = lambda pictures: [(2.0, pictures.make("Now enter passphrase number two, of the other disk"))]  # noqa: E731
    assert "number two" in asked_again(clock, guest)


def test_from_a_picture_to_text_and_back(clock: Clock) -> None:
    """What the text console said before is not new then, and what is below it is."""
    pictures = Pictures()
    display = TextScreen(clock, b"Loading the system", after=1.0)
    line = line_of(display, pictures)
    drawn = pictures.make(PROMPT)
    display.at(3.0, lambda: setattr(display, "frame", drawn))
    display.at(6.0, lambda: display.show(b"\nhost login: "))
    assert heard(line, 10.0) == f"\nLoading the system\n{PROMPT}\n\nhost login:"


def test_changed() -> None:
    pictures = Pictures()
    one, other = pictures.make("a"), pictures.make("a", bullets=3)
    assert changed(one, one) is None
    assert changed(one, other) == (20, 40, 52, 41)
    assert changed(one, Frame(1, 1, b"abc")) is None


MISREADINGS: list[Callable[[tuple[str, ...]], tuple[str, ...]]] = [
    lambda lines: lines,
    lambda lines: lines * 2,
    lambda lines: tuple(f"{line} Incorrect passphrase, and a lot of words more" for line in lines),
    lambda lines: tuple(part for line in lines for part in (line[:9], line[7:])),
    lambda lines: tuple(line[::-1] for line in lines),
]
FRAMES = st.lists(
    st.tuples(st.sampled_from(["", PROMPT, "other text", "x"]), st.integers(0, 5), st.sampled_from(MISREADINGS)),
    max_size=12,
)


@settings(deadline=None)
@given(FRAMES, st.sampled_from(["", "wrong"]), st.booleans())
def test_whatever_it_shows_no_unheard_key_makes_it_ask_again(
    shown: list[tuple[str, int]], text: str, early: bool
) -> None:
    """A keyboard that nobody listens to, and a picture with or without a prompt that never comes back as it was."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen_line, "time", clock)
        pictures = Pictures()
        display = Plymouth(clock, pictures, (PROMPT,), lambda typed: [])
        display.deaf = True
        for number, (line_shown, spinner, misread) in enumerate(shown):
            lines = (line_shown,) if line_shown else ()
            frame = pictures.make(*lines, spinner=spinner + 1)
            pictures.read[frame.digest] = misread(lines)
            display.at(8.0 + number, lambda frame=frame: display.show(frame))  # type: ignore[misc]
        line = line_of(display, pictures)
        heard(line, 2.2 if early else 7.0)
        # As a dialogue does before it types.
        line.take_unread(1 << 16, 0.0)
        line.send(text.encode() + b"\r")
        assert not ASKS.regex.search(heard(line, 40.0))
