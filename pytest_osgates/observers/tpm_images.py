"""Unified kernel images of a disk, tampered with: signed again by their owner's key, given a companion file, or
started with load options of the firmware's. See systemd-stub(7)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.image import uki
from pytest_osgates.image.authenticode import Signer, digest, newly_signed, signatures
from pytest_osgates.image.disk.partitions import DiskPartition, read_table
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.image.medium import files_of_disk
from pytest_osgates.image.newc import appended_archive
from pytest_osgates.image.uki_build import with_sections
from pytest_osgates.vm.errors import ImageError, UsageError
from pytest_osgates.vm.load_option import load_option

# Where a firmware, systemd-boot or a boot entry find one: it is told from its sections.
PROGRAMS = re.compile(r"^/efi/(?:[^/]+/)?[^/]+\.efi$", re.IGNORECASE)
_TITLE = "osgates: with load options"
_CREDENTIAL = "osgates-tampered.cred"
_STUB = b"systemd-stub"
# Automatic boot assessment: tries left and done (systemd-boot(7)). Newer stubs look beside the name without them, and
# systemd-boot renames the image at each boot.
_COUNTED = re.compile(r"\+\d+(?:-\d+)?\.efi$", re.IGNORECASE)
# Of a section: there may be many images, and what is looked at is text.
_MOST_KEPT = 1 << 16
Parts = Mapping[str, bytes]


@dataclass(frozen=True)
class Image:
    """A unified kernel image, where it lies, and how its sections begin. `signatures`: PKCS #7, about `digest`."""

    partition: DiskPartition
    path: str
    parts: Parts
    signatures: tuple[bytes, ...] = ()
    digest: bytes = b""


def images_of(disk: Path) -> tuple[Image, ...]:
    """Those on the EFI system partition.

    :raise ImageError: the disk cannot be read.
    """
    found = []
    with open_disk(disk) as source:
        parts = {f"partition {part.number}": part for part in read_table(source).partitions}
        for file in files_of_disk(disk, PROGRAMS):
            data = file.read(source)
            sections = sections_of(data)
            if sections is not None:
                short = {name: content[:_MOST_KEPT] for name, content in sections.items()}
                found.append(Image(parts[file.place], file.path, short, signatures(data), digest(data)))
    return tuple(found)


def sections_of(data: bytes) -> Parts | None:
    """Of a unified kernel image; None: it is another program, or none."""
    try:
        parts = uki.sections(data)
    except ImageError:
        return None
    return parts if uki.is_uki(parts) else None


def signer(key: Path | None, certificate: Path | None) -> Signer:
    """The owner's, whose files the profile names.

    :raise ImageError: it names none: what is signed cannot be tried.
    :raise UsageError: they cannot be read, or do not belong together.
    """
    if key is None or certificate is None:
        raise ImageError(
            "its kernel and initrd are in a unified kernel image, which has a signature over them",
            remedy="name a key that the machine trusts, by uki_key and uki_certificate in [gate.tpm]",
        )
    try:
        return Signer.read(key.read_bytes(), certificate.read_bytes())
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"uki_key and uki_certificate of [gate.tpm], {key} and {certificate}: {said}",
            remedy="name an RSA key without a password and its certificate, both as PEM",
        ) from error


def signed_again(
    change: Callable[[Parts], Parts], owner: Signer, policy_keys: Iterable[bytes] = ()
) -> Callable[[bytes], bytes]:
    """What is done to a file: a unified kernel image gets other sections, and a signature over them; any other
    program stays what it is. It raises an ImageError where somebody else signed it: a firmware measures into PCR 7 by
    whose key it verified a program (TCG-PFP, PCR[7]), and that would be seen there, whatever is in the image.
    So it does where the owner's key signs policies for PCRs as well: `policy_keys` are those in the disk's tokens.
    """
    signs = any(_is_owners(key, owner) is not False for key in policy_keys)

    def done(old: bytes) -> bytes:
        parts = sections_of(old)
        if parts is None:
            return old
        if ".profile" in parts:
            raise ImageError("a unified kernel image with profiles: which of its sections are used is not known here")
        if signs or (".pcrsig" in parts and signs_pcrs(parts, owner)):
            raise ImageError(
                "policies for PCRs may be signed by uki_key: its owner signs them anew, too",
                remedy="this tamper makes no .pcrsig: sign policies by a key of their own, and have it in .pcrpkey",
            )
        blobs = signatures(old)
        # All of them: firmware measures the first by which it verifies a program.
        if not blobs or not all(owner.der in blob for blob in blobs):
            raise ImageError(
                "a unified kernel image that is not signed by uki_key alone: in an image by another key PCR 7 sees"
                " that",
                remedy="name the key that the machine's image is signed by",
            )
        return newly_signed(with_sections(old, change(parts)), owner)

    return done


def signs_pcrs(parts: Parts, owner: Signer) -> bool:
    """Whether the policies in .pcrsig are by the owner's key, or may be: it cannot be read, or names no other key."""
    if _is_owners(parts.get(".pcrpkey", b""), owner) is not False:
        return True
    try:
        entries = uki.signed_policies(parts[".pcrsig"])
    except ImageError:
        return True
    # Whose key a machine goes by is in its token; .pcrpkey says nothing of that.
    return any(uki.is_by(entry, _public(owner)) for entry in entries)


def _public(owner: Signer) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = owner.certificate.public_key()
    return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _is_owners(pem: bytes, owner: Signer) -> bool | None:
    """Whether a public key is the owner's; None: it cannot be read."""
    # Here, because they take long, and only unified kernel images need them.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        theirs = load_pem_public_key(pem.rstrip(b"\x00"))
    except (UnsupportedAlgorithm, ValueError):
        return None
    if not isinstance(theirs, rsa.RSAPublicKey):
        return False
    return bool(theirs.public_numbers() == owner.certificate.public_key().public_numbers())


def with_parameter(added: str) -> Callable[[Parts], Parts]:
    """One more parameter, behind those that there are."""

    def change(parts: Parts) -> Parts:
        if ".cmdline" not in parts:
            raise ImageError("a unified kernel image without .cmdline: it has no command line of its own")
        return {".cmdline": parts[".cmdline"].rstrip(b"\x00 \r\n") + b" " + added.encode("ascii")}

    return change


def with_members(members: Mapping[str, tuple[int, bytes]]) -> Callable[[Parts], Parts]:
    """More files, behind those in the initrd."""

    def change(parts: Parts) -> Parts:
        if ".initrd" not in parts:
            raise ImageError("a unified kernel image without .initrd")
        old = parts[".initrd"]
        return {".initrd": old + appended_archive(len(old), members)}

    return change


def credentials(images: tuple[Image, ...]) -> dict[int, dict[str, bytes]]:
    """A credential beside each image, by partition and path.

    :raise ImageError: there is no image, or one whose stub is not systemd's and would not look.
    """
    made: dict[int, dict[str, bytes]] = {}
    for image in images:
        if _STUB not in image.parts.get(".sdmagic", b""):
            raise ImageError(f"the stub of {image.path} is not systemd-stub: it takes no credentials")
        if _COUNTED.search(image.path):
            raise ImageError(
                f"the name of {image.path} counts boots: where its stub looks for credentials depends on its version",
                remedy="boot it once, so that systemd-bless-boot.service takes the counter away",
            )
        made.setdefault(image.partition.number, {})[f"{image.path}.extra.d/{_CREDENTIAL}"] = b"tampered\n"
    if not made:
        raise ImageError("the disk has no unified kernel image on an EFI system partition that can be read")
    return made


def options_for(images: tuple[Image, ...], added: str) -> tuple[Image, bytes]:
    """The image that is started, and a firmware's entry that hands it its own command line with `added` before.

    :raise ImageError: nobody knows which image it is, or it is not on a GPT.
    """
    if len(images) != 1:
        raise ImageError(
            f"the disk has {len(images)} unified kernel images, and nobody knows which one is started",
            remedy="this version hands load options to a single one: it cannot try this tamper on this disk",
        )
    (image,) = images
    part = image.partition
    if not part.unique:
        raise ImageError("the unified kernel image is on no partition of a GPT: this version makes no entry for it")
    if ".profile" in image.parts:
        raise ImageError("a unified kernel image with profiles: load options choose one, which is not tried here")
    own = image.parts.get(".cmdline", b"").rstrip(b"\x00 \r\n").decode("utf-8", "replace")
    # Before: the kernel's own log may cut the end off.
    options = f"{added} {own}".rstrip()
    return image, load_option(_TITLE, (part.number, part.start, part.size, part.unique), image.path, options)
