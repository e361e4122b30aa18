"""ELF files made by hand: as much of them as the kernel and the dynamic linker read."""

from __future__ import annotations

import struct
from dataclasses import dataclass

LINKER = "/lib64/ld-linux-x86-64.so.2"
BASE = 0x400000
# mov $41,%eax; syscall
SOCKET = b"\xb8\x29\x00\x00\x00\x0f\x05"
WRITE = b"\xb8\x01\x00\x00\x00\x0f\x05"
# mov %rdi,%rax; mov %rsi,%rdi; syscall: syscall(2) in a static program
COMPUTED = b"\x48\x89\xf8\x48\x89\xf7\x0f\x05"


@dataclass(frozen=True)
class Bytes:
    """A file in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= len(self.data)
        return self.data[offset : offset + size]


def elf(
    needed: tuple[str, ...] = ("libc.so.6",),
    imports: tuple[str, ...] = (),
    *,
    exports: tuple[str, ...] = (),
    interpreter: str = LINKER,
    soname: str = "",
    rpath: str = "",
    runpath: str = "",
    code: bytes = b"\xc3",
    data: bytes = b"",
    bits: int = 64,
    little: bool = True,
    machine: int = 62,
    kind: int = 3,
    hashed: str = "sysv",
    dynamic: bool = True,
) -> bytes:
    """One file. It is loaded whole, as code, at BASE. `hashed`: which table tells how many symbols there are."""
    order, wide = "<" if little else ">", bits == 64
    strings, places = bytearray(b"\0"), {}
    for text in (*needed, *imports, *exports, soname, rpath, runpath):
        if text and text not in places:
            places[text] = len(strings)
            strings += text.encode() + b"\0"
    symbols = bytearray(24 if wide else 16)
    for number, name in enumerate((*imports, *exports)):
        section = 0 if number < len(imports) else 7
        if wide:
            symbols += struct.pack(order + "IBBHQQ", places[name], 0x12, 0, section, 0, 0)
        else:
            symbols += struct.pack(order + "IIIBBH", places[name], 0, 0, 0x12, 0, section)
    count = 1 + len(imports) + len(exports)
    parts: list[bytes] = []
    headers = 52 if not wide else 64
    program = 32 if not wide else 56
    segments = 1 + bool(interpreter) + bool(dynamic)
    position = headers + segments * program

    def put(piece: bytes) -> int:
        nonlocal position
        padding = b"\0" * (-position % 8)
        parts.append(padding + piece)
        at = position + len(padding)
        position = at + len(piece)
        return at

    interpreter_at = put(interpreter.encode() + b"\0") if interpreter else 0
    strings_at, symbols_at = put(bytes(strings)), put(bytes(symbols))
    sysv = put(struct.pack(order + "IIII", 1, count, 0, 0))
    # One bucket; the chain goes from the first exported symbol to the last, whose lowest bit ends it.
    first = 1 + len(imports)
    chain = [0] * (len(exports) - 1) + [1] if exports else []
    bloom = struct.pack(order + ("Q" if wide else "I"), 0)
    gnu = put(
        struct.pack(order + "IIII", 1, first, 1, 0)
        + bloom
        + struct.pack(order + "I", first if exports else 0)
        + struct.pack(order + f"{len(chain)}I", *chain)
    )
    relocations = b"".join(
        struct.pack(order + "QQq", 0, number << 32 | 7, 0) if wide else struct.pack(order + "II", 0, number << 8 | 7)
        for number in range(1, 1 + len(imports))
    )
    relocations_at = put(relocations)
    code_at = put(code)
    put(data)
    tags: list[tuple[int, int]] = [(1, places[name]) for name in needed]
    tags += [(tag, places[text]) for tag, text in ((14, soname), (15, rpath), (29, runpath)) if text]
    tags += [(5, BASE + strings_at), (10, len(strings)), (6, BASE + symbols_at)]
    if hashed == "sysv":
        tags.append((4, BASE + sysv))
    elif hashed == "gnu":
        tags.append((0x6FFFFEF5, BASE + gnu))
    else:
        tags += [(23, BASE + relocations_at), (2, len(relocations)), (20, 7 if wide else 17)]
    tags.append((0, 0))
    dynamic_at = put(b"".join(struct.pack(order + ("qQ" if wide else "iI"), *tag) for tag in tags)) if dynamic else 0
    rows = [(1, 5, 0, position)]
    if interpreter:
        rows.append((3, 4, interpreter_at, len(interpreter) + 1))
    if dynamic:
        rows.append((2, 6, dynamic_at, position - dynamic_at))
    packed = b""
    for row, flags, at, size in rows:
        if wide:
            packed += struct.pack(order + "IIQQQQQQ", row, flags, at, BASE + at, 0, size, size, 8)
        else:
            packed += struct.pack(order + "IIIIIIII", row, at, BASE + at, 0, size, size, flags, 8)
    head = b"\x7fELF" + bytes([2 if wide else 1, 1 if little else 2, 1]) + bytes(9)
    layout = "HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"
    entry = BASE + code_at
    head += struct.pack(order + layout, kind, machine, 1, entry, headers, 0, 0, headers, program, segments, 0, 0, 0)
    return head + packed + b"".join(parts)


def static(code: bytes = WRITE, data: bytes = b"", **more: int) -> bytes:
    """A program that runs without any library."""
    return elf((), interpreter="", code=code, data=data, kind=2, dynamic=False, **more)  # type: ignore[arg-type]


def library(soname: str, imports: tuple[str, ...] = (), needed: tuple[str, ...] = ("libc.so.6",)) -> bytes:
    return elf(needed, imports, soname=soname, interpreter="")
