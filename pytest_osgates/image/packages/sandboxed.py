"""Flatpaks and snaps in an image, by what is deployed (flatpak(1), FILES; snapd's seed and blob directories)."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.image.packages import Database, Package, Trouble
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.source import shown
from pytest_osgates.image.walk import locate
from pytest_osgates.vm.errors import ImageError

_SYSTEM = "/var/lib/flatpak"
_MORE = "/etc/flatpak/installations.d"
_USER = ".local/share/flatpak"
# The second: nss-altfiles(5), as OSTree's images have it.
_ACCOUNTS = ("/etc/passwd", "/usr/lib/passwd")
_SNAPS = ("/var/lib/snapd/seed/snaps", "/var/lib/snapd/snaps", "/snap")
_SNAP = re.compile(r"(.+)_([^_]+)\.snap")
MAX_TEXT = 1 << 20
MAX_REFS = 20_000
MAX_HOMES = 1000


@dataclass(frozen=True, slots=True)
class Deployed:
    """A Flatpak that is there: `kind` is ``app`` or ``runtime``; `path` the directory of the commit; `installation`
    that of the installation that it belongs to."""

    kind: str
    name: str
    arch: str
    branch: str
    path: str
    installation: str


def installations(view: RootView, trouble: Trouble) -> tuple[str, ...]:
    """The directories that Flatpaks are installed in: the system's, more that it is told of, and users'."""
    found = [_SYSTEM]
    for name in view.list_dir(_MORE) or ():
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string((view.read(f"{_MORE}/{name}", MAX_TEXT) or b"").decode("utf-8", "replace"))
        except (configparser.Error, ImageError) as error:
            trouble.add(f"{_MORE}/{shown(name)[1:-1]}: {' '.join(str(error).split())[:200]}")
            continue
        found += [parser.get(section, "Path") for section in parser.sections() if parser.has_option(section, "Path")]
    homes = [f"/home/{name}" for name in view.list_dir("/home") or ()]
    homes += ["/root", "/etc/skel", *_homes(view, trouble)]
    found += [f"{home}/{_USER}" for home in dict.fromkeys(homes)]
    places: dict[str, None] = {}
    for path in found:
        node = locate(view, path)
        if node is not None and node.inode.is_dir:
            places[node.path] = None
    return tuple(places)


def _homes(view: RootView, trouble: Trouble) -> list[str]:
    """Those of the image's accounts (passwd(5))."""
    homes: dict[str, None] = {}
    for path in _ACCOUNTS:
        try:
            text = (view.read(path, MAX_TEXT) or b"").decode("utf-8", "surrogateescape")
        except ImageError as error:
            trouble.add(error.what)
            continue
        fields = [line.split(":") for line in text.split("\n")]
        homes |= dict.fromkeys(line[5].rstrip("/") for line in fields if len(line) > 5 and line[5].startswith("/"))
    if len(homes) > MAX_HOMES:
        trouble.add(f"more than {MAX_HOMES} homes in {' and '.join(_ACCOUNTS)}")
    return list(homes)[:MAX_HOMES]


def deployed(view: RootView, places: tuple[str, ...], trouble: Trouble) -> Iterator[Deployed]:
    """Every commit that is deployed, whether active or not: ``KIND/NAME/ARCH/BRANCH/COMMIT``."""
    count = 0
    for place in places:
        for kind in ("app", "runtime"):
            for levels in _below(view, f"{place}/{kind}", 4):
                name, arch, branch, commit = levels
                count += 1
                if count > MAX_REFS:
                    trouble.add(f"more than {MAX_REFS} Flatpaks")
                    return
                yield Deployed(kind, name, arch, branch, f"{place}/{kind}/{'/'.join(levels[:3])}/{commit}", place)


def _below(view: RootView, path: str, depth: int) -> Iterator[tuple[str, ...]]:
    """The directories `depth` levels below `path`, links (``current``, ``active``) left out."""
    for name in view.list_dir(path) or ():
        inode = view.lookup(f"{path}/{name}", follow=False)
        if inode is None or not inode.is_dir:
            continue
        if depth == 1:
            yield (name,)
            continue
        for rest in _below(view, f"{path}/{name}", depth - 1):
            yield (name, *rest)


def read_flatpak(view: RootView) -> Database | None:
    """The Flatpaks in the image, applications and runtimes; None: there is no installation."""
    trouble = Trouble()
    places = installations(view, trouble)
    if not places and not trouble.found:
        return None
    refs = dict.fromkeys((found.name, found.branch, found.arch) for found in deployed(view, places, trouble))
    packages = tuple(Package(name, branch, arch) for name, branch, arch in refs)
    return Database("flatpak", places[0] if places else _SYSTEM, packages, tuple(trouble.found))


def read_snap(view: RootView) -> Database | None:
    """The snaps in the image, also those that are only there to be installed at the first start; None: no place
    for them."""
    places = [path for path in _SNAPS if view.list_dir(path) is not None]
    if not places:
        return None
    found: dict[tuple[str, str], None] = {}
    for path in places:
        for name in view.list_dir(path) or ():
            match = _SNAP.fullmatch(name)
            if match is not None:
                found[match[1], match[2]] = None
            elif path == "/snap" and name not in ("bin", "README"):
                found[name, ""] = None
    return Database("snap", places[0], tuple(Package(name, revision) for name, revision in found))
