"""LZO1X, decompressed: the kernel's Documentation/staging/lzo.rst, which describes the stream. For squashfs blocks.

No wheel of an LZO library is kept well for all Pythons; blocks are only uncompressed where they are looked into, so
that a loop in Python will do.
"""

from __future__ import annotations


class MalformedLzo(ValueError):
    """Bytes that are no LZO1X stream, break off, or yield more than was allowed."""


def decompress(data: bytes, limit: int) -> bytes:
    """`data` uncompressed, which is at most `limit` bytes.

    :raise MalformedLzo: it is not a stream, breaks off, or is larger.
    """
    try:
        output, position = _decompress(data, limit)
    except IndexError:
        raise MalformedLzo("the stream breaks off") from None
    if position != len(data):
        raise MalformedLzo(f"{len(data) - position} bytes after the end of the stream")
    return bytes(output)


def _decompress(data: bytes, limit: int) -> tuple[bytearray, int]:
    out = bytearray()
    position = 0
    # How many literals the last instruction copied, 4 for a long run: it says what a code below 16 means.
    state = 0
    if data[0] > 17:
        count = data[0] - 17
        position = 1 + count
        out += _literals(data, 1, count)
        state = min(count, 4)
    while True:
        code = data[position]
        position += 1
        if code < 16 and state == 0:
            count, position = _length(data, position, code, 15)
            count += 3
            out += _literals(data, position, count)
            position += count
            state = 4
        else:
            if code < 16:
                length = 2 if state < 4 else 3
                distance = (data[position] << 2) + (code >> 2) + (1 if state < 4 else 2049)
                position += 1
                state = code & 3
            elif code < 64:
                bits = 7 if code < 32 else 31
                length, position = _length(data, position, code & bits, bits)
                length += 2
                word = data[position] | data[position + 1] << 8
                position += 2
                state = word & 3
                distance = (word >> 2) + 1
                if code < 32:
                    distance += 16383 + ((code & 8) << 11)
                    if distance == 16384:
                        return out, position
            else:
                length = 5 + (code >> 5 & 3) if code >= 128 else 3 + (code >> 5 & 1)
                distance = (data[position] << 3) + (code >> 2 & 7) + 1
                position += 1
                state = code & 3
            _repeat(out, distance, length, limit)
            if state:
                out += _literals(data, position, state)
                position += state
        if len(out) > limit:
            raise MalformedLzo(f"it uncompresses to more than {limit} bytes")


def _length(data: bytes, position: int, value: int, longest: int) -> tuple[int, int]:
    """A length whose bits in the code are `value`; zero: it goes on in bytes of 255 each."""
    if value:
        return value, position
    value = longest
    while data[position] == 0:
        value += 255
        position += 1
    return value + data[position], position + 1


def _literals(data: bytes, position: int, count: int) -> bytes:
    found = data[position : position + count]
    if len(found) != count:
        raise MalformedLzo("the stream breaks off in literals")
    return found


def _repeat(out: bytearray, distance: int, length: int, limit: int) -> None:
    start = len(out) - distance
    if start < 0:
        raise MalformedLzo("it refers to bytes before its beginning")
    if len(out) + length > limit:
        raise MalformedLzo(f"it uncompresses to more than {limit} bytes")
    piece = out[start : start + length]
    while len(piece) < length:
        # The copy reads what it has just written.
        piece += piece[: length - len(piece)]
    out += piece
