"""The kernel's own record of who opens internet sockets, for what comes and goes between two looks.

An instance of tracefs (Documentation/trace/ftrace.rst) keeps four events: socket(2) with a family of the internet or of
packets, a TCP socket that begins to listen whoever opened it, and, so that each thread has a program, fork and exec.
It costs no polling. It does not see sockets that 32-bit programs or io_uring open without listening, nor those that were
open before; the looks see what lasts.

Attribution is by thread: its last execve, else what its parent was when it was made, else what /proc said at the start.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pytest_osgates.observers.confinement.records import read
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line

MAX_TRACE = 24 << 20
MAX_PROGRAMS = 5000
_WHAT = "record of sockets"
# linux/socket.h: AF_INET, AF_INET6, AF_PACKET; net/tcp_states.h: TCP_LISTEN.
_FAMILIES = {2: "inet", 10: "inet6", 17: "packet"}
_TYPES = {1: "stream", 2: "datagram", 3: "raw", 5: "seqpacket", 6: "dccp", 10: "packet"}
_ENABLE = (
    ("syscalls/sys_enter_socket", "family == 2 || family == 10 || family == 17"),
    ("sock/inet_sock_set_state", "newstate == 10"),
    ("sched/sched_process_exec", ""),
    ("sched/sched_process_fork", ""),
)
_START = r"""
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
say() { printf '%s\0' "$#" "$@" || exit 71; }
d=@DIRECTORY@
not() { say not "$1"; say end; exit 0; }
t=/sys/kernel/tracing
if ! [ -d "$t/instances" ]; then
    # Nothing of the guest's own is covered: what is mounted lies in the channel's directory.
    t=$d/tracing
    mkdir -p "$t"
    [ -d "$t/instances" ] || mount -t tracefs -o nosuid,nodev,noexec tracefs "$t" 2>/dev/null ||
        not 'there is no tracefs: the kernel has none, or lockdown=confidentiality forbids it'
fi
i=$t/instances/osgates
[ ! -d "$i" ] || rmdir "$i" 2>/dev/null
mkdir "$i" 2>/dev/null || not 'tracefs takes no instance'
echo 2048 >"$i/buffer_size_kb" 2>/dev/null
@EVENTS@
echo 1 >"$i/tracing_on"
find /proc/[0-9]*/exe -maxdepth 0 -printf '%p\0%l\0' >"$d/rec" 2>/dev/null
n=$(wc -c <"$d/rec") || exit 72; say blob exe "$((n))"; cat "$d/rec" || exit 73
find /proc/[0-9]*/task -mindepth 1 -maxdepth 1 -printf '%p\n' >"$d/rec" 2>/dev/null
n=$(wc -c <"$d/rec") || exit 72; say blob task "$((n))"; cat "$d/rec" || exit 73
rm -f "$d/rec"
say recording "$t"
say end
"""
_EVENT = r"""
[ -z @FILTER@ ] || echo @FILTER@ >"$i/events/@EVENT@/filter" 2>/dev/null || { rmdir "$i"; not 'the kernel has no event @EVENT@'; }
echo 1 >"$i/events/@EVENT@/enable" 2>/dev/null || { rmdir "$i"; not 'the kernel has no event @EVENT@'; }
"""
_STOP = r"""
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
say() { printf '%s\0' "$#" "$@" || exit 71; }
d=@DIRECTORY@
t=/sys/kernel/tracing
[ -d "$t/instances" ] || t=$d/tracing
i=$t/instances/osgates
if [ -d "$i" ]; then
    echo 0 >"$i/tracing_on"
    grep -h -e '^overrun:' -e '^dropped events:' "$i"/per_cpu/cpu*/stats >"$d/rec" 2>/dev/null
    n=$(wc -c <"$d/rec") || exit 72; say blob lost "$((n))"; cat "$d/rec" || exit 73
    cat "$i/trace" >"$d/rec" 2>/dev/null
    n=$(wc -c <"$d/rec") || exit 72; say blob trace "$((n))"; cat "$d/rec" || exit 73
    rm -f "$d/rec"
    rmdir "$i" || say left "$i"
fi
[ "$t" != "$d/tracing" ] || umount "$t" 2>/dev/null
say end
"""
_LINE = re.compile(r"-(\d{1,10})\s+(?:\(\s*[\d-]+\)\s+)?\[\d+\]\s+\S+\s+\d+\.\d+: (\w+)(.*)")
_EXEC = re.compile(r": filename=(.*) pid=(\d{1,10}) old_pid=(\d{1,10})")
_FORK = re.compile(r": comm=.* pid=(\d{1,10}) child_comm=.* child_pid=(\d{1,10})")
_SOCKET = re.compile(r"\(family: (?:0x)?([0-9a-f]{1,16}), type: (?:0x)?([0-9a-f]{1,16}), protocol: ")
_LISTEN = re.compile(r": family=(\w+) protocol=(\w+) sport=(\d{1,5}) ")


@dataclass(frozen=True)
class Recording:
    """What was running when it began; ``problem``: why there is no record."""

    programs: Mapping[int, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Recorded:
    """Programs that opened sockets, each with what it opened; ``unnamed``: sockets of which nobody can tell the program;
    ``problem``: why the record is not complete."""

    programs: Mapping[str, str] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()
    problem: str = ""


def start(shell: GuestShell) -> Recording:
    """Begin.

    :raise GuestError: the guest does not answer.
    """
    events = "".join(
        _EVENT.replace("@FILTER@", shlex.quote(text)).replace("@EVENT@", event) for event, text in _ENABLE
    )
    script = _START.replace("@DIRECTORY@", shlex.quote(shell.directory)).replace("@EVENTS@", events)
    done = shell.run(script, timeout=120, max_output=4 << 20, shown="beginning a record of sockets")
    records = read(done.check().stdout, _WHAT)
    if records.said["not"] or not records.said["recording"]:
        return Recording(problem=one_line(records.one("not"), 200) or "the guest does not say why")
    texts = records.blobs.get("exe", b"").decode("utf-8", "surrogateescape").split("\0")
    programs = {int(path.split("/")[2]): exe for path, exe in zip(texts[0::2], texts[1::2], strict=False) if exe}
    for line in records.blobs.get("task", b"").decode("utf-8", "surrogateescape").split("\n"):
        match = re.fullmatch(r"/proc/(\d{1,10})/task/(\d{1,10})", line)
        if match is not None and int(match[1]) in programs:
            programs.setdefault(int(match[2]), programs[int(match[1])])
    return Recording(programs=programs)


def stop(shell: GuestShell, recording: Recording, resolve: Callable[[str], str]) -> Recorded:
    """End, and tell who opened what. `resolve`: the path of a program with links of directories followed.

    :raise GuestError: the guest does not answer.
    """
    script = _STOP.replace("@DIRECTORY@", shlex.quote(shell.directory))
    done = shell.run(script, timeout=300, max_output=MAX_TRACE, shown="reading the record of sockets")
    records = read(done.check().stdout, _WHAT)
    if recording.problem:
        return Recorded(problem=recording.problem)
    if "trace" not in records.blobs:
        return Recorded(problem="the record is gone")
    lost = re.findall(r"^[a-z ]+: (\d{1,20})$", records.blobs.get("lost", b"").decode("ascii", "replace"), re.M)
    found = attribute(records.blobs["trace"], recording.programs, resolve)
    if not lost or any(int(number) for number in lost):
        count = sum(map(int, lost))
        return Recorded(found.programs, found.unnamed, f"the kernel's record was too small: it lost {count} events")
    return found


def attribute(trace: bytes, running: Mapping[int, str], resolve: Callable[[str], str]) -> Recorded:
    """Who opened what, by the text of a trace. `running`: programs of threads at its beginning."""
    programs = dict(running)
    opened: dict[str, dict[str, None]] = {}
    unnamed: dict[str, None] = {}
    for line in trace.decode("utf-8", "surrogateescape").split("\n"):
        head = _LINE.search(line)
        if head is None:
            continue
        thread, event, rest = int(head[1]), head[2], head[3]
        if event == "sched_process_exec" and (match := _EXEC.fullmatch(rest)):
            programs[int(match[2])] = match[1]
        elif event == "sched_process_fork" and (match := _FORK.fullmatch(rest)):
            parent, child = int(match[1]), int(match[2])
            if parent in programs:
                programs[child] = programs[parent]
            else:
                programs.pop(child, None)
        elif what := _opened(event, rest):
            path = programs.get(thread, "")
            if path.startswith("/") and len(opened) < MAX_PROGRAMS:
                opened.setdefault(resolve(posixpath.normpath(path)), {})[what] = None
            else:
                name = one_line(path, 200) or f"thread {thread}"
                unnamed[f"{name}: {what}"] = None
    shown = {path: ", ".join(list(what)[:5]) for path, what in opened.items()}
    return Recorded(shown, tuple(list(unnamed)[:50]))


def _opened(event: str, rest: str) -> str:
    """``inet6 stream``, or ``listen 8080``; empty: another event."""
    if event in {"sys_socket", "sys_enter_socket"} and (match := _SOCKET.search(rest)):
        family = int(match[1], 16)
        # The lower four bits are the type, flags are above (net/socket.c, SOCK_TYPE_MASK).
        kind = int(match[2], 16) & 0xF
        return f"{_FAMILIES[family]} {_TYPES.get(kind, kind)}" if family in _FAMILIES else ""
    if event == "inet_sock_set_state" and (match := _LISTEN.match(rest)):
        return f"listens on port {int(match[3])}"
    return ""
