"""The packages and files of an image, read out of it. Nothing is booted."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from pytest_osgates.checks.packages import LISTED, DatabaseSeen, FilesSeen, Manager, PackageSeen, PackagesObservation
from pytest_osgates.image.find import Names
from pytest_osgates.image.packages import Database, Package
from pytest_osgates.image.packages.dpkg import read_dpkg
from pytest_osgates.image.packages.rpm import read_rpm
from pytest_osgates.image.packages.sandboxed import read_flatpak, read_snap
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.tree import FileKind
from pytest_osgates.image.walk import Node, locate, walk
from pytest_osgates.model import State
from pytest_osgates.vm.text import one_line

# Without these a package does not work. Images leave out documentation, translations (dpkg.cfg(5), path-exclude) and
# drivers of hardware that nobody has; what is in /etc, /var and /usr/share may have been changed on purpose.
_WORKS = re.compile(r"(?:/usr(?:/local)?)?/(?:s?bin|lib(?:32|64|x32|exec)?|games)/.+|/opt/.+")
_LEFT_OUT = re.compile(r".*/(?:doc|man|locale|info|__pycache__)/.*|(?:/usr)?/lib/(?:modules|firmware)/.*")
# What tells of a package, and is left out as well; what is made anew at every start.
_TELLS = re.compile(r"/usr/share/(?:doc|doc-base|man|locale|info|bug|lintian|help|licenses)(?:/.*)?")
_PASSING = re.compile(r"/(?:run|tmp|dev|proc|sys|var/(?:run|lock|cache|log|tmp))(?:/.*)?")
# The kernel of a live system may be beside its root.
_KERNEL = re.compile(r"/boot/.*|(?:/usr)?/lib/(?:modules|firmware)/.*")
# What must be more than a name: programs that are called by it, and libraries that programs are linked with. Older
# Debians have a link of a directory among the programs: X11 is bin itself.
_PROGRAM = re.compile(r"(?:/usr(?:/local)?)?/(?:s?bin|games)/(?!X11$)[^/]+")
_LIBRARY = re.compile(r".*\.so(?:\.\d[^/]*)?")


def observe(view: RootView, patterns: Iterable[str]) -> PackagesObservation:
    """Everything that the gate `packages` judges; `patterns`: of files to look for.

    :raise ImageError: the file system of the image is damaged.
    """
    databases = read_databases(view)
    names = Names(view)
    there = There(view)
    for node in walk(view):
        names.add(node)
        there.add(node)
    packages = [
        _package(manager, database, package, there)
        for manager, database in databases
        for package in database.packages
    ]  # fmt: skip
    return PackagesObservation(
        state=State.IMAGE,
        databases=tuple(
            DatabaseSeen(
                manager=manager,
                path=one_line(database.path),
                packages=len(database.packages),
                problems=tuple(one_line(problem) for problem in database.problems),
                left=tuple(one_line(name) for name in database.left),
            )
            for manager, database in databases
        ),
        packages=tuple(packages),
        files={pattern: _files(names, pattern) for pattern in patterns},
        walked=len(there.paths),
    )


def read_databases(view: RootView) -> list[tuple[Manager, Database]]:
    """Of all managers that are known, as far as they are there."""
    found: list[tuple[Manager, Database | None]] = [
        ("dpkg", read_dpkg(view)),
        *(("rpm", database) for database in read_rpm(view)),
        ("flatpak", read_flatpak(view)),
        ("snap", read_snap(view)),
    ]  # fmt: skip
    return [(manager, database) for manager, database in found if database is not None]


class Placed:
    """Where the files that packages name lie: behind links of directories (/bin is usr/bin)."""

    def __init__(self, view: RootView, known: Container[str] = frozenset()) -> None:
        """`known`: directories that a walk has met, so that no link leads to them."""
        self._view = view
        self._known = known
        self._directories: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """The path in the image of a file that is called `path` in a list."""
        directory, _, name = path.rpartition("/")
        if directory in self._known:
            return path
        if directory not in self._directories:
            node = locate(self._view, directory)
            self._directories[directory] = directory if node is None else node.path.rstrip("/")
        return f"{self._directories[directory]}/{name}"


class There:
    """What a walk has met, to be asked for the files of packages."""

    def __init__(self, view: RootView) -> None:
        self.paths: set[str] = set()
        self._view = view
        self._directories: set[str] = set()
        self._links: set[str] = set()
        self._filled: set[str] = set()
        self._runnable: set[str] = set()
        self._placed = Placed(view, self._directories)

    def add(self, node: Node) -> None:
        """Note what is at a path."""
        self.paths.add(node.path)
        if node.inode.is_dir:
            self._directories.add(node.path)
        elif node.inode.kind is FileKind.SYMLINK:
            self._links.add(node.path)
        elif node.inode.kind is FileKind.FILE and node.inode.size:
            self._filled.add(node.path)
            if node.inode.mode & 0o111:
                self._runnable.add(node.path)

    def has(self, path: str, called: str, *, is_filled: bool) -> bool:
        """Whether what a package calls `called` is there, at `path`: of a program, of a library, and of what is known
        to be filled its contents, too."""
        place = self._placed(path)
        if place not in self.paths:
            return False
        is_program = _PROGRAM.fullmatch(called)
        if not is_program and not is_filled and not _LIBRARY.fullmatch(called):
            return True
        if place in self._links:
            node = locate(self._view, place)
            if node is None:
                return False
            place = node.path
        return place in (self._runnable if is_program else self._filled)

    def has_directory(self, path: str) -> bool:
        """The same of a directory that a package calls `path`, or of anything that is in its place: what the package
        has in it is looked for as well."""
        return self._placed(path) in self.paths


def _wanted(files: list[str], directories: set[str]) -> tuple[list[str], bool]:
    """Those of a package's files that must be there; and whether one of them is enough."""
    works = [path for path in files if _WORKS.fullmatch(path) and not _LEFT_OUT.fullmatch(path)]
    if not directories.issuperset(works):
        return works, False
    # Without programs it is all about its data.
    rest = [path for path in files if path != "/." and path not in directories and not _TELLS.fullmatch(path)]
    data = [p for p in rest if not (_LEFT_OUT.fullmatch(p) or _PASSING.fullmatch(p) or _KERNEL.fullmatch(p))]
    return (data, False) if data else ([path for path in rest if _KERNEL.fullmatch(path)], True)


def _package(manager: Manager, database: Database, package: Package, there: There) -> PackageSeen:
    missing: list[str] = []
    if package.files is not None and not package.status.endswith((" config-files", " not-installed")):
        directories = {path.rpartition("/")[0] for path in package.files}
        wanted, any_will_do = _wanted([path for path in package.files if path not in package.optional], directories)
        for path in wanted:
            if path in directories:
                is_there = there.has_directory(path)
            else:
                new, diverter = database.diverted.get(path, (path, package.name))
                # Where another package takes the path, this one's file makes way, and something must be in its place.
                places = (path,) if diverter == package.name else (path, new)
                is_there = all(there.has(place, path, is_filled=path in package.filled) for place in places)
            if not is_there:
                missing.append(path)
        if any_will_do and len(missing) < len(wanted):
            missing = []
    return PackageSeen(
        manager=manager,
        name=one_line(package.name),
        version=one_line(package.version),
        arch=one_line(package.arch),
        status=one_line(package.status),
        missing=tuple(one_line(path) for path in missing[:LISTED]),
        missing_count=len(missing),
    )


def _files(names: Names, pattern: str) -> FilesSeen:
    found = names.fitting(pattern)
    return FilesSeen(paths=tuple(one_line(path) for path in found[:LISTED]), count=len(found))
