"""The sinkhole's own process: ``python -P -m pytest_osgates.vm.network.peer LINK CONTROL SETTINGS LOG TUNNEL``.

LINK and CONTROL are inherited descriptors of connected sockets, SETTINGS, too, of a file; LOG is a file. What goes
through a tunnel is written to TUNNEL.pcap and TUNNEL.events.jsonl. A process of its own, because the plugin's threads
would share one interpreter lock with ten thousands of frames a second.

On CONTROL each line is a JSON object with ``do``, and is answered by one: ``stats``, ``probe``, ``behave``, ``stop``;
of the prober ``sweep``, ``sweep-status``, ``sweep-result``.
The first line is ours: ``{"ready": true}``.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import selectors
import socket
import struct
import sys
import tempfile
import termios
import time
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

from pytest_osgates.vm.network.authority import Authority
from pytest_osgates.vm.network.events import EventLog
from pytest_osgates.vm.network.secure_dns import SecureResolver
from pytest_osgates.vm.network.settings import Settings, TlsAnswer, misbehaviour
from pytest_osgates.vm.network.sinkhole import Sinkhole
from pytest_osgates.vm.network.tunnel import MAX_CAPTURE, Tunnel
from pytest_osgates.vm.network.tunnel_pcap import TunnelCapture

READ = 1 << 18
IDLE = 0.2
# Answers that QEMU does not take (a paused guest): what is beyond this is dropped and counted.
MAX_QUEUE = 16 << 20
_RECORD = struct.Struct("<IIII")


class CaptureClock:
    """The guest's own time: the time stamp of the last record that QEMU wrote to the capture of this card.

    QEMU stamps by its virtual clock (net/dump.c); where that is faster than the host's, so is this. Before the first
    record it is the host's time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._at = 24
        self._now = 0.0

    def __call__(self) -> float:
        return self._now or time.time()

    def refresh(self) -> None:
        """Read the records that were written since."""
        while self._some():
            pass

    def _some(self) -> bool:
        """Read some of them; whether there may be more."""
        try:
            if self._file is None:
                self._file = self._path.open("rb")
            self._file.seek(self._at)
            data = self._file.read(READ)
        except OSError:
            return False
        at = 0
        while at + 16 <= len(data):
            seconds, micros, size, _ = _RECORD.unpack_from(data, at)
            if at + 16 + size > len(data):
                break
            self._now = seconds + micros / 1e6
            at += 16 + size
        self._at += at
        return at > 0 and len(data) == READ


class Peer:
    """Moves bytes between QEMU and the sinkhole, and obeys the control socket."""

    def __init__(
        self, link: socket.socket, control: socket.socket, sink: Sinkhole, clock: CaptureClock | None
    ) -> None:
        self._link, self._control, self.sink, self._clock = link, control, sink, clock
        self._selector = selectors.DefaultSelector()
        self._left = b""
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._late: list[tuple[float, int, bytes]] = []
        self._asked = bytearray()
        self._number = 0
        self.dropped = 0
        self._open = True
        self._stop = False
        for sock in (link, control):
            sock.setblocking(False)
        self._selector.register(link, selectors.EVENT_READ)
        self._selector.register(control, selectors.EVENT_READ)

    def run(self) -> None:
        """Until it is told to stop, or the control socket ends."""
        flushed = time.monotonic()
        while not self._stop:
            wait = IDLE
            if self._late:
                wait = min(wait, max(0.0, self._late[0][0] - time.monotonic()))
            if self.sink.prober is not None:
                wait = min(wait, self.sink.prober.wait())
            for key, events in self._selector.select(wait):
                if key.fileobj is self._control:
                    self._commands()
                elif events & selectors.EVENT_READ:
                    self._frames()
            self._due()
            if self.sink.prober is not None and self._open:
                self.sink.prober.tick(time.monotonic(), self._backlog())
                self._take()
            if self._queue and self._open:
                self._write()
            now = time.monotonic()
            if now - flushed > IDLE:
                self.sink.flush()
                flushed = now
        self.sink.flush()

    def _frames(self) -> None:
        try:
            data = self._link.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end_link()
            return
        if self.sink.broken:
            return
        if self._clock is not None:
            self._clock.refresh()
        if self._left:
            data = self._left + data
        used = self.sink.feed(data)
        self._left = b"" if self.sink.broken else data[used:]
        self._take()

    def _take(self) -> None:
        out = self.sink.out
        if not out:
            return
        delay = self.sink.misbehaviour.delay_s
        if delay:
            at = time.monotonic() + delay
            for frame in out:
                self._number += 1
                heapq.heappush(self._late, (at, self._number, frame))
        else:
            self._enqueue(b"".join(out), len(out))
        out.clear()

    def _enqueue(self, data: bytes, count: int) -> None:
        if self._queued + len(data) > MAX_QUEUE or not self._open:
            self.dropped += count
            self.sink.log.add("answers-dropped", frames=count)
            return
        self._queue.append(data)
        self._queued += len(data)

    def _due(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            self._enqueue(heapq.heappop(self._late)[2], 1)

    def _write(self) -> None:
        try:
            while self._queue:
                sent = self._link.send(self._queue[0])
                self._queued -= sent
                if sent < len(self._queue[0]):
                    self._queue[0] = self._queue[0][sent:]
                    break
                self._queue.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._end_link()
            return
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(self._link, both if self._queue else selectors.EVENT_READ)

    def _end_link(self) -> None:
        if self._open:
            self._open = False
            self._selector.unregister(self._link)
            self.sink.log.add("link-closed")
            self.sink.log.flush()

    def _backlog(self) -> int:
        """Bytes, or more, that QEMU has not taken (unix(7): SIOCOUTQ, which is TIOCOUTQ by another name)."""
        try:
            (kept,) = struct.unpack("i", fcntl.ioctl(self._link, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            kept = 0
        return self._queued + int(kept)

    # -- control --------------------------------------------------------------------------------------------------

    def _commands(self) -> None:
        try:
            data = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # Whoever started this is gone.
            self._stop = True
            return
        self._asked += data
        while (end := self._asked.find(b"\n")) >= 0:
            line = bytes(self._asked[:end])
            del self._asked[: end + 1]
            self.say(self._do(json.loads(line)))

    def _do(self, asked: dict[str, Any]) -> dict[str, object]:
        match asked["do"]:
            case "stats":
                self.sink.flush()
                return self._stats()
            case "probe":
                whom = self.sink.probe()
                self._take()
                return {"asked": whom}
            case "sweep" | "sweep-status" | "sweep-result":
                return self._sweep(asked)
            case "behave":
                self.sink.behave(misbehaviour(asked["misbehaviour"]))
                return {"done": True}
            case "stop":
                # What QEMU sent before it ended is still to be read.
                while self._open and self._ready():
                    self._frames()
                self.sink.log.add("stopped")
                self.sink.flush()
                self._stop = True
                return self._stats()
        return {"error": f"unknown command {asked['do']!r}"}

    def _sweep(self, asked: dict[str, Any]) -> dict[str, object]:
        prober = self.sink.prober
        if prober is None:
            return {"error": "this sinkhole has no prober"}
        try:
            if asked["do"] == "sweep":
                return {"sweeps": prober.start(asked["plan"])}
            if asked["do"] == "sweep-result":
                result: dict[str, object] = prober.sweeps[asked["index"]].result()
                return result
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return {"error": str(error)}
        return {**prober.status(), "tx_frames": self.sink.tx_frames, "answers_dropped": self.dropped}

    def _ready(self) -> bool:
        with selectors.DefaultSelector() as one:
            one.register(self._link, selectors.EVENT_READ)
            return bool(one.select(0))

    def _stats(self) -> dict[str, object]:
        return {
            **self.sink.stats(),
            "link_open": self._open,
            "queued_bytes": self._queued,
            "answers_dropped": self.dropped,
            "partial_bytes": len(self._left),
            "guest_clock": self.sink.log.clock(),
            "host_clock": time.time(),
            "cpu_s": time.process_time(),
        }

    def say(self, answer: dict[str, object]) -> None:
        """One line to whoever controls this; a controller that does not read is as good as gone."""
        data = json.dumps(answer).encode() + b"\n"
        self._control.settimeout(10.0)
        try:
            self._control.sendall(data)
        except OSError:
            self._stop = True
        finally:
            self._control.setblocking(False)


def main(arguments: list[str]) -> None:
    """Run until stopped."""
    link, control = (socket.socket(fileno=int(number)) for number in arguments[:2])
    with os.fdopen(int(arguments[2]), "rb") as file:
        settings = Settings.from_json(file.read().decode())
    clock = CaptureClock(Path(settings.capture)) if settings.capture else None
    with contextlib.ExitStack() as stack:
        log = EventLog(_written(stack, arguments[3]), clock or time.time, settings.max_log)
        authority = None
        if settings.tls is TlsAnswer.COMPLETE:
            # Nowhere else: whoever kills this process leaves the directory behind.
            ca = stack.enter_context(tempfile.TemporaryDirectory(prefix="osgates-ca-"))
            authority = Authority(Path(ca), time.time())
        sink = Sinkhole(settings, log, authority)
        if settings.secure is not None:
            sink.secure = SecureResolver(settings.secure, sink.names)
        if settings.vpn is not None:
            inner = EventLog(_written(stack, f"{arguments[4]}.events.jsonl"), log.clock, settings.max_log)
            capture = TunnelCapture(_written(stack, f"{arguments[4]}.pcap"), MAX_CAPTURE, settings.hardware)
            sink.tunnel = Tunnel(sink, settings.vpn, inner, capture)
        peer = Peer(link, control, sink, clock)
        peer.say({"ready": True})
        peer.run()


def _written(stack: contextlib.ExitStack, path: str) -> BinaryIO:
    """A new file, without a buffer: what was written is there, whatever happens next."""
    return stack.enter_context(Path(path).open("wb", buffering=0))


if __name__ == "__main__":
    main(sys.argv[1:])
