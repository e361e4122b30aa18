"""At the keyboard of a machine that was just powered on: GRUB's menu, its command line, and its editor.

Nothing is pressed before the firmware says that it starts a boot loader, nor once a kernel runs. Each key but those
that open the menu is followed by a look at what came of it, on the serial console, where the firmware shows what GRUB
writes. On GRUB's command line nothing is typed where its menu can be seen: PCR 8 would see that, too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from itertools import cycle, pairwise

from pytest_osgates.checks.tpm_model import GrubSeen
from pytest_osgates.data import load
from pytest_osgates.vm.cells import WIDTH, Cells
from pytest_osgates.vm.dialogue import Sign
from pytest_osgates.vm.errors import MORE_ROOM, GuestFailed, HostError, QmpFailed
from pytest_osgates.vm.keyboard import keys_of
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.text import one_line, printable

# Between two keys that may open the menu: with no timeout GRUB looks once whether there is one.
OPEN_SECONDS = 0.4
# Until Escape is tried as well, once: it leaves a menu that shows, if one file of configuration has read another.
ESCAPE_SECONDS = 10.0
# From the firmware's word to the menu, under emulation.
MENU_SECONDS = 60.0
# Until a key has its effect.
KEY_SECONDS = 20.0
_LOOK_SECONDS = 0.5
# In which nothing more is drawn.
_STILL_SECONDS = 0.7
_READ = 1 << 16
# GRUB's output to the firmware's console: an attacker at the machine sees its pictures, we do not.
_TO_CONSOLE = "terminal_output console"
_MOST_LINES = 200
# Characters that the top of a frame is drawn with; Fedora's editor has none, and above its text there are others.
_MOST_OF_A_FRAME = 3
_LINE = 300
_LONGEST = 4000
# Firmware writes frames in UTF-8 or, as most do, in bytes of code page 437, which must not be taken for UTF-8: each
# is one cell. Nothing else here is of any interest but ASCII.
_FRAMES = re.compile(rb"\xe2[\x80-\xbf]{2}")
_UNFINISHED = re.compile(rb"(?:\xe2[\x80-\xbf]?)?\Z")
_LINUX = re.compile(r"^\s*linux(?:16|efi)?\s")


class _Missed(Exception):
    """What did not come, in words."""


@cache
def _signs() -> tuple[Sign, ...]:
    return tuple(Sign(str(row["sign"]), re.compile(row["regex"])) for row in load("grub_console")["sign"])


def type_at_grub(
    machine: Machine, parameter: str, alive: Callable[[], None], left: Callable[[], float], patience: float
) -> GrubSeen:
    """Open the menu, look whether commands are taken, and boot the chosen entry with one more parameter. Returns once
    GRUB says that it boots, and as soon as that cannot be got any further: see `GrubSeen.missed`.

    `alive` raises once the machine is gone; `left`: seconds until the deadline; `patience`: how much longer all of it
    takes here.

    :raise HostError: QEMU or swtpm died.
    """
    return _Keyboard(machine, parameter, alive, left, patience).run()


class _Keyboard:
    def __init__(
        self,
        machine: Machine,
        parameter: str,
        alive: Callable[[], None],
        left: Callable[[], float],
        patience: float,
    ) -> None:
        self._machine = machine
        self._parameter = parameter
        self._alive = alive
        self._left = left
        self._patience = patience
        self._keys = load("grub_console")["keys"]
        self._cells = Cells()
        self._rest = b""
        self._seen = GrubSeen(parameter=parameter)
        # Columns of the editor's text, between its frames.
        self._edges = slice(0, 0)

    def run(self) -> GrubSeen:
        try:
            self._open()
            self._command_line()
            if self._editor():
                self._edit()
        except _Missed as missed:
            self._note(missed=str(missed))
        except GuestFailed as error:
            self._note(missed=error.what)
        shown = tuple(printable(line, _LINE) for line in self._cells.lines() if line.strip())
        self._note(shown=shown)
        return self._seen

    # -- steps

    def _open(self) -> None:
        """:raise _Missed: there is no menu."""
        shows = ("menu", "lock", "command")
        begun = self._wait(("starts", *shows), self._left(), kernel=True)
        if begun is None:
            raise _Missed("neither the firmware nor GRUB has a word on the serial console")
        start = time.monotonic()
        deadline = start + min(MENU_SECONDS * self._patience, self._left())
        escaped = False
        for keys in cycle(self._keys["open"]) if begun == "starts" else ():
            self._press(keys)
            if self._wait(shows, OPEN_SECONDS, kernel=True) is not None:
                break
            if not escaped and time.monotonic() >= start + ESCAPE_SECONDS * self._patience:
                escaped = True
                self._press(self._keys["last"])
            if time.monotonic() >= deadline:
                self._to_console()
                break
        self._still()
        self._picture("menu")
        name, line = self._shown()
        left = "; Escape was pressed, which leaves a menu that another one opened" if escaped else ""
        if name == "command":
            raise _Missed(f"GRUB's command line came instead of its menu{left}")
        if name == "lock":
            raise _Missed(f"a password before there is a menu: {line}{left}")
        self._note(menu=line)

    def _to_console(self) -> None:
        """Nothing to be seen, and no kernel: GRUB may be waiting behind a picture.

        :raise _Missed: it is not.
        """
        self._press(self._keys["command"])
        for keys in (*keys_of(_TO_CONSOLE), ("ret",)):
            self._machine.send_keys(*keys)
            # They are read from a short queue.
            self._wait((), OPEN_SECONDS * self._patience, kernel=True)
        if self._wait(("command",), KEY_SECONDS * self._patience, kernel=True) is None:
            raise _Missed("no menu on the serial console, and no command line behind a picture")
        self._note(commands=(_TO_CONSOLE,))
        self._back()

    def _command_line(self) -> None:
        """:raise _Missed: neither commands are taken nor a password is asked for."""
        name, line = self._after("command", ("command", "lock"), "the command line")
        self._note(command_line=line, command_line_locked=name == "lock")
        self._back()

    def _editor(self) -> bool:
        """Whether it is open.

        :raise _Missed: it does not come, nor is a password asked for.
        """
        name, line = self._after("edit", ("editor", "lock"), "the editor")
        self._note(editor=line, editor_locked=name == "lock")
        return name == "editor"

    def _edit(self) -> None:
        """:raise _Missed: the kernel's line is not found, is one of several, or is not seen to be what was typed."""
        self._still()
        top = self._cells.lines()[max(0, self._cells.row - 1)]
        framed = 0 < len(set(top.strip())) <= _MOST_OF_A_FRAME
        self._edges = slice(self._cells.column, max(0, len(top) - 1) if framed else WIDTH)
        for _ in range(_MOST_LINES):
            if _LINUX.match(self._logical()):
                break
            row, first = self._cells.row, self._cells.lines()
            self._press(self._keys["down"])
            # One that is further down than the screen moves the lines instead of the cursor.
            if not self._until(lambda: self._cells.row != row or self._cells.lines() != first):  # noqa: B023
                raise _Missed("no line in the editor begins with linux")
            self._still()
        else:
            raise _Missed("no line in the editor begins with linux")
        self._press(self._keys["end"])
        if not self._until(lambda: self._cells.column > self._edges.start):
            raise _Missed("the cursor does not go to the end of the kernel's line")
        self._still()
        # Blanks at its end are not to be told from none, but by where the cursor is.
        before, end = self._logical().rstrip(), self._place()
        before = before.ljust(end)
        typed = ""
        for char, keys in zip(f" {self._parameter}", keys_of(f" {self._parameter}"), strict=True):
            typed += char
            self._machine.send_keys(*keys)
            wanted = f"{before}{typed}".rstrip()
            if not self._until(lambda: self._logical().rstrip() == wanted and self._place() == end + len(typed)):  # noqa: B023
                stands = one_line(self._logical(), _LINE)
                raise _Missed(f"{typed!r} was typed at the end of the kernel's line, and there stands: {stands}")
        self._note(line=one_line(self._logical(), _LONGEST))
        if self._others():
            raise _Missed("there is another line that begins with linux, and it may be the one that is carried out")
        self._picture("editor")
        self._press(self._keys["boot"])
        if self._wait(("booting",), KEY_SECONDS * self._patience) is None:
            raise _Missed("GRUB does not say that it boots what was edited")
        self._note(booting=self._shown()[1])

    # -- parts

    def _after(self, key: str, names: Collection[str], what: str) -> tuple[str, str]:
        """What a key leads to.

        :raise _Missed: to none of these.
        """
        self._press(self._keys[key])
        if self._wait(names, KEY_SECONDS * self._patience) is None:
            raise _Missed(f"the key for {what} ({self._keys[key]}) leads nowhere")
        return self._shown()

    def _back(self) -> None:
        """:raise _Missed: not to the menu."""
        self._press(self._keys["back"])
        if self._wait(("menu",), KEY_SECONDS * self._patience) is None:
            raise _Missed("it does not go back to the menu")

    def _logical(self) -> str:
        """The line of the editor that the cursor is in, put together: one that is too long goes on in the next row,
        behind a backslash at the edge."""
        rows = [line[self._edges] for line in self._cells.lines()]
        first = last = self._cells.row
        while first > 0 and rows[first - 1].endswith("\\"):
            first -= 1
        while rows[last].endswith("\\") and last + 1 < len(rows):
            last += 1
        return "".join([*(row[:-1] for row in rows[first:last]), rows[last]])

    def _others(self) -> bool:
        """Whether another line on the screen begins with linux, as the branch of an `if` that is not taken."""
        rows = ["", *(line[self._edges] for line in self._cells.lines())]
        found = [after for before, after in pairwise(rows) if _LINUX.match(after) and not before.endswith("\\")]
        return len(found) > 1

    def _place(self) -> int:
        """Of the cursor in the logical line."""
        rows = [line[self._edges] for line in self._cells.lines()]
        first = self._cells.row
        while first > 0 and rows[first - 1].endswith("\\"):
            first -= 1
        return sum(len(row) - 1 for row in rows[first : self._cells.row]) + self._cells.column - self._edges.start

    def _shown(self) -> tuple[str, str]:
        """The most telling sign on the screen, and its row; empty: none."""
        lines = self._cells.lines()
        for sign in _signs():
            for line in lines:
                if sign.regex.search(line):
                    return sign.name, one_line(line, _LINE)
        return "", ""

    def _press(self, key: str) -> None:
        self._machine.send_keys(*key.split("-"))

    def _wait(self, names: Collection[str], seconds: float, *, kernel: bool = False) -> str | None:
        """The sign on the screen, once it is one of `names`.

        :raise _Missed: with `kernel`, one runs.
        """
        deadline = time.monotonic() + seconds
        while True:
            self._read(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic())))
            name, _ = self._shown()
            if name in names:
                return name
            self._alive()
            if kernel and self._machine.kernel_runs():
                raise _Missed("a kernel runs, and GRUB's menu did not come")
            if time.monotonic() >= deadline or self._left() <= 0:
                return None

    def _until(self, true: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + min(KEY_SECONDS * self._patience, max(0.0, self._left()))
        while not true():
            if time.monotonic() >= deadline:
                return False
            self._read(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic())))
            self._alive()
        return True

    def _read(self, timeout: float) -> bool:
        data = self._machine.serial.take_unread(_READ, timeout)
        text = _FRAMES.sub(b"\xb3", self._rest + data)
        # The beginning of one, maybe.
        self._rest = b"" if not data else _UNFINISHED.search(text)[0]  # type: ignore[index]
        self._cells.feed(text[: len(text) - len(self._rest)].decode("latin-1"))
        return bool(data)

    def _still(self) -> None:
        """Until nothing more comes: what is drawn is drawn to its end."""
        deadline = time.monotonic() + min(KEY_SECONDS * self._patience, max(0.0, self._left()))
        while self._read(_STILL_SECONDS * self._patience) and time.monotonic() < deadline:
            self._alive()

    def _picture(self, name: str) -> None:
        """For people: what stands on the screen."""
        with suppress(QmpFailed):
            picture = self._machine.screen.grab().png()
            path = self._machine.records / f"grub-{name}.png"
            try:
                path.write_bytes(picture)
            except OSError as error:
                raise HostError(
                    f"evidence cannot be written to {path}: {error.strerror}", remedy=MORE_ROOM
                ) from error

    def _note(self, **changes: object) -> None:
        self._seen = self._seen.model_copy(update=changes)
