"""What a command line starts in the end: behind programs that only run others, and in the text that a shell is given;
and command lines that stand somewhere else than in systemd's units: tables of cron, services of D-Bus, init scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from pytest_osgates import data
from pytest_osgates.checks.apparmor_model import USERS
from pytest_osgates.image import units
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.units import parse_unit, split_command
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.text import one_line

MAX_TEXT = 1 << 20
MAX_COMMANDS = 1000
_DEEP = 8
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# Between simple commands of a shell (sh(1)); what is quoted is not told apart: too many commands are no harm.
_BETWEEN = re.compile(r"&&|\|\||[;&|\n(){}`]")
_BEFORE = frozenset({"exec", "command", "builtin", "eval", "!", "if", "then", "else", "elif", "while", "until", "do"})
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
_PROGRAM = re.compile(r"(?<![\w.$}/-])/(?:usr/)?(?:local/)?(?:s?bin|libexec|lib)/[\w.+/-]+")


@dataclass(frozen=True)
class Wrapper:
    """How a program is told which one to run."""

    options: frozenset[str]
    operands: int


@cache
def wrappers() -> dict[str, Wrapper]:
    """data/netscripts.toml, ``[[wrapper]]``, by name."""
    return {
        name: Wrapper(frozenset(row["options"]), row.get("operands", 0))
        for row in data.load("netscripts")["wrapper"]
        for name in row["names"]
    }


def unwrapped(words: tuple[str, ...]) -> tuple[str, ...]:
    """The command that is run in the end; itself, if its program runs no other one."""
    for _ in range(_DEEP):
        wrapper = wrappers().get(words[0].rpartition("/")[2]) if words else None
        if wrapper is None:
            return words
        at = 1
        while at < len(words) and (words[at].startswith("-") or _ASSIGNMENT.match(words[at])):
            at += 1
            if words[at - 1] == "--":
                break
            at += words[at - 1] in wrapper.options
        rest = words[at + wrapper.operands :]
        if not rest:
            return words
        words = (*split_command(rest[0]), *rest[1:]) if " " in rest[0] else rest
    return words


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


def cron(view: RootView) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Command lines of cron's tables, each with the table's path."""
    for place, with_user in (*((path, True) for path in _TABLES), *((path, False) for path in _SPOOLS)):
        names = view.list_dir(place)
        for path in [place] if names is None else [f"{place}/{name}" for name in names]:
            for line in _text(view, path).splitlines():
                match = _JOB.fullmatch(line)
                if match is None or line.lstrip().startswith("#"):
                    continue
                command = match[1].split(None, 1)[-1] if with_user else match[1]
                # What follows a % is what the command reads.
                yield one_line(path), ("/bin/sh", "-c", re.split(r"(?<!\\)%", command)[0])


def buses(view: RootView) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Services that the message bus starts itself, not by a unit."""
    for directory, scope in _BUSES:
        for name in view.list_dir(directory) or ():
            settings = parse_unit(_text(view, f"{directory}/{name}")) if name.endswith(".service") else {}
            if settings.get((_BUS, "SystemdService")):
                continue
            for line in settings.get((_BUS, "Exec"), [])[-1:]:
                words = split_command(line)
                if words:
                    yield f"{one_line(f'{directory}/{name}')}{scope}", tuple(words)


def init_scripts(view: RootView) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Programs that init scripts name, where no unit stands in for the script (systemd-sysv-generator(8))."""
    known = {name for directory in units.SYSTEM for name in view.list_dir(directory) or ()}
    for name in view.list_dir(_INIT) or ():
        if f"{name.removesuffix('.sh')}.service" in known:
            continue
        found = dict.fromkeys(_PROGRAM.findall(_text(view, f"{_INIT}/{name}")))
        for program in list(found)[:MAX_COMMANDS]:
            yield one_line(f"{_INIT}/{name}"), (program,)


def _text(view: RootView, path: str) -> str:
    try:
        return (view.read(path, MAX_TEXT) or b"").decode("utf-8", "surrogateescape")
    except ImageError:
        return ""
