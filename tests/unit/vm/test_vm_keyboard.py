"""Text as keys."""

from __future__ import annotations

import string

import pytest

from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.keyboard import keys_of


def test_each_printable_character_has_its_keys() -> None:
    keys = [keys_of(char)[0] for char in string.printable if char not in "\r\x0b\x0c"]
    assert len(set(keys)) == len(keys)
    assert all(name for pair in keys for name in pair)
    assert keys_of("aB1!") == (("a",), ("shift", "b"), ("1",), ("shift", "1"))
    assert keys_of("_ \n") == (("shift", "minus"), ("spc",), ("ret",))
    with pytest.raises(UsageError, match="no key of the US layout"):
        keys_of("ä")
