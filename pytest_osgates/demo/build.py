"""From a definition and a lock to an ISO, the same bytes each time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_osgates.debian import DebStore
from pytest_osgates.debian.store import sha256_of
from pytest_osgates.demo.definition import DEFINITION, load_definition
from pytest_osgates.demo.installer import place_installer
from pytest_osgates.demo.lock import Lock, apt_for, check_lock, read_lock, resolve_lock
from pytest_osgates.demo.media import (
    make_efi_image,
    place_configs,
    place_loaders,
    root_files,
    unpack_media,
    write_iso,
)
from pytest_osgates.demo.root import build_root, squash
from pytest_osgates.demo.tools import check_can_bootstrap, need, versions
from pytest_osgates.vm.errors import UsageError

TOOLS = ("mmdebstrap", "mksquashfs", "xorriso", "dpkg-deb", "mkfs.fat", "mcopy")
# What the steps took on two slow cores, for estimates only.
_BOOTSTRAP_ESTIMATE = 90.0
_SQUASHFS_ESTIMATE = 60.0
_INSTALLER_ESTIMATE = 3.0
_ISO_ESTIMATE = 5.0


class ProgressCallback(Protocol):
    """Called with the stage in words and how far it is (0 to 1; None: unknown)."""

    def __call__(self, stage: str, fraction: float | None) -> None: ...


@dataclass(frozen=True)
class BuiltIso:
    """A finished ISO. `notes` say why its bytes may differ from those of the build that made the lock."""

    path: Path
    sha256: str
    size: int
    lock: Lock
    lock_path: Path
    notes: tuple[str, ...] = ()


def lock_path_of(iso: Path) -> Path:
    return iso.with_name(f"{iso.name}.lock.json")


def estimated(progress: ProgressCallback, stage: str, seconds: float) -> Callable[[float], None]:
    """A poll callback that tells how far a step of about `seconds` is; never quite at its end."""
    return lambda elapsed: progress(stage, min(0.99, elapsed / seconds))


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """A private directory on the file system of `output`, gone afterwards whatever happens.

    :raise UsageError: the directory of `output` is not there.
    """
    if not output.parent.is_dir():
        raise UsageError(f"the directory {output.parent} is not there")
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent.resolve()))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def build_demo_iso(
    output: Path,
    *,
    lock: Path | None = None,
    progress: ProgressCallback,
    definition: Path = DEFINITION,
    store: DebStore | None = None,
) -> BuiltIso:
    """Build the demo ISO at `output` and write its lock beside it, as ``<output>.lock.json``.

    With `lock`, from exactly its packages: those that are cached need no network. Without, from what the mirror
    has now.

    :raise UsageError: a wrong definition or lock.
    :raise HostError: a missing tool, no network, or a user who cannot build.
    """
    output = output.absolute()
    wanted = load_definition(definition)
    need(*TOOLS)
    check_can_bootstrap()
    debs = store or DebStore()
    tools = versions(*TOOLS)
    if lock is None:
        progress("resolving packages", None)
        chosen = resolve_lock(wanted)
    else:
        chosen = read_lock(lock)
        check_lock(chosen, wanted)
    notes = tool_changes(chosen.tools, tools) if lock is not None else ()
    progress("fetching packages", 0.0)
    debs.fetch(chosen.everything, lambda: apt_for(wanted), progress=lambda done: progress("fetching packages", done))
    with scratch_beside(output) as scratch:
        medium = scratch / "medium"
        (medium / "live").mkdir(parents=True)
        media = {package.name: package for package in chosen.media}
        unpacked = unpack_media(wanted, media, debs, scratch)
        root = build_root(
            wanted,
            definition.parent / "tree",
            root_files(wanted, unpacked),
            chosen.packages,
            debs,
            scratch,
            estimated(progress, "installing packages", _BOOTSTRAP_ESTIMATE),
        )
        squash(
            root.tar,
            medium / "live/filesystem.squashfs",
            wanted,
            estimated(progress, "compressing the root file system", _SQUASHFS_ESTIMATE),
        )
        shutil.copyfile(root.kernel, medium / wanted.boot.kernel)
        shutil.copyfile(root.initrd, medium / wanted.boot.initrd)
        boot_sector = place_loaders(wanted, unpacked, medium)
        place_configs(wanted, medium)
        place_installer(
            wanted, media, debs, scratch, medium, estimated(progress, "packing the installer", _INSTALLER_ESTIMATE)
        )
        make_efi_image(medium, wanted.source_date_epoch)
        iso = scratch / "image.iso"
        write_iso(wanted, medium, boot_sector, iso, estimated(progress, "writing the ISO", _ISO_ESTIMATE))
        iso.chmod(0o644)
        digest, size = sha256_of(iso), iso.stat().st_size
        final = chosen.model_copy(update={"tools": tools})
        # First the lock: an ISO without its lock could not be built again.
        final.write(lock_path_of(output))
        iso.replace(output)
    progress("done", 1.0)
    return BuiltIso(output, digest, size, final, lock_path_of(output), notes)


def tool_changes(then: dict[str, str], now: dict[str, str]) -> tuple[str, ...]:
    """Which programs have another version than those of the lock."""
    return tuple(
        f"{name} is {now[name]} here and was {then[name]} when the lock was made: bytes may differ"
        for name in sorted(now)
        if name in then and then[name] != now[name]
    )
