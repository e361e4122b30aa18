"""The definition of a live distribution (``definition.toml`` and ``tree/``), checked."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pytest_osgates.debian.model import NAME, Archive, Suite
from pytest_osgates.vm.errors import UsageError

DEFINITION = Path(__file__).resolve().parent / "definition.toml"
_UNIT = r"^[A-Za-z0-9:_.\\@\-]+\.(?:service|timer|socket|target|path|mount)$"


def relative_path(value: str) -> str:
    """A path below a root: no leading slash, nothing that climbs."""
    parts = PurePosixPath(value).parts
    if not parts or value.startswith("/") or ".." in parts or "\n" in value or value != "/".join(parts):
        raise ValueError(f"not a path below a root: {value!r}")
    return value


def one_parameter(value: str) -> str:
    """One kernel parameter: no white space, nothing that GRUB or ISOLINUX would expand."""
    if not value or any(not 0x21 <= ord(c) <= 0x7E or c in "\"'\\$;{}#@" for c in value):
        raise ValueError(f"not one kernel parameter: {value!r}")
    return value


ModelT = TypeVar("ModelT", bound=BaseModel)
RelativePath = Annotated[str, AfterValidator(relative_path)]
Parameter = Annotated[str, AfterValidator(one_parameter)]
Unit = Annotated[str, Field(pattern=_UNIT)]
PackageName = Annotated[str, Field(pattern=rf"^{NAME}$")]
Mode = Annotated[int, Field(ge=0, le=0o7777)]


class Strict(BaseModel):
    """Unknown keys are errors: a typing mistake must not be a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SuiteEntry(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")
    archive: Archive = Archive.DEBIAN
    components: tuple[str, ...] = ("main",)
    optional: bool = False

    def suite(self) -> Suite:
        return Suite(self.name, self.archive, self.components, self.optional)


class PackageGroup(Strict):
    group: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    names: tuple[PackageName, ...] = Field(min_length=1)


class MediaPackage(Strict):
    """Single files of a package that is not installed: `files` go to the medium (an empty destination: only used in
    building), `root_files` into the root file system."""

    package: PackageName
    reason: str = Field(min_length=1)
    files: dict[RelativePath, Literal[""] | RelativePath] = Field(default_factory=dict)
    root_files: dict[RelativePath, RelativePath] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.files and not self.root_files:
            raise ValueError(f"{self.package}: neither files nor root_files")
        return self


class TreeFiles(Strict):
    """Files of tree/, and what they are for."""

    reason: str = Field(min_length=1)
    paths: tuple[RelativePath, ...] = Field(min_length=1)


class Values(Strict):
    """Lines ``NAME VALUE`` that are changed, or added, in a file that a package brings."""

    file: RelativePath
    reason: str = Field(min_length=1)
    values: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], Annotated[str, Field(pattern=r"^[\w./-]+$")]]


class KernelParameter(Strict):
    text: Parameter
    reason: str = Field(min_length=1)


class Dpkg(Strict):
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()


class Units(Strict):
    """What is done with some units, and why (systemctl(1))."""

    verb: Literal["enable", "disable", "mask"]
    reason: str = Field(min_length=1)
    names: tuple[Unit, ...] = Field(min_length=1)


class Hooks(Strict):
    customize: str = ""


class Squashfs(Strict):
    compression: Literal["zstd"] = "zstd"
    level: int = Field(default=15, ge=1, le=22)
    block_size: int = Field(default=65536, ge=4096, le=1 << 20)


class Boot(Strict):
    kernel: RelativePath
    initrd: RelativePath
    grub_cfg: str
    isolinux_cfg: str


class Definition(Strict):
    """A live distribution, as data."""

    version: Literal[1] = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9\-]*$")
    title: str = Field(pattern=r"^[A-Za-z0-9 .\-]+$")
    label: str = Field(pattern=r"^[A-Z0-9_]{1,32}$")
    architecture: Literal["amd64"]
    source_date_epoch: int = Field(gt=0, lt=1 << 32)
    suites: tuple[SuiteEntry, ...] = Field(min_length=1)
    packages: tuple[PackageGroup, ...] = Field(min_length=1)
    media: tuple[MediaPackage, ...]
    parameters: tuple[KernelParameter, ...]
    dpkg: Dpkg = Dpkg()
    units: tuple[Units, ...] = ()
    files: tuple[TreeFiles, ...] = ()
    values: tuple[Values, ...] = ()
    modes: dict[RelativePath, Mode] = Field(default_factory=dict)
    symlinks: dict[RelativePath, str] = Field(default_factory=dict)
    hooks: Hooks = Hooks()
    squashfs: Squashfs = Squashfs()
    boot: Boot

    @property
    def package_names(self) -> tuple[str, ...]:
        """All packages asked for, sorted."""
        return tuple(sorted({name for group in self.packages for name in group.names}))

    def unit_names(self, verb: str) -> tuple[str, ...]:
        """All units that `verb` is done with."""
        return tuple(name for entry in self.units if entry.verb == verb for name in entry.names)

    @property
    def command_line(self) -> str:
        return " ".join(parameter.text for parameter in self.parameters)

    def boot_configs(self, extra: str = "") -> dict[str, str]:
        """The boot loaders' configurations by their path on the medium."""
        line = f"{self.command_line} {extra}".strip()
        return {
            path: text.lstrip("\n").replace("@TITLE@", self.title).replace("@PARAMETERS@", line)
            for path, text in (
                ("boot/grub/grub.cfg", self.boot.grub_cfg),
                ("isolinux/isolinux.cfg", self.boot.isolinux_cfg),
            )
        }


def load_definition(path: Path = DEFINITION) -> Definition:
    """The definition at `path`, whose ``tree/`` lies beside it.

    :raise UsageError: it is not there, not TOML, not a definition, or a file of its tree has no reason, or two.
    """
    definition = load_toml(path, Definition)
    tree = path.parent / "tree"
    present = tree_files(tree) if tree.is_dir() else []
    named = [name for entry in definition.files for name in entry.paths]
    odd = sorted(set(present) ^ set(named)) + sorted({name for name in named if named.count(name) > 1})
    if odd:
        raise UsageError(
            f"{path}: these files are not both in tree/ and in exactly one [[files]]: {', '.join(odd[:8])}",
            remedy="each file has one entry that says what it is for",
        )
    return definition


def load_toml(path: Path, model: type[ModelT]) -> ModelT:
    """The checked contents of a TOML file.

    :raise UsageError: it is not there, not TOML, or does not fit `model`; says where.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return model.model_validate(data)
    except FileNotFoundError:
        raise UsageError(f"{path} is not there") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors())
        raise UsageError(f"{path}: {faults}") from None


def tree_files(tree: Path) -> list[str]:
    """All regular files below `tree`, as sorted relative paths.

    :raise UsageError: there is something else: symbolic links do not survive packaging, they belong in the TOML.
    """
    found = []
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path}: only files and directories; write links into the TOML file")
        if path.is_file():
            found.append(path.relative_to(tree).as_posix())
    return found


def tree_digest(definition: Path) -> str:
    """SHA-256 over a TOML file and the ``tree/`` beside it: names and contents, nothing else."""
    digest = hashlib.sha256(definition.read_bytes())
    tree = definition.parent / "tree"
    for name in tree_files(tree) if tree.is_dir() else ():
        content = (tree / name).read_bytes()
        digest.update(f"\n{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def tree_tar(
    tree: Path,
    modes: dict[str, int],
    symlinks: dict[str, str],
    epoch: int,
    extra: Mapping[str, Path] = MappingProxyType({}),
    xattrs: Mapping[str, Mapping[str, bytes]] = MappingProxyType({}),
    removed: Sequence[str] = (),
) -> bytes:
    """`tree` as a tar archive: owner root, modes from `modes` (else 0644, directories 0755), times `epoch`.
    `extra`: more files, by their path in the archive. `xattrs`: extended attributes of files. `removed`: what an
    overlayfs is to hide of the layers below, by a character device 0:0 (the kernel's filesystems/overlayfs.rst).

    Nothing of it comes from the files' own metadata: a clone made under another umask gives the same bytes.

    :raise UsageError: a mode or an attribute is given for a file that is not there.
    """
    files = {name: tree / name for name in tree_files(tree)} if tree.is_dir() else {}
    files |= extra
    directories = {
        parent.as_posix()
        for name in (*files, *symlinks, *removed)
        for parent in PurePosixPath(name).parents
        if parent.as_posix() != "."
    }
    unknown = sorted(set(modes) - set(files) - directories)
    if unknown:
        raise UsageError(f"modes are given for what is not in {tree}: {', '.join(unknown)}")
    if lost := sorted(set(xattrs) - set(files)):
        raise UsageError(f"attributes are given for what is not in {tree}: {', '.join(lost)}")
    buffer = io.BytesIO()
    # Only the pax format has attributes, in the records that GNU tar and star(1) write.
    form = tarfile.PAX_FORMAT if xattrs else tarfile.GNU_FORMAT
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in sorted({*files, *directories, *symlinks, *removed}):
            info = tarfile.TarInfo(name)
            info.mtime = epoch
            if name in symlinks:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, symlinks[name], 0o777
                archive.addfile(info)
            elif name in removed:
                info.type, info.mode = tarfile.CHRTYPE, 0
                archive.addfile(info)
            elif name in directories:
                info.type, info.mode = tarfile.DIRTYPE, modes.get(name, 0o755)
                archive.addfile(info)
            else:
                content = files[name].read_bytes()
                info.size, info.mode = len(content), modes.get(name, 0o644)
                info.pax_headers = {
                    f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
                    for key, value in xattrs.get(name, {}).items()
                }
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
