"""A framed root shell over a virtio-serial port.

Wire format, one request at a time. The host writes one line of shell; the guest's ``sh`` runs it and answers

    OSG-<id> <status> <stdout bytes> <stderr bytes>\\n<stdout><stderr>OSG-<id>-END\\n

where <id> is 32 random hexadecimal digits, new for each request: nothing the guest printed before, and no output of
the command itself, can pass for an answer. Outputs are collected in files first, so their lengths are known and they
may hold any bytes. Every command runs under timeout(1) in the guest, so that one which hangs does not take the
shell along; the host has a deadline of its own a little later.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from pytest_osgates.vm.errors import ChannelError, GuestTimeout, UsageError
from pytest_osgates.vm.text import one_line

MAX_OUTPUT = 32 << 20
NOISE_LIMIT = 1 << 20
GRACE = 20.0
# How often a wait looks whether the machine still lives.
LOOK = 0.5
DYING = 1.0
# Linux: MAX_ARG_STRLEN, 32 pages, for one argument of execve(2).
MAX_COMMAND = (32 * 4096) - 1


@dataclass(frozen=True)
class ShellResult:
    """One command in the guest: exit status and both outputs, as they came."""

    command: str
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text."""
        return self.stdout.decode("utf-8", "replace")

    def check(self) -> ShellResult:
        """Itself.

        :raise ChannelError: the status is not 0.
        """
        if self.status != 0:
            said = one_line((self.stderr or self.stdout).decode("utf-8", "replace"))
            raise ChannelError(f"in the guest, {one_line(self.command, 120)!r} ended with {self.status}: {said}")
        return self


class GuestShell:
    """The host's end of the port.

    `alive` raises when the machine is gone; it is called at least twice a second while waiting. `patience`: by what
    all timeouts are stretched, on a host where guests are slower than they were chosen for.
    """

    def __init__(self, sock: socket.socket, directory: str, alive: Callable[[], None], patience: float = 1.0) -> None:
        self._sock = sock
        self._directory = directory
        self._alive = alive
        self._patience = patience
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._open = threading.Event()
        # Counted up whenever the port opens or closes: which shell a request, and being in step, belong to.
        self._generation = 0
        self._asked = 0
        self._in_step = -1
        # Bytes that the guest still expects of a file whose transfer was given up.
        self._owed = 0
        self.requests = 0
        # What is being asked, and since when (monotonic seconds): for who shows what is waited for.
        self.asking = ""
        self.asking_since = 0.0

    @property
    def directory(self) -> str:
        """A directory in the guest's memory that belongs to this channel, and is named by its nonce."""
        return self._directory

    def port_changed(self, is_open: bool) -> None:
        """QEMU says that the guest opened or closed the port (QMP event VSERPORT_CHANGE)."""
        self._generation += 1
        if is_open:
            self._owed = 0
            self._open.set()
        else:
            self._open.clear()

    @property
    def is_open(self) -> bool:
        """Whether a shell holds the port in the guest."""
        return self._open.is_set()

    def wait_open(self, timeout: float) -> bool:
        """Whether the guest opened the port within `timeout` seconds."""
        return self._open.wait(timeout)

    def run(
        self, command: str, *, timeout: float = 60.0, max_output: int = MAX_OUTPUT, shown: str | None = None
    ) -> ShellResult:
        """Run `command` with ``sh -c`` as root in the guest, stdin empty. `shown`: what is said of it while it is
        waited for; empty: nothing; None: the command itself.

        :raise GuestTimeout: it did not end in `timeout` seconds; it was killed in the guest.
        :raise ChannelError: the shell went away, broke the protocol, or an output is larger than `max_output`.
        """
        if len(command.encode("utf-8", "surrogatepass")) >= MAX_COMMAND:
            raise UsageError("a command for the guest is too long", remedy="write it into a file and run that")
        ident, base = _ident(), self._directory
        timeout *= self._patience
        seconds = max(1, round(timeout))
        # ulimit counts blocks of 512 bytes (POSIX ulimit -f) and bounds what a flood can put into guest memory.
        # The parentheses: dash reports a child's death to the child's stderr, and would die of the same limit.
        inner = '(exec sh -c "$1" </dev/null >"$2/o" 2>"$2/e"); echo $? >"$2/s"'
        line = (
            # New files each time: a child that an earlier command left behind goes on writing into its own.
            f"rm -f {base}/s {base}/o {base}/e; : >{base}/o; : >{base}/e; (ulimit -f {max_output // 512 + 2}; "
            f"exec timeout -s KILL {seconds} sh -c {shlex.quote(inner)} osgates {shlex.quote(command)} {base})"
            " </dev/null >/dev/null 2>&1; t=$?; "
            # Few programs: each costs an emulated guest tens of milliseconds.
            f"{{ read s <{base}/s; }} 2>/dev/null || s=late-$t; set -- $(wc -c {base}/o {base}/e); "
            f"echo OSG-{ident} $s $1 $3; "
            f'[ "$1" = 0 ] || head -c $1 {base}/o; [ "$3" = 0 ] || head -c $3 {base}/e; echo OSG-{ident}-END'
        )
        with self._request(timeout + GRACE, command if shown is None else shown) as deadline:
            self._send(line, deadline)
            status, sizes = self._header(ident, 2, deadline, max_output + 4096)
            stdout, stderr = (self._take(size, deadline) for size in sizes)
            self._trailer(ident, deadline)
        if status in {"late-126", "late-127"}:
            raise ChannelError("the guest has no timeout(1), or no sh to run a command with")
        if status in {"late-124", "late-137"}:
            raise GuestTimeout(
                f"in the guest, {one_line(command, 120)!r} did not end within {seconds} s and was killed",
                remedy="the guest may be overloaded; its outputs so far are not used",
            )
        if status.startswith("late"):
            # Its status is written after its outputs, so it is missing where those may have been cut.
            raise ChannelError(
                f"in the guest, the outputs of {one_line(command, 120)!r} could not be kept: is /run full there?"
            )
        if max(sizes) > max_output:
            raise ChannelError(f"in the guest, {one_line(command, 120)!r} wrote more than {max_output} bytes")
        if not status.isascii() or not status.isdecimal() or len(status) > 3:
            raise ChannelError(f"the guest's shell answered the status {one_line(status, 40)!r}")
        return ShellResult(command, int(status), stdout, stderr)

    def read_file(self, path: str, *, timeout: float = 60.0, max_size: int = MAX_OUTPUT) -> bytes:
        """The content of a file in the guest.

        :raise ChannelError: it cannot be read, or is larger than `max_size`.
        """
        return self.run(f"cat -- {shlex.quote(path)}", timeout=timeout, max_output=max_size).check().stdout

    def write_file(self, path: str, data: bytes, *, mode: int = 0o600, timeout: float = 120.0) -> None:
        """Put `data` into a file in the guest (host to guest runs at 3 to 10 MB/s).

        :raise ChannelError: it cannot be written.
        """
        ident, target = _ident(), shlex.quote(path)
        line = (
            # Whatever becomes of the file, head takes all the bytes: sh would run the rest of them as commands.
            f"printf 'OSG-{ident}-GO\\n'; "
            f"{{ head -c {len(data)} | {{ cat >{target}; s=$?; cat >/dev/null; exit $s; }}; s=$?; "
            f"chmod -- {mode:o} {target} || s=1; n=$(wc -c <{target}); }} 2>/dev/null; "
            f"printf '%s %s %s\\n' OSG-{ident} $s ${{n:-0}}; printf 'OSG-%s-END\\n' {ident}"
        )
        with self._request(timeout * self._patience, f"writing {path}") as deadline:
            self._send(line, deadline)
            self._owed = len(data)
            # Only now has sh read its whole line: what follows goes to head, not to sh.
            self._until(f"OSG-{ident}-GO", deadline)
            self._write(data, deadline)
            status, (size,) = self._header(ident, 1, deadline, len(data))
            self._trailer(ident, deadline)
        if status != "0" or size != len(data):
            raise ChannelError(f"{one_line(path)} in the guest took {size} of {len(data)} bytes (status {status})")

    @contextlib.contextmanager
    def _request(self, seconds: float, what: str) -> Iterator[float]:
        with self._lock:
            self.asking_since = time.monotonic()
            deadline = self.asking_since + seconds
            self.asking = one_line(what, 60)
            try:
                self._prepare(deadline)
                self.requests += 1
                yield deadline
            except BaseException:
                # Whatever it still sends belongs to no request: the next one starts with a new greeting.
                self._in_step = -1
                raise
            finally:
                self.asking = ""

    def _prepare(self, deadline: float) -> None:
        """Get in step with a shell that is new, or that was left in the middle of something."""
        while not self._open.wait(LOOK):
            self._alive()
            if time.monotonic() > deadline:
                raise ChannelError("the shell in the guest is gone and did not come back")
        self._asked = self._generation
        if self._in_step == self._asked:
            return
        # A head that was left waiting takes these for the rest of its file, and sh for empty lines.
        self._write(b"\n" * self._owed, deadline)
        ident, base = _ident(), self._directory
        self._send(
            f"umask 077; mkdir -p {base}; : >{base}/o; : >{base}/e; printf '\\nOSG-%s-HELLO\\n' {ident}", deadline
        )
        self._until(f"OSG-{ident}-HELLO", deadline)
        self._in_step = self._asked

    def _send(self, line: str, deadline: float) -> None:
        if "\0" in line:
            raise UsageError("a command for the guest cannot hold a NUL")
        try:
            # Names in the guest need not be UTF-8: os.fsdecode() and this are each other's inverse.
            data = line.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise UsageError(f"a command for the guest cannot be encoded: {error}") from error
        self._write(data + b"\n", deadline)

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                self._sock.settimeout(LOOK)
                sent = self._sock.send(view[: 1 << 16])
            except TimeoutError:
                sent = 0
            except OSError as error:
                self._gone(f"is gone: {error}")
            view = view[sent:]
            self._owed = min(self._owed, len(view))
            if not sent:
                self._overdue(deadline, "takes no input")

    def _fill(self, deadline: float) -> None:
        try:
            self._sock.settimeout(LOOK)
            data = self._sock.recv(1 << 18)
        except TimeoutError:
            self._overdue(deadline, "does not answer")
            return
        except OSError as error:
            self._gone(f"is gone: {error}")
        if not data:
            self._gone("was closed")
        self._buffer += data
        if time.monotonic() > deadline:
            self._overdue(deadline, "is still answering")

    def _gone(self, how: str) -> NoReturn:
        # The sockets of a QEMU that ends are closed a moment before its process has ended.
        until = time.monotonic() + DYING
        while time.monotonic() < until:
            self._alive()
            time.sleep(0.05)
        raise ChannelError(f"the port to the guest {how}")

    def _overdue(self, deadline: float, how: str) -> None:
        self._alive()
        if not self._open.is_set() or self._generation != self._asked:
            raise ChannelError("the shell in the guest went away during a request")
        if time.monotonic() > deadline:
            raise ChannelError(f"the shell in the guest {how}")

    def _until(self, marker: str, deadline: float) -> None:
        wanted = marker.encode() + b"\n"
        dropped = 0
        while (at := self._buffer.find(wanted)) < 0:
            # The answer to a request that was given up may come before it.
            surplus = max(0, len(self._buffer) - len(wanted))
            dropped += surplus
            del self._buffer[:surplus]
            if dropped > 2 * MAX_OUTPUT + NOISE_LIMIT:
                self._broken(f"sent {dropped} bytes of noise")
            self._fill(deadline)
        del self._buffer[: at + len(wanted)]

    def _header(self, ident: str, count: int, deadline: float, limit: int) -> tuple[str, list[int]]:
        start = f"OSG-{ident} ".encode()
        while (at := self._buffer.find(start)) < 0 or b"\n" not in self._buffer[at : at + 200]:
            if len(self._buffer) > NOISE_LIMIT:
                self._broken(f"sent {len(self._buffer)} bytes of noise")
            self._fill(deadline)
        end = self._buffer.index(b"\n", at)
        words = self._buffer[at + len(start) : end].decode("ascii", "replace").split()
        del self._buffer[: end + 1]
        if len(words) != count + 1 or not all(word.isdecimal() and len(word) < 16 for word in words[1:]):
            self._broken(f"sent a malformed answer: {one_line(' '.join(words), 100)!r}")
        sizes = [int(word) for word in words[1:]]
        if max(sizes) > limit:
            self._broken(f"announced {max(sizes)} bytes where {limit} are allowed")
        return words[0], sizes

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._fill(deadline)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _trailer(self, ident: str, deadline: float) -> None:
        wanted = f"OSG-{ident}-END\n".encode()
        if self._take(len(wanted), deadline) != wanted:
            self._broken("sent other bytes than it announced")

    def _broken(self, how: str) -> None:
        self._buffer.clear()
        raise ChannelError(f"the shell in the guest {how}")

    def close(self) -> None:
        """Drop the host's end."""
        self._sock.close()


def _ident() -> str:
    return secrets.token_hex(16)
