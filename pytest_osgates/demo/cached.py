"""The demo ISO and its faults, made once and kept: for tests, and for whoever wants to see a gate fail."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pytest_osgates.debian.store import sha256_of
from pytest_osgates.demo.build import ProgressCallback, build_demo_iso
from pytest_osgates.demo.definition import DEFINITION, load_definition, tree_digest
from pytest_osgates.demo.fault import add_fault, load_fault
from pytest_osgates.demo.installer import installer_digest
from pytest_osgates.demo.lock import check_lock, read_lock, resolve_lock
from pytest_osgates.paths import alone, cache_dir, caching
from pytest_osgates.vm.errors import UsageError

# Longer than any build takes that is not stuck.
BUILD_SECONDS = 7200.0


def cached_demo_iso(
    progress: ProgressCallback,
    fault: str | Path | None = None,
    *,
    refresh: bool = False,
    definition: Path = DEFINITION,
) -> Path:
    """The demo ISO (with a planted fault), built if it is not in the cache.

    Packages stay those of the lock in the cache until `refresh` asks for what the mirror has now. Several processes
    may ask at once: one builds, the others wait and take its result. What is there is checked by digest before use.

    :raise UsageError: no such fault.
    :raise HostError: it has to be built and cannot be (a missing tool, no network, no right to).
    """
    where = cache_dir("demo")
    planted = load_fault(fault) if fault is not None else None
    lock = _current_lock(where, definition, progress, refresh=refresh)
    key = _digest(tree_digest(definition), installer_digest(), _packages_digest(lock))
    base = where / f"demo-{key}.iso"
    _once(base, lambda: build_demo_iso(base, lock=lock, progress=progress, definition=definition).sha256, progress)
    if planted is None:
        return base
    fault_key = _digest(key, sha256_of(base), tree_digest(planted.directory / "fault.toml"))
    image = where / f"fault-{planted.name}-{fault_key}.iso"
    _once(image, lambda: add_fault(base, image, planted, progress).sha256, progress)
    return image


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _packages_digest(lock: Path) -> str:
    """Of the packages alone: the host's tools are recorded in the lock too, and are not what it asks for."""
    return _digest(*(package.sha256 for package in read_lock(lock).everything))


def _current_lock(where: Path, definition: Path, progress: ProgressCallback, *, refresh: bool) -> Path:
    wanted = load_definition(definition)
    path = where / f"{wanted.name}.lock.json"
    with _alone(path, progress):
        if path.exists() and not refresh:
            try:
                check_lock(read_lock(path), wanted)
            except UsageError:  # of an older definition or version: not an error, but of no use
                path.unlink()
            else:
                return path
        progress("resolving packages", None)
        lock = resolve_lock(wanted)
        with caching(path.name):
            lock.write(path)
    return path


def _alone(path: Path, progress: ProgressCallback) -> AbstractContextManager[None]:
    """Hold the lock file of `path`."""
    lock = path.with_name(f".{path.name}.lock")
    waiting = f"waiting for another process that makes {path.name}"
    return alone(lock, BUILD_SECONDS, lambda: progress(waiting, None))


def _once(image: Path, make: Callable[[], str], progress: ProgressCallback) -> None:
    """Make `image` unless it is there, with the digest that was recorded when it was made."""
    record = image.with_name(f"{image.name}.sha256.json")
    with _alone(image, progress):
        if _is_good(image, record, progress):
            return
        with caching(image.name):
            image.unlink(missing_ok=True)
            record.unlink(missing_ok=True)
        digest = make()
        partial = record.with_name(f".{record.name}.{os.getpid()}")
        with caching(record.name):
            partial.write_text(json.dumps({"sha256": digest}), encoding="utf-8")
            partial.replace(record)


def _is_good(image: Path, record: Path, progress: ProgressCallback) -> bool:
    try:
        wanted = json.loads(record.read_text(encoding="utf-8"))["sha256"]
        progress(f"checking {image.name}", None)
        return bool(sha256_of(image) == wanted)
    except (OSError, ValueError, KeyError, TypeError):  # absent, cut short, or not ours: made anew
        return False
