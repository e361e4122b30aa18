"""What a machine can read before its disk is unlocked: files of FAT and ext4 partitions, and those inside initrds.

A file is told from its bytes, not from its name: an initrd may be called anything, and may be a section of a unified
kernel image (UAPI.5).
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pytest_osgates.image.diff.cpio import archives, is_initrd, members
from pytest_osgates.image.diff.fat import RunContent, is_fat, read_fat
from pytest_osgates.image.diff.found import quoted
from pytest_osgates.image.diff.pe import read_pe
from pytest_osgates.image.diff.ranges import Content
from pytest_osgates.image.diff.streams import method_of
from pytest_osgates.image.disk.contents import looks_random, signatures
from pytest_osgates.image.disk.ext4 import Ext4
from pytest_osgates.vm.errors import ImageError

# cryptsetup(8) reads key files up to 8 MiB.
MOST = 8 << 20
_SAMPLE = 64 << 10
# Formats whose files look random for the most part, by their first bytes: PNG, JPEG, GIF, zip, DER.
_KNOWN = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"PK\x03\x04", b"\x30\x82")
_MOST_TEXT = 1 << 20
_MOST_FILES = 200_000
_MOST_CRYPTTAB = 500
_MOST_WORDS = 500


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A regular file: `container` is what it lies in (empty: the file system itself); `random`: its bytes could be a
    key."""

    container: str
    path: str
    size: int
    random: bool


@dataclass(frozen=True, slots=True)
class CrypttabLine:
    """A line of crypttab(5) in an initrd; `key` is the third field, `-` and `none` too."""

    container: str
    path: str
    name: str
    device: str
    key: str
    options: str


@dataclass
class BootFiles:
    """All that was seen. `words`: what texts and command lines say of keys, as (file, text).
    `initrds`: the containers that were looked into. `unread`: what could not be looked into, and why."""

    files: list[PlainFile] = field(default_factory=list)
    crypttab: list[CrypttabLine] = field(default_factory=list)
    words: list[tuple[str, str]] = field(default_factory=list)
    initrds: list[str] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)


# What a line of a text says of keys.
Finder = Callable[[str], Iterable[str]]


def read_boot_files(content: Content, find: Finder) -> BootFiles:
    """The files of the FAT or ext4 file system in `content`. `find` is asked for each line of a text.

    :raise ImageError: it is malformed, or has more files than are looked at.
    """
    seen = BootFiles()
    if not is_fat(content.read(0, 512)):
        for file in Ext4(content).files():
            if file.size > content.size:
                # Holes for the most part. Nobody boots from it, and looking for its end would take for ever.
                seen.unread.append((file.path, f"{file.size} bytes, more than the file system has"))
                continue
            _look(seen, "", file.path, file, find)
        return seen
    fat = read_fat(content)
    for entry in fat.entries.values():
        name = entry.path.rpartition("/")[2]
        if entry.is_dir or name.startswith("<"):
            continue
        if sum(size for _, size in entry.runs) < entry.size:
            raise ImageError(f"{quoted(entry.path.encode())} is larger than its clusters")
        _look(seen, "", entry.path, RunContent(content, entry), find)
    return seen


def _look(seen: BootFiles, container: str, path: str, content: Content, find: Finder) -> None:
    """Take in one file, and what is in it."""
    _add(seen, container, path, content.size, content.read(0, _SAMPLE))
    name = f"{container}!{path}" if container else path
    head = content.read(0, 512)
    try:
        if head.startswith(b"MZ"):
            _look_into_program(seen, name, content, find)
        elif is_initrd(content):
            _look_into_initrd(seen, name, content)
        elif method_of(head) or signatures(content):
            seen.unread.append((name, "an archive or file system that this version does not look into"))
        elif content.size <= _MOST_TEXT:
            _take_words(seen, name, content.read(0, content.size), find)
    except ImageError as error:
        seen.unread.append((name, error.what))


def _add(seen: BootFiles, container: str, path: str, size: int, data: bytes) -> None:
    if len(seen.files) >= _MOST_FILES:
        raise ImageError(f"more than {_MOST_FILES} files")
    # What begins like a compressed file is one: of keys, one in sixteen million does.
    known = method_of(data) is not None or data.startswith(_KNOWN)
    random = size <= MOST and not known and looks_random(data)
    seen.files.append(PlainFile(container, path, size, random))


def _look_into_program(seen: BootFiles, name: str, content: Content, find: Finder) -> None:
    for label, part in read_pe(content).sections.items():
        section = label.rstrip("'")
        if section in (".initrd", ".ucode"):
            _look_into_initrd(seen, f"{name}!{label}", part)
        elif section == ".cmdline" and part.size <= _MOST_TEXT:
            _take_words(seen, f"{name}!{label}", part.read(0, part.size).rstrip(b"\x00"), find)


def _look_into_initrd(seen: BootFiles, name: str, content: Content) -> None:
    seen.initrds.append(name)
    for archive in archives(content, to_end=True):
        for member, data in members(archive, MOST):
            if not stat.S_ISREG(member.numbers[1]):
                continue
            path = "/" + quoted(member.name.removeprefix("./").lstrip("/").encode("utf-8", "surrogateescape"))
            _add(seen, name, path, member.size, (data or b"")[:_SAMPLE])
            if path.endswith("/crypttab"):
                _take_crypttab(seen, name, path, data)


def _take_crypttab(seen: BootFiles, container: str, path: str, data: bytes | None) -> None:
    if data is None or len(data) > _MOST_TEXT:
        raise ImageError(f"{path} has more than {_MOST_TEXT} bytes")
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(seen.crypttab) >= _MOST_CRYPTTAB:
            raise ImageError(f"more than {_MOST_CRYPTTAB} lines of crypttab")
        name, device, key, options, *_ = (*(quoted(word.encode()) for word in fields), "", "", "", "")
        seen.crypttab.append(CrypttabLine(container, path, name, device, key, options))


def _take_words(seen: BootFiles, name: str, raw: bytes, find: Finder) -> None:
    """What the lines of a text say of keys; a file with a NUL is no text."""
    if b"\x00" in raw:
        return
    for line in raw.decode("utf-8", "replace").splitlines():
        for text in find(line):
            if len(seen.words) >= _MOST_WORDS:
                raise ImageError(f"more than {_MOST_WORDS} words that name keys")
            seen.words.append((name, quoted(text.encode())))
