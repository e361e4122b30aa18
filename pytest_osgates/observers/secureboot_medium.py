"""Programs that start a machine, on its ISO or disk: found, spoilt in an overlay, the rest untouched."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.checks.secureboot_model import FileSeen, PcrSignature, UkiSeen, Way
from pytest_osgates.image import authenticode, uki
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.image.medium import MediumFile, files_of_disk, files_of_iso
from pytest_osgates.image.source import Source, open_source
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.host import create_overlay
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.text import one_line, printable
from pytest_osgates.vm.workdir import temporary

_SECONDS = 300.0
_QEMU_IO = "apt-get install qemu-utils (Fedora: dnf install qemu-img)"
# What a unified kernel image can lose a byte of without being another system.
_HARMLESS = (".osrel", ".uname")
_MOST_CMDLINE = 4096
Patch = tuple[int, bytes]


@dataclass(frozen=True)
class Medium:
    """What the machine is started from, and whether that is an ISO. It is never written."""

    path: Path
    iso: bool

    def files(self, wanted: re.Pattern[str]) -> tuple[MediumFile, ...]:
        """:raise ImageError: it cannot be read."""
        return (files_of_iso if self.iso else files_of_disk)(self.path, wanted)

    @contextmanager
    def open(self) -> Iterator[Source]:
        """:raise ImageError: it cannot be read."""
        if self.iso:
            with open_source(self.path) as source:
                yield source
        else:
            with open_disk(self.path) as disk:
                yield disk


@dataclass(frozen=True)
class Spoilt:
    """The programs of one link, changed, and what to write where on a copy; without patches: what they were."""

    files: tuple[FileSeen, ...]
    patches: tuple[Patch, ...]

    @property
    def bare(self) -> bool:
        """Whether one of them was shipped without a signature: there is nothing to spoil."""
        return any(not file.signatures for file in self.files)

    @property
    def digests(self) -> tuple[str, ...]:
        """What db and dbx would hold of them as they are now."""
        return tuple(sorted({file.digest_after for file in self.files}))

    def write(self, medium: Medium, overlay: Path, scratch: Path) -> None:
        """Make `overlay`, with the changes.

        :raise HostError: a tool is missing or fails, or there is no room.
        """
        create_overlay(medium.path, overlay)
        if not self.patches:
            return
        which("qemu-io", remedy=_QEMU_IO)
        for number, (start, data) in enumerate(self.patches):
            with temporary("a changed piece of a medium"):
                (scratch / "piece").write_bytes(data)
            command = f"write -q -s piece {start} {len(data)}"
            run(["qemu-io", "-f", "qcow2", "-c", command, str(overlay.resolve())], timeout=_SECONDS, cwd=scratch)
            if number == 0:
                _check(overlay, start, data, scratch)


def _check(overlay: Path, start: int, data: bytes, scratch: Path) -> None:
    """That what was written is there. :raise ImageError: it is not."""
    (first, *_) = data
    argv = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -q -P {first} {start} 1", str(overlay.resolve())]
    done = run(argv, timeout=_SECONDS, cwd=scratch)
    if b"verification failed" in done.stdout + done.stderr:
        raise ImageError(f"{overlay.name} did not take a change at {start}", remedy=_QEMU_IO)


def spoil(medium: Medium, wanted: re.Pattern[str], way: Way, signer: Callable[[], authenticode.Signer]) -> Spoilt:
    """Do `way` to every program whose path fits `wanted`; other files are left out.

    :raise ImageError: the medium cannot be read, or a program cannot be changed where it lies.
    """
    seen: list[FileSeen] = []
    patches: list[Patch] = []
    with medium.open() as source:
        for file in medium.files(wanted):
            before = file.read(source)
            try:
                digest_before, count = authenticode.digest(before), len(authenticode.signatures(before))
            except ImageError:
                # No program of a firmware's: it is not started by this chain.
                if before[:2] == b"MZ":
                    raise
                continue
            after = _done(before, way, signer) if count else before
            seen.append(
                FileSeen(
                    name=one_line(file.name, 300),
                    size=file.size,
                    signatures=count,
                    before=hashlib.sha256(before).hexdigest(),
                    after=hashlib.sha256(after).hexdigest(),
                    digest_before=digest_before.hex(),
                    digest_after=authenticode.digest(after).hex(),
                )
            )
            patches += file.patches(before, after)
    return Spoilt(tuple(seen), tuple(_narrowed(medium, patches)))


def _done(data: bytes, way: Way, signer: Callable[[], authenticode.Signer]) -> bytes:
    """:raise ImageError: it cannot be done where the program lies."""
    match way:
        case Way.UNSIGNED:
            return authenticode.unsigned(data)
        case Way.WRONG:
            return authenticode.signed(data, signer())
        case Way.CHANGED:
            return changed(data)
        case Way.FORBIDDEN:
            return data


def changed(data: bytes) -> bytes:
    """A unified kernel image with one byte of os-release, or of the kernel's name, another one.

    :raise ImageError: it has neither.
    """
    parts = uki.sections(data)
    for name in _HARMLESS:
        text = parts.get(name, b"").rstrip(b"\x00")
        at = data.find(text) if len(text) > 4 else -1
        if at >= 0:
            made = bytearray(data)
            # Its last character: a line's end, or part of a version.
            made[at + len(text) - 1] ^= 0x01
            return bytes(made)
    raise ImageError(f"a unified kernel image without {' and '.join(_HARMLESS)}")


def _narrowed(medium: Medium, patches: Sequence[Patch]) -> Iterator[Patch]:
    """Of each run only the blocks that differ: a kernel's last bytes are less than the kernel."""
    block = 1 << 16
    with medium.open() as source:
        for start, data in patches:
            for at in range(0, len(data), block):
                piece = data[at : at + block]
                if source.read_at(start + at, len(piece)) != piece:
                    yield start + at, piece


def read_ukis(medium: Medium, wanted: re.Pattern[str]) -> tuple[UkiSeen, ...]:
    """The unified kernel images among the programs that fit `wanted`.

    :raise ImageError: the medium cannot be read.
    """
    found = []
    with medium.open() as source:
        for file in medium.files(wanted):
            name = one_line(file.name, 300)
            try:
                parts = uki.sections(file.read(source))
                if uki.is_uki(parts):
                    found.append(_uki(name, parts))
            except ImageError as error:
                found.append(UkiSeen(name=name, error=error.what))
    return tuple(found)


def _uki(name: str, parts: dict[str, bytes]) -> UkiSeen:
    """:raise ImageError: its .pcrsig cannot be read."""
    entries = uki.signed_policies(parts[".pcrsig"]) if ".pcrsig" in parts else ()
    known = {bank: uki.policies(parts, bank) for bank in {entry.bank for entry in entries}}
    signed = []
    for entry in entries:
        phase = uki.phase_of(known[entry.bank], entry)
        signed.append(
            PcrSignature(
                pcrs=entry.pcrs,
                phase=phase or "",
                policy_fits=phase is not None,
                signature_fits=uki.is_by(entry, parts.get(".pcrpkey", b"")),
            )
        )
    return UkiSeen(
        name=name,
        sections={one_line(label, 40): hashlib.sha256(part).hexdigest() for label, part in parts.items()},
        cmdline=printable(parts.get(".cmdline", b"").rstrip(b"\x00").decode("utf-8", "replace"), _MOST_CMDLINE),
        pcr11=uki.pcr11(parts).hex(),
        signed=tuple(signed),
    )
