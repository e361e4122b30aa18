"""systemd's units as they lie in an image: which there are, drop-ins merged, masked ones left out (systemd.unit(5)).

What generators make at boot is not here; whoever boots sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError

# systemd.unit(5), UNIT FILE LOAD PATH, without /run, which is empty at boot.
SYSTEM = (
    "/etc/systemd/system.control",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
USER = (
    "/etc/xdg/systemd/user",
    "/etc/systemd/user",
    "/usr/local/share/systemd/user",
    "/usr/share/systemd/user",
    "/usr/local/lib/systemd/user",
    "/usr/lib/systemd/user",
)
SUFFIXES = (".service", ".socket", ".timer")
MAX_UNIT = 1 << 20
MAX_UNITS = 20_000
# systemd.syntax(7): a backslash at the end of a line goes on with the next one, comments between them left out.
_SECTION = re.compile(r"\[([^\]]+)\]")
Settings = dict[tuple[str, str], list[str]]


@dataclass(frozen=True)
class Unit:
    """A unit by the name that is asked for; `path` is its main file. `settings`: by section and key, all values in
    their order, those before an empty one forgotten."""

    name: str
    path: str
    settings: Settings = field(default_factory=dict)

    def values(self, section: str, key: str) -> list[str]:
        """All values of a key."""
        return self.settings.get((section, key), [])

    def value(self, section: str, key: str) -> str:
        """The last one, which counts where only one can; empty: none."""
        return next(reversed(self.values(section, key)), "")


def parse_unit(text: str, settings: Settings | None = None) -> Settings:
    """The settings in a unit's text, added to those given."""
    found: Settings = {} if settings is None else settings
    section = ""
    pending = ""
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line, pending = (pending + line).strip(), ""
        match = _SECTION.fullmatch(line)
        if match:
            section = match[1]
            continue
        key, equals, value = line.partition("=")
        if not equals or not section:
            continue
        place = (section, key.strip())
        if value.strip():
            found.setdefault(place, []).append(value.strip())
        else:
            found[place] = []
    return found


def users(view: RootView) -> Iterator[tuple[str, ...]]:
    """Where each user's units come from: first for those who have none of their own, then for each who has."""
    yield USER
    for home in ("/root", "/etc/skel", *(f"/home/{name}" for name in view.list_dir("/home") or ())):
        own = tuple(f"{home}/.config/systemd/{name}" for name in ("user.control", "user"))
        late = f"{home}/.local/share/systemd/user"
        if any(view.list_dir(path) is not None for path in (*own, late)):
            yield (*own, *USER[:2], late, *USER[2:])


def read_units(view: RootView, directories: tuple[str, ...], unread: dict[str, str] | None = None) -> Iterator[Unit]:
    """The services, sockets and timers that these directories hold, the first directory first, masked ones left out;
    and instances of which only drop-ins are there.

    A unit that cannot be read is given without settings. `unread`: takes the paths of such, with the reason.
    """
    unread = {} if unread is None else unread
    listings = {directory: view.list_dir(directory) or () for directory in directories}
    seen: set[str] = set()
    for directory, names in listings.items():
        for name in names:
            if name in seen or not name.endswith(SUFFIXES):
                continue
            if len(seen) > MAX_UNITS:
                unread[f"{directory}/{name}"] = f"more than {MAX_UNITS} units"
                return
            seen.add(name)
            path = f"{directory}/{name}"
            inode = view.lookup(path)
            link = view.lookup(path, follow=False)
            target = link.target if link is not None else None
            if target == "/dev/null" or (inode is not None and not inode.is_dir and not inode.size):
                continue
            if inode is None:
                continue
            yield _unit(view, name, path, listings, unread)
    for folder in dict.fromkeys(name for names in listings.values() for name in names):
        name = folder.removesuffix(".d")
        template = template_of(name)
        if folder == name or not template or name in seen or not name.endswith(SUFFIXES):
            continue
        seen.add(name)
        path = next((f"{directory}/{template}" for directory, names in listings.items() if template in names), "")
        inode = view.lookup(path) if path else None
        if inode is not None and not inode.is_dir and inode.size:
            yield _unit(view, name, path, listings, unread)


def template_of(name: str) -> str:
    """``foo@.service`` for ``foo@eth0.service``; empty: that is no instance."""
    stem, dot, suffix = name.rpartition(".")
    prefix, at, instance = stem.partition("@")
    return f"{prefix}@{dot}{suffix}" if at and instance and prefix else ""


def _unit(view: RootView, name: str, path: str, listings: dict[str, tuple[str, ...]], unread: dict[str, str]) -> Unit:
    settings = parse_unit(text_of(view, path, unread))
    for drop_in in _drop_ins(view, name, listings):
        parse_unit(text_of(view, drop_in, unread), settings)
    return Unit(name, path, settings)


def _drop_ins(view: RootView, name: str, listings: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """The drop-ins of a unit in the order in which they count: by their names, wherever they lie. Of two with one
    name the first counts (systemd.unit(5); src/basic/unit-file.c): directory by directory ``foo-bar.service.d``, of
    an instance ``foo@.service.d``, then ``foo-.service.d``; at last ``service.d``. What masks one is a link to
    /dev/null, or empty, and says nothing.
    """
    stem, _, suffix = name.rpartition(".")
    folders = [f"{name}.d"]
    if "@" in stem and not stem.endswith("@"):
        stem = f"{stem.partition('@')[0]}@"
        folders.append(f"{stem}.{suffix}.d")
    parts = stem.rstrip("@").split("-")
    folders += [f"{'-'.join(parts[:count])}-.{suffix}.d" for count in range(len(parts) - 1, 0, -1)]
    chosen: dict[str, str] = {}
    for several in (folders, [f"{suffix}.d"]):
        for directory, names in listings.items():
            for folder in several:
                for file in (view.list_dir(f"{directory}/{folder}") or ()) if folder in names else ():
                    if file.endswith(".conf"):
                        chosen.setdefault(file, f"{directory}/{folder}/{file}")
    for file in sorted(chosen, key=lambda text: text.encode("utf-8", "surrogateescape")):
        yield chosen[file]


def text_of(view: RootView, path: str, unread: dict[str, str], limit: int = MAX_UNIT) -> str:
    """A file's text; empty: there is no file, or it cannot be read, and `unread` says why."""
    try:
        inode = view.lookup(path)
        if inode is None or inode.kind is not FileKind.FILE:
            return ""
        return (view.read(path, limit) or b"").decode("utf-8", "surrogateescape")
    except ImageError as error:
        unread[path] = error.what
        return ""


def is_privileged(text: str) -> bool:
    """Whether a command line has the prefix ``+`` (systemd.service(5)): what its unit says of AppArmor, of filters of
    system calls and of no_new_privs is not applied to it. With ``!`` and ``!!`` it is, only the user is not."""
    match = re.match(r"[@:!|+-]*", text.strip().lstrip("\"'"))
    return match is not None and "+" in match[0]


def split_command(text: str) -> list[str]:
    """The words of a command line (systemd.service(5), COMMAND LINES), its prefixes taken off; specifiers stay. What
    a program is to be called (``@``) is left out, but for busybox, which is told by it what to do."""
    words = [_unquoted(match[0]) for match in re.finditer(r'(?:"(?:[^"\\]|\\.)*"|\'[^\']*\'|\\.|[^\s"\'\\])+', text)]
    if words:
        bare = words[0].lstrip("@-:+!|")
        named = "@" in words[0].removesuffix(bare)
        words[0] = bare
        if named and bare.rpartition("/")[2] != "busybox":
            del words[1:2]
    return [word for word in words if word]


def _unquoted(word: str) -> str:
    pattern = r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\''
    return re.sub(
        pattern, lambda match: re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else match[2], word
    )


def listens_on_internet(address: str) -> bool:
    """Whether a value of ListenStream= or the like is reached through IP (systemd.socket(5)); if in doubt, it is."""
    if not address or address.startswith(("/", "@", "%t/", "%S/", "%h/", "%E/", "%C/", "%L/", "%T/", "%V/")):
        return False
    return not address.startswith("vsock")
