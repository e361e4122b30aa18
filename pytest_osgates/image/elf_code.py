"""Which system calls the machine code of a program makes by itself, as far as that can be told without running it.

Each number counts that an instruction loads into the register of the system call's number shortly before the call; if
the last one that changes this register does not say to what, the number cannot be told. Where code goes is not
followed: it errs towards seeing more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.image.elf import AARCH64, X86, X86_64, Elf, Readable
from pytest_osgates.image.x86 import LONGEST, Effect, Instruction, instruction

_PIECE = 1 << 20
# Longer than any instruction sequence between the two that compilers make.
_BEFORE = 64

# Intel SDM: 0F 05 is syscall, CD 80 int 0x80, 0F 34 sysenter; 65 FF 15/14.. call *%gs:16 goes through the vDSO.
# In static programs call *_dl_sysinfo does; any other call through memory looks the same.
_THROUGH = b"\xff\x15"
_CALLS_64 = (b"\x0f\x05", b"\xcd\x80")
_CALLS_32 = (b"\xcd\x80", b"\x0f\x34", b"\x65\xff\x15\x10\x00\x00\x00", _THROUGH)
# x32 (asm/unistd.h): the same numbers with this bit.
_X32 = 0x40000000
# Whoever starts to read in the middle of an instruction meets the next ones after a few.
_ASTRAY = 16
# mprotect, mmap, pkey_mprotect, mmap2 by ABI; all take the protection third.
_PROTECTING = frozenset(
    {("x86_64", 9), ("x86_64", 10), ("x86_64", 329), ("i386", 125), ("i386", 192), ("i386", 380)}
    | {("aarch64", 222), ("aarch64", 226), ("aarch64", 288)}
)
# mov $n,%edx with PROT_EXEC (4) in n, not mov $n,%r10d; mov $n,%dl; push $n, pop %rdx.
_EXECUTABLE_X86 = re.compile(rb"(?<![\x41\x49])\xba[\x04-\x07]\x00\x00\x00|\xb2[\x04-\x07]|\x6a[\x04-\x07]\x5a")
# mov $n,%eax; jmp: how small libraries of the C language (klibc, dietlibc) share one system call instruction.
_STUB = re.compile(rb"\xb8([\x00-\xff][\x00-\x03])\x00\x00(?:\xe9(....)|\xeb(.))", re.DOTALL)
# How far before the instruction the shared part may begin: it moves an argument, or keeps a register.
_SHARED = 16
_CALL = re.compile(rb"[\xe8\xe9](?=(....))", re.DOTALL)
# jmp *slot(%rip), call *slot(%rip); call, jmp.
_STEPS = re.compile(rb"(?:\xff[\x15\x25]|[\xe8\xe9])(?=(....))", re.DOTALL)
_SLOT = re.compile(rb"\xff\x25(?=(....))", re.DOTALL)
# What may stand in an entry of the procedure linkage table before its jump: bnd, endbr64, both.
_ENTRIES = (0, 1, 4, 5)
_SVC = b"\x01\x00\x00\xd4"
_MOVZ_W8, _MOVZ_X8 = 0x52800008, 0xD2800008
_MOVZ_W2, _MOVZ_X2 = 0x52800002, 0xD2800002


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """Numbers of system calls by ABI (``x86_64``, ``i386``, ``aarch64``), and how many calls there are whose number
    cannot be told; `clearly`: how many of those are instructions, as far as one can see, and not bytes of others.

    `known` is False for machines whose code is not read. `stubs`: addresses where a program can go with its arguments
    and have one of these calls made. `executes`: it makes memory executable itself, for code that nobody sees here.
    """

    numbers: frozenset[tuple[str, int]] = frozenset()
    untold: int = 0
    clearly: int = 0
    known: bool = True
    stubs: tuple[tuple[int, str, int], ...] = ()
    executes: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """What stands before a call: the numbers that are loaded there, the last of which counts, if it can be told."""

    abi: str
    numbers: frozenset[int]
    told: bool
    clear: bool
    executes: bool


def system_calls(file: Readable, elf: Elf) -> SystemCalls:
    """The system calls in the code of `elf`, which is in `file`."""
    if elf.machine not in (X86, X86_64, AARCH64) or not elf.little:
        return SystemCalls(known=False)
    numbers: set[tuple[str, int]] = set()
    untold: dict[int, bool] = {}
    sites: dict[int, str] = {}
    stubs: dict[int, tuple[int, int]] = {}
    executes = False
    for piece, start, address in _pieces(file, elf):
        for place, call in _calls(piece, start, elf.machine):
            sites[address + place] = call.abi
            numbers.update((call.abi, number) for number in call.numbers)
            executes |= call.executes
            if not call.told:
                untold[address + place] = call.clear
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
    left = [clear for place, clear in untold.items() if place not in told]
    return SystemCalls(
        frozenset(numbers), len(left), clearly=sum(left), stubs=tuple(sorted(found)), executes=executes
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


def gives(file: Readable, elf: Elf, number: int) -> bool:
    """Whether the code of `elf`, for amd64, loads `number` into %edi, and goes to syscall(2) next."""
    loads = b"\xbf" + number.to_bytes(4, "little")
    slots, entries = elf.slots or frozenset(), set[int]()
    for piece, _start, address in _pieces(file, elf):
        for match in _SLOT.finditer(piece):
            if _target(match, address) & 0xFFFFFFFF in slots:
                entries.update(address + match.start() - skip for skip in _ENTRIES)
    for piece, _start, address in _pieces(file, elf):
        for at in _found(piece, loads):
            call = _next_call(piece, at + len(loads))
            if call is None:
                continue
            target = _target(call, address)
            if target & 0xFFFFFFFF in slots if call[0][0] == 0xFF else target in entries:
                return True
    return False


def _next_call(piece: bytes, at: int) -> re.Match[bytes] | None:
    """The first call, or jump that is one, behind `at`: what comes after it has other arguments."""
    end = min(at + _BEFORE, len(piece))
    while at < end:
        match = _STEPS.match(piece, at)
        if match is not None:
            return match
        length, _, _ = instruction(piece[at : at + LONGEST], 0, wide=True)
        if not length:
            return None
        at += length
    return None


def _target(match: re.Match[bytes], address: int) -> int:
    """Where an instruction points whose last four bytes, a distance from its end, are matched ahead."""
    return address + match.end() + 4 + int.from_bytes(match[1], "little", signed=True)


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


def _calls(piece: bytes, start: int, machine: int) -> Iterator[tuple[int, _Call]]:
    """Place and meaning of each call that ends after `start`, so that none counts twice."""
    if machine == AARCH64:
        yield from _calls_aarch64(piece, start)
        return
    wide = machine == X86_64
    for call in _CALLS_64 if wide else _CALLS_32:
        native = call == b"\x0f\x05" if wide else call != _THROUGH
        abi = "x86_64" if wide and native else "i386"
        for at in _found(piece, call):
            if at + len(call) <= start:
                continue
            before = piece[max(0, at - _BEFORE) : at]
            found, told, clear = _loaded(before, wide=wide)
            # In 64-bit code int 0x80 is so rare that its two bytes are far more often something else.
            if native or (told and clear):
                executes = any((abi, number) in _PROTECTING for number in found)
                executes = executes and _EXECUTABLE_X86.search(before) is not None
                yield at, _Call(abi, found, told, clear, executes)


def _found(piece: bytes, wanted: bytes) -> Iterator[int]:
    """Where it stands; find() is several times as fast as an expression."""
    at = piece.find(wanted)
    while at >= 0:
        yield at
        at = piece.find(wanted, at + 1)


def _loaded(before: bytes, *, wide: bool) -> tuple[frozenset[int], bool, bool]:
    """The numbers that are loaded into %eax in `before`, whether the last of them is known, and whether who begins to
    read in there comes to its end.

    Where an instruction begins is not known: each place is tried, and what most of them come to is believed. What
    only some come to may still be a number.
    """
    size = len(before)
    rows = [instruction(before, at, wide=wide) for at in range(size)]
    lands, last = [False] * size + [True], [size] * (size + 1)
    for at in range(size - 1, -1, -1):
        length, effect, _ = rows[at]
        if not length or at + length > size or not lands[at + length]:
            continue
        lands[at] = True
        last[at] = last[at + length]
        if last[at] == size and effect not in (Effect.NONE, Effect.PUSHED):
            last[at] = at
    clear = size == _BEFORE and sum(lands[:_ASTRAY]) > _ASTRAY // 2
    numbers = {value & ~_X32 for at, (_, effect, value) in enumerate(rows) if lands[at] and effect is Effect.CONSTANT}
    # Who begins early has the time to find the way; code begins with an instruction.
    early = [last[at] for at in range(_ASTRAY if size == _BEFORE else 1) if lands[at]]
    votes = Counter(place for place in early or last[:size] if place != size)
    place = max(votes, key=lambda at: (votes[at], -at), default=None)
    number = None if place is None else _value(rows, last, lands, place)
    if number is not None:
        numbers.add(number & ~_X32)
    return frozenset(numbers), number is not None, clear


def _value(rows: list[Instruction], last: list[int], lands: list[bool], place: int) -> int | None:
    """What is in %eax behind the instruction at `place`."""
    begin = next((at for at in range(place + 1) if lands[at] and last[at] == place), place)
    value: int | None = None
    pushed: int | None = None
    at = begin
    while at <= place:
        length, effect, operand = rows[at]
        match effect:
            case Effect.CONSTANT:
                value = operand
            case Effect.LOW_BYTE:
                value = None if value is None else value & ~0xFF | operand
            case Effect.ADDED:
                value = None if value is None else value + operand & 0xFFFFFFFF
            case Effect.COMPUTED:
                value = None
            case Effect.POPPED:
                value = pushed
            case _:
                pass
        pushed = operand if effect is Effect.PUSHED else None
        at += length
    return value


def _calls_aarch64(piece: bytes, start: int) -> Iterator[tuple[int, _Call]]:
    for at in _found(piece, _SVC):
        if at + 4 <= start:
            continue
        numbers: list[int] = []
        told, executes = False, False
        for place in range(at - 4, max(-1, at - _BEFORE - 1), -4):
            word = int.from_bytes(piece[place : place + 4], "little")
            kind, value = word & 0xFFE0001F, word >> 5 & 0xFFFF
            if kind in (_MOVZ_W8, _MOVZ_X8):
                told |= not numbers
                numbers.append(value)
            elif _writes_x8(word) and not numbers:
                break
            executes |= kind in (_MOVZ_W2, _MOVZ_X2) and bool(value & 4)
        executes = executes and any(("aarch64", number) in _PROTECTING for number in numbers)
        yield at, _Call("aarch64", frozenset(numbers), told, clear=True, executes=executes)


def _writes_x8(word: int) -> bool:
    """Whether an instruction of data processing has x8 for its result, or a load (Arm ARM, C4.1)."""
    group = word >> 25 & 0xF
    return word & 0x1F == 8 and (group in (5, 8, 9, 13) or (group in (4, 6, 12, 14) and bool(word >> 22 & 1)))
