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
_CALLS_64 = (b"\x0f\x05", b"\xcd\x80")
_CALLS_32 = (b"\xcd\x80", b"\x0f\x34", b"\x65\xff\x15\x10\x00\x00\x00")
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
# mov $n,%eax; jmp: how small libraries of the C language (klibc, dietlibc) share one system call instruction.
_STUB = re.compile(rb"\xb8([\x00-\xff][\x00-\x03])\x00\x00(?:\xe9(....)|\xeb(.))", re.DOTALL)
# How far before the instruction the shared part may begin: it moves an argument, or keeps a register.
_SHARED = 16
_CALL = re.compile(rb"[\xe8\xe9](?=(....))", re.DOTALL)
_SVC = b"\x01\x00\x00\xd4"
_MOVZ_W8, _MOVZ_X8 = 0x52800008, 0xD2800008


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """Numbers of system calls by ABI (``x86_64``, ``i386``, ``aarch64``), and how many calls there are whose number
    cannot be told. `known` is False for machines whose code is not read. `stubs`: addresses where a program can go
    with its arguments and have one of these calls made.
    """

    numbers: frozenset[tuple[str, int]] = frozenset()
    untold: int = 0
    known: bool = True
    stubs: tuple[tuple[int, str, int], ...] = ()


def system_calls(file: Readable, elf: Elf) -> SystemCalls:
    """The system calls in the code of `elf`, which is in `file`."""
    if elf.machine not in (X86, X86_64, AARCH64) or not elf.little:
        return SystemCalls(known=False)
    numbers: set[tuple[str, int]] = set()
    untold: list[int] = []
    sites: dict[int, str] = {}
    stubs: dict[int, tuple[int, int]] = {}
    for piece, start, address in _pieces(file, elf):
        for place, abi, number in _calls(piece, start, elf.machine):
            sites[address + place] = abi
            if number is None:
                untold.append(address + place)
            else:
                numbers.add((abi, number))
        if elf.machine != AARCH64:
            stubs.update(_stubs(piece, address))
    told: set[int] = set()
    found: list[tuple[int, str, int]] = []
    for at, (number, target) in stubs.items():
        site = next((target + skip for skip in range(_SHARED) if target + skip in sites), None)
        if site is not None:
            told.add(site)
            numbers.add((sites[site], number))
            found.append((at, sites[site], number))
    return SystemCalls(
        frozenset(numbers), sum(1 for place in untold if place not in told), stubs=tuple(sorted(found))
    )


def goes_to(file: Readable, elf: Elf, addresses: frozenset[int]) -> frozenset[int]:
    """Those of `addresses` that the code of `elf`, for x86, calls or jumps to by their distance."""
    found: set[int] = set()
    for piece, _start, address in _pieces(file, elf):
        for match in _CALL.finditer(piece):
            target = address + match.start() + 5 + int.from_bytes(match[1], "little", signed=True)
            if target in addresses:
                found.add(target)
    return frozenset(found)


def _stubs(piece: bytes, address: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Where one begins, with the number that it loads and where it goes."""
    for match in _STUB.finditer(piece):
        distance = int.from_bytes(match[2] or match[3], "little", signed=True)
        number = int.from_bytes(match[1], "little")
        yield address + match.start(), (number, address + match.end() + distance)


def _pieces(file: Readable, elf: Elf) -> Iterator[tuple[bytes, int, int]]:
    """The code, piece by piece, with the address of each piece; its first bytes belong to the piece before."""
    seen: set[tuple[int, int]] = set()
    for segment in elf.segments:
        if not segment.code or (segment.offset, segment.size) in seen:
            continue
        seen.add((segment.offset, segment.size))
        before = b""
        for done in range(0, segment.size, _PIECE):
            piece = before + file.read_at(segment.offset + done, min(_PIECE, segment.size - done))
            yield piece, len(before), segment.address + done - len(before)
            before = piece[-_BEFORE:]


def _calls(piece: bytes, start: int, machine: int) -> Iterator[tuple[int, str, int | None]]:
    """Place, ABI and number of each call that ends after `start`, so that none counts twice."""
    if machine == AARCH64:
        yield from _calls_aarch64(piece, start)
        return
    wide = machine == X86_64
    for call in _CALLS_64 if wide else _CALLS_32:
        native = not wide or call == b"\x0f\x05"
        for at in _found(piece, call):
            if at + len(call) <= start:
                continue
            number = _loaded(piece[max(0, at - _BEFORE) : at])
            # In 64-bit code int 0x80 is so rare that its two bytes are far more often something else.
            if native or number is not None:
                yield at, "x86_64" if wide and native else "i386", number


def _found(piece: bytes, wanted: bytes) -> Iterator[int]:
    """Where it stands; find() is several times as fast as an expression."""
    at = piece.find(wanted)
    while at >= 0:
        yield at
        at = piece.find(wanted, at + 1)


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


def _calls_aarch64(piece: bytes, start: int) -> Iterator[tuple[int, str, int | None]]:
    for at in _found(piece, _SVC):
        if at + 4 > start:
            number = None
            for place in range(at - 4, max(-1, at - _BEFORE - 1), -4):
                word = int.from_bytes(piece[place : place + 4], "little")
                if word & 0xFFE0001F in (_MOVZ_W8, _MOVZ_X8):
                    number = word >> 5 & 0xFFFF
                    break
            yield at, "aarch64", number
