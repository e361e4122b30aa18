"""Makes the pictures beside it, as graphical prompts look: ``python tests/golden/screens/make.py``.

Needs Pillow and the fonts of Debian's package fonts-dejavu-core; the tests need neither.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pytest_osgates.vm.screen import Frame

HERE = Path(__file__).parent
FONTS = Path("/usr/share/fonts/truetype/dejavu")
WIDTH, HEIGHT = 800, 600
ASKS = "Please enter passphrase for disk QEMU_HARDDISK (root):"
SHELLS = (
    *("host login: root", "root@osgates-demo:~# echo osgates-$((6*7))", "osgates-42", "root@osgates-demo:~# "),
    *("(initramfs) ", "sh-5.2# "),
)


def save(name: str, image: Image.Image) -> None:
    """As this project writes PNG, which the tests can read back."""
    (HERE / f"{name}.png").write_bytes(Frame(image.width, image.height, image.tobytes()).png())


def prompt(name: str, ink: int, paper: int, lines: tuple[str, ...], bullets: int = 0, slope: int = 0) -> None:
    """Lines in the middle, and under them a field for bullets. `slope`: how much lighter it gets to the bottom."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    drawing = ImageDraw.Draw(image)
    for y in range(HEIGHT):
        level = paper + y * slope // HEIGHT
        drawing.line(((0, y), (WIDTH, y)), fill=(level, level, min(255, level + 10)))
    font = ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), 13)
    y = 280
    for line in lines:
        drawing.text(((WIDTH - drawing.textlength(line, font)) / 2, y), line, font=font, fill=(ink, ink, ink))
        y += 28
    drawing.rectangle((250, y, 550, y + 28), outline=(ink, ink, ink))
    for number in range(bullets):
        left = 260 + number * 14
        drawing.ellipse((left, y + 9, left + 10, y + 19), fill=(ink, ink, ink))
    save(name, image)


def terminal() -> None:
    """A text console with a font that has no glyphs in vm/console_fonts.toml."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    font = ImageFont.truetype(str(FONTS / "DejaVuSansMono.ttf"), 13)
    for row, line in enumerate(SHELLS):
        ImageDraw.Draw(image).text((4, 4 + row * 17), line, font=font, fill=(170, 170, 170))
    save("terminal", image)


if __name__ == "__main__":
    prompt("dark", 255, 0, (ASKS,))
    prompt("slope", 230, 20, ("Please enter passphrase for disk root:", "Incorrect passphrase"), bullets=7, slope=60)
    prompt("light", 30, 240, ("Please unlock disk vda3_crypt:",), bullets=3)
    terminal()
