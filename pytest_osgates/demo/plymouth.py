"""Plymouth in the initrd of the demo's disk: a graphical prompt, as users of a desktop know it.

Debian's packages, taken from its archive and unpacked beside the disk: nothing is installed on the host. What goes
into the initrd is what their own hook for initramfs-tools (usr/share/initramfs-tools/hooks/plymouth) puts there.
Programs and libraries lie in a directory of their own, for the initrd has others of the same names.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from pytest_osgates.debian import DebStore
from pytest_osgates.debian.apt import PrivateApt
from pytest_osgates.debian.model import Suite
from pytest_osgates.demo.tools import need
from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.process import run

SUITE = "trixie"
PACKAGES = ("plymouth", "plymouth-label", "plymouth-themes", "fonts-dejavu-core")
# Fedora's default theme, `bgrt`, is this one with the firmware's logo.
THEME = "spinner"
DIRECTORY = "plymouth"
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_PROGRAMS = ("usr/sbin/plymouthd", "usr/bin/plymouth")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_PLUGINS = f"{_LIBRARIES}/plymouth"
_LOADED = (
    *("two-step.so", "text.so", "details.so", "label-pango.so"),
    *("renderers/drm.so", "renderers/frame-buffer.so"),
)
_THEMES = "usr/share/plymouth/themes"
_FILES = (
    *("usr/share/plymouth/plymouthd.defaults", "usr/share/plymouth/debian-logo.png"),
    *("usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "usr/share/fonts/opentype/cantarell/Cantarell-VF.otf"),
)
_CONFIGURATION = {
    "etc/plymouth/plymouthd.conf": f"[Daemon]\nTheme={THEME}\nShowDelay=0\n",
    "etc/fonts/fonts.conf": '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n'
    "<fontconfig><dir>/usr/share/fonts</dir><cachedir>/run/fontconfig</cachedir></fontconfig>\n",
}
# A console on a serial port makes Plymouth show its messages as text on every terminal.
PARAMETERS = ("plymouth.ignore-serial-consoles", "splash")
# "libc.so.6 => usr/lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)", "libdrm.so.2 => not found".
_LIBRARY = re.compile(r"^\s*(\S+) => (not found$|\S+)", re.MULTILINE)
# What the packages take once they are unpacked.
_MIB = 120
_TEXT = "run: osgates demo-disk --tpm --screen, which asks on a text console"
# The words and their order are those of Debian's cryptsetup-initramfs (scripts/local-top/cryptroot) and of Plymouth's
# own script (scripts/init-premount/plymouth). Plymouth hides what is written on the console meanwhile. Where it does
# not start, the text console asks.
SHELL = f"""splash() {{
    program=$1
    shift
    "/{DIRECTORY}/{Path(_LOADER).name}" --library-path "/{DIRECTORY}" "/{DIRECTORY}/$program" "$@"
}}
# The first boot asks on the text console.
if [ -n "$tpm" ]; then
    mkdir -p -m 0755 /run/plymouth
    splash plymouthd --mode=boot --attach-to-session --pid-file=/run/plymouth/pid
    splash plymouth --show-splash
    opened=
    if said=$(unlock --token-only --token-type systemd-tpm2 2>&1); then
        opened=yes
    else
        [ -e /dev/tpm0 ] || said="no TPM device. $said"
        set -f
        echo osgates-demo: the TPM did not unlock the disk: $said >/dev/kmsg
    fi
    while [ -z "$opened" ] && splash plymouth --ping; do
        if splash plymouth ask-for-password --prompt="Please unlock disk root:" | unlock --tries 1 --key-file -; then
            opened=yes
        else
            splash plymouth display-message \\
                --text="cryptsetup: ERROR: root: cryptsetup failed, bad password or options?"
            [ -z "@WAY_IN@" ] || splash plymouth quit
@REFUSED@        fi
    done
    splash plymouth quit
    [ -z "$opened" ] || exit 0
fi
"""


def plymouth_members(scratch: Path, env: Mapping[str, str]) -> dict[str, tuple[int, bytes]]:
    """Files for the initrd, by their paths, with their permissions. The packages are unpacked below `scratch`.

    :raise HostError: they cannot be fetched, there is no room, or they do not hold what they should.
    """
    root = scratch / "plymouth"
    _unpack(root)
    names = [*_PROGRAMS, *(f"{_PLUGINS}/{name}" for name in _LOADED)]
    try:
        members = {
            f"{DIRECTORY}/{Path(name).name}": (0o755, _read(root, name)) for name in _libraries(root, names, env)
        }
        members |= {f"{DIRECTORY}/{Path(name).name}": (0o755, _read(root, name)) for name in (*_PROGRAMS, _LOADER)}
        # Where Plymouth looks for them.
        members |= {name: (0o644, _read(root, name)) for name in names if name not in _PROGRAMS}
        members |= {name: (0o644, _read(root, name)) for name in _FILES}
        for theme in (THEME, "text", "details"):
            where = f"{_THEMES}/{theme}"
            _read(root, f"{where}/{theme}.plymouth")
            for path in sorted((root / where).iterdir()):
                members[f"{where}/{path.name}"] = (0o644, _read(root, f"{where}/{path.name}"))
    except OSError as error:
        raise HostError(
            f"Plymouth's files cannot be read: {error.filename}: {error.strerror}", remedy=_TEXT
        ) from error
    # Room for what comes after it.
    shutil.rmtree(root)
    return members | {name: (0o644, text.encode()) for name, text in _CONFIGURATION.items()}


def _unpack(root: Path) -> None:
    need("dpkg-deb")
    apt = PrivateApt([Suite(SUITE)])
    apt.update()
    for deb in DebStore().fetch(apt.resolve(PACKAGES, essential=False), lambda: apt):
        run(["dpkg-deb", "--extract", str(deb), str(root)], timeout=120, remedy=f"is there room for {_MIB} MiB?")


def _read(root: Path, name: str) -> bytes:
    path = root / name
    # A link of a package's might lead to a file of the host.
    if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
        raise HostError(f"Debian's packages of Plymouth have no /{name}", remedy=_TEXT)
    return path.read_bytes()


def _libraries(root: Path, names: Iterable[str], env: Mapping[str, str]) -> list[str]:
    """What they load, as paths below `root`, by the packages' own loader.

    Started below `root`, so that no blank or colon of its path gets in the way; whatever is found elsewhere is the
    host's, for a loader looks there, too.
    """
    found: dict[str, str] = {}
    for name in names:
        command = [str(root.resolve() / _LOADER), "--library-path", _LIBRARIES, "--list", name]
        listed = _LIBRARY.findall(run(command, timeout=30, cwd=root, env=env, check=False).text)
        if not listed:
            raise HostError(f"what /{name} of Debian's packages loads cannot be found out", remedy=_TEXT)
        for library, path in listed:
            if path.startswith(f"{_LIBRARIES}/"):
                found[library] = path
            elif not Path(library).name.startswith("ld-linux"):
                raise HostError(f"{library}, which /{name} loads, is in none of Debian's packages", remedy=_TEXT)
    return list(found.values())
