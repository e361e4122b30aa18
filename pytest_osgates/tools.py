"""The pinned programs that judge: version and digest are known before they are run."""

from __future__ import annotations

import atexit
import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.data import load
from pytest_osgates.debian import DebStore, LockedPackage, PrivateApt, Suite
from pytest_osgates.vm import workdir
from pytest_osgates.vm.errors import HostError, OsgatesError, UsageError
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.text import one_line


@dataclass(frozen=True)
class Pin:
    """One entry of ``data/tools.toml``. Without a `python_path` it runs in the guest, not here."""

    name: str
    version: str
    suites: tuple[str, ...]
    sha256: str
    entry: str
    python_path: str = ""


@dataclass(frozen=True)
class Tool:
    """A tool ready to run. `sha256` is that of the package, or of the file that the user gave; `tree`: the
    unpacked package, with so many `files` and directories. One that runs in the guest has no `argv`."""

    name: str
    version: str
    sha256: str
    argv: tuple[str, ...]
    source: str
    tree: Path | None = None
    files: int = 0


def pins() -> dict[str, Pin]:
    """All pinned tools."""
    return {
        name: Pin(
            name,
            entry["version"],
            tuple(entry["suites"]),
            entry["sha256"],
            entry["entry"],
            entry.get("python_path", ""),
        )
        for name, entry in load("tools").items()
    }


def check_names(given: Mapping[str, str]) -> None:
    """:raise UsageError: a tool is given that this version does not use."""
    for name in given.keys() - pins().keys():
        raise UsageError(f"--iso-tool {name}: there is no such tool", remedy=f"one of: {', '.join(pins())}")


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(name: str, given: Mapping[str, str], *, fetch: bool = True) -> Tool:
    """The tool `name`: as given by the user, else from the cache, else fetched (unless not `fetch`).

    :raise UsageError: the user gave something that is neither the pinned package nor a program.
    :raise HostError: it cannot be had; the remedy says how else.
    """
    pin = pins()[name]
    check_names(given)
    if name in given:
        path = Path(given[name])
        if path.suffix == ".deb":
            if sha256_of(path) != pin.sha256:
                raise UsageError(
                    f"{path} is not the pinned package of {name} {pin.version}",
                    remedy=f"give the one with SHA-256 {pin.sha256}, or a program instead of a package",
                )
            return _unpack(pin, path, f"--iso-tool {path}")
        if not pin.python_path:
            raise UsageError(
                f"{name} runs in the guest, and {path} is not a Debian package of it",
                remedy=f"give the package {name} {pin.version}, SHA-256 {pin.sha256}",
            )
        if not os.access(path, os.X_OK):
            raise UsageError(f"{path} is not executable", remedy=f"chmod +x {path}, or give the Debian package")
        return Tool(name, "as given", sha256_of(path), (str(path),), f"--iso-tool {path}")
    store = DebStore()
    cached = store.root / f"{pin.sha256}.deb"
    if cached.is_file() and sha256_of(cached) == pin.sha256:
        return _unpack(pin, cached, "cache")
    if not fetch:
        raise HostError(
            f"{name} {pin.version} is not in the cache", remedy=f"run: osgates doctor --fetch, or {_else(pin)}"
        )
    try:
        apt = PrivateApt([Suite(suite) for suite in pin.suites])
        apt.update()
        package: LockedPackage = apt.find(name, pin.version)
        if package.sha256 != pin.sha256:
            raise HostError(f"the archive's {name} {pin.version} has SHA-256 {package.sha256}, not {pin.sha256}")
        (path,) = store.fetch([package], lambda: apt)
    except OsgatesError as error:
        said = one_line(error.what, 300)
        raise HostError(f"{name} {pin.version} cannot be had: {said}", remedy=_else(pin)) from error
    return _unpack(pin, path, f"Debian {', '.join(pin.suites)}")


def check_there(tool: Tool) -> None:
    """That nobody has removed any of it since it was unpacked: with fewer files a tool may find less.

    :raise HostError: somebody has.
    """
    if tool.tree is not None and _count(tool.tree) != tool.files:
        raise HostError(
            f"files were removed from {tool.tree} while they were needed: {tool.name} was unpacked there",
            remedy="keep whatever cleans temporary directories away from TMPDIR, and start again",
        )


def _count(tree: Path) -> int:
    return sum(1 for _ in tree.rglob("*"))


def _else(pin: Pin) -> str:
    return f"give it: --iso-tool {pin.name}=FILE.deb (SHA-256 {pin.sha256})"


def _unpack(pin: Pin, package: Path, source: str) -> Tool:
    """Unpack the verified package into a private directory of this process: nobody else can have changed it."""
    private = workdir.make(pin.name)
    atexit.register(workdir.remove, private)
    target = private / "package"
    unpack = which("dpkg-deb", remedy="apt-get install dpkg (Fedora: dnf install dpkg)")
    run([unpack, "-x", str(package), str(target)], timeout=120)
    argv = _argv(pin, target) if pin.python_path else ()
    return Tool(pin.name, pin.version, pin.sha256, argv, source, target, _count(target))


def _argv(pin: Pin, target: Path) -> tuple[str, ...]:
    """Run the program with our interpreter, its package found and nothing of the user's environment."""
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
        "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return (sys.executable, "-I", "-B", "-c", code, str(target / pin.python_path), str(target / pin.entry))
