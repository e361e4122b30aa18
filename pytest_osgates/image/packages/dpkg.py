"""dpkg's data base: /var/lib/dpkg (deb822(5), dpkg-query(1), dpkg's lib/dpkg/parse.c and dbmodify.c)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from pytest_osgates.image.packages import Database, Package, Trouble
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.source import shown
from pytest_osgates.vm.errors import ImageError

HOME = "/var/lib/dpkg"
MAX_STATUS = 64 << 20
MAX_LIST = 16 << 20
MAX_PACKAGES = 100_000
MAX_FILES = 4_000_000

# deb-control(5) wants lower case and two characters; dpkg itself reads more of what old packages are called.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*")
_FIELD = re.compile(r"([!-9;-~]+):[ \t]*(.*)")
_SUM = re.compile(r"([0-9a-f]{32})[ ][ *](?:\./|/)?(.+)")
_NOTHING = "d41d8cd98f00b204e9800998ecf8427e"
_WANTS = frozenset({"unknown", "install", "hold", "deinstall", "purge"})
_FLAGS = frozenset({"ok", "reinstreq"})
_STATES = frozenset(
    {
        *("not-installed", "config-files", "half-installed", "unpacked", "half-configured"),
        *("triggers-awaited", "triggers-pending", "installed"),
    }
)
# Fields whose values are long and of no use here.
_KEPT = frozenset({"package", "status", "version", "source", "architecture"})


def read_dpkg(view: RootView) -> Database | None:
    """The packages in the image by dpkg; None: it has no data base of it.

    Images made without dpkg in them (distroless) have a file for each package in status.d instead.
    """
    trouble = Trouble()
    status, parts = f"{HOME}/status", f"{HOME}/status.d"
    if not view.exists(status) and not view.exists(parts):
        # A directory without a status is what is left when somebody takes the list of packages away.
        if view.exists(f"{HOME}/info"):
            return Database("dpkg", status, problems=("it is not there, but the directory info beside it is",))
        return None
    packages: list[Package] = []
    for path, whole in _texts(view, status, parts, trouble):
        packages += parse_status(whole, trouble, path, one=path != status)
    if view.list_dir(f"{HOME}/updates"):
        trouble.add("changes in updates/ were never taken over: dpkg was interrupted")
    _check_twice(packages, trouble)
    # Of what is not installed there is no list: one that is there is of files that somebody left.
    listed = [package for package in packages if not package.status.endswith(" not-installed")]
    known = {key for package in listed for key in (package.name, f"{package.name}:{package.arch}")}
    lists, sums = _info(view, ".list"), _info(view, ".md5sums")
    if view.exists(status):
        packages = list(_with_files(view, packages, lists, sums, trouble))
    left = tuple(sorted(name for name in lists if name not in known))
    # A package takes its diversions along when it is removed: one by a package that is not there is somebody's own.
    there = {package.name for package in listed if not package.status.endswith(" config-files")}
    diverted = {old: (new, by) for old, (new, by) in read_diversions(view, trouble).items() if by in there}
    return Database("dpkg", status, tuple(packages), tuple(trouble.found), left, diverted)


def _texts(view: RootView, status: str, parts: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    names = [f"{parts}/{name}" for name in view.list_dir(parts) or () if not name.endswith((".md5sums", ".list"))]
    budget = MAX_STATUS
    for path in (*([status] if view.exists(status) else []), *names[:MAX_PACKAGES]):
        try:
            text = view.read(path, budget)
        except ImageError as error:
            trouble.add(error.what)
            continue
        budget -= len(text or b"")
        yield path, text or b""


def parse_status(raw: bytes, trouble: Trouble, path: str = "status", *, one: bool = False) -> list[Package]:
    """The packages in a status file. What is not well-formed goes to `trouble`; what is, is returned.

    `one`: the file is of a single package that has no status because it is installed.
    """
    packages: list[Package] = []
    text = raw.decode("utf-8", "replace")
    if "\0" in text:
        trouble.add(f"{path} holds NUL bytes")
    if raw and not one and not raw.endswith(b"\n\n"):
        # writedb() ends each package with an empty line.
        trouble.add(f"{path} breaks off: its last package is not ended by an empty line")
    for number, fields in _stanzas(text, trouble, path):
        package = _package(fields, trouble, f"{path}, line {number}", one)
        if package is not None:
            packages.append(package)
        if len(packages) > MAX_PACKAGES:
            trouble.add(f"{path} has more than {MAX_PACKAGES} packages")
            break
    if not packages:
        trouble.add(f"{path} has no package")
    return packages


def _stanzas(text: str, trouble: Trouble, path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The fields that matter of each stanza, names in lower case, and the line where it begins."""
    fields: dict[str, str] = {}
    begun = 0
    inside = False
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t\r"):
            if begun:
                yield begun, fields
            fields, begun, inside = {}, 0, False
            continue
        if line[0] in " \t":
            if not inside:
                trouble.add(f"{path}, line {number}: it goes on with what never began")
            continue
        match = _FIELD.fullmatch(line.rstrip("\r"))
        if match is None:
            trouble.add(f"{path}, line {number}: {shown(line[:80])} is no field")
            continue
        begun, inside = begun or number, True
        name = match[1].lower()
        if name in _KEPT:
            if name in fields:
                trouble.add(f"{path}, line {number}: a second field {name}")
            fields.setdefault(name, match[2].strip())
    if begun:
        yield begun, fields


def _package(fields: dict[str, str], trouble: Trouble, where: str, one: bool) -> Package | None:
    # dpkg itself looks a name up in lower case (lib/dpkg/pkg-hash.c).
    name = fields.get("package", "").lower()
    if not _NAME.fullmatch(name):
        trouble.add(f"{where}: {shown(name[:80])} is no name of a package")
        return None
    status = fields.get("status", "install ok installed" if one else "")
    words = status.split()
    if len(words) != 3 or words[0] not in _WANTS or words[1] not in _FLAGS or words[2] not in _STATES:
        trouble.add(f"{where}: {name} has the status {shown(status[:80])}")
    elif words[2] not in ("not-installed", "config-files") and not fields.get("version"):
        trouble.add(f"{where}: {name} has no version")
    # deb-control(5): without a Source the name is the same; a version may follow in parentheses.
    source = next(iter(fields.get("source", "").split()), name)
    version, architecture = fields.get("version", ""), fields.get("architecture", "")
    return Package(name, version, architecture, " ".join(words) or "unknown", source=source)


def _check_twice(packages: list[Package], trouble: Trouble) -> None:
    seen: set[tuple[str, str]] = set()
    for package in packages:
        if (package.name, package.arch) in seen:
            trouble.add(f"{package.name} ({package.arch}) stands in it twice")
        seen.add((package.name, package.arch))


def _info(view: RootView, ending: str) -> dict[str, str]:
    """The paths of what is kept of packages in files with this ending, by NAME or NAME:ARCH."""
    info = f"{HOME}/info"
    return {
        name.removesuffix(ending): f"{info}/{name}" for name in view.list_dir(info) or () if name.endswith(ending)
    }


def _with_files(
    view: RootView, packages: list[Package], lists: dict[str, str], sums: dict[str, str], trouble: Trouble
) -> Iterator[Package]:
    budget = MAX_FILES
    for package in packages:
        key = f"{package.name}:{package.arch}"
        path, summed = (paths.get(key) or paths.get(package.name) for paths in (lists, sums))
        if package.status.endswith(" not-installed"):
            yield package
            continue
        is_installed = package.status.endswith(" installed")
        if path is None:
            if is_installed:
                trouble.add(f"{package.name} is installed, but has no list of files in info/")
            yield package
            continue
        try:
            names = _listed(view.read(path, MAX_LIST) or b"", path, trouble)
            filled = _filled(view.read(summed, MAX_LIST) or b"") if summed is not None and is_installed else {}
        except ImageError as error:
            trouble.add(error.what)
            names, filled = (), {}
        else:
            if not names and is_installed:
                # Even of a package without any file it names the root, as /. is in its archive.
                trouble.add(f"{path} is empty, but {package.name} is installed")
            elif not filled.keys() <= set(names):
                trouble.add(f"{path} lacks files that {summed} names")
        budget -= len(names)
        if budget < 0:
            trouble.add(f"the lists in info/ name more than {MAX_FILES} files")
            names, filled, budget = (), {}, 0
        yield replace(package, files=names, filled=frozenset(name for name, is_filled in filled.items() if is_filled))


def _listed(raw: bytes, path: str, trouble: Trouble) -> tuple[str, ...]:
    *lines, last = raw.decode("utf-8", "surrogateescape").split("\n")
    names = tuple(line for line in lines if line.startswith("/"))
    if last or len(names) < len(lines):
        # lib/dpkg/db-fsys-files.c stops there, too: a line that breaks off, or is no path.
        trouble.add(f"{path} is damaged")
    return names


def _filled(raw: bytes) -> dict[str, bool]:
    """The regular files that a package came with (deb-md5sums(5)), and whether there is something in each."""
    found = {}
    for line in raw.decode("utf-8", "surrogateescape").split("\n"):
        match = _SUM.fullmatch(line)
        # Packages that were made by hand may have the sums of what is about them, too.
        if match is not None and not match[2].startswith("DEBIAN/"):
            found[f"/{match[2]}"] = match[1] != _NOTHING
    return found


def read_diversions(view: RootView, trouble: Trouble) -> dict[str, tuple[str, str]]:
    """Where dpkg puts files that another package has a claim on: from their path to the one that they get, and the
    package that has the claim (dpkg-divert(1); three lines each: path, new path, package that diverts).

    Only of diversions by a package: what an administrator diverts (``:``) is not the package's file any more.
    """
    path = f"{HOME}/diversions"
    try:
        text = view.read(path, MAX_LIST) or b""
    except ImageError as error:
        trouble.add(error.what)
        return {}
    *lines, last = text.decode("utf-8", "surrogateescape").split("\n")
    if last or len(lines) % 3:
        # lib/dpkg/divertdb.c calls that an error, and stops.
        trouble.add(f"{path} breaks off")
    triples = zip(lines[0::3], lines[1::3], lines[2::3], strict=False)
    return {old: (new, by) for old, new, by in triples if by != ":"}
