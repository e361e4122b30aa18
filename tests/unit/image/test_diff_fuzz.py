"""Images with corrupted metadata, for a minute: never an exception, never a difference that is not seen."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
from diff_builders import live_iso, newc, squashfs
from image_builders import BytesSource, Tar, noise

from pytest_osgates.image.diff.compare import compare_sources

PLAIN = ("-noI", "-noD", "-noF", "-noX", "-noId")
SECONDS = 60.0
WORST = 15.0
MEMORY_MIB = 100

pytestmark = pytest.mark.slow


def corrupted(raw: bytes, ranges: list[tuple[int, int]], chance: random.Random) -> bytes:
    """A few numbers changed, most of them where numbers are."""
    made = bytearray(raw)
    for _ in range(chance.randint(1, 5)):
        first, last = chance.choice(ranges)
        at, size = chance.randrange(first, last - 8), chance.choice([1, 2, 4, 8])
        made[at : at + size] = chance.choice(
            [bytes(size), b"\xff" * size, chance.randbytes(size), bytes([chance.randrange(256)]) + bytes(size - 1)]
        )
    return bytes(made)


def peak_kib() -> int:
    """Of this process's memory."""
    told = re.search(r"^VmHWM:\s+([0-9]+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert told is not None
    return int(told[1])


def test_corrupted_images(tmp_path: Path) -> None:
    tar = Tar().directory("etc").file("etc/a", b"a\n").file("large", noise(20_000)).link("etc/link", "a")
    # Metadata as it is, so that what is changed reaches the readers and not only the decompressor.
    root = squashfs(tar, tmp_path / "root", *PLAIN)
    initrd = newc({"init": ({}, b"x" * 500)})
    raw = live_iso(tmp_path, {"live/filesystem.squashfs": root, "live/initrd": initrd}).read_bytes()
    begin, size = raw.index(b"hsqs"), root.stat().st_size
    ranges = [(0, len(raw)), (begin, begin + size), (begin, begin + 120), (begin + size - 3000, begin + size),
              (32_768, 150_000)]  # fmt: skip
    # Of this test alone, whatever ran in this process before: the peak begins anew (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    chance = random.Random(1)  # noqa: S311  (the same images every time)
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        other = corrupted(raw, ranges, chance)
        begun = time.monotonic()
        for a, b in ((raw, other), (other, raw)):
            findings = compare_sources(BytesSource(a, "a"), BytesSource(b, "b"))
            assert bool(findings.differences) == (a != b)
        assert time.monotonic() - begun < WORST
    assert peak_kib() - before < MEMORY_MIB << 10
