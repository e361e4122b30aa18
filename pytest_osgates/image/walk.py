"""Everything in a merged root, path by path, and where a path leads once its symbolic links are followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.image.rootfs import MergedNode, RootView
from pytest_osgates.image.source import damaged, shown
from pytest_osgates.image.squashfs import MAX_DEPTH, MAX_ENTRIES, Squashfs
from pytest_osgates.image.squashfs_format import Inode
from pytest_osgates.image.tree import resolved
from pytest_osgates.vm.errors import ImageError


@dataclass(frozen=True, slots=True)
class Node:
    """A name in the merged root: its absolute path, and the layer and inode that it leads to there.

    Hard links share `identity`; of a directory `node` has all layers that it is merged of.
    """

    path: str
    filesystem: Squashfs
    inode: Inode
    node: MergedNode

    @property
    def identity(self) -> tuple[int, int]:
        """Equal for two names of one file."""
        return self.filesystem.offset, self.inode.number


def walk(view: RootView, limit: int = MAX_ENTRIES) -> Iterator[Node]:
    """Every name below the root, a directory before what is in it, directories in the order of their names.

    :raise ImageError: more than `limit` of them, a directory that contains itself, or a damaged layer.
    """
    pending: list[tuple[str, MergedNode, int]] = [("", view.root_node(), 0)]
    seen: set[tuple[int, int]] = set()
    count = 0
    while pending:
        parent, directory, depth = pending.pop()
        filesystem, inode = directory.parts[0]
        if (filesystem.offset, inode.number) in seen or depth > MAX_DEPTH:
            raise damaged(filesystem.name, f"{shown(parent)} is a directory reached twice, or too deep")
        seen.add((filesystem.offset, inode.number))
        below = []
        for name, node in _children(view, directory):
            count += 1
            if count > limit:
                raise ImageError(f"{filesystem.name} has more than {limit} files")
            found = Node(f"{parent}/{name}", *node.parts[0], node)
            yield found
            if found.inode.is_dir:
                below.append((found.path, node, depth + 1))
        pending += reversed(below)


def _children(view: RootView, directory: MergedNode) -> Iterator[tuple[str, MergedNode]]:
    """What is in a directory, by name."""
    if len(directory.parts) == 1:
        # Of one layer alone nothing has to be looked up by its name.
        filesystem, inode = directory.parts[0]
        for entry in filesystem.list_dir(inode):
            child = filesystem.inode(entry.reference)
            if not child.is_whiteout:
                yield entry.name, MergedNode(((filesystem, child),))
        return
    names = {entry.name for filesystem, inode in directory.parts for entry in filesystem.list_dir(inode)}
    for name in sorted(names):
        node = view.child(directory, name)
        if node is not None:
            yield name, node


def locate(view: RootView, path: str, follow: bool = True) -> Node | None:
    """What is at `path`, by the path that is left when all symbolic links are followed; None: nothing."""
    found = resolved(view, path, follow=follow)
    if found is None:
        return None
    where, node = found
    return Node(where, *node.parts[0], node)
