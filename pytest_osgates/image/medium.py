"""Files that a firmware or a boot loader reads from an ISO or a disk, with the places of their bytes on it.

With places, a file can be changed where it lies: no mount, no file system written, and nothing else is touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.image.diff.fat import Entry, is_fat, read_fat
from pytest_osgates.image.disk import contents
from pytest_osgates.image.disk.ext4 import Ext4, ExtFile
from pytest_osgates.image.disk.partitions import read_table
from pytest_osgates.image.disk.source import SourceContent, open_disk
from pytest_osgates.image.eltorito import BootPlatform
from pytest_osgates.image.iso9660 import IsoImage
from pytest_osgates.image.source import Source
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError

# Of a unified kernel image with its initrd.
MOST = 512 << 20
_MOST_FILES = 64


@dataclass(frozen=True, slots=True)
class MediumFile:
    """A file: `place` names what it lies in; `runs` are (offset on the medium, bytes), in the file's order."""

    place: str
    path: str
    size: int
    runs: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        return f"{self.place}:{self.path}"

    def read(self, source: Source) -> bytes:
        """:raise ImageError: it has more bytes than a program that boots, or cannot be read."""
        if self.size > MOST:
            raise ImageError(f"{self.name} has {self.size} bytes, more than {MOST >> 20} MiB")
        data = b"".join(source.read_at(start, size) for start, size in self.runs)
        if len(data) < self.size:
            raise ImageError(f"{self.name} has {self.size} bytes, and clusters for {len(data)}")
        return data[: self.size]

    def patches(self, before: bytes, after: bytes) -> Iterator[tuple[int, bytes]]:
        """What to write where (offset on the medium, bytes), so that it holds `after` instead of `before`.

        :raise ImageError: `after` has another size.
        """
        if len(after) != self.size or len(before) != self.size:
            raise ImageError(f"{self.name} can only be changed to {self.size} bytes, not {len(after)}")
        at = 0
        for start, length in self.runs:
            size = min(length, self.size - at)
            if size > 0 and before[at : at + size] != after[at : at + size]:
                yield start, after[at : at + size]
            at += size


def files_of_iso(path: Path, wanted: re.Pattern[str]) -> tuple[MediumFile, ...]:
    """What an ISO has of files whose path fits `wanted`: in its own tree, which boot loaders read, and in the FAT
    images of El Torito's entries, which a firmware reads.

    :raise ImageError: it is malformed, or has too many of them.
    """
    found: list[MediumFile] = []
    with IsoImage.open(path) as image:
        for file in image.walk():
            if file.kind is FileKind.FILE and wanted.search(file.path) and not file.compressed:
                runs = tuple((extent.offset, extent.size) for extent in file.extents)
                _add(found, MediumFile("ISO", file.path, file.size, runs))
        source = image.source
        seen: set[int] = set()
        for entry in image.boot_entries():
            if entry.platform is not BootPlatform.EFI or not entry.bootable or entry.offset in seen:
                continue
            seen.add(entry.offset)
            content = SourceContent(source, entry.offset, source.size - entry.offset)
            if not is_fat(content.read(0, 512)):
                raise ImageError(f"what El Torito names at {entry.offset} for UEFI is no FAT file system")
            _fat(found, f"El Torito image at {entry.offset}", content, wanted)
    return tuple(found)


def files_of_disk(path: Path, wanted: re.Pattern[str]) -> tuple[MediumFile, ...]:
    """What the plain FAT and ext file systems of a disk have of files whose path fits `wanted`.

    :raise ImageError: it is malformed, or has too many of them.
    """
    found: list[MediumFile] = []
    with open_disk(path) as source:
        for part in read_table(source).partitions:
            content = SourceContent(source, part.start, part.size)
            kind = contents.identify(source, content, part.start, part.size)
            kinds = (kind.kind, *kind.also)
            if contents.FAT in kinds:
                _fat(found, f"partition {part.number}", content, wanted)
            elif contents.EXT in kinds:
                for file in Ext4(content).files():
                    if wanted.search(file.path):
                        _add(found, _of_ext(f"partition {part.number}", content.start, file))
    return tuple(found)


def _fat(found: list[MediumFile], place: str, content: SourceContent, wanted: re.Pattern[str]) -> None:
    for entry in read_fat(content).entries.values():
        if not entry.is_dir and wanted.search(entry.path) and not _left_over(entry):
            runs = tuple((content.start + start, size) for start, size in entry.runs)
            _add(found, MediumFile(place, entry.path, entry.size, runs))


def _left_over(entry: Entry) -> bool:
    return entry.path.rpartition("/")[2].startswith("<") and not entry.runs


def _of_ext(place: str, start: int, file: ExtFile) -> MediumFile:
    """:raise ImageError: it has holes: there is no place to write to."""
    at = 0
    for first, size, _ in file.runs:
        if first != at:
            raise ImageError(f"{place}:{file.path} has a hole at {at}")
        at += size
    return MediumFile(place, file.path, file.size, tuple((start + where, size) for _, size, where in file.runs))


def _add(found: list[MediumFile], file: MediumFile) -> None:
    if len(found) >= _MOST_FILES:
        raise ImageError(f"more than {_MOST_FILES} files of one kind, up to {file.name}")
    found.append(file)
