"""The screen and the keyboard as a console for `Dialogue`: what is new on each picture, and text typed by keys.

A text console is read glyph by glyph, and what was added to it is what a serial console would have said. Any other
picture is read by OCR, which misreads: a line counts as new only if it is unlike all that was there, or is there more
often; and once something was typed, a prompt of a kind that was there before counts again only if the picture proves
that what was typed arrived, and was taken.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pytest_osgates.vm.dialogue import Sign
from pytest_osgates.vm.errors import MORE_ROOM, GuestFailed, HostError, QmpFailed
from pytest_osgates.vm.keyboard import keys_of
from pytest_osgates.vm.ocr import Reader, Reading
from pytest_osgates.vm.screen import Frame
from pytest_osgates.vm.text import printable

# Between two looks.
LOOK_SECONDS = 0.5
# A picture that has not changed for so long, but for a cursor, stands still.
STILL_SECONDS = 1.0
# QEMU presses one key after the other. An event takes a hundredth of a second (ui/input.c); a shifted key has four.
KEY_SECONDS = 0.1
# Of more than 1024 events QEMU drops the newest without a word (ui/input.c); a shifted key has eight.
_KEYS_AT_ONCE = 64
# One that moves all the time is read so often.
MOVING_SECONDS = 5.0
# In which what was typed is shown, if it is; so long nothing else may have moved before.
SHOWN_SECONDS = 3.0
# So many are typed first, and the rest once they are shown. One or two may be no larger than a cursor.
_FIRST_KEYS = 4
# After Enter alone the prompt may be back before the next look. Between two of these, how many pictures are kept, and
# how long it must have been away: for one picture, it may only have been half drawn.
PASSING_SECONDS = 0.02
_PASSING = 8
_AWAY_SECONDS = 0.1
# What a prompt is called, and what no misreading of the same line may hide.
ASKING = ("pin", "prompt")
TELLING = ("shell", "login", "locked", "password", "emergency", "stopped")
# As long as QEMU may owe a picture, while its process ends for instance.
_BLIND_SECONDS = 30.0
_ALIKE = 0.8
# Of fewer letters and digits, nothing is alike but the same.
_SHORT = 4
_READINGS = 3
_MOST_SAID = 1 << 16
_TRANSCRIPT_LIMIT = 8 << 20


class Grabs(Protocol):
    """What shows a picture."""

    def grab(self) -> Frame:
        """The picture now. :raise QmpFailed: there is none. :raise GuestFailed: the machine is off."""
        ...


class Pictured(Protocol):
    """What is needed of a machine."""

    @property
    def screen(self) -> Grabs:
        """The display."""
        ...

    def lit(self, frame: Frame) -> bool:
        """Whether the guest drew anything."""
        ...

    def send_keys(self, *keys: str) -> None:
        """Press keys together."""
        ...


@dataclass
class _Typed:
    """Something was typed at the picture `before`. `known`: what it said, and those before it. `still`: it stood
    still. `after`: the picture with what was typed on it, None where that is not shown. `entered`: when Enter was
    pressed. `moved`: the picture has changed soon after it. `away`: the prompt has gone since.

    `alone`: it was Enter alone, at a picture that stood still. `passing`: the first other pictures after it.
    `left`: since when it is another one. `longest`: for how long it was, in seconds."""

    before: Frame
    known: tuple[tuple[str, ...], ...]
    still: bool
    after: Frame | None = None
    entered: float | None = None
    moved: bool | None = None
    away: bool = False
    alone: bool = False
    passing: list[Frame] = field(default_factory=list)
    left: float | None = None
    longest: float = 0.0


class ScreenLine:
    """`Line` over a machine's screen. `signs`: what is looked for, of which `ASKING` and `TELLING` count here;
    `patience`: how much longer everything takes here; `transcript`: receives all that was new, as `hide` makes it
    fit to be kept; `pause`: waits so many seconds."""

    # A picture is there to be looked at, and nothing is put aside.
    dropped = 0

    def __init__(
        self,
        machine: Pictured,
        reader: Reader,
        signs: Sequence[Sign] = (),
        *,
        patience: float = 1.0,
        transcript: Path | None = None,
        hide: Callable[[str], str] = str,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._machine = machine
        self._reader = reader
        self._prompts = tuple(sign for sign in signs if sign.name in ASKING)
        self._telling = tuple(sign for sign in signs if sign.name in TELLING)
        self._shells = tuple(sign for sign in signs if sign.name == "shell")
        self._patience = patience
        self._transcript = transcript
        self._hide = hide
        self._written = 0
        self._pause = threading.Event().wait if pause is None else pause
        self._begun = self._since = self._seen_at = time.monotonic()
        self._frame: Frame | None = None
        # The last one that was read, and when.
        self._read = ""
        self._read_at = self._begun
        self._reading = Reading()
        # Of the text console, when it was last to be seen.
        self._console: tuple[str, ...] = ()
        self._wrapped: tuple[str, ...] = ()
        self._recent: deque[tuple[str, ...]] = deque(maxlen=_READINGS)
        self._typed: _Typed | None = None
        # The kinds of prompts that were there so far, and when the last one was read first, or again.
        self._asked: set[str] = set()
        self._asked_at: float | None = None
        self._asking = False
        self._pressed = 0
        # Once it was seen that keys arrive.
        self._shown = False
        self._unread = b""
        self._said = ""
        self.closed = False

    @property
    def exact(self) -> bool:
        """Whether the last picture with anything on it was a text console, read glyph by glyph."""
        return self._reading.exact

    @property
    def asking(self) -> bool:
        """Whether there was a prompt on the picture that was read last."""
        return self._asking

    def tail(self, limit: int = 4096) -> str:
        """The newest of what was new, at most `limit` characters."""
        return self._said[-limit:]

    def take_unread(self, size: int, timeout: float) -> bytes:
        """Up to `size` bytes of what is new on the screen; b"" after `timeout` seconds, or once the machine is off.

        :raise HostError: there is no picture, or it cannot be read.
        """
        deadline = time.monotonic() + timeout
        while not self._unread:
            # Who does not wait wants to know what there is at this moment.
            self._look(now=timeout <= 0)
            left = deadline - time.monotonic()
            if self._unread or self.closed or left <= 0:
                break
            self._pause(min(PASSING_SECONDS if self._may_pass() else LOOK_SECONDS, left))
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    def send(self, data: bytes) -> None:
        """Type `data` by keys of the US layout; a carriage return is Enter.

        :raise OSError: the machine is off.
        :raise HostError: there is no picture.
        :raise UsageError: the layout has no such character.
        """
        text, enter, _ = data.decode().partition("\r")
        keys = keys_of(text)
        self._typed = None
        if self._frame is not None:
            typed = self._typed = _Typed(self._frame, tuple(self._recent), not self._reading.exact and self._stands())
            # One or two bullets may be no larger than a cursor.
            first = min(_FIRST_KEYS, max(2, len(keys) // 2))
            if typed.still and len(keys) > first:
                self._show(typed, keys[:first], keys[first:])
                keys = ()
            elif keys:
                typed.still = False
        for pressed in keys:
            self._press(*pressed)
        if enter:
            self._press("ret")
            if self._typed is not None:
                self._typed.entered = time.monotonic()
                self._typed.alone = not text and self._typed.still

    def _stands(self) -> bool:
        """Nothing but a cursor has moved since soon after the prompt was read: it may be drawn in steps."""
        if self._asked_at is None or self._since > self._asked_at + self._shown_in():
            return False
        return time.monotonic() - self._since >= self._shown_in()

    def _shown_in(self) -> float:
        return SHOWN_SECONDS * self._patience

    def _show(self, typed: _Typed, first: Sequence[tuple[str, ...]], rest: Sequence[tuple[str, ...]]) -> None:
        """Press `first`, then `rest`. Each must be seen, and more of it by `rest`: anything may move once."""
        for pressed in first:
            self._press(*pressed)
        begun = self._await_shown(len(first), lambda frame: not frame.nearly(typed.before))
        box = None if begun is None else changed(typed.before, begun)
        for pressed in rest:
            self._press(*pressed)
        typed.still = box is not None
        if box is None:
            return
        typed.after = self._await_shown(len(rest), lambda frame: _grown(box, changed(typed.before, frame)))
        typed.still = typed.after is not None
        if typed.still:
            # A field that is empty again at once is the picture that was read already.
            self._read = ""

    def _press(self, *keys: str) -> None:
        try:
            self._machine.send_keys(*keys)
        except GuestFailed as error:
            self.closed = True
            raise OSError(errno.EPIPE, error.what) from error
        self._pressed += 1
        if self._pressed % _KEYS_AT_ONCE == 0:
            self._pause(_KEYS_AT_ONCE * KEY_SECONDS)

    def _grab(self) -> Frame | None:
        now = time.monotonic()
        try:
            frame = self._machine.screen.grab()
        except GuestFailed:
            self.closed = True
            return None
        except QmpFailed:
            # QEMU may be on its way out: who asks whether it lives will say so.
            if now - self._seen_at >= _BLIND_SECONDS:
                raise
            return None
        self._seen_at = now
        return frame

    def _await_shown(self, count: int, shows: Callable[[Frame], bool]) -> Frame | None:
        """The picture that `shows` that so many keys were typed; None: there is none in time."""
        pressed = time.monotonic() + count * KEY_SECONDS
        while not self.closed:
            frame, now = self._grab(), time.monotonic()
            # The last key makes the whole difference.
            if frame is not None and now >= pressed and shows(frame):
                return frame
            if now >= pressed + self._shown_in():
                break
            self._pause(KEY_SECONDS)
        return None

    def _look(self, *, now: bool) -> None:
        """A text console is read as it is; a picture once it stands still, for it may be half drawn, or `now`."""
        frame, at = self._grab(), time.monotonic()
        if frame is None:
            return
        if self._frame is None or not frame.nearly(self._frame):
            self._since = at
        self._frame = frame
        self._moves(frame, at)
        typed = self._typed
        if typed is not None and typed.alone and self._passes(typed, frame, at):
            return
        if frame.digest == self._read:
            return
        reading = self._reader.glance(frame) if self._machine.lit(frame) else Reading()
        if reading is None:
            kept = typed is not None and self._may_pass() and len(typed.passing) < _PASSING
            if not now and at - self._since < STILL_SECONDS and (kept or at - self._read_at < MOVING_SECONDS):
                return
            reading = self._reader.read(frame)
        self._read, self._read_at = frame.digest, time.monotonic()
        if not reading.lines:
            # It may be drawn anew, and then nothing of it is new.
            self._asking = False
            return
        self._add(self._news(frame, reading))
        asked = {sign.name for line in reading.lines for sign in self._asks(line)}
        if asked - self._asked:
            self._asked_at = at
        self._asked |= asked
        self._asking = bool(asked)
        self._reading = reading

    def _moves(self, frame: Frame, at: float) -> None:
        typed = self._typed
        if typed is None or typed.entered is None or typed.moved is not None:
            return
        if not frame.nearly(typed.after or typed.before):
            typed.moved = at - typed.entered <= self._shown_in()

    def _may_pass(self) -> bool:
        """Whether Enter alone was pressed a moment ago."""
        typed = self._typed
        if typed is None or not typed.alone or typed.entered is None:
            return False
        return time.monotonic() - typed.entered <= self._shown_in()

    def _passes(self, typed: _Typed, frame: Frame, at: float) -> bool:
        """Keep what is to be seen after Enter alone, which a guest may refuse at once; once the picture stands as it
        was before, read what was kept, one at a look. Whether that was all of this look."""
        if not frame.nearly(typed.before):
            typed.left = at if typed.left is None else typed.left
            typed.longest = max(typed.longest, at - typed.left)
            if (
                self._may_pass()
                and len(typed.passing) < _PASSING
                and (not typed.passing or typed.passing[-1].rgb != frame.rgb)
            ):
                typed.passing.append(frame)
            return False
        typed.left = None
        if not typed.passing or at - self._since < STILL_SECONDS:
            return False
        passed = typed.passing.pop(0)
        lines = self._reader.read(passed).lines if self._machine.lit(passed) else ()
        # Nothing that stood there for an instant is lost.
        self._add("".join(f"\n{line}\n" for line in self._misread(lines, [*self._recent, *typed.known])))
        if lines and not any(map(self._asks, lines)):
            typed.away = typed.away or self._covers_prompt(typed, passed)
        # The prompt is back, and the picture the one that was read already.
        self._read = ""
        return True

    def _asks(self, line: str) -> list[Sign]:
        return [sign for sign in self._prompts if sign.regex.search(line)]

    def _news(self, frame: Frame, reading: Reading) -> str:
        if reading.exact:
            before, self._console = self._console, reading.lines
            more = Counter(reading.wrapped) - Counter(self._wrapped)
            self._wrapped = reading.wrapped
            # A shell's prompt may come right after a line that ends at the edge.
            shells = (row for row in more if any(sign.regex.search(row) for sign in self._shells))
            return added(before, reading.lines, [sign.regex for sign in self._prompts]) + "".join(
                f"\n{row}\n" for row in shells
            )
        known = [self._console, *self._recent, *(self._typed.known if self._typed is not None else ())]
        self._recent.append(reading.lines)
        told = set(unlike(reading.lines, known)) | set(self._misread(reading.lines, known))
        new = dict.fromkeys(line for line in reading.lines if line in told)
        typed = self._typed
        if typed is not None:
            # However they are read: split, twice, or with other words in the same line.
            asking = [line for line in reading.lines if any(sign.name in self._asked for sign in self._asks(line))]
            new = {line: None for line in new if line not in asking}
            if not any(map(self._asks, reading.lines)):
                typed.away = typed.away or self._covers_prompt(typed, frame)
            elif self._taken(typed, frame):
                self._typed = None
                self._asked_at = time.monotonic()
                new |= dict.fromkeys(asking)
        return "".join(f"\n{line}\n" for line in new)

    def _misread(self, lines: Iterable[str], known: Iterable[Sequence[str]]) -> list[str]:
        """Those of `lines` that tell something which no line of `known` told, however alike."""
        before = [line for reading in known for line in reading]
        return [
            line
            for line in lines
            for sign in self._telling
            if sign.regex.search(line)
            and not any(sign.regex.search(other) and _same(line, other) for other in before)
        ]

    def _covers_prompt(self, typed: _Typed, frame: Frame) -> bool:
        """Whether no prompt is to be read in what `frame` has left of the picture that was typed at: OCR may only
        have missed it this time."""
        if typed.alone and typed.longest < _AWAY_SECONDS:
            return False
        left = _unchanged(typed.before, frame)
        return left is not None and not any(map(self._asks, self._reader.read(left).lines))

    def _taken(self, typed: _Typed, frame: Frame) -> bool:
        """Whether what was typed arrived and was taken, where `frame` asks again.

        Shown: it is there no more, where it was. Enter alone: keys were seen to arrive before, the prompt went away
        at once, and all is as before. Nothing of this is known where the picture moves by itself, nor of what is not
        shown."""
        if not typed.still:
            return False
        if typed.after is not None:
            box = changed(typed.before, typed.after)
            taken = box is not None and _cut(frame, box).nearly(_cut(typed.before, box))
            self._shown = self._shown or taken
            return taken
        return self._shown and typed.away and typed.moved is True and frame.nearly(typed.before)

    def _add(self, text: str) -> None:
        self._unread += text.encode()
        self._said = (self._said + text)[-_MOST_SAID:]
        if self._transcript is None or not text.strip() or self._written > _TRANSCRIPT_LIMIT:
            return
        at = f"[{time.monotonic() - self._begun:.1f}] "
        record = "".join(f"{at}{printable(line)}\n" for line in self._hide(text).splitlines() if line.strip())
        self._written += len(record)
        try:
            with self._transcript.open("a", encoding="utf-8") as file:
                file.write(record)
        except OSError as error:
            raise HostError(
                f"evidence cannot be written to {self._transcript}: {error.strerror}", remedy=MORE_ROOM
            ) from error


Box = tuple[int, int, int, int]


def changed(one: Frame, other: Frame) -> Box | None:
    """Left, top, right, bottom (both behind the last pixel) of all that differs; None: nothing, or all of it, for
    they are not of one size."""
    if (one.width, one.height) != (other.width, other.height):
        return None
    stride = one.width * 3
    left, right, rows = one.width, 0, []
    for y in range(one.height):
        mine, others = one.rgb[y * stride : (y + 1) * stride], other.rgb[y * stride : (y + 1) * stride]
        if mine != others:
            rows.append(y)
            left = min(left, next(x for x in range(stride) if mine[x] != others[x]) // 3)
            right = max(right, next(x for x in range(stride - 1, -1, -1) if mine[x] != others[x]) // 3 + 1)
    return (left, rows[0], right, rows[-1] + 1) if rows else None


def _grown(one: Box, other: Box | None) -> bool:
    """Whether `other` has all of `one`, and more to its left or right."""
    if other is None or other == one or other[1] > one[1] or other[3] < one[3]:
        return False
    return other[0] <= one[0] and other[2] >= one[2] and other[2] - other[0] > one[2] - one[0]


def _unchanged(one: Frame, other: Frame) -> Frame | None:
    """Of `one` what `other` has as well, on the background of the top left corner; None: they are not of one size."""
    if (one.width, one.height) != (other.width, other.height):
        return None
    stride, background = one.width * 3, one.rgb[:3]
    rows = []
    for at in range(0, len(one.rgb), stride):
        mine, others = one.rgb[at : at + stride], other.rgb[at : at + stride]
        if mine != others:
            pixels = ((mine[x : x + 3], others[x : x + 3]) for x in range(0, stride, 3))
            mine = b"".join(old if old == new else background for old, new in pixels)
        rows.append(mine)
    return Frame(one.width, one.height, b"".join(rows))


def _cut(frame: Frame, box: Box) -> Frame:
    """Of a picture of another size, nothing."""
    left, top, right, bottom = box
    if right > frame.width or bottom > frame.height:
        return Frame(0, 0, b"")
    stride = frame.width * 3
    rows = (frame.rgb[y * stride + left * 3 : y * stride + right * 3] for y in range(top, bottom))
    return Frame(right - left, bottom - top, b"".join(rows))


def added(before: Sequence[str], now: Sequence[str], prompts: Sequence[re.Pattern[str]] = ()) -> str:
    """What was written since `before` on a text console that shows `now`, whose last line may go on: scrolled, or at
    the end of the last line. What was behind one of `prompts` there may have been taken back: systemd writes "(press
    TAB for no echo) ", and stars instead at the first key. Where all is drawn anew, lines that were not there."""
    old, new = tuple(before), tuple(now)
    for skip in range(len(old)):
        kept = old[skip:]
        count = len(kept)
        if count <= len(new) and new[: count - 1] == kept[:-1] and new[count - 1].startswith(kept[-1]):
            return new[count - 1][len(kept[-1]) :] + "".join(f"\n{line}" for line in new[count:])
    for skip in range(len(old)):
        kept = old[skip:]
        count = len(kept)
        if count <= len(new) and new[: count - 1] == kept[:-1]:
            same = _same_start(kept[-1], new[count - 1])
            if any((found := regex.search(kept[-1])) is not None and found.end() <= same for regex in prompts):
                return new[count - 1][same:] + "".join(f"\n{line}" for line in new[count:])
    left = Counter(old)
    more = []
    for line in new:
        if left[line]:
            left[line] -= 1
        else:
            more.append(line)
    return "".join(f"\n{line}" for line in more)


def _same_start(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (mine, others) in pairs if mine != others), min(len(one), len(other)))


def unlike(lines: Sequence[str], known: Iterable[Sequence[str]]) -> list[str]:
    """Those of `lines`, read by OCR, that were in none of `known`, earlier readings, even read a little differently;
    or not so often: a console in a font that only OCR reads says the same words below."""
    before = tuple(known)
    found = []
    for number, line in enumerate(lines, 1):
        most = max((sum(_same(line, other) for other in reading) for reading in before), default=0)
        if sum(_same(line, other) for other in lines[:number]) > most:
            found.append(line)
    return found


def _same(one: str, other: str) -> bool:
    return one == other or _alike(_letters(one), _letters(other))


@lru_cache(4096)
def _letters(line: str) -> str:
    return "".join(char for char in line.casefold() if char.isalnum())[:200]


@lru_cache(1 << 16)
def _alike(one: str, other: str) -> bool:
    if min(len(one), len(other)) < _SHORT:
        return False
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.real_quick_ratio() >= _ALIKE and matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE
