"""What an ELF file says to the kernel and to the dynamic linker, and nothing else of it (elf(5), ld.so(8)).

Only program headers count: section headers are for debuggers, and a file may lie in them, or have none. Everything is
bounded, for the file is the image's.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

MAGIC = b"\x7fELF"
HEAD_BYTES = 64
MAX_HEADERS = 4096
MAX_DYNAMIC = 1 << 16
MAX_STRINGS = 64 << 20
MAX_SYMBOLS = 4_000_000
MAX_NEEDED = 1000

EXECUTABLE, SHARED = 2, 3
X86, ARM, X86_64, AARCH64, RISCV = 3, 40, 62, 183, 243

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_CODE, _WRITABLE = 1, 2
_NEEDED, _HASH, _STRTAB, _SYMTAB, _RELA, _RELASZ, _STRSZ = 1, 4, 5, 6, 7, 8, 10
_SONAME, _RPATH, _REL, _RELSZ, _PLTREL, _JMPREL, _PLTRELSZ = 14, 15, 17, 18, 20, 23, 2
_RUNPATH, _GNU_HASH = 29, 0x6FFFFEF5
_SYSCALL = b"syscall"


class MalformedElf(ValueError):
    """An ELF file that contradicts itself, or is larger than anything sensible."""


class Readable(Protocol):
    """Bytes by offset; both offsets and `size` in bytes. What is outside raises."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, size: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the file that is loaded: where in the file, its size there, its address, whether it is code."""

    offset: int
    size: int
    address: int
    code: bool


@dataclass(frozen=True, slots=True)
class Elf:
    """`bits` 32 or 64; `machine` and `type` as elf(5) numbers them. `interpreter` is that of PT_INTERP.

    `imports` are those of the names asked for that it wants from others, `dynamic` whether the dynamic linker has
    anything to do with it at all. `slots`: where the dynamic linker puts the address of syscall(2), if that is among
    the imports, and None if nothing says. `rewritable`: a part of it is loaded as code that can be written to.
    """

    bits: int
    little: bool
    machine: int
    type: int
    segments: tuple[Segment, ...]
    interpreter: str = ""
    dynamic: bool = False
    needed: tuple[str, ...] = ()
    soname: str = ""
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    imports: frozenset[str] = frozenset()
    slots: frozenset[int] | None = None
    rewritable: bool = False

    @property
    def is_static(self) -> bool:
        """Whether it runs without any library."""
        return not self.interpreter and not self.needed


class _Reader:
    """Structures of one class and byte order."""

    def __init__(self, file: Readable, bits: int, little: bool) -> None:
        self.file = file
        self.bits = bits
        self.little = little
        order = "<" if little else ">"
        wide = bits == 64
        self.header = struct.Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
        self.program = struct.Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
        self.entry = struct.Struct(order + ("qQ" if wide else "iI"))
        self.word = struct.Struct(order + "I")
        self.symbol_size = 24 if wide else 16

    def bytes(self, offset: int, size: int, what: str) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.file.size:
            raise MalformedElf(f"its {what} are outside of it")
        return self.file.read_at(offset, size)


def parse_elf(file: Readable, wanted: frozenset[bytes]) -> Elf:
    """What is in the headers of `file`; of its imports only those in `wanted`.

    :raise MalformedElf: it is no ELF file, or a broken one.
    """
    if file.size < 52:
        raise MalformedElf("it is too short for ELF")
    head = file.read_at(0, min(file.size, HEAD_BYTES))
    if not head.startswith(MAGIC) or head[4] not in (1, 2) or head[5] not in (1, 2):
        raise MalformedElf("it is no ELF file of a known class and byte order")
    reader = _Reader(file, 64 if head[4] == 2 else 32, head[5] == 1)
    if len(head) < 16 + reader.header.size:
        raise MalformedElf("it is too short for ELF")
    kind, machine, _version, _entry, phoff, _shoff, _flags, _size, phsize, phnum, *_rest = reader.header.unpack_from(
        head, 16
    )
    if phnum and (phsize != reader.program.size or phnum > MAX_HEADERS):
        raise MalformedElf(f"it has {phnum} program headers of {phsize} bytes")
    segments: list[Segment] = []
    interpreter: str | None = None
    dynamic, rewritable = None, False
    for fields in reader.program.iter_unpack(reader.bytes(phoff, phnum * phsize, "program headers")):
        if reader.bits == 64:
            ptype, flags, offset, address, _physical, size, _memory, _align = fields
        else:
            ptype, offset, address, _physical, size, _memory, flags, _align = fields
        rewritable |= ptype == _LOAD and flags & (_CODE | _WRITABLE) == _CODE | _WRITABLE
        if ptype == _LOAD and size:
            if offset + size > file.size:
                raise MalformedElf("a segment ends outside of it")
            segments.append(Segment(offset, size, address, bool(flags & _CODE)))
        elif ptype == _INTERP and interpreter is None:
            # execve(2) takes the first of two.
            interpreter = _text(reader.bytes(offset, min(size, 4096), "interpreter's name").split(b"\0")[0])
        elif ptype == _DYNAMIC:
            dynamic = (offset, size)
    elf = Elf(reader.bits, reader.little, machine, kind, tuple(segments), interpreter or "", rewritable=rewritable)
    return elf if dynamic is None else _dynamic(reader, elf, dynamic, wanted)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _dynamic(reader: _Reader, elf: Elf, where: tuple[int, int], wanted: frozenset[bytes]) -> Elf:
    offset, size = where
    size -= size % reader.entry.size
    if size > MAX_DYNAMIC * reader.entry.size:
        raise MalformedElf("its dynamic section is too large")
    single: dict[int, int] = {}
    several: dict[int, list[int]] = {_NEEDED: [], _RPATH: [], _RUNPATH: []}
    for tag, value in reader.entry.iter_unpack(reader.bytes(offset, size, "dynamic section")):
        if tag == 0:
            break
        if tag in several:
            several[tag].append(value)
        else:
            # The dynamic linker takes the last of two.
            single[tag] = value
    strings = _strings(reader, elf, single)
    if len(several[_NEEDED]) > MAX_NEEDED:
        raise MalformedElf(f"it needs {len(several[_NEEDED])} libraries")

    def paths(tag: int) -> tuple[str, ...]:
        return tuple(path for at in several[tag] for path in _string(strings, at).split(":") if path)

    found = _imports(reader, elf, single, strings, wanted)
    numbers = found.get(_SYSCALL, [])
    return replace(
        elf,
        dynamic=True,
        needed=tuple(_string(strings, at) for at in several[_NEEDED]),
        soname=_string(strings, single[_SONAME]) if _SONAME in single else "",
        rpath=paths(_RPATH),
        runpath=paths(_RUNPATH),
        imports=frozenset(map(_text, found)),
        slots=_slots(reader, elf, single, frozenset(numbers)) if numbers else None,
    )


def _offset(elf: Elf, address: int) -> tuple[int, int]:
    """Where in the file an address is loaded from, and how many bytes follow there.

    :raise MalformedElf: nowhere.
    """
    for segment in elf.segments:
        if segment.address <= address < segment.address + segment.size:
            skip = address - segment.address
            return segment.offset + skip, segment.size - skip
    raise MalformedElf(f"nothing is loaded at {address:#x}, where its dynamic section says that there is")


def _strings(reader: _Reader, elf: Elf, tags: dict[int, int]) -> bytes:
    if _STRTAB not in tags:
        return b""
    offset, left = _offset(elf, tags[_STRTAB])
    size = min(tags.get(_STRSZ, 0), left)
    if size > MAX_STRINGS:
        raise MalformedElf(f"its table of names has {size} bytes")
    return reader.bytes(offset, size, "names")


def _string(strings: bytes, at: int) -> str:
    # ld.so does not heed DT_STRSZ; who hides a name behind its end is up to something.
    end = strings.find(b"\0", at)
    if end < 0:
        raise MalformedElf("a name lies outside of its table of names")
    return _text(strings[at:end])


def _imports(
    reader: _Reader, elf: Elf, tags: dict[int, int], strings: bytes, wanted: frozenset[bytes]
) -> dict[bytes, list[int]]:
    """Those of `wanted` that it imports, with the numbers of their symbols."""
    if _SYMTAB not in tags or not strings:
        return {}
    offset, left = _offset(elf, tags[_SYMTAB])
    count = max(_hashed(reader, elf, tags), _relocated(reader, elf, tags))
    count = min(count, left // reader.symbol_size)
    if count > MAX_SYMBOLS:
        raise MalformedElf(f"it has {count} symbols")
    table = array("I", reader.bytes(offset, count * reader.symbol_size, "symbols"))
    if not reader.little:
        table.byteswap()
    stride = reader.symbol_size // 4
    # st_name, then st_info, st_other and st_shndx in one word: the second of six in ELF64, the last of four in ELF32.
    names, words = table[0::stride], table[1 if stride == 6 else 3 :: stride]
    shift, mask = (16, 0xFFFF) if reader.little else (0, 0xFFFF)
    found: dict[bytes, list[int]] = {}
    for number, (at, word) in enumerate(zip(names, words, strict=True)):
        if not (word >> shift) & mask and at:
            end = strings.find(b"\0", at)
            if end < 0:
                raise MalformedElf("the name of a symbol lies outside of its table of names")
            name = strings[at:end]
            if name in wanted:
                found.setdefault(name, []).append(number)
    return found


def _hashed(reader: _Reader, elf: Elf, tags: dict[int, int]) -> int:
    """How many symbols the hash tables speak of (gABI, "Hash Table"; DT_GNU_HASH as binutils writes it)."""
    count = 0
    if _HASH in tags:
        offset, left = _offset(elf, tags[_HASH])
        if left >= 8:
            (count,) = reader.word.unpack(reader.bytes(offset + 4, 4, "hash table"))
    if _GNU_HASH in tags:
        offset, left = _offset(elf, tags[_GNU_HASH])
        if left < 16:
            raise MalformedElf("its hash table breaks off")
        buckets, first, blooms, _shift = (number for (number,) in _words(reader, offset, 4))
        at = offset + 16 + blooms * (reader.bits // 8)
        if blooms > MAX_SYMBOLS or buckets > MAX_SYMBOLS or at + 4 * buckets > offset + left:
            raise MalformedElf("its hash table breaks off")
        last = max((number for (number,) in _words(reader, at, buckets)), default=0)
        count = max(count, first)
        if last >= first:
            chain = at + 4 * buckets + 4 * (last - first)
            room = (offset + left - chain) // 4
            if room <= 0:
                raise MalformedElf("its hash table breaks off")
            for (number,) in _words(reader, chain, min(room, 4096)):
                last += 1
                if number & 1:
                    break
            count = max(count, last)
    return count


def _words(reader: _Reader, offset: int, count: int) -> Iterator[tuple[int]]:
    return reader.word.iter_unpack(reader.bytes(offset, 4 * count, "hash table"))


def _relocated(reader: _Reader, elf: Elf, tags: dict[int, int]) -> int:
    """One more than the highest symbol that a relocation names: what is really looked up, whatever is hashed."""
    highest = -1
    for rela, numbers in _relocations(reader, elf, tags):
        symbols = _columns(reader, numbers, rela=rela)[1]
        highest = max(highest, max(symbols, default=-1) >> (0 if reader.bits == 64 else 8))
    return highest + 1


def _slots(reader: _Reader, elf: Elf, tags: dict[int, int], wanted: frozenset[int]) -> frozenset[int] | None:
    """Addresses at which relocations want one of these symbols; None: there are no relocations."""
    shift = 0 if reader.bits == 64 else 8
    found: set[int] = set()
    any_there = False
    for rela, numbers in _relocations(reader, elf, tags):
        places, symbols = _columns(reader, numbers, rela=rela)
        any_there |= bool(places)
        found.update(place for place, symbol in zip(places, symbols, strict=True) if symbol >> shift in wanted)
    return frozenset(found) if any_there else None


def _relocations(reader: _Reader, elf: Elf, tags: dict[int, int]) -> Iterator[tuple[bool, array[int]]]:
    """Each table of relocations in words of 32 bits, and whether its rows have addends."""
    uses_rela = tags.get(_PLTREL, _RELA) == _RELA
    for table, size, rela in (
        (_RELA, _RELASZ, True),
        (_REL, _RELSZ, False),
        (_JMPREL, _PLTRELSZ, uses_rela),
    ):
        if table not in tags or not tags.get(size):
            continue
        offset, left = _offset(elf, tags[table])
        width = (24 if rela else 16) if reader.bits == 64 else (12 if rela else 8)
        raw = reader.bytes(offset, min(tags[size], left) // width * width, "relocations")
        numbers = array("I", raw)
        if not reader.little:
            numbers.byteswap()
        yield rela, numbers


def _columns(reader: _Reader, numbers: array[int], *, rela: bool) -> tuple[array[int], array[int]]:
    """The lower half of r_offset, and what has the symbol in it."""
    if reader.bits == 32:
        stride = 3 if rela else 2
        return numbers[0::stride], numbers[1::stride]
    # r_info is the second of the 64-bit words, the symbol its upper half.
    stride = 6 if rela else 4
    return (numbers[0::stride], numbers[3::stride]) if reader.little else (numbers[1::stride], numbers[2::stride])
