"""Pictures read by OCR: real ones by the real program, and what is done around it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_osgates.vm import ocr
from pytest_osgates.vm.errors import CommandFailed, HostError, HostTimeout, MissingTool
from pytest_osgates.vm.ocr import Reader, joined, recognise
from pytest_osgates.vm.screen import Frame
from tests.unit.screen_samples import FONTS, decode_png, draw

SCREENS = Path(__file__).parents[2] / "golden" / "screens"


def picture(name: str) -> Frame:
    """Made by make.py beside it."""
    return decode_png((SCREENS / f"{name}.png").read_bytes())


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("dark", ["Please enter passphrase for disk QEMU_HARDDISK (root):"]),
        ("slope", ["Please enter passphrase for disk root:", "Incorrect passphrase"]),
        ("light", ["Please unlock disk vda3_crypt:"]),
        ("terminal", ["host login: root", "(initramfs)", "sh-5.2#"]),
    ],
)
def test_prompts_are_read(name: str, lines: list[str]) -> None:
    frame = picture(name)
    assert frame.text() == ""
    reading = Reader().read(frame)
    assert not reading.exact
    assert [line for line in reading.lines if line in lines] == lines


def test_a_console_with_larger_letters_is_read() -> None:
    """Of a font without glyphs in the table: this one, each pixel twice as wide and high."""
    small = draw(["Please unlock disk vda3_crypt:"], FONTS[0]["glyphs"], columns=40, rows=10)
    rows = [small.rgb[y * small.width * 3 :][: small.width * 3] for y in range(small.height)]
    wide = [b"".join(row[x : x + 3] * 2 for x in range(0, len(row), 3)) for row in rows]
    frame = Frame(small.width * 2, small.height * 2, b"".join(row * 2 for row in wide))
    reading = Reader().read(frame)
    # It misreads the name: "uvda3_crypt".
    assert [line[:18] for line in reading.lines] == ["Please unlock disk"]


def test_a_text_console_needs_no_ocr() -> None:
    def never(frame: Frame) -> tuple[str, ...]:
        raise AssertionError

    frame = draw(["debian login: "], FONTS[0]["glyphs"])
    reading = Reader(never).read(frame)
    assert (reading.lines, reading.exact) == (("debian login:",), True)
    # Nothing at all is nothing to be read.
    assert Reader(never).read(Frame(4, 4, b"abc" * 16)).lines == ()


def test_a_few_glyphs_are_read_both_ways() -> None:
    """They may be on a picture by chance; and a shell's prompt is no more."""
    reading = Reader(lambda frame: ("as OCR has it",)).read(draw(["/ # "], FONTS[0]["glyphs"]))
    assert (reading.lines, reading.exact) == (("/ #", "as OCR has it"), False)


def test_each_picture_is_read_once() -> None:
    seen: list[str] = []

    def by(frame: Frame) -> tuple[str, ...]:
        seen.append(frame.digest)
        return ("x",)

    reader = Reader(by)
    frames = [Frame(2, 1, bytes((number, 0, 0, 1, 1, 1))) for number in range(100)]
    for frame in (*frames, *frames[-5:]):
        reader.read(frame)
    assert len(seen) == 100
    reader.read(frames[0])
    assert len(seen) == 101, "the oldest are forgotten"


def test_a_line_that_was_wrapped_is_one() -> None:
    text = "\n".join(("short", "x" * 80, "y" * 80, "end", "", "# "))
    assert joined(text, 640) == ("short", "x" * 80 + "y" * 80 + "end", "#")
    assert joined("z" * 80 + "\nmore", 720) == ("z" * 80 + "more",)
    assert joined("z" * 80 + "\nmore", 1280) == ("z" * 80, "more")


@pytest.fixture
def tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in its place, found first."""
    path = tmp_path / "bin" / "tesseract"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


FRAME = Frame(2, 2, bytes(range(12)))


def test_what_it_prints_is_bounded_and_harmless(tesseract: Path) -> None:
    script(tesseract, "cat >/dev/null; printf 'a\\033[2Jb\\t c\\f\\n\\n'; yes long | head -c 300000")
    lines = recognise(FRAME)
    assert lines[0] == "ab c"
    assert len(lines) == 200
    script(tesseract, "cat >/dev/null; head -c 100000 /dev/zero | tr '\\0' x")
    assert len(recognise(FRAME)[0]) < 1000


def test_a_program_that_fails_or_hangs_is_the_hosts_fault(tesseract: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tesseract, "echo no language >&2; exit 1")
    with pytest.raises(CommandFailed, match="tesseract ended with status 1"):
        recognise(FRAME)
    monkeypatch.setattr(ocr, "SECONDS", 0.2)
    script(tesseract, "exec sleep 30")
    with pytest.raises(HostTimeout, match="tesseract did not end"):
        recognise(FRAME)


def test_what_is_missing_is_said_with_its_remedy(tesseract: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ocr.need()
    script(tesseract, "echo List of available languages; echo osd")
    with pytest.raises(
        HostError, match=r"does not know the language 'eng'\n  -> apt-get install .*tesseract-ocr-eng"
    ):
        ocr.need()
    monkeypatch.setattr(ocr, "PROGRAM", "tesseract-that-is-not-there")
    for what in (ocr.need, lambda: recognise(FRAME)):
        with pytest.raises(MissingTool, match="apt-get install tesseract-ocr tesseract-ocr-eng"):
            what()


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_the_picture_that_is_given_to_it(width: int, height: int, data: st.DataObject) -> None:
    rgb = data.draw(st.binary(min_size=width * height * 3, max_size=width * height * 3))
    made = ocr._prepared(Frame(width, height, rgb))
    header, _, pixels = made.partition(b"\n255\n")
    assert header == b"P5\n%d %d" % (width * 2, height * 2)
    assert len(pixels) == width * height * 4
    grey = [
        (299 * r // 1000) + (587 * g // 1000) + (114 * b // 1000) for r, g, b in zip(*[iter(rgb)] * 3, strict=True)
    ]
    dark = sum(grey) < 128 * len(grey)
    expected = [255 - level if dark else level for level in grey]
    assert [pixels[2 * y * 2 * width + 2 * x] for y in range(height) for x in range(width)] == expected
    # Dark letters on light ground.
    assert sum(pixels) >= 127 * len(pixels)
