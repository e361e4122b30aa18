"""rpm's data base in SQLite, and the headers in it (rpm's docs/manual/format_header.md, lib/backend/sqlite.c).

SQLite reads a copy in memory, may only select, and is stopped when it takes too long: the file is the image's.
"""

from __future__ import annotations

import re
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.image.packages import Database, Package, Trouble
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.source import shown
from pytest_osgates.image.walk import locate
from pytest_osgates.vm.errors import ImageError

# The default since Fedora 36, the one before (now mostly a link to it), and OSTree's.
HOMES = ("/usr/lib/sysimage/rpm", "/var/lib/rpm", "/usr/share/rpm")
NAME = "rpmdb.sqlite"
OTHERS = {"Packages": "Berkeley DB", "Packages.db": "ndb"}
MAX_DATABASE = 512 << 20
MAX_HEADER = 256 << 20
MAX_PACKAGES = 100_000
MAX_STEPS = 200_000_000
_STEP = 1_000_000

# fileformat2.html, 3: how a rollback journal begins.
_JOURNAL = bytes.fromhex("d9d505f920a163d7")

# rpmtag.h
_NAME, _VERSION, _RELEASE, _EPOCH, _ARCH, _SOURCERPM = 1000, 1001, 1002, 1003, 1022, 1044
_FILEFLAGS, _DIRINDEXES, _BASENAMES, _DIRNAMES = 1037, 1116, 1117, 1118
_READ = (_NAME, _VERSION, _RELEASE, _EPOCH, _ARCH, _SOURCERPM, _FILEFLAGS, _DIRINDEXES, _BASENAMES, _DIRNAMES)
# rpmfiles.h: RPMFILE_DOC, RPMFILE_MISSINGOK, RPMFILE_GHOST. Files that were not to be installed (RPMTAG_FILESTATES)
# are not among them: rpm's --excludepath leaves out programs, too.
_MAY_LACK = 1 << 1 | 1 << 3 | 1 << 6
_INT32, _STRING, _ARRAY, _I18N = 4, 6, 8, 9
# lib/header.c: hdrchkTags, hdrchkData.
_MAX_TAGS = 0xFFFF
_ENTRY = struct.Struct(">IIiI")
_WORD = re.compile(r"[!-~]{1,255}")


class MalformedHeader(ValueError):
    """A header that contradicts itself."""


def read_rpm(view: RootView) -> tuple[Database, ...]:
    """The packages in the image by rpm, a data base each; more than one is itself a reason not to believe either."""
    found = []
    seen: set[tuple[int, int]] = set()
    for home in HOMES:
        node = locate(view, f"{home}/{NAME}")
        if node is not None and node.identity not in seen:
            seen.add(node.identity)
            found.append(_read(view, node.path))
        for name, kind in OTHERS.items():
            other = locate(view, f"{home}/{name}")
            if other is not None and other.identity not in seen:
                seen.add(other.identity)
                found.append(Database("rpm", other.path, problems=(f"it is in {kind}, which is not read",)))
    return tuple(found)


def _read(view: RootView, path: str) -> Database:
    trouble = Trouble()
    try:
        raw = view.read(path, MAX_DATABASE) or b""
        log = view.lookup(f"{path}-wal")
        journal = view.read(f"{path}-journal", MAX_DATABASE) or b""
    except ImageError as error:
        return Database("rpm", path, problems=(error.what,))
    if log is not None and log.size:
        trouble.add(f"{path}-wal holds changes that were never taken over")
    if journal.startswith(_JOURNAL):
        # SQLite would roll the file back first; a journal whose head is zeros, or cut off, is done with.
        trouble.add(f"{path}-journal is of changes that were never ended: SQLite would undo them")
    packages = tuple(parse_database(raw, trouble))
    return Database("rpm", path, packages, tuple(trouble.found))


def parse_database(raw: bytes, trouble: Trouble) -> list[Package]:
    """The packages in a data base of SQLite. What is not in order goes to `trouble`."""
    packages: list[Package] = []
    try:
        for number, blob in _headers(raw, trouble):
            try:
                package = parse_header(blob)
            except MalformedHeader as error:
                trouble.add(f"package {number}: {error}")
                continue
            # The keys that signatures are checked with are kept as packages without files.
            if package.name != "gpg-pubkey":
                packages.append(package)
    except (sqlite3.Error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        # UnicodeDecodeError: a name in the schema, or a word of the integrity check, that is no UTF-8.
        trouble.add(f"SQLite cannot read it: {error}")
    if not packages:
        trouble.add("there is no package in it")
    return packages


def _headers(raw: bytes, trouble: Trouble) -> Iterator[tuple[int, bytes]]:
    if not raw.startswith(b"SQLite format 3\0") or len(raw) < 100:
        trouble.add("it is no data base of SQLite")
        return
    if raw[18:20] != b"\x01\x01":
        # fileformat2.html, 1.3.3: 2 demands a write-ahead log beside the file, which memory has not.
        raw = raw[:18] + b"\x01\x01" + raw[20:]
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(raw)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_HEADER)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.set_authorizer(_only_selects)
        steps = iter(range(MAX_STEPS // _STEP))
        connection.set_progress_handler(lambda: next(steps, None) is None, _STEP)
        kinds = dict(connection.execute("SELECT name, type FROM sqlite_master"))
        if kinds.get("Packages") != "table":
            trouble.add("it has no table Packages")
            return
        numbers = set()
        for number, blob in connection.execute("SELECT hnum, blob FROM Packages ORDER BY hnum"):
            if not isinstance(number, int) or not isinstance(blob, bytes):
                trouble.add("a row of Packages holds no header")
                continue
            numbers.add(number)
            if len(numbers) > MAX_PACKAGES:
                trouble.add(f"it has more than {MAX_PACKAGES} packages")
                return
            yield number, blob
        if kinds.get("Name") == "table":
            # What rpm -q asks; rpm -qa reads the other.
            named = {row[0] for row in connection.execute("SELECT hnum FROM Name")}
            if named != numbers:
                trouble.add(f"its index of names has {len(named)} packages, the table {len(numbers)}")
        else:
            trouble.add("it has no index of names")
    finally:
        connection.close()


def _only_selects(action: int, *_names: object) -> int:
    allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY


@dataclass(frozen=True, slots=True)
class _Tag:
    kind: int
    offset: int
    count: int


def parse_header(blob: bytes) -> Package:
    """The package that a header (without its magic number, as the data base has it) describes.

    :raise MalformedHeader: it contradicts itself, or lacks a name or version.
    """
    if len(blob) < 8:
        raise MalformedHeader("its header breaks off")
    count, size = struct.unpack_from(">II", blob)
    if not 0 < count <= _MAX_TAGS or size > MAX_HEADER or 8 + 16 * count + size != len(blob):
        raise MalformedHeader(f"a header of {len(blob)} bytes claims {count} tags and {size} bytes of data")
    data = blob[8 + 16 * count :]
    tags: dict[int, _Tag] = {}
    for position in range(8, 8 + 16 * count, 16):
        tag, kind, offset, number = _ENTRY.unpack_from(blob, position)
        if tag not in _READ:
            continue
        if tag in tags:
            raise MalformedHeader(f"tag {tag} stands in it twice")
        if not 0 <= offset < len(data) or not 0 < number <= len(data):
            raise MalformedHeader(f"tag {tag} lies outside of its data")
        tags[tag] = _Tag(kind, offset, number)
    name, version = _word(data, tags, _NAME), _word(data, tags, _VERSION)
    release = _word(data, tags, _RELEASE) if _RELEASE in tags else ""
    epoch = _numbers(data, tags, _EPOCH)
    full = f"{f'{epoch[0]}:' if epoch else ''}{version}{f'-{release}' if release else ''}"
    arch = _word(data, tags, _ARCH) if _ARCH in tags else ""
    files, optional = _files(data, tags)
    return Package(name, full, arch, files=files, optional=optional, source=_source(data, tags))


def _source(data: bytes, tags: dict[int, _Tag]) -> str:
    """Of NAME-VERSION-RELEASE.src.rpm the name; empty: it has none, or says something else there."""
    try:
        parts = _word(data, tags, _SOURCERPM).rsplit("-", 2) if _SOURCERPM in tags else []
    except MalformedHeader:
        return ""
    return parts[0] if len(parts) == 3 else ""


def _word(data: bytes, tags: dict[int, _Tag], tag: int) -> str:
    (text,) = _strings(data, tags, tag, (_STRING, _I18N), 1)
    if not _WORD.fullmatch(text):
        raise MalformedHeader(f"tag {tag} is {shown(text[:80])}")
    return text


def _strings(
    data: bytes, tags: dict[int, _Tag], tag: int, kinds: tuple[int, ...], wanted: int | None = None
) -> list[str]:
    found = tags.get(tag)
    if found is None or found.kind not in kinds or (wanted is not None and found.count < wanted):
        raise MalformedHeader(f"tag {tag} is missing, or of another type")
    count = found.count if wanted is None else wanted
    texts = data[found.offset :].split(b"\0", count)
    if len(texts) <= count:
        raise MalformedHeader(f"tag {tag} breaks off")
    return [text.decode("utf-8", "surrogateescape") for text in texts[:count]]


def _numbers(data: bytes, tags: dict[int, _Tag], tag: int) -> tuple[int, ...]:
    found = tags.get(tag)
    if found is None:
        return ()
    if found.kind != _INT32 or found.offset + 4 * found.count > len(data):
        raise MalformedHeader(f"tag {tag} is of another type, or breaks off")
    return struct.unpack_from(f">{found.count}I", data, found.offset)


def _files(data: bytes, tags: dict[int, _Tag]) -> tuple[tuple[str, ...], frozenset[str]]:
    """All files, and those that need not be there."""
    if _BASENAMES not in tags:
        return (), frozenset()
    names = _strings(data, tags, _BASENAMES, (_ARRAY,))
    directories = _strings(data, tags, _DIRNAMES, (_ARRAY,))
    indexes = _numbers(data, tags, _DIRINDEXES)
    if len(indexes) != len(names) or any(index >= len(directories) for index in indexes):
        raise MalformedHeader("its files and their directories do not match")
    files = tuple(directories[index] + name for index, name in zip(indexes, names, strict=True))
    flags = _numbers(data, tags, _FILEFLAGS) or (0,) * len(files)
    if len(flags) != len(files):
        raise MalformedHeader("its files and their flags do not match")
    return files, frozenset(path for path, flag in zip(files, flags, strict=True) if flag & _MAY_LACK)
