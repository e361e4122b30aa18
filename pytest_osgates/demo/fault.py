"""Planted faults: an ISO that is the demo but for one defect, made in seconds from the finished one.

live-boot(7) stacks every ``/live/*.squashfs`` in the order of their names, later ones above earlier ones. So a fault
is one more squashfs, ``zz-fault-NAME.squashfs``, whose files hide or join those of the base, or take some away. A
fault of the kernel command line is a changed copy of the boot loaders' configurations. All else is the base image's,
byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pytest_osgates.debian.store import sha256_of
from pytest_osgates.demo.build import ProgressCallback, estimated, scratch_beside
from pytest_osgates.demo.definition import (
    Mode,
    Parameter,
    RelativePath,
    Strict,
    load_definition,
    load_toml,
    tree_tar,
)
from pytest_osgates.demo.media import volume_date
from pytest_osgates.demo.root import squash
from pytest_osgates.demo.tools import environment, need
from pytest_osgates.vm.errors import ImageError, UsageError
from pytest_osgates.vm.process import run

FAULTS = Path(__file__).resolve().parent / "faults"
BOOT_CONFIGS = ("boot/grub/grub.cfg", "isolinux/isolinux.cfg")
# ECMA-119 8.4: the primary volume descriptor is sector 16; its modification date is field 8.4.27.
_DESCRIPTOR = 16 * 2048
_MODIFIED = 830
_MARK = b"\x01CD001\x01"


Hexadecimal = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})+$")]


class Expectation(Strict):
    """What a gate must find on this image, and nothing else. ``also``: rule and subject of what else it must find,
    where one fault is two findings."""

    gate: str = Field(pattern=r"^[a-z][a-z0-9_\-]*$")
    rule: str = Field(pattern=r"^[a-z][a-z0-9_.\-]*$")
    subject: str = Field(min_length=1)
    verdict: Literal["FAIL", "NOT PROVEN"] = "FAIL"
    also: tuple[tuple[str, str], ...] = ()

    @property
    def findings(self) -> set[tuple[str, str]]:
        """Rule and subject of all of them."""
        return {(self.rule, self.subject), *self.also}


class FaultFile(Strict):
    """``fault.toml``. Files lie in ``tree/`` beside it.

    ``removed``: paths of the base that are not to be there. ``xattrs``: extended attributes of files in ``tree/``,
    in hexadecimal digits.
    """

    title: str = Field(min_length=1)
    expects: Expectation
    parameters: tuple[Parameter, ...] = Field(default=(), alias="cmdline_append")
    dropped: tuple[Parameter, ...] = Field(default=(), alias="cmdline_remove")
    symlinks: dict[RelativePath, str] = Field(default_factory=dict)
    modes: dict[RelativePath, Mode] = Field(default_factory=dict)
    removed: tuple[RelativePath, ...] = ()
    xattrs: dict[RelativePath, dict[str, Hexadecimal]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """A fault, where it lies, and its name (that of its directory)."""

    name: str
    directory: Path
    file: FaultFile

    @property
    def tree(self) -> Path:
        return self.directory / "tree"

    @property
    def has_files(self) -> bool:
        return self.tree.is_dir() or bool(self.file.symlinks or self.file.removed)

    @property
    def changes_parameters(self) -> bool:
        return bool(self.file.parameters or self.file.dropped)

    def layer(self, epoch: int) -> bytes:
        """Its files, as a tar archive.

        :raise UsageError: ``fault.toml`` speaks of a file that is not in ``tree/``.
        """
        file = self.file
        attributes = {
            path: {key: bytes.fromhex(value) for key, value in values.items()} for path, values in file.xattrs.items()
        }
        return tree_tar(
            *(self.tree, dict(file.modes), dict(file.symlinks), epoch), xattrs=attributes, removed=file.removed
        )


@dataclass(frozen=True)
class FaultIso:
    """A finished fault image; `added` and `changed` are paths on the medium."""

    path: Path
    sha256: str
    size: int
    fault: Fault
    added: tuple[str, ...]
    changed: tuple[str, ...]


def fault_names() -> tuple[str, ...]:
    """The faults that ship with this package."""
    return tuple(sorted(path.parent.name for path in FAULTS.glob("*/fault.toml")))


def load_fault(fault: str | Path) -> Fault:
    """A shipped fault by name, or one in any directory.

    :raise UsageError: no such fault, or it does nothing, or it is not well-formed.
    """
    if isinstance(fault, str) and "/" not in fault:
        if fault not in fault_names():
            raise UsageError(f"there is no fault {fault!r}", remedy=f"one of: {', '.join(fault_names())}")
        directory = FAULTS / fault
    else:
        directory = Path(fault).resolve()
    loaded = Fault(directory.name, directory, load_toml(directory / "fault.toml", FaultFile))
    if not loaded.has_files and not loaded.changes_parameters:
        raise UsageError(f"{directory}: this fault changes nothing")
    if not set("abcdefghijklmnopqrstuvwxyz0123456789-") >= set(loaded.name) or not loaded.name:
        raise UsageError(f"{directory}: the name of a fault is a-z, 0-9 and '-'")
    return loaded


def image_epoch(iso: Path) -> int:
    """When the volume was last changed, in seconds since 1970: what is added to it gets the same time.

    :raise ImageError: not an ISO 9660 image, or one without that date.
    :raise UsageError: it is not there.
    """
    try:
        with iso.open("rb") as stream:
            stream.seek(_DESCRIPTOR)
            descriptor = stream.read(2048)
    except FileNotFoundError:
        raise UsageError(f"{iso} is not there") from None
    if not descriptor.startswith(_MARK) or len(descriptor) < 2048:
        raise ImageError(f"{iso} is not an ISO 9660 image")
    digits = descriptor[_MODIFIED : _MODIFIED + 14]
    try:
        return int(datetime.strptime(digits.decode("ascii"), "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise ImageError(f"{iso} does not say when its volume was last changed") from None


def change_parameters(config: str, parameters: tuple[str, ...], dropped: tuple[str, ...] = ()) -> str:
    """A configuration of GRUB or ISOLINUX with more kernel parameters on each line that has some, and without those
    in `dropped`.

    :raise ImageError: it has no such line, or one to be dropped is not there.
    """
    lines = []
    found = False
    for line in config.split("\n"):
        word = line.split(maxsplit=1)[:1]
        if word in (["linux"], ["linuxefi"], ["append"], ["APPEND"]):
            found = True
            indent = line[: len(line) - len(line.lstrip())]
            words = line.split()
            missing = [parameter for parameter in dropped if parameter not in words]
            if missing:
                raise ImageError(f"a boot loader's configuration has no kernel parameter {missing[0]!r} to drop")
            kept = [text for text in words if text not in dropped]
            lines.append(indent + " ".join([*kept, *parameters]))
        else:
            lines.append(line)
    if not found:
        raise ImageError("a boot loader's configuration has no line with kernel parameters")
    return "\n".join(lines)


def _extract(iso: Path, name: str, target: Path, env: Mapping[str, str]) -> str:
    run(
        ["xorriso", "-no_rc", "-osirrox", "on", "-indev", str(iso), "-extract", f"/{name}", str(target)],
        timeout=120,
        env=env,
    )
    target.chmod(0o644)
    return target.read_text(encoding="utf-8")


def add_fault(
    base: Path, output: Path, fault: str | Path | Fault, progress: ProgressCallback, *, epoch: int | None = None
) -> FaultIso:
    """Write `base` with the fault to `output`; `base` is only read. The same inputs give the same bytes.

    :raise UsageError: no such fault, or `output` is `base`.
    :raise ImageError: `base` is not the demo's ISO.
    :raise MissingTool: xorriso or mksquashfs is not installed.
    """
    planted = fault if isinstance(fault, Fault) else load_fault(fault)
    output = output.absolute()
    if output.exists() and base.exists() and output.samefile(base):
        raise UsageError("a fault image cannot replace its own base", remedy="name another output")
    need("xorriso", "mksquashfs")
    when = epoch or image_epoch(base)
    definition = load_definition()
    env = environment(when)
    progress(f"planting {planted.name}", 0.0)
    with scratch_beside(output) as scratch:
        maps: list[tuple[Path, str]] = []
        added: tuple[str, ...] = ()
        if planted.has_files:
            tar = scratch / "fault.tar"
            tar.write_bytes(planted.layer(when))
            layer = scratch / "fault.squashfs"
            squash(
                tar,
                layer,
                definition,
                estimated(progress, f"planting {planted.name}", 2.0),
                epoch=when,
                all_root=True,
            )
            added = (f"live/zz-fault-{planted.name}.squashfs",)
            maps.append((layer, added[0]))
        changed: tuple[str, ...] = ()
        if planted.changes_parameters:
            changed = BOOT_CONFIGS
            for index, name in enumerate(BOOT_CONFIGS):
                copy = scratch / f"config-{index}"
                text = _extract(base, name, copy, env)
                copy.write_text(
                    change_parameters(text, planted.file.parameters, planted.file.dropped), encoding="utf-8"
                )
                maps.append((copy, name))
        image = scratch / "image.iso"
        run(
            remaster_arguments(base, image, maps, when),
            timeout=600,
            env=env,
            on_poll=estimated(progress, f"writing {output.name}", 5.0),
        )
        image.chmod(0o644)
        digest, size = sha256_of(image), image.stat().st_size
        image.replace(output)
    progress("done", 1.0)
    return FaultIso(output, digest, size, planted, added, changed)


def remaster_arguments(base: Path, output: Path, maps: list[tuple[Path, str]], epoch: int) -> list[str]:
    """The command line of xorriso(1): a copy with all boot equipment, and some files more or changed."""
    for source, _name in maps:
        source.chmod(0o444)
    names = [f"/{name}" for _source, name in maps]
    return [
        *("xorriso", "-no_rc", "-abort_on", "FAILURE", "-return_with", "FAILURE", "32"),
        *("-indev", str(base), "-outdev", str(output), "-boot_image", "any", "replay"),
        *(word for source, name in maps for word in ("-map", str(source), f"/{name}")),
        # The files lie in a directory of this user's; on the medium they are root's.
        *(word for name in names for word in ("-chown", "0", name, "--", "-chgrp", "0", name, "--")),
        *("-volume_date", "all_file_dates", volume_date(epoch), "-volume_date", "uuid", volume_date(epoch)),
        "-commit",
    ]
