"""A link that takes every frame and leads nowhere: no answer, no route, no address of this host.

QEMU's ``stream`` netdev sends frames with a 4 byte big-endian length before each (net/stream.c). They must be read:
a card whose queue nobody empties makes the guest's kernel complain of transmit time-outs.
"""

from __future__ import annotations

import contextlib
import socket
import threading

MAX_FRAME = 1 << 17


class Nowhere:
    """Drains one end of a socket pair; QEMU has the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._thread = threading.Thread(target=self._drain, name="nowhere", daemon=True)
        self.frames = 0
        self.size = 0
        self.broken = False

    def start(self) -> None:
        """Start draining."""
        self._thread.start()

    def _drain(self) -> None:
        buffer = bytearray()
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except OSError:
                return
            if not data:
                return
            if self.broken:
                continue
            buffer += data
            while len(buffer) >= 4:
                length = int.from_bytes(buffer[:4], "big")
                if length > MAX_FRAME:
                    # Not framed as documented: keep reading, so that the guest does not stall, but count no more.
                    self.broken = True
                    buffer.clear()
                    break
                if len(buffer) < 4 + length:
                    break
                del buffer[: 4 + length]
                self.frames += 1
                self.size += length

    def close(self) -> None:
        """Stop."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(10.0)
        self._sock.close()
