"""Plymouth in the initrd of the demo's disk: a graphical prompt, as users of a desktop know it.

Debian's packages, taken from its archive and unpacked beside the disk: nothing is installed on the host. What goes
into the initrd is what their own hook for initramfs-tools (usr/share/initramfs-tools/hooks/plymouth) puts there.
Programs and libraries lie in a directory of their own, for the initrd has others of the same names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pytest_osgates.debian.apt import PrivateApt
from pytest_osgates.debian.model import Suite
from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.workdir import temporary

SUITE = "trixie"
PACKAGES = ("plymouth", "plymouth-label", "plymouth-themes", "fonts-dejavu-core")
# Fedora's default theme, `bgrt`, is this one with the firmware's logo.
THEME = "spinner"
DIRECTORY = "plymouth"
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_PROGRAMS = ("usr/sbin/plymouthd", "usr/bin/plymouth")
_PLUGINS = "usr/lib/x86_64-linux-gnu/plymouth"
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
_LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_MISSING = re.compile(r"^\s*(\S+) => not found$", re.MULTILINE)
# The words and their order are those of Debian's cryptsetup-initramfs (scripts/local-top/cryptroot) and of Plymouth's
# own script (scripts/init-premount/plymouth). Plymouth hides what is written on the console meanwhile.
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
    if ! said=$(unlock --token-only --token-type systemd-tpm2 2>&1); then
        [ -e /dev/tpm0 ] || said="no TPM device. $said"
        set -f
        echo osgates-demo: the TPM did not unlock the disk: $said >/dev/kmsg
        until splash plymouth ask-for-password --prompt="Please unlock disk root:" | unlock --tries 1 --key-file -; do
            splash plymouth display-message \\
                --text="cryptsetup: ERROR: root: cryptsetup failed, bad password or options?"
            [ -z "@WAY_IN@" ] || splash plymouth quit
@REFUSED@        done
        splash plymouth display-message --text="cryptsetup: root: set up successfully"
    fi
    splash plymouth quit
    exit 0
fi
"""


def plymouth_members(scratch: Path, env: Mapping[str, str]) -> dict[str, tuple[int, bytes]]:
    """Files for the initrd, by their paths, with their permissions. The packages are unpacked below `scratch`.

    :raise HostError: they cannot be fetched, or do not hold what they should.
    """
    root = scratch / "plymouth"
    with temporary("Plymouth"):
        _unpack(root, scratch / "packages")
        names = [*_PROGRAMS, *(f"{_PLUGINS}/{name}" for name in _LOADED)]
        libraries = _libraries(root, names, env)
        members = {f"{DIRECTORY}/{path.name}": (0o755, path.read_bytes()) for path in libraries}
        members |= {f"{DIRECTORY}/{Path(name).name}": (0o755, _read(root, name)) for name in (*_PROGRAMS, _LOADER)}
        # Where Plymouth looks for them.
        members |= {name: (0o644, _read(root, name)) for name in names if name not in _PROGRAMS}
        members |= {name: (0o644, _read(root, name)) for name in _FILES}
        for theme in (THEME, "text", "details"):
            _read(root, f"{_THEMES}/{theme}/{theme}.plymouth")
            for path in sorted((root / _THEMES / theme).iterdir()):
                if path.is_file():
                    members[f"{_THEMES}/{theme}/{path.name}"] = (0o644, path.read_bytes())
    return members | {name: (0o644, text.encode()) for name, text in _CONFIGURATION.items()}


def _unpack(root: Path, debs: Path) -> None:
    apt = PrivateApt([Suite(SUITE)])
    apt.update()
    debs.mkdir()
    packages = apt.resolve(PACKAGES, essential=False)
    files = [(package, debs / f"{number}.deb") for number, package in enumerate(packages)]
    said = apt.download(files)
    extract = which("dpkg-deb", remedy="install the package dpkg")
    for package, path in files:
        if not path.exists():
            raise HostError(f"{package.name} {package.version} could not be fetched: {said[-300:]}")
        run([extract, "--extract", str(path), str(root)], timeout=120)


def _read(root: Path, name: str) -> bytes:
    path = root / name
    if not path.is_file():
        raise HostError(f"Debian's packages of Plymouth have no /{name}", remedy="run: osgates demo-disk --screen")
    return path.read_bytes()


def _libraries(root: Path, names: Iterable[str], env: Mapping[str, str]) -> list[Path]:
    """What they load, by the packages' own loader: none of the host's."""
    loader = root / _LOADER
    where = root / "usr/lib/x86_64-linux-gnu"
    found: dict[str, Path] = {}
    for name in names:
        command = [str(loader), "--library-path", str(where), "--list", str(root / name)]
        said = run(command, timeout=30, env=env, check=False).text
        for library in _MISSING.findall(said):
            raise HostError(f"{library}, which /{name} needs, is in none of the packages that it depends on")
        paths = [Path(text) for text in _LIBRARY.findall(said)]
        if not paths:
            raise HostError(f"the libraries of /{name} cannot be found out: {said[-300:]}")
        for path in paths:
            if path.is_relative_to(where):
                found.setdefault(path.name, path)
    return list(found.values())
