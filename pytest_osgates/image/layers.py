"""Which files of a live ISO make its root file system, and in which order they are stacked.

Knowledge of the programs that do it in the initramfs:

- live-boot (Debian), `/usr/lib/live/boot/9990-overlay.sh`: the images that `/live/filesystem.module` names in that
  order, otherwise all images in `/live`, sorted. Each goes on top of those before it.
- casper (Ubuntu, Mint): the image that `layerfs-path=` names, on those whose names are its dotted beginnings
  (`a.b.c.squashfs` on `a.b.squashfs` on `a.squashfs`); without layers all images in `/casper`, sorted.
- dracut's dmsquash-live (Fedora, openSUSE): `/LiveOS/squashfs.img`, which is the root or holds an image of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from pytest_osgates.image.iso9660 import Extent, IsoFile, IsoImage
from pytest_osgates.image.source import damaged, shown
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError

NAME_THE_DISTRO = "name the distro with --iso-distro"

# live-boot stacks these too, in one order with the squashfs images.
_OTHER_SUFFIXES = (".ext2", ".ext3", ".ext4", ".xfs", ".jffs2", ".dir")
_MODULE_LISTS = ("/live/filesystem.filesystem.module", "/live/filesystem.module")

_BOOT_MENUS = ("/boot/grub/grub.cfg", "/boot/grub/loopback.cfg", "/isolinux/isolinux.cfg", "/isolinux/txt.cfg")
_LAYERFS_PATH = re.compile(rb"\blayerfs-path=([^\s\"']+)")
# livecd-rootfs writes the default layer into the initrd, which is not unpacked here: Ubuntu Desktop's and Server's.
_DEFAULT_LAYERS = (".live", ".installer.generic")

_MAX_TEXT = 1 << 20
MAX_LAYERS = 100


class LiveSystem(Enum):
    """What assembles the root in the initramfs."""

    LIVE_BOOT = "live-boot"
    CASPER = "casper"
    DRACUT = "dracut"


@dataclass(frozen=True, slots=True)
class Layer:
    """A file of the ISO that is one layer of the root: its path there, its offset in the ISO, its size in bytes."""

    name: str
    offset: int
    size: int


def find_layers(iso: IsoImage) -> tuple[LiveSystem, tuple[Layer, ...]]:
    """What makes the root of `iso`, and its layers, the lowest first.

    :raise ImageError: it has no live root of a kind that is known, or one that this version cannot read.
    """
    for system, find in (
        (LiveSystem.LIVE_BOOT, _live_boot),
        (LiveSystem.CASPER, _casper),
        (LiveSystem.DRACUT, _dracut),
    ):
        files = find(iso)
        if len(files) > MAX_LAYERS:
            raise ImageError(f"{iso.source.name}: its root has {len(files)} layers", remedy=NAME_THE_DISTRO)
        if files:
            return system, tuple(_layer(iso, file) for file in files)
    what = (
        "an installer without a live system" if iso.lookup("/install.amd") or iso.lookup("/.disk") else "no live ISO"
    )
    raise ImageError(
        f"{iso.source.name}: no live root in /live, /casper or /LiveOS; it looks like {what}", remedy=NAME_THE_DISTRO
    )


def _live_boot(iso: IsoImage) -> list[IsoFile]:
    files = _visible(iso, "/live")
    if not any(name.endswith((".squashfs", *_OTHER_SUFFIXES)) for name in files):
        return []
    for path in _MODULE_LISTS:
        listed = iso.lookup(path)
        if listed is not None:
            # live-boot warns about a name without a file, and goes on.
            names = [name.decode("utf-8", "surrogateescape") for name in iso.read(listed, _MAX_TEXT).split()]
            found = [file for name in names if (file := iso.lookup(f"/live/{name}")) is not None]
            if not found:
                raise ImageError(f"{iso.source.name}: {path} names no image that is there", remedy=NAME_THE_DISTRO)
            return found
    foreign = sorted(name for name in files if name.endswith(_OTHER_SUFFIXES))
    if foreign:
        raise ImageError(
            f"{iso.source.name}: live-boot stacks /live/{shown(foreign[0])[1:-1]}: this version reads only squashfs",
            remedy=NAME_THE_DISTRO,
        )
    # sort(1) of the initramfs has no locale: by bytes.
    return [files[name] for name in sorted(files, key=_bytes) if name.endswith(".squashfs")]


def _casper(iso: IsoImage) -> list[IsoFile]:
    images = {
        name.removesuffix(".squashfs"): file
        for name, file in _visible(iso, "/casper").items()
        if name.endswith(".squashfs")
    }
    top = _layerfs_path(iso)
    if top is None:
        if not any(_below(name, other) for name in images for other in images):
            return [images[name] for name in sorted(images, key=_bytes)]
        tops = [name for name in images if not any(_below(name, other) for other in images)]
        if len(tops) > 1:
            tops = [name for name in tops if name.endswith(_DEFAULT_LAYERS)]
        if len(tops) != 1:
            raise ImageError(
                f"{iso.source.name}: /casper has several stacks of layers; no boot menu names one (layerfs-path=)",
                remedy=NAME_THE_DISTRO,
            )
        top = tops[0]
    elif top not in images:
        raise ImageError(
            f"{iso.source.name}: its boot menu names the layer {shown(top)}, which is not in /casper",
            remedy=NAME_THE_DISTRO,
        )
    return [images[name] for name in sorted(images, key=len) if name == top or _below(name, top)]


def _below(lower: str, upper: str) -> bool:
    return upper.startswith(lower + ".")


def _layerfs_path(iso: IsoImage) -> str | None:
    for path in _BOOT_MENUS:
        menu = iso.lookup(path)
        if menu is None or menu.kind is not FileKind.FILE:
            continue
        found = _LAYERFS_PATH.search(iso.read(menu, _MAX_TEXT))
        if found:
            name = found[1].decode("utf-8", "surrogateescape").rpartition("/")[2]
            return name.removesuffix(".squashfs")
    return None


def _dracut(iso: IsoImage) -> list[IsoFile]:
    image = iso.lookup("/LiveOS/squashfs.img")
    if image is not None:
        return [image]
    if iso.lookup("/LiveOS/rootfs.img") is not None:
        raise ImageError(
            f"{iso.source.name}: its root is the disk image /LiveOS/rootfs.img: this version reads only squashfs",
            remedy=NAME_THE_DISTRO,
        )
    return []


def _visible(iso: IsoImage, path: str) -> dict[str, IsoFile]:
    """The entries of a directory that the shell's `*` matches, by name."""
    return {file.name: file for file in reversed(iso.list_dir(path) or ()) if not file.name.startswith(".")}


def _layer(iso: IsoImage, file: IsoFile) -> Layer:
    if file.kind is not FileKind.FILE or file.compressed or not file.extents:
        raise ImageError(
            f"{iso.source.name}: {shown(file.path)} should be an image of the root, but cannot be read as one",
            remedy=NAME_THE_DISTRO,
        )
    whole = Extent(file.extents[0].offset, 0)
    for extent in file.extents:
        # A file above 4 GiB is recorded as several extents; everything that makes ISOs puts them one after another.
        if extent.offset != whole.offset + whole.size:
            raise damaged(iso.source.name, f"{shown(file.path)} lies in pieces")
        whole = Extent(whole.offset, whole.size + extent.size)
    return Layer(file.path, whole.offset, whole.size)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
