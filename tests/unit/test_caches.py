"""A cache that cannot be used is the host's fault with a remedy, and a dead process never holds one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_osgates import paths, run
from pytest_osgates.debian import PrivateApt, Suite
from pytest_osgates.debian.mirror import Mirror
from pytest_osgates.debian.store import DebStore
from pytest_osgates.demo import cached
from pytest_osgates.paths import cache_dir
from pytest_osgates.vm.errors import HostError


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """XDG_CACHE_HOME is a file."""
    path = tmp_path / "file"
    path.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


def test_no_cache_at_all(no_cache: Path) -> None:
    with pytest.raises(
        HostError, match=rf"the cache {no_cache}/osgates/demo cannot be made.*\n  -> .*XDG_CACHE_HOME"
    ):
        cache_dir("demo")
    with pytest.raises(HostError, match="XDG_CACHE_HOME"):
        DebStore()
    # Whether KVM works is asked anew each time, which no run fails for.
    assert run._probe_cache() is None


def test_a_cache_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    with (
        pytest.raises(
            HostError, match=rf"x cannot be kept in the cache: {tmp_path}: No space left.*\n  -> free some"
        ),
        paths.caching("x"),
    ):
        full()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(HostError, match="apt's configuration cannot be kept in the cache"):
        PrivateApt([Suite("trixie")], mirror=Mirror("http://mirror.invalid/debian"), keyrings=[], root=tmp_path)


HOLDER = """
import sys
from pathlib import Path
from pytest_osgates.demo import cached
with cached._alone(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    """Killed while it made the image: the next one neither waits for it nor takes what it left half-written."""
    image = tmp_path / "x.iso"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        image.write_text("half")
        waited: list[str] = []

        def progress(stage: str, fraction: float | None) -> None:
            waited.append(stage)
            # Only now, so that it was really waited for.
            os.kill(holder.pid, signal.SIGKILL)

        def make() -> str:
            image.write_text("whole")
            return "digest"

        cached._once(image, make, progress)
    finally:
        holder.kill()
        holder.communicate()
    assert waited[0] == "waiting for another process that makes x.iso"
    assert image.read_text() == "whole"


def test_a_lock_is_not_waited_for_without_end(tmp_path: Path) -> None:
    waited: list[bool] = []
    with (
        paths.alone(tmp_path / "lock", 1.0),
        pytest.raises(HostError, match=rf"held {tmp_path}/lock for more than 0 s\n  -> .*fuser -v {tmp_path}/lock"),
        paths.alone(tmp_path / "lock", 0.3, lambda: waited.append(True)),
    ):
        raise AssertionError("both have it")
    assert waited == [True]
    with paths.alone(tmp_path / "lock", 0.0):
        pass
