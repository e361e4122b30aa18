"""Which system calls the machine code of a program makes by itself, as far as that can be told without running it.

A number is believed if an instruction loads it into the register of the system call's number shortly before the
call. This is no disassembler: it errs towards seeing more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.image.elf import AARCH64, X86, X86_64, Elf, Readable

_PIECE = 1 << 20
# Longer than any instruction sequence between the two that compilers make.
_BEFORE = 64

# Intel SDM: 0F 05 is syscall, CD 80 int 0x80, 0F 34 sysenter; 65 FF 15/14.. call *%gs:16 goes through the vDSO.
_CALLS_64 = re.compile(rb"\x0f\x05|\xcd\x80")
_CALLS_32 = re.compile(rb"\xcd\x80|\x0f\x34|\x65\xff\x15\x10\x00\x00\x00")
# mov $n,%eax; mov $n,%rax; push $n, pop %rax; xor %eax,%eax; and what takes it from elsewhere: mov reg,%eax,
# mov mem,%eax (any mod/rm whose register is 0).
_LOADS_X86 = re.compile(
    rb"\xb8(?P<a>[\x00-\xff][\x00-\x03])\x00\x00"
    rb"|\x48\xc7\xc0(?P<b>[\x00-\xff][\x00-\x03])\x00\x00"
    rb"|\x6a(?P<c>[\x00-\x7f])\x58"
    rb"|(?P<zero>\x31\xc0)"
    rb"|\x48?\x89(?P<reg>[\xc0\xc8\xd0\xd8\xe0\xe8\xf0\xf8])"
    rb"|\x48?\x63(?P<ext>[\xc0-\xc7])",
    re.DOTALL,
)
_SVC = b"\x01\x00\x00\xd4"
_MOVZ_W8, _MOVZ_X8 = 0x52800008, 0xD2800008


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """Numbers of system calls by ABI (``x86_64``, ``i386``, ``aarch64``), and how many calls there are whose number
    cannot be told. `known` is False for machines whose code is not read.
    """

    numbers: frozenset[tuple[str, int]] = frozenset()
    untold: int = 0
    known: bool = True


def system_calls(file: Readable, elf: Elf) -> SystemCalls:
    """The system calls in the code of `elf`, which is in `file`."""
    if elf.machine not in (X86, X86_64, AARCH64) or not elf.little:
        return SystemCalls(known=False)
    numbers: set[tuple[str, int]] = set()
    untold = 0
    for piece, start in _pieces(file, elf):
        for abi, number in _calls(piece, start, elf.machine):
            if number is None:
                untold += 1
            else:
                numbers.add((abi, number))
    return SystemCalls(frozenset(numbers), untold)


def _pieces(file: Readable, elf: Elf) -> Iterator[tuple[bytes, int]]:
    """The code, piece by piece; of each the first bytes belong to the piece before."""
    seen: set[tuple[int, int]] = set()
    for segment in elf.segments:
        if not segment.code or (segment.offset, segment.size) in seen:
            continue
        seen.add((segment.offset, segment.size))
        before = b""
        for offset in range(segment.offset, segment.offset + segment.size, _PIECE):
            piece = before + file.read_at(offset, min(_PIECE, segment.offset + segment.size - offset))
            yield piece, len(before)
            before = piece[-_BEFORE:]


def _calls(piece: bytes, start: int, machine: int) -> Iterator[tuple[str, int | None]]:
    """ABI and number of each call that ends at or after `start`, so that none counts twice."""
    if machine == AARCH64:
        yield from _calls_aarch64(piece, start)
        return
    wide = machine == X86_64
    for match in (_CALLS_64 if wide else _CALLS_32).finditer(piece):
        if match.end() > start:
            number = _loaded(piece[max(0, match.start() - _BEFORE) : match.start()])
            yield "x86_64" if match[0] == b"\x0f\x05" else "i386", number


def _loaded(before: bytes) -> int | None:
    """What the last instruction that loads %eax loads; None: nothing that can be told."""
    last = None
    for match in _LOADS_X86.finditer(before):
        last = match
    if last is None or last["reg"] or last["ext"]:
        return None
    if last["zero"]:
        return 0
    return int.from_bytes(last["a"] or last["b"] or last["c"], "little")


def _calls_aarch64(piece: bytes, start: int) -> Iterator[tuple[str, int | None]]:
    at = piece.find(_SVC)
    while at >= 0:
        if at + 4 > start:
            number = None
            for place in range(at - 4, max(-1, at - _BEFORE - 1), -4):
                word = int.from_bytes(piece[place : place + 4], "little")
                if word & 0xFFE0001F in (_MOVZ_W8, _MOVZ_X8):
                    number = word >> 5 & 0xFFFF
                    break
            yield "aarch64", number
        at = piece.find(_SVC, at + 4)
