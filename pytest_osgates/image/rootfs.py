"""The root file system of a live ISO as its machine will see it, read out of the ISO without booting it.

Layers are merged as overlayfs does (Documentation/filesystems/overlayfs.rst): directories merge unless the upper one
is opaque, anything else in an upper layer hides what is below, and a character device 0/0 removes a name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_osgates.image import sniff, tree
from pytest_osgates.image.iso9660 import IsoImage
from pytest_osgates.image.layers import NAME_THE_DISTRO, Layer, LiveSystem, find_layers
from pytest_osgates.image.os_release import MAX_BYTES, OS_RELEASE_PATHS, parse_os_release
from pytest_osgates.image.source import shown
from pytest_osgates.image.squashfs import Squashfs
from pytest_osgates.image.squashfs_format import Inode
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError

# dmsquash-live-root.sh: the squashfs is the root itself if it has one of these.
_ROOT_SIGNS = ("/proc", "/usr")
_NESTED_ROOTS = ("/LiveOS/rootfs.img", "/LiveOS/ext3fs.img")


@dataclass(frozen=True, slots=True)
class MergedNode:
    """A file of the merged tree: for a directory all of its merged layers, the topmost first, else one."""

    parts: tuple[tuple[Squashfs, Inode], ...]

    @property
    def inode(self) -> Inode:
        return self.parts[0][1]


class RootView:
    """The merged root. Paths are absolute inside it; symbolic links are followed across layers and never leave it.

    `layers` are the files of the ISO that it is made of, the lowest first.
    """

    def __init__(self, system: LiveSystem, layers: tuple[Layer, ...], filesystems: tuple[Squashfs, ...]) -> None:
        """`filesystems` belong to `layers`, in the same order."""
        self.system = system
        self.layers = layers
        self._filesystems = filesystems
        self._root = MergedNode(tuple((filesystem, filesystem.root) for filesystem in reversed(filesystems)))

    def lookup(self, path: str, follow: bool = True) -> Inode | None:
        """The inode at `path`; None: nothing is there. Without `follow` a link at the end is returned itself."""
        node = tree.resolve(self, path, follow=follow)
        return None if node is None else node.inode

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`, symbolic links followed."""
        return self.lookup(path) is not None

    def read(self, path: str, limit: int) -> bytes | None:
        """The contents of the regular file at `path`, symbolic links followed; None: nothing is there.

        :raise ImageError: it is not a regular file, is larger than `limit` bytes, or its image is damaged.
        """
        node = tree.resolve(self, path, follow=True)
        if node is None:
            return None
        filesystem, inode = node.parts[0]
        if inode.kind is not FileKind.FILE:
            raise ImageError(f"{filesystem.name}: {shown(path)} is {inode.kind.label}, not a regular file")
        if inode.size > limit:
            raise ImageError(
                f"{filesystem.name}: {shown(path)} has {inode.size} bytes, more than the {limit} expected"
            )
        return filesystem.read_file(inode, limit)

    def list_dir(self, path: str) -> tuple[str, ...] | None:
        """The names in the directory at `path`, sorted; None: there is no directory."""
        node = tree.resolve(self, path, follow=True)
        if node is None or not node.inode.is_dir:
            return None
        names: dict[str, bool] = {}
        for filesystem, directory in node.parts:
            for entry in filesystem.list_dir(directory):
                if entry.name not in names:
                    is_device = entry.kind is FileKind.CHARACTER_DEVICE
                    names[entry.name] = not (is_device and filesystem.inode(entry.reference).is_whiteout)
        return tuple(sorted(name for name, there in names.items() if there))

    def root_node(self) -> MergedNode:
        """For :func:`tree.resolve`."""
        return self._root

    def is_directory(self, node: MergedNode) -> bool:
        """For :func:`tree.resolve`."""
        return node.inode.is_dir

    def link_target(self, node: MergedNode) -> str | None:
        """For :func:`tree.resolve`."""
        return node.inode.target

    def child(self, node: MergedNode, name: str) -> MergedNode | None:
        """The entry `name` of the merged directory `node`, as the kernel's ovl_lookup finds it."""
        found: list[tuple[Squashfs, Inode]] = []
        for depth, (filesystem, directory) in enumerate(node.parts):
            inode = filesystem.child(directory, name)
            if inode is None:
                continue
            if inode.is_whiteout or (found and not inode.is_dir):
                break
            found.append((filesystem, inode))
            is_lowest = depth == len(node.parts) - 1
            if not inode.is_dir or (not is_lowest and _hides_below(filesystem, inode, name)):
                break
        return MergedNode(tuple(found)) if found else None


def _hides_below(filesystem: Squashfs, directory: Inode, name: str) -> bool:
    """Whether `directory` is opaque.

    :raise ImageError: it was renamed in its layer, and stands for another one below.
    """
    attributes = filesystem.xattrs(directory)
    if b"trusted.overlay.redirect" in attributes:
        raise ImageError(
            f"{filesystem.name}: the directory {shown(name)} was renamed by overlayfs (redirect_dir), "
            "which this version cannot follow",
            remedy="build the layer with redirect_dir=off",
        )
    return attributes.get(b"trusted.overlay.opaque") == b"y"


@contextmanager
def open_root(iso_path: str | os.PathLike[str]) -> Iterator[RootView]:
    """The live root of the ISO at `iso_path`, for the length of the context.

    :raise UsageError: there is nothing at `iso_path`, or it may not be read.
    :raise ImageError: it is no ISO, is cut short or damaged, has no live root, or one that cannot be read.
    """
    with IsoImage.open(iso_path) as iso:
        yield root_of(iso)


def root_of(iso: IsoImage) -> RootView:
    """The live root of `iso`, valid as long as that is open.

    :raise ImageError: it has no live root, or one that is damaged or cannot be read.
    """
    system, layers = find_layers(iso)
    filesystems = tuple(_open_layer(iso, layer) for layer in layers)
    if system is LiveSystem.DRACUT:
        _check_dracut_root(filesystems[0])
    return RootView(system, layers, filesystems)


def _open_layer(iso: IsoImage, layer: Layer) -> Squashfs:
    name = f"{iso.source.name}:{shown(layer.name)[1:-1]}"
    head = iso.source.read_at(layer.offset, min(layer.size, sniff.HEAD_BYTES))
    if not head.startswith(b"hsqs"):
        raise ImageError(
            f"{name}: its root is {sniff.looks_like(head)[0]}: this version reads only squashfs",
            remedy=NAME_THE_DISTRO,
        )
    return Squashfs(iso.source, layer.offset, layer.size, name=name)


def _check_dracut_root(filesystem: Squashfs) -> None:
    for path in _NESTED_ROOTS:
        nested = filesystem.lookup(path)
        if nested is None or nested.kind is not FileKind.FILE:
            continue
        first = next(filesystem.blocks(nested), None)
        what = sniff.looks_like(filesystem.read_block(first))[0] if first is not None else "an empty file"
        what = "an ext4 image" if what.startswith("an ext2") else what
        raise ImageError(
            f"{filesystem.name}: its root is {what} inside squashfs: this version cannot read it",
            remedy=NAME_THE_DISTRO,
        )
    if not any(filesystem.lookup(path) for path in _ROOT_SIGNS):
        raise ImageError(f"{filesystem.name}: there is no root file system in it", remedy=NAME_THE_DISTRO)


def os_release(view: RootView) -> dict[str, str]:
    """What the distribution says of itself, by os-release(5): `{"ID": "debian", ...}`.

    Of the two files only the first that is there is read, as the man page demands.

    :raise ImageError: there is none, or it is not a file of a sensible size.
    """
    for path in OS_RELEASE_PATHS:
        text = view.read(path, MAX_BYTES)
        if text is not None:
            return parse_os_release(text)
    raise ImageError(
        f"the root in {view.layers[0].name} has neither {' nor '.join(OS_RELEASE_PATHS)}", remedy=NAME_THE_DISTRO
    )
