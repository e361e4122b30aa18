"""What an initrd of the live ISO lacks to ask for a passphrase: cryptsetup, two kernel modules, and a script.

live-boot runs ``/scripts/local-top/cryptroot`` before it looks for its medium. cryptsetup is the host's, with its own
loader and libraries beside it, so that nothing has to be fetched. So are, for a disk that a TPM opens, systemd's
plug-in for cryptsetup, systemd-cryptenroll, and the TPM software stack that both load when they need it.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_osgates.demo import plymouth
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.vm.errors import HostError, ImageError, MissingTool
from pytest_osgates.vm.process import run, which

DIRECTORY = "osgates"
SCRIPT = "scripts/local-top/cryptroot"
MODULES = ("kernel/crypto/xts.ko.xz", "kernel/drivers/md/dm-crypt.ko.xz")
_MAX_MODULE = 16 << 20
_LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
ENROL = "systemd-cryptenroll"
PLUGIN = "libcryptsetup-token-systemd-tpm2.so"
# What systemd loads at run time (src/shared/tpm2-util.c), so that ldd(1) does not name it.
TPM_STACK = ("libtss2-esys.so.0", "libtss2-mu.so.0", "libtss2-rc.so.0", "libtss2-tcti-device.so.0")
INSTALL_TPM = (
    "apt-get install libtss2-esys-3.0.2-0 libtss2-mu0 libtss2-rc0 libtss2-tcti-device0"
    " (from Debian 13 on also systemd-cryptsetup; the packages' names may end in t64)"
)
_LISTED = re.compile(r"^\s*(\S+) \(libc6,x86-64[^)]*\) => (/\S+)$", re.MULTILINE)
# There is no shell behind a wrong passphrase: it asks again, for ever.
_TEXT = """#!/bin/sh
[ "$1" != prereqs ] || exit 0
disk=/dev/disk/by-uuid/@UUID@
key=/cryptroot/keyfiles/root.key
# No udev rules for device-mapper are on board: it makes its own nodes.
export DM_DISABLE_UDEV=1
use() {
    program=$1
    shift
    "/@DIRECTORY@/@LOADER@" --library-path /@DIRECTORY@ "/@DIRECTORY@/$program" "$@"
}
unlock() {
    use cryptsetup open --type luks2 "$@" "$disk" root
}
modprobe dm_mod
for module in @MODULES@; do
    insmod "/@DIRECTORY@/$module"
done
until [ -e "$disk" ]; do
    sleep 1
done
[ -e "$key" ] && unlock --key-file "$key" && exit 0
@BEFORE@until unlock --tries 1; do
    echo "The disk was not unlocked."
@REFUSED@done
echo "The disk was unlocked."
@AFTER@"""
_ENROLLED = """read -r line </proc/cmdline
echo "Command line: $line"
tpm=
use cryptsetup luksDump "$disk" | grep -q systemd-tpm2 && tpm=enrolled
"""
# systemd-stub(7) puts .pcrsig into the initrd; systemd-cryptsetup@.service(8) says where it is looked for.
_SIGNED = """mkdir -p /run/systemd
cp /.extra/tpm2-pcr-signature.json /run/systemd/
"""
# Whatever the TPM says goes to the kernel's log as well, and from there to the journal.
_BY_TPM = """if [ -n "$tpm" ]; then
    if said=$(unlock --token-only --token-type systemd-tpm2 2>&1); then
        echo "The disk was unlocked by the TPM."
        exit 0
    fi
    # The plug-in has no word for that.
    [ -e /dev/tpm0 ] || said="no TPM device. $said"
    set -f
    # Without quotes: one line.
    echo The TPM did not unlock the disk: $said
    echo osgates-demo: the TPM did not unlock the disk: $said >/dev/kmsg
fi
"""
# cryptsetup asks for the PIN itself, on standard error: it must be seen.
_BY_TPM_AND_PIN = """if [ -n "$tpm" ]; then
    if unlock --token-only --token-type systemd-tpm2 --tries 1; then
        echo "The disk was unlocked by the TPM and the PIN."
        exit 0
    fi
    [ -e /dev/tpm0 ] || echo "No TPM device."
    echo "The TPM did not unlock the disk."
    echo "osgates-demo: the TPM did not unlock the disk." >/dev/kmsg
fi
"""
# The first boot: what it measured is what the disk is bound to.
_ENROL = """if [ -z "$tpm" ]; then
    printf 'The TPM is to unlock this disk from now on. The passphrase once more: '
    IFS= read -r -s PASSWORD
    echo
    export PASSWORD
@PIN@    if use @ENROL@ --tpm2-device=auto --tpm2-pcrs=@PCRS@ @BY_KEY@@WITH_PIN@"$disk"; then
        echo "The TPM was enrolled."
    else
        echo "The TPM was not enrolled."
    fi
fi
"""
_BY_KEY = "--tpm2-public-key=/.extra/tpm2-pcr-public-key.pem --tpm2-public-key-pcrs=@SIGNED@ "
# systemd-cryptenroll(1): $NEWPIN is the PIN to be enrolled.
_NEW_PIN = """    printf 'The PIN without which the TPM is not to unlock this disk: '
    IFS= read -r -s NEWPIN
    echo
    export NEWPIN
"""
# Of weakened disks: what a wrong passphrase leads to. The second one as sulogin(8) says it where root has
# no password.
_WAYS_IN = {
    "": "",
    "shell": """    echo "Here is a shell to repair it with."
    /bin/sh
""",
    "emergency": """    echo "You are in emergency mode."
    printf 'Press Enter for maintenance\n(or press Control-D to continue): '
    read -r _ && /bin/sh
""",
}


WayIn = Literal["", "shell", "emergency"]


@dataclass(frozen=True)
class TpmUnlock:
    """The first boot enrols the TPM, bound to `pcrs`; the next ones ask it. With `pin`, the first boot asks for a PIN
    to be enrolled, and the next ones for this PIN. With `plymouth`, the next ones ask for the passphrase by it.
    `signed`: PCRs that a policy binds which the key in the unified kernel image signs."""

    pcrs: tuple[int, ...]
    pin: bool = False
    plymouth: bool = False
    signed: tuple[int, ...] = ()

    def script(self) -> str:
        """What comes before the passphrase is asked for on the console."""
        way = plymouth.SHELL if self.plymouth else _BY_TPM_AND_PIN if self.pin else _BY_TPM
        return (_SIGNED if self.signed else "") + _ENROLLED + way


def unlock_members(
    root: RootView, uuid: str, env: Mapping[str, str], tpm: TpmUnlock | None = None, *, way_in: WayIn = ""
) -> dict[str, tuple[int, bytes]]:
    """Files for the initrd, by their paths, with their permissions. `uuid` is the LUKS volume's. `way_in`: weakened,
    what is behind a wrong passphrase.

    :raise ImageError: the live root has no such kernel modules.
    :raise HostError: cryptsetup or one of its libraries is missing, or what a TPM takes.
    """
    program = Path(which("cryptsetup", remedy="apt-get install cryptsetup-bin"))
    programs, token = [program], None
    if tpm is not None:
        token = _token(program, env)
        programs += [Path(which(ENROL, remedy=INSTALL_TPM)), token, *_tpm_stack(env)]
    libraries = _libraries(programs, env)
    loader = next((path.name for path in libraries if path.name.startswith("ld-")), None)
    if loader is None:
        raise HostError(f"{program} names no loader: is it statically linked?", remedy="install cryptsetup-bin")
    members = {f"{DIRECTORY}/{path.name}": (0o755, path.read_bytes()) for path in (*programs, *libraries)}
    if token is not None:
        # Where this libcryptsetup looks for it. Of /lib, the initrd may make a link.
        members[str(token.resolve()).lstrip("/")] = members.pop(f"{DIRECTORY}/{token.name}")
    modules = _modules(root)
    members |= {f"{DIRECTORY}/{name}": (0o644, data) for name, data in modules.items()}
    members[SCRIPT] = (0o755, unlock_script(uuid, loader, modules, tpm, way_in=way_in).encode())
    return members


def unlock_script(
    uuid: str, loader: str, modules: Iterable[str], tpm: TpmUnlock | None = None, *, way_in: WayIn = ""
) -> str:
    """The text of the initrd's script. `loader`, `modules`: names of files beside its programs."""
    text = _TEXT
    with_pin = tpm is not None and tpm.pin
    signed = () if tpm is None else tpm.signed
    for word, value in (
        ("@BEFORE@", "" if tpm is None else tpm.script()),
        ("@AFTER@", "" if tpm is None else _ENROL),
        ("@PIN@", _NEW_PIN if with_pin else ""),
        ("@WITH_PIN@", "--tpm2-with-pin=yes " if with_pin else ""),
        ("@BY_KEY@", _BY_KEY if signed else ""),
        ("@SIGNED@", "+".join(map(str, signed))),
        ("@WAY_IN@", way_in),
        ("@REFUSED@", _WAYS_IN[way_in]),
        ("@ENROL@", ENROL),
        ("@PCRS@", "" if tpm is None else "+".join(map(str, tpm.pcrs))),
        ("@UUID@", uuid),
        ("@DIRECTORY@", DIRECTORY),
        ("@LOADER@", loader),
        ("@MODULES@", " ".join(modules)),
    ):
        text = text.replace(word, value)
    return text


def _libraries(programs: Iterable[Path], env: Mapping[str, str]) -> list[Path]:
    """By ldd(1): the loader is among them, as a path alone."""
    found: dict[str, Path] = {}
    for program in programs:
        for match in _LIBRARY.finditer(run(["ldd", str(program)], timeout=30, env=env).text):
            found.setdefault(Path(match[1]).name, Path(match[1]))
    return list(found.values())


def _token(program: Path, env: Mapping[str, str]) -> Path:
    """systemd's plug-in, in the directory beside libcryptsetup where that looks.

    :raise MissingTool: it is not installed.
    """
    for library in _libraries([program], env):
        if library.name.startswith("libcryptsetup.so"):
            path = library.parent / "cryptsetup" / PLUGIN
            if path.is_file():
                return path
    raise MissingTool(f"{PLUGIN} is not where cryptsetup would look for it", remedy=INSTALL_TPM)


def _tpm_stack(env: Mapping[str, str]) -> list[Path]:
    """By ldconfig(8). :raise MissingTool: a library is not installed."""
    listed = run([which("ldconfig"), "-p"], timeout=30, env=env).text
    known = {match[1]: Path(match[2]) for match in _LISTED.finditer(listed)}
    for name in TPM_STACK:
        if name not in known:
            raise MissingTool(f"{name} is not installed", remedy=INSTALL_TPM)
    return [known[name] for name in TPM_STACK]


def _modules(root: RootView) -> dict[str, bytes]:
    """Uncompressed: busybox reads no xz. A signature stands at the end of the module itself, and stays."""
    kernels = root.list_dir("/usr/lib/modules") or ()
    if len(kernels) != 1:
        raise ImageError(f"the live root has {len(kernels)} kernels, not one")
    found = {}
    for name in MODULES:
        path = f"/usr/lib/modules/{kernels[0]}/{name}"
        stored = root.read(path, _MAX_MODULE)
        if stored is None:
            raise ImageError(f"the live root has no {path}")
        found[name.rpartition("/")[2].removesuffix(".xz")] = lzma.decompress(stored)
    return found
