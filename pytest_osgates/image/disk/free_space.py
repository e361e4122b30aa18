"""What deleted files leave on a FAT: their clusters keep what was in them until others need the room."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_osgates.image.diff.fat import Fat, tail
from pytest_osgates.image.diff.found import quoted
from pytest_osgates.image.diff.ranges import Part
from pytest_osgates.vm.errors import ImageError

_PIECE = 1 << 20
_MOST = 8 << 30
_DELETED = "<deleted entry "


def left_behind(fat: Fat) -> int:
    """How many bytes that are not zero lie in clusters of no file, and after the end of files in their last ones.

    :raise ImageError: there is more free space than is looked at.
    """
    fat.extents.claim(0, fat.data_at)
    gaps = fat.extents.gaps()
    if sum(end - start for start, end in gaps) > _MOST:
        raise ImageError(f"more than {_MOST} bytes of free space")
    count = 0
    for start, end in gaps:
        for at in range(start, end, _PIECE):
            piece = fat.content.read(at, min(_PIECE, end - at))
            count += len(piece) - piece.count(0)
    for entry in fat.entries.values():
        if not entry.is_dir:
            rest = tail(fat.content, entry)
            count += len(rest) - rest.count(0)
    return count


def deleted_files(fat: Fat) -> Iterator[tuple[str, Part]]:
    """Names, without their first letter, and what stands where they began, as far as that is free and in one piece.

    Another file may have been there since, and have been deleted as well.
    """
    for entry in fat.entries.values():
        parent, _, name = entry.path.rpartition("/")
        if not name.startswith(_DELETED) or entry.runs or not entry.size:
            continue
        first = int.from_bytes(entry.raw[26:28], "little")
        if fat.bits == 32:
            first |= int.from_bytes(entry.raw[20:22], "little") << 16
        last = first
        while 2 <= last < len(fat.table) and not fat.table[last] and (last - first) * fat.cluster < entry.size:
            last += 1
        if last > first:
            stem, suffix = entry.raw[1:8].rstrip(), entry.raw[8:11].rstrip()
            shown = quoted(b"?" + stem + (b"." + suffix if suffix else b"")).replace("/", "_")
            length = min(entry.size, (last - first) * fat.cluster)
            yield f"{parent}/{shown}", Part(fat.content, fat.data_at + (first - 2) * fat.cluster, length)
