"""Text of a guest, made harmless; alarms."""

from __future__ import annotations

import re
import threading
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.vm.text import one_line, printable, strip_escapes
from pytest_osgates.vm.watch import CARRY, LONGEST_LINE, Alarm, Pattern, Watcher

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# Arbitrary text, and text of the pieces of which escape sequences are made.
HOSTILE = st.one_of(
    st.text(),
    st.text(
        st.sampled_from("\x1b\x9b\x9d\x90\x07[]P\\X^_;:?0123456789 /!mHJKhl~@ab\r\n\t\0\x7f" + BIDI), max_size=60
    ),
)


@given(HOSTILE)
def test_nothing_printable_acts_on_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not [char for char in shown if char not in "\n\t" and unicodedata.category(char) in {"Cc", "Cf", "Cs"}]
    assert not set(shown) & set(BIDI + "\u2028\u2029")
    shown.encode()


@given(HOSTILE, st.integers(10, 50))
def test_printable_is_bounded(text: str, limit: int) -> None:
    # At most six characters for one: \uXXXXX.
    assert len(printable(text, limit)) <= limit * 8 + 3
    if len(text) > limit:
        assert printable(text, limit).endswith("...")


@given(HOSTILE)
def test_one_line_is_one_line(text: str) -> None:
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert "\n" not in shown
    assert "\t" not in shown
    assert shown == shown.strip()


@given(HOSTILE)
def test_stripping_leaves_no_escape_and_is_done_once(text: str) -> None:
    stripped = strip_escapes(text)
    assert "\x1b" not in stripped
    assert "\x9b" not in stripped
    assert strip_escapes(stripped) == stripped


@given(st.text(st.characters(exclude_characters="\x1b\x9b")))
def test_text_without_escapes_is_left_alone(text: str) -> None:
    assert strip_escapes(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[?2004h$ \x1b[K", "$ "),
        ("\x1b]0;title\x07shell", "shell"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0;2\x1b\\sixel", "sixel"),
        ("\x1b(Btext\x1b7\x1b8", "text"),
        ("\x9b31mred\x9b", "red"),
        ("\x1b[31", "31"),
        ("\x1b\x1b\x1b", ""),
        ("a\x1b", "a"),
        ("\x9b\x1b[m0m", "0m"),
        ("[  OK  ] Started", "[  OK  ] Started"),
    ],
)
def test_known_sequences(text: str, left: str) -> None:
    assert strip_escapes(text) == left


@pytest.mark.parametrize(
    "piece",
    [
        "\x1b[",
        "\x1b[;",
        "\x1b[" + ";" * 5000,
        "\x1b]",
        "\x1b]" + "x" * 5000,
        "\x1bP\x1b",
        "\x9b",
        "\x9b0",
        "\x1b   ",
        "\x1b]\x1bP",
    ],
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    text = (piece * (100_000 // len(piece) + 1))[:100_000]
    begun = time.process_time()
    strip_escapes(text)
    printable(text)
    one_line(text)
    assert time.process_time() - begun < 1.0


def test_what_is_made_visible() -> None:
    assert printable("a\u202eb\u200bc\0d\x7f\xad") == r"a\u202eb\u200bc\x00d\x7f\xad"
    assert printable("tab\there\nnext 日本 é") == "tab\there\nnext 日本 é"
    assert printable("\udc80") == r"\udc80"
    assert one_line("  a\r\n\tb\u2028c\x85d  ") == "a b c d"


def patterns() -> list[Pattern]:
    return [
        Pattern("panic", re.compile(r"Kernel panic"), fatal=True),
        Pattern("oops", re.compile(r"^BUG: "), fatal=False),
    ]


def test_one_alarm_for_a_flood() -> None:
    watcher = Watcher(patterns())
    for number in range(100):
        watcher.scan("serial", f"BUG: number {number}")
        watcher.scan("kmsg", f"BUG: number {number}")
    assert [(alarm.name, alarm.source, alarm.line) for alarm in watcher.alarms] == [
        ("oops", "serial", "BUG: number 0"),
        ("oops", "kmsg", "BUG: number 0"),
    ]
    assert watcher.fatal is None


def test_colours_do_not_hide_a_failure() -> None:
    watcher = Watcher(patterns())
    watcher.scan("serial", "\x1b[31mKernel\x1b[0m panic - not syncing")
    fatal = watcher.fatal
    assert isinstance(fatal, Alarm)
    assert (fatal.name, fatal.line, fatal.fatal) == ("panic", "Kernel panic - not syncing", True)


def test_the_first_fatal_one_is_the_one_named() -> None:
    watcher = Watcher(patterns())
    watcher.scan("serial", "BUG: first, not fatal")
    watcher.raise_alarm("reset", "qemu", "  reset \n", fatal=True)
    watcher.scan("serial", "Kernel panic")
    assert watcher.fatal is not None
    assert (watcher.fatal.name, watcher.fatal.line) == ("reset", "reset")
    assert [alarm.name for alarm in watcher.alarms] == ["oops", "reset", "panic"]


def test_times_count_from_power_on() -> None:
    watcher = Watcher(patterns())
    watcher._epoch -= 100.0
    watcher.scan("serial", "BUG: x")
    watcher.power_on()
    watcher.scan("serial", "Kernel panic")
    at = {alarm.name: alarm.at for alarm in watcher.alarms}
    assert at["oops"] >= 100.0
    assert 0.0 <= at["panic"] < 50.0


def test_a_line_is_looked_at_up_to_a_bound() -> None:
    watcher = Watcher(patterns())
    watcher.scan("serial", "x" * (LONGEST_LINE + CARRY + 3) + "Kernel panic")
    assert watcher.alarms == ()
    watcher.scan("screen", "x" * LONGEST_LINE + "Kernel panic")
    assert "Kernel panic" in watcher.alarms[0].line
    assert len(watcher.alarms[0].line) <= 1000
    watcher = Watcher(patterns())
    watcher.scan("serial", "Kernel panic" + "x" * 10_000)
    assert watcher.fatal is not None
    assert len(watcher.fatal.line) == 1000


def test_several_threads() -> None:
    watcher = Watcher([Pattern(str(number), re.compile(rf"^{number}$"), fatal=False) for number in range(20)])
    threads = [
        threading.Thread(target=lambda source=source: [watcher.scan(source, str(n)) for n in range(20)])
        for source in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(watcher.alarms) == 80
