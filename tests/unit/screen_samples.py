"""Pictures of consoles and of prompts, and machines that show them in a time of their own."""

from __future__ import annotations

import struct
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_osgates.vm import screen
from pytest_osgates.vm.errors import GuestFailed
from pytest_osgates.vm.keyboard import keys_of
from pytest_osgates.vm.screen import Frame
from tests.unit.talk_samples import Clock, Guest

BLACK, GREY = b"\0\0\0", b"\xaa\xaa\xaa"


def decode_png(data: bytes) -> Frame:
    """An independent reader of 8 bit RGB pictures without interlacing and filters (W3C PNG, section 9)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds, packed, size = 8, [], b"", (0, 0)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        kinds.append(kind)
        if kind == b"IHDR":
            *size, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)  # type: ignore[assignment]
            assert (depth, colour, compression, filtering, interlace) == (8, 2, 0, 0, 0)
        elif kind == b"IDAT":
            packed += body
        at += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    raw, stride = zlib.decompress(packed), size[0] * 3
    assert len(raw) == size[1] * (stride + 1)
    rows: list[bytearray] = [bytearray(stride)]
    for number in range(size[1]):
        kind_of_filter, line = raw[number * (stride + 1)], bytearray(raw[number * (stride + 1) + 1 :][:stride])
        assert kind_of_filter == 0, "only what this project writes"
        rows.append(line)
    return Frame(size[0], size[1], b"".join(rows[1:]))


FONTS: list[dict[str, Any]] = tomllib.loads((Path(screen.__file__).parent / "console_fonts.toml").read_text())["font"]


def draw(
    lines: list[str],
    glyphs: dict[str, str],
    *,
    cell: int = 8,
    columns: int = 80,
    rows: int = 25,
    ink: bytes = GREY,
    paper: bytes = BLACK,
    margin: int = 0,
) -> Frame:
    """A text console of `columns` x `rows` cells with `lines` from the top left, and `margin` pixels below."""
    width = columns * cell
    pixels = bytearray(paper * width * (rows * 16 + margin))
    for row, line in enumerate(lines):
        for column, char in enumerate(line):
            bitmap = bytes.fromhex(glyphs[char])
            for y, x in ((y, x) for y in range(16) for x in range(8)):
                if bitmap[y] >> (7 - x) & 1:
                    at = ((row * 16 + y) * width + column * cell + x) * 3
                    pixels[at : at + 3] = ink
    return Frame(width, rows * 16 + margin, bytes(pixels))


CHARACTERS = {keys_of(char)[0]: char for char in map(chr, range(32, 127))}


class Terminal:
    """80 columns and 25 rows."""

    def __init__(self) -> None:
        self.rows = [""]

    def write(self, text: str) -> None:
        """As the kernel does."""
        for char in text.replace("\r", ""):
            if char == "\n":
                self.rows.append("")
            else:
                if len(self.rows[-1]) == 80:
                    self.rows.append("")
                self.rows[-1] += char
        del self.rows[:-25]

    def frame(self) -> Frame:
        """What it looks like."""
        return draw(self.rows, FONTS[0]["glyphs"])


class Display:
    """A machine with a screen and a keyboard. What is due is done when somebody looks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.frame = Frame(200, 64, bytes(200 * 64 * 3))
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.typed: list[str] = []
        self.line = ""
        self.off = False
        self.deaf = False
        self.looks = 0

    @property
    def screen(self) -> Display:
        return self

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        """Do it so many seconds from now."""
        self.due.append((self.clock.now + seconds, what))
        self.due.sort(key=lambda entry: entry[0])

    def grab(self) -> Frame:
        self.looks += 1
        while self.due and self.due[0][0] <= self.clock.now:
            self.due.pop(0)[1]()
        if self.off:
            raise GuestFailed("the machine was powered off by its guest")
        return self.frame

    def lit(self, frame: Frame) -> bool:
        return any(frame.rgb)

    def send_keys(self, *keys: str) -> None:
        self.grab()
        if self.deaf:
            return
        if keys == ("ret",):
            self.typed.append(self.line)
            self.line = ""
            self.entered(self.typed[-1])
        else:
            self.line += CHARACTERS[keys]
            self.pressed(self.line)

    def pressed(self, line: str) -> None:
        """A character was typed."""

    def entered(self, text: str) -> None:
        """Enter was pressed."""


class TextScreen(Display):
    """A text console that shows `first`, and to each line what `guest` answers; what is typed is not echoed."""

    def __init__(self, clock: Clock, first: bytes, guest: Guest = lambda text: b"", after: float = 3.0) -> None:
        super().__init__(clock)
        self.terminal = Terminal()
        self.guest, self.after = guest, after
        self.at(after, lambda: self.show(first))

    def show(self, text: bytes) -> None:
        """Write it."""
        self.terminal.write(text.decode())
        self.frame = self.terminal.frame()

    def entered(self, text: str) -> None:
        if answer := self.guest(text):
            self.at(self.after, lambda: self.show(answer))


class Pictures:
    """Frames that OCR reads as told."""

    def __init__(self) -> None:
        self.read: dict[str, tuple[str, ...]] = {}
        self.rows: dict[bytes, str] = {}

    def make(self, *lines: str, bullets: int = 0, spinner: int = 0) -> Frame:
        """Each line is a row of pixels of its own; the bullets are on one, the spinner on another."""
        pixels = bytearray(b"\x10\x20\x30" * (200 * 64))
        for row, line in enumerate(lines):
            data = (zlib.crc32(line.encode()).to_bytes(4, "big") * 200)[:600]
            self.rows[data] = line
            pixels[row * 4 * 600 : row * 4 * 600 + 600] = data
        for number in range(bullets):
            at = (40 * 200 + 20 + number * 12) * 3
            pixels[at : at + 24] = b"\xff" * 24
        at = 60 * 600 + spinner % 8 * 60
        pixels[at : at + 60] = b"\xee" * 60
        frame = Frame(200, 64, bytes(pixels))
        self.read[frame.digest] = lines
        return frame

    def by(self, frame: Frame) -> tuple[str, ...]:
        """In the place of OCR. Of a picture that is not known, the lines that are whole."""
        if frame.digest in self.read:
            return self.read[frame.digest]
        rows = (frame.rgb[at : at + frame.width * 3] for at in range(0, len(frame.rgb), frame.width * 3))
        return tuple(self.rows[row] for row in rows if row in self.rows)


class Plymouth(Display):
    """A graphical prompt, with bullets for what is typed; once Enter is pressed, `guest` says which pictures come,
    each after so many seconds."""

    def __init__(
        self,
        clock: Clock,
        pictures: Pictures,
        prompt: tuple[str, ...],
        guest: Callable[[str], list[tuple[float, Frame]]],
        bullets: bool = True,
    ) -> None:
        super().__init__(clock)
        self.pictures, self.prompt, self.guest, self.bullets = pictures, prompt, guest, bullets
        self.at(2.0, lambda: self.show(pictures.make(*prompt)))

    def show(self, frame: Frame) -> None:
        self.frame = frame

    def pressed(self, line: str) -> None:
        if self.bullets:
            self.show(self.pictures.make(*self.prompt, bullets=len(line)))

    def entered(self, text: str) -> None:
        for seconds, frame in self.guest(text):
            self.at(seconds, lambda frame=frame: self.show(frame))  # type: ignore[misc]


def reader_of(pictures: Pictures) -> Any:
    """A `Reader` of these pictures."""
    from pytest_osgates.vm.ocr import Reader

    return Reader(pictures.by)
