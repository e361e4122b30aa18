"""Other programs that the same shim starts: an older kernel of the demo's Debian with an initrd for it, and the GRUB
of the Debian before. All are signed by Debian's key, so that only what was measured tells them from the demo's."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from pytest_osgates.debian.apt import PrivateApt
from pytest_osgates.debian.model import Suite
from pytest_osgates.demo import cached_demo_iso
from pytest_osgates.demo.build import scratch_beside
from pytest_osgates.demo.definition import DEFINITION
from pytest_osgates.demo.disk_variants import load_disk_file
from pytest_osgates.demo.fault import image_epoch
from pytest_osgates.demo.tools import environment
from pytest_osgates.demo.unlock import TpmUnlock, unlock_members
from pytest_osgates.image.iso9660 import IsoImage
from pytest_osgates.image.newc import appended_archive
from pytest_osgates.image.rootfs import open_root
from pytest_osgates.vm.process import run

OLDER = "bookworm"
_GRUB = "grub-efi-amd64-signed"
_GRUB_FILE = "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed"
_FILES = {"kernel": "/live/vmlinuz", "initrd": "/live/initrd.img", "loader": "/EFI/BOOT/grubx64.efi"}
_SECURITY = re.compile(r'\[\[suites\]\]\nname = "[a-z]+-security"\n(?:[a-z_]+ = .*\n)*')


def other_programs(iso: Path, directory: Path) -> dict[str, Path]:
    """``kernel``, ``initrd`` and ``loader``, each another one than that of the demo at `iso`.

    :raise HostError: they cannot be fetched or built.
    :raise AssertionError: one is the demo's own: there is nothing older now.
    """
    older = cached_demo_iso(lambda _stage, _fraction: None, definition=_without_security(directory / "definition"))
    found = {name: _taken(older, _FILES[name], directory / name) for name in ("kernel", "initrd")}
    found["loader"] = _grub(directory)
    for name, path in found.items():
        own = _taken(iso, _FILES[name], directory / f"own-{name}")
        assert _digest(path) != _digest(own), f"the other {name} is the demo's own"
    _unlocks(older, found["initrd"])
    return found


def _without_security(directory: Path) -> Path:
    """A definition of the demo as it was released, before what its Debian has mended since: an older kernel."""
    shutil.copytree(DEFINITION.parent / "tree", directory / "tree", symlinks=True)
    text, suites = _SECURITY.subn("", DEFINITION.read_text(encoding="utf-8"))
    assert suites == 1
    text, names = re.subn(
        r'^name = "osgates-demo"$', 'name = "osgates-demo-older"', text, count=1, flags=re.MULTILINE
    )
    assert names == 1
    path = directory / DEFINITION.name
    path.write_text(text, encoding="utf-8")
    return path


def _unlocks(iso: Path, initrd: Path) -> None:
    """As the disk's own initrd does, with the modules of this kernel: it asks the TPM, and for the passphrase."""
    spec = load_disk_file()
    with open_root(iso) as root, scratch_beside(initrd) as scratch:
        env = environment(image_epoch(iso), scratch)
        members = unlock_members(root, spec.luks.uuid, env, TpmUnlock(spec.pcrs))
    with initrd.open("ab") as opened:
        opened.write(appended_archive(opened.tell(), members))


def _grub(directory: Path) -> Path:
    apt = PrivateApt([Suite(OLDER)])
    apt.update()
    (package,) = apt.locate([_GRUB])
    deb, unpacked = directory / "grub.deb", directory / "grub"
    said = apt.download([(package, deb)])
    assert deb.exists(), said
    run(["dpkg-deb", "--extract", str(deb), str(unpacked)], timeout=120)
    return unpacked / _GRUB_FILE


def _taken(iso: Path, name: str, target: Path) -> Path:
    with IsoImage.open(iso) as image, target.open("wb") as out:
        file = image.lookup(name)
        assert file is not None, name
        for extent in file.extents:
            out.write(image.source.read_at(extent.offset, extent.size))
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
