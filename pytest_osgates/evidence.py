"""The evidence store: what was observed is on disk, with its digests, before anyone judges it.

Layout of one run, ``<base>/<first 12 digits of the image's SHA-256>/<UTC>-<run id>/``:

    verdicts.json       every required gate; NOT PROVEN before the first boot, replaced after each gate
    manifest.json       every file with its SHA-256, versions, the run's options
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pytest_osgates.vm.errors import HostError

_SAFE = re.compile(r"[^A-Za-z0-9._-]+")
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
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise HostError(
            f"evidence cannot be written to {path}: {error.strerror}",
            remedy="free some space, or choose another directory with --iso-evidence",
        ) from error


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
                raise HostError(f"{path} cannot be made: {error.strerror}", remedy="free some space") from error
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
            raise HostError(f"{path.parent} cannot be made: {error.strerror}", remedy="free some space") from error
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

    def finish(self, facts: dict[str, Any]) -> None:
        """Write ``manifest.json``: `facts` and the SHA-256 of every other file.

        :raise HostError: it cannot be written.
        """
        listed = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_symlink() or not path.is_file() or path.name.startswith(".") or path.name == "manifest.json":
                continue
            with path.open("rb") as file:
                listed[str(path.relative_to(self.root))] = {
                    "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                    "size": path.stat().st_size,
                }
        write_atomic(self.root / "manifest.json", dump({"schema": 1, **facts, "files": listed}))
