"""Writes a capture of IP packets without a link, bounded (draft-ietf-opsawg-pcap, LINKTYPE_LINUX_SLL).

Not LINKTYPE_RAW, which does not say who sent a packet: addresses are the sender's own words.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

FLUSH = 1 << 18
_HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 113)
_RECORD = struct.Struct("<IIII")
# Packet type, ARPHRD_NONE, length of the sender's address, address, EtherType.
_COOKED = struct.Struct("!HHH6s2x2s")
_TO_US, _FROM_US, _NO_LINK = 0, 4, 0xFFFE
# A guest has no card in a tunnel; this one is nobody's.
GUEST = b"\x02\0\0\0\0\x01"


class TunnelCapture:
    """Appends to `sink`, at most `limit` bytes. `outside`: the MAC address that stands for all but the guest.
    `failure`: why packets are missing; empty if none is.
    """

    def __init__(self, sink: BinaryIO, limit: int, outside: bytes) -> None:
        self._sink, self._left, self._outside = sink, limit - len(_HEAD), outside
        self._pending = [_HEAD]
        self._size = len(_HEAD)
        self.failure = ""
        self.packets = 0

    def add(self, at: float, packet: bytes, *, ours: bool) -> None:
        """A packet, at `at` (s since 1970); `ours`: the guest is told it, and did not say it."""
        kind = b"\x86\xdd" if packet[:1] and packet[0] >> 4 == 6 else b"\x08\0"
        sender = self._outside if ours else GUEST
        packet = _COOKED.pack(_FROM_US if ours else _TO_US, _NO_LINK, 6, sender, kind) + packet
        size = _RECORD.size + len(packet)
        if not self.failure and size > self._left:
            self.failure = "the capture of the tunnel is full"
        if self.failure:
            return
        seconds = int(at)
        self._pending.append(_RECORD.pack(seconds, int((at - seconds) * 1e6), len(packet), len(packet)) + packet)
        self.packets += 1
        self._left -= size
        self._size += size
        if self._size >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; a disk that takes no more is a failure that is remembered."""
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending.clear()
        self._size = 0
        try:
            # Unbuffered files may write less than all.
            view = memoryview(data)
            while view:
                view = view[self._sink.write(view) :]
        except OSError as error:
            self.failure = self.failure or f"the capture of the tunnel cannot be written: {error.strerror}"
