"""Pictures: parsing QEMU's, writing ours, reading text off them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.vm import screen
from pytest_osgates.vm.errors import HostError, QmpFailed
from pytest_osgates.vm.screen import Frame, Screen, parse_ppm
from tests.unit.screen_samples import FONTS, decode_png, draw

BLACK, GREY, BLUE = b"\0\0\0", b"\xaa\xaa\xaa", b"\0\0\xaa"


def ppm(frame: Frame) -> bytes:
    return f"P6\n{frame.width} {frame.height}\n255\n".encode() + frame.rgb


FRAMES = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.binary(min_size=size[0] * size[1] * 3, max_size=size[0] * size[1] * 3).map(
        lambda rgb: Frame(size[0], size[1], rgb)
    )
)


@given(FRAMES, st.binary(max_size=5))
def test_a_picture_is_read_as_it_was(frame: Frame, trailer: bytes) -> None:
    assert parse_ppm(ppm(frame) + trailer) == frame


@pytest.mark.parametrize(("width", "height"), [(255, 3), (3, 255), (255, 255), (1255, 2), (25, 5), (640, 480)])
def test_sizes_that_look_like_the_depth(width: int, height: int) -> None:
    frame = Frame(width, height, bytes(range(250)) * (width * height * 3 // 250 + 1))
    frame = Frame(width, height, frame.rgb[: width * height * 3])
    assert parse_ppm(ppm(frame)) == frame


def test_white_space_in_the_pixels_is_pixels() -> None:
    frame = Frame(2, 1, b"\n \t\r\n ")
    assert parse_ppm(ppm(frame)) == frame


# What looks like a picture in some of its parts, so that not only the first check is reached.
WORD = st.sampled_from([b"0", b"1", b"2", b"255", b"-1", b"99999999", b"#x", b"\xff", b"x", b"", b"1_0", b"+1"])
GAP = st.sampled_from([b" ", b"\n", b"\t", b"\n\n"])
DEPTH = st.sampled_from([b"255", b"255", b"65535", b"x"])
NEARLY = st.tuples(GAP, WORD, GAP, WORD, GAP, DEPTH, GAP, st.binary(max_size=20)).map(
    lambda parts: b"P6" + b"".join(parts)
)


@given(st.one_of(st.binary(max_size=100), NEARLY))
def test_whatever_is_given_is_a_frame_or_refused(data: bytes) -> None:
    try:
        frame = parse_ppm(data)
    except QmpFailed:
        return
    assert len(frame.rgb) == frame.width * frame.height * 3 > 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P6",
        b"P6\n1 1\n255",
        b"P6\n1 1\n255\n\0\0",
        b"P6\n1 1\n65535\n\0\0\0\0\0\0",
        b"P5\n1 1\n255\n\0\0\0",
        b"P6\nx 1\n255\n\0\0\0",
        b"P6\n1\n255\n\0\0\0",
        b"P6\n-1 -1\n255\n\0\0\0",
        b"P6\n0 0\n255\n",
        b"P6\n0 5\n255\n",
        b"P6\n99999 99999\n255\n\0\0\0",
        b"P6\n" + b"9" * 5000 + b" 1\n255\n",
        b"P6\n\xd9\xa1 1\n255\n\0\0\0",
    ],
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(QmpFailed, match="QEMU's screenshot is"):
        parse_ppm(data)


@given(FRAMES)
def test_png(frame: Frame) -> None:
    assert decode_png(frame.png()) == frame


def test_digests_tell_pictures_apart() -> None:
    pixels = bytes(range(36))
    digests = {Frame(3, 4, pixels).digest, Frame(4, 3, pixels).digest, Frame(3, 4, pixels[::-1]).digest}
    assert len(digests) == 3
    assert Frame(3, 4, pixels).digest == Frame(3, 4, bytes(pixels)).digest


# -- text


@pytest.mark.parametrize("font", FONTS, ids=lambda font: font["name"])
@pytest.mark.parametrize("cell", [8, 9])
def test_all_glyphs_are_read(font: dict[str, Any], cell: int) -> None:
    characters = "".join(char for char in font["glyphs"] if char != " ")
    # A font may have only those glyphs in which it differs from another.
    glyphs = {**FONTS[0]["glyphs"], **font["glyphs"]}
    lines = ["debian login: ", "", "  " + characters[:47], characters[47:], "".join(glyphs)[:70].strip()]
    frame = draw(lines, glyphs, cell=cell)
    assert frame.text() == "\n".join(line.rstrip() for line in lines).strip("\n")


def test_the_table_has_all_of_ascii() -> None:
    assert set(map(chr, range(32, 127))) <= set(screen.glyphs().values())


@pytest.mark.parametrize(("ink", "paper"), [(GREY, BLUE), (BLACK, GREY), (b"\xff\x55\x55", BLACK)])
def test_colours_do_not_matter(ink: bytes, paper: bytes) -> None:
    frame = draw(["GNU GRUB  version 2.06", "", "*Debian"], FONTS[0]["glyphs"], ink=ink, paper=paper, margin=8)
    assert frame.text() == "GNU GRUB  version 2.06\n\n*Debian"


def test_a_reversed_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = draw(["entry one", "entry two"], FONTS[0]["glyphs"], rows=2)
    chosen = draw(["entry one"], FONTS[0]["glyphs"], rows=1, ink=BLACK, paper=GREY)
    half = len(normal.rgb) // 2
    assert Frame(normal.width, 32, chosen.rgb + normal.rgb[half:]).text() == "entry one\nentry two"


def test_an_unknown_glyph_is_no_guess() -> None:
    glyphs = dict(FONTS[0]["glyphs"], ω="00" * 4 + "5a" * 8 + "00" * 4)
    assert draw(["root ω debian login"], glyphs).text() == "root \ufffd debian login"


def test_three_colours_in_a_cell_are_no_glyph() -> None:
    frame = draw(["ab debian login"], FONTS[0]["glyphs"])
    pixels = bytearray(frame.rgb)
    pixels[0:3] = BLUE
    assert Frame(frame.width, frame.height, bytes(pixels)).text() == "\ufffdb debian login"


def test_a_picture_is_not_text() -> None:
    noise = bytes((x * 7919 + y * 104_729) % 251 for y in range(64) for x in range(128 * 3))
    assert Frame(128, 64, noise).text() == ""
    assert Frame(80, 25, bytes(80 * 25 * 3)).text() == ""


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 15), (8, 15), (7, 16), (13, 40)])
def test_pictures_smaller_than_a_cell(width: int, height: int) -> None:
    assert Frame(width, height, bytes(range(3)) * (width * height)).text() == ""


def test_how_much_is_drawn() -> None:
    blank = Frame(80, 40, BLUE * 3200)
    assert blank.drawn() == 0
    pixels = bytearray(blank.rgb)
    for x, y in ((79, 39), (5, 5), (6, 5)):
        pixels[(y * 80 + x) * 3 + 2] ^= 1
    assert Frame(80, 40, bytes(pixels)).drawn() == 3


def changed(frame: Frame, left: int, top: int, width: int, height: int) -> Frame:
    """`frame` with a rectangle painted over."""
    pixels = bytearray(frame.rgb)
    for y in range(top, top + height):
        at = (y * frame.width + left) * 3
        pixels[at : at + width * 3] = b"\x12\x34\x56" * width
    return Frame(frame.width, frame.height, bytes(pixels))


@pytest.mark.parametrize(
    ("rectangle", "near"),
    [
        ((0, 0, 0, 0), True),
        ((56, 30, 8, 2), True),
        ((72, 32, 8, 16), True),
        ((0, 0, 1, 1), True),
        ((0, 0, 40, 1), False),
        ((0, 0, 1, 40), False),
        ((0, 0, 80, 40), False),
    ],
)
def test_a_blinking_cursor_is_no_change(rectangle: tuple[int, int, int, int], near: bool) -> None:
    frame = Frame(80, 64, GREY * (80 * 64))
    other = changed(frame, *rectangle)
    assert frame.nearly(other) is near
    assert other.nearly(frame) is near


def test_two_small_changes_far_apart_are_a_change() -> None:
    frame = Frame(80, 64, GREY * (80 * 64))
    assert not frame.nearly(changed(changed(frame, 0, 0, 1, 1), 79, 0, 1, 1))
    assert not frame.nearly(changed(changed(frame, 0, 0, 1, 1), 0, 63, 1, 1))
    assert not frame.nearly(Frame(64, 80, frame.rgb))


class FakeQmp:
    """Writes `data` where QEMU would; None: nothing."""

    def __init__(self, data: bytes | None) -> None:
        self.data = data

    def execute(self, command: str, *, filename: str) -> None:
        assert command == "screendump"
        if self.data is not None:
            Path(filename).write_bytes(self.data)


def test_a_screenshot_leaves_no_file(tmp_path: Path) -> None:
    frame = Frame(2, 2, bytes(12))
    qmp: Any = FakeQmp(ppm(frame))
    assert Screen(qmp, tmp_path).grab() == frame
    qmp.data = b"P6 nonsense"
    with pytest.raises(QmpFailed, match="not a PPM"):
        Screen(qmp, tmp_path).grab()
    assert list(tmp_path.iterdir()) == []
    qmp.data = None
    with pytest.raises(QmpFailed, match="cannot be read"):
        Screen(qmp, tmp_path).grab()


def test_a_screenshot_without_a_place_is_not_qemus_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short by a full disk, or refused where the directory is gone: the remedy is another."""
    qmp: Any = FakeQmp(ppm(Frame(2, 2, bytes(12)))[:-1])
    with pytest.raises(QmpFailed, match="cut short"):
        Screen(qmp, tmp_path).grab()
    monkeypatch.setattr(screen, "SCREENSHOT_BYTES", 1 << 60)
    with pytest.raises(HostError, match=rf"no place for a screenshot in {tmp_path}: \d+ KiB free\n  -> .*TMPDIR"):
        Screen(qmp, tmp_path).grab()
    qmp.data = None
    with pytest.raises(HostError, match=r"temporary files are gone: .*/gone\n  -> .*TMPDIR"):
        Screen(qmp, tmp_path / "gone").grab()
