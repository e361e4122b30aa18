"""What a command line starts in the end: behind programs that only run others, and in the text that a shell is given;
and command lines that stand somewhere else than in systemd's units: tables of cron, services of D-Bus, init scripts
and what else starts programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pytest_osgates import data
from pytest_osgates.checks.apparmor_model import USERS
from pytest_osgates.image import units
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.units import parse_unit, split_command, text_of
from pytest_osgates.vm.text import one_line

MAX_TEXT = 1 << 20
MAX_COMMANDS = 10_000
_DEEP = 8
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# Between simple commands of a shell (sh(1)); what is quoted is not told apart: too many commands are no harm.
_BETWEEN = re.compile(r"&&|\|\||[;&|\n(){}`]")
_BEFORE = frozenset({"exec", "command", "builtin", "eval", "!", "if", "then", "else", "elif", "while", "until", "do"})
# What goes on in the background; not && and not a redirection.
_BACKGROUND = re.compile(r"(?<![&>|<\\])&(?![&>])")
_CLOSES = re.compile(r"(?:fi|done|esac)\b|[})]")
_OPENS = re.compile(r"(?:if|for|while|until|select|case)\b|[{(]|(?:function\s+)?[\w-]+\s*\(\s*\)")
_ONE_LINE = re.compile(r"(?:\bfi|\bdone|\besac|[})])\s*(?:[;&|<>].*)?$")
_BRANCH = re.compile(r"(?:else|elif)\b|;;")
_NOTHING = re.compile(r"(?:then|do|true|:|(?:wait|exit|return)\b.*|[^()\s]+\))")
_LINKER_OPTIONS = frozenset(
    {"--library-path", "--inhibit-rpath", "--audit", "--preload", "--argv0"}
    | {"--glibc-hwcaps-prepend", "--glibc-hwcaps-mask"}
)
_LINKER_SHOWS = frozenset({"--list", "--verify", "--help", "--version", "--list-tunables", "--list-diagnostics"})
_TABLES = ("/etc/crontab", "/etc/cron.d")
_SPOOLS = ("/var/spool/cron/crontabs", "/var/spool/cron")
# crontab(5): five fields or one word for the time, then in system tables the user.
_JOB = re.compile(r"\s*(?:@\w+|(?:[\d*,/a-zA-Z~-]+\s+){4}[\d*,/a-zA-Z~-]+)\s+(\S.*)")
_BUSES = (
    ("/usr/share/dbus-1/system-services", ""),
    ("/usr/local/share/dbus-1/system-services", ""),
    ("/usr/share/dbus-1/services", USERS),
    ("/usr/local/share/dbus-1/services", USERS),
)
_BUS = "D-BUS Service"
_INIT = "/etc/init.d"
_INITTAB = "/etc/inittab"
# inittab(5): actions that start nothing.
_IDLE = frozenset({"off", "initdefault"})
# What supervisors besides systemd look into: runit and s6, each with a program `run` in a directory for a service.
_SUPERVISED = ("/etc/sv", "/etc/service", "/etc/runit/sv", "/service", "/etc/s6/sv", "/etc/s6-overlay/s6-rc.d")
_AUTOSTART = "/etc/xdg/autostart"
_ENTRY = "Desktop Entry"
_PROGRAM = re.compile(r"(?<![\w.$}/-])/(?:usr/)?(?:local/)?(?:s?bin|libexec|lib)/[\w.+/-]+")


@dataclass(frozen=True)
class Wrapper:
    """How a program is told which one to run: a row ``[[wrapper]]``."""

    options: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()
    operands: int = 0
    words: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    text: frozenset[str] = frozenset()
    unless: frozenset[str] = frozenset()
    before: tuple[str, ...] = ()
    profile: frozenset[str] = frozenset()
    setting: str = ""
    untold: frozenset[str] = frozenset()
    permutes: bool = False
    command: frozenset[str] = frozenset()
    apart: bool = False
    together: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Inner:
    """The command that is run in the end. `profile`: AppArmor's that it is given on the way; None: that of who starts
    it. `apart`: another process starts it, for which nothing holds that the unit says of its own."""

    words: tuple[str, ...]
    profile: str | None = None
    apart: bool = False


@cache
def wrappers() -> dict[str, Wrapper]:
    """data/netscripts.toml, ``[[wrapper]]``, by name."""
    kinds = {"options", "flags", "text", "unless", "profile", "untold", "command", "together"}
    found = {}
    for row in data.load("netscripts")["wrapper"]:
        told: dict[str, Any] = {key: frozenset(value) if key in kinds else value for key, value in row.items()}
        told |= {key: tuple(value) for key, value in row.items() if key in ("words", "program", "before")}
        wrapper = Wrapper(**{key: value for key, value in told.items() if key not in ("names", "source")})
        found.update(dict.fromkeys(row["names"], wrapper))
    return found


def unwrapped(words: tuple[str, ...]) -> Inner:
    """What is run in the end, behind programs that only run others; itself, if its program runs no other one."""
    inner = Inner(words)
    for _ in range(_DEEP):
        name = inner.words[0].rpartition("/")[2] if inner.words else ""
        wrapper = wrappers().get(name)
        found = _run_by(inner.words, wrapper) if wrapper is not None else None
        if wrapper is None or found is None:
            return inner
        command, given = found
        values = [value for option, value in given if option in wrapper.profile and value.startswith(wrapper.setting)]
        profile = values[-1].removeprefix(wrapper.setting) if values else None
        options = {option for option, _ in given}
        if options & wrapper.untold:
            # Nobody has a profile of this name: whoever asks the kernel for it is told so.
            profile = " ".join((name, *(f"{option} {value}".strip() for option, value in given)))
        apart = wrapper.apart and not options & wrapper.together
        if profile is None:
            profile = "" if apart else inner.profile
        inner = Inner(command, profile, inner.apart or apart)
    return inner


def _run_by(words: tuple[str, ...], wrapper: Wrapper) -> tuple[tuple[str, ...], list[tuple[str, str]]] | None:
    """The command that follows a wrapper's options, and those options; None: there is none."""
    at, given = _options(words, 1, wrapper)
    if wrapper.permutes and not {option for option, _ in given} & wrapper.command:
        # getopt(3) finds options behind operands, too.
        behind = at
        while behind < len(words) and words[behind - 1] != "--":
            behind, more = _options(words, behind + 1, wrapper)
            given += more
    elif wrapper.text and wrapper.operands > 0:
        given += _options(words, at + wrapper.operands, wrapper)[1]
    told = {option: value for option, value in given if value}
    if {option for option, _ in given} & wrapper.unless:
        return None
    program = next((told[option] for option in wrapper.program if option in told), "")
    text = next((told[option] for option in wrapper.text if option in told), "")
    if text:
        return (program or "/bin/sh", "-c", text), given
    if program:
        return (program, *(words[words.index("--") + 1 :] if "--" in words else ())), given
    if wrapper.operands < 0:
        return None
    for expected in wrapper.words:
        if at >= len(words) or not expected.startswith(words[at]):
            return None
        at += 1
    rest = words[at + wrapper.operands :]
    if not rest:
        return None
    return (*wrapper.before, *((*split_command(rest[0]), *rest[1:]) if " " in rest[0] else rest)), given


def _options(words: tuple[str, ...], at: int, wrapper: Wrapper) -> tuple[int, list[tuple[str, str]]]:
    """Where the options (and assignments) from `at` on end, and what they are, each with its argument."""
    found: list[tuple[str, str]] = []
    while at < len(words) and (words[at].startswith("-") or _ASSIGNMENT.match(words[at])):
        word = words[at]
        at += 1
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            # getopt_long(3): abbreviated.
            longer = [option for option in wrapper.options if option.startswith(name)]
            name = name if name in wrapper.options | wrapper.flags or len(longer) != 1 else longer[0]
        elif word.startswith("-") and word not in wrapper.options and not wrapper.words:
            # Several in one word, the last one perhaps with its argument.
            name = next((f"-{letter}" for letter in word[1:] if f"-{letter}" in wrapper.options), "")
            before, _, value = word[1:].partition(name[1:]) if name else (word[1:], "", "")
            found += [(f"-{letter}", "") for letter in before]
            if not name:
                continue
            equals = value
        if name in wrapper.options and not equals:
            value = words[at] if at < len(words) else ""
            at += 1
        found.append((name, value))
    return at, found


def simple_commands(text: str) -> Iterator[tuple[str, ...]]:
    """The words of each simple command in what a shell is given, as far as they can be told without running it."""
    for number, piece in enumerate(_BETWEEN.split(text)):
        if number >= MAX_COMMANDS:
            return
        words = split_command(piece[:MAX_TEXT].strip().strip("'\""))
        while words and (words[0] in _BEFORE or _ASSIGNMENT.match(words[0])):
            del words[0]
        if words:
            yield tuple(words)


def has_more(text: str) -> bool:
    """Whether there may be commands in a text that simple_commands() does not give."""
    return len(_BETWEEN.findall(text)) >= MAX_COMMANDS


def last_lines(text: str) -> list[str]:
    """The lines of a shell's script that it stays with, as far as they can be told without running it: what it puts
    into the background, and the last one; of what ends there, the last one of each branch, and all of a loop."""
    lines = [line for raw in text.replace("\\\n", " ").split("\n") if (line := raw.strip()) and line[0] != "#"]
    found = [line for line in lines if _BACKGROUND.search(line)]
    for _ in range(_DEEP):
        ends = _ends(lines)
        found += ends
        name = ends[0].split()[0] if ends else ""
        head = re.compile(rf"(?:function\s+)?{re.escape(name)}\s*(?:\(\s*\))?\s*\{{?")
        start = next((at for at, line in enumerate(lines) if name and head.fullmatch(line)), None)
        if start is None:
            break
        # A function, which ends with the brace that stands alone.
        lines = lines[start + 1 :]
        lines = lines[: lines.index("}")] if "}" in lines else lines
    return found


def _ends(lines: list[str]) -> list[str]:
    found: list[str] = []
    depth, take, loops = 0, True, 0
    for line in reversed(lines):
        if _CLOSES.match(line):
            depth += 1
            take = True
            loops += line.startswith("done")
        elif _OPENS.match(line) and not _ONE_LINE.search(line):
            depth -= 1
            loops -= bool(loops) and line.startswith(("for", "while", "until", "select"))
            take = False
        elif _BRANCH.match(line):
            take = True
        elif (take or loops) and not _NOTHING.fullmatch(line):
            found.append(line)
            take = False
        if depth <= 0 and not take:
            break
    return found


def loaded_by(words: tuple[str, ...]) -> tuple[str, ...]:
    """What the dynamic linker is to run, with its arguments (ld.so(8)); empty: nothing."""
    at = 1
    while at < len(words) and words[at].startswith("-"):
        if words[at] in _LINKER_SHOWS:
            return ()
        at += 1 + (words[at] in _LINKER_OPTIONS)
    return words[at:]


def cron(view: RootView, unread: dict[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Command lines of cron's tables, each with the table's path."""
    for place, with_user in (*((path, True) for path in _TABLES), *((path, False) for path in _SPOOLS)):
        names = view.list_dir(place)
        for path in [place] if names is None else [f"{place}/{name}" for name in names]:
            for line in text_of(view, path, unread).splitlines():
                match = _JOB.fullmatch(line)
                if match is None or line.lstrip().startswith("#"):
                    continue
                command = match[1].split(None, 1)[-1] if with_user else match[1]
                # What follows a % is what the command reads.
                yield one_line(path), ("/bin/sh", "-c", re.split(r"(?<!\\)%", command)[0])


def buses(view: RootView, unread: dict[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Services that the message bus starts itself, not by a unit."""
    for directory, scope in _BUSES:
        for name in view.list_dir(directory) or ():
            settings = parse_unit(text_of(view, f"{directory}/{name}", unread)) if name.endswith(".service") else {}
            if settings.get((_BUS, "SystemdService")):
                continue
            for line in settings.get((_BUS, "Exec"), [])[-1:]:
                words = split_command(line)
                if words:
                    yield f"{one_line(f'{directory}/{name}')}{scope}", tuple(words)


def init_scripts(view: RootView, unread: dict[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Programs that init scripts name, where no unit stands in for the script (systemd-sysv-generator(8))."""
    known = {name for directory in units.SYSTEM for name in view.list_dir(directory) or ()}
    for name in view.list_dir(_INIT) or ():
        if f"{name.removesuffix('.sh')}.service" in known:
            continue
        found = dict.fromkeys(_PROGRAM.findall(text_of(view, f"{_INIT}/{name}", unread)))
        for program in [path for path in found if view.lookup(path) is not None][:MAX_COMMANDS]:
            yield one_line(f"{_INIT}/{name}"), (program,)


def inittab(view: RootView, unread: dict[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What an init that is not systemd starts, and programs that supervisors keep running (inittab(5), runsv(8))."""
    for line in text_of(view, _INITTAB, unread).splitlines():
        fields = line.strip().split(":", 3)
        if len(fields) == 4 and not fields[0].startswith("#") and fields[2] not in _IDLE and fields[3].strip():
            yield _INITTAB, ("/bin/sh", "-c", fields[3].lstrip("+- "))
    for place in _SUPERVISED:
        for name in view.list_dir(place) or ():
            path = f"{place}/{name}/run"
            if view.lookup(path) is not None:
                yield one_line(path), (path,)


def autostarted(view: RootView, unread: dict[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What a user's desktop starts (Desktop Application Autostart Specification)."""
    for name in view.list_dir(_AUTOSTART) or ():
        path = f"{_AUTOSTART}/{name}"
        settings = parse_unit(text_of(view, path, unread)) if name.endswith(".desktop") else {}
        hidden = settings.get((_ENTRY, "Hidden"), [""])[-1:] == ["true"]
        for line in settings.get((_ENTRY, "Exec"), [])[-1:]:
            words = split_command(line)
            if words and not hidden:
                yield f"{one_line(path)}{USERS}", tuple(words)


OTHERS = (cron, buses, init_scripts, inittab, autostarted)
