"""The host's programs that make images: which, which version, and run the same way everywhere."""

from __future__ import annotations

import getpass
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pytest_osgates.vm.errors import CommandFailed, HostError, HostTimeout, MissingTool
from pytest_osgates.vm.process import await_exit, end, run, spawn, which

# program -> (Debian package, arguments that print a version, where it stands)
_TOOLS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "mmdebstrap": ("mmdebstrap", ("--version",), r"mmdebstrap ([0-9.]+)"),
    "mksquashfs": ("squashfs-tools", ("-version",), r"mksquashfs version ([0-9][^ ]*)"),
    "xorriso": ("xorriso", ("-version",), r"xorriso version +: +([0-9.]+)"),
    "dpkg-deb": ("dpkg", ("--version",), r"version ([0-9][^ ]*)"),
    "mkfs.fat": ("dosfstools", ("--help",), r"mkfs\.fat ([0-9.]+)"),
    "mcopy": ("mtools", ("-V",), r"mtools\) ([0-9.]+)"),
    "cryptsetup": ("cryptsetup-bin", ("--version",), r"cryptsetup ([0-9.]+)"),
    "sfdisk": ("fdisk", ("--version",), r"sfdisk from util-linux ([0-9.]+)"),
    "mke2fs": ("e2fsprogs", ("-V",), r"mke2fs ([0-9.]+)"),
    "qemu-img": ("qemu-utils", ("--version",), r"qemu-img version ([0-9.]+)"),
}


def need(*programs: str) -> None:
    """:raise MissingTool: one is not installed; the remedy names all missing packages."""
    missing: list[str] = []
    for program in programs:
        try:
            which(program)
        except MissingTool:
            missing.append(program)
    if missing:
        packages = " ".join(sorted({_TOOLS[program][0] for program in missing}))
        raise MissingTool(f"not installed: {', '.join(missing)}", remedy=f"apt-get install {packages}")


def versions(*programs: str) -> dict[str, str]:
    """The version of each program, as it says itself."""
    found = {}
    for program in programs:
        _package, arguments, pattern = _TOOLS[program]
        done = run([program, *arguments], timeout=30, check=False, env=environment(0))
        match = re.search(pattern, (done.stdout + done.stderr).decode("utf-8", "replace"))
        found[program] = match[1] if match else "unknown"
    return found


def environment(epoch: int, scratch: Path | None = None) -> dict[str, str]:
    """What every builder program gets: nothing of the user's locale, time zone or settings."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    home = str(scratch) if scratch is not None else "/"
    extra = {"TMPDIR": str(scratch)} if scratch is not None else {}
    # MTOOLSRC: the user's ~/.mtoolsrc and /etc/mtools.conf could change drives and checks.
    return {
        "PATH": path,
        "HOME": home,
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(epoch),
        "MTOOLSRC": "/dev/null",
        "MTOOLS_SKIP_CHECK": "1",
        **extra,
    }


def with_umask(argv: Sequence[str]) -> list[str]:
    """`argv` under umask 022, whatever ours is. (umask(2) is one for all threads of a process: not ours to set.)"""
    return ["sh", "-c", 'umask 022 && exec "$@"', "sh", *argv]


def with_own_mounts(argv: Sequence[str]) -> list[str]:
    """`argv` in a mount namespace of its own, for root.

    As root, mmdebstrap mounts /proc, /sys and /dev of this host in the new root; killed, it leaves them there, and
    whoever then deletes its scratch directory deletes what is mounted. In a namespace of its own they end with it.
    Where root may not make one (unshare(2): EPERM, as in a container), it may not mount either.
    """
    probe = ["unshare", "--mount", "--", "true"]
    if os.geteuid() != 0 or run(probe, timeout=30, check=False).returncode != 0:
        return list(argv)
    return [*probe[:-1], *argv]


def feed(
    argv: Sequence[str], source: Path, *, timeout: float, env: dict[str, str], on_poll: Callable[[float], None]
) -> None:
    """Run `argv` with `source` as its standard input.

    :raise HostTimeout: it did not end in `timeout` seconds; it was killed.
    :raise CommandFailed: another status than 0.
    """
    log = source.with_name(source.name + ".log")
    begun = time.monotonic()
    with source.open("rb") as stdin, log.open("w+b") as output:
        process = spawn(argv, stdin=stdin, stdout=output, stderr=output, env=env)
        try:
            while not await_exit(process, 0.5):
                elapsed = time.monotonic() - begun
                on_poll(elapsed)
                if elapsed >= timeout:
                    raise HostTimeout(f"{argv[0]} did not end within {timeout:.0f} s and was killed")
        finally:
            status = end(process)
        output.seek(0)
        said = output.read(1 << 20).decode("utf-8", "replace")
    if status != 0:
        raise CommandFailed(argv, status, said)


def subordinate_ids(text: str, name: str, uid: int) -> int:
    """How many subordinate ids subuid(5) or subgid(5) grants a user."""
    granted = 0
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[0] in {name, str(uid)} and fields[2].isdigit():
            granted += int(fields[2])
    return granted


def check_can_bootstrap() -> None:
    """That mmdebstrap can work for this user: as root, or with subordinate ids in a user namespace.

    :raise HostError: it cannot; the remedy says what the administrator has to do once.
    """
    if os.geteuid() == 0:
        return
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.geteuid())
    for file, option in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        if subordinate_ids(text, name, os.geteuid()) < 65536:
            raise HostError(
                f"user {name} has no 65536 subordinate ids in {file}: only root could build a root file system",
                remedy=f"as root, once: usermod {option} 100000-165535 {name} (both --add-subuids and "
                "--add-subgids are needed), and install uidmap; or build the image as root",
            )
    try:
        which("newuidmap")
    except MissingTool as error:
        raise MissingTool("newuidmap is not installed", remedy="apt-get install uidmap") from error
