"""Units that listen, and what they start; inetd's services. From files alone: what boots may start more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_osgates.checks.apparmor_model import USERS, UnitSeen
from pytest_osgates.image import units
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.units import Unit
from pytest_osgates.observers.networked import starters
from pytest_osgates.vm.text import one_line

_MAIN = "ExecStart"
_STARTS = (_MAIN, "ExecStartPre", "ExecStartPost", "ExecReload", "ExecCondition", "ExecStop", "ExecStopPost")
_JOINS = "JoinsNamespaceOf"
_LISTENS = ("ListenStream", "ListenDatagram", "ListenSequentialPacket")
_TRUE = frozenset({"1", "yes", "y", "true", "t", "on"})
_FALSE = frozenset({"0", "no", "n", "false", "f", "off"})
# systemd.exec(5), NoNewPrivileges=: what is done by a filter of system calls.
_FILTERS = (
    *("SystemCallFilter", "SystemCallArchitectures", "SystemCallLog", "RestrictAddressFamilies"),
    *(
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "MemoryDenyWriteExecute",
        "LockPersonality",
        "PrivateDevices",
    ),
    *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectClock", "ProtectHostname"),
)
_INTERNET = frozenset({"AF_INET", "AF_INET6", "AF_PACKET"})
# systemd.unit(5), SPECIFIERS, of the system's own units.
_PLACES = {"E": "/etc", "S": "/var/lib", "C": "/var/cache", "L": "/var/log", "t": "/run"}
_INETD = "/etc/inetd.conf"
_XINETD = "/etc/xinetd.d"


@dataclass(frozen=True)
class Start:
    """A command line that a unit or inetd starts, and why it counts: `sockets` are internet addresses that are handed
    to it; `closed`: it cannot open any of its own; `stays`: it goes on to run, or runs again and again, on sockets
    that it opens itself; `elsewhere`: its program is not where others are, but was not found there."""

    unit: str
    words: tuple[str, ...]
    sockets: tuple[str, ...] = ()
    closed: bool = False
    stays: bool = True
    apparmor_profile: str = ""
    no_new_privileges: bool = False
    elsewhere: bool = False

    def seen(self, program: str, executes: str = "", profile: str | None = None, *, apart: bool = False) -> UnitSeen:
        """For the observation. `profile`: what it is given on the way, None: that of the unit; `apart`: another
        process starts it, for which nothing holds that the unit says of its own."""
        return UnitSeen(
            name=one_line(self.unit),
            program=program,
            executes=executes,
            apparmor_profile=one_line(self.apparmor_profile if profile is None else profile),
            listens=tuple(one_line(address) for address in self.sockets),
            private_network=self.closed and not apart,
            no_new_privileges=self.no_new_privileges and not apart,
        )


def starts(view: RootView, unread: dict[str, str] | None = None) -> Iterator[Start]:
    """Every command line of every service of the system and of its users, of inetd, cron, D-Bus, init and desktops.
    `unread`: takes the paths of what could not be read, with the reason."""
    unread = {} if unread is None else unread
    yield from _units(view, units.SYSTEM, "", unread)
    for directories in units.users(view):
        yield from _units(view, directories, USERS, unread)
    yield from _inetd(view, unread)
    for others in starters.OTHERS:
        for name, words in others(view, unread):
            yield Start(name, words)


def _units(view: RootView, directories: tuple[str, ...], scope: str, unread: dict[str, str]) -> Iterator[Start]:
    found = {unit.name: unit for unit in units.read_units(view, directories, unread)}
    handed: dict[str, list[str]] = {}
    joined: set[str] = set()
    for unit in found.values():
        if unit.name.endswith(".socket"):
            service = service_of(unit)
            template = units.template_of(service)
            if service in found or not template:
                handed.setdefault(service, []).extend(addresses(unit))
            elif addresses(unit):
                handed.setdefault(template, []).extend(addresses(unit))
        for line in unit.values("Unit", _JOINS):
            joined |= {name for word in line.split() for name in (word, units.template_of(word))}
    for unit in found.values():
        for name in " ".join(unit.values("Service", "Sockets")).split():
            socket = found.get(name) or found.get(units.template_of(name))
            # Sockets in the file system that it gets beside do not keep it from opening others.
            if socket is not None and addresses(socket) and unit.name != service_of(socket):
                handed.setdefault(unit.name, []).extend(addresses(socket))
    timed = {started_by(unit) for unit in found.values() if unit.name.endswith(".timer")}
    timed |= {units.template_of(name) for name in timed}
    for unit in found.values():
        if unit.name.endswith(".service"):
            sockets = handed.get(unit.name)
            yield from _service(view, unit, scope, sockets, timed=unit.name in timed, joined=unit.name in joined)


def addresses(socket: Unit) -> list[str]:
    """The internet addresses that a socket unit listens on."""
    values = [value for key in _LISTENS for value in socket.values("Socket", key)]
    return [value for value in values if units.listens_on_internet(value)]


def service_of(socket: Unit) -> str:
    """The service that a socket unit starts (systemd.socket(5))."""
    named = socket.value("Socket", "Service")
    if named:
        return named
    stem = socket.name.removesuffix(".socket")
    # One instance for each connection, of the same service for all instances of the socket.
    template = socket.value("Socket", "Accept").lower() in _TRUE
    return f"{stem.partition('@')[0]}@.service" if template else f"{stem}.service"


def started_by(timer: Unit) -> str:
    """The unit that a timer starts (systemd.timer(5))."""
    return timer.value("Timer", "Unit") or f"{timer.name.removesuffix('.timer')}.service"


def is_closed(unit: Unit, *, privileged: bool = False, joined: bool = False) -> bool:
    """Whether the unit's processes cannot have sockets of the internet (systemd.exec(5)). `privileged`: one with the
    prefix ``+``, which has the unit's network and is kept from no family of addresses. `joined`: another unit says
    that it is in the same namespaces, which holds for both."""
    elsewhere = joined or unit.value("Service", "NetworkNamespacePath") or unit.value("Unit", _JOINS)
    if unit.value("Service", "PrivateNetwork").lower() in _TRUE and not elsewhere:
        return True
    lines = unit.values("Service", "RestrictAddressFamilies")
    if not lines or privileged:
        return False
    allowed: set[str] | None = None
    denied: set[str] = set()
    for line in lines:
        words = set(line.lstrip("~").split())
        if line.startswith("~"):
            denied |= words
            allowed = None if allowed is None else allowed - words
        else:
            # The first line says whether it is a list of what may be.
            allowed = words if allowed is None and not denied else (allowed or set()) | words
    if allowed is None:
        return denied >= _INTERNET
    return not allowed & _INTERNET


def gains_nothing(unit: Unit) -> bool:
    """Whether its processes run with no_new_privs: said, or implied (systemd.exec(5), NoNewPrivileges=)."""
    told = unit.value("Service", "NoNewPrivileges").lower()
    if told in _TRUE or unit.value("Service", "DynamicUser").lower() in _TRUE:
        return True
    # Who is not root lacks CAP_SYS_ADMIN, without which a filter of system calls needs it.
    return unit.value("Service", "User") not in ("", "root", "0") and _has_filter(unit)


def _has_filter(unit: Unit) -> bool:
    values = [value.lower() for key in _FILTERS for value in unit.values("Service", key)[-1:]]
    return any(value not in _FALSE for value in values)


def _placed(view: RootView, unit: Unit, words: list[str], scope: str) -> tuple[list[str], bool]:
    """The words of a command, its program where it lies, as far as the unit tells: by specifiers (systemd.unit(5)),
    ExecSearchPath= and RootDirectory=; and whether it is somewhere else, where it was not found."""
    stem, _, _ = unit.name.rpartition(".")
    prefix, at, instance = stem.partition("@")
    known = {"%": "%", "n": unit.name, "N": stem, "p": prefix, "j": prefix.rpartition("-")[2]}
    known |= {"i": instance} if instance or not at else {}
    known |= {} if scope else _PLACES
    words = [re.sub(r"%(.)", lambda match: known.get(match[1], match[0]), word) for word in words]
    program = words[0]
    root = unit.value("Service", "RootDirectory").rstrip("/")
    paths = [path for value in unit.values("Service", "ExecSearchPath") for path in value.split(":")]
    for path in [program] if program.startswith("/") else [f"{path}/{program}" for path in paths]:
        if (root or path != program) and view.lookup(f"{root}{path}") is not None:
            return [f"{root}{path}", *words[1:]], False
    searched = bool(paths) and not program.startswith("/")
    return words, searched or bool(root or unit.value("Service", "RootImage"))


def _service(
    view: RootView, unit: Unit, scope: str, sockets: list[str] | None, *, timed: bool, joined: bool
) -> Iterator[Start]:
    """`sockets`: internet addresses that it is handed; None: no socket unit starts it. Who gets only sockets
    in the file system listens on those. `timed`: a timer starts it, so a short one is there again and again."""
    stays = (unit.value("Service", "Type") != "oneshot" or timed) and sockets != []
    for key in _STARTS:
        main = key == _MAIN
        for line in unit.values("Service", key):
            # Commands that are separated by a semicolon of their own are several.
            for part in re.split(r"\s;\s", line):
                words = units.split_command(part)
                if words:
                    words, elsewhere = _placed(view, unit, words, scope)
                    privileged = units.is_privileged(part)
                    profile = "" if privileged else unit.value("Service", "AppArmorProfile")
                    handed = tuple(sockets or ()) if main else ()
                    name = unit.name + scope
                    alone = not privileged and (gains_nothing(unit) or (bool(scope) and _has_filter(unit)))
                    closed = is_closed(unit, privileged=privileged, joined=joined)
                    yield Start(name, tuple(words), handed, closed, main and stays, profile, alone, elsewhere)


def _inetd(view: RootView, unread: dict[str, str]) -> Iterator[Start]:
    for line in units.text_of(view, _INETD, unread).splitlines():
        words = line.partition("#")[0].split()
        # inetd(8): service, type, protocol, wait, user, program, arguments with the program's name.
        if len(words) >= 6 and words[5] != "internal":
            through = words[6:7] if words[5].endswith("/tcpd") else []
            yield Start(f"{_INETD}: {words[0]}", tuple(through or words[5:6]), (words[0],))
    for name in view.list_dir(_XINETD) or ():
        text = units.text_of(view, f"{_XINETD}/{name}", unread)
        if re.search(r"^\s*disable\s*=\s*yes\b", text, re.M):
            continue
        for match in re.finditer(r"^\s*server\s*=\s*(\S+)", text, re.M):
            yield Start(f"{_XINETD}/{one_line(name)}", (match[1],), (name,))
