"""One run: what was asked for, checked, and everything that fixtures and reports share."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_osgates import _version, tools
from pytest_osgates.evidence import Evidence, dump, new_run_id
from pytest_osgates.image.digest import Identity, image_digest, image_identity
from pytest_osgates.image.launchable import check_launchable
from pytest_osgates.image.rootfs import open_root, os_release
from pytest_osgates.image.source import KINDS
from pytest_osgates.paths import cache_dir
from pytest_osgates.profiles import loader
from pytest_osgates.profiles.schema import Profile
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.errors import HostError, ImageError, OsgatesError, UsageError
from pytest_osgates.vm.host import Host


@dataclass(frozen=True)
class Request:
    """The options of a run, paths made absolute."""

    iso: Path
    distro: str
    disk: Path | None
    evidence: Path
    accel: str
    tools: Mapping[str, str]
    rebuild: Path | None = None
    build: str = ""
    build_output: str = ""
    sums: Path | None = None
    idle_s: float | None = None
    time: str = "real"


@dataclass(frozen=True)
class DiskFile:
    """The file of ``--iso-disk``, by its digest; `size` in bytes."""

    path: Path
    sha256: str
    size: int
    identity: Identity

    @classmethod
    def read(cls, path: Path) -> DiskFile:
        """:raise OsgatesError: it cannot be read, or changes meanwhile.
        :raise OSError: it is no longer there.
        """
        known = image_identity(path)
        return cls(path, image_digest(path), path.stat().st_size, known)

    def facts(self) -> dict[str, Any]:
        """As it stands in the evidence."""
        return {"path": str(self.path), "sha256": self.sha256, "size": self.size}


def existing_file(text: str, what: str) -> Path:
    """The absolute path of a regular file.

    :raise UsageError: it is not there, or is something else.
    """
    path = Path(text)
    remedy = "give the path of an ISO image" if what == "--iso" else "give the path of a file"
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.resolve(strict=True)
    except FileNotFoundError as error:
        try:
            target = f": it is a link to {str(path.readlink())!r}, which is not there" if path.is_symlink() else ""
        except OSError:
            target = ""
        raise UsageError(f"{what} {text!r} does not exist{target}", remedy=remedy) from error
    except (OSError, RuntimeError, ValueError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UsageError(
            f"{what} {text!r} cannot be looked at: {why}", remedy="check the path and its permissions"
        ) from error
    how, instead = KINDS.get(stat.S_IFMT(mode), ("no regular file", remedy))
    raise UsageError(f"{what} {text!r} is {how}", remedy=instead if what == "--iso" else remedy)


def parse_tools(entries: list[str]) -> dict[str, str]:
    """``NAME=PATH`` entries.

    :raise UsageError: one has another form.
    """
    tools = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--iso-tool {entry!r} is not NAME=PATH", remedy="osgates doctor lists the names")
        tools[name.strip()] = str(existing_file(path.strip(), f"--iso-tool {name}"))
    return tools


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``30m`` or ``2h``.

    :raise UsageError: it is none, or not between 5 seconds and 30 days.
    """
    match = re.fullmatch(r"(\d{1,7})([smh]?)", text.strip())
    seconds = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0
    if not 5 <= seconds <= 30 * 86400:
        raise UsageError(f"--iso-idle {text!r} is no time between 5 s and 30 days", remedy="write 90s, 30m or 2h")
    return float(seconds)


class Run:
    """A run of the gates, in the controller or in a worker."""

    def __init__(
        self, request: Request, profile: Profile, image_sha256: str, size: int, evidence: Evidence, run_id: str
    ) -> None:
        self.request = request
        self.profile = profile
        self.image_sha256 = image_sha256
        self.size = size
        self.evidence = evidence
        self.run_id = run_id
        self.image_identity: Identity | None = None
        self.disk: DiskFile | None = None
        self.progress = ProgressLog(evidence.root / "progress.jsonl")

    @classmethod
    def begin(cls, request: Request) -> Run:
        """Check everything that can be checked without booting, and make the evidence directory.

        :raise OsgatesError: with the remedy; nothing was written then.
        """
        try:
            # Before its digest, which takes a while: a file that is no bootable ISO is said to be none at once.
            check_launchable(request.iso)
            identity = image_identity(request.iso)
            sha256 = image_digest(request.iso)
            profile = cls._profile(request)
            raw = Path(profile.source).read_bytes()
            if hashlib.sha256(raw).hexdigest() != profile.sha256:
                raise UsageError(f"{profile.source} changed while the run began", remedy="run again")
            run_id = new_run_id()
            size = request.iso.stat().st_size
            disk = None if request.disk is None else DiskFile.read(request.disk)
        except OSError as error:
            raise ImageError(
                f"{error.filename or request.iso} cannot be read: {error.strerror}",
                remedy="check the path and its permissions",
            ) from error
        # Asked before anything is written, so that a machine that cannot boot says so at once.
        host = vm_host.select(request.accel, _probe_cache())
        host = replace(host, pace=vm_host.recent_pace(host.qemu, host.accelerator, _probe_cache()))
        tools.check_names(request.tools)
        evidence = Evidence.create(request.evidence, sha256, run_id)
        run = cls(request, profile, sha256, size, evidence, run_id)
        run.host = host
        run.image_identity = identity
        run.disk = disk
        evidence.write("profile.toml", raw)
        return run

    def image_changed(self) -> str:
        """How the ISO is no longer the file whose digest stands in the evidence; empty: it is that file."""
        return _changed(self.request.iso, self.image_identity)

    def disk_changed(self) -> str:
        """The same of the disk; empty as well if there is none."""
        return "" if self.disk is None else _changed(self.disk.path, self.disk.identity)

    @staticmethod
    def _profile(request: Request) -> Profile:
        if request.distro:
            return loader.load(loader.find(request.distro))
        try:
            with open_root(request.iso) as view:
                release = os_release(view)
        except ImageError as error:
            raise UsageError(
                f"the distribution cannot be told from {request.iso.name}: {error.what}",
                remedy=error.remedy or "name it: --iso-distro NAME|FILE.toml",
            ) from error
        return loader.load(loader.detect(release))

    @cached_property
    def host(self) -> Host:
        """What machines are made with."""
        return vm_host.select(self.request.accel, _probe_cache())

    def expected_cases(self) -> dict[str, tuple[str, ...]]:
        """The rows of every gate of the profile; a gate that this version lacks has one."""
        return {name: self.cases(name) for name in self.profile.gates}

    def cases(self, gate: str) -> tuple[str, ...]:
        """The rows of one gate."""
        section = self.profile.gates.get(gate)
        return ("",) if section is None else section.rows

    def facts(self, ledger_json: Mapping[str, Any], launch: str, selected: list[str], mode: str) -> dict[str, Any]:
        """The content of ``verdicts.json``."""
        return {
            "schema": 1,
            "run": self.run_id,
            "image": {"path": str(self.request.iso), "sha256": self.image_sha256, "size": self.size},
            **self._disk_facts(),
            "distro": {"name": self.profile.name, "sha256": self.profile.sha256},
            "mode": mode,
            "accelerator": str(self.host.accelerator.kind),
            "selected": selected,
            "launch": launch,
            "gates": {name: {**entry, **self._from(name)} for name, entry in ledger_json.items()},
        }

    def _disk_facts(self) -> dict[str, Any]:
        return {} if self.disk is None else {"disk": self.disk.facts()}

    def _from(self, gate: str) -> dict[str, Any]:
        """Where a gate came from that is not built in."""
        outside = self.profile.gates[gate].outside
        return {} if outside is None else {"from": outside.origin.model_dump(mode="json")}

    def _outside(self) -> dict[str, str]:
        """The digest of each gate that is not built in, its helpers with it."""
        return {
            name: hashlib.sha256(section.outside.origin.model_dump_json().encode()).hexdigest()
            for name, section in self.profile.gates.items()
            if section.outside is not None
        }

    def manifest_facts(self, interrupted: str) -> dict[str, Any]:
        """What ``manifest.json`` says besides the files."""
        return {
            "run": self.run_id,
            "image": {"sha256": self.image_sha256, "size": self.size},
            **self._disk_facts(),
            "versions": {
                "pytest-osgates": _version.VERSION,
                "qemu": self.host.qemu.banner,
                "accelerator": f"{self.host.accelerator.kind} -cpu {self.host.accelerator.cpu}",
                "kvm": self.host.kvm.reason,
            },
            "pace": round(self.host.pace, 2),
            "machines": {
                path.parent.name: _arguments(path)
                for path in sorted((self.evidence.root / "machines").glob("*/qemu.json"))
            },
            "gates_from": [
                {"gate": name, **found["from"]} for name in self.profile.gates if (found := self._from(name))
            ],
            "interrupted": interrupted,
        }

    def write_selected(self, names: list[str]) -> None:
        """Workers tell the controller which gates have tests to run."""
        self.evidence.write("selected.json", dump(sorted(names)))

    def read_selected(self) -> list[str]:
        """What a worker told; empty before."""
        path = self.evidence.root / "selected.json"
        try:
            names = json.loads(path.read_text())
        except (OSError, ValueError):
            return []
        return [str(name) for name in names] if isinstance(names, list) else []

    def write_groups(self, groups: Mapping[str, str]) -> None:
        """Workers tell the controller which tests want one machine: a group's name by a test's id."""
        self.evidence.write("groups.json", dump(groups))

    def read_groups(self) -> dict[str, str]:
        """What the workers told; empty if they could not."""
        try:
            groups = json.loads((self.evidence.root / "groups.json").read_text())
        except (OSError, ValueError):
            return {}
        return {str(test): str(group) for test, group in groups.items()} if isinstance(groups, dict) else {}

    def to_worker(self) -> dict[str, Any]:
        """What a worker needs to join this run (plain data, for xdist's ``workerinput``)."""
        return {
            "iso": str(self.request.iso),
            "disk": None if self.request.disk is None else str(self.request.disk),
            "evidence_base": str(self.request.evidence),
            "accel": self.request.accel,
            "tools": dict(self.request.tools),
            "rebuild": None if self.request.rebuild is None else str(self.request.rebuild),
            "build": self.request.build,
            "build_output": self.request.build_output,
            "sums": None if self.request.sums is None else str(self.request.sums),
            "idle_s": self.request.idle_s,
            "time": self.request.time,
            "profile": self.profile.source,
            "profile_sha256": self.profile.sha256,
            "outside": self._outside(),
            "sha256": self.image_sha256,
            "size": self.size,
            "identity": self.image_identity,
            "disk_file": None if self.disk is None else {**self.disk.facts(), "identity": self.disk.identity},
            "root": str(self.evidence.root),
            "run": self.run_id,
            "pace": self.host.pace,
        }

    @classmethod
    def join(cls, data: Mapping[str, Any]) -> Run:
        """A worker's view of the controller's run.

        :raise OsgatesError: the profile, or a gate of its own, changed meanwhile.
        """
        profile = loader.load(Path(data["profile"]))
        if profile.sha256 != data["profile_sha256"]:
            raise UsageError(f"{data['profile']} changed while the run began", remedy="run again")
        request = Request(
            iso=Path(data["iso"]),
            distro=data["profile"],
            disk=None if data["disk"] is None else Path(data["disk"]),
            evidence=Path(data["evidence_base"]),
            accel=data["accel"],
            tools=data["tools"],
            rebuild=None if data["rebuild"] is None else Path(data["rebuild"]),
            build=data["build"],
            build_output=data["build_output"],
            sums=None if data["sums"] is None else Path(data["sums"]),
            idle_s=data["idle_s"],
            time=data["time"],
        )
        run = cls(request, profile, data["sha256"], data["size"], Evidence(Path(data["root"])), data["run"])
        run.image_identity = None if data["identity"] is None else tuple(data["identity"])
        if (disk := data["disk_file"]) is not None:
            run.disk = DiskFile(Path(disk["path"]), disk["sha256"], disk["size"], tuple(disk["identity"]))
        # Measured once for all: each worker would measure the others' measuring.
        run.host = replace(run.host, pace=float(data["pace"]))
        if (now := run._outside()) != data["outside"]:
            names = [name for name in {*now, *data["outside"]} if now.get(name) != data["outside"].get(name)]
            raise UsageError(f"the gate {', '.join(sorted(names))} changed while the run began", remedy="run again")
        return run


def _changed(path: Path, known: Identity | None) -> str:
    """How a file is no longer the one that was digested; empty: it is."""
    try:
        now = image_identity(path)
    except OSError as error:
        return f"{path} is no longer there: {error.strerror}"
    if now == known:
        return ""
    return f"{path} changed after its SHA-256 was taken: what was observed may be of other bytes"


def _probe_cache() -> Path | None:
    """Where it is kept whether KVM works; without a cache it is asked each time, which takes no more than seconds."""
    try:
        return cache_dir("probe")
    except HostError:
        return None


def _arguments(path: Path) -> list[str]:
    """QEMU's arguments as a machine recorded them; empty as long as it is writing them, or where it could not."""
    try:
        found = json.loads(path.read_text())["arguments"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(argument) for argument in found]


def free_bytes(path: Path) -> int:
    """Free space where `path` is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


__all__ = ["OsgatesError", "Request", "Run", "existing_file", "free_bytes", "parse_tools"]
