"""A talk with whoever is at the other end of a console: what it shows is looked for line by line, and answered."""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_osgates.vm.text import one_line, strip_escapes
from pytest_osgates.vm.watch import LONGEST_LINE, SETTLED

LOOK_SECONDS = 1.0
_READ = 1 << 16
# At a time: whoever floods the console does not keep a wait from its end.
_READS = 16
# Of what is left at the end.
_MOST_REST = 1 << 12


class Line(Protocol):
    """What a dialogue needs of a console."""

    @property
    def dropped(self) -> int:
        """How many bytes were put aside for nobody, because they came faster than they were taken."""
        ...

    @property
    def closed(self) -> bool:
        """Whether no more can come."""
        ...

    def take_unread(self, size: int, timeout: float) -> bytes:
        """Up to `size` bytes not taken before; b"" after `timeout` seconds or at the end."""
        ...

    def send(self, data: bytes) -> None:
        """Type `data`. :raise OSError: the console is gone."""
        ...


@dataclass(frozen=True)
class Sign:
    """One kind of thing that may be shown: `regex` is searched in each line."""

    name: str
    regex: re.Pattern[str]


@dataclass(frozen=True)
class Heard:
    """A sign that was seen, and the line that it was in, fit to be shown."""

    name: str
    line: str


class Dialogue:
    """Reads `console` to its end, in one thread.

    What was heard counts from the last thing typed on; but `kept` signs count for good, for they may come just before
    something is typed. A line without its newline counts once nothing has come for a
    second: a prompt is one, and the beginning of any other line may look like a prompt. `alive` is called once a
    second, and raises if there is no use in waiting.
    """

    def __init__(
        self, console: Line, signs: Sequence[Sign], alive: Callable[[], None], kept: Collection[str] = ()
    ) -> None:
        self._console = console
        self._kept = frozenset(kept)
        self._signs = tuple(signs)
        self._alive = alive
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._settled = False
        self._came_at = time.monotonic()
        self._heard: dict[str, Heard] = {}
        self.ever: dict[str, Heard] = {}
        # Of the kept signs, those that were there when something was last typed.
        self.before: tuple[Heard, ...] = ()
        # Lines with something in them, since something was typed.
        self.lines = 0
        self._looks = 0
        self._shown: dict[str, tuple[int, Heard]] = {}

    @property
    def lost(self) -> int:
        """Bytes that came faster than they could be looked at: whatever was in them was not seen."""
        return self._console.dropped

    def heard(self, name: str) -> Heard | None:
        """Whether `name` has been shown since something was typed."""
        return self._heard.get(name)

    def latest(self, names: Collection[str]) -> Heard | None:
        """Which of `names` was shown last, ever; of a line that fits several, the first in the order of the signs."""
        shown = [self._shown[sign.name] for sign in self._signs if sign.name in names and sign.name in self._shown]
        return max(shown, key=lambda entry: entry[0])[1] if shown else None

    def say(self, text: str, *, forget: bool = False) -> None:
        """Type `text` and Enter. From now on counts what comes after it, and what is kept unless `forget`.

        :raise OSError: the console is gone.
        """
        self.turn(forget=forget)
        self._console.send(text.encode() + b"\r")

    def turn(self, *, forget: bool = False) -> None:
        """As `say`, for what is typed elsewhere."""
        self._take(0.0)
        # An unfinished line may be a prompt that has just come.
        self._look(self._line)
        self.before = tuple(
            self._heard[sign.name] for sign in self._signs if sign.name in self._kept & set(self._heard)
        )
        self._heard = {} if forget else {name: heard for name, heard in self._heard.items() if name in self._kept}
        self.lines = 0
        self._line = ""
        self._settled = False

    def wait(self, names: Collection[str], seconds: float) -> Heard | None:
        """The first of `names`, in the order in which the signs were given, that has been shown since something was
        typed; None after `seconds`, and when the console is closed."""
        deadline = time.monotonic() + seconds
        while True:
            # First what came, then whether it lives: the last words of a machine that ended are heard as well.
            self._take(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
            for sign in self._signs:
                if sign.name in names and sign.name in self._heard:
                    return self._heard[sign.name]
            self._alive()
            if time.monotonic() >= deadline or self._console.closed:
                return None

    def rest(self) -> None:
        """Look at all that has come, a line without its newline included: nothing more is waited for, but that what
        was said just now arrives."""
        deadline = time.monotonic() + SETTLED
        for _ in range(_MOST_REST):
            data = self._console.take_unread(_READ, max(0.0, deadline - time.monotonic()))
            if not data:
                break
            self._add(self._decoder.decode(data))
        self._look(self._line)
        self._line = ""

    def _take(self, timeout: float) -> None:
        data = self._console.take_unread(_READ, timeout)
        if not data:
            if self._line and not self._settled and time.monotonic() - self._came_at >= SETTLED:
                self._settled = True
                self._look(self._line)
            return
        for _ in range(_READS):
            self._add(self._decoder.decode(data))
            data = self._console.take_unread(_READ, 0.0)
            if not data:
                break
        else:
            self._add(self._decoder.decode(data))
        self._came_at = time.monotonic()
        self._settled = False

    def _add(self, text: str) -> None:
        lines = re.split(r"\r\n|\n|\r", self._line + text)
        for line in lines[:-1]:
            self._look(line)
        # Of a line without end, the beginning is gone by what is known of it.
        self._line = lines[-1]
        if len(self._line) > LONGEST_LINE:
            self._look(self._line)
            self._line = self._line[-LONGEST_LINE // 2 :]

    def _look(self, line: str) -> None:
        text = strip_escapes(line[: 2 * LONGEST_LINE])
        self.lines += bool(text.strip())
        self._looks += 1
        for sign in self._signs:
            if sign.regex.search(text):
                found = Heard(sign.name, one_line(text, 300))
                self._shown[sign.name] = (self._looks, found)
                self._heard.setdefault(sign.name, found)
                self.ever.setdefault(sign.name, found)
