"""Sections of a PE file, added and replaced; and what is signed anew."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.image import authenticode, uki
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.image.diff.pe import read_pe
from pytest_osgates.image.diff.ranges import BytesContent
from pytest_osgates.image.uki_build import with_sections
from pytest_osgates.vm.errors import ImageError
from tests.pe_builders import program

STUB = {".text": b"code" * 300, ".sbat": b"sbat,1\n"}
PARTS = {".osrel": b"ID=x\n", ".cmdline": b"quiet", ".linux": b"kernel" * 1000, ".initrd": b"initrd" * 999}


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.made("test key")


def places(data: bytes) -> list[tuple[str, int, int, int, int]]:
    """(name, bytes in memory, address, bytes in the file, where), as the table has it."""
    (at,) = struct.unpack_from("<I", data, 0x3C)
    count, size = struct.unpack_from("<2xH12xH", data, at + 4)
    rows = [struct.unpack_from("<8sIIII", data, at + 24 + size + 40 * number) for number in range(count)]
    return [(row[0].rstrip(b"\0").decode(), *row[1:]) for row in rows]


def test_sections_are_added_behind_those_that_are_there() -> None:
    made = with_sections(program(STUB), PARTS)
    assert uki.sections(made) == STUB | PARTS
    assert uki.is_uki(uki.sections(made))
    assert [row[0] for row in places(made)] == [*STUB, *PARTS]
    end, raw_end = 0, 1024
    for _, size, address, raw_size, raw_at in places(made):
        # None overlaps another, in memory or in the file, and the firmware finds no holes.
        assert address >= end
        assert address % 4096 == 0
        assert raw_at == raw_end
        end, raw_end = address + max(size, raw_size), raw_at + raw_size
    assert len(made) == raw_end
    (whole,) = struct.unpack_from("<I", made, 64 + 24 + 56)
    assert end <= whole < end + 0x1000
    # As another reader has it.
    assert list(read_pe(BytesContent(made)).sections) == [*STUB, *PARTS]


def test_sections_are_replaced_and_the_others_stay(signer: Signer) -> None:
    old = authenticode.newly_signed(with_sections(program(STUB), PARTS), signer)
    for text in (b"quiet x=1", b"q", b"q" * 10_000):
        made = with_sections(old, {".cmdline": text})
        assert uki.sections(made) == {**STUB, **PARTS, ".cmdline": text}
        # No signature below which it is another file.
        assert authenticode.signatures(made) == ()
        assert uki.pcr11(uki.sections(made)) != uki.pcr11(uki.sections(old))
    assert with_sections(old, {}) == with_sections(program(STUB), PARTS)


def test_what_is_signed_anew_has_one_signature(signer: Signer) -> None:
    data = with_sections(program(STUB), PARTS) + b"odd"
    made = authenticode.newly_signed(data, signer)
    assert made[: len(data)] != data
    (blob,) = authenticode.signatures(made)
    assert authenticode.digest(made) in blob
    again = authenticode.newly_signed(made, Signer.made("another, with a longer name"))
    assert len(authenticode.signatures(again)) == 1
    assert authenticode.digest(again) == authenticode.digest(made)
    # Its place can be taken by another key's: the gate secureboot does that.
    assert authenticode.signed(again, signer)


def test_a_key_from_files(signer: Signer) -> None:
    key, certificate = signer.pem()
    read = Signer.read(key, certificate)
    assert read.der == signer.der
    assert read.sign(bytes(32)) == signer.sign(bytes(32))
    other, _ = Signer.made("other").pem()
    for wrong in ((other, certificate), (certificate, key), (key, key), (b"", b"")):
        with pytest.raises(ValueError, match=r"."):
            Signer.read(*wrong)


def test_no_room_for_more_headers() -> None:
    crowded = {f".s{number}": b"x" for number in range(16)}
    with pytest.raises(ImageError, match="no room for 20 sections"):
        with_sections(program(crowded), PARTS)
    for wrong in (b"", b"MZ", b"MZ" + bytes(100), program(STUB)[:500]):
        with pytest.raises(ImageError):
            with_sections(wrong, PARTS)


def test_a_name_that_is_there_twice_is_not_replaced() -> None:
    """As in an image with profiles: the first would be lost, and the last get what is new."""
    twice = program({".cmdline": b"a", ".profile": b"p", ".cmdlinx": b"b"}).replace(b".cmdlinx", b".cmdline")
    with pytest.raises(ImageError, match="cmdline is there twice"):
        with_sections(twice, {".cmdline": b"c"})
    assert [row[0] for row in places(with_sections(twice, {".new": b"c"}))][:3] == [
        ".cmdline",
        ".profile",
        ".cmdline",
    ]


@given(st.binary(max_size=300), st.integers(0, 800))
def test_any_bytes_are_taken_or_refused(noise: bytes, place: int) -> None:
    made = program(STUB)
    with contextlib.suppress(ImageError):
        uki.sections(with_sections(made[:place] + noise + made[place + len(noise) :], {".x": b"y"}))


@given(st.dictionaries(st.sampled_from([".osrel", ".cmdline", ".linux", ".text", ".new"]), st.binary(max_size=9000)))
def test_what_is_put_in_is_read_again(parts: dict[str, bytes]) -> None:
    made = with_sections(with_sections(program(STUB), PARTS), parts)
    # One of no bytes counts as none.
    assert uki.sections(made) == {name: content for name, content in (STUB | PARTS | parts).items() if content}
