"""How long instructions of x86 are, and what they leave in %eax (Intel SDM, volume 2): enough to tell which number a
system call gets. An instruction that is not known here, or that no program has, has a length of zero.
"""

from __future__ import annotations

from enum import Enum

# An instruction has no more bytes (SDM, 2.3.11).
LONGEST = 15


class Effect(Enum):
    """On %eax."""

    NONE = 0
    CONSTANT = 1
    """It is the value from now on."""
    LOW_BYTE = 2
    """Its lowest byte is."""
    ADDED = 3
    COMPUTED = 4
    """It is something that the instruction alone does not tell."""
    PUSHED = 5
    """The value is on the stack, for who takes it from there."""
    POPPED = 6


Instruction = tuple[int, Effect, int]
_NOTHING: Instruction = (0, Effect.NONE, 0)
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_INVALID_64 = frozenset(b"\x06\x07\x0e\x16\x17\x1e\x1f\x27\x2f\x37\x3f\x60\x61\x82\x9a\xce\xd4\xd5\xd6\xea")
# What the kernel's code alone may do, and far jumps: no program has them, tables of numbers do.
_STRANGE = frozenset(b"\x6c\x6d\x6e\x6f\x9a\xca\xcb\xcf\xe4\xe5\xe6\xe7\xea\xec\xed\xee\xef\xf1\xf4\xfa\xfb")
_ARITHMETIC = frozenset(row + column for row in range(0, 0x40, 8) for column in range(4))
_MODRM = (
    _ARITHMETIC
    | frozenset((*b"\x63\x69\x6b", *range(0x80, 0x90), *b"\xc0\xc1\xc6\xc7", *range(0xD0, 0xD4), *range(0xD8, 0xE0)))
    | frozenset(b"\xf6\xf7\xfe\xff")
)
_BYTE = frozenset((*range(0x04, 0x40, 8), *range(0x70, 0x84), *range(0xB0, 0xB8), *range(0xE0, 0xE4))) | frozenset(
    b"\x6a\x6b\xa8\xc0\xc1\xc6\xcd\xd4\xd5\xeb"
)
_BYTE -= {0x81}
_WORD = frozenset((*range(0x05, 0x40, 8), *range(0xB8, 0xC0), 0x68, 0x69, 0x81, 0xA9, 0xC7, 0xE8, 0xE9))
# Behind 0F: what has no mod/rm, a byte behind it, four bytes.
_PLAIN_0F = frozenset((*range(0x04, 0x0D), 0x0E, *range(0x30, 0x38), 0x77, *range(0x80, 0x90), 0xA0, 0xA1, 0xA2))
_PLAIN_0F |= frozenset((0xA8, 0xA9, 0xAA, *range(0xC8, 0xD0)))
_BYTE_0F = frozenset(b"\x0f\x70\x71\x72\x73\xa4\xac\xba\xc2\xc4\xc5\xc6")
# Those whose result goes to the register of mod/rm, and those whose result goes to what it says besides.
_TO_REG = frozenset(
    (
        *(row + column for row in range(0, 0x38, 8) for column in (2, 3)),
        0x63,
        0x69,
        0x6B,
        0x8A,
        0x8B,
        0x8D,
        0x86,
        0x87,
    )
)
_TO_RM = frozenset(
    (*(row + column for row in range(0, 0x38, 8) for column in (0, 1)), 0x86, 0x87, 0x88, 0x89, 0x8C, 0x8F)
) | frozenset(b"\xc0\xc1\xc6\xc7\xd0\xd1\xd2\xd3")
_TO_REG_0F = frozenset((*range(0x40, 0x50), 0xAF, 0xB6, 0xB7, 0xB8, 0xBC, 0xBD, 0xBE, 0xBF, 0x2C, 0x2D, 0x50, 0xD7))
_TO_RM_0F = frozenset((*range(0x90, 0xA0), 0xA4, 0xA5, 0xAB, 0xAC, 0xAD, 0xB0, 0xB1, 0xB3, 0xBB, 0xC0, 0xC1, 0x7E))
_TAKEN = frozenset(b"\x31\x33\x29\x2b")  # xor and sub: of itself, nothing
_ACCUMULATED = frozenset(
    (*(row + column for row in range(0, 0x38, 8) for column in (4, 5)), *range(0x91, 0x98), 0x9F, 0xA0, 0xA1)
) | frozenset(b"\xac\xad\xd7\xe8")


def instruction(code: bytes, at: int, *, wide: bool) -> Instruction:
    """Length of the instruction at `at`, what it does to %eax, and with which value. `wide`: it is 64-bit code."""
    start, end, rex, short, narrow = at, len(code), 0, False, False
    while at < end and code[at] in _PREFIXES:
        short |= code[at] == 0x66
        narrow |= code[at] == 0x67
        at += 1
    if wide and at < end and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    if at >= end:
        return _NOTHING
    op = code[at]
    at += 1
    if op == 0x0F:
        return _two(code, start, at, rex)
    # Two zeros would be add %al,(%rax): they are the upper half of a number.
    if op in _STRANGE or (wide and op in _INVALID_64) or (op == 0 and code[at : at + 1] == b"\0"):
        return _NOTHING
    if op in (0xC4, 0xC5, 0x62) and (wide or (at < end and code[at] >= 0xC0)):
        return _vector(code, start, at, op)
    if not wide and op & 0xF0 == 0x40:
        return at - start, Effect.COMPUTED if op & 7 == 0 else Effect.NONE, 0
    mod = reg = rm = -1
    if op in _MODRM or op in (0xC4, 0xC5, 0x62):
        size = _modrm(code, at)
        if not size:
            return _NOTHING
        mod, reg, rm = code[at] >> 6, code[at] >> 3 & 7, code[at] & 7
        at += size
    width = _immediate(op, reg, rex, short=short, wide=wide, narrow=narrow)
    if at + width > end:
        return _NOTHING
    value = int.from_bytes(code[at : at + width], "little")
    length = at + width - start
    return (length, *_effect(op, mod, reg, rm, rex, value)) if length <= LONGEST else _NOTHING


def _immediate(op: int, reg: int, rex: int, *, short: bool, wide: bool, narrow: bool) -> int:
    if op in _BYTE or (op == 0xF6 and reg < 2):
        return 1
    if op in _WORD or (op == 0xF7 and reg < 2):
        if op >> 3 == 0xB8 >> 3 and rex & 8:
            return 8
        return 2 if short and op not in (0xE8, 0xE9) else 4
    if 0xA0 <= op <= 0xA3:
        return 8 if wide and not narrow else 4
    return {0xC2: 2, 0xC8: 3}.get(op, 0)


def _modrm(code: bytes, at: int) -> int:
    """How many bytes mod/rm has with SIB and displacement; 0: they are not there."""
    if at >= len(code):
        return 0
    mod, rm = code[at] >> 6, code[at] & 7
    size = 1
    if mod != 3:
        if rm == 4:
            if at + 1 >= len(code):
                return 0
            size += 1 + (4 if mod == 0 and code[at + 1] & 7 == 5 else 0)
        elif mod == 0 and rm == 5:
            size += 4
        size += (0, 1, 4)[mod]
    return size if at + size <= len(code) else 0


def _two(code: bytes, start: int, at: int, rex: int) -> Instruction:
    """Those that begin with 0F."""
    if at >= len(code):
        return _NOTHING
    op = code[at]
    at += 1
    if op in (0x38, 0x3A):
        size = _modrm(code, at + 1)
        end = at + 1 + size + (op == 0x3A)
        return (end - start, Effect.NONE, 0) if size and end <= len(code) else _NOTHING
    if op in _PLAIN_0F:
        end = at + (4 if 0x80 <= op < 0x90 else 0)
        changed = op in (0x05, 0x31, 0x34, 0xA2) or (op == 0xC8 and not rex & 1)
        return (end - start, Effect.COMPUTED if changed else Effect.NONE, 0) if end <= len(code) else _NOTHING
    size = _modrm(code, at)
    end = at + size + (op in _BYTE_0F)
    if not size or end > len(code) or end - start > LONGEST:
        return _NOTHING
    mod, reg, rm = code[at] >> 6, code[at] >> 3 & 7, code[at] & 7
    hit = (op in _TO_REG_0F and reg == 0 and not rex & 4) or (
        op in _TO_RM_0F and mod == 3 and rm == 0 and not rex & 1
    )
    # cmpxchg leaves in %eax what was there.
    return end - start, Effect.COMPUTED if hit or op in (0xB0, 0xB1) else Effect.NONE, 0


def _vector(code: bytes, start: int, at: int, op: int) -> Instruction:
    """Those of AVX (VEX, EVEX): none of them has to do with numbers of system calls."""
    prefix = {0xC4: 2, 0xC5: 1, 0x62: 3}[op]
    if at + prefix >= len(code):
        return _NOTHING
    group = 1 if op == 0xC5 else code[at] & 0x1F if op == 0xC4 else code[at] & 7
    opcode = code[at + prefix]
    at += prefix + 1
    size = 0 if group == 1 and opcode == 0x77 else _modrm(code, at)
    end = at + size + (group == 3 or (group == 1 and opcode in _BYTE_0F))
    valid = group in (1, 2, 3, 5, 6) and (size or opcode == 0x77) and end <= len(code)
    return (end - start, Effect.NONE, 0) if valid else _NOTHING


def _effect(op: int, mod: int, reg: int, rm: int, rex: int, value: int) -> tuple[Effect, int]:
    to_rm = mod == 3 and rm == 0 and not rex & 1
    to_reg = reg == 0 and not rex & 4
    if not rex & 1 and op in (0xB0, 0xB8, 0x58, 0x90):
        kinds = {0xB0: Effect.LOW_BYTE, 0xB8: Effect.CONSTANT, 0x58: Effect.POPPED, 0x90: Effect.NONE}
        return kinds[op], value
    if op in (0x68, 0x6A):
        return Effect.PUSHED, value
    if op in _TAKEN and mod == 3 and reg == rm and bool(rex & 4) == bool(rex & 1):
        return (Effect.CONSTANT, 0) if to_rm else (Effect.NONE, 0)
    if op == 0xC7 and to_rm:
        return Effect.CONSTANT, value
    if op in (0x81, 0x83, 0x80) and to_rm:
        if reg == 7:
            return Effect.NONE, 0
        return (Effect.ADDED, value) if reg == 0 and op != 0x80 and value < 0x80 else (Effect.COMPUTED, 0)
    if op == 0x05:
        return Effect.ADDED, value
    hit = op in _ACCUMULATED or (op in _TO_RM and to_rm) or (op in _TO_REG and to_reg)
    # not, neg; and what multiplies or divides, whatever by.
    hit = hit or (op in (0xF6, 0xF7) and (reg >= 4 or (reg in (2, 3) and to_rm)))
    # mov to %ah.
    hit = (
        hit
        or (op == 0xB4 and not rex)
        or (op == 0xFE and to_rm)
        or (op == 0xFF and ((reg < 2 and to_rm) or reg in (2, 3)))
    )
    return (Effect.COMPUTED, 0) if hit else (Effect.NONE, 0)
