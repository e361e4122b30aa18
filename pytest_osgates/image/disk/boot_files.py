"""What a machine can read before its disk is unlocked: files of FAT and ext4 partitions, and those inside initrds.

A file is told from its bytes, not from its name: an initrd may be called anything, and may be a section of a unified
kernel image (UAPI.5).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from pytest_osgates.image.diff.cpio import archives, is_initrd, members
from pytest_osgates.image.diff.fat import RunContent, is_fat, read_fat
from pytest_osgates.image.diff.found import quoted
from pytest_osgates.image.diff.pe import read_pe
from pytest_osgates.image.diff.ranges import Content, Part
from pytest_osgates.image.diff.streams import method_of
from pytest_osgates.image.disk.contents import looks_random, signatures
from pytest_osgates.image.disk.ext4 import Ext4
from pytest_osgates.image.disk.free_space import deleted_files, left_behind
from pytest_osgates.vm.errors import ImageError

# cryptsetup(8) reads key files up to 8 MiB.
MOST = 8 << 20
_SAMPLE = 64 << 10
# Formats whose files look random for the most part, by their first bytes: PNG, JPEG, GIF, zip, DER.
_KNOWN = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"PK\x03\x04", b"\x30\x82")
_MOST_TEXT = 16 << 20
# Of one initrd, together.
_MOST_TEXTS = 64 << 20
_MOST_CONFIG = 1 << 20
# A detached LUKS header has 16 MiB.
_MOST_MEMBER = 32 << 20
_PIECE = 1 << 20
_LUKS = b"LUKS\xba\xbe"
_MOST_FILES = 200_000
_MOST_CRYPTTAB = 500
_MOST_WORDS = 500


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A regular file, or a symbolic link of an initrd; `container` is what it lies in (empty: the file system);
    `random`: its bytes could be a key; `named`: if so, a text in the same initrd has its name."""

    container: str
    path: str
    size: int
    random: bool
    named: bool = False


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
    `initrds`: the containers that were looked into. `unread`: what could not be looked into, and why. `free`: bytes
    that are not zero, in space that belongs to no file."""

    files: list[PlainFile] = field(default_factory=list)
    crypttab: list[CrypttabLine] = field(default_factory=list)
    words: list[tuple[str, str]] = field(default_factory=list)
    initrds: list[str] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    free: int = 0


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
        _take_rest(seen, content, Ext4(content).end)
        return seen
    fat = read_fat(content)
    _take_rest(seen, content, fat.size)
    seen.free = left_behind(fat)
    for path, part in deleted_files(fat):
        if _could_be_key(part.size, part.read(0, _SAMPLE)):
            what = f"{part.size} bytes of a deleted file, where others may have been since: they could be a key"
            seen.unread.append((path, what))
    for entry in fat.entries.values():
        name = entry.path.rpartition("/")[2]
        if entry.is_dir or (name.startswith("<") and not entry.runs):
            continue
        if sum(size for _, size in entry.runs) < entry.size:
            raise ImageError(f"{quoted(entry.path.encode())} is larger than its clusters")
        _look(seen, "", entry.path, RunContent(content, entry), find)
    return seen


def _look(seen: BootFiles, container: str, path: str, content: Content, find: Finder) -> None:
    """Take in one file, and what is in it."""
    _add(seen, container, path, content.size, content.read(0, _SAMPLE))
    name = f"{container}!{path}" if container else path
    head = content.read(0, 520)
    try:
        if head.startswith(b"MZ"):
            _look_into_program(seen, name, content, find)
        elif _unpacks(content):
            _look_into_initrd(seen, name, content, find)
        elif method_of(head) or signatures(content) or head[512:520] == b"EFI PART":
            seen.unread.append((name, "an archive or file system that this version does not look into"))
        elif content.size <= _MOST_TEXT:
            _take_words(seen, name, content.read(0, content.size), find)
        else:
            seen.unread.append((name, f"{content.size} bytes of no known kind"))
    except ImageError as error:
        seen.unread.append((name, error.what))


def _take_rest(seen: BootFiles, content: Content, end: int) -> None:
    """A partition may be larger than the file system in it."""
    for offset in range(end, content.size, _PIECE):
        piece = content.read(offset, _PIECE)
        if piece.count(0) != len(piece):
            seen.unread.append(("after the file system", f"something after its end at {end} of the partition"))
            return


def _unpacks(content: Content) -> bool:
    """Whether the kernel takes it for an initrd: it skips zeros before the first archive."""
    if content.read(0, 4) != bytes(4):
        return is_initrd(content)
    for offset in range(0, content.size, _PIECE):
        rest = content.read(offset, _PIECE).lstrip(b"\x00")
        if rest:
            first = min(offset + _PIECE, content.size) - len(rest)
            return is_initrd(Part(content, first, content.size - first))
    return False


def _add(seen: BootFiles, container: str, path: str, size: int, data: bytes) -> None:
    if len(seen.files) >= _MOST_FILES:
        raise ImageError(f"more than {_MOST_FILES} files")
    seen.files.append(PlainFile(container, path, size, _could_be_key(size, data)))


def _could_be_key(size: int, data: bytes) -> bool:
    # What begins like a compressed file is one: of keys, one in sixteen million does.
    known = method_of(data) is not None or data.startswith(_KNOWN)
    return size <= MOST and not known and looks_random(data)


def _look_into_program(seen: BootFiles, name: str, content: Content, find: Finder) -> None:
    for label, part in read_pe(content).sections.items():
        section = label.rstrip("'")
        if section in (".initrd", ".ucode"):
            _look_into_initrd(seen, f"{name}!{label}", part, find)
        elif section in (".cmdline", "mods"):
            # `mods` is GRUB's: modules, its first configuration, and a file system in memory.
            if part.size > _MOST_TEXT:
                raise ImageError(f"the section {label} has {part.size} bytes")
            _take_words(seen, f"{name}!{label}", part.read(0, part.size), find)


def _look_into_initrd(seen: BootFiles, name: str, content: Content, find: Finder) -> None:
    seen.initrds.append(name)
    first, texts = len(seen.files), _Texts()
    for archive in archives(content, to_end=True):
        for member, data in members(archive, _MOST_MEMBER):
            mode = member.numbers[1]
            if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                continue
            if "\x00" in member.name:
                raise ImageError("a name with a NUL, which the kernel cuts short")
            path = "/" + quoted(member.name.removeprefix("./").lstrip("/").encode("utf-8", "surrogateescape"))
            tells = path.endswith("/crypttab") or _has_parameters(path)
            if stat.S_ISLNK(mode):
                # Its name counts: a key may be found by that. What it points to has a name of its own.
                seen.files.append(PlainFile(name, path, member.size, False))
                if "/firmware/" not in path:
                    # Firmware has many names. A link from elsewhere says what it is for.
                    texts.add(data or b"")
                if tells:
                    seen.unread.append((f"{name}!{path}", "a symbolic link"))
                continue
            _add(seen, name, path, member.size, (data or b"")[:_SAMPLE])
            texts.add(data or b"")
            if data and data.startswith(_LUKS):
                seen.unread.append((f"{name}!{path}", "a LUKS header of its own: its keyslots may open the disk"))
            elif tells and member.numbers[4] > 1 and not member.size:
                seen.unread.append((f"{name}!{path}", "a hard link: its bytes have another name"))
            elif path.endswith("/crypttab"):
                _take_crypttab(seen, name, path, data)
            elif tells:
                _take_parameters(seen, name, path, data, find)

    for number, file in enumerate(seen.files[first:], first):
        if file.random and texts.name(file.path):
            seen.files[number] = replace(file, named=True)
    if texts.lost and any(file.random for file in seen.files[first:]):
        seen.unread.append((name, f"texts of more than {_MOST_TEXTS} bytes, which may name a key"))


class _Texts:
    """Texts of an initrd: units, scripts, configurations."""

    def __init__(self) -> None:
        self._all = bytearray()
        self.lost = False

    def add(self, data: bytes) -> None:
        """Take it in if it is a text."""
        if not data or (b"\x00" in data and not data.startswith(b"#!")):
            return
        if len(self._all) + len(data) > _MOST_TEXTS:
            self.lost = True
            return
        self._all += data + b"\n"

    def name(self, path: str) -> bool:
        """Whether the last part of `path` stands in one of them."""
        base = path.rpartition("/")[2].encode()
        if base not in self._all:
            return False
        return re.search(rb"(?<![\w.-])" + re.escape(base) + rb"(?![\w-]|\.\w)", self._all) is not None


def _has_parameters(path: str) -> bool:
    """Where dracut.cmdline(7) and initramfs-tools(7) keep kernel parameters in an initrd."""
    return path.endswith("/cmdline") or "/cmdline.d/" in path or "/conf/conf.d/" in path


def _take_parameters(seen: BootFiles, container: str, path: str, data: bytes | None, find: Finder) -> None:
    if data is None or len(data) > _MOST_CONFIG:
        raise ImageError(f"{path} has more than {_MOST_CONFIG} bytes")
    _take_words(seen, f"{container}!{path}", data, find)


def _take_crypttab(seen: BootFiles, container: str, path: str, data: bytes | None) -> None:
    if data is None or len(data) > _MOST_CONFIG:
        raise ImageError(f"{path} has more than {_MOST_CONFIG} bytes")
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(seen.crypttab) >= _MOST_CRYPTTAB:
            raise ImageError(f"more than {_MOST_CRYPTTAB} lines of crypttab")
        name, device, key, options, *_ = (*(quoted(word.encode()) for word in fields), "", "", "", "")
        seen.crypttab.append(CrypttabLine(container, path, name, device, key, options))


def _take_words(seen: BootFiles, name: str, raw: bytes, find: Finder) -> None:
    """What the lines of a text say of keys. A NUL ends one, too: whoever reads it goes on after it, or need not have
    come so far."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raw = raw.decode("utf-16", "replace").encode("utf-8", "replace")
    said: list[str] = []
    # GRUB puts a line that goes on together as it stands; boot loader entries and shells have a blank there.
    for joint in (b" ", b"") if b"\\\n" in raw or b"\\\r\n" in raw else (b" ",):
        text = raw.replace(b"\\\r\n", joint).replace(b"\\\n", joint).replace(b"\x00", b"\n")
        before = set() if joint else set(said)
        for line in text.decode("utf-8", "replace").splitlines():
            said += [word for word in find(line) if word not in before]
            if len(seen.words) + len(said) > _MOST_WORDS:
                raise ImageError(f"more than {_MOST_WORDS} words that name keys")
    seen.words += [(name, quoted(word.encode())) for word in said]
