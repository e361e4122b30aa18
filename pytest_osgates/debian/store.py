"""Packages by digest. Mirrors drop old versions within days, so what was used once is kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from pytest_osgates.debian.model import LockedPackage
from pytest_osgates.paths import cache_dir, caching
from pytest_osgates.vm.errors import HostError

_BATCH = 16


class Downloader(Protocol):
    """Fetches packages to paths; what it could not fetch is not there afterwards. Returns what it said."""

    def download(self, items: Sequence[tuple[LockedPackage, Path]]) -> str: ...


def sha256_of(path: Path) -> str:
    """The digest of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class DebStore:
    """``<sha256>.deb`` files in one directory. Every read checks the digest; a damaged file is fetched anew."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_dir("debs")

    def path(self, package: LockedPackage) -> Path:
        """Where it is kept, if it is."""
        return self.root / f"{package.sha256}.deb"

    def holds(self, package: LockedPackage) -> bool:
        """Whether it is there, undamaged."""
        path = self.path(package)
        try:
            return path.stat().st_size == package.size and sha256_of(path) == package.sha256
        except OSError:  # absent, or not to be read: fetched
            return False

    def fetch(
        self,
        packages: Sequence[LockedPackage],
        downloader: Callable[[], Downloader],
        *,
        progress: Callable[[float], None] | None = None,
    ) -> list[Path]:
        """The files of `packages`, in their order. `downloader` is only asked for when one is missing, so a
        build from a lock whose packages are all here needs neither network nor mirror.

        :raise HostError: some cannot be had any more.
        """
        missing = [package for package in {p.sha256: p for p in packages}.values() if not self.holds(package)]
        if missing:
            self._fill(missing, downloader(), progress or (lambda _fraction: None))
        return [self.path(package) for package in packages]

    def _fill(self, missing: Sequence[LockedPackage], source: Downloader, progress: Callable[[float], None]) -> None:
        total = sum(package.size for package in missing)
        done = 0
        lost: list[LockedPackage] = []
        said = ""
        # Beside the store, for an atomic rename; private, so that two processes never share a partial file.
        with caching("packages"):
            scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=self.root))
        try:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                items = [(package, scratch / f"{package.sha256}.deb") for package in batch]
                said += source.download(items)
                for package, path in items:
                    if path.is_file() and sha256_of(path) == package.sha256:
                        with caching(package.key):
                            path.chmod(0o644)
                            os.replace(path, self.path(package))  # noqa: PTH105  (says what it is: atomic)
                    else:
                        lost.append(package)
                    done += package.size
                progress(done / total)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if lost:
            names = ", ".join(package.key for package in lost[:6]) + (" ..." if len(lost) > 6 else "")
            tail = "\n".join(f"  | {line}" for line in said.strip().splitlines()[-6:])
            raise HostError(
                f"{len(lost)} of {len(missing)} packages cannot be had with the locked digest: {names}"
                + (f"\n{tail}" if tail else ""),
                remedy="mirrors drop old versions: resolve a new lock, or set OSGATES_DEBIAN_MIRROR to one that "
                "keeps them",
            )
