"""Private directories, and the sweeping of what dead owners left."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pytest_osgates.vm import workdir


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return workdir.base_directory()


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    assert workdir.start_time(child.pid) is None
    return child.pid


def test_a_directory_of_one_s_own(base: Path) -> None:
    path = workdir.make("a machine with a rather long name")
    assert path.parent == base
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert path != workdir.make("a machine with a rather long name")
    assert len(path.name) < 80


def test_the_living_are_left_alone(base: Path) -> None:
    path = workdir.make("m")
    assert workdir.sweep() == []
    assert path.is_dir()


def test_the_dead_are_swept(base: Path, dead: int) -> None:
    left = base / f"vm-{dead}-12345-m-abcdefgh"
    (left / "tpm").mkdir(parents=True)
    (left / "tpm" / "state").write_bytes(b"x")
    assert workdir.sweep() == [left]
    assert not left.exists()


def test_a_number_given_to_another_process_is_swept(base: Path) -> None:
    pid = os.getpid()
    started = workdir.start_time(pid)
    assert started is not None
    mine, reused = base / f"vm-{pid}-{started}-m-x", base / f"vm-{pid}-{started - 1}-m-x"
    mine.mkdir()
    reused.mkdir()
    assert workdir.sweep() == [reused]
    assert mine.is_dir()


def test_what_is_not_ours_by_name_is_left_alone(base: Path, dead: int, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"precious")
    names = ["vm-", f"vm-{dead}-", f"xvm-{dead}-1-m", "vm-x-1-m", "note.txt", "states"]
    for name in names:
        (base / name).mkdir()
    (base / f"vm-{dead}-1-link").symlink_to(elsewhere)
    workdir.sweep()
    assert {path.name for path in base.iterdir()} >= set(names)
    assert (elsewhere / "file").read_bytes() == b"precious"


def test_start_times() -> None:
    mine = workdir.start_time(os.getpid())
    parent = workdir.start_time(os.getppid())
    assert mine is not None
    assert parent is not None
    assert parent <= mine
    assert workdir.start_time(1 << 30) is None


def test_a_command_name_with_parentheses(tmp_path: Path) -> None:
    program = tmp_path / ") 1 (2) x"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "100"])
    try:
        started = workdir.start_time(child.pid)
        mine = workdir.start_time(os.getpid())
        assert started is not None
        assert mine is not None
        assert started >= mine
    finally:
        child.kill()
        child.wait()


def test_a_base_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trap = tmp_path / f"osgates-{os.getuid()}"
    trap.mkdir()
    trap.chmod(0o777)
    assert workdir.make("m").parent != trap
    assert list(trap.iterdir()) == []


def test_a_base_that_is_a_link_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / f"osgates-{os.getuid()}").symlink_to(target)
    assert workdir.make("m").resolve().parent != target
    assert list(target.iterdir()) == []


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    workdir.remove(tmp_path / "absent")
    full = tmp_path / "full"
    (full / "a" / "b").mkdir(parents=True)
    workdir.remove(full)
    assert not full.exists()
