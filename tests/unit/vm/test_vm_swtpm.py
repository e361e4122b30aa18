"""The software TPM: one process, a directory of its own, nothing left."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from vm_fakes import is_running, wait_for

from pytest_osgates.vm import process
from pytest_osgates.vm.errors import MachineDied, MissingTool
from pytest_osgates.vm.swtpm import Swtpm


def users_of(path: Path) -> list[int]:
    """The swtpm processes whose working directory is `path`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = (entry / "cwd").readlink() == path and b"swtpm" in (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if ours and is_running(int(entry.name)):
            found.append(int(entry.name))
    return found


def test_start_and_stop(tmp_path: Path) -> None:
    tpm = Swtpm(tmp_path / "tpm", tmp_path / "swtpm.log")
    with tpm.start() as control:
        # TPM_IOCTL_GET_CAPABILITY of swtpm_ioctls(3): CMD_GET_CAPABILITY, and a result and capabilities come back.
        control.settimeout(10.0)
        control.sendall((1).to_bytes(4, "big"))
        answer = control.recv(12)
        assert len(answer) >= 8
        tpm.check()
        assert len(users_of(tmp_path / "tpm")) == 1
        assert (tmp_path / "tpm").stat().st_mode & 0o777 == 0o700
        tpm.stop()
        assert users_of(tmp_path / "tpm") == []
    tpm.stop()
    tpm.check()


def test_paths_that_look_like_options(tmp_path: Path) -> None:
    """swtpm knows no way of writing a comma."""
    folder = tmp_path / "a,level=20, b"
    folder.mkdir()
    tpm = Swtpm(folder / "tpm,mode=0777", folder / "swtpm,x.log")
    with tpm.start() as control:
        control.settimeout(10.0)
        control.sendall((1).to_bytes(4, "big"))
        assert len(control.recv(12)) >= 8
        tpm.check()
    tpm.stop()
    assert (folder / "tpm,mode=0777").stat().st_mode & 0o777 == 0o700


def test_it_ends_with_its_machine(tmp_path: Path) -> None:
    tpm = Swtpm(tmp_path / "tpm", tmp_path / "swtpm.log")
    data, theirs = socket.socketpair()
    with tpm.start() as control, data:
        # What QEMU does: CMD_SET_DATAFD hands over the connection of which --terminate speaks (swtpm(8)).
        with theirs:
            socket.send_fds(control, [(16).to_bytes(4, "big")], [theirs.fileno()])
        control.settimeout(10.0)
        assert control.recv(4) == bytes(4)

    def told() -> str:
        try:
            tpm.check()
        except MachineDied as error:
            return str(error)
        return ""

    wait_for(told, "swtpm has ended by itself", 10.0)
    assert "swtpm ended with status 0 while the machine was running" in told()
    assert users_of(tmp_path / "tpm") == []
    tpm.stop()


def test_its_death_is_told_even_without_a_log(tmp_path: Path) -> None:
    tpm = Swtpm(tmp_path / "tpm", tmp_path / "swtpm.log")
    with tpm.start():
        wait_for(lambda: len(users_of(tmp_path / "tpm")) == 1, "swtpm has started", 20.0)
        (pid,) = users_of(tmp_path / "tpm")
        wait_for((tmp_path / "swtpm.log").exists, "swtpm has begun", 10.0)
        os.kill(pid, 9)
        wait_for(lambda: not is_running(pid), "swtpm is dead")
        (tmp_path / "swtpm.log").unlink()
        with pytest.raises(
            MachineDied, match=r"(?s)swtpm was killed by signal 9 .*log cannot be read.*osgates doctor"
        ):
            tpm.check()
    tpm.stop()


def test_one_that_was_stopped_is_told_and_ended(tmp_path: Path) -> None:
    tpm = Swtpm(tmp_path / "tpm", tmp_path / "swtpm.log")
    with tpm.start():
        wait_for(lambda: len(users_of(tmp_path / "tpm")) == 1, "swtpm has started", 20.0)
        (pid,) = users_of(tmp_path / "tpm")
        wait_for((tmp_path / "swtpm.log").exists, "swtpm has begun", 10.0)
        tpm.check()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(MachineDied, match=r"swtpm was stopped \(SIGSTOP\) while the machine was running"):
            until_raised(tpm.check)
        # Already ended, for QEMU would wait for its answer; and the reason stays what it was.
        assert not is_running(pid)
        with pytest.raises(MachineDied, match="swtpm was stopped"):
            tpm.check()
        tpm.stop()


def until_raised(call: Callable[[], None]) -> None:
    """Call it again and again; a signal takes effect a moment after kill(2)."""
    wait_for(lambda: call() is not None, "an exception", 5.0)


def test_no_swtpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def which(program: str, *, remedy: str | None = None) -> str:
        assert program == "swtpm"
        # All of PATH, and nothing of the sbin directories that are added to it.
        raise MissingTool(f"{program} is not installed", remedy=remedy)

    monkeypatch.setattr(process, "which", which)
    with pytest.raises(MissingTool, match="swtpm is not installed\n  -> apt-get install swtpm"):
        Swtpm(tmp_path / "tpm", tmp_path / "swtpm.log").start()
    assert list(tmp_path.iterdir()) == []
