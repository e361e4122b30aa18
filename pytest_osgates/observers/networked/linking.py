"""Which libraries a program gets, found in the image as ld.so(8) finds them there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pytest_osgates.image.elf import Elf, MalformedElf
from pytest_osgates.observers.networked.files import Files, Item
from pytest_osgates.observers.networked.knowledge import libraries
from pytest_osgates.vm.errors import ImageError

MAX_LIBRARIES = 2000
MAX_CONF = 1 << 20
_CONF = "/etc/ld.so.conf"
_PRELOAD = "/etc/ld.so.preload"
# ld.so(8): the default directories; Debian's and musl's have the multiarch ones built in as well.
_DEFAULTS = ("/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib")
_MULTIARCH = {
    (62, 64): "x86_64-linux-gnu",
    (3, 32): "i386-linux-gnu",
    (183, 64): "aarch64-linux-gnu",
    (40, 32): "arm-linux-gnueabihf",
    (243, 64): "riscv64-linux-gnu",
}
_HWCAPS = ("glibc-hwcaps/x86-64-v4", "glibc-hwcaps/x86-64-v3", "glibc-hwcaps/x86-64-v2")
_TOKEN = re.compile(r"\$(?:\{(ORIGIN|LIB|PLATFORM)\}|(ORIGIN|LIB|PLATFORM))")


@dataclass(frozen=True, slots=True)
class Linked:
    """A library that a program gets. `soname` is what was asked for; `item` None: it is nowhere in the image.

    `depth` 1: the program asks for it itself. `through`: sonames on the way from the program to it.
    """

    soname: str
    item: Item | None
    elf: Elf | None
    depth: int
    through: tuple[str, ...]


class Linker:
    """Resolves the libraries of programs; what it found once it does not look for again."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._configured = tuple(dict.fromkeys(_configured(files, _CONF, 0)))
        self._found: dict[tuple[str, int, int, tuple[str, ...]], tuple[Item, ...]] = {}
        self.preloaded = tuple(_text(files, _PRELOAD).replace(":", " ").split())
        self.providers: set[tuple[int, int]] = set()
        self.looked: set[tuple[int, int]] = set()
        # Names of libraries in libraries that load others; whether there are more than were looked for.
        self.loaded: dict[tuple[int, int], tuple[tuple[str, ...], bool]] = {}

    def closure(self, program: Item, elf: Elf) -> list[Linked]:
        """Every library that `program` gets, breadth first, each file once."""
        known = libraries()
        result: list[Linked] = []
        seen: set[tuple[int, int]] = {program.identity}
        pending: list[tuple[str, Item, Elf, tuple[str, ...], tuple[str, ...]]] = []

        def ask(item: Item, object_: Elf, rpath: tuple[str, ...], through: tuple[str, ...]) -> None:
            pending.extend((soname, item, object_, rpath, through) for soname in object_.needed)

        ask(program, elf, (), ())
        if elf.dynamic and elf.interpreter:
            pending.extend((soname, program, elf, (), ()) for soname in self.preloaded)
        while pending and len(result) < MAX_LIBRARIES:
            soname, item, object_, inherited, through = pending.pop(0)
            # RPATH holds for what a library needs as well, unless there is a RUNPATH, which does not.
            own = self._expanded(item, object_, object_.rpath)
            rpath = () if object_.runpath else (*own, *inherited)
            found = self.find(soname, object_, (*rpath, *self._expanded(item, object_, object_.runpath)))
            if not found:
                result.append(Linked(soname, None, None, len(through) + 1, through))
            for library in found:
                if library.identity in seen:
                    continue
                seen.add(library.identity)
                self.looked.add(library.identity)
                inner = self.elf(library)
                if known.providers.match(soname):
                    self.providers.add(library.identity)
                result.append(Linked(soname, library, inner, len(through) + 1, through))
                if inner is not None:
                    ask(library, inner, (*own, *inherited), (*through, soname))
        return result

    def find(self, soname: str, object_: Elf, directories: tuple[str, ...]) -> tuple[Item, ...]:
        """The files that `soname` may be: one, or one for each kind of processor; of the machine of `object_`."""
        key = (soname, object_.machine, object_.bits, directories)
        if key not in self._found:
            self._found[key] = tuple(self._search(soname, object_, directories))
        return self._found[key]

    def _search(self, soname: str, object_: Elf, directories: tuple[str, ...]) -> list[Item]:
        if "/" in soname:
            item = self._files.at(soname)
            return [item] if item is not None else []
        multiarch = _MULTIARCH.get((object_.machine, object_.bits))
        defaults = tuple(f"{path}/{multiarch}" for path in _DEFAULTS) if multiarch else ()
        for directory in dict.fromkeys((*directories, *self._configured, *defaults, *_DEFAULTS)):
            places = (*(f"{directory}/{caps}" for caps in _HWCAPS), directory)
            found = [item for place in places if (item := self._fitting(f"{place}/{soname}", object_)) is not None]
            if found:
                return found
        # A script may name its directory in LD_LIBRARY_PATH: any library of that name is better than none.
        return [item for item in self._files.named.get(soname, ()) if self._fits(item, object_)][:4]

    def elf(self, item: Item) -> Elf | None:
        """A library as ELF; None: it is none, or broken."""
        try:
            return self._files.elf(item)
        except (MalformedElf, ImageError):
            return None

    def _fitting(self, path: str, object_: Elf) -> Item | None:
        item = self._files.at(path)
        return item if item is not None and self._fits(item, object_) else None

    def _fits(self, item: Item, object_: Elf) -> bool:
        try:
            elf = self._files.elf(item)
        except (MalformedElf, ImageError):
            return True
        return elf is not None and (elf.machine, elf.bits) == (object_.machine, object_.bits)

    def _expanded(self, item: Item, elf: Elf, paths: tuple[str, ...]) -> tuple[str, ...]:
        origin = item.path.rpartition("/")[0]
        lib = f"lib/{_MULTIARCH.get((elf.machine, elf.bits), '')}".rstrip("/")
        found: list[str] = []
        for path in paths:
            for name in (lib, "lib64", "lib") if "LIB" in path else (lib,):
                values = {"ORIGIN": origin, "LIB": name, "PLATFORM": "x86_64"}
                found.append(_TOKEN.sub(lambda match, v=values: v[match[1] or match[2]], path))  # type: ignore[misc]
        return tuple(dict.fromkeys(path for path in found if path.startswith("/")))


def _text(files: Files, path: str) -> str:
    try:
        return (files.view.read(path, MAX_CONF) or b"").decode("utf-8", "surrogateescape")
    except ImageError:
        return ""


def _configured(files: Files, path: str, depth: int) -> Iterator[str]:
    """The directories of ld.so.conf (ldconfig(8)); ``include`` takes patterns."""
    for line in _text(files, path).splitlines():
        words = line.partition("#")[0].replace(",", " ").replace(":", " ").split()
        if words[:1] == ["include"]:
            for pattern in words[1:] if depth < 8 else ():
                full = pattern if pattern.startswith("/") else f"/etc/{pattern}"
                directory, _, name = full.rpartition("/")
                for entry in files.view.list_dir(directory) or ():
                    if fnmatchcase(entry, name):
                        yield from _configured(files, f"{directory}/{entry}", depth + 1)
        elif words[:1] != ["hwcap"]:
            yield from (word.rstrip("/") for word in words if word.startswith("/"))
