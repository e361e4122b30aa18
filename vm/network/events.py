"""The sinkhole's log: JSON lines, one an event, bounded. Counting goes on where writing has to stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import BinaryIO

FLUSH = 1 << 16
# Kept for the words that say that the log is full.
_RESERVE = 1024


class EventLog:
    """Writes ``{"t": <guest time, s>, "event": NAME, ...}``.

    `dropped` events did not fit into `limit` bytes, or could not be written; `failure` says why. What was dropped is
    a hole in the record and is counted, never silent.
    """

    def __init__(self, sink: BinaryIO, clock: Callable[[], float], limit: int) -> None:
        self._sink = sink
        self._left = limit - _RESERVE
        self._pending: list[str] = []
        self._size = 0
        self.clock = clock
        self.written = 0
        self.dropped = 0
        self.failure = ""

    def add(self, event: str, /, **fields: object) -> None:
        """Note an event. Values are numbers, truth values, texts or lists of them."""
        self.line(f'"event": "{event}", {json.dumps(fields)[1:-1]}' if fields else f'"event": "{event}"')

    def line(self, inner: str) -> None:
        """Note an event that is JSON already but for its braces and its time: for what comes by the ten thousand."""
        text = f'{{"t": {self.clock():.6f}, {inner}}}\n'
        if self.failure or len(text) > self._left:
            if not self.failure:
                self.failure = "the event log is full"
                self._pending.append(f'{{"t": {self.clock():.6f}, "event": "log-full"}}\n')
            self.dropped += 1
            return
        self._left -= len(text)
        self._size += len(text)
        self.written += 1
        self._pending.append(text)
        if self._size >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; a disk that takes no more is a failure that is remembered."""
        if not self._pending:
            return
        data = "".join(self._pending).encode("ascii")
        count = len(self._pending)
        self._pending.clear()
        self._size = 0
        try:
            self._sink.write(data)
            self._sink.flush()
        except OSError as error:
            self.failure = f"the event log cannot be written: {error.strerror}"
            self.dropped += count
