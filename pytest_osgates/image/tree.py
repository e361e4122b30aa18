"""What the file trees of an image have in common: kinds of files, and how a path is followed."""

from __future__ import annotations

import stat
from enum import Enum
from typing import Protocol, TypeVar

# path_resolution(7): 40 symbolic links, then ELOOP.
MAX_LINKS = 40
# PATH_MAX is 4096 bytes, so a path that Linux accepts has fewer components than this.
MAX_COMPONENTS = 4096

N = TypeVar("N")


class FileKind(Enum):
    """The kinds of files, by the type bits of `st_mode`."""

    FILE = stat.S_IFREG
    DIRECTORY = stat.S_IFDIR
    SYMLINK = stat.S_IFLNK
    BLOCK_DEVICE = stat.S_IFBLK
    CHARACTER_DEVICE = stat.S_IFCHR
    FIFO = stat.S_IFIFO
    SOCKET = stat.S_IFSOCK

    @property
    def label(self) -> str:
        """For messages: `a symbolic link`."""
        return _LABELS[self]


_LABELS = {
    FileKind.FILE: "a regular file",
    FileKind.DIRECTORY: "a directory",
    FileKind.SYMLINK: "a symbolic link",
    FileKind.BLOCK_DEVICE: "a block device",
    FileKind.CHARACTER_DEVICE: "a character device",
    FileKind.FIFO: "a named pipe",
    FileKind.SOCKET: "a socket",
}


class Tree(Protocol[N]):
    """A file tree with nodes of type `N`, as :func:`resolve` walks it."""

    def root_node(self) -> N: ...

    def child(self, node: N, name: str) -> N | None:
        """The entry `name` of the directory `node`; None: there is none."""
        ...

    def is_directory(self, node: N) -> bool: ...

    def link_target(self, node: N) -> str | None:
        """Where the symbolic link `node` points; None: it is not one."""
        ...


def components(path: str) -> list[str]:
    """The names that `path` goes through; empty for the root. `..` is kept."""
    return [name for name in path.split("/") if name not in ("", ".")]


def resolve(tree: Tree[N], path: str, *, follow: bool) -> N | None:
    """The node at `path`, as :func:`resolved` finds it."""
    found = resolved(tree, path, follow=follow)
    return None if found is None else found[1]


def resolved(tree: Tree[N], path: str, *, follow: bool) -> tuple[str, N] | None:
    """The node at `path`, which is taken from the root, symbolic links resolved inside the tree; and the path
    from the root that is left once they are.

    `..` does not leave the root. With `follow` a link at the end is followed as well. None: there is nothing, or the
    links do not end (ELOOP).
    """
    pending = components(path)[::-1]
    trail = [("", tree.root_node())]
    links = 0
    while pending:
        parent, directory = trail[-1]
        if len(pending) > MAX_COMPONENTS or len(trail) > MAX_COMPONENTS or not tree.is_directory(directory):
            return None
        name = pending.pop()
        if name == "..":
            if len(trail) > 1:
                trail.pop()
            continue
        node = tree.child(directory, name)
        if node is None:
            return None
        target = tree.link_target(node)
        if target is None or not (follow or pending):
            trail.append((f"{parent}/{name}", node))
            continue
        links += 1
        if links > MAX_LINKS or not target:
            return None
        if target.startswith("/"):
            del trail[1:]
        pending.extend(reversed(components(target)))
    where, node = trail[-1]
    return where or "/", node
