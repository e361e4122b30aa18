"""The kernel's own record of who uses internet sockets, for what comes and goes between two looks.

An instance of tracefs (Documentation/trace/ftrace.rst) keeps some events: a TCP socket that begins to listen or to
connect, whoever opened it; socket(2), and what is done with its descriptor, for a datagram socket that is only
asked for the state of an interface (as udev does) talks to nobody; fork and exec, so that each thread has a
program. That costs no polling. Since Linux 6.3 there is an event for what is sent and received, too, whatever
descriptor it goes through and whoever opened it. Without that event it does not see the datagrams of 32-bit programs
and of io_uring, nor of sockets that came from elsewhere (SCM_RIGHTS, opened before the record began). What is silent
it never sees; the looks do.

Nothing tells that a descriptor was copied, or is kept over an execve. So what a program becomes may use those that it
had; and where it has a datagram socket that nobody used, and uses an address of the internet's length with a
descriptor that nobody knows, that is a copy.

Attribution is by thread: its last execve, else what its parent was when it was made, else what /proc said at the
start. What the first process listens on is for the services of socket units, and is left to the looks.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pytest_osgates.observers.confinement.records import read
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line

MAX_TRACE = 24 << 20
MAX_PROGRAMS = 5000
_WHAT = "record of sockets"
_FIRST = 1
_STREAM, _RAW, _PACKET = 1, 3, 17
# linux/socket.h: AF_INET, AF_INET6, AF_PACKET; net/tcp_states.h: TCP_LISTEN (10), TCP_SYN_SENT (2).
_FAMILIES = {2: "inet", 10: "inet6", 17: "packet"}
_TYPES = {1: "stream", 2: "datagram", 3: "raw", 5: "seqpacket", 6: "dccp", 10: "packet"}
_USES = {
    "sys_bind": "bound",
    "sys_connect": "connected",
    "sys_sendto": "sent",
    "sys_sendmsg": "sent",
    "sys_sendmmsg": "sent",
}
# So that sockets in the file system do not fill the record. Whom a datagram without an address goes to was said by
# connect(2). A kernel that cannot tell them apart keeps all of them.
_SPARED = {
    "syscalls/sys_enter_socket": " || ".join(f"family == {family}" for family in _FAMILIES),
    "syscalls/sys_enter_sendto": "addr_len != 0",
}
_BUFFER_KIB = 4096
# Of TCP (IPPROTO_MPTCP: 262) it is enough that it listens or connects.
_DATAGRAMS = "(family == 2 || family == 10 || family == 17) && protocol != 6 && protocol != 262"
# Not every kernel has them.
_PERHAPS = (("sock/sock_send_length", _DATAGRAMS), ("sock/sock_recv_length", f"{_DATAGRAMS} && ret > 0"))
_DONE = {"sock_send_length": "sent", "sock_recv_length": "received"}
_PROTOCOLS = {1: "icmp", 17: "udp", 58: "icmp6", 132: "sctp", 136: "udplite"}
# sizeof() of sockaddr_in, of sockaddr_in6 as of RFC 2133 and now; of sockaddr_un (sockaddr_storage is longer).
_LENGTHS, _UNIX = (16, 24, 28), 110
_ENABLE = (
    ("sock/inet_sock_set_state", "newstate == 10 || newstate == 2"),
    ("syscalls/sys_enter_socket", ""),
    ("syscalls/sys_exit_socket", ""),
    *((f"syscalls/sys_enter_{name.removeprefix('sys_')}", "") for name in _USES),
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
echo @BUFFER@ >"$i/buffer_size_kb" 2>/dev/null
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
[ -z @FILTER@ ] || echo @FILTER@ >"$i/events/@EVENT@/filter" 2>/dev/null ||
    { rmdir "$i"; not 'the kernel has no event @EVENT@'; }
[ -z @SPARED@ ] || echo @SPARED@ >"$i/events/@EVENT@/filter" 2>/dev/null
echo 1 >"$i/events/@EVENT@/enable" 2>/dev/null || { rmdir "$i"; not 'the kernel has no event @EVENT@'; }
"""
_EVENT_PERHAPS = r"""
if echo @FILTER@ 2>/dev/null >"$i/events/@EVENT@/filter"; then echo 1 >"$i/events/@EVENT@/enable"; fi
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
    find /proc/[0-9]*/task -mindepth 1 -maxdepth 1 -printf '%p\n' >"$d/rec" 2>/dev/null
    n=$(wc -c <"$d/rec") || exit 72; say blob task "$((n))"; cat "$d/rec" || exit 73
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
_RETURNED = re.compile(r" -> (?:0x)?([0-9a-f]{1,16})")
_DESCRIPTOR = re.compile(r"\(fd: (?:0x)?([0-9a-f]{1,16})[,)]")
_LENGTH = re.compile(r"\baddr_?len: (?:0x)?([0-9a-f]{1,16})\b")
_MESSAGE = re.compile(r": sk address = \S+, family = (\w+) protocol = (\w+), length = ")
_TCP = re.compile(r": family=\w+ protocol=(\w+) sport=(\d{1,5}) dport=(\d{1,5}) .*newstate=(\w+)")


@dataclass(frozen=True)
class Recording:
    """What was running when it began: ``programs`` of threads, and of which ``processes`` these are; ``problem``: why
    there is no record."""

    programs: Mapping[int, str] = field(default_factory=dict)
    processes: Mapping[int, int] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Recorded:
    """Programs that opened sockets, each with what it opened; ``unnamed``: sockets of which nobody can tell the
    program; ``problem``: why the record is not complete; ``lost``: how many events there was no room for;
    ``processes``: who it was, by the program; of a thread that came and went, its own number."""

    programs: Mapping[str, str] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()
    problem: str = ""
    processes: Mapping[str, frozenset[int]] = field(default_factory=dict, compare=False)
    lost: int = 0


def start(shell: GuestShell) -> Recording:
    """Begin.

    :raise GuestError: the guest does not answer.
    """
    events = "".join(
        _EVENT.replace("@FILTER@", shlex.quote(text))
        .replace("@SPARED@", shlex.quote(_SPARED.get(event, "")))
        .replace("@EVENT@", event)
        for event, text in _ENABLE
    )
    events += "".join(
        _EVENT_PERHAPS.replace("@FILTER@", shlex.quote(text)).replace("@EVENT@", event) for event, text in _PERHAPS
    )
    script = _START.replace("@DIRECTORY@", shlex.quote(shell.directory)).replace("@EVENTS@", events)
    script = script.replace("@BUFFER@", str(_BUFFER_KIB))
    done = shell.run(script, timeout=120, max_output=4 << 20, shown="beginning a record of sockets")
    records = read(done.check().stdout, _WHAT)
    if records.said["not"] or not records.said["recording"]:
        return Recording(problem=one_line(records.one("not"), 200) or "the guest does not say why")
    texts = records.blobs.get("exe", b"").decode("utf-8", "surrogateescape").split("\0")
    programs = {int(path.split("/")[2]): exe for path, exe in zip(texts[0::2], texts[1::2], strict=False) if exe}
    processes = _processes(records.blobs.get("task", b""))
    for thread, process in processes.items():
        if process in programs:
            programs.setdefault(thread, programs[process])
    return Recording(programs=programs, processes=processes)


def _processes(listed: bytes) -> dict[int, int]:
    """By thread, the process that it is of."""
    found = {}
    for line in listed.decode("utf-8", "surrogateescape").split("\n"):
        match = re.fullmatch(r"/proc/(\d{1,10})/task/(\d{1,10})", line)
        if match is not None:
            found[int(match[2])] = int(match[1])
    return found


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
    now = _processes(records.blobs.get("task", b""))
    found = attribute(records.blobs["trace"], recording.programs, resolve, recording.processes, now)
    count = sum(map(int, lost))
    if not lost:
        return replace(found, problem="the kernel does not say whether its record is complete")
    if count:
        return replace(found, problem=f"the kernel's record was too small: it lost {count} events", lost=count)
    return found


def attribute(
    trace: bytes,
    running: Mapping[int, str],
    resolve: Callable[[str], str],
    before: Mapping[int, int] | None = None,
    after: Mapping[int, int] | None = None,
) -> Recorded:
    """Who used what, by the text of a trace. `running`: programs of threads at its beginning; `before`, `after`: of
    which process each thread was then, and at its end."""
    state = _State(dict(running))
    for line in trace.decode("utf-8", "surrogateescape").split("\n"):
        head = _LINE.search(line)
        if head is not None:
            state.event(int(head[1]), head[2], head[3])
    opened: dict[str, dict[str, None]] = {}
    unnamed: dict[str, None] = {}
    threads: dict[str, set[int]] = {}
    for (program, what), users in state.used.items():
        if program.startswith("/") and len(opened) < MAX_PROGRAMS:
            path = resolve(posixpath.normpath(program))
            if one_line(path, 4096) != path:
                unnamed[f"{one_line(path, 200)}, whose name cannot be written as it is: {what}"] = None
                continue
            opened.setdefault(path, {})[what] = None
            threads.setdefault(path, set()).update(users)
        else:
            unnamed[f"{one_line(program, 200)}: {what}"] = None
    shown = {path: ", ".join(list(what)[:5]) for path, what in opened.items()}
    # A number that was given anew meanwhile is no thread of who was there at the beginning.
    known = {thread: process for thread, process in (before or {}).items() if thread not in state.born}
    known.update(after or {})
    by = {path: frozenset(known.get(user, user) for user in users) for path, users in threads.items()}
    return Recorded(shown, tuple(list(unnamed)[:50]), processes=by)


@dataclass
class _State:
    """`programs` of threads; `born`: who was made meanwhile. `asked`: by thread, the socket(2) that has not
    returned; `open`: by program and descriptor, datagram sockets, and empty what is known to be another one; `used`:
    program and what it did, with the threads that did it."""

    programs: dict[int, str]
    asked: dict[int, str] = field(default_factory=dict)
    open: dict[tuple[str, int], str] = field(default_factory=dict)
    used: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    born: set[int] = field(default_factory=set)

    def event(self, thread: int, name: str, rest: str) -> None:
        """One line of the trace."""
        program = self.programs.get(thread, f"thread {thread}")
        if name == "sched_process_exec" and (match := _EXEC.fullmatch(rest)):
            self.programs[int(match[2])] = match[1]
            for (_, descriptor), what in [item for item in self.open.items() if item[0][0] == program and item[1]]:
                self.open[match[1], descriptor] = what
        elif name == "sched_process_fork" and (match := _FORK.fullmatch(rest)):
            self._forked(int(match[1]), int(match[2]))
        elif thread == _FIRST:
            return
        elif name == "inet_sock_set_state" and (match := _TCP.match(rest)):
            port = f"listens on port {match[2]}" if match[4] == "TCP_LISTEN" else f"connects to port {match[3]}"
            self._used(thread, program, f"{match[1].removeprefix('IPPROTO_').lower()} {port}")
        elif name == "sys_socket" and (match := _SOCKET.match(rest)):
            self._asked(thread, program, int(match[1], 16), int(match[2], 16))
        elif name == "sys_socket" and (match := _RETURNED.match(rest)):
            descriptor, what = int(match[1], 16), self.asked.pop(thread, "")
            # What was in the way of a new socket is closed by now.
            if descriptor < 1 << 31:
                self.open[program, descriptor] = what
        elif name in _USES and (match := _DESCRIPTOR.match(rest)):
            what = self.open.get((program, int(match[1], 16)), self._copied(program, rest))
            if what:
                self._used(thread, program, f"{what}, {_USES[name]}")
        elif name in _DONE and (match := _MESSAGE.match(rest)):
            self._used(thread, program, f"{_medium(match[1], match[2])}, {_DONE[name]}")

    def _copied(self, program: str, rest: str) -> str:
        """What a descriptor that nobody knows may be a copy of; empty: its address is none of the internet."""
        match = _LENGTH.search(rest)
        length = int(match[1], 16) if match is not None else 0
        if length not in _LENGTHS and length <= _UNIX:
            return ""
        return next((what for (owner, _), what in self.open.items() if owner == program and what), "")

    def _used(self, thread: int, program: str, what: str) -> None:
        self.used.setdefault((program, what), set()).add(thread)

    def _forked(self, parent: int, child: int) -> None:
        self.born.add(child)
        if parent in self.programs:
            self.programs[child] = self.programs[parent]
        else:
            self.programs.pop(child, None)

    def _asked(self, thread: int, program: str, family: int, kind: int) -> None:
        # The lower four bits are the type, flags are above (net/socket.c, SOCK_TYPE_MASK).
        what = _TYPES.get(kind & 0xF, str(kind & 0xF))
        self.asked[thread] = ""
        if family == _PACKET or (family in _FAMILIES and kind & 0xF == _RAW):
            self._used(thread, program, f"{_FAMILIES[family]} {what}")
        elif family in _FAMILIES and kind & 0xF != _STREAM:
            self.asked[thread] = f"{_FAMILIES[family]} {what}"


def _medium(family: str, protocol: str) -> str:
    """``AF_INET``, ``0x11``: ``inet udp``. The kernel writes a number where it has no name."""
    if not family.startswith("AF_INET"):
        return _FAMILIES[_PACKET]
    number = int(protocol, 16) if re.fullmatch(r"0x[0-9a-f]{1,8}", protocol) else None
    name = (
        protocol.removeprefix("IPPROTO_").lower() if number is None else _PROTOCOLS.get(number, f"protocol {number}")
    )
    return f"{family.removeprefix('AF_').lower()} {name}"
