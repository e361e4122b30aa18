"""The evidence store: what was observed is on disk, with its digests, before anyone judges it.

Layout of one run, ``<base>/<first 12 digits of the image's SHA-256>/<UTC>-<run id>/``:

    verdicts.json       every required gate; NOT PROVEN before the first boot, replaced after each gate
    manifest.json       every file with its SHA-256, versions, the run's options; replaced after each gate as well
    profile.toml        the distro profile as it was used
    observations/       GATE.json or GATE/ROW.json
    machines/NAME/      QEMU's arguments and log, consoles with times, screenshots, monitor events
    inputs/             what judging tools were given
    progress.jsonl      what was waited for, and for how long
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pytest_osgates.vm.errors import MORE_ROOM, HostError

_SAFE = re.compile(r"[^A-Za-z0-9._-]+")
MANIFEST = "manifest.json"
VERDICTS = "verdicts.json"
B = TypeVar("B", bound=BaseModel)


def new_run_id() -> str:
    """``<UTC to the second>-<8 random hexadecimal digits>``."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"


def safe_name(text: str) -> str:
    """`text` as one file name: nothing from a guest or a profile becomes a path by itself."""
    return _SAFE.sub("_", text)[:80].strip(".") or "_"


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that a reader sees the old content or the new, never a part, even after a power cut.

    :raise HostError: it cannot be written (disk full, read-only).
    """
    with prepared(path, data) as partial, _disk(path):
        partial.replace(path)


@contextlib.contextmanager
def prepared(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside `path` with `data` in it, safe on disk, to be renamed to it; removed if it was not.

    :raise HostError: it cannot be written (disk full, read-only).
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _disk(path), partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"evidence cannot be written to {path}: {error.strerror}", remedy=MORE_ROOM) from error


def dump(value: object) -> bytes:
    """JSON, indented, with a final newline."""
    return (json.dumps(value, indent=1, ensure_ascii=True, default=str) + "\n").encode()


@dataclass(frozen=True)
class Stored:
    """A file of the evidence: path relative to the run, SHA-256 of its bytes."""

    path: str
    sha256: str


class Evidence:
    """One run's directory. Several processes may write to it, each its own files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # What the manifest says of a file, by its path, for as long as it is the file that was read.
        self._digests: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}

    @classmethod
    def create(cls, base: Path, image_sha256: str, run_id: str) -> Evidence:
        """A new directory that no other run has.

        :raise HostError: it cannot be made.
        """
        root = base.absolute() / image_sha256[:12] / run_id
        try:
            root.mkdir(parents=True)
            for folder in ("observations", "machines", "inputs"):
                (root / folder).mkdir()
        except OSError as error:
            raise HostError(
                f"the evidence directory {root} cannot be made: {error.strerror}",
                remedy="choose a writable directory with --iso-evidence DIR",
            ) from error
        return cls(root)

    def machine(self, name: str) -> Path:
        """The records of one machine; a second machine of the same name gets a number."""
        for number in range(1, 1000):
            path = self.root / "machines" / (safe_name(name) + ("" if number == 1 else f".{number}"))
            try:
                path.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise HostError(f"{path} cannot be made: {error.strerror}", remedy=MORE_ROOM) from error
            return path
        raise HostError(f"a thousand machines called {name}")

    def write(self, relative: str, data: bytes) -> Stored:
        """Store one file.

        :raise HostError: it cannot be written.
        """
        path = self.root / relative
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"{path.parent} cannot be made: {error.strerror}", remedy=MORE_ROOM) from error
        write_atomic(path, data)
        return Stored(relative, hashlib.sha256(data).hexdigest())

    def store_observation(self, gate: str, case: str, observation: BaseModel) -> Stored:
        """Write an observation where re-judging finds it."""
        name = safe_name(gate) + (f"/{safe_name(case)}" if case else "")
        return self.write(f"observations/{name}.json", dump(observation.model_dump(mode="json")))

    def read_observation(self, relative: str, model: type[B]) -> B:
        """An observation back from disk.

        :raise HostError: it is not what was written.
        """
        path = self.root / relative
        try:
            return model.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise HostError(f"the observation {path} cannot be read back: {error}") from error

    def go_on(self, verdicts: bytes, facts: dict[str, Any]) -> None:
        """Write ``verdicts.json`` and ``manifest.json`` of a run that goes on: `facts`, the SHA-256 of every file
        that is finished, and under ``open`` the names of those that are still written to. So what it says stands
        even if nobody comes to write the last one. A file that did not change since the last time (inode, size,
        time) is not read again.

        :raise HostError: they cannot be written, or a file cannot be read.
        """
        self.write(VERDICTS, verdicts)
        self._write_manifest(facts, ended=False)

    def finish(self, verdicts: bytes, facts: dict[str, Any]) -> None:
        """Write the last ``manifest.json``, with the SHA-256 of every file, then the ``verdicts.json`` that it lists:
        where the one cannot be written, the other still says what it said before.

        :raise HostError: they cannot be written, or a file cannot be read.
        """
        path = self.root / VERDICTS
        with prepared(path, verdicts) as partial:
            self._write_manifest(facts, ended=True, verdicts=verdicts)
            with _disk(path):
                partial.replace(path)

    def _write_manifest(self, facts: dict[str, Any], *, ended: bool, verdicts: bytes = b"") -> None:
        listed: dict[str, dict[str, Any]] = {}
        still_open = []
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink() or not path.is_file() or path.name.startswith(".") or name == MANIFEST:
                continue
            if ended and name == VERDICTS:
                listed[name] = {"sha256": hashlib.sha256(verdicts).hexdigest(), "size": len(verdicts)}
                continue
            if not ended and is_open(name):
                still_open.append(name)
                continue
            try:
                listed[name] = self._entry(path, fresh=ended)
            except OSError as error:
                if not ended and isinstance(error, FileNotFoundError):
                    # Another process has just removed it.
                    continue
                raise HostError(
                    f"the evidence {path} cannot be read back: {error.strerror}", remedy="look at the disk it is on"
                ) from error
        notes = {"ended": ended} if ended else {"ended": ended, "open": still_open}
        write_atomic(self.root / MANIFEST, dump({"schema": 1, **notes, **facts, "files": listed}))

    def _entry(self, path: Path, *, fresh: bool) -> dict[str, Any]:
        status = path.stat()
        key = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._digests.get(path)
        if known is not None and known[0] == key and not fresh:
            return known[1]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        entry = {"sha256": digest, "size": size}
        self._digests[path] = (key, entry)
        return entry


def is_open(name: str) -> bool:
    """Whether a file of the evidence is written to as long as the run goes on."""
    if name.startswith("machines/"):
        return name.endswith((".log", ".jsonl", "/qemu.json"))
    return name in {VERDICTS, "selected.json", "groups.json", "progress.jsonl"}
