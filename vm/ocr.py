"""The text of a picture, by OCR (tesseract(1)): where the glyphs of no known font are found.

It may misread, and it may miss a line. What it reads is good enough to notice a prompt or a shell; that something was
not read proves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.screen import Frame
from pytest_osgates.vm.text import printable

PROGRAM = "tesseract"
REMEDY = "apt-get install tesseract-ocr tesseract-ocr-eng (Fedora: dnf install tesseract)"
LANGUAGE = "eng"
# Of one picture, which takes half a second on an idle processor.
SECONDS = 120.0
# Letters of 10 to 13 pixels are read at 2 as well as at 3, and in half the time; unscaled, more of them are misread.
SCALE = 2
_DPI = 96
_MOST_PIXELS = 8 << 20
_MOST_TEXT = 1 << 16
_MOST_LINES = 200
_LONGEST = 500
# Rec. 601; they add up to less than 256, so that bytes can be added as one long number.
_WEIGHTS = tuple(bytes(level * share // 1000 for level in range(256)) for share in (299, 587, 114))
_INVERSE = bytes(range(255, -1, -1))
# So many letters and digits that a picture hardly shows by chance in cells of a console.
_ENOUGH = 6
_UNKNOWN = "\ufffd"


@dataclass(frozen=True)
class Reading:
    """What one picture says, from top to bottom, without empty lines; `exact`: all of it glyph by glyph, so that the
    picture is a text console; `wrapped`: what may be the rest of the line above, or a line of its own."""

    lines: tuple[str, ...] = ()
    exact: bool = True
    wrapped: tuple[str, ...] = ()


def need() -> None:
    """:raise MissingTool: there is no OCR program.
    :raise HostError: it does not know the language.
    """
    which(PROGRAM, remedy=REMEDY)
    known = run([PROGRAM, "--list-langs"], timeout=SECONDS, max_output=_MOST_TEXT, env=_environment(), remedy=REMEDY)
    if LANGUAGE not in known.text.split():
        raise HostError(f"{PROGRAM} does not know the language {LANGUAGE!r}", remedy=REMEDY)


def recognise(frame: Frame) -> tuple[str, ...]:
    """The lines of text that OCR finds in `frame`.

    :raise MissingTool: there is no OCR program.
    :raise HostError: it failed, or did not end in time.
    """
    program = which(PROGRAM, remedy=REMEDY)
    done = run(
        # 11: text here and there, in no order that a page would have.
        # Sauvola's thresholds are local: by one for all of the picture, text before a gradient is lost.
        [
            *(program, "stdin", "stdout", "-l", LANGUAGE, "--psm", "11", "--dpi", str(_DPI * SCALE)),
            *("-c", "thresholding_method=2"),
        ],
        timeout=SECONDS,
        input=_prepared(frame),
        env=_environment(),
        max_output=_MOST_TEXT,
        remedy=REMEDY,
    )
    lines = (printable(" ".join(line.split()), _LONGEST) for line in done.text.replace("\f", "\n").splitlines())
    return tuple(line for line in lines if line)[:_MOST_LINES]


def _environment() -> dict[str, str]:
    # Its threads would wait for each other, on processors that a machine needs.
    return {**os.environ, "OMP_THREAD_LIMIT": "1", "LC_ALL": "C.UTF-8"}


def _prepared(frame: Frame) -> bytes:
    """The picture as PGM: grey, dark on light, and scaled."""
    count = len(frame.rgb) // 3
    # Three bytes are added at once, as digits of a long number: none of the sums is carried.
    total = sum(int.from_bytes(frame.rgb[at::3].translate(weights), "big") for at, weights in enumerate(_WEIGHTS))
    grey = total.to_bytes(count, "big")
    if sum(grey) < 128 * count:
        grey = grey.translate(_INVERSE)
    scale = SCALE if count * SCALE * SCALE <= _MOST_PIXELS else 1
    wide = bytearray(count * scale)
    for at in range(scale):
        wide[at::scale] = grey
    stride = frame.width * scale
    rows = b"".join(bytes(wide[at : at + stride]) * scale for at in range(0, len(wide), stride))
    return b"P5\n%d %d\n255\n" % (stride, frame.height * scale) + rows


class Reader:
    """Reads pictures, each once: by glyphs where it shows a text console, else by `by` (OCR)."""

    def __init__(self, by: Callable[[Frame], tuple[str, ...]] = recognise) -> None:
        self._by = by
        self._known: dict[str, Reading] = {}

    def read(self, frame: Frame) -> Reading:
        """What `frame` says.

        :raise MissingTool: there is no OCR program.
        :raise HostError: it failed, or did not end in time.
        """
        digest = frame.digest
        found = self._known.get(digest)
        if found is None:
            # The newest few: a prompt that stands, and what was there before.
            if len(self._known) >= 64:
                del self._known[next(iter(self._known))]
            found = self._known[digest] = self._read(frame)
        return found

    def glance(self, frame: Frame) -> Reading | None:
        """What `frame` says, where that takes no OCR: a text console, a picture that was read, or nothing at all."""
        if (known := self._known.get(frame.digest)) is not None:
            return known
        text = frame.text()
        if sum(char.isalnum() for char in text) >= _ENOUGH:
            return Reading(joined(text, frame.width), wrapped=wrapped(text, frame.width))
        return Reading() if _blank(frame) else None

    def _read(self, frame: Frame) -> Reading:
        if (seen := self.glance(frame)) is not None:
            return seen
        lines = joined(frame.text(), frame.width)
        # A few glyphs may be on a picture by chance, and a console may show no more than a few.
        return Reading((*lines, *(line for line in self._by(frame) if line not in lines)), exact=False)


def _blank(frame: Frame) -> bool:
    return frame.rgb == frame.rgb[:3] * (frame.width * frame.height)


def joined(text: str, width: int) -> tuple[str, ...]:
    """The lines of a text console `width` pixels wide; one that was wrapped at its edge is one line again."""
    whole: list[str] = []
    full = False
    for line in text.splitlines():
        if full:
            whole[-1] += line
        else:
            whole.append(line)
        full = _full(line, width)
    return tuple(line.rstrip() for line in whole if line.strip(f" {_UNKNOWN}"))


def wrapped(text: str, width: int) -> tuple[str, ...]:
    """The rows of a text console `width` pixels wide that come after a full one: nothing shows whether that line was
    wrapped there, or ended."""
    rows = text.splitlines()
    return tuple(row.rstrip() for above, row in pairwise(rows) if _full(above, width) and row.strip())


def _full(line: str, width: int) -> bool:
    # Cells are 8 or 9 pixels wide, and a VGA text mode has 80 of 9.
    return len(line) in {width // 8, *([width // 9] if width % 9 == 0 else [])}
