"""The files of an image as the scan needs them: found once, read once, each with its owner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pytest_osgates.image.contents import FileContents
from pytest_osgates.image.elf import Elf, MalformedElf, parse_elf
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.squashfs import Squashfs
from pytest_osgates.image.squashfs_format import Inode
from pytest_osgates.image.tree import FileKind
from pytest_osgates.image.walk import Node, locate, walk
from pytest_osgates.observers.networked.knowledge import libraries

# dlopen: a program that loads libraries by names of its own; syscall: one that may call the kernel through libc.
_BESIDE = frozenset({b"dlopen", b"dlmopen", b"syscall"})
CAPABILITY = b"security.capability"
# flatpak(1): what an installation consists of.
_FLATPAKS = ("app", "runtime", "repo")
Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """A regular file, without the directories that it was found through."""

    path: str
    filesystem: Squashfs
    inode: Inode

    @property
    def identity(self) -> Identity:
        """Equal for hard links."""
        return self.filesystem.offset, self.inode.number

    @property
    def runs(self) -> bool:
        """Whether execve(2) takes it: for root, one bit is enough (path_resolution(7))."""
        return bool(self.inode.mode & 0o111)

    def open(self) -> FileContents:
        """Its contents."""
        return FileContents(self.filesystem, self.inode, self.path)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What PT_INTERP of a program names. `foreign`: it is no dynamic linker, or one that talks on the network itself;
    then `stubs` are the addresses in it that do, None if that cannot be told."""

    foreign: bool
    stubs: frozenset[int] | None = None


@dataclass
class Files:
    """What a walk found: programs (and set-uid files), libraries by their names, files with attributes, in order."""

    view: RootView
    programs: list[Item] = field(default_factory=list)
    named: dict[str, list[Item]] = field(default_factory=dict)
    attributed: list[Item] = field(default_factory=list)
    directories: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    count: int = 0
    flatpak_files: int = 0
    interpreters: dict[Identity, Interpreter] = field(default_factory=dict)
    _elves: dict[Identity, Elf | None] = field(default_factory=dict)
    _located: dict[str, Item | None] = field(default_factory=dict)
    _followed: dict[str, str] = field(default_factory=dict)

    def at(self, path: str) -> Item | None:
        """The regular file that `path` leads to."""
        if path not in self._located:
            directory, _, name = path.rpartition("/")
            where = f"{self._directory(directory)}/{name}"
            if where in self._located:
                self._located[path] = self._located[where]
            else:
                # The walk met every file: what is left is a link, or nothing.
                node = locate(self.view, where) if where in self.links or name in ("", ".", "..") else None
                self._located[path] = _item(node) if node is not None else None
        return self._located[path]

    def _directory(self, path: str) -> str:
        """The path of a directory once its links are followed."""
        if path in self.directories:
            return path
        if path not in self._followed:
            node = locate(self.view, path)
            self._followed[path] = path if node is None else node.path.rstrip("/")
        return self._followed[path]

    def elf(self, item: Item) -> Elf | None:
        """The file as ELF; None: it is none.

        :raise MalformedElf: it is one that contradicts itself.
        """
        if item.identity not in self._elves:
            contents = item.open()
            is_elf = contents.size >= 4 and contents.read_at(0, 4) == b"\x7fELF"
            known = libraries()
            wanted = known.imports | known.internet | known.listeners | _BESIDE
            self._elves[item.identity] = parse_elf(contents, wanted) if is_elf else None
        return self._elves[item.identity]

    def is_elf(self, item: Item) -> bool:
        """Whether it is ELF at all, broken or not."""
        try:
            return self.elf(item) is not None
        except MalformedElf:
            return True


def _item(node: Node) -> Item | None:
    return Item(node.path, node.filesystem, node.inode) if node.inode.kind is FileKind.FILE else None


def _has_capabilities(item: Item) -> bool:
    return item.inode.xattr is not None and CAPABILITY in item.filesystem.xattrs(item.inode)


def collect(view: RootView, flatpaks: Iterable[str]) -> Files:
    """Walk `view` once. What Flatpak keeps below one of `flatpaks`, its installations, runs on the libraries of
    another system: it is counted, and looked at as a whole elsewhere. What else lies there is nothing of Flatpak's;
    and a set-uid bit or a capability counts for whoever finds the file.

    :raise ImageError: the file system is damaged.
    """
    files = Files(view)
    below = tuple(f"{path.rstrip('/')}/{name}/" for path in flatpaks for name in _FLATPAKS)
    for node in walk(view):
        if node.inode.is_dir:
            files.directories.add(node.path)
        elif node.inode.target is not None:
            files.links.add(node.path)
        if node.inode.kind is not FileKind.FILE:
            continue
        files.count += 1
        item = Item(node.path, node.filesystem, node.inode)
        files._located[item.path] = item
        if below and item.path.startswith(below):
            files.flatpak_files += item.runs
            if not item.inode.mode & 0o4000 and not _has_capabilities(item):
                continue
        if item.runs:
            files.programs.append(item)
        name = item.path.rpartition("/")[2]
        if ".so" in name:
            files.named.setdefault(name, []).append(item)
        if item.inode.xattr is not None:
            files.attributed.append(item)
    return files
