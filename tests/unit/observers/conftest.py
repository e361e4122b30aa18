"""What the tests of several observers share."""

from __future__ import annotations

import pytest

from pytest_osgates.observers import tpm_talk
from pytest_osgates.vm import dialogue
from tests.unit.talk_samples import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of a talk at a console."""
    made = Clock()
    monkeypatch.setattr(dialogue, "time", made)
    monkeypatch.setattr(tpm_talk, "time", made)
    return made
