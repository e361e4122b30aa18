"""The demo's unattended installer: a script on the medium, and beside it programs that the live root does without.

They lie in ``/osgates`` of the ISO, not in its live root: what other gates judge of that stays as it is. All of them
are files of locked packages, so that the ISO is the same wherever it is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from pytest_osgates.debian import DebStore, LockedPackage
from pytest_osgates.demo.definition import (
    Definition,
    PackageName,
    Parameter,
    RelativePath,
    Strict,
    load_toml,
    tree_tar,
)
from pytest_osgates.demo.root import squash
from pytest_osgates.demo.tools import environment
from pytest_osgates.demo.unlock import (
    DIRECTORY,
    ENROL,
    MODULES,
    PLUGIN,
    SCRIPT,
    TPM_STACK,
    TpmUnlock,
    unlock_script,
)
from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.process import run

INSTALLER = Path(__file__).resolve().parent / "install" / "installer.toml"
WHERE = "osgates"
LOADER = "ld-linux-x86-64.so.2"
# In the initrd: where this libcryptsetup looks for its plug-ins.
PLUGINS = "usr/lib/x86_64-linux-gnu/cryptsetup"
# Put in its place when it is installed.
_UUID = "@@UUID@@"


class ToolPackage(Strict):
    """A package that is not installed anywhere, and the files of it that are used, each under its last name."""

    package: PackageName
    reason: str = Field(min_length=1)
    files: tuple[RelativePath, ...] = Field(min_length=1)


class Installer(Strict):
    """``install/installer.toml``. Key size in bits, memory in KiB."""

    schema_: Literal[1] = Field(alias="schema")
    esp_mib: int = Field(ge=40, le=1024)
    cipher: str = Field(pattern=r"^[a-z0-9-]+$")
    key_size: int = Field(ge=256, le=512)
    memory_kib: int = Field(ge=32, le=4 << 20)
    time: int = Field(ge=4, le=1000)
    pcrs: tuple[int, ...] = Field(min_length=1)
    parameters: tuple[Parameter, ...]
    packages: tuple[ToolPackage, ...] = Field(min_length=1)

    @property
    def package_names(self) -> tuple[str, ...]:
        """Of the packages whose files are used."""
        return tuple(entry.package for entry in self.packages)

    def script(self) -> str:
        """The installer, as it lies on the medium."""
        text = INSTALLER.with_name("install.sh").read_text(encoding="utf-8")
        for word, value in (
            ("@ESP_MIB@", str(self.esp_mib)),
            ("@CIPHER@", self.cipher),
            ("@KEY_SIZE@", str(self.key_size)),
            ("@MEMORY_KIB@", str(self.memory_kib)),
            ("@TIME@", str(self.time)),
            ("@PARAMETERS@", " ".join(self.parameters)),
            ("@PROGRAMS@", " ".join(("cryptsetup", ENROL, *TPM_STACK))),
            ("@PLUGIN@", PLUGIN),
            ("@PLUGINS@", PLUGINS),
            ("@MODULES@", " ".join(name.removesuffix(".xz") for name in MODULES)),
            ("@DIRECTORY@", DIRECTORY),
            ("@SCRIPTS@", SCRIPT.rpartition("/")[0]),
            ("@LOADER@", LOADER),
        ):
            text = text.replace(word, value)
        return text

    def unlock_script(self) -> str:
        """What the installed system's initrd asks with; the volume's UUID is put in by the installer."""
        modules = [name.rpartition("/")[2].removesuffix(".xz") for name in MODULES]
        return unlock_script(_UUID, LOADER, modules, TpmUnlock(self.pcrs))


def load_installer() -> Installer:
    """The demo's installer as it is shipped. :raise UsageError: it is none."""
    return load_toml(INSTALLER, Installer)


def installer_digest() -> str:
    """SHA-256 of what it is made from, packages aside."""
    installer = load_installer()
    parts = (INSTALLER.read_text(encoding="utf-8"), installer.script(), installer.unlock_script())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def place_installer(
    definition: Definition,
    packages: Mapping[str, LockedPackage],
    store: DebStore,
    scratch: Path,
    medium: Path,
    on_poll: Callable[[float], None],
) -> None:
    """Put the installer on `medium`. `packages`: of the lock, by name.

    :raise HostError: a package does not have a file that is named.
    """
    installer = load_installer()
    files = {}
    for entry in installer.packages:
        unpacked = scratch / f"installer-{entry.package}"
        unpacked.mkdir()
        deb = store.path(packages[entry.package])
        run(["dpkg-deb", "--extract", str(deb), str(unpacked)], timeout=120, env=environment(0))
        for name in entry.files:
            # A library's name may be a link to that with its version, and to nothing outside of its package.
            found = (unpacked / name).resolve()
            if not found.is_file() or not found.is_relative_to(unpacked.resolve()):
                raise HostError(f"{entry.package} {packages[entry.package].version} has no {name}")
            files[name.rpartition("/")[2]] = found
    script = scratch / "cryptroot"
    script.write_text(installer.unlock_script(), encoding="utf-8")
    files["cryptroot"] = script
    tar = scratch / "installer.tar"
    epoch = definition.source_date_epoch
    tar.write_bytes(tree_tar(scratch / "no-tree", dict.fromkeys(files, 0o755), {}, epoch, files))
    where = medium / WHERE
    where.mkdir()
    squash(tar, where / "tools.squashfs", definition, on_poll, all_root=True)
    (where / "install").write_text(installer.script(), encoding="utf-8")
