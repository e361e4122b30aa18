"""System Use entries of a directory record: SUSP 1.12 and Rock Ridge (RRIP 1.12).

Numbers are stored twice, little-endian then big-endian; the little-endian half is read, as Linux does.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

# A name has at most 255 bytes on Linux, a link target 4095. Beyond that it is an attack, not a file.
MAX_NAME = 255
MAX_TARGET = 4095
# Real images need one or two; a chain that is longer loops or wastes our time.
MAX_CONTINUATIONS = 16
MAX_CONTINUATION_BYTES = 64 << 10

_SP_MAGIC = b"\xbe\xef"


class MalformedSystemUse(ValueError):
    """System Use entries that break the rules; the caller says where."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """PX: POSIX attributes. `mode` is a full `st_mode`."""

    mode: int
    links: int
    uid: int
    gid: int


@dataclass(slots=True)
class SystemUse:
    """What the entries of one record say; None or False: not said."""

    skip: int | None = None
    """SP: bytes before the entries in every other record. Its presence says that the volume uses SUSP."""
    name: bytes | None = None
    attributes: Attributes | None = None
    target: bytes | None = None
    child_block: int | None = None
    """CL: the directory that belongs here lies at this logical block, as its depth was more than ISO 9660 allows."""
    relocated: bool = False
    """RE: the directory shown here belongs elsewhere, where a CL stands."""
    compressed: bool = False
    """ZF: the contents are zisofs-compressed."""
    _name_parts: list[bytes] = field(default_factory=list)
    _target_text: _LinkText | None = None


class _LinkText:
    """SL: a link target put together from component records (RRIP 4.1.3)."""

    def __init__(self) -> None:
        self.text = b""
        self._joined = True

    def add(self, flags: int, content: bytes) -> None:
        piece = {0x02: b".", 0x04: b"..", 0x08: b"/"}.get(flags & 0x0E, content)
        if not self._joined and not self.text.endswith(b"/"):
            self.text += b"/"
        self.text += piece
        self._joined = bool(flags & 0x01)
        if len(self.text) > MAX_TARGET:
            raise MalformedSystemUse(f"a symbolic link target longer than {MAX_TARGET} bytes")


def parse(area: bytes, read: Callable[[int, int, int], bytes]) -> SystemUse:
    """The entries in `area`, a System Use field without what SP says to skip.

    `read(block, offset, size)` reads a continuation area: bytes from a logical block.

    :raise MalformedSystemUse: entries that overrun their field, a chain of continuations without an end, an
        impossible name or target.
    """
    use = SystemUse()
    budget = MAX_CONTINUATION_BYTES
    for _ in range(MAX_CONTINUATIONS + 1):
        following = _parse_area(area, use)
        if following is None:
            break
        block, offset, size = following
        budget -= size
        if budget < 0:
            raise MalformedSystemUse(f"more than {MAX_CONTINUATION_BYTES} bytes of continuation areas")
        area = read(block, offset, size)
    else:
        raise MalformedSystemUse(f"more than {MAX_CONTINUATIONS} continuation areas")
    if use._name_parts:
        use.name = b"".join(use._name_parts)
        check_name(use.name)
    if use._target_text is not None:
        use.target = use._target_text.text
        if not use.target or b"\x00" in use.target:
            raise MalformedSystemUse("an impossible symbolic link target")
    return use


def check_name(name: bytes) -> None:
    """:raise MalformedSystemUse: a name that no file can have."""
    if not name or len(name) > MAX_NAME or name in (b".", b"..") or b"/" in name or b"\x00" in name:
        raise MalformedSystemUse(f"an impossible file name, {name[:40]!r}")


def _parse_area(area: bytes, use: SystemUse) -> tuple[int, int, int] | None:
    """Take in the entries of one area; where the next one lies (block, offset, size), if there is one."""
    following = None
    position = 0
    # SUSP 4: fewer than four bytes left are padding.
    while position + 4 <= len(area) and area[position]:
        signature, size = area[position : position + 2], area[position + 2]
        if size < 4 or position + size > len(area):
            raise MalformedSystemUse(f"a System Use entry {signature!r} of {size} bytes overruns its field")
        body = area[position + 4 : position + size]
        position += size
        if signature == b"ST":
            break
        if signature == b"CE":
            block, offset, length = _numbers(signature, body, 3)
            following = block, offset, length
        else:
            _take(signature, body, use)
    return following


def _take(signature: bytes, body: bytes, use: SystemUse) -> None:
    match signature:
        case b"SP":
            if len(body) >= 3 and body[:2] == _SP_MAGIC:
                use.skip = body[2]
        case b"NM":
            if not body:
                raise MalformedSystemUse("an NM entry without flags")
            # CURRENT and PARENT name the records . and .., which have their names from ISO 9660.
            if not body[0] & 0x06:
                use._name_parts.append(body[1:])
        case b"PX":
            mode, links, uid, gid = _numbers(signature, body, 4)
            if stat.S_IFMT(mode) not in _FILE_TYPES:
                raise MalformedSystemUse(f"an unknown file type in mode {mode:o}")
            use.attributes = Attributes(mode & 0xFFFF, links, uid, gid)
        case b"SL":
            _take_link(body, use)
        case b"CL":
            (use.child_block,) = _numbers(signature, body, 1)
        case b"RE":
            use.relocated = True
        case b"ZF":
            use.compressed = True
        case _:
            # TF, ER, ES, PD, AL and others say nothing about where a file is or what it is called.
            return


_FILE_TYPES = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK}


def _take_link(body: bytes, use: SystemUse) -> None:
    if use._target_text is None:
        use._target_text = _LinkText()
    position = 1
    while position < len(body):
        if position + 2 > len(body) or position + 2 + body[position + 1] > len(body):
            raise MalformedSystemUse("a symbolic link component overruns its entry")
        flags, size = body[position], body[position + 1]
        use._target_text.add(flags, body[position + 2 : position + 2 + size])
        position += 2 + size


def _numbers(signature: bytes, body: bytes, count: int) -> tuple[int, ...]:
    if len(body) < 8 * count:
        raise MalformedSystemUse(f"the {signature.decode('latin-1')} entry has only {len(body)} bytes")
    return struct.unpack_from("<" + "I4x" * count, body)
