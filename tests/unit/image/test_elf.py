"""ELF files: what the kernel and the dynamic linker would make of them, also of broken ones."""

from __future__ import annotations

import struct

import pytest
from elf_builders import BASE, COMPUTED, LINKER, SOCKET, WRITE, Bytes, elf, library, static
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_osgates.image import elf_code
from pytest_osgates.image.elf import AARCH64, X86, Elf, MalformedElf, parse_elf
from pytest_osgates.image.elf_code import gives, goes_to, system_calls

WANTED = frozenset({b"socket", b"connect", b"getaddrinfo"})


def parsed(data: bytes) -> Elf:
    return parse_elf(Bytes(data), WANTED)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("hashed", ["sysv", "gnu", "relocations"])
def test_a_program(bits: int, little: bool, hashed: str) -> None:
    data = elf(
        ("libc.so.6", "libfoo.so.1"),
        ("printf", "socket", "getaddrinfo"),
        exports=("connect", "main"),
        runpath="$ORIGIN/../lib:/opt/lib",
        bits=bits,
        little=little,
        hashed=hashed,
    )
    found = parsed(data)
    assert (found.bits, found.little, found.machine, found.type) == (bits, little, 62, 3)
    assert found.interpreter == "/lib64/ld-linux-x86-64.so.2"
    assert found.needed == ("libc.so.6", "libfoo.so.1")
    assert found.runpath == ("$ORIGIN/../lib", "/opt/lib")
    assert found.imports == {"socket", "getaddrinfo"}, "what it exports it does not import"
    assert not found.is_static


def test_a_library_and_a_static_program() -> None:
    assert parsed(library("libfoo.so.1", ("connect",))).soname == "libfoo.so.1"
    found = parsed(static())
    assert found.is_static
    assert not found.dynamic
    assert [segment.code for segment in found.segments] == [True]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "too short"),
        (b"\x7fELF" + bytes(60), "no ELF file of a known class"),
        (b"\x7fELF\x02\x01" + bytes(50), "too short"),
        (b"#!/bin/sh\n" + bytes(60), "no ELF"),
        (elf()[:200], "outside"),
        (elf()[:-40], "ends outside"),
    ],
)
def test_what_is_broken_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(MalformedElf, match=what):
        parsed(data)


@settings(max_examples=150)
@given(st.data())
def test_a_changed_file_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(elf(("libc.so.6",), ("socket", "connect"), exports=("a", "b"), hashed="gnu"))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    try:
        found = parsed(bytes(raw))
        system_calls(Bytes(bytes(raw)), found)
    except MalformedElf:
        return
    assert found.imports <= {"socket", "connect", "getaddrinfo"}


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_magic(raw: bytes) -> None:
    try:
        parsed(b"\x7fELF\x02\x01\x01" + raw)
    except MalformedElf:
        return


def test_an_import_that_no_hash_table_counts_is_found_by_its_relocation() -> None:
    """A hash table that speaks of fewer symbols than there are hides nothing: relocations are what is looked up."""
    data = elf(("libc.so.6",), ("printf", "socket"), hashed="relocations")
    assert parsed(data).imports == {"socket"}


# -- code ----------------------------------------------------------------------------------------------------------


def calls(code: bytes, machine: int = 62, bits: int = 64) -> elf_code.SystemCalls:
    data = static(code, machine=machine, bits=bits)
    return system_calls(Bytes(data), parsed(data))


@pytest.mark.parametrize(
    ("code", "numbers", "untold"),
    [
        (SOCKET, {("x86_64", 41)}, 0),
        (WRITE + SOCKET, {("x86_64", 1), ("x86_64", 41)}, 0),
        (b"\x6a\x29\x58\x0f\x05", {("x86_64", 41)}, 0),
        (b"\x48\xc7\xc0\x29\x00\x00\x00\x0f\x05", {("x86_64", 41)}, 0),
        (b"\xb8\x20\x01\x00\x00\x31\xd2\x0f\x05", {("x86_64", 288)}, 0),
        (b"\x31\xc0\x0f\x05", {("x86_64", 0)}, 0),
        (COMPUTED, set(), 1),
        (b"\x90" * 70 + b"\x0f\x05", set(), 1),
        (b"\xb8\x66\x00\x00\x00\xcd\x80", {("i386", 102)}, 0),
        (b"\x90" * 70 + b"\xcd\x80", set(), 0),
        (b"\xc3", set(), 0),
        # mov $41,%eax; then mov $0,%r8d, xor %r8d,%r8d, mov $0xc031,%esi: 0 only for who begins in their middle
        (bytes.fromhex("b829000000 41b800000000 0f05"), {("x86_64", 0), ("x86_64", 41)}, 0),
        (bytes.fromhex("b829000000 4531c0 0f05"), {("x86_64", 0), ("x86_64", 41)}, 0),
        (bytes.fromhex("b829000000 be31c00000 0f05"), {("x86_64", 41)}, 0),
        # xor %eax,%eax; then mov $41,%al, add $41,%eax
        (bytes.fromhex("31c0 b029 0f05"), {("x86_64", 0), ("x86_64", 41)}, 0),
        (bytes.fromhex("31c0 83c029 0f05"), {("x86_64", 0), ("x86_64", 41)}, 0),
        # mov $1,%eax; then lea 41(%rdi),%eax, mov 8(%rsp),%eax, push %rcx and pop %rax, a call
        (bytes.fromhex("b801000000 8d4729 0f05"), {("x86_64", 1)}, 1),
        (bytes.fromhex("b801000000 8b442408 0f05"), {("x86_64", 1)}, 1),
        (bytes.fromhex("b801000000 51 58 0f05"), {("x86_64", 1)}, 1),
        (bytes.fromhex("b801000000 e800000000 0f05"), {("x86_64", 1)}, 1),
        # mov $41,%eax; jmp; mov $1,%eax: it may be either
        (bytes.fromhex("b829000000 eb05 b801000000 0f05"), {("x86_64", 1), ("x86_64", 41)}, 0),
        # x32
        (bytes.fromhex("b829000040 0f05"), {("x86_64", 41)}, 0),
    ],
)
def test_system_calls_of_amd64(code: bytes, numbers: set[tuple[str, int]], untold: int) -> None:
    found = calls(b"\x90" * 80 + code)
    assert set(found.numbers) == numbers
    assert found.untold == untold


def test_system_calls_of_other_machines() -> None:
    assert calls(b"\xb8\x67\x01\x00\x00\xcd\x80", X86, 32).numbers == {("i386", 359)}
    assert calls(b"\x90" * 70 + b"\xcd\x80", X86, 32).untold == 1
    # mov x8, #198; svc #0
    arm = (0xD2800008 | 198 << 5).to_bytes(4, "little") + b"\x01\x00\x00\xd4"
    assert calls(arm, AARCH64).numbers == {("aarch64", 198)}
    # ... and what the number is taken from: mov x8, x0; ldr x8, [sp]
    assert calls(arm[:4] + b"\xe8\x03\x00\xaa" + arm[4:], AARCH64).untold == 1
    assert calls(arm[:4] + b"\xe8\x03\x40\xf9" + arm[4:], AARCH64).untold == 1
    assert not calls(SOCKET, machine=8).known


def test_the_call_through_memory_of_static_i386_programs() -> None:
    found = calls(b"\x90" * 80 + bytes.fromhex("b867010000 ff15f09a0e08"), X86, 32)
    assert (found.numbers, found.untold) == ({("i386", 359)}, 0)
    assert calls(b"\x90" * 80 + bytes.fromhex("8b442408 ff15f09a0e08"), X86, 32).untold == 0


@pytest.mark.parametrize(
    ("code", "executes"),
    [
        # mov $9,%eax; mov $7,%edx, or mov $3,%edx, or mov $7,%r10d
        ("b809000000 ba07000000 0f05", True),
        ("b809000000 ba03000000 0f05", False),
        ("b809000000 41ba07000000 0f05", False),
        ("b80a000000 6a055a 0f05", True),
        ("b801000000 ba07000000 0f05", False),
    ],
)
def test_memory_that_code_makes_executable(code: str, executes: bool) -> None:
    assert calls(b"\x90" * 80 + bytes.fromhex(code)).executes is executes


def test_a_number_that_libc_is_given() -> None:
    """mov $41,%edi; call: of the entry of the table that leads to syscall, not of any other."""
    code = bytes.fromhex("bf29000000 e800000000 c3") + b"\x90" * 89 + bytes.fromhex("ff2500000000 ff2500000000")
    raw = elf(imports=("syscall", "putchar"), hashed="relocations", code=code)
    # Relocations of the builder say that the dynamic linker writes at address 0.
    at = BASE + raw.index(code)

    def linked(entry: int, slot: int) -> bytes:
        call = (entry - 10).to_bytes(4, "little", signed=True)
        jumps = b"".join(
            b"\xff\x25" + (where - (at + skip + 6)).to_bytes(4, "little", signed=True)
            for skip, where in ((100, slot), (106, 8))
        )
        return raw.replace(code, code[:6] + call + code[10:100] + jumps)

    for entry, slot, expected in ((100, 0, True), (106, 0, False), (100, 8, False)):
        data = linked(entry, slot)
        found = parse_elf(Bytes(data), frozenset({b"syscall"}))
        assert found.slots == {0}
        assert gives(Bytes(data), found, 41) is expected


def test_the_first_interpreter_of_two_counts_and_code_that_can_be_written_to() -> None:
    raw = bytearray(elf(("libc.so.6",)))
    # The third program header is PT_DYNAMIC: it becomes a PT_INTERP that names something else.
    struct.pack_into("<I", raw, 64 + 2 * 56, 3)
    assert parsed(bytes(raw)).interpreter == LINKER
    assert not parsed(bytes(raw)).rewritable
    struct.pack_into("<I", raw, 64 + 4, 7)
    assert parsed(bytes(raw)).rewritable


def test_stubs_that_share_an_instruction() -> None:
    """As klibc has them: mov $n,%eax; jmp to mov %rcx,%r10; syscall."""
    shared = b"\x49\x89\xca\x0f\x05\xc3"
    stub = b"\xb8\x29\x00\x00\x00\xe9" + (-(len(shared) + 10 + 64)).to_bytes(4, "little", signed=True)
    code = b"\xc3" * 64 + shared + b"\xc3" * 64 + stub
    data = static(code)
    found = system_calls(Bytes(data), parsed(data))
    assert ("x86_64", 41) in found.numbers
    assert found.untold == 0
    ((at, _, number),) = found.stubs
    assert number == 41
    assert at == BASE + data.index(stub)
    caller = static(b"\xe8" + bytes(4))
    place = caller.index(b"\xe8" + bytes(4))
    distance = (at - (BASE + place + 5)).to_bytes(4, "little", signed=True)
    calling = caller.replace(b"\xe8" + bytes(4), b"\xe8" + distance)
    assert goes_to(Bytes(calling), parsed(calling), frozenset({at})) == {at}
    assert goes_to(Bytes(caller), parsed(caller), frozenset({at})) == frozenset()


@settings(max_examples=60)
@given(st.integers(0, 3000), st.binary(max_size=60))
def test_a_call_is_found_wherever_pieces_are_cut(place: int, noise: bytes) -> None:
    before = elf_code._PIECE
    elf_code._PIECE = 256
    try:
        found = calls(b"\x90" * place + SOCKET + noise)
    finally:
        elf_code._PIECE = before
    assert ("x86_64", 41) in found.numbers
