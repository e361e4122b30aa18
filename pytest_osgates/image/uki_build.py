"""Unified kernel images, made: a stub with sections added, or an image with some of its sections replaced.

What objcopy(1) and ukify(1) do (systemd-stub(7), "Assembling Kernel Images"). The result has no signature.
Microsoft's PE format, revision 11, "Section Table".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_osgates.vm.errors import ImageError

_MAX_SECTIONS = 96
_ENTRY = 40
_PAGE = 4096
_MOST_IMAGE = 1 << 30
_READ_DATA = 0x40000040
_SECURITY = 112 + 4 * 8


@dataclass(frozen=True)
class _Section:
    """`place`: its virtual address; `size`: in memory."""

    name: bytes
    size: int
    place: int
    raw: bytes
    flags: int

    @property
    def label(self) -> str:
        return self.name.rstrip(b"\x00").decode("latin-1")

    @property
    def end(self) -> int:
        return self.place + max(self.size, len(self.raw))


def with_sections(program: bytes, parts: Mapping[str, bytes]) -> bytes:
    """`program` with these sections, in the place of those of the same names or besides. What a section has in memory
    is as long as what is given: systemd-stub measures no zeros behind it.

    :raise ImageError: it is no PE32+ file, is malformed, or has no room for more headers.
    """
    try:
        return _rebuilt(program, parts)
    except struct.error:
        raise ImageError("its PE headers break off") from None


def _rebuilt(program: bytes, parts: Mapping[str, bytes]) -> bytes:
    (at,) = struct.unpack_from("<I", program, 0x3C)
    if program[:2] != b"MZ" or program[at : at + 4] != b"PE\x00\x00":
        raise ImageError("no PE file")
    count, optional_size = struct.unpack_from("<2xH12xH", program, at + 4)
    optional = at + 24
    (magic,) = struct.unpack_from("<H", program, optional)
    section_step, file_step = struct.unpack_from("<II", program, optional + 32)
    (headers,) = struct.unpack_from("<I", program, optional + 60)
    (directories,) = struct.unpack_from("<I", program, optional + 108)
    if magic != 0x20B or count > _MAX_SECTIONS or directories < 5:
        raise ImageError("a PE header that is not read here")
    if not (0 < file_step <= _PAGE and 0 < section_step <= 1 << 21 and headers <= len(program)):
        raise ImageError(f"alignments of {file_step} and {section_step} bytes, headers of {headers}")
    table = optional + optional_size
    # Before any is read: the same bytes may be in all of them.
    sizes = (struct.unpack_from("<I", program, table + _ENTRY * number + 16)[0] for number in range(count))
    if sum(sizes) > len(program):
        raise ImageError("its sections overlap")
    there = [_read(program, table + _ENTRY * number) for number in range(count)]
    sections = [section for section in there if section.label not in parts]
    if twice := sorted(
        {one.label for one in there if [each.label for each in there].count(one.label) > 1} & set(parts)
    ):
        raise ImageError(f"{', '.join(twice)} is there twice: which is used is not known here")
    step = max(section_step, _PAGE)
    for name, content in parts.items():
        end = max((section.end for section in sections), default=headers)
        sections.append(_Section(name.encode("ascii"), len(content), _up(end, step), content, _READ_DATA))
    if len(sections) > _MAX_SECTIONS or table + _ENTRY * len(sections) > headers:
        raise ImageError(f"no room for {len(sections)} sections in headers of {headers} bytes")
    whole = _up(max(section.end for section in sections), section_step)
    if whole > _MOST_IMAGE:
        raise ImageError(f"{whole} bytes in memory")
    head = bytearray(program[:headers].ljust(_up(headers, file_step), b"\x00"))
    struct.pack_into("<H", head, at + 6, len(sections))
    # Symbols are behind the sections, and belong to nobody any more.
    struct.pack_into("<II", head, at + 12, 0, 0)
    struct.pack_into("<I", head, optional + 56, whole)
    struct.pack_into("<II", head, optional + 60, len(head), 0)
    struct.pack_into("<II", head, optional + _SECURITY, 0, 0)
    head[table:] = bytes(len(head) - table)
    # It fills the table in the headers.
    body = _bodies(head, table, sections, file_step)
    return bytes(head) + body


def _read(program: bytes, at: int) -> _Section:
    name, size, place, raw_size, raw_at = struct.unpack_from("<8sIIII", program, at)
    (flags,) = struct.unpack_from("<I", program, at + 36)
    if raw_at + raw_size > len(program) or place + max(size, raw_size) > _MOST_IMAGE:
        raise ImageError("a section reaches beyond the end")
    return _Section(name, size, place, program[raw_at : raw_at + raw_size] if raw_size else b"", flags)


def _bodies(head: bytearray, table: int, sections: Sequence[_Section], step: int) -> bytes:
    """What is behind the headers, whose table gets filled."""
    body = bytearray()
    for number, section in enumerate(sections):
        raw_at = len(head) + len(body) if section.raw else 0
        body += section.raw + bytes(-len(section.raw) % step)
        raw_size = _up(len(section.raw), step)
        entry = struct.pack("<8sIIII", section.name, section.size, section.place, raw_size, raw_at)
        struct.pack_into("<24s12xI", head, table + _ENTRY * number, entry, section.flags)
    return bytes(body)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
