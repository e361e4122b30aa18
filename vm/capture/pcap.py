"""Capture files: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), read in bounded pieces.

A file that is cut short or corrupt is told so: `PcapFile.problem` after the last good packet, `CaptureError` where
not even the first header can be read. It is never taken for a quiet network.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pytest_osgates.vm.errors import CaptureError

# Magic number, as the first four bytes: byte order for struct, and time stamp units a second.
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 10**6),
    b"\xa1\xb2\xc3\xd4": (">", 10**6),
    b"\x4d\x3c\xb2\xa1": ("<", 10**9),
    b"\xa1\xb2\x3c\x4d": (">", 10**9),
}
_SECTION = b"\x0a\x0d\x0d\x0a"
_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_INTERFACE, _SIMPLE, _ENHANCED = 1, 3, 6
_IF_TSRESOL = 9
MAX_PACKET = 1 << 18
MAX_BLOCK = 1 << 20
READ = 1 << 22

ETHERNET, RAW, RAW_BSD, COOKED = 1, 101, 12, 113
LINK_TYPES = frozenset({ETHERNET, RAW, RAW_BSD, COOKED})


@dataclass(frozen=True, slots=True)
class Record:
    """One packet: seconds since 1970, its length on the wire and what of it is in the file, both as an Ethernet
    frame."""

    at: float
    size: int
    frame: bytes


class PcapFile:
    """A capture that is open. `order`: ``<`` or ``>``; `units`: time stamps a second; `pcapng`: which of the two.

    :raise CaptureError: it cannot be read, is empty, or is of a kind that is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self.pcapng = False
        self.order, self.units, self.link_type = "<", 10**6, ETHERNET
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)
        except OSError as error:
            raise CaptureError(f"the capture {path} cannot be read: {error.strerror}") from error
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        head = self._exactly(24)
        if head[:4] == _SECTION:
            self.pcapng = True
            self._file.seek(0)
            return
        known = _PCAP.get(head[:4])
        if known is None:
            what = "is empty" if not head else f"begins with {head[:4].hex()}"
            raise CaptureError(f"{self.path} is no pcap or pcapng file: it {what}")
        if len(head) < 24:
            raise CaptureError(f"the capture {self.path} is cut short in its header: {len(head)} of 24 bytes")
        self.order, self.units = known
        self.link_type = struct.unpack_from(f"{self.order}I", head, 20)[0] & 0x0FFFFFFF
        self._check_link(self.link_type)

    def _check_link(self, link_type: int) -> None:
        if link_type not in LINK_TYPES:
            raise CaptureError(
                f"the capture {self.path} is of link type {link_type}",
                remedy="capture Ethernet (1), raw IP (101) or Linux cooked (113)",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        try:
            while len(data) < size:
                more = self._file.read(size - len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise CaptureError(f"the capture {self.path} cannot be read: {error.strerror}") from error
        return data

    def chunks(self) -> Iterator[bytes]:
        """The rest of the file in pieces of at most `READ` bytes; for a pcap, what stands behind its header."""
        while True:
            try:
                data = self._file.read(READ)
            except OSError as error:
                self.problem = f"cannot be read on: {error.strerror}"
                return
            if not data:
                return
            yield data

    def records(self) -> Iterator[Record]:
        """Every packet, in the file's order; afterwards `problem` says whether the file ended as it should."""
        return self._ng_records() if self.pcapng else self._pcap_records()

    def _pcap_records(self) -> Iterator[Record]:
        unpack = struct.Struct(f"{self.order}IIII").unpack_from
        left, number = b"", 0
        for chunk in self.chunks():
            data = left + chunk if left else chunk
            at, end = 0, len(data)
            while at + 16 <= end:
                seconds, parts, size, original = unpack(data, at)
                if size > MAX_PACKET:
                    self.problem = f"is corrupt: packet {number + 1} is said to have {size} bytes"
                    return
                if at + 16 + size > end:
                    break
                number += 1
                frame = as_ethernet(data[at + 16 : at + 16 + size], self.link_type)
                yield Record(seconds + parts / self.units, original + len(frame) - size, frame)
                at += 16 + size
            left = data[at:]
        if left:
            self.problem = self.problem or f"is cut short after packet {number}"

    # -- pcapng ---------------------------------------------------------------------------------------------------

    def _ng_records(self) -> Iterator[Record]:
        interfaces: list[tuple[int, int]] = []
        number = 0
        while True:
            head = self._exactly(8)
            if not head:
                if not interfaces and number == 0:
                    self.problem = self.problem or "has no interface"
                return
            if len(head) < 8:
                self.problem = f"is cut short after packet {number}"
                return
            if head[:4] == _SECTION:
                order = self._exactly(4)
                if order not in _ORDERS:
                    self.problem = "is corrupt: a section without its byte order"
                    return
                self.order = _ORDERS[order]
                interfaces = []
                head += order
            kind, size = struct.unpack_from(f"{self.order}II", head)
            if size % 4 or not 12 <= size <= MAX_BLOCK:
                self.problem = f"is corrupt: a block of {size} bytes after packet {number}"
                return
            body = head[8:] + self._exactly(size - len(head))
            if len(body) < size - 8:
                self.problem = f"is cut short after packet {number}"
                return
            if struct.unpack_from(f"{self.order}I", body, size - 12)[0] != size:
                self.problem = f"is corrupt: a block after packet {number} ends with another length"
                return
            if kind == _INTERFACE:
                interfaces.append(self._interface(body))
            elif kind in {_ENHANCED, _SIMPLE}:
                record = self._packet(kind, body, interfaces)
                if record is None:
                    self.problem = f"is corrupt: packet {number + 1} does not fit its block"
                    return
                number += 1
                yield record

    def _interface(self, body: bytes) -> tuple[int, int]:
        """Link type, and time stamp units a second."""
        if len(body) < 12:
            raise CaptureError(f"the capture {self.path} has an interface without a link type")
        link_type = struct.unpack_from(f"{self.order}H", body)[0]
        self._check_link(link_type)
        units, at = 10**6, 8
        while at + 4 <= len(body) - 4:
            code, size = struct.unpack_from(f"{self.order}HH", body, at)
            if code == 0:
                break
            if code == _IF_TSRESOL and size == 1:
                raw = body[at + 4]
                units = 1 << min(raw & 0x7F, 60) if raw & 0x80 else 10 ** min(raw, 18)
            at += 4 + (size + 3) // 4 * 4
        return link_type, units

    def _packet(self, kind: int, body: bytes, interfaces: list[tuple[int, int]]) -> Record | None:
        if kind == _SIMPLE:
            if not interfaces or len(body) < 8:
                return None
            original = struct.unpack_from(f"{self.order}I", body)[0]
            packet = body[4 : 4 + min(original, len(body) - 8)]
            frame = as_ethernet(packet, interfaces[0][0])
            return Record(0.0, original + len(frame) - len(packet), frame)
        if len(body) < 24:
            return None
        index, high, low, size, original = struct.unpack_from(f"{self.order}IIIII", body)
        if index >= len(interfaces) or size > min(MAX_PACKET, len(body) - 24):
            return None
        link_type, units = interfaces[index]
        frame = as_ethernet(body[20 : 20 + size], link_type)
        return Record(((high << 32) | low) / units, original + len(frame) - size, frame)


def as_ethernet(packet: bytes, link_type: int) -> bytes:
    """The packet behind an Ethernet header, of zeros where the capture has none."""
    if link_type == ETHERNET:
        return packet
    if link_type == COOKED:
        return bytes(6) + packet[6:12] + packet[14:]
    version = packet[0] >> 4 if packet else 0
    return bytes(12) + (b"\x86\xdd" if version == 6 else b"\x08\x00") + packet
