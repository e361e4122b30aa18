"""An installed disk as its file shows it: partitions, LUKS headers, and the files that boot. Nothing is booted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.checks.luks_model import (
    BootFilesSeen,
    CrypttabSeen,
    DiskSeen,
    FileSeen,
    GapSeen,
    Guess,
    KdfSeen,
    KeyslotSeen,
    LuksObservation,
    LuksPolicy,
    PartitionSeen,
    SegmentSeen,
    TokenSeen,
    VolumeSeen,
)
from pytest_osgates.checks.luks_partitions import words_of_keys
from pytest_osgates.checks.luks_slots import RANDOM
from pytest_osgates.checks.luks_system import signs_of_system
from pytest_osgates.image.disk import contents, luks
from pytest_osgates.image.disk.boot_files import BootFiles, read_boot_files
from pytest_osgates.image.disk.boot_gap import is_core_image
from pytest_osgates.image.disk.ext4 import Ext4
from pytest_osgates.image.disk.partitions import DiskPartition, Table, read_table
from pytest_osgates.image.disk.source import Disk, SourceContent, first_byte, open_disk
from pytest_osgates.observers.divergence import text_of
from pytest_osgates.vm import workdir
from pytest_osgates.vm.errors import HostError, ImageError, OsgatesError
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.text import one_line

TOOL = "cryptsetup"
TRY_SECONDS = 120.0
# cryptsetup(8), RETURN CODES.
_NO_SUCH_KEY = 2
_PIECE = 1 << 20
_VERSION = re.compile(r"cryptsetup ([0-9][0-9.]*)")
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Wanted:
    """What to try and where to look: passphrases for every keyslot, and types of ext4 partitions that may hold
    kernels and initrds. FAT is always looked into; an ext4 that nobody speaks of may be a whole system. `named`:
    types of ext4 partitions that are accepted and need not be looked into: only names of files are read there."""

    refused: tuple[str, ...] = ("",)
    ext4: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()

    @classmethod
    def of(cls, policy: LuksPolicy) -> Wanted:
        """By what the profile says."""
        accepted = [entry for entry in policy.accept_plaintext if entry.holds == contents.EXT]
        boots = frozenset(entry.type for entry in accepted if entry.boots)
        return cls(policy.refused, boots, frozenset(entry.type for entry in accepted) - boots)

    def looks_into(self, kind: str) -> bool:
        """Whether an ext4 partition of this type is looked into."""
        return kind in self.ext4


def observe(path: Path, sha256: str, wanted: Wanted, progress: Progress, patience: float = 1.0) -> LuksObservation:
    """Everything that the gate `luks` judges.

    :raise UsageError: there is nothing at `path`, or it may not be read.
    :raise ImageError: the image or its partition table cannot be read.
    :raise HostError: no room for temporary files.
    """
    with open_disk(path) as disk:
        table = read_table(disk)
        parts = []
        for number, partition in enumerate(table.partitions):
            progress(f"partition {partition.number}", number / len(table.partitions))
            parts.append(_partition(disk, partition, wanted, patience))
        return LuksObservation(
            disk=DiskSeen(
                path=text_of(str(path)),
                format=disk.format,
                size=path.stat().st_size,
                sha256=sha256,
                capacity=disk.size,
            ),
            table=table.kind,
            partitions=tuple(parts),
            gaps=tuple(_gaps(disk, table)),
            tool=_tool_version(),
        )


def _gaps(disk: Disk, table: Table) -> Iterator[GapSeen]:
    for start, size in table.gaps:
        holds = contents.signatures(SourceContent(disk, start, size))
        first = first_byte(disk, start, size)
        grub = table.kind == "dos" and first is not None and is_core_image(disk, start, size)
        yield GapSeen(start=start, size=size, first=first, holds=holds, grub=grub)


def _partition(disk: Disk, part: DiskPartition, wanted: Wanted, patience: float) -> PartitionSeen:
    content = SourceContent(disk, part.start, part.size)
    found = contents.identify(disk, content, part.start, part.size)
    seen = PartitionSeen(
        number=part.number,
        type=part.type,
        name=one_line(part.name, 72),
        start=part.start,
        size=part.size,
        holds=found.kind,
        also=found.also,
        entropy=found.entropy,
    )
    try:
        if contents.LUKS in (found.kind, *found.also):
            return seen.model_copy(update={"volume": _volume(disk, part, content, wanted.refused, patience)})
        if contents.FAT in (found.kind, *found.also) or (found.kind == contents.EXT and wanted.looks_into(part.type)):
            return seen.model_copy(update={"boot": _boot(read_boot_files(content, words_of_keys))})
        if found.kind == contents.EXT and part.type in wanted.named:
            names = (file.path for file in Ext4(content).files())
            return seen.model_copy(update={"system": signs_of_system(part.type, names)})
    except ImageError as error:
        return seen.model_copy(update={"error": one_line(error.what, 400)})
    return seen


def _boot(found: BootFiles) -> BootFilesSeen:
    return BootFilesSeen(
        files=tuple(
            FileSeen(
                container=one_line(file.container, 400),
                path=file.path,
                size=file.size,
                random=file.random,
                named=file.named,
            )
            for file in found.files
        ),
        crypttab=tuple(CrypttabSeen.model_validate(line, from_attributes=True) for line in found.crypttab),
        words=tuple(found.words),
        initrds=tuple(one_line(name, 400) for name in found.initrds),
        unread=tuple((name, one_line(why, 400)) for name, why in found.unread),
        free=found.free,
    )


def _volume(
    disk: Disk, part: DiskPartition, content: SourceContent, refused: tuple[str, ...], patience: float
) -> VolumeSeen:
    header = luks.read_luks(content)
    segments = []
    for segment in header.segments:
        at = part.start + segment.start
        lowest, blocks = contents.sampled_entropy(disk, at, segment.size)
        segments.append(
            SegmentSeen(
                name=segment.name,
                type=segment.type,
                start=segment.start,
                size=segment.size,
                cipher=segment.cipher,
                integrity=segment.integrity,
                flags=segment.flags,
                in_use=segment.in_use,
                holds=contents.signatures(SourceContent(disk, at, segment.size)),
                blocks=blocks,
                entropy=lowest,
            )
        )
    spare = [first_byte(disk, part.start + start, size) for start, size in header.spare]
    # cryptsetup fills it with random bytes, and wipes with them the keyslots that it removes.
    start, size = header.area
    lowest, blocks = contents.sampled_entropy(disk, part.start + start, size)
    if blocks and lowest < RANDOM:
        spare.append(part.start + start)
    return VolumeSeen(
        version=header.version,
        uuid=header.uuid,
        sequence=header.sequence,
        cipher=header.cipher,
        key_size=header.key_size,
        keyslots=tuple(_keyslot(disk, part.start, slot) for slot in header.keyslots),
        tokens=tuple(TokenSeen.model_validate(token, from_attributes=True) for token in header.tokens),
        segments=tuple(segments),
        requirements=header.requirements,
        flags=header.flags,
        faults=header.faults,
        spare=tuple(at - part.start for at in spare if at is not None),
        guesses=_guesses(header, content, refused, patience),
    )


def _keyslot(disk: Disk, start: int, slot: luks.Keyslot) -> KeyslotSeen:
    return KeyslotSeen(
        number=slot.number,
        type=slot.type,
        key_size=slot.key_size,
        cipher=slot.cipher,
        cipher_bits=slot.cipher_bits,
        kdf=None if slot.kdf is None else KdfSeen.model_validate(slot.kdf, from_attributes=True),
        volume=slot.volume,
        tried=slot.tried,
        wiped=first_byte(disk, start + slot.start, slot.length) is None,
    )


def _guesses(
    header: luks.Header, content: SourceContent, refused: tuple[str, ...], patience: float
) -> tuple[Guess, ...]:
    """Each passphrase on each keyslot, by cryptsetup(8) on a copy of the metadata: nothing is opened by it."""
    # One that is bound to no segment, too: the key in it may be the volume's.
    slots = [slot for slot in header.keyslots if slot.type == "luks2"]
    if header.version != 2 or not slots or not refused:
        return ()
    try:
        with _copy(header, content) as path:
            return tuple(_try(path, slot, phrase, patience) for slot in slots for phrase in refused)
    except OsgatesError as error:
        return tuple(_untried(slot.number, phrase, str(error)) for slot in slots for phrase in refused)


@contextmanager
def _copy(header: luks.Header, content: SourceContent) -> Iterator[Path]:
    """The metadata as a sparse file of the partition's size.

    :raise HostError: no room for it.
    """
    directory = workdir.make("luks")
    try:
        path = directory / "header"
        # A segment in use never begins before the metadata end.
        end = min(luks.MOST, *(segment.start for segment in header.segments if segment.in_use))
        with workdir.temporary("a copy of the LUKS header"), path.open("wb") as file:
            for offset in range(0, end, _PIECE):
                file.write(content.read(offset, min(_PIECE, end - offset)))
            file.truncate(content.size)
        yield path
    finally:
        workdir.remove(directory)


def _try(path: Path, keyslot: luks.Keyslot, phrase: str, patience: float) -> Guess:
    slot = keyslot.number
    # Not by standard input: cryptsetup does not take nothing from there.
    key = path.with_name("guess")
    with workdir.temporary("a passphrase that is tried"):
        key.write_bytes(phrase.encode())
    argv = [
        *(TOOL, "open", "--type", "luks2", "--test-passphrase", "--disable-external-tokens", "--batch-mode"),
        *([] if keyslot.volume else ["--unbound"]),
        *("--key-slot", str(slot), "--key-file", str(key), str(path)),
    ]
    try:
        done = run(
            argv, timeout=TRY_SECONDS * patience, check=False, max_output=1 << 16,
            remedy="apt-get install cryptsetup-bin",
        )  # fmt: skip
    except HostError as error:
        return _untried(slot, phrase, str(error))
    if done.returncode == 0:
        return Guess(keyslot=slot, passphrase=phrase, opened=True)
    if done.returncode == _NO_SUCH_KEY:
        return Guess(keyslot=slot, passphrase=phrase, opened=False)
    said = one_line(done.stderr.decode("utf-8", "replace"), 200)
    return _untried(slot, phrase, f"{TOOL} ended with status {done.returncode}: {said}")


def _untried(slot: int, phrase: str, why: str) -> Guess:
    return Guess(keyslot=slot, passphrase=phrase, opened=None, error=one_line(why, 400))


def _tool_version() -> str:
    """What tried the passphrases; empty if it is not installed."""
    try:
        which(TOOL)
        said = run([TOOL, "--version"], timeout=30, check=False).stdout.decode("utf-8", "replace")
    except OsgatesError:
        return ""
    match = _VERSION.search(said)
    return f"{TOOL} {match[1]}" if match else TOOL
