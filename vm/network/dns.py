"""DNS (RFC 1035): reads messages, and answers every question with an address that is the name's own."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pytest_osgates.vm.network.wire import Malformed, text_of

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, OPT, SVCB, HTTPS, ANY = 1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 64, 65, 255
TYPES = {
    A: "A",
    NS: "NS",
    CNAME: "CNAME",
    SOA: "SOA",
    PTR: "PTR",
    MX: "MX",
    TXT: "TXT",
    AAAA: "AAAA",
    SRV: "SRV",
    35: "NAPTR",
    43: "DS",
    48: "DNSKEY",
    52: "TLSA",
    SVCB: "SVCB",
    HTTPS: "HTTPS",
    ANY: "ANY",
}
NXDOMAIN, REFUSED = 3, 5
TTL_S = 300

_HEAD = struct.Struct("!HHHHHH")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_LOWER = bytes(range(65)) + bytes(range(97, 123)) + bytes(range(91, 256))
MAX_RECORDS = 200
MAX_JUMPS = 32
# Names that were read before, by their bytes on the wire: a busy resolver asks for few.
_known: dict[bytes, str] = {}
_MAX_KNOWN = 20_000


def _label(raw: bytes) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03d}" for byte in raw.translate(_LOWER))


def read_name(data: bytes, at: int) -> tuple[str, int]:
    """A name in lower case without its last dot, odd bytes as ``\\DDD`` (RFC 4343 2.1), and what follows it.

    :raise Malformed: it runs out of the message, in circles, or beyond 255 bytes.
    """
    labels: list[str] = []
    end, jumps, size = -1, 0, 0
    while True:
        if at >= len(data):
            raise Malformed("a DNS name runs out of its message")
        length = data[at]
        if length == 0:
            return ".".join(labels), at + 1 if end < 0 else end
        if length >= 0xC0:
            if at + 1 >= len(data):
                raise Malformed("a DNS name runs out of its message")
            jumps += 1
            if jumps > MAX_JUMPS:
                raise Malformed("a DNS name runs in circles")
            if end < 0:
                end = at + 2
            at = ((length & 0x3F) << 8) | data[at + 1]
            continue
        if length > 63:
            raise Malformed("a DNS label of an unknown kind")
        size += length + 1
        if size > 255 or at + 1 + length > len(data):
            raise Malformed("a DNS name is too long")
        labels.append(_label(data[at + 1 : at + 1 + length]))
        at += 1 + length


def question_name(data: bytes) -> tuple[str, int]:
    """The first question's name, and the offset behind it; names that were seen before cost no parsing.

    :raise Malformed: as `read_name`.
    """
    end = data.find(b"\0", 12)
    raw = data[12 : end + 1]
    name = _known.get(raw)
    if name is not None:
        return name, end + 1
    name, after = read_name(data, 12)
    # Not where a pointer is in it: what that means depends on the rest of the message.
    if after == end + 1 and max(raw) < 0xC0 and len(_known) < _MAX_KNOWN:
        _known[raw] = name
    return name, after


@dataclass(frozen=True, slots=True)
class Question:
    """What one message asks: its first question, as all clients send one."""

    name: str
    kind: int
    after: int

    @property
    def word(self) -> str:
        """``A``, ``AAAA``, or ``TYPE<number>``."""
        return TYPES.get(self.kind, f"TYPE{self.kind}")


def parse_question(data: bytes) -> Question:
    """The question of a query.

    :raise Malformed: not a query with one.
    """
    if len(data) < 17 or data[2] & 0x80 or data[4] == data[5] == 0:
        raise Malformed("not a DNS query")
    name, after = question_name(data)
    if after + 4 > len(data):
        raise Malformed("a DNS question cut short")
    return Question(name, (data[after] << 8) | data[after + 1], after + 4)


def other_questions(data: bytes, question: Question) -> list[str]:
    """Names of the questions behind the first one, which most servers ignore.

    :raise Malformed: they are cut short.
    """
    names, at = [], question.after
    for _ in range(min(MAX_RECORDS, int.from_bytes(data[4:6], "big") - 1)):
        name, at = read_name(data, at)
        names.append(name)
        at += 4
    return names


def beyond(data: bytes, question: Question) -> str:
    """What a query carries besides its one question and the usual EDNS options (RFC 6891); empty if nothing.

    :raise Malformed: it is cut short.
    """
    if data[2] & 0x78:
        return f"DNS opcode {data[2] >> 3 & 15}"
    if data[question.after - 2 : question.after] != b"\0\x01":
        return "DNS of another class"
    if data[4:10] != b"\0\x01\0\0\0\0":
        return "DNS query with several questions or with answers"
    at = question.after
    for _ in range(int.from_bytes(data[10:12], "big")):
        if data[at : at + 3] != b"\0\0\x29" or at + 11 > len(data):
            return "DNS query with additional records"
        if data[at + 5 : at + 9] not in (bytes(4), b"\0\0\x80\0"):
            return "EDNS flags"
        end = at + 11 + int.from_bytes(data[at + 9 : at + 11], "big")
        at += 11
        while at < end:
            kind, size = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
            value = data[at + 4 : at + 4 + size]
            if not _usual(kind, value) or len(value) != size:
                return f"EDNS option {kind}"
            at += 4 + size
    return f"{len(data) - at} bytes behind a DNS query" if at != len(data) else ""


def _usual(kind: int, value: bytes) -> bool:
    """EDNS options that tell nothing: NSID (RFC 5001) and keepalive (RFC 7828) asked for, padding (RFC 7830), which
    algorithms are known (RFC 6975), a cookie (RFC 7873), and a client subnet that says "none" (RFC 7871 7.1.2).
    """
    if kind in {3, 11}:
        return not value
    if kind == 12:
        return not value.strip(b"\0")
    if kind in {5, 6, 7}:
        return len(value) <= 20
    if kind == 10:
        return len(value) == 8 or 16 <= len(value) <= 40
    return kind == 8 and len(value) == 4 and value[2:] == b"\0\0"


@dataclass(frozen=True)
class Record:
    """One resource record: its owner, type, and data as text where it is an address or a name."""

    owner: str
    kind: int
    value: str


@dataclass(frozen=True)
class Message:
    """A whole message: what is asked, and what is said (answers, authorities and additional records together)."""

    response: bool
    rcode: int
    questions: tuple[tuple[str, int], ...]
    records: tuple[Record, ...]


def parse(data: bytes) -> Message:
    """A message with all its records.

    :raise Malformed: it is cut short or has more than `MAX_RECORDS`.
    """
    if len(data) < 12:
        raise Malformed("DNS cut short")
    _, flags, *counts = _HEAD.unpack_from(data)
    if sum(counts) > MAX_RECORDS:
        raise Malformed(f"a DNS message with {sum(counts)} records")
    at, questions, records = 12, [], []
    for _ in range(counts[0]):
        name, at = read_name(data, at)
        if at + 4 > len(data):
            raise Malformed("a DNS question cut short")
        questions.append((name, (data[at] << 8) | data[at + 1]))
        at += 4
    for _ in range(sum(counts[1:])):
        owner, at = read_name(data, at)
        if at + 10 > len(data):
            raise Malformed("a DNS record cut short")
        kind, size = (data[at] << 8) | data[at + 1], (data[at + 8] << 8) | data[at + 9]
        begin, at = at + 10, at + 10 + size
        if at > len(data):
            raise Malformed("a DNS record cut short")
        records.append(Record(owner, kind, _value(data, begin, size, kind)))
    return Message(bool(flags & 0x8000), flags & 15, tuple(questions), tuple(records))


def _value(data: bytes, at: int, size: int, kind: int) -> str:
    if (kind == A and size == 4) or (kind == AAAA and size == 16):
        return text_of(data[at : at + size])
    if kind in {CNAME, PTR, NS}:
        return read_name(data, at)[0]
    if kind == SRV and size > 6:
        return read_name(data, at + 6)[0]
    return ""


def write_name(name: str) -> bytes:
    """The wire form of a name out of plain labels."""
    labels = [label.encode("ascii", "replace")[:63] for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def answer(query: bytes, question: Question, v4: bytes, v6: bytes) -> bytes:
    """A response to `query` (whose question was read): one record for A, AAAA, SRV and PTR, none for other types."""
    kind = question.kind
    if kind in (A, ANY):
        record = b"\xc0\x0c\0\x01\0\x01" + TTL_S.to_bytes(4, "big") + b"\0\x04" + v4
    elif kind == AAAA:
        record = b"\xc0\x0c\0\x1c\0\x01" + TTL_S.to_bytes(4, "big") + b"\0\x10" + v6
    elif kind == SRV:
        plain = ".".join(label for label in question.name.split(".") if not label.startswith("_"))
        body = b"\0\0\0\0\x01\xbb" + write_name(plain)
        record = b"\xc0\x0c\0\x21\0\x01" + TTL_S.to_bytes(4, "big") + len(body).to_bytes(2, "big") + body
    else:
        record = b""
    head = query[:2] + bytes((0x81 | (query[2] & 0x78), 0x80)) + b"\0\x01" + (b"\0\x01" if record else b"\0\0")
    return head + b"\0\0\0\0" + query[12 : question.after] + record


def refusal(query: bytes, question: Question, rcode: int) -> bytes:
    """A response without records."""
    head = query[:2] + bytes((0x81 | (query[2] & 0x78), 0x80 | rcode)) + b"\0\x01\0\0\0\0\0\0"
    return head + query[12 : question.after]


def query(name: str, kind: int = A, ident: int = 1) -> bytes:
    """A query, as a stub resolver sends it."""
    return _HEAD.pack(ident, 0x0100, 1, 0, 0, 0) + write_name(name) + struct.pack("!HH", kind, 1)


def reverse_address(name: str) -> str:
    """The address that a name below in-addr.arpa or ip6.arpa stands for; empty if none."""
    labels = name.split(".")
    if name.endswith(".in-addr.arpa") and len(labels) == 6 and all(label.isdecimal() for label in labels[:4]):
        return ".".join(reversed(labels[:4]))
    if name.endswith(".ip6.arpa") and len(labels) == 34:
        digits = "".join(reversed(labels[:32]))
        if len(digits) == 32 and all(digit in "0123456789abcdef" for digit in digits):
            return text_of(bytes.fromhex(digits))
    return ""
