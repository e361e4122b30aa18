"""Every networked program of an image, found in its files. Nothing is booted or unpacked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pytest_osgates.checks.apparmor_model import Evidence, Kind, Networked, StaticScan, UnitSeen, Unreadable, tier_of
from pytest_osgates.checks.settings.capabilities import decode
from pytest_osgates.image.elf import MalformedElf
from pytest_osgates.image.packages import Trouble
from pytest_osgates.image.packages.sandboxed import installations
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.tree import resolved
from pytest_osgates.observers.networked import binaries, flatpaks
from pytest_osgates.observers.networked.files import CAPABILITY, Files, Identity, Item, collect
from pytest_osgates.observers.networked.knowledge import libraries
from pytest_osgates.observers.networked.linking import Linker
from pytest_osgates.observers.networked.scripts import (
    MAX_SCRIPT,
    Scripts,
    Shell,
    commands,
    expand,
    is_network,
    language_of,
    parse_shebang,
    started,
)
from pytest_osgates.observers.networked.services import Start, starts
from pytest_osgates.observers.networked.starters import (
    MAX_COMMANDS,
    has_more,
    last_lines,
    loaded_by,
    simple_commands,
    unwrapped,
)
from pytest_osgates.observers.packages import Placed, read_databases
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.text import one_line

Progress = Callable[[str, float | None], None]
MAX_UNFOLLOWED = 200
_DEEP = 4
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_STDLIBS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
# An x-bit on something that is neither ELF nor a script means something only where programs are.
# Names of what others run on. Whether they do is known once all programs were looked at.
_SERVES = re.compile(rf"{libraries().providers.pattern}|.*\.so$")
# Not of file descriptors alone: exec 3<file.
_EXEC = re.compile(r"(?:^|[;&|({]|\bthen\b|\belse\b|\bdo\b)[ \t]*exec[ \t]+((?![\d<>&])[^\n]{1,2000})", re.M)
_PLACES = ("/bin/", "/sbin/", "/libexec/", "/games/")


@dataclass
class Draft:
    """An entry in the making."""

    item: Item | None
    evidence: list[Evidence] = field(default_factory=list)
    sha256: str = ""
    interpreter: str = ""
    listens: bool = False
    package: str = ""

    def add(self, kind: Kind, detail: str) -> None:
        """One more reason, once."""
        reason = Evidence(kind=kind, detail=one_line(detail, 400))
        if reason not in self.evidence:
            self.evidence.append(reason)


class Started(NamedTuple):
    """What a command line starts: whether it serves others (None: its own code tells), by which way it is started,
    and what is executed for that, where it is another program. `profile`, `apart`: see :class:`starters.Inner`.
    `named`: it is only among the words of a command."""

    item: Item
    serves: bool | None = None
    through: str = ""
    executed: str = ""
    profile: str | None = None
    apart: bool = False
    named: bool = False


def scan(view: RootView, progress: Progress = lambda stage, fraction: None) -> StaticScan:
    """The networked programs in `view`.

    :raise ImageError: its file system is damaged. A single file that cannot be read is an `unreadable` of the result.
    """
    return _Scan(view, progress).run()


class _Scan:
    def __init__(self, view: RootView, progress: Progress) -> None:
        self.view = view
        self.progress = progress
        progress("listing", None)
        self.places = installations(view, Trouble())
        self.files: Files = collect(view, self.places)
        self.linker = Linker(self.files)
        self.sources: dict[str, str] = {}
        self.owners = self._owned()
        self.scripts = Scripts(
            self.files, self.owner, lambda path: self.sources.get(self.owner(path), ""), self._extension
        )
        self.drafts: dict[str, Draft] = {}
        self.unreadable: dict[str, str] = {}
        self.unfollowed: dict[str, None] = {}
        self.done: dict[Identity, Draft] = {}
        # Libraries that are marked executable, and were looked at as such.
        self.plain: set[Identity] = set()
        self.names: set[str] = set()
        self.elves = self.texts = self.others = 0
        self.guessing = False

    def run(self) -> StaticScan:
        later: list[Item] = []
        count = max(1, len(self.files.programs))
        for number, item in enumerate(self.files.programs):
            if number % 64 == 0:
                self.progress("programs", number / count)
            if not self._program(item):
                later.append(item)
        for item in later:
            # What programs use as their libc is no program; who only calls itself so is one.
            if item.identity not in self.linker.providers and item.identity not in self.files.interpreters:
                self._program(item, also_providers=True)
        for item in self.files.attributed:
            self._capabilities(item)
        unread: dict[str, str] = {}
        seen = tuple(dict.fromkeys(unit for start in starts(self.view, unread) for unit in self._start(start)))
        self.unreadable |= {path: f"what it starts: {one_line(why, 300)}" for path, why in unread.items()}
        for draft in self.drafts.values():
            inode = draft.item.inode if draft.item is not None else None
            if inode is not None and inode.mode & 0o4000 and inode.mode & 0o111 and _counts(draft):
                draft.add(Kind.SETUID, f"mode {inode.mode & 0o7777:o}, owner {inode.uid}")
        for application in (*flatpaks.applications(self.view, self.places), *flatpaks.snaps(self.view)):
            self.drafts[application.path] = Draft(
                None, list(application.evidence), application.sha256, package=application.package
            )
        return StaticScan(
            entries=tuple(self._entries()),
            unreadable=tuple(Unreadable(path=one_line(path), why=why) for path, why in self.unreadable.items()),
            units=seen,
            unfollowed=tuple(list(self.unfollowed)[:MAX_UNFOLLOWED]),
            files=self.files.count,
            elves=self.elves,
            scripts=self.texts,
            others=self.others,
            libraries=len(self.linker.looked),
            flatpak_files=self.files.flatpak_files,
        )

    def owner(self, path: str) -> str:
        """MANAGER:NAME of the package that a path in the image belongs to; empty: none."""
        return self.owners.get(path, "")

    def _owned(self) -> dict[str, str]:
        placed = Placed(self.view, self.files.directories)
        owners: dict[str, str] = {}
        for manager, database in read_databases(self.view):
            for package in database.packages:
                owner = f"{manager}:{package.name}"
                self.sources[owner] = f"{manager}:{package.source}" if package.source else ""
                for path in package.files or ():
                    owners[placed(path)] = owner
        return owners

    # -- programs ----------------------------------------------------------------------------------------------------

    def _program(self, item: Item, *, also_providers: bool = False, loaded: bool = False) -> bool:
        """Look at one file; False: later, once it is known who is linked with it. `loaded`: the dynamic linker runs
        it, whether or not it is a program by itself."""
        if loaded and item.identity in self.plain:
            self.plain.discard(item.identity)
            self.drafts.pop(item.path, None)
            del self.done[item.identity]
            self.elves -= 1
        if item.identity in self.done:
            self._keep(item, self.done[item.identity])
            return True
        draft = Draft(item)
        try:
            elf = self.files.elf(item)
            if elf is not None:
                names = (elf.soname, item.path.rpartition("/")[2] if not (elf.interpreter or elf.dynamic) else "")
                if not also_providers and any(name and _SERVES.match(name) for name in names):
                    return False
                self.elves += 1
                library = binaries.is_library(elf) and not loaded
                if library:
                    self.plain.add(item.identity)
                found = (
                    binaries.examine_library(item, elf)
                    if library
                    else binaries.examine(self.files, self.linker, item, elf)
                )
                draft = Draft(item, list(found.evidence), found.sha256, listens=found.listens)
            else:
                draft = self._text(item)
        except (ImageError, MalformedElf) as error:
            what = error.what if isinstance(error, ImageError) else str(error)
            self.unreadable[item.path] = one_line(what, 300)
        self.done[item.identity] = draft
        self._keep(item, draft)
        return True

    def _keep(self, item: Item, draft: Draft) -> None:
        if draft.evidence:
            own = Draft(item, list(draft.evidence), draft.sha256, draft.interpreter, draft.listens)
            self.drafts.setdefault(item.path, own)

    def _text(self, item: Item) -> Draft:
        """A script, or whatever else is marked executable."""
        contents = item.open()
        head = contents.read_at(0, min(256, contents.size))
        shebang = parse_shebang(head)
        if shebang is None:
            self.others += 1
            if b"\0" in head or not any(place in item.path for place in _PLACES):
                return Draft(item)
            # execvp(3) and every shell give such a file to sh.
            return self._script(item, "sh")
        self.texts += 1
        name = shebang.name
        if name == "busybox" and shebang.arguments:
            name = shebang.arguments[0]
        return self._script(item, name, shebang.interpreter)

    def _script(self, item: Item, name: str, interpreter: str = "") -> Draft:
        if item.inode.size > MAX_SCRIPT:
            reason = Evidence(kind=Kind.UNTOLD, detail=f"a script of {item.inode.size} bytes")
            return Draft(item, [reason], interpreter=interpreter)
        raw = b"".join(item.open().chunks())
        language = language_of(name)
        evidence: list[Evidence]
        if language is None:
            # Whatever its interpreter imports: that may only start what interprets it (Rscript becomes R).
            detail = f"a script for {one_line(interpreter or name)}"
            evidence = [
                Evidence(kind=Kind.UNTOLD, detail=f"{detail}, whose language is not known")
                if self._is_there(interpreter or name)
                else Evidence(kind=Kind.REACHES, detail=f"{detail}, which is not in the image")
            ]
        else:
            evidence = self.scripts.examine(item, raw, language)
        listens = not isinstance(language, Shell) and any(entry.kind is Kind.MODULES for entry in evidence)
        return Draft(item, evidence, hashlib.sha256(raw).hexdigest(), one_line(interpreter), listens)

    def _is_there(self, interpreter: str) -> bool:
        """Whether an interpreter may be in the image, in whatever directory where it has none."""
        if interpreter.startswith("/"):
            return self.files.at(interpreter) is not None
        if not self.names:
            programs = (item.path for item in self.files.programs)
            self.names = {path.rpartition("/")[2] for path in (*programs, *self.files.links)}
        return "/" in interpreter or interpreter in self.names

    def _extension(self, item: Item, own: bool) -> str | None:
        """What of the network a library uses that a script imports; of others' libraries only what they import. None:
        it cannot be read."""
        try:
            elf = self.files.elf(item)
            if elf is None:
                return None
            if not own:
                return ", ".join(sorted(binaries.api(elf)))
            found = binaries.examine(self.files, self.linker, item, elf).evidence
        except (ImageError, MalformedElf):
            return None
        return next((entry.detail for entry in found if tier_of(frozenset({entry.kind})) != "C"), "")

    def _resolve(self, program: str) -> Item | None:
        if program.startswith("/"):
            return self.files.at(program)
        if "/" in program or not program:
            return None
        return next((item for place in _PATH if (item := self.files.at(f"{place}/{program}")) is not None), None)

    # -- what makes a program one that must be confined --------------------------------------------------------------

    def _capabilities(self, item: Item) -> None:
        raw = item.filesystem.xattrs(item.inode).get(CAPABILITY)
        if raw is None:
            return
        try:
            held = decode(raw)
        except ValueError as error:
            self.unreadable[item.path] = one_line(f"its capabilities: {error}", 300)
            return
        names = sorted(name for name in held.permitted | held.inheritable if name.startswith("cap_net_"))
        if names:
            draft = self.drafts.setdefault(item.path, Draft(item))
            draft.add(Kind.FILE_CAPABILITY, ", ".join(names))
            draft.sha256 = draft.sha256 or _digest(item)

    def _start(self, start: Start) -> Iterator[UnitSeen]:
        """What a unit starts, as far as it is a networked program; and note why that must be confined."""
        program = self._resolve(start.words[0])
        if start.elsewhere or (program is None and ("%" in start.words[0] or "$" in start.words[0])):
            self._lost(start, " ".join(start.words))
        if program is None:
            return
        self._program(program, also_providers=True)
        lost: list[str] = []
        seen: set[UnitSeen] = set()
        for one in self._started(program, start.words, lost):
            item, serves, through, executed = one.item, one.serves, one.through, one.executed
            draft = self.drafts.get(item.path)
            if one.named and not (
                start.stays and draft is not None and (draft.listens if serves is None else serves)
            ):
                continue
            if start.sockets:
                draft = self.drafts.setdefault(item.path, Draft(item, sha256=_digest(item)))
                listed = ", ".join(start.sockets[:5])
                draft.add(Kind.SOCKET_UNIT, f"{start.unit} is handed the sockets {listed}")
            if draft is None:
                continue
            listens = draft.listens if serves is None else serves
            if start.stays and (one.apart or not start.closed) and _counts(draft) and listens:
                draft.add(Kind.LISTENING_SERVICE, f"{start.unit}{f' ({through})' if through else ''}")
            unit = start.seen(item.path, one_line(executed, 4096), one.profile, apart=one.apart)
            if _counts(draft) and unit not in seen:
                seen.add(unit)
                yield unit
        for command in lost:
            self._lost(start, command)

    def _lost(self, start: Start, command: str) -> None:
        self.unfollowed[f"{one_line(start.unit)}: {one_line(command, 200)}"] = None

    def _started(self, program: Item, words: tuple[str, ...], lost: list[str], depth: int = 0) -> Iterator[Started]:
        """What is followed; and programs among the words, which it may be there to run, though no row says so."""
        given = set()
        for one in self._followed(program, words, lost, depth):
            given.add(one.item.path)
            yield one
        if self.guessing:
            return
        for at, word in enumerate(words[1:], 2):
            path = word[word.find("=") + 1 :]
            item = self.files.at(path) if path.startswith("/") else None
            if item is None or not item.runs or item.path in given:
                continue
            self.guessing = True
            try:
                found = list(self._command((path, *words[at:]), [], depth, words[0].rpartition("/")[2]))
            finally:
                self.guessing = False
            for one in found:
                if one.item.path not in given:
                    given.add(one.item.path)
                    yield one._replace(named=True)

    def _followed(self, program: Item, words: tuple[str, ...], lost: list[str], depth: int) -> Iterator[Started]:
        """The program, and what an interpreter is given: a script, a module, or a text. What an interpreter could do
        says nothing of that. `lost`: commands that cannot be followed.
        """
        inner = unwrapped(words)
        if inner.words != words and depth < _DEEP:
            # Who runs another program is a program, too.
            yield Started(program)
            for one in self._command(inner.words, lost, depth, words[0].rpartition("/")[2]):
                profile = inner.profile if one.profile is None else one.profile
                yield one._replace(profile=profile, apart=one.apart or inner.apart)
            return
        name = words[0].rpartition("/")[2]
        language = language_of(name)
        listener = _option(words, "-m") if language is not None and not isinstance(language, Shell) else ""
        own = program.path.rpartition("/")[2]
        if libraries().providers.match(own):
            # The dynamic linker as a command (ld.so(8)): it runs what cannot run by itself as well.
            command = loaded_by(words)
            loaded = self.files.at(command[0]) if command else None
            if loaded is None and command:
                lost.append(" ".join(words))
            elif loaded is not None:
                self._program(loaded, also_providers=True, loaded=True)
                # It need not be executable, and may be an interpreter.
                for one in self._command((loaded.path, *command[1:]), lost, depth, own):
                    executed = one.item.path == loaded.path or one.executed
                    yield one._replace(executed=program.path if executed else "")
            return
        elif language is None:
            yield Started(program)
            yield from self._becomes(program, lost, depth)
        elif name == "busybox":
            yield Started(program, any(commands(" ".join(words))), " ".join(words[:2]))
        else:
            serves = bool(listener) and self._module_listens((name, own), listener)
            yield Started(program, serves, f"-m {listener}" if serves else "")
        if language is None:
            return
        text = _option(words, "-c")
        if text:
            if isinstance(language, Shell):
                self._told(program, text)
            for command in simple_commands(text) if isinstance(language, Shell) and depth < _DEEP else ():
                yield from self._command(command, lost, depth, name)
            for word in started(text)[0] if isinstance(language, Shell) else ():
                item = self._resolve(word)
                if item is not None:
                    self._program(item)
                    yield Started(item, None, f"through {name}")
            return
        if listener:
            return
        # Words before it may be options, and arguments of those.
        item = next((at for word in words[1:] if word.startswith("/") and (at := self.files.at(word))), None)
        runs = isinstance(language, Shell) or language.runs or bool(language.imports)
        if item is None and runs and any(not word.startswith("-") for word in words[1:]):
            lost.append(" ".join(words))
        if item is not None and item.identity not in self.done:
            self.done[item.identity] = draft = self._script(item, name, program.path)
            self._keep(item, draft)
        if item is not None:
            yield Started(item, executed=program.path)
            if isinstance(language, Shell):
                yield from self._becomes(item, lost, depth)

    def _becomes(self, script: Item, lost: list[str], depth: int) -> Iterator[Started]:
        """What a shell's script becomes by ``exec``, or stays with at its end: what stays is that."""
        if depth >= _DEEP or script.inode.size > MAX_SCRIPT:
            return
        try:
            if self.files.is_elf(script):
                return
            raw = b"".join(script.open().chunks())
        except ImageError as error:
            self.unreadable.setdefault(script.path, one_line(error.what, 300))
            return
        shebang = parse_shebang(raw[:256])
        if b"\0" in raw or (shebang is not None and not isinstance(language_of(shebang.name), Shell)):
            return
        text = raw.decode("utf-8", "surrogateescape")
        name = script.path.rpartition("/")[2]
        becomes = "\n".join(_EXEC.findall(text))
        self._told(script, becomes)
        for command in simple_commands(becomes):
            yield from self._command(command, lost, depth, name)
        for command in simple_commands("\n".join(last_lines(text))):
            yield from self._command(command, [], depth, name)

    def _told(self, item: Item, text: str) -> None:
        """Note it where a text has more commands than are followed. That a shell is documented is no word on them."""
        if has_more(text):
            what = f"it is given more than {MAX_COMMANDS} commands, and not all are followed"
            draft = self.drafts.setdefault(item.path, Draft(item, sha256=_digest(item)))
            draft.add(Kind.UNTOLD, what)
            self.unreadable[item.path] = what

    def _command(self, words: tuple[str, ...], lost: list[str], depth: int, through: str) -> Iterator[Started]:
        """What a command starts that another program runs."""
        item = self._resolve(words[0])
        if item is None:
            # A word of a shell, or something that only it can tell.
            if "/" in words[0] or "$" in words[0] or "%" in words[0]:
                lost.append(" ".join(words))
            return
        self._program(item, also_providers=True)
        for one in self._started(item, words, lost, depth + 1):
            yield one._replace(through=one.through or f"through {through}")

    def _module_listens(self, interpreters: tuple[str, ...], name: str) -> bool:
        """Whether ``-m NAME`` is the network, as far as it can be told: who cannot be found may be anything."""
        language = language_of(interpreters[0])
        if language is None or isinstance(language, Shell):
            return False
        if is_network(name, language):
            return True
        path = name.replace(language.separator, "/")
        roots = [root for pattern in language.roots for root in expand(self.view, pattern)]
        roots += [f"{top}/{interpreter}" for top in _STDLIBS for interpreter in interpreters]
        for root in roots:
            for suffix in (*(s for s in language.suffixes if s != ".so"), "/__main__.py"):
                item = self.files.at(f"{root}/{path}{suffix}")
                if item is not None:
                    evidence = self.scripts.examine(item, item.filesystem.read_file(item.inode, MAX_SCRIPT), language)
                    return any(entry.kind is not Kind.REACHES for entry in evidence)
        return True

    # -- the result --------------------------------------------------------------------------------------------------

    def _entries(self) -> Iterator[Networked]:
        by_digest: dict[str, list[str]] = {}
        for path, draft in self.drafts.items():
            if draft.sha256:
                by_digest.setdefault(draft.sha256, []).append(path)
        for path, draft in sorted(self.drafts.items()):
            if one_line(path, 4096) != path:
                # As it would be written, it is the name of another: that one would be asked about in its place.
                self.unreadable[path] = f"its name cannot be written as it is: {ascii(path)[:300]}"
                continue
            twins = by_digest.get(draft.sha256, [])
            yield Networked(
                path=path,
                package=one_line(draft.package or self.owner(path)),
                evidence=tuple(draft.evidence),
                sha256=draft.sha256,
                size=draft.item.inode.size if draft.item is not None else 0,
                interpreter=draft.interpreter,
                same=tuple(one_line(twin, 4096) for twin in sorted(twins) if twin != path)[:20],
            )


def canonical(view: RootView, path: str) -> str:
    """The path of a program once all links are followed, as entries have it; itself where there is nothing."""
    try:
        found = resolved(view, path, follow=True)
    except ImageError:
        return path
    return path if found is None else found[0]


def _counts(draft: Draft) -> bool:
    """Whether there is more than that it could reach the API somehow."""
    kinds = frozenset(entry.kind for entry in draft.evidence)
    return bool(kinds) and tier_of(kinds) != "C"


def _option(words: tuple[str, ...], option: str) -> str:
    """The word behind `option`, among the options before the first argument; also of ``-ec``."""
    for index, word in enumerate(words[1:-1], 1):
        if not word.startswith("-"):
            return ""
        if word == option or (len(word) > 2 and word[1] != "-" and word.endswith(option[1:])):
            return words[index + 1]
    return ""


def _digest(item: Item) -> str:
    digest = hashlib.sha256()
    for chunk in item.open().chunks():
        digest.update(chunk)
    return digest.hexdigest()
