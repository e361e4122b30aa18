"""Stand-ins for the guest's side of a socket, and what finds out that nothing is left running."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_osgates.vm.guest.channel import GuestShell

# A Debian guest has dash, most others bash, which behaves as POSIX demands when it is called sh.
SHELLS = [("sh",), *([("bash", "--posix")] if shutil.which("bash") else [])]


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 5.0) -> None:
    """Return as soon as `condition` holds; an assertion error after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        pause.wait(0.005)


def is_running(pid: int) -> bool:
    """Whether `pid` is a process that is more than a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


class LocalGuest:
    """A `GuestShell` whose port is held by a shell of this machine.

    QEMU's part is played by `boot` and `kill`: they tell the host's end that the port was opened or closed. The
    shell reads and writes the socket itself, so the bytes on the wire are those of a real guest.
    """

    def __init__(self, directory: Path, shell: Sequence[str] = ("sh",)) -> None:
        self.directory = directory
        self.died: BaseException | None = None
        self.asked = 0
        self._command = shell
        ours, self._theirs = socket.socketpair()
        self.shell = GuestShell(ours, str(directory), self._alive)
        self._process: subprocess.Popen[bytes] | None = None

    def _alive(self) -> None:
        self.asked += 1
        if self.died is not None:
            raise self.died

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.shell.close()
        self._theirs.close()

    def boot(self) -> None:
        self._process = subprocess.Popen(
            list(self._command), stdin=self._theirs, stdout=self._theirs, stderr=self._theirs, start_new_session=True
        )
        self.shell.port_changed(True)

    def kill(self) -> None:
        """Kill the shell and all that it started, as the end of its unit does in a guest."""
        if self._process is None:
            return
        # Again and again: one of them may just be starting another.
        while running := [pid for pid in self.session() if is_running(pid)]:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self.shell.port_changed(False)

    def session(self) -> list[int]:
        """The processes of the shell's session, of which each was started by this object."""
        assert self._process is not None
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                stat = path.read_text()
                if int(stat[stat.rindex(")") + 2 :].split()[3]) == self._process.pid:
                    found.append(int(path.parent.name))
        return found

    def write_noise(self, data: bytes) -> None:
        """Bytes of which the shell knows nothing, as a kernel message or a stray program would leave them."""
        self._theirs.sendall(data)


class ScriptedGuest:
    """A `GuestShell` whose port is answered by a function: (what the host asked for, identifier) -> bytes.

    What is asked for is "HELLO", "RUN" or "WRITE". None for an answer: nothing is said.
    """

    def __init__(self, answer: Callable[[str, str], bytes | None]) -> None:
        ours, self.theirs = socket.socketpair()
        self.shell = GuestShell(ours, "/nonexistent", self._alive)
        self.shell.port_changed(True)
        self.died: BaseException | None = None
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _alive(self) -> None:
        if self.died is not None:
            raise self.died

    def _serve(self) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := self.theirs.recv(1 << 16):
                buffer += data
                while b"\n" in buffer:
                    line, _, buffer = buffer.partition(b"\n")
                    ident = re.search(rb"\b[0-9a-f]{32}\b", line)
                    if ident is None:
                        continue
                    kind = "HELLO" if b"-HELLO" in line else "WRITE" if b"-GO" in line else "RUN"
                    reply = self._answer(kind, ident[0].decode())
                    if kind == "HELLO" and reply is None:
                        reply = b"OSG-%s-HELLO\n" % ident[0]
                    if reply:
                        self.theirs.sendall(reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shell.close()
        self._thread.join(5.0)
        self.theirs.close()
