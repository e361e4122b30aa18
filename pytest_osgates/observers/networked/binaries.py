"""Why an ELF program counts as networked: by what it imports, links and loads, and by its code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.checks.apparmor_model import Evidence, Kind
from pytest_osgates.image.contents import FileContents
from pytest_osgates.image.elf import X86_64, Elf
from pytest_osgates.image.elf_code import SystemCalls, gives, goes_to, system_calls
from pytest_osgates.observers.networked.files import Files, Interpreter, Item
from pytest_osgates.observers.networked.knowledge import Runtime, libraries
from pytest_osgates.observers.networked.linking import Linked, Linker
from pytest_osgates.vm.text import one_line

# unistd_64.h, unistd_32.h and asm-generic/unistd.h: socket, connect, bind, listen, accept, accept4, sendto, recvfrom,
# io_uring_setup; i386 has socketcall as well.
_NETWORK = {
    "x86_64": frozenset({41, 42, 43, 44, 45, 49, 50, 288, 425}),
    "i386": frozenset({102, 359, 361, 362, 363, 364, 369, 371, 425}),
    "aarch64": frozenset({198, 200, 201, 202, 203, 206, 207, 242, 425}),
}
_LOADED = re.compile(rb"lib[A-Za-z0-9_+.-]{1,80}?\.so(?:\.[0-9]{1,4}){0,4}(?=\0)")
# What syscall(2) is given for socket(2): mov $41,%edi; and where the table of what is called does not help, before or
# behind it something for %esi, then a call: $41 alone is a closing parenthesis as well.
_SOCKET, _SOCKET_NUMBER = 41, b"\xbf\x29\0\0\0"
_FAMILY = (
    rb"(?:\xbe....|\x31\xf6|\x89[\xc6\xce\xd6\xde\xe6\xee\xf6\xfe]"
    rb"|[\x8b\x8d\x63][\x30-\x37\x70-\x77\xb0-\xb7\xf0-\xf7]|\x5e)"
)
_THROUGH_LIBC = re.compile(
    rb"(?:\xbf\x29\0\0\0(?=.{0,24}?" + _FAMILY + rb")|" + _FAMILY + rb".{0,24}?\xbf\x29\0\0\0)"
    rb".{0,24}?(?:[\xe8\xe9]|\xff[\x15\x25])",
    re.DOTALL,
)
_OPENING_CALLS = frozenset({("x86_64", 41), ("x86_64", 43), ("x86_64", 288), ("x86_64", 425), ("i386", 102)})
_LISTENING_CALLS = frozenset({("x86_64", 50), ("i386", 102), ("i386", 363), ("aarch64", 201)})
_OVERLAP = 128
# Who serves datagrams binds and is told from whom they are. bind alone, as for netlink, is not serving.
_DATAGRAM_CALLS = (
    frozenset({("x86_64", 49), ("x86_64", 45)}),
    frozenset({("i386", 361), ("i386", 371)}),
    frozenset({("aarch64", 200), ("aarch64", 207)}),
)
_CAN_LISTEN = frozenset({"listen", "accept", "accept4"})
_DATAGRAMS = frozenset({"bind", "recvfrom"})
_LOADERS = frozenset({"dlopen", "dlmopen"})
_WORTH_LOADING = 400
# UPX writes its mark behind the program headers.
_PACKED, _NEAR = b"UPX!", 1024


@dataclass(frozen=True, slots=True)
class Program:
    """What was found out about one ELF program. `listens`: it may wait for others from elsewhere."""

    evidence: tuple[Evidence, ...]
    sha256: str
    listens: bool = False


@dataclass
class _Marks:
    """What a single reading of all bytes found. `unread`: there are more names of libraries than are looked for."""

    sha256: str
    loaded: tuple[str, ...]
    unread: bool
    packed: bool
    runtime: Runtime | None
    runtime_network: str
    runtime_named: bool
    through_libc: bool


def examine(files: Files, linker: Linker, item: Item, elf: Elf) -> Program:
    """Everything that speaks for `item`, which `elf` describes, being networked.

    :raise ImageError: the image is damaged.
    """
    known = libraries()
    contents = item.open()
    marks = _read(contents, elf)
    calls = system_calls(contents, elf)
    evidence = [*_imports(elf), *_own_code(elf, marks, calls), *_interpreted(files, item, elf)]
    linked = linker.closure(item, elf)
    evidence += _links(linked)
    if elf.imports & _LOADERS:
        evidence += _loads(linker, elf, marks.loaded, linked)
    evidence += _libraries_load(linker, linked)
    if not evidence and marks.unread:
        evidence.append(Evidence(kind=Kind.UNTOLD, detail=f"it names {_WORTH_LOADING} libraries, and more"))
    if not evidence and calls.clearly and not (marks.runtime is not None and marks.runtime_named):
        detail = f"its own code makes {calls.clearly} system calls whose number is computed"
        evidence.append(Evidence(kind=Kind.UNTOLD, detail=detail))
    direct = {entry.kind for entry in evidence}
    if not direct:
        evidence += _reaches(linked)
    internet = {name.decode() for name in known.internet} & elf.imports
    waits = bool(elf.imports & _CAN_LISTEN) or elf.imports >= _DATAGRAMS
    listens = (waits and bool(internet)) or bool(calls.numbers & _LISTENING_CALLS)
    listens = listens or any(calls.numbers >= several for several in _DATAGRAM_CALLS)
    listens = listens or bool({name.decode() for name in known.listeners} & elf.imports)
    listens = listens or bool(direct & {Kind.RUNTIME, Kind.UNTOLD})
    return Program(tuple(evidence), marks.sha256, listens)


def is_library(elf: Elf) -> bool:
    """Whether it is no program of its own, though it may be marked executable."""
    return not elf.interpreter and bool(elf.soname or elf.needed)


def examine_library(item: Item, elf: Elf) -> Program:
    """A library that is marked executable: what its own code does, should somebody start it."""
    contents = item.open()
    marks = _read(contents, elf)
    return Program(tuple(_own_code(elf, marks, system_calls(contents, elf))), marks.sha256)


def api(elf: Elf) -> frozenset[str]:
    """What of the socket API it imports."""
    return elf.imports & {name.decode() for name in libraries().imports}


def _names(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _imports(elf: Elf) -> Iterator[Evidence]:
    names = api(elf)
    if names:
        yield Evidence(kind=Kind.IMPORTS, detail=_names(names))


def _own_code(elf: Elf, marks: _Marks, calls: SystemCalls) -> Iterator[Evidence]:
    made = sorted((abi, number) for abi, number in calls.numbers if number in _NETWORK[abi])
    if made:
        numbers = ", ".join(f"{number} ({abi})" for abi, number in made)
        yield Evidence(kind=Kind.SYSTEM_CALLS, detail=f"its code makes the system calls {numbers}")
    elif marks.through_libc:
        yield Evidence(kind=Kind.SYSTEM_CALLS, detail="it calls socket through the function syscall")
    if marks.runtime is not None and marks.runtime_network:
        yield Evidence(kind=Kind.RUNTIME, detail=f"{marks.runtime.name}: {marks.runtime_network}")
    elif marks.runtime is not None and not marks.runtime_named:
        yield Evidence(kind=Kind.UNTOLD, detail=f"{marks.runtime.name}, without the names of its functions")
    hidden = _hidden(elf, marks, calls)
    if hidden:
        yield Evidence(kind=Kind.UNTOLD, detail=hidden)
    if made or hidden or not elf.is_static:
        return
    if not calls.known:
        yield Evidence(kind=Kind.UNTOLD, detail=f"static, for machine {elf.machine}, whose code is not read")
    elif calls.untold and not (marks.runtime is not None and marks.runtime_named):
        yield Evidence(kind=Kind.UNTOLD, detail=f"static, with {calls.untold} system calls whose number is computed")


def _hidden(elf: Elf, marks: _Marks, calls: SystemCalls) -> str:
    """Why it may run code that is not in the file."""
    if marks.packed:
        return "it is packed: what runs is not what stands in the file"
    if elf.rewritable:
        return "a part of it is code that can be written to"
    return "its own code makes memory executable" if calls.executes else ""


def _interpreted(files: Files, program: Item, elf: Elf) -> Iterator[Evidence]:
    """What PT_INTERP names is usually a dynamic linker, but can be anything: klibc has its whole library there, and
    programs go to fixed addresses in it."""
    if not elf.interpreter:
        return
    item = files.at(elf.interpreter)
    if item is None:
        yield Evidence(kind=Kind.REACHES, detail=f"its interpreter {one_line(elf.interpreter)} is not in the image")
        return
    if item.identity not in files.interpreters:
        files.interpreters[item.identity] = _interpreter(item, files.elf(item))
    found = files.interpreters[item.identity]
    if not found.foreign:
        return
    if found.stubs is None or elf.dynamic or elf.machine != X86_64:
        yield Evidence(kind=Kind.UNTOLD, detail=f"it runs on {item.path}, and nothing says what it calls in there")
    elif goes_to(program.open(), elf, found.stubs):
        yield Evidence(kind=Kind.SYSTEM_CALLS, detail=f"it goes to where {item.path} makes those of sockets")


def _interpreter(item: Item, elf: Elf | None) -> Interpreter:
    if elf is None:
        return Interpreter(foreign=True)
    contents = item.open()
    calls = system_calls(contents, elf)
    if elf.dynamic:
        return Interpreter(foreign=any(number in _NETWORK[abi] for abi, number in calls.numbers))
    # Those that give a socket; all others need one.
    made = calls.numbers & _OPENING_CALLS
    stubs = {(abi, number): at for at, abi, number in calls.stubs}
    addresses = frozenset(stubs[call] for call in made if call in stubs)
    # Whoever opens sockets for his own ends opens them for those that call him.
    if calls.untold or elf.machine != X86_64 or len(addresses) != len(made) or goes_to(contents, elf, addresses):
        return Interpreter(foreign=True)
    return Interpreter(foreign=True, stubs=addresses)


def _links(linked: list[Linked]) -> Iterator[Evidence]:
    """Listed libraries, and such as nobody classified, which import the API: those that it asks for itself, and those
    behind libraries that nobody classified."""
    known = libraries()
    for library in linked:
        what = _what(library)
        if what and (library.depth == 1 or not any(_is_classified(soname) for soname in library.through)):
            way = " -> ".join((*library.through, library.soname))
            yield Evidence(kind=Kind.LINKS, detail=f"{one_line(way)}: {what}")
        elif not what and not _is_classified(library.soname, library) and library.elf is not None:
            by_unclassified = not any(_is_classified(soname) for soname in library.through)
            if api(library.elf) and by_unclassified:
                yield Evidence(
                    kind=Kind.LINKS_UNLISTED,
                    detail=f"{one_line(library.soname)}, which imports {_names(api(library.elf))}",
                )
        if library.item is None and library.depth == 1 and not what and not known.carriers.match(library.soname):
            yield Evidence(kind=Kind.REACHES, detail=f"{one_line(library.soname)}, which is not in the image")


def _what(library: Linked) -> str:
    """By the name that was asked for, or by the one that the library gives itself."""
    known = libraries()
    own = library.elf.soname if library.elf is not None else ""
    return known.what(library.soname) or (known.what(own) if own else "")


def _is_classified(soname: str, library: Linked | None = None) -> bool:
    known = libraries()
    names = [soname, library.elf.soname] if library is not None and library.elf is not None else [soname]
    return any(
        known.providers.match(name) or known.carriers.match(name) or known.what(name) for name in names if name
    )


def _loads(linker: Linker, elf: Elf, names: tuple[str, ...], linked: list[Linked]) -> Iterator[Evidence]:
    known = libraries()
    there = {library.soname for library in linked}
    for name in names:
        if name in there:
            continue
        what = known.what(name)
        found = linker.find(name, elf, ()) if not what else ()
        if what:
            yield Evidence(kind=Kind.LOADS, detail=f"{name}: {what}")
        elif found and not _is_classified(name):
            inner = linker.elf(found[0])
            if inner is not None and api(inner):
                yield Evidence(kind=Kind.LOADS, detail=f"{name}, which imports {_names(api(inner))}")


def _libraries_load(linker: Linker, linked: list[Linked]) -> Iterator[Evidence]:
    """Listed libraries that its libraries load by name: those that nobody classified, and that it has not through one
    that somebody did."""
    for library in linked:
        item, elf = library.item, library.elf
        if item is None or elf is None or not elf.imports & _LOADERS or _is_classified(library.soname, library):
            continue
        if any(_is_classified(soname) for soname in library.through):
            continue
        if item.identity not in linker.loaded:
            linker.loaded[item.identity] = _loaded_by(item)
        names, unread = linker.loaded[item.identity]
        there = {other.soname for other in linked}
        for name in names:
            # Only what is listed: libraries name many that few of their users ever need.
            what = libraries().what(name) if name not in there else ""
            if what:
                yield Evidence(kind=Kind.LOADS, detail=f"{one_line(library.soname)} -> {name}: {what}")
        if unread:
            detail = f"{one_line(library.soname)} names {_WORTH_LOADING} libraries, and more"
            yield Evidence(kind=Kind.UNTOLD, detail=detail)


def _loaded_by(item: Item) -> tuple[tuple[str, ...], bool]:
    """The names of libraries in a library, and whether there are too many of them."""
    found: dict[str, None] = {}
    before = b""
    for chunk in item.open().chunks():
        for piece in (chunk, before + chunk[:_OVERLAP]) if before else (chunk,):
            found.update(dict.fromkeys(match.decode() for match in _LOADED.findall(piece)))
        if len(found) >= _WORTH_LOADING:
            return tuple(found), True
        before = chunk[-_OVERLAP:]
    return tuple(found), False


def _reaches(linked: list[Linked]) -> Iterator[Evidence]:
    for library in linked:
        if library.elf is not None and not libraries().providers.match(library.soname) and api(library.elf):
            way = " -> ".join((*library.through, library.soname))
            yield Evidence(kind=Kind.REACHES, detail=one_line(way))
            return


def _read(contents: FileContents, elf: Elf) -> _Marks:
    """One pass over all bytes; another one only for a runtime that hides what it does."""
    digest = hashlib.sha256()
    loads, by_number = bool(elf.imports & _LOADERS), "syscall" in elf.imports
    loaded: dict[str, None] = {}
    marked: dict[str, Runtime] = {}
    libc = False
    before = b""
    for chunk in contents.chunks():
        digest.update(chunk)
        # What lies across two chunks is in the seam; to join them whole would copy every byte once more.
        for piece in (chunk, before + chunk[:_OVERLAP]) if before else (chunk,):
            for runtime in libraries().runtimes:
                if runtime.mark in piece:
                    marked[runtime.name] = runtime
            if loads and len(loaded) < _WORTH_LOADING:
                loaded.update(dict.fromkeys(match.decode() for match in _LOADED.findall(piece)))
            if by_number and not libc and _SOCKET_NUMBER in piece:
                libc = elf.slots is not None or _THROUGH_LIBC.search(piece) is not None
        before = chunk[-_OVERLAP:]
    libc = libc and (elf.slots is None or gives(contents, elf, _SOCKET))
    packed = _PACKED in contents.read_at(0, min(_NEAR, contents.size))
    # What is linked dynamically imports what it uses, but for Go, which calls the kernel itself.
    own = marked.get("Go") or (next(iter(marked.values()), None) if elf.is_static else None)
    hit, named = ("", True) if own is None else _told(contents, own)
    return _Marks(digest.hexdigest(), tuple(loaded), len(loaded) >= _WORTH_LOADING, packed, own, hit, named, libc)


def _told(contents: FileContents, runtime: Runtime) -> tuple[str, bool]:
    """The name by which a runtime gives its use of the network away, and whether its names are there at all."""
    named = not runtime.names
    before = b""
    for chunk in contents.chunks():
        piece = before + chunk
        hit = next((name for name in runtime.network if name in piece), None)
        if hit is not None:
            return hit.decode(), True
        named = named or any(name in piece for name in runtime.names)
        before = chunk[-_OVERLAP:]
    return "", named
