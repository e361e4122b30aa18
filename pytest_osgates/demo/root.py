"""The root file system: from exactly the locked packages to a squashfs, without a network."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.debian import DebStore, LockedPackage
from pytest_osgates.debian.control import packages_index, stanzas
from pytest_osgates.demo.definition import Definition, tree_tar
from pytest_osgates.demo.tools import check_can_bootstrap, environment, feed, with_own_mounts, with_umask
from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.process import run

LEFT_OUT = "etc/dpkg/dpkg.cfg.d/50-left-out"
_BOOTSTRAP_SECONDS = 1800.0
_SQUASHFS_SECONDS = 1800.0


@dataclass(frozen=True)
class Root:
    """What was made, all in the scratch directory."""

    tar: Path
    kernel: Path
    initrd: Path
    installed: frozenset[tuple[str, str]]


def local_repository(packages: Sequence[LockedPackage], store: DebStore, where: Path, suite: str) -> None:
    """A flat repository of exactly `packages`, whose files are in `store`; for apt, it is the suite `suite`.

    Its index is written from the packages themselves; they were checked against the lock, so it needs no signature.
    """
    where.mkdir()
    entries = []
    for package in packages:
        source = store.path(package)
        name = f"{package.name}_{package.sha256[:16]}.deb"
        (where / name).symlink_to(source)
        text = run(["dpkg-deb", "--field", str(source)], timeout=60).text
        fields = next(stanzas(text), {})
        if (fields.get("Package"), fields.get("Version")) != (package.name, package.version):
            raise HostError(f"{source.name} is not {package.key}, as the lock says", remedy="resolve a new lock")
        entries.append((package, fields, name))
    index = packages_index(entries).encode()
    (where / "Packages").write_bytes(index)
    digest = hashlib.sha256(index).hexdigest()
    # mmdebstrap selects the essential packages by the name of their suite.
    (where / "Release").write_text(
        f"Suite: {suite}\nCodename: {suite}\nSHA256:\n {digest} {len(index)} Packages\n", encoding="utf-8"
    )


def build_root(
    definition: Definition,
    tree: Path,
    extra: Mapping[str, Path],
    packages: Sequence[LockedPackage],
    store: DebStore,
    scratch: Path,
    on_poll: Callable[[float], None],
) -> Root:
    """Install `packages`, `tree` and the `extra` files into a root file system, as a tar file in `scratch`.

    :raise HostError: this user cannot use mmdebstrap, or it failed.
    """
    check_can_bootstrap()
    repository = scratch / "repository"
    local_repository(packages, store, repository, definition.suites[0].name)
    overlay = scratch / "tree.tar"
    left_out = scratch / "left-out"
    left_out.write_text(left_out_lines(definition), encoding="utf-8")
    extra = {**extra, LEFT_OUT: left_out}
    overlay.write_bytes(
        tree_tar(tree, dict(definition.modes), dict(definition.symlinks), definition.source_date_epoch, extra)
    )
    customize = scratch / "customize.sh"
    customize.write_text(value_lines(definition) + definition.hooks.customize, encoding="utf-8")
    out = scratch / "out"
    out.mkdir()
    tar = scratch / "root.tar"
    argv = bootstrap_arguments(definition, packages, repository, overlay, customize, out, tar)
    run(
        with_own_mounts(with_umask(argv)),
        timeout=_BOOTSTRAP_SECONDS,
        env=environment(definition.source_date_epoch, scratch),
        on_poll=on_poll,
        remedy="the last lines above say which package or hook failed",
    )
    status = (out / "status").read_text(encoding="utf-8")
    installed = frozenset((fields["Package"], fields["Version"]) for fields in stanzas(status))
    _exactly(installed, packages)
    return Root(tar, _only(out, "boot/vmlinuz-*"), _only(out, "boot/initrd.img-*"), installed)


def bootstrap_arguments(
    definition: Definition,
    packages: Sequence[LockedPackage],
    repository: Path,
    overlay: Path,
    customize: Path,
    out: Path,
    tar: Path,
) -> list[str]:
    """The command line of mmdebstrap(1)."""
    tree_in = f"tar-in {shlex.quote(str(overlay))} /"
    argv = [
        "mmdebstrap",
        "--variant=essential",
        "--format=tar",
        f"--architectures={definition.architecture}",
        f"--include={','.join(package.name for package in packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        # The repository lies in a directory of this user's alone.
        '--aptopt=APT::Sandbox::User "root"',
        # The tree is there before the packages are, and wins over their configuration files.
        "--dpkgopt=force-confold",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in definition.dpkg.exclude),
        *(f"--dpkgopt=path-include={pattern}" for pattern in definition.dpkg.include),
        # Before the packages: the initrd is made from it, presets are read from it. After them: it has the last word.
        f"--essential-hook={tree_in}",
        f"--customize-hook={tree_in}",
    ]
    for verb in ("disable", "mask", "enable"):
        names = definition.unit_names(verb)
        if names:
            argv.append(f'--customize-hook=chroot "$1" systemctl --quiet {verb} {shlex.join(names)}')
    return [
        *argv,
        f"--customize-hook=copy-out /boot /var/lib/dpkg/status {shlex.quote(str(out))}",
        f'--customize-hook=sh -eu {shlex.quote(str(customize))} "$1"',
        definition.suites[0].name,
        str(tar),
        f"deb [trusted=yes] copy://{repository} ./",
    ]


# Sets NAME in FILE: its line, if it has one, commented out or not; else a new one at the end.
_SET_VALUE = r"""set_value() {
    awk -v name="$2" -v value="$3" '
        $0 ~ "^#?[ \t]*" name "[ \t]" { if (!done) print name "\t" value; done = 1; next }
        { print }
        END { if (!done) print name "\t" value }' "$1" > "$1.new"
    cat -- "$1.new" > "$1"
    rm -- "$1.new"
}
"""


def left_out_lines(definition: Definition) -> str:
    """dpkg.cfg(5): what is left out of packages, now and in updates."""
    lines = [f"path-exclude={pattern}" for pattern in definition.dpkg.exclude]
    lines += [f"path-include={pattern}" for pattern in definition.dpkg.include]
    return "".join(f"{line}\n" for line in lines)


def value_lines(definition: Definition) -> str:
    """Shell that sets the definition's values; the root directory is ``$1``."""
    lines = [
        f'set_value "$1"/{shlex.quote(entry.file)} {shlex.quote(name)} {shlex.quote(value)}\n'
        for entry in definition.values
        for name, value in entry.values.items()
    ]
    return _SET_VALUE + "".join(lines) if lines else ""


def _exactly(installed: frozenset[tuple[str, str]], packages: Sequence[LockedPackage]) -> None:
    wanted = {(package.name, package.version) for package in packages}
    if installed != wanted:
        odd = ", ".join(f"{name} {version}" for name, version in sorted(installed ^ wanted)[:8])
        raise HostError(f"what was installed is not what the lock says: {odd}", remedy="resolve a new lock")


def _only(where: Path, pattern: str) -> Path:
    found = sorted(where.glob(pattern))
    if len(found) != 1:
        raise HostError(f"{len(found)} files like {pattern} in the root file system, not one")
    return found[0]


def squash(
    tar: Path,
    output: Path,
    definition: Definition,
    on_poll: Callable[[float], None],
    *,
    epoch: int | None = None,
    all_root: bool = False,
) -> None:
    """A squashfs of what a tar file holds: owners, modes and extended attributes come from it, not from any disk.

    With `all_root`, everything belongs to root whatever the tar file says.
    """
    when = epoch or definition.source_date_epoch
    feed(
        [*as_root_of_its_own(all_root=all_root), *squash_arguments(output, definition, when, all_root=all_root)],
        tar,
        timeout=_SQUASHFS_SECONDS,
        env=environment(when),
        on_poll=on_poll,
    )


def as_root_of_its_own(*, all_root: bool) -> list[str]:
    """What to put before mksquashfs, so that the root directory itself belongs to root.

    Reading a tar file, mksquashfs 4.5.1 ignores both the entry ``./`` and -root-uid and gives that directory to
    whoever runs it; only -all-root reaches it. Elsewhere an ordinary user needs a user namespace, as for mmdebstrap.
    """
    if all_root or os.geteuid() == 0:
        return []
    return ["unshare", "--user", "--map-root-user", "--"]


def squash_arguments(output: Path, definition: Definition, epoch: int, *, all_root: bool) -> list[str]:
    """The command line of mksquashfs(1)."""
    squashfs = definition.squashfs
    return [
        *("mksquashfs", "-", str(output), "-tar", "-noappend", "-no-progress", "-quiet", "-exports"),
        *("-comp", squashfs.compression, "-Xcompression-level", str(squashfs.level)),
        *("-b", str(squashfs.block_size), "-xattrs"),
        *("-root-mode", "755", "-root-time", str(epoch)),
        *(["-all-root"] if all_root else []),
    ]
