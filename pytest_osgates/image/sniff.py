"""What a file that is not what was expected looks like, so that the error can say what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_osgates.image.source import Source
from pytest_osgates.vm.errors import ImageError

HEAD_BYTES = 64 << 10

_UNPACK = "unpack it and give the .iso inside"
_DOWNLOAD = "this is a download that failed: get the ISO itself"
_WANTED = "give a bootable ISO 9660 image, as it would be published"


@dataclass(frozen=True, slots=True)
class Magic:
    """Bytes that tell a format: `magic` at `offset` bytes from the start."""

    offset: int
    magic: bytes
    what: str
    remedy: str = _WANTED


# The more telling ones first: a disk image with a GPT also has the MBR's 55 AA.
MAGICS = (
    Magic(0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    Magic(0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    Magic(0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    Magic(0, b"BZh", "a bzip2 archive", _UNPACK),
    Magic(0, b"PK\x03\x04", "a zip archive", _UNPACK),
    Magic(0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    Magic(257, b"ustar", "a tar archive", _UNPACK),
    Magic(0, b"d8:announce", "a torrent file", "download what it describes, and give that"),
    Magic(0, b"version https://git-lfs", "a Git LFS pointer", "run: git lfs pull"),
    Magic(0, b"QFI\xfb", "a qcow2 disk image", "give the ISO; an installed disk goes to --iso-disk"),
    Magic(0, b"KDMV", "a VMDK disk image"),
    Magic(0, b"conectix", "a VHD disk image"),
    Magic(0, b"vhdxfile", "a VHDX disk image"),
    Magic(0, b"\x7fELF", "an ELF program"),
    Magic(0, b"MZ", "a Windows or EFI program"),
    Magic(0, b"\x89PNG", "a PNG picture"),
    Magic(0, b"%PDF", "a PDF document"),
    Magic(0, b"hsqs", "a squashfs file system"),
    Magic(1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    Magic(1080, b"\x53\xef", "an ext2/3/4 file system"),
    Magic(0, b"XFSB", "an XFS file system"),
    Magic(0x10040, b"_BHRfS_M", "a Btrfs file system"),
    Magic(0x8001, b"BEA01", "a UDF disc without an ISO 9660 part"),
    Magic(0x8009, b"CDROM", "a High Sierra disc, older than ISO 9660"),
    Magic(512, b"EFI PART", "a raw disk image with a GPT"),
    Magic(510, b"\x55\xaa", "a raw disk image with an MBR"),
)

_HTML = re.compile(rb"\s*(?:<!doctype html|<html|<\?xml)", re.IGNORECASE)
_SUMS = re.compile(rb"[0-9a-f]{32,128} [ *]\S")


def read_head(source: Source) -> bytes:
    """The first bytes of `source`, at most :data:`HEAD_BYTES`."""
    return source.read_at(0, min(HEAD_BYTES + 1024, source.size))


def looks_like(head: bytes) -> tuple[str, str]:
    """What `head`, the first bytes of a file, looks like (`"a gzip archive"`), and what to do about it."""
    for magic in MAGICS:
        if head.startswith(magic.magic, magic.offset):
            return magic.what, magic.remedy
    if _HTML.match(head):
        return "an HTML or XML page", _DOWNLOAD
    if head.startswith(b"-----BEGIN PGP"):
        return "an OpenPGP signature", "give the ISO that it signs"
    if _SUMS.match(head):
        return "a list of checksums", "give the ISO; the list goes to --iso-sums"
    if not head.strip(b"\x00"):
        return "nothing but zeros", "was its download interrupted? Get it again"
    if _is_text(head):
        return "text", _WANTED
    return "unknown or random data", _WANTED


def _is_text(head: bytes) -> bool:
    if any(byte < 0x20 and byte not in b"\t\n\r\f\x1b" for byte in head[:4096]):
        return False
    try:
        # The head may end inside a character.
        head[:4096].decode("utf-8")
    except UnicodeDecodeError as exc:
        return exc.start >= min(len(head), 4096) - 3
    return True


def not_an_iso(source: Source) -> ImageError:
    """The error for a file without ISO 9660 volume descriptors."""
    what, remedy = looks_like(read_head(source))
    return ImageError(
        f"{source.name} is not an ISO 9660 image: it looks like {what} ({source.size} bytes)", remedy=remedy
    )
