"""What runs in a booted machine: processes with their labels, sockets with their owners; for the gate `apparmor`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_osgates.checks.apparmor_model import Attachment, Mode
from pytest_osgates.model import Model

# The kernel's aa_label_snxprint(): the names, then the mode in parentheses; a stack has //& between its parts.
_LABEL = re.compile(r"(?P<name>.+) \((?P<mode>[a-z]+)\)", re.DOTALL)
# Why a process has no label that counts.
FOREIGN = "its label is not AppArmor's"
UNSTEADY = "it became another program, or got another label, while it was looked at"
# States of sockets that wait for others.
_WAITING = ("listen", "unconnected", "raw", "packet")
_FIRST = 1


class ProcessSeen(Model):
    """A process. ``label`` is what the kernel says of it, as it says it; ``error`` why it does not. ``exe`` is the
    path of its program; ``deleted``: that was removed or replaced since. ``started``: clock ticks since boot."""

    pid: int
    exe: str
    label: str = ""
    error: str = ""
    deleted: bool = False
    started: int | None = None
    namespace: str = ""


class SocketSeen(Model):
    """A socket that is not of this machine alone (as AF_UNIX and netlink are). ``namespace``: that of the network;
    ``inode``: its own, 0 if it has none any more. ``pids``: who holds it."""

    protocol: str
    local: str
    remote: str = ""
    state: str = ""
    namespace: str = ""
    inode: int = 0
    pids: tuple[int, ...] = ()


class RunningSeen(Model):
    """One look at a machine. ``problems``: what could not be looked at."""

    enabled: bool
    ptrace_scope: int | None = None
    processes: tuple[ProcessSeen, ...]
    sockets: tuple[SocketSeen, ...]
    namespaces: int = 1
    problems: tuple[str, ...] = ()


def read_label(text: str) -> tuple[str, Mode]:
    """Profile and mode of a label. Without a profile, or in a mode that is not known, it confines nothing.

    A profile that is called unconfined is none, also in a namespace of its own (``:ns:unconfined``).
    """
    label = text.strip().removesuffix("\0")
    match = _LABEL.fullmatch(label)
    if match is None:
        return "", Mode.UNCONFINED
    name = match["name"]
    try:
        mode = Mode(match["mode"])
    except ValueError:
        return name, Mode.MIXED
    if all(part.rpartition(":")[2] == "unconfined" for part in name.split("//&")):
        return "", Mode.UNCONFINED
    return name, mode


def attachments(seen: RunningSeen) -> tuple[Attachment, ...]:
    """The labels of processes, by their programs."""
    found = []
    holders = holding(seen)
    for process in seen.processes:
        profile, mode = read_label(process.label)
        error = process.error
        if process.deleted and not error:
            error = f"process {process.pid} runs a program that is not in the image any more"
        found.append(
            Attachment(
                path=process.exe,
                how="process",
                profile=profile,
                mode=mode,
                pid=process.pid,
                idle=process.pid not in holders,
                error=error,
            )
        )
    return tuple(found)


def holding(seen: RunningSeen) -> frozenset[int]:
    """Processes that hold sockets."""
    return frozenset(pid for socket in seen.sockets for pid in socket.pids)


def socket_programs(seen: RunningSeen) -> dict[str, str]:
    """Programs that hold sockets, each with what kind: for :func:`pytest_osgates.checks.apparmor.with_sockets`."""
    programs = {process.pid: process.exe for process in seen.processes}
    found: dict[str, dict[str, None]] = {}
    for socket in seen.sockets:
        what = f"{socket.protocol} {socket.local} {socket.state}".strip()
        for pid in socket.pids:
            # What the first process waits on is for a service, which is the one that counts: see held_for_others().
            if pid in programs and not (pid == _FIRST and socket.state in _WAITING):
                found.setdefault(programs[pid], {})[what] = None
    return {path: ", ".join(list(what)[:5]) for path, what in found.items()}


def held_for_others(seen: RunningSeen) -> tuple[SocketSeen, ...]:
    """Sockets that only the first process waits on, for services that it would start."""
    return tuple(socket for socket in seen.sockets if socket.state in _WAITING and socket.pids == (_FIRST,))


def awaited(seen: RunningSeen) -> frozenset[str]:
    """Ports of all sockets that wait for others."""
    return frozenset(socket.local.rpartition(":")[2] for socket in seen.sockets if socket.state in _WAITING)


def unowned(seen: RunningSeen) -> tuple[SocketSeen, ...]:
    """Sockets that wait for others and that no process holds: the kernel's own, or a process that was not seen."""
    known = {process.pid for process in seen.processes}
    return tuple(
        socket for socket in seen.sockets if socket.state in _WAITING and not known.intersection(socket.pids)
    )


def merged(looks: Sequence[RunningSeen]) -> RunningSeen:
    """All looks as one. A process that got another label is there with both; one whose label could not be told in one
    look, but could in another, is not missed. A socket belongs to all who held it in any look.

    :raise IndexError: there is no look.
    """
    last = looks[-1]
    processes: dict[tuple[object, ...], ProcessSeen] = {}
    steady = {_identity(process) for look in looks for process in look.processes if not process.error}
    for look in looks:
        for process in look.processes:
            if process.error != UNSTEADY or _identity(process) not in steady:
                processes[*_identity(process), process.label, process.error, process.deleted] = process
    holders: dict[tuple[str, int], set[int]] = {}
    for look in looks:
        for socket in look.sockets:
            holders.setdefault((socket.namespace, socket.inode), set()).update(socket.pids)
    sockets: dict[tuple[object, ...], SocketSeen] = {}
    for look in looks:
        for socket in look.sockets:
            pids = tuple(sorted(holders[socket.namespace, socket.inode])) if socket.inode else socket.pids
            known = (socket.namespace, socket.protocol, socket.local, socket.remote, socket.state, socket.inode)
            sockets[known] = socket.model_copy(update={"pids": pids})
    return RunningSeen(
        enabled=all(look.enabled for look in looks),
        ptrace_scope=last.ptrace_scope,
        processes=tuple(processes.values()),
        sockets=tuple(sockets.values()),
        namespaces=max(look.namespaces for look in looks),
        # What ended while it was looked at could not be looked at; what lasts is met again.
        problems=tuple(problem for problem in last.problems),
    )


def _identity(process: ProcessSeen) -> tuple[object, ...]:
    """One program of one process: a process identifier may be used again, and a process may become another
    program."""
    return process.pid, process.started, process.exe
