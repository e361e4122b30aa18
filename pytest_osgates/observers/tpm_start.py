"""Whether a firmware is what starts a unified kernel image, in the normal boot and with Secure Boot on.

Who starts it otherwise (shim, GRUB, systemd-boot) may verify it by another key, and hand it another command line: an
entry of the firmware's own would show nothing of that. edk2 goes on with BootOrder where it refuses an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_osgates.image import siglist
from pytest_osgates.observers.tpm_images import Image
from pytest_osgates.vm import variables
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.load_option import FALLBACK, started_path

_MOST_ENTRIES = 256


def check_started(image: Image, store: Path, scratch: Path, patience: float = 1.0) -> None:
    """`store`: the firmware's variables of the machine, before anything is changed.

    :raise ImageError: it is not the image that the firmware starts, or not by a key of the firmware's.
    :raise HostError: the tool is missing or refuses the file.
    """
    known = variables.databases(store, ("BootOrder", "db"), scratch, patience)
    order = known.get("BootOrder", b"")[: 2 * _MOST_ENTRIES]
    names = tuple(f"Boot{int.from_bytes(order[at : at + 2], 'little'):04X}" for at in range(0, len(order) - 1, 2))
    entries = variables.databases(store, names, scratch, patience) if names else {}
    path = first_started(names, entries)
    if path.lower() != image.path.lower():
        raise ImageError(
            f"the firmware starts {path}, and not the unified kernel image {image.path}: nobody knows what"
            " command line it takes from whoever starts it",
            remedy="this version hands load options to an image that the firmware starts itself",
        )
    if not trusted(image, known.get("db", b"")):
        raise ImageError(
            f"no certificate in the signature of {image.path} is in db: the firmware itself would refuse it",
            remedy="this version hands load options to an image that the firmware's own db lets start",
        )


def first_started(names: tuple[str, ...], entries: Mapping[str, bytes]) -> str:
    """The path that comes first. Without any entry a firmware looks for itself.

    :raise ImageError: an entry cannot be read.
    """
    for name in names:
        if name in entries and (path := started_path(entries[name])) is not None:
            return path
    return FALLBACK


def trusted(image: Image, db: bytes) -> bool:
    """Whether db has a certificate that is in one of its signatures, or the image's own digest.

    :raise ImageError: db is malformed.
    """
    for entry in siglist.parse(db):
        if entry.kind == siglist.X509 and any(entry.data in blob for blob in image.signatures):
            return True
        if entry.kind == siglist.SHA256 and entry.data == image.digest:
            return True
    return False
