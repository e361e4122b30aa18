"""Host programs: deadlines, bounded output, and no survivors."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from vm_fakes import is_running, wait_for

from pytest_osgates.vm import process
from pytest_osgates.vm.errors import CommandFailed, HostTimeout, MissingTool

# A shell, a child of it in the background, and both of their process numbers in a file.
FAMILY = "sleep 1000 & echo $$ $! >{0}.new; mv {0}.new {0}; "


def pids(path: Path) -> list[int]:
    wait_for(path.exists, "the family has started", 10.0)
    return [int(word) for word in path.read_text().split()]


def gone(numbers: list[int], timeout: float = 5.0) -> None:
    wait_for(lambda: not any(is_running(pid) for pid in numbers), f"{numbers} have ended", timeout)


def test_outputs_and_status() -> None:
    done = process.run(["sh", "-c", "echo out; echo err >&2"], timeout=30)
    assert (done.returncode, done.stdout, done.stderr, done.text) == (0, b"out\n", b"err\n", "out\n")
    assert done.command == ("sh", "-c", "echo out; echo err >&2")
    assert process.run(["sh", "-c", "exit 7"], timeout=30, check=False).returncode == 7
    assert process.run(["sh", "-c", "kill -KILL $$"], timeout=30, check=False).returncode == -9


def test_input_directory_and_environment(tmp_path: Path) -> None:
    done = process.run(["sh", "-c", "pwd; cat; echo $A"], timeout=30, input=b"given\n", cwd=tmp_path, env={"A": "b"})
    assert done.text == f"{tmp_path}\ngiven\nb\n"
    assert process.run(["cat"], timeout=30).stdout == b""


def test_a_failure_says_what_the_program_said() -> None:
    with pytest.raises(CommandFailed, match=r"(?s)^sh ended with status 3:\n  \| why\n  -> mend it$") as caught:
        process.run(["sh", "-c", "echo out; echo why >&2; exit 3"], timeout=30, remedy="mend it")
    assert caught.value.returncode == 3
    with pytest.raises(CommandFailed, match=r"\| only on stdout"):
        process.run(["sh", "-c", "echo only on stdout; exit 1"], timeout=30)


def test_a_missing_program() -> None:
    with pytest.raises(MissingTool, match=r"no-such-program is not installed\n  -> apt-get install it"):
        process.which("no-such-program", remedy="apt-get install it")
    with pytest.raises(MissingTool, match="osgates doctor"):
        process.run(["no-such-program"], timeout=30)
    with pytest.raises(MissingTool, match="/no/such/program is not installed"):
        process.spawn(["/no/such/program"])


def test_sbin_is_searched_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool):
        process.which("no-such-program")
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    with pytest.raises(MissingTool):
        process.which("tool")
    (tmp_path / "tool").chmod(0o755)
    assert process.which("tool") == str(tmp_path / "tool")
    # An administrator's program, of every Linux, that is in no ordinary user's PATH.
    assert process.which("ldconfig").endswith("sbin/ldconfig")


def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF but not truly")
    broken.chmod(0o755)
    done = process.run([str(broken)], timeout=30, check=False)
    assert done.returncode == 127
    assert str(broken).encode() in done.stderr


def test_a_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    script = FAMILY.format(shlex.quote(str(tmp_path / "pids"))) + "wait"
    begun = time.monotonic()
    with pytest.raises(HostTimeout, match=r"sh did not end within 0 s and was killed\n  -> more time"):
        process.run(["sh", "-c", script], timeout=0.4, remedy="more time")
    assert time.monotonic() - begun < 6.0
    gone(pids(tmp_path / "pids"))


def test_a_program_that_ends_takes_its_background_children_along(tmp_path: Path) -> None:
    script = FAMILY.format(shlex.quote(str(tmp_path / "pids"))) + "exit 4"
    assert process.run(["sh", "-c", script], timeout=30, check=False).returncode == 4
    gone(pids(tmp_path / "pids"))


def test_what_is_read_back_is_bounded() -> None:
    done = process.run(["sh", "-c", "yes | head -c 500000; yes | head -c 500000 >&2"], timeout=30, max_output=1000)
    assert len(done.stdout) == len(done.stderr) == 1000


def test_who_polls_can_give_up(tmp_path: Path) -> None:
    seen: list[float] = []

    def poll(elapsed: float) -> None:
        seen.append(elapsed)
        if (tmp_path / "pids").exists():
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        process.run(["sh", "-c", FAMILY.format(tmp_path / "pids") + "wait"], timeout=30, on_poll=poll)
    assert seen == sorted(seen)
    gone(pids(tmp_path / "pids"))


def test_ending_is_idempotent() -> None:
    child = process.spawn(["sleep", "1000"])
    assert not process.await_exit(child, 0)
    assert process.end(child) == -signal.SIGTERM
    assert process.await_exit(child, 0)
    assert process.end(child) == -signal.SIGTERM


def test_ending_what_ignores_the_polite_way(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = process.spawn(["sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.05; done"])
    wait_for(ready.exists, "the trap is set", 10.0)
    assert process.end(child, grace=0.1) == -signal.SIGKILL


def test_ending_what_has_already_ended() -> None:
    child = process.spawn(["sh", "-c", "exit 5"])
    assert process.await_exit(child, 10.0)
    # Not reaped: its number cannot belong to anybody else yet.
    assert Path(f"/proc/{child.pid}").exists()
    assert process.end(child) == 5
    assert not Path(f"/proc/{child.pid}").exists()


def test_a_watcher_of_what_somebody_else_reaps() -> None:
    child = process.spawn(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED)
    assert process.await_exit(child, 0)
    child.wait()


def test_no_descriptor_is_inherited_but_those_passed() -> None:
    read, write = os.pipe()
    try:
        os.set_inheritable(read, True)
        os.set_inheritable(write, True)
        child = process.spawn(
            ["sh", "-c", f"[ -e /proc/$$/fd/{write} ] && [ ! -e /proc/$$/fd/{read} ]"], pass_fds=[write]
        )
        assert process.await_exit(child, 10.0)
        assert process.end(child) == 0
    finally:
        os.close(read)
        os.close(write)


def test_a_child_outlives_the_thread_that_asked_for_it() -> None:
    made: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: made.append(process.spawn(["sleep", "1000"])))
    thread.start()
    thread.join()
    (child,) = made
    try:
        # PR_SET_PDEATHSIG would come at once.
        assert not process.await_exit(child, 0.3)
    finally:
        process.end(child)


def test_a_child_dies_with_its_parent_however_that_dies(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pytest_osgates.vm import process\n"
        "child = process.spawn(['sh', '-c', 'echo $$ >$0.new; mv $0.new $0; exec sleep 1000', sys.argv[1]])\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "pid")])
    try:
        (child,) = pids(tmp_path / "pid")
        assert is_running(child)
        parent.kill()
        gone([child], 2.0)
    finally:
        parent.kill()
        parent.wait()


def test_a_child_of_a_parent_that_is_already_dead_does_not_start(tmp_path: Path) -> None:
    """The parent's number does not fit: as if it had died before the child could ask for its death signal."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", process._TRAMPOLINE, "1", "touch", str(tmp_path / "started")], check=False
    )
    assert done.returncode == 125
    assert not (tmp_path / "started").exists()


def test_no_core_dumps() -> None:
    assert process.run(["sh", "-c", "ulimit -c"], timeout=30).text == "0\n"
