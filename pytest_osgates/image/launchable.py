"""Whether a file can be what is published and booted at all: said at once, not after a boot that waits in vain."""

from __future__ import annotations

import os

from pytest_osgates.image.eltorito import SECTOR
from pytest_osgates.image.iso9660 import IsoImage
from pytest_osgates.image.source import GET_AGAIN, shown
from pytest_osgates.vm.errors import ImageError

_MAKE_BOOTABLE = "give the ISO that boots; xorriso -as mkisofs -b ... (BIOS) and -e ... (UEFI) write a boot record"


def check_launchable(path: str | os.PathLike[str]) -> None:
    """Read the parts of the ISO at `path` that every bootable one has. What lies in its live system is not looked at.

    :raise UsageError: there is nothing at `path`, or it may not be read.
    :raise ImageError: it is no ISO 9660 image, cut short, damaged, or a CD that no firmware boots.
    """
    with IsoImage.open(path) as iso:
        for file in iso.walk():
            for extent in file.extents:
                end = extent.offset + extent.size
                if end > iso.source.size:
                    raise ImageError(
                        f"{path} is damaged or cut short: {shown(file.path)} ends at byte {end},"
                        f" the file at {iso.source.size}",
                        remedy=GET_AGAIN,
                    )
        entries = iso.boot_entries()
        if not entries:
            raise ImageError(
                f"{path} is a data ISO: it has no El Torito boot record, so no firmware boots it as a CD",
                remedy=_MAKE_BOOTABLE,
            )
        if not any(entry.bootable for entry in entries):
            raise ImageError(
                f"{path}: no entry of its El Torito boot catalog is marked bootable", remedy=_MAKE_BOOTABLE
            )
        for entry in entries:
            if entry.bootable and not 0 < entry.offset <= iso.source.size - SECTOR // 4:
                raise ImageError(
                    f"{path} is damaged: its boot catalog names a boot image at byte {entry.offset},"
                    f" but it is only {iso.source.size} bytes long",
                    remedy=GET_AGAIN,
                )
