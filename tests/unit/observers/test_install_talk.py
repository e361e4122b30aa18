"""Pictures of an installer that have to be read by OCR."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_osgates.observers import install, install_talk
from pytest_osgates.profiles.schema import FirstBootSection, InstallSection, InstallStep
from pytest_osgates.vm.errors import MissingTool
from tests.unit.observers.test_observe_install import FakeMachine
from tests.unit.observers.test_observe_install import site as site

STEPS = (InstallStep(expect="^Install", screen=True, send="y"),)


class Standing(FakeMachine):
    """Time passes only where a test says so."""

    @property
    def elapsed(self) -> float:
        return self.now


class Drawn:
    """Says what it was given to read, and when."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.read_at: list[float] = []

    def glance(self, frame: Any) -> None:
        return None

    def read(self, frame: Any) -> Any:
        self.read_at.append(self.machine.now)
        return SimpleNamespace(exact=False, lines=(frame.text(),))


@pytest.fixture
def looked(site: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[install_talk.Talk, FakeMachine, Drawn]:
    machine = Standing()
    drawn = Drawn(machine)
    monkeypatch.setattr(install_talk, "need", lambda: None)
    monkeypatch.setattr(install_talk, "Reader", lambda: drawn)
    place, _ = site(InstallSection(dialogue=STEPS, ends="off", stall_s=600), machine)
    return install_talk.Talk(place, Path("/")), machine, drawn


def test_a_picture_that_moves_is_read_now_and_then(looked: Any) -> None:
    talk, machine, drawn = looked
    while machine.now < 200.0:
        machine.picture = f"{machine.now} percent"
        machine.now += 0.5
        talk._look(cast("Any", machine))
    assert len(drawn.read_at) >= 10
    assert all(later - earlier >= 5.0 for earlier, later in pairwise(drawn.read_at))


def test_a_picture_that_stands_still_is_read_once(looked: Any) -> None:
    talk, machine, drawn = looked
    machine.picture = "Install now?"
    for _ in range(20):
        machine.now += 0.5
        talk._look(cast("Any", machine))
    assert len(drawn.read_at) == 1
    assert talk._screen == "Install now?"


def test_a_first_boot_on_the_screen_needs_ocr_before_anything_is_installed(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> None:
        raise MissingTool("tesseract is not installed")

    monkeypatch.setattr(install, "need", lacking)
    monkeypatch.setattr(install, "Machine", None)
    first = FirstBootSection(dialogue=STEPS, done="login: $")
    place, home = site(InstallSection(script="install", first_boot=first), FakeMachine())
    with pytest.raises(MissingTool):
        install.install(place, home)
    assert not home.directory.exists()
