"""Host programs: every one has a deadline, a bounded output, and dies with this process."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pytest_osgates.vm.errors import CommandFailed, HostTimeout, MissingTool
from pytest_osgates.vm.workdir import temporary

_TRAMPOLINE = str(Path(__file__).resolve().parent / "_exec.py")

# PR_SET_PDEATHSIG fires when the *thread* that forked ends, so all children are made by one that lasts.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="osgates-spawn")


def which(program: str, *, remedy: str | None = None) -> str:
    """The path of `program`, also from the sbin directories that an ordinary user's PATH lacks.

    :raise MissingTool: it is not installed.
    """
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found is None:
        raise MissingTool(f"{program} is not installed", remedy=remedy or "run: osgates doctor")
    return found


def spawn(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own (a Ctrl-C reaches us, not it); it is killed when we die.

    :raise MissingTool: the program is not there.
    """
    command = [sys.executable, "-I", "-S", _TRAMPOLINE, str(os.getpid()), which(argv[0]), *argv[1:]]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            cwd=cwd,
            env=None if env is None else dict(env),
            start_new_session=True,
        )

    return _spawner.submit(start).result()


def await_exit(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether `process` has ended, after waiting up to `timeout` seconds. It is not reaped: its pid stays its own."""
    if process.returncode is not None:
        return True
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        # Another thread is just reaping it.
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout) * 1000))
    finally:
        os.close(descriptor)


_hurried = threading.Event()


def hurry() -> None:
    """From now on nothing that is to end is given time for it."""
    _hurried.set()


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Whether somebody stopped it (SIGSTOP): state T of proc_pid_stat(5). It lives, and will do nothing."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_bytes()
    except OSError:
        return False
    # The command name (field 2) may hold anything, also parentheses.
    return process.returncode is None and stat[stat.rfind(b")") + 1 :].split()[:1] == [b"T"]


def end(process: subprocess.Popen[bytes], *, grace: float = 5.0) -> int:
    """End `process` and all that it started: SIGTERM to its group, after `grace` seconds SIGKILL. Its status."""
    if process.returncode is not None:
        return process.returncode
    # As long as the leader is not reaped, nobody else can get its process group's number.
    _signal_group(process, signal.SIGTERM)
    # One that was stopped would hear of it only when it goes on.
    _signal_group(process, signal.SIGCONT)
    if not _await_end(process, grace):
        _signal_group(process, signal.SIGKILL)
        if not await_exit(process, 30.0):
            raise HostTimeout(f"process {process.pid} does not die on SIGKILL")
    _signal_group(process, signal.SIGKILL)
    return process.wait()


def _await_end(process: subprocess.Popen[bytes], grace: float) -> bool:
    until = time.monotonic() + grace
    while not _hurried.is_set() and time.monotonic() < until:
        if await_exit(process, min(0.25, grace)):
            return True
    return await_exit(process, 0)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return


@dataclass(frozen=True)
class Completed:
    """What a host program did: its exit status (negative: signal) and outputs, each cut at the bound."""

    command: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "replace")


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    max_output: int = 64 << 20,
    remedy: str | None = None,
    on_poll: Callable[[float], None] | None = None,
) -> Completed:
    """Run `argv` to its end.

    Outputs go through unnamed files, so that a program that writes for ever cannot fill our memory; each is
    read back up to `max_output` bytes. `on_poll` is called about twice a second with the elapsed seconds.

    :raise MissingTool: the program is not there.
    :raise HostError: no room for temporary files.
    :raise HostTimeout: it did not end in `timeout` seconds; it was killed.
    :raise CommandFailed: `check` and a status other than 0.
    """
    with contextlib.ExitStack() as stack:
        with temporary(f"the outputs of {argv[0]}"):
            out, err, given = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            if input is not None:
                given.write(input)
                given.seek(0)
        begun = time.monotonic()
        process = spawn(
            argv,
            stdin=given if input is not None else subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env=env,
        )
        try:
            while True:
                elapsed = time.monotonic() - begun
                if on_poll is not None:
                    on_poll(elapsed)
                if await_exit(process, min(0.5, timeout - elapsed)):
                    break
                if time.monotonic() - begun >= timeout:
                    raise HostTimeout(f"{argv[0]} did not end within {timeout:.0f} s and was killed", remedy=remedy)
        finally:
            returncode = end(process)
        out.seek(0)
        err.seek(0)
        done = Completed(tuple(argv), returncode, out.read(max_output), err.read(max_output))
    if check and returncode != 0:
        raise CommandFailed(
            done.command, returncode, (done.stderr or done.stdout).decode("utf-8", "replace"), remedy=remedy
        )
    return done
