"""Why a script counts as networked: by the modules that it imports, or by the programs that it runs.

Scripts are read as text, not understood: what is searched for is in data/netscripts.toml.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain
from typing import Any

from pytest_osgates import data
from pytest_osgates.checks.apparmor_model import Evidence, Kind
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.units import split_command
from pytest_osgates.observers.networked.files import Files, Item
from pytest_osgates.observers.networked.knowledge import fitting
from pytest_osgates.observers.networked.pythonic import is_plain, parsed_imports
from pytest_osgates.observers.networked.shells import behind, divided, read_files, runners, words_of
from pytest_osgates.observers.networked.starters import wrappers
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.text import one_line

MAX_SCRIPT = 4 << 20
MAX_MODULES = 1000
# Commands that others run, in a shell's text: so many that differ, and so many at all.
MAX_RUN = 1000
MAX_LOOKED = 4000
# A line longer than this is looked at in pieces, so that no expression runs away with it.
_PIECE, _OVERLAP = 4096, 256
_SHOWN = 8
_LIBRARY, _COMPILED = ".so", ".pyc"
# A name that is imported, the directory of who imports it, and the way there.
_Wanted = tuple[str, str, tuple[str, ...]]
# fs/binfmt_script.c: the first line, up to 255 characters.
_SHEBANG = re.compile(rb"#![ \t]*([^\s\0]+)[ \t]*([^\n\0]*)")
_FROM = re.compile(r"([\w.]*[\w.])\s*\bimport\b\s*(.*)", re.DOTALL)
# perl -MName, ruby -rname; what may stand before a statement on a command line.
_MODULE_OPTION = re.compile(r"(?<=[ \t])-[mMr]([A-Za-z][\w:/-]*)")
_QUOTES = re.compile(r"['\";]")
_SUBSTITUTED = re.compile(r"\$\([^()\n]*\)")
# What make has before a command of a recipe, dc (!) and sed (e) before one; variables; $(shell command).
_RECIPES = (
    (re.compile(r"^[ \t]*[@+!-]+[ \t]*", re.M), ""),
    (re.compile(r"^[ \t]*[\d$,]*[ \t]*e[ \t]+", re.M), ""),
    (re.compile(r"^([A-Za-z_]\w*)[ \t]*[:?+]{0,3}=[ \t]*", re.M), r"\1="),
    (re.compile(r"\$\((\w+)\)"), r"${\1}"),
    (re.compile(r"\$\(shell[ \t]+"), "$("),
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Language:
    """How a language names what it imports."""

    name: str
    interpreters: re.Pattern[str]
    imports: tuple[re.Pattern[str], ...]
    # For what Python's parser does not take.
    loose: tuple[re.Pattern[str], ...]
    separator: str
    modules: frozenset[str]
    roots: tuple[str, ...]
    suffixes: tuple[str, ...]
    comment: str
    # Whether some of its lines are a shell's: recipes of make.
    runs: bool


@dataclass(frozen=True)
class Shell:
    """What a shell starts that talks on the network."""

    interpreters: re.Pattern[str]
    command: re.Pattern[str]
    runner: re.Pattern[str]
    variable: re.Pattern[str]
    ambiguous: frozenset[str]
    phrases: tuple[re.Pattern[str], ...]
    inline: tuple[re.Pattern[str], ...]


@cache
def languages() -> tuple[Language, ...]:
    """data/netscripts.toml, ``[[language]]``."""
    return tuple(_language(row) for row in data.load("netscripts")["language"])


def _language(row: dict[str, Any]) -> Language:
    return Language(
        name=row["name"],
        interpreters=fitting(row["interpreters"]),
        imports=tuple(re.compile(text, re.M) for text in row["imports"]),
        loose=tuple(re.compile(text, re.M) for text in row.get("loose", ())),
        separator=row["separator"],
        modules=frozenset(row["modules"]),
        roots=tuple(row["roots"]),
        suffixes=tuple(row["suffixes"]),
        comment=row["comment"],
        runs=row.get("runs", False),
    )


@cache
def shell() -> Shell:
    """data/netscripts.toml, ``[shell]``."""
    row = data.load("netscripts")["shell"]
    names = "|".join(sorted((re.escape(name) for name in row["commands"]), key=len, reverse=True))
    before = "|".join(re.escape(word) for word in row["before"])
    # In the place of a command: at the beginning, after what separates commands or begins a list, after a label of
    # case, after a word that takes a command; assignments and options of such words may come between.
    label = r"(?:[^\s()`&;<>|\"']{1,80}|\"[^\"\n]{0,80}\"|'[^'\n]{0,80}')"
    place = (
        rf"(?:^|[;&|(`]|\{{[ \t]|(?:^|;;|\bin[ \t])[ \t]*\(?{label}(?:[ \t]*\|[ \t]*{label}){{0,30}}[ \t]*\)"
        rf"|(?<![\w-])(?:{before})[ \t]+(?:-[\w-]+[ \t]+)*)[ \t]*(?:[A-Za-z_]\w*=[^\s;|&]*[ \t]+)*[\"'\\]?"
    )
    path, end = r"(?:/[\w./+-]*/)?", r"(?![\w.=:/+@%-])"
    # Or a variable in such a place, or what it is by default.
    command = (
        rf"{place}(?:{path}(?P<name>{names}){end}"
        rf"|\$(?:\{{(?P<braced>\w+)(?::?[-=][\"']?(?:{path}(?P<default>{names}){end})?[^}}\n]{{0,200}})?\}}|(?P<plain>\w+)))"
        r"(?P<rest>[\"']?[ \t]*[^\n]{0,1})"
    )
    running = "|".join(sorted((re.escape(name) for name in runners()), key=len, reverse=True))
    words = r"(?:[^\"'\\\n;&|`]|\\.|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'){0,600}"
    return Shell(
        fitting(row["interpreters"]),
        re.compile(command, re.M),
        # Looked ahead at, for others may stand in it.
        re.compile(rf"{place}{path}(?P<runner>{running}){end}(?=(?P<words>{words})(?:[\"'](?P<open>[^\n]*))?)", re.M),
        re.compile(rf"(?<![\w$])(\w+):?=[\"']?{path}({names}){end}", re.M),
        frozenset(row["ambiguous"]),
        tuple(re.compile(text, re.M) for text in row["phrases"]),
        tuple(re.compile(text, re.M) for text in row["inline"]),
    )


@dataclass(frozen=True, slots=True)
class Shebang:
    """The interpreter of a script by its first line; for env(1), the program that it is asked for, without a path."""

    interpreter: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.interpreter.rpartition("/")[2]


def parse_shebang(head: bytes) -> Shebang | None:
    """What the kernel, and env(1) after it, make of a file that begins with `head`; None: it is no script."""
    match = _SHEBANG.match(head[:256])
    if match is None:
        return None
    words = [match[1], *match[2].split()]
    texts = [word.decode("utf-8", "surrogateescape") for word in words]
    if texts[0].rpartition("/")[2] == "env":
        texts = _behind_env(texts[1:]) or texts[:1]
    return Shebang(texts[0], tuple(texts[1:]))


def _behind_env(words: list[str]) -> list[str]:
    """The command that env(1) is given behind its options and assignments; -S holds more of both."""
    with_argument = wrappers()["env"].options
    letters = "".join(option[1] for option in with_argument if len(option) == 2)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            continue
        if word.startswith("--s"):
            # Options may be abbreviated; no other one begins so.
            rest = [text for text in (word.partition("=")[2],) if text] + rest
        elif word.startswith("--"):
            if word in with_argument:
                del rest[:1]
        elif word.startswith("-") and word != "-":
            taken = re.match(rf"-[^S{letters}]*(?:S(?P<text>.*)|[{letters}](?P<argument>.*))?", word, re.DOTALL)
            if taken is not None and taken["text"]:
                rest = [taken["text"], *rest]
            elif taken is not None and taken["argument"] == "":
                del rest[:1]
        elif word != "-" and not _ASSIGNMENT.match(word):
            return split_command(" ".join((word, *rest)))
    return []


def language_of(name: str) -> Language | Shell | None:
    """By the name of an interpreter: ``python3.13``, ``bash``; None: none that is known."""
    if shell().interpreters.match(name):
        return shell()
    return next((language for language in languages() if language.interpreters.match(name)), None)


@dataclass(frozen=True, slots=True)
class ShellFile:
    """A file that shells read as their own text: what is in no function (None: it cannot be read), functions by their
    names, and what it reads itself."""

    outside: str | None
    functions: dict[str, list[str]]
    reads: tuple[str, ...]


@dataclass
class Scripts:
    """Examines scripts; each module is read once. `owner`: the package of a path, empty for none; `source`: what this
    was built from; `extension`: what of the network a module uses that is a library, of the script's own package or
    not (None: it cannot be read)."""

    files: Files
    owner: Callable[[str], str]
    source: Callable[[str], str] = lambda path: ""
    extension: Callable[[Item, bool], str | None] = lambda item, own: ""
    _imported: dict[tuple[str, str], tuple[str, ...] | None] = field(default_factory=dict)
    _found: dict[tuple[str, str, str, int], tuple[Item, ...]] = field(default_factory=dict)
    _extensions: dict[str, list[Item]] = field(default_factory=dict)
    _roots: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _shells: dict[str, ShellFile] = field(default_factory=dict)

    def examine(self, item: Item, raw: bytes, language: Language | Shell) -> list[Evidence]:
        """What speaks for `item`, with the contents `raw`, being networked."""
        text = raw.decode("utf-8", "surrogateescape")
        if b"\0" in raw:
            return [Evidence(kind=Kind.UNTOLD, detail="a script with something else behind it")]
        if isinstance(language, Shell):
            return list(commands(text)) or list(self._read(item, text))
        if language.runs:
            return list(commands(_recipes(text)))
        found = [*modules(text, language)]
        return found or list(self._below(item, text, language))

    def _below(self, item: Item, text: str, language: Language) -> Iterator[Evidence]:
        """Network modules that the script's own modules import: those of its package, or of none; and those below a
        name that it imports itself, in a package that was built together with its own."""
        mine, built = self.owner(item.path), self.source(item.path)
        here = item.path.rpartition("/")[0]
        roots = (here, *self._directories(language))
        tops = {name.split(language.separator)[0] for name in imported(text, language)}
        own = tuple(f"{root}/{_filed(top)}" for root in roots for top in tops if top)
        # Modules of others come last: what those import says less.
        pending: deque[_Wanted] = deque((name, here, (name,)) for name in imported(text, language))
        later: deque[_Wanted] = deque()
        seen: set[str] = set()
        others: list[str] = []
        untold = ""
        while pending or later:
            name, directory, way = (pending or later).popleft()
            for module in self._find(name, directory, roots, language):
                if module.path in seen:
                    continue
                sibling = built and built == self.source(module.path) and _is_below(module.path, own)
                mine_too = bool(sibling or self.owner(module.path) in (mine, ""))
                if len(seen) >= MAX_MODULES:
                    # Of others, what is known already says enough.
                    untold = untold or (f"more than {MAX_MODULES} modules" if mine_too or not others else "")
                    continue
                seen.add(module.path)
                looked = self._looked_at(module, language, mine_too)
                if looked is None:
                    untold = untold or (f"{module.path}, which cannot be read" if mine_too else "")
                    continue
                names, network = looked
                if network and mine_too:
                    yield Evidence(kind=Kind.MODULES, detail=_shown((*way[-3:], network), " -> "))
                    return
                if network:
                    others.append(_shown((*way[-3:], network), " -> "))
                inner = module.path.rpartition("/")[0]
                (pending if mine_too else later).extend((each, inner, (*way[-3:], each)) for each in names)
        if untold:
            yield Evidence(kind=Kind.UNTOLD, detail=one_line(f"a script that imports {untold}", 300))
        if others:
            yield Evidence(kind=Kind.REACHES, detail=others[0])

    def _read(self, item: Item, text: str) -> Iterator[Evidence]:
        """What files do that a shell's script reads as its own text, and that are of its package, or of none: what
        stands in no function there, and in functions that are named somewhere."""
        mine, built = self.owner(item.path), self.source(item.path)
        here = item.path.rpartition("/")[0]
        pending = list(read_files(text, here))
        files: dict[str, ShellFile] = {}
        for path in pending:
            file = self.files.at(path)
            if file is None or file.path in files or file.identity == item.identity:
                continue
            if len(files) >= MAX_MODULES:
                yield Evidence(kind=Kind.UNTOLD, detail=f"a script that reads more than {MAX_MODULES} others")
                return
            if file.path not in self._shells:
                self._shells[file.path] = _shell_file(file)
            files[file.path] = self._shells[file.path]
            pending += files[file.path].reads
        others: list[Evidence] = []
        for path, said in _said(text, files).items():
            own = self.owner(path) in (mine, "") or bool(built and built == self.source(path))
            for entry in said[:1]:
                detail = one_line(f"{path} -> {entry.detail}", 400)
                if own:
                    yield Evidence(kind=entry.kind, detail=detail)
                    return
                others.append(Evidence(kind=Kind.REACHES, detail=detail))
        yield from others[:1]

    def _directories(self, language: Language) -> tuple[str, ...]:
        if language.name not in self._roots:
            self._roots[language.name] = tuple(
                path for root in language.roots for path in expand(self.files.view, root)
            )
        return self._roots[language.name]

    def _find(self, name: str, directory: str, roots: tuple[str, ...], language: Language) -> tuple[Item, ...]:
        """The module of a name, and what else is called so beside it; `directory`: of who imports, for names that
        begin with a dot."""
        path = name.lstrip(".").replace(language.separator, "/").strip("/")
        if name.startswith("."):
            up = len(name) - len(name.lstrip("."))
            roots = ("/".join(directory.split("/")[: 1 - up or None]),)
        if not path:
            return ()
        key = (language.name, path, roots[0], len(roots))
        if key not in self._found:
            each = dict.fromkeys((path, _filed(path)))
            places = (tuple(self._named(f"{root}/{one}", language) for one in each) for root in roots)
            self._found[key] = next((items for place in places if (items := tuple(chain(*place)))), ())
        return self._found[key]

    def _named(self, path: str, language: Language) -> Iterator[Item]:
        is_there = False
        for suffix in language.suffixes:
            if suffix == _LIBRARY:
                # There is more in their names than that.
                items = self._libraries().get(path, [])
            else:
                item = self.files.at(f"{path}{suffix}")
                # What is compiled counts where its text is not.
                items = [item] if item is not None and not (is_there and suffix == _COMPILED) else []
            is_there = is_there or bool(items)
            yield from items

    def _libraries(self) -> dict[str, list[Item]]:
        """Libraries by their paths up to the first dot of their names."""
        if not self._extensions:
            self._extensions[""] = []
            for name, items in self.files.named.items():
                for item in items if name.endswith(_LIBRARY) else ():
                    stem = f"{item.path.rpartition('/')[0]}/{name.partition('.')[0]}"
                    self._extensions.setdefault(stem, []).append(item)
        return self._extensions

    def _looked_at(self, module: Item, language: Language, own: bool) -> tuple[tuple[str, ...], str] | None:
        """What a module imports, and what of that is the network; None: it cannot be read."""
        if module.path.endswith(_LIBRARY):
            reason = self.extension(module, own)
            return None if reason is None else ((), reason)
        key = (language.name, module.path)
        if key not in self._imported:
            try:
                raw = module.filesystem.read_file(module.inode, MAX_SCRIPT)
            except ImageError:
                raw = b"\0"
            # No language takes a zero byte in its text; what is compiled has them.
            names = None if b"\0" in raw else imported(raw.decode("utf-8", "surrogateescape"), language)
            self._imported[key] = names
        found = self._imported[key]
        return None if found is None else (found, next((name for name in found if is_network(name, language)), ""))


def _shell_file(file: Item) -> ShellFile:
    try:
        raw = file.filesystem.read_file(file.inode, MAX_SCRIPT)
    except ImageError:
        return ShellFile(None, {}, ())
    text = raw.decode("utf-8", "surrogateescape")
    outside, functions = divided(_clean(text, "#"))
    return ShellFile(outside, functions, tuple(read_files(text, file.path.rpartition("/")[0])))


def _said(text: str, files: dict[str, ShellFile]) -> dict[str, list[Evidence]]:
    """What speaks for each of the files that a text reads, in what is reached of them."""
    reached = {path: [file.outside] for path, file in files.items() if file.outside is not None}
    words = words_of(_clean(text, "#")).union(*(words_of(file.outside or "") for file in files.values()))
    named: dict[str, list[tuple[str, str]]] = {}
    for path, file in files.items():
        for name, bodies in file.functions.items():
            named.setdefault(name, []).extend((path, body) for body in bodies)
    while called := words & named.keys():
        words = set()
        for path, body in (each for name in called for each in named.pop(name)):
            reached[path].append(body)
            words |= words_of(body)
    untold = [Evidence(kind=Kind.UNTOLD, detail="cannot be read")]
    return {path: list(commands("\n".join(reached[path]))) if path in reached else untold for path in files}


def _filed(name: str) -> str:
    """A name of a distribution as its modules have it on disk (packaging.python.org, name normalization)."""
    return name.replace("-", "_")


def _is_below(path: str, modules_: tuple[str, ...]) -> bool:
    return any(path.startswith((f"{module}/", f"{module}.")) for module in modules_)


def expand(view: RootView, pattern: str) -> list[str]:
    """The directories in the image that a path with ``*`` in some of its parts means."""
    found = [""]
    for part in pattern.strip("/").split("/"):
        if "*" in part:
            found = [
                f"{path}/{name}"
                for path in found
                for name in view.list_dir(path or "/") or ()
                if fnmatchcase(name, part)
            ]
        else:
            found = [f"{path}/{part}" for path in found]
    return [path for path in found if view.list_dir(path) is not None]


def _clean(text: str, comment: str) -> str:
    """The text without lines that are comments, those joined that end in a backslash, too long ones in pieces."""
    lines: list[str] = []
    whole: list[str] = []
    for line in text.split("\n"):
        # A backslash at the end of a comment continues nothing.
        if not whole and line.lstrip().startswith(comment):
            continue
        if line.endswith("\\"):
            whole.append(line[:-1])
            continue
        joined = " ".join((*whole, line)) if whole else line
        whole = []
        lines += _pieces(joined)
    return "\n".join((*lines, *_pieces(" ".join(whole))))


def _pieces(line: str) -> Iterator[str]:
    if len(line) <= _PIECE:
        yield line
    else:
        yield from (line[max(0, start - _OVERLAP) : start + _PIECE] for start in range(0, len(line), _PIECE))


def imported(text: str, language: Language) -> tuple[str, ...]:
    """The modules that a text imports, pattern by pattern in their order; of Python, what its parser finds, too."""
    names: dict[str, None] = {}
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    clean = _clean(text, language.comment)
    patterns = language.imports
    parsed = parsed_imports(text) if language.loose and not is_plain(clean) else ()
    if parsed is None:
        patterns = (*patterns, *language.loose)
    for pattern in patterns:
        for match in pattern.finditer(clean):
            for name in _several(match[1], language):
                names[name] = None
    names.update(dict.fromkeys(parsed or ()))
    return tuple(name for name in names if name.strip("."))


def _several(text: str, language: Language) -> Iterator[str]:
    """``a as b, c``: a and c; ``a import b, c``: a, a.b and a.c, for those may be modules. Leading dots stay."""
    match = _FROM.fullmatch(text)
    prefix = ""
    if match is not None:
        yield match[1]
        prefix, text = match[1] if match[1].endswith(".") else f"{match[1]}.", match[2]
    for name in text.split(","):
        word = name.strip("() \t\n").split()
        if word and word[0] != "*":
            # Of JavaScript, {name: another}.
            bare = word[0] if ":" in language.separator else word[0].partition(":")[0]
            yield prefix + bare.rstrip(".)")


def is_network(name: str, language: Language) -> bool:
    """Whether a module is the network, or below one that is."""
    parts = name.split(language.separator)
    return any(language.separator.join(parts[:count]) in language.modules for count in range(1, len(parts) + 1))


def modules(text: str, language: Language) -> Iterator[Evidence]:
    """The network modules that a text itself imports."""
    found = [name for name in imported(text, language) if is_network(name, language)]
    if found:
        yield Evidence(kind=Kind.MODULES, detail=f"{language.name}: {_shown(found)}")


def commands(text: str) -> Iterator[Evidence]:
    """The programs that a shell's text starts; in other languages' programs that it holds, their modules."""
    known = shell()
    clean = _clean(text, "#")
    found, is_all = started(clean)
    for pattern in known.phrases:
        found.update(dict.fromkeys(match[0] for match in pattern.finditer(clean)))
    if found:
        yield Evidence(kind=Kind.COMMANDS, detail=_shown(found))
    elif not is_all:
        yield Evidence(kind=Kind.UNTOLD, detail=f"a script that runs more than {MAX_RUN} commands through others")
    held = dict.fromkeys(match[1] for pattern in known.inline for match in pattern.finditer(clean))
    if held:
        # Behind a quote or a semicolon as well as at the beginning of a line; and what options ask for.
        inner = _MODULE_OPTION.sub(r"\nuse \1\nrequire '\1'\n", text)
        inner = f"{inner}\n{_QUOTES.sub(chr(10), inner)}"
        for language in dict.fromkeys(language_of(name) for name in held):
            if isinstance(language, Language):
                yield from modules(inner, language)


def started(clean: str) -> tuple[dict[str, None], bool]:
    """The names of network programs in a shell's text, also behind words that run others; whether that was all."""
    known = shell()
    values = dict(known.variable.findall(clean))
    found: dict[str, None] = {}
    pending, seen = [clean], {clean}
    looked = 0
    for text in pending:
        for match in known.command.finditer(text):
            name = match["name"] or match["default"] or values.get(match["braced"] or match["plain"], "")
            if name and not (name in known.ambiguous and not _has_argument(match["rest"])):
                found[name] = None
        for match in known.runner.finditer(text):
            looked += 1
            words = split_command(f"{match['runner']} {_SUBSTITUTED.sub('$_', match['words'])}")
            inner = dict.fromkeys(behind((*words, *filter(None, (match["open"],)))))
            new = [each for each in inner if each not in seen]
            seen.update(new)
            pending += new
            if looked > MAX_LOOKED or len(seen) > MAX_RUN:
                return found, False
    return found, True


def _recipes(text: str) -> str:
    """Lines of make, sed, dc and their like as a shell gets them: no marks before the command, its variables."""
    for pattern, instead in _RECIPES:
        text = pattern.sub(instead, text)
    return text


def _has_argument(rest: str) -> bool:
    """Whether what follows a word can be the argument of a command, not the next command or the end of a pattern."""
    return rest[:1] in " \t\"'" and rest[-1:] not in ("", " ", "\t", ")", "|", "&", ";", "=", "}", "]")


def _shown(names: Iterable[str], separator: str = ", ") -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return one_line(separator.join(listed[:_SHOWN]) + more, 200)
