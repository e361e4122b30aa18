"""Guests of a few bytes of real-mode code: seconds from power-on, they do one wrong thing for ever.

BIOS loads them from the CD (El Torito, no emulation) to 0x7C00. Each writes a text to the first serial port and, by
the BIOS, to the screen; then it does what its tail says.
"""

from __future__ import annotations

import struct
from pathlib import Path

from pytest_osgates.vm.process import run

_ORIGIN = 0x7C00
_SECTOR = 2048
TAILS = {
    # cli; again: hlt; jmp again
    "hangs": b"\xfa\xf4\xeb\xfd",
    # mov al, 0xfe; out 0x64, al; again: hlt; jmp again  (the keyboard controller's reset line)
    "reboots": b"\xb0\xfe\xe6\x64\xf4\xeb\xfd",
    # mov dx, 0x604; mov ax, 0x2000; out dx, ax; again: hlt; jmp again  (ACPI PM1a control of q35: S5)
    "powers off": b"\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd",
    # again: xor ax, ax; int 0x16; jmp again  (reads keys and does nothing with them)
    "waits for keys": b"\x31\xc0\xcd\x16\xeb\xfa",
    # cld; mov dx, 0x3f8; again: mov al, 'A'; out dx, al; jmp again
    "floods": b"\xfc\xba\xf8\x03\xb0\x41\xee\xeb\xfb",
}


def code(text: bytes, tail: str) -> bytes:
    """The boot image: one sector or more."""
    one = (
        b"\xac\x50\xba\xfd\x03"  # lodsb; push ax; mov dx, 0x3fd
        b"\xec\xa8\x20\x74\xfb"  # wait: in al, dx; test al, 0x20; jz wait
        b"\x58\xba\xf8\x03\xee"  # pop ax; mov dx, 0x3f8; out dx, al
        b"\xb4\x0e\xbb\x07\x00\xcd\x10"  # mov ah, 0x0e; mov bx, 7; int 0x10
    )
    end = TAILS[tail]
    # cld; xor ax, ax; mov ds, ax; mov si, TEXT; mov cx, LENGTH
    head_size = 1 + 2 + 2 + 3 + 3
    where = _ORIGIN + head_size + len(one) + 2 + len(end)
    head = b"\xfc\x31\xc0\x8e\xd8\xbe" + struct.pack("<H", where) + b"\xb9" + struct.pack("<H", len(text))
    whole = head + one + b"\xe2" + struct.pack("<b", -(len(one) + 2)) + end + text
    assert text, "the loop would run 65,536 times"
    return whole + bytes(-len(whole) % _SECTOR)


def make_iso(path: Path, text: bytes, tail: str) -> Path:
    """An ISO at `path` that boots this."""
    image = code(text, tail)
    tree = path.with_suffix(".tree")
    tree.mkdir()
    (tree / "boot.img").write_bytes(image)
    run(
        [
            *("xorriso", "-no_rc", "-as", "mkisofs", "-quiet", "-V", "FAULT", "-b", "boot.img", "-no-emul-boot"),
            *("-boot-load-size", str(len(image) // 512), "-c", "boot.cat", "-o", str(path), str(tree)),
        ],
        timeout=60,
    )
    return path
