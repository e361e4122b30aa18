"""A console: a socket that is always drained, transcribed with times, searched, and can be talked to.

An undrained chardev socket stalls the guest, so reading never depends on anyone being interested.
"""

from __future__ import annotations

import codecs
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pexpect
from pexpect.spawnbase import SpawnBase

from pytest_osgates.vm.watch import CARRY, LONGEST_LINE, Watcher

TRANSCRIPT_LIMIT = 64 << 20
RECENT_LIMIT = 1 << 20


class Console:
    """Drains `sock` in a thread of its own until the peer closes it.

    The transcript has one line per line of the guest, each with the seconds since power-on; past 64 MiB it says
    so and stops growing, while draining and searching go on.
    """

    def __init__(self, sock: socket.socket, source: str, transcript: Path, watcher: Watcher | None) -> None:
        self._sock = sock
        self._source = source
        self._watcher = watcher
        self.on_line: Callable[[str], None] | None = None
        self.listener_error: Exception | None = None
        self._file: BinaryIO = transcript.open("wb", buffering=0)
        self._written = 0
        self._total = 0
        self._recent = bytearray()
        self._unread = bytearray()
        self._dropped = 0
        self._line = bytearray()
        self._carried = ""
        self._changed = threading.Condition()
        self._closed = False
        self._write_error: str | None = None
        self._epoch = time.monotonic()
        self._thread = threading.Thread(target=self._drain, name=f"console-{source}", daemon=True)

    def start(self) -> None:
        """Start draining."""
        self._thread.start()

    def power_on(self) -> None:
        """Count time from here."""
        self._epoch = time.monotonic()

    def _drain(self) -> None:
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except OSError:
                data = b""
            with self._changed:
                if data:
                    self._total += len(data)
                    self._recent += data
                    del self._recent[:-RECENT_LIMIT]
                    self._unread += data
                    self._dropped += max(0, len(self._unread) - RECENT_LIMIT)
                    del self._unread[:-RECENT_LIMIT]
                else:
                    self._closed = True
                self._changed.notify_all()
            if not data:
                self._flush_line()
                return
            self._lines(data)

    def _lines(self, data: bytes) -> None:
        self._line += data
        while True:
            end = self._line.find(b"\n")
            if end < 0 and len(self._line) <= LONGEST_LINE:
                break
            whole = 0 <= end <= LONGEST_LINE
            end = end if whole else LONGEST_LINE
            line = bytes(self._line[:end])
            del self._line[: end + whole]
            self._take(line, whole=whole)
        # A panic's last line, or a prompt, comes without its newline.
        if self._line:
            self._scan(self._line.decode("utf-8", "replace"), finished=False)

    def _scan(self, text: str, *, finished: bool = True) -> None:
        if self._watcher is not None:
            self._watcher.scan(self._source, self._carried + text, finished=finished)

    def _flush_line(self) -> None:
        if self._line:
            self._take(bytes(self._line))
            self._line.clear()
        self._file.close()

    def _take(self, line: bytes, *, whole: bool = True) -> None:
        line = line.rstrip(b"\r")
        text = line.decode("utf-8", "replace")
        self._scan(text)
        # The next piece does not begin a line: the dots keep "^" from matching there.
        self._carried = "" if whole else f"...{text[-CARRY:]}"
        if self.on_line is not None:
            try:
                self.on_line(text)
            except Exception as error:  # noqa: BLE001  (whoever listens must not stop the draining)
                self.listener_error = self.listener_error or error
        self._write(f"[{time.monotonic() - self._epoch:10.3f}] ".encode() + line + b"\n")

    def _write(self, record: bytes) -> None:
        if self._write_error is not None or self._written > TRANSCRIPT_LIMIT:
            return
        try:
            self._file.write(record)
            self._written += len(record)
            if self._written > TRANSCRIPT_LIMIT:
                self._file.write(b"(transcript ends here: 64 MiB)\n")
        except OSError as error:
            self._write_error = f"{self._file.name}: {error.strerror}"

    @property
    def write_error(self) -> str | None:
        """Why the transcript on disk is incomplete (a full disk), None if it is whole."""
        return self._write_error

    @property
    def spoken(self) -> int:
        """How many bytes the guest has written."""
        with self._changed:
            return self._total

    @property
    def dropped(self) -> int:
        """How many bytes nobody took in time: only the newest mebibyte is put aside."""
        with self._changed:
            return self._dropped

    @property
    def closed(self) -> bool:
        """Whether the other end is gone."""
        with self._changed:
            return self._closed

    def wait_for_more(self, timeout: float) -> None:
        """Return when the guest writes something, at the latest after `timeout` seconds."""
        with self._changed:
            before = self._total
            self._changed.wait_for(lambda: self._total != before, timeout)

    def tail(self, limit: int = 4096) -> str:
        """The newest text, at most `limit` bytes."""
        with self._changed:
            return bytes(self._recent[-limit:]).decode("utf-8", "replace")

    def take_unread(self, size: int, timeout: float) -> bytes:
        """Up to `size` bytes not taken before; b"" after `timeout` seconds or at the end."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._unread and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    return b""
                self._changed.wait(left)
            data = bytes(self._unread[:size])
            del self._unread[:size]
            return data

    def send(self, data: bytes) -> None:
        """Type `data`.

        :raise OSError: the console is gone.
        """
        self._sock.sendall(data)

    def close(self) -> None:
        """Stop draining; the transcript is complete afterwards."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(10.0)
        else:
            self._file.close()
        self._sock.close()


class ConsoleSpawn(SpawnBase):  # type: ignore[type-arg]
    """pexpect on a `Console`: it reads what the draining thread has put aside, never the socket itself."""

    def __init__(self, console: Console, timeout: float) -> None:
        super().__init__(timeout=timeout, maxread=4096, encoding="utf-8", codec_errors="replace")
        self._console = console
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> str:
        """Called by pexpect's expect loop."""
        patience = self.timeout if timeout is None or timeout == -1 else timeout
        data = self._console.take_unread(size, patience or 0.0)
        if data:
            # A character may be cut in two by the size of a read.
            return self._text.decode(data)
        if self._console.closed:
            self.flag_eof = True
            raise pexpect.EOF("the console is closed")
        raise pexpect.TIMEOUT("nothing more on the console")

    def sendline(self, text: str = "") -> None:
        """Type `text` and Enter."""
        self._console.send(text.encode() + b"\r")

    def isalive(self) -> bool:
        """Whether more can come."""
        return not self._console.closed
