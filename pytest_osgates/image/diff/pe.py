"""PE files: EFI programs, and unified kernel images by their sections (UAPI.5; Microsoft's PE format, revision
11)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from pytest_osgates.image.diff.found import Difference, Findings, Layer, quoted
from pytest_osgates.image.diff.ranges import Content, Part, differing_ranges, spots
from pytest_osgates.image.diff.squashfs_walk import shown_time
from pytest_osgates.vm.errors import ImageError

_MAX_SECTIONS = 96


@dataclass(frozen=True)
class PeFile:
    """The parts of a PE file: `header`, sections by name with their places, and the certificates at the end."""

    header: Part
    stamp_at: int
    checksum_at: int
    directory_at: int
    sections: dict[str, Part]
    certificates: Part | None
    end: int


def read_pe(content: Content) -> PeFile:
    """:raise ImageError: it is no PE file, or malformed."""
    head = content.read(0, 4096)
    try:
        (at,) = struct.unpack_from("<I", head, 0x3C)
        if head[at : at + 4] != b"PE\x00\x00":
            raise ImageError("no PE header")
        count, size = struct.unpack_from("<2xH12xH", head, at + 4)
        optional = at + 24
        (magic,) = struct.unpack_from("<H", head, optional)
        directory = optional + (112 if magic == 0x20B else 96) + 4 * 8
        start, length = struct.unpack_from("<II", head, directory)
        table = optional + size
        if count > _MAX_SECTIONS:
            raise ImageError(f"{count} sections")
        sections: dict[str, Part] = {}
        first = content.size
        end = 0
        for number in range(count):
            name, raw_size, raw_at = struct.unpack_from("<8s8xII", head, table + 40 * number)
            label = quoted(name.rstrip(b"\x00"))
            while label in sections:
                label += "'"
            if raw_at + raw_size > content.size:
                raise ImageError(f"section {label} reaches beyond the end")
            sections[label] = Part(content, raw_at, raw_size)
            if raw_size:
                first = min(first, raw_at)
                end = max(end, raw_at + raw_size)
    except struct.error:
        raise ImageError("its headers break off") from None
    certificates = Part(content, start, length) if length and start + length <= content.size else None
    return PeFile(Part(content, 0, first), at + 8, optional + 64, directory, sections, certificates, end)


def compare_pe(
    a: Content, b: Content, container: str, out: Findings, inside: Callable[[str, str, Content, Content], None]
) -> None:
    """Compare two PE files part by part; what is in a section goes to `inside`.

    :raise ImageError: one is malformed.
    """
    one, other = read_pe(a), read_pe(b)

    def add(path: str, what: str, x: str, y: str, *, delta: int | None = None, follows: bool = False) -> None:
        out.add(Difference(Layer.PE, container, path, what, x, y, delta=delta, follows=follows))

    _header(one, other, add, container, out)
    for name in dict.fromkeys((*one.sections, *other.sections)):
        p, q = one.sections.get(name), other.sections.get(name)
        if p is None or q is None:
            there = p or q
            text = f"{there.size} bytes" if there else ""
            add(name, "only in A" if q is None else "only in B", *((text, "") if q is None else ("", text)))
            continue
        ranges = differing_ranges(p, q)
        if ranges.differing:
            inside(container, f"section {name}", p, q)
    for label, x, y in (
        ("certificates", one.certificates, other.certificates),
        ("after the sections", _after(one, a), _after(other, b)),
    ):
        if (x is None) != (y is None):
            add(label, "presence", "there" if x else "none", "there" if y else "none")
        elif x is not None and y is not None:
            ranges = differing_ranges(x, y)
            if ranges.differing:
                out.add(
                    Difference(
                        Layer.PE,
                        container,
                        label,
                        "content",
                        f"{x.size} bytes",
                        f"{y.size} bytes",
                        spots=spots(x, y, ranges),
                        differing=ranges.differing,
                        kind="signature" if label == "certificates" else "",
                    )
                )


def _after(pe: PeFile, content: Content) -> Part | None:
    """What follows the sections: certificates, where they are not apart."""
    end = pe.certificates.start if pe.certificates is not None else content.size
    if end <= pe.end:
        return None
    return Part(content, pe.end, end - pe.end)


def _header(one: PeFile, other: PeFile, add: Callable[..., None], container: str, out: Findings) -> None:
    x, y = one.header.read(0, one.header.size), other.header.read(0, other.header.size)
    if x == y:
        return
    p, q = bytearray(x), bytearray(y)
    for pe, raw in ((one, p), (other, q)):
        raw[pe.stamp_at : pe.stamp_at + 4] = bytes(4)
        raw[pe.checksum_at : pe.checksum_at + 4] = bytes(4)
    if one.stamp_at == other.stamp_at:
        stamps = [int.from_bytes(raw[one.stamp_at : one.stamp_at + 4], "little") for raw in (x, y)]
        if stamps[0] != stamps[1]:
            add("PE header", "time stamp", *map(shown_time, stamps), delta=stamps[1] - stamps[0])
        sums = [raw[one.checksum_at : one.checksum_at + 4].hex() for raw in (x, y)]
        if sums[0] != sums[1]:
            add("PE header", "checksum", sums[0], sums[1], follows=True)
    if p != q:
        ranges = differing_ranges(one.header, other.header)
        out.add(
            Difference(
                Layer.PE,
                container,
                "PE header",
                "bytes",
                f"{len(x)} bytes",
                f"{len(y)} bytes",
                spots=spots(one.header, other.header, ranges),
                differing=ranges.differing,
            )
        )
