"""A live image that is not ours: Debian's own live-build, with its defaults and a time service, for trixie.

Nothing of this project is in it: no serial console, no agent, and a boot menu that waits for ever. What boots and
judges it boots and judges what other people's tools really make.

Building takes some three minutes, root, and the archive that this host's apt already uses; the result is kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.vm.errors import CommandFailed, HostError, HostTimeout
from pytest_osgates.vm.process import run, which

DISTRIBUTION = "trixie"
# live-build(7), "config/package-lists": a time service, which Debian's desktops have by default and this image lacks,
# and AppArmor's own word on who is confined.
PACKAGES = ("systemd-timesyncd", "apparmor-utils")
BUILD_DEADLINE_S = 20 * 60.0
_QUERY_DEADLINE_S = 60.0

# apt-get(8): "indextargets"; these are fields of its stanzas, written as $(FIELD).
_SOURCE_FORMAT = "$(LABEL)|$(REPO_URI)"

_PRIVATE_NAMESPACES = (
    # live-build mounts /proc, /sys and devpts inside its chroot. In namespaces of its own, a build that is killed
    # half-way leaves neither a process nor a mount, and its directory can be removed without reaching into /sys.
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child=SIGKILL",
    "--mount-proc",
)


@dataclass(frozen=True)
class Mirrors:
    """The archives that this host's apt sources name. `security` is None where they name none."""

    main: str
    security: str | None


def host_mirrors() -> Mirrors:
    """The Debian archive, and its security archive, of this host's apt sources.

    :raise MissingTool: this host has no apt.
    :raise HostError: its sources name no Debian archive that live-build could fetch from.
    """
    remedy = "add a Debian archive to this host's apt sources, then: apt-get update"
    listing = run(
        ["apt-get", "indextargets", "--format", _SOURCE_FORMAT, "Created-By: Packages", "Origin: Debian"],
        timeout=_QUERY_DEADLINE_S,
        remedy=remedy,
    ).text
    found: dict[str, str] = {}
    for line in listing.splitlines():
        label, _, uri = line.partition("|")
        if uri.startswith(("http://", "https://")):
            found.setdefault(label, uri)
    if "Debian" not in found:
        raise HostError("the apt sources of this host name no Debian archive on http or https", remedy=remedy)
    return Mirrors(found["Debian"], found.get("Debian-Security"))


def config_arguments(mirrors: Mirrors) -> list[str]:
    """The arguments of `lb config`: live-build's defaults but for the boot loader, firmware packages and archives."""
    arguments = [
        "--mode=debian",
        f"--distribution={DISTRIBUTION}",
        "--architecture=amd64",
        "--binary-image=iso-hybrid",
        "--bootloaders=grub-pc,grub-efi",
        "--uefi-secure-boot=auto",
        "--debian-installer=none",
        "--firmware-chroot=false",
        f"--mirror-bootstrap={mirrors.main}",
        f"--mirror-chroot={mirrors.main}",
        f"--mirror-binary={mirrors.main}",
    ]
    if mirrors.security is None:
        return [*arguments, "--security=false"]
    return [
        *arguments,
        f"--mirror-chroot-security={mirrors.security}",
        f"--mirror-binary-security={mirrors.security}",
    ]


def stock_live_iso(cache: Path) -> Path:
    """The image, built if `cache` does not already hold it with the digest that was noted when it was built.

    Beside the returned ``stock-live-KEY.iso`` lie ``stock-live-KEY.iso.sha256`` (as sha256sum(1) writes it) and
    the build's ``.log``. KEY is made of live-build's version and arguments and of the added packages. Callers in
    several processes wait for the one that builds. To build afresh, remove the image.

    :raise MissingTool: live-build is not installed.
    :raise HostError: not root, or no archive to build from.
    :raise HostTimeout: the build did not end within 20 minutes.
    :raise CommandFailed: the build failed; the log's path is in the message.
    """
    cache = cache.resolve()
    lb = which("lb", remedy="apt-get install live-build")
    arguments = config_arguments(host_mirrors())
    version = run([lb, "--version"], timeout=_QUERY_DEADLINE_S).text.strip()
    key = hashlib.sha256("\n".join([version, *arguments, *PACKAGES]).encode()).hexdigest()[:12]
    iso = cache / f"stock-live-{key}.iso"
    digest = iso.with_name(f"{iso.name}.sha256")
    if _holds(iso, digest):
        return iso
    if os.geteuid() != 0:
        raise HostError(
            "live-build has to be root: it makes a root file system and enters it",
            remedy=f"as root, in the top directory of this repository: python -m tests.e2e.livebuild {cache}",
        )
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"stock-live-{key}.lock"):
        if _holds(iso, digest):
            return iso  # another process built it while we waited
        # A digest that fits no finished image would make the next call trust half of one.
        digest.unlink(missing_ok=True)
        _build(lb, arguments, iso)
        digest.write_text(_digest_line(iso), encoding="ascii")
    return iso


def _build(lb: str, arguments: list[str], iso: Path) -> None:
    tree = iso.with_suffix(".build")
    log = iso.with_suffix(".log")
    _remove(tree)  # a build that was killed left it; our lock says that nobody is working in it
    tree.mkdir()
    try:
        run([lb, "config", *arguments], cwd=tree, timeout=_QUERY_DEADLINE_S)
        lists = tree / "config" / "package-lists"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / "added.list.chroot").write_text("".join(f"{name}\n" for name in PACKAGES), encoding="ascii")
        _run_build(lb, tree, log)
        images = sorted(tree.glob("*.iso"))
        if len(images) != 1:
            raise HostError(f"live-build left {len(images)} images, not one", remedy=f"read {log}")
        images[0].replace(iso)
    finally:
        _remove(tree)


def _run_build(lb: str, tree: Path, log: Path) -> None:
    """One `lb build` in `tree`, all that it prints going to `log`, also when it is cut short."""
    # A shell only for its redirection: live-build writes errors to both streams, and their order tells the story.
    to_log = ("sh", "-c", 'log=$1; shift; exec "$@" >"$log" 2>&1', "sh", str(log))
    command = [*_PRIVATE_NAMESPACES, *to_log, lb, "build"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    # Debian's ordinary users have no sbin in their PATH, and su(1) without "-" keeps that.
    environment["PATH"] = f"{environment.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    try:
        run(command, cwd=tree, env=environment, timeout=BUILD_DEADLINE_S)
    except HostTimeout as error:
        raise HostTimeout(
            f"live-build did not end within {BUILD_DEADLINE_S / 60:.0f} minutes and was killed",
            remedy=f"read {log}: a slow archive shows as the last package",
        ) from error
    except CommandFailed as error:
        output = log.read_text("utf-8", "replace") if log.exists() else error.output
        raise CommandFailed([lb, "build"], error.returncode, output, remedy=f"read {log}") from error


def _holds(iso: Path, digest: Path) -> bool:
    """Whether `iso` is there with the very bytes that `digest` notes."""
    try:
        return digest.read_text("ascii") == _digest_line(iso)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _digest_line(iso: Path) -> str:
    with iso.open("rb") as opened:
        return f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {iso.name}\n"


def _remove(tree: Path) -> None:
    if tree.exists():
        shutil.rmtree(tree)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` as a lock: flock(2), which the kernel lets go when we die."""
    with path.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{stock_live_iso(Path(sys.argv[1]))}\n")
