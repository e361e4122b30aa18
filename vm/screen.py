"""What the machine shows: screenshots, whether the picture stands still, and the text on a text console.

The text is read cell by cell by comparing each 8x16 (framebuffer console) or 9x16 (VGA text mode) cell with a
table of glyphs. That is exact for the fonts in the table and reads nothing anywhere else: it never guesses.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import struct
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pytest_osgates.vm.errors import TEMPORARY, HostError, QmpFailed
from pytest_osgates.vm.qmp import Qmp

MAX_PIXELS = 64 << 20
# As large as a picture of 1920x1080 is.
SCREENSHOT_BYTES = 8 << 20
CURSOR_PIXELS = 16
_UNKNOWN = "\ufffd"
_PPM_HEADER = re.compile(rb"P6\s+([0-9]{1,6})\s+([0-9]{1,6})\s+255\s")


@dataclass(frozen=True)
class Frame:
    """One picture: `rgb` holds 3 bytes per pixel, row by row."""

    width: int
    height: int
    rgb: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of size and pixels."""
        return hashlib.sha256(f"{self.width}x{self.height}".encode() + self.rgb).hexdigest()

    def png(self) -> bytes:
        """The picture as PNG (W3C PNG, third edition): colour type 2, no filter."""
        stride = self.width * 3
        rows = b"".join(b"\0" + self.rgb[at : at + stride] for at in range(0, len(self.rgb), stride))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 3)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )

    def nearly(self, other: Frame) -> bool:
        """Whether the pictures differ in no more than what a blinking cursor changes: one cell of text."""
        if (self.width, self.height) != (other.width, other.height):
            return False
        if self.rgb == other.rgb:
            return True
        stride = self.width * 3
        rows = [
            at for at in range(0, len(self.rgb), stride) if self.rgb[at : at + stride] != other.rgb[at : at + stride]
        ]
        if not rows or (rows[-1] - rows[0]) // stride >= CURSOR_PIXELS:
            return False
        for at in rows:
            mine, others = self.rgb[at : at + stride], other.rgb[at : at + stride]
            left = next(x for x in range(stride) if mine[x] != others[x])
            right = next(x for x in range(stride - 1, -1, -1) if mine[x] != others[x])
            if right - left >= CURSOR_PIXELS * 3:
                return False
        return True

    def drawn(self) -> int:
        """About how many pixels differ from the background, which is taken from the top left corner."""
        background = self.rgb[:3]
        # Rows of one colour, most of them, are counted without looking at each pixel.
        stride = self.width * 3
        count = 0
        for at in range(0, len(self.rgb), stride):
            row = self.rgb[at : at + stride]
            if row != background * self.width:
                count += sum(row[x : x + 3] != background for x in range(0, stride, 3))
        return count

    def text(self) -> str:
        """The text on it, trailing blanks removed; empty where no known font is used."""
        best = ""
        for cell_width in (8, 9):
            if self.width % cell_width == 0 or cell_width == 8:
                text = _read_cells(self, cell_width)
                if _legible(text) > _legible(best):
                    best = text
        return best


def _legible(text: str) -> int:
    return sum(1 for char in text if char not in "\n " + _UNKNOWN) - 3 * text.count(_UNKNOWN)


def parse_ppm(data: bytes) -> Frame:
    """A binary PPM (P6, 8 bits per sample) as QEMU writes it.

    :raise QmpFailed: it is none.
    """
    header = _PPM_HEADER.match(data)
    if header is None:
        raise QmpFailed("QEMU's screenshot is not a PPM file")
    width, height, start = int(header[1]), int(header[2]), header.end()
    if width * height == 0 or width * height > MAX_PIXELS or len(data) - start < width * height * 3:
        raise QmpFailed(f"QEMU's screenshot is cut short, empty or too large ({width}x{height})")
    return Frame(width, height, data[start : start + width * height * 3])


@cache
def glyphs() -> Mapping[bytes, str]:
    """Cell bitmaps (16 rows, one byte each, most significant bit left) to characters."""
    table = tomllib.loads((Path(__file__).parent / "console_fonts.toml").read_text())
    return {bytes.fromhex(bitmap): char for font in table["font"] for char, bitmap in font["glyphs"].items()}


def cell_bitmap(rows: list[bytes]) -> tuple[bytes, bytes] | None:
    """The bitmap of a cell of two colours and its inverse; None where there are more colours.

    `rows`: 16 rows of RGB bytes. Of a 9 pixel wide cell the ninth column is left out (VGA repeats or blanks it).
    """
    colours: list[bytes] = []
    bits = bytearray()
    for row in rows:
        value = 0
        for at in range(0, 24, 3):
            pixel = row[at : at + 3]
            if pixel not in colours:
                if len(colours) == 2:
                    return None
                colours.append(pixel)
            value = value << 1 | colours.index(pixel)
        bits.append(value)
    return bytes(bits), bytes(bit ^ 0xFF for bit in bits)


_cells: dict[bytes, str] = {}


def _read_cells(frame: Frame, cell_width: int) -> str:
    stride = frame.width * 3
    step = cell_width * 3
    known = glyphs()
    lines = []
    for top in range(0, frame.height - 15, 16):
        rows = [frame.rgb[(top + y) * stride : (top + y + 1) * stride] for y in range(16)]
        line = []
        if all(row == rows[0][:3] * frame.width for row in rows):
            lines.append("")
            continue
        for left in range(0, stride - 23, step):
            cell = [row[left : left + 24] for row in rows]
            key = b"".join(cell)
            char = _cells.get(key)
            if char is None:
                bitmaps = cell_bitmap(cell)
                char = _UNKNOWN
                if bitmaps is not None:
                    char = known.get(bitmaps[0]) or known.get(bitmaps[1]) or _UNKNOWN
                if len(_cells) > 50_000:
                    _cells.clear()
                _cells[key] = char
            line.append(char)
        # The cursor stands behind the last character, and is no glyph of the font.
        lines.append("".join(line).rstrip().removesuffix(_UNKNOWN).rstrip())
    return "\n".join(lines).strip("\n")


class Screen:
    """The display of one machine, looked at through QMP ``screendump``."""

    def __init__(self, qmp: Qmp, scratch: Path) -> None:
        self._qmp = qmp
        self._path = scratch / "screen.ppm"

    def grab(self) -> Frame:
        """The picture now.

        :raise QmpFailed: QEMU gives none.
        :raise HostError: there is no place for it.
        """
        try:
            self._qmp.execute("screendump", filename=str(self._path))
            return parse_ppm(self._path.read_bytes())
        except OSError as error:
            failed = QmpFailed(f"QEMU's screenshot cannot be read: {error}")
            self._raise_if_no_place(failed)
            raise failed from error
        except QmpFailed as error:
            self._raise_if_no_place(error)
            raise
        finally:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _raise_if_no_place(self, error: QmpFailed) -> None:
        """QEMU says it in words of its own, and the remedy is not QEMU's."""
        folder = self._path.parent
        if not folder.is_dir():
            raise HostError(f"the machine's temporary files are gone: {folder}", remedy=TEMPORARY) from error
        free = shutil.disk_usage(folder).free
        if free < SCREENSHOT_BYTES:
            said = f"no place for a screenshot in {folder}: {free >> 10} KiB free"
            raise HostError(said, remedy=TEMPORARY) from error
