"""Lengths of instructions, and what they leave in %eax."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.image.x86 import LONGEST, Effect, instruction

CONSTANT, COMPUTED, NONE = Effect.CONSTANT, Effect.COMPUTED, Effect.NONE


@pytest.mark.parametrize(
    ("code", "effect", "value"),
    [
        ("b829000000", CONSTANT, 41),
        ("41b829000000", NONE, 0),
        ("48b82900000000000000", CONSTANT, 41),
        ("48c7c029000000", CONSTANT, 41),
        ("49c7c029000000", NONE, 0),
        ("31c0", CONSTANT, 0),
        ("4531c0", NONE, 0),
        ("4431c0", COMPUTED, 0),
        ("b029", Effect.LOW_BYTE, 41),
        ("b429", COMPUTED, 0),
        ("83c029", Effect.ADDED, 41),
        ("0529000000", Effect.ADDED, 41),
        ("83f829", NONE, 0),
        ("83c8ff", COMPUTED, 0),
        ("6a29", Effect.PUSHED, 41),
        ("58", Effect.POPPED, 0),
        ("4158", NONE, 0),
        ("8b442408", COMPUTED, 0),
        ("448b442408", NONE, 0),
        ("488d4729", COMPUTED, 0),
        ("4889f8", COMPUTED, 0),
        ("4989f8", NONE, 0),
        ("0fb6c0", COMPUTED, 0),
        ("0f44c1", COMPUTED, 0),
        ("0fc8", COMPUTED, 0),
        ("488b0500000000", COMPUTED, 0),
        ("e800000000", COMPUTED, 0),
        ("ff1500000000", COMPUTED, 0),
        ("f7f9", COMPUTED, 0),
        ("6690", NONE, 0),
        ("f30f1efa", NONE, 0),
        ("660f1f840000000000", NONE, 0),
        ("c5f877", NONE, 0),
        ("c4e2717cc2", NONE, 0),
        ("62f17c4811 4701".replace(" ", ""), NONE, 0),
        ("f20f38f1c1", NONE, 0),
        ("660f3a0fc108", NONE, 0),
        ("48a10000000000000000", COMPUTED, 0),
        ("64488b042528000000", COMPUTED, 0),
        ("0f8400000000", NONE, 0),
        ("0f05", COMPUTED, 0),
    ],
)
def test_instructions_of_amd64(code: str, effect: Effect, value: int) -> None:
    raw = bytes.fromhex(code)
    length, found, operand = instruction(raw + b"\x90" * 16, 0, wide=True)
    assert (length, found) == (len(raw), effect)
    if value:
        assert operand == value
    assert instruction(raw[:-1], 0, wide=True)[0] < len(raw), "one that breaks off is none, or another"


def test_instructions_of_i386() -> None:
    assert instruction(b"\x40", 0, wide=False) == (1, COMPUTED, 0), "inc %eax, no prefix"
    assert instruction(b"\x41", 0, wide=False) == (1, NONE, 0)
    assert instruction(b"\x60", 0, wide=False)[0] == 1
    assert instruction(b"\x60", 0, wide=True)[0] == 0
    assert instruction(b"\xa1\x00\x00\x00\x00", 0, wide=False)[:2] == (5, COMPUTED)


@given(st.binary(max_size=20), st.booleans())
def test_any_bytes(code: bytes, wide: bool) -> None:
    length, _, _ = instruction(code, 0, wide=wide)
    assert 0 <= length <= min(len(code), LONGEST)
