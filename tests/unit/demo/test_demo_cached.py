"""The cache of built images: made once, whoever asks, and never used when damaged."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pytest_osgates.debian.store import sha256_of
from pytest_osgates.demo import cached


def quiet(stage: str, fraction: float | None) -> None:
    """No progress is shown."""


class Maker:
    """Makes `image`, slowly enough that others come meanwhile; counts."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.made = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.made += 1
        self.begun.set()
        assert self.go_on.wait(10)
        self.image.write_text("image")
        return sha256_of(self.image)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "x.iso")


def test_of_two_who_ask_at_once_one_makes_it(maker: Maker) -> None:
    said: list[str] = []
    waiting = threading.Event()

    def hear(stage: str, fraction: float | None) -> None:
        said.append(stage)
        waiting.set()

    first = threading.Thread(target=cached._once, args=(maker.image, maker, quiet))
    second = threading.Thread(target=cached._once, args=(maker.image, maker, hear))
    first.start()
    assert maker.begun.wait(10)
    second.start()
    assert waiting.wait(10)
    maker.go_on.set()
    first.join(10)
    second.join(10)
    assert maker.made == 1
    assert said == ["waiting for another process that makes x.iso", "checking x.iso"]


@pytest.mark.parametrize("damage", ["", "imagE", "half"])
def test_a_damaged_image_is_made_anew(maker: Maker, damage: str) -> None:
    maker.go_on.set()
    cached._once(maker.image, maker, quiet)
    cached._once(maker.image, maker, quiet)
    assert maker.made == 1
    maker.image.write_text(damage)
    cached._once(maker.image, maker, quiet)
    assert maker.made == 2
    assert maker.image.read_text() == "image"


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"sha256": 1}', "{"])
def test_an_image_without_a_good_record_is_made_anew(maker: Maker, record: str) -> None:
    maker.go_on.set()
    maker.image.write_text("image")
    maker.image.with_name("x.iso.sha256.json").write_text(record)
    cached._once(maker.image, maker, quiet)
    assert maker.made == 1


def test_what_failed_half_way_is_not_used(maker: Maker) -> None:
    def fail() -> str:
        maker.image.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached._once(maker.image, fail, quiet)
    maker.go_on.set()
    cached._once(maker.image, maker, quiet)
    assert maker.image.read_text() == "image"
