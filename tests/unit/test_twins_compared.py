"""How two runs of contacts are compared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from tests.e2e.twins import Contact, compare

REAL = [Contact("start", 0.0), Contact("a", 100.0), Contact("b", 110.0), Contact("a", 200.0)]


def _at(*times: float) -> list[Contact]:
    seen = [Contact(contact.name, at) for contact, at in zip(REAL, times, strict=True)]
    return sorted(seen, key=lambda contact: contact.at)


def test_the_same_times() -> None:
    found = compare(REAL, REAL)
    assert found.names
    assert (found.seconds, found.share, found.swapped) == (0.0, 0.0, ())


def test_times_and_order() -> None:
    found = compare(_at(0.0, 112.0, 110.5, 203.0), REAL)
    assert found.names
    assert found.seconds == 12.0
    assert found.share == pytest.approx(0.12)
    assert found.swapped == (10.0,)


@pytest.mark.parametrize("other", [REAL[:-1], [*REAL, Contact("a", 300.0)], [*REAL[:-1], Contact("c", 200.0)], []])
def test_a_name_too_few_or_too_many(other: list[Contact]) -> None:
    assert not compare(other, REAL).names
    assert not compare(REAL, other).names
