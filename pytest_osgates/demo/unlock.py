"""What an initrd of the live ISO lacks to ask for a passphrase: cryptsetup, two kernel modules, and a script.

live-boot runs ``/scripts/local-top/cryptroot`` before it looks for its medium. cryptsetup is the host's, with its own
loader and libraries beside it, so that nothing has to be fetched.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Mapping
from pathlib import Path

from pytest_osgates.image.rootfs import RootView
from pytest_osgates.vm.errors import HostError, ImageError
from pytest_osgates.vm.process import run, which

DIRECTORY = "osgates"
SCRIPT = "scripts/local-top/cryptroot"
_MODULES = ("kernel/crypto/xts.ko.xz", "kernel/drivers/md/dm-crypt.ko.xz")
_MAX_MODULE = 16 << 20
_LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
# There is no shell behind a wrong passphrase: it asks again, for ever.
_TEXT = """#!/bin/sh
[ "$1" != prereqs ] || exit 0
disk=/dev/disk/by-uuid/@UUID@
key=/cryptroot/keyfiles/root.key
# No udev rules for device-mapper are on board: it makes its own nodes.
export DM_DISABLE_UDEV=1
unlock() {
    /@DIRECTORY@/@LOADER@ --library-path /@DIRECTORY@ /@DIRECTORY@/cryptsetup open --type luks2 "$@" "$disk" root
}
modprobe dm_mod
for module in @MODULES@; do
    insmod "/@DIRECTORY@/$module"
done
until [ -e "$disk" ]; do
    sleep 1
done
[ -e "$key" ] && unlock --key-file "$key" && exit 0
until unlock --tries 1; do
    echo "The disk was not unlocked."
done
echo "The disk was unlocked."
"""


def unlock_members(root: RootView, uuid: str, env: Mapping[str, str]) -> dict[str, tuple[int, bytes]]:
    """Files for the initrd, by their paths, with their permissions. `uuid` is the LUKS volume's.

    :raise ImageError: the live root has no such kernel modules.
    :raise HostError: cryptsetup or one of its libraries is missing.
    """
    program = Path(which("cryptsetup", remedy="apt-get install cryptsetup-bin"))
    libraries = _libraries(program, env)
    loader = next((path.name for path in libraries if path.name.startswith("ld-")), None)
    if loader is None:
        raise HostError(f"{program} names no loader: is it statically linked?", remedy="install cryptsetup-bin")
    members = {f"{DIRECTORY}/{path.name}": (0o755, path.read_bytes()) for path in (program, *libraries)}
    modules = _modules(root)
    members |= {f"{DIRECTORY}/{name}": (0o644, data) for name, data in modules.items()}
    text = _TEXT
    for word, value in (
        ("@UUID@", uuid),
        ("@DIRECTORY@", DIRECTORY),
        ("@LOADER@", loader),
        ("@MODULES@", " ".join(modules)),
    ):
        text = text.replace(word, value)
    members[SCRIPT] = (0o755, text.encode())
    return members


def _libraries(program: Path, env: Mapping[str, str]) -> list[Path]:
    """By ldd(1): the loader is among them, as a path alone."""
    said = run(["ldd", str(program)], timeout=30, env=env).text
    return [Path(match[1]) for match in _LIBRARY.finditer(said)]


def _modules(root: RootView) -> dict[str, bytes]:
    """Uncompressed: busybox reads no xz. A signature stands at the end of the module itself, and stays."""
    kernels = root.list_dir("/usr/lib/modules") or ()
    if len(kernels) != 1:
        raise ImageError(f"the live root has {len(kernels)} kernels, not one")
    found = {}
    for name in _MODULES:
        path = f"/usr/lib/modules/{kernels[0]}/{name}"
        stored = root.read(path, _MAX_MODULE)
        if stored is None:
            raise ImageError(f"the live root has no {path}")
        found[name.rpartition("/")[2].removesuffix(".xz")] = lzma.decompress(stored)
    return found
