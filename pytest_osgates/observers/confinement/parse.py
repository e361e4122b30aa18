"""The answer of the script, taken apart: labels of processes, tables of sockets (proc(5), proc_pid_net(5))."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterator

from pytest_osgates.checks.apparmor_running import FOREIGN, UNSTEADY, ProcessSeen, RunningSeen, SocketSeen
from pytest_osgates.observers.confinement.records import Records, read
from pytest_osgates.vm.errors import ChannelError
from pytest_osgates.vm.text import one_line

MAX_SOCKETS = 100_000
# include/linux/sched.h: the process is a kernel thread; it has no program.
_KERNEL_THREAD = 0x200000
# include/net/tcp_states.h
_STATES = {1: "established", 2: "syn-sent", 3: "syn-recv", 6: "time-wait", 8: "close-wait", 10: "listen"}
_DELETED = " (deleted)"
_FD = re.compile(r"/proc/(\d{1,10})/fd/\d{1,10}")
_SOCKET = re.compile(r"socket:\[(\d{1,20})\]")
_HEX_ADDRESS = re.compile(r"([0-9A-Fa-f]{8}|[0-9A-Fa-f]{32}):([0-9A-Fa-f]{4})")
# A label of SELinux or of another module, where attr/current is not AppArmor's.
_CONTEXT = re.compile(r"[^\s:()]+:[^\s:()]+:[^\s:()]+(?::\S+)?")


def running(data: bytes) -> RunningSeen:
    """What the guest says of its processes and sockets.

    :raise ChannelError: it is cut short, or not what the script writes.
    """
    records = read(data, "list of processes")
    problems: dict[str, None] = {}
    own = _descendants(records)
    links = _links(records.blobs.get("links", b""))
    again = {fields[0]: (fields[1], fields[2]) for fields in records.said["again"] if len(fields) == 3}
    processes = [
        seen for fields in records.said["process"] if (seen := _process(fields, own, links, again)) is not None
    ]
    holders: dict[int, list[int]] = defaultdict(list)
    for path, target in links.items():
        descriptor, inode = _FD.fullmatch(path), _SOCKET.fullmatch(target)
        if descriptor is not None and inode is not None:
            holders[int(inode[1])].append(int(descriptor[1]))
    sockets: list[SocketSeen] = []
    namespaces = set()
    for tag, blob in records.blobs.items():
        namespace, _, table = tag.rpartition(":")
        if not namespace.startswith("net:["):
            continue
        namespaces.add(namespace)
        for socket in _table(table, blob.decode("utf-8", "replace"), namespace, problems):
            pids = tuple(sorted(set(holders.get(socket.inode, ())))) if socket.inode else ()
            if not (pids and set(pids) <= own):
                sockets.append(socket.model_copy(update={"pids": tuple(pid for pid in pids if pid not in own)}))
            if len(sockets) > MAX_SOCKETS:
                raise ChannelError(f"the guest lists more than {MAX_SOCKETS} sockets")
    for path, _ in (fields[:2] for fields in records.said["unseen"] if len(fields) == 2):
        problems[f"nobody can look into the network namespace {one_line(path)}: nsenter(1) is missing"] = None
    for namespace in sorted({process.namespace for process in processes if process.namespace} - namespaces):
        problems[f"nobody looked into the network namespace {namespace}"] = None
    if not links:
        problems["nobody knows who holds which socket: find(1) is missing, or has no -printf"] = None
    if not processes:
        problems["the guest lists no process at all"] = None
    scope = records.one("scope")
    return RunningSeen(
        enabled=records.one("enabled") == "Y",
        ptrace_scope=int(scope) if re.fullmatch(r"[0-9]", scope) else None,
        processes=tuple(processes),
        sockets=tuple(sockets),
        namespaces=len(namespaces),
        problems=tuple(problems),
    )


def parse_stat(text: str) -> tuple[int, int, int] | None:
    """Parent, flags and start of a process (proc_pid_stat(5)); None: it cannot be read. Its name, in parentheses, may
    hold anything, also a newline, behind which nothing was read."""
    words = text.rpartition(")")[2].split()
    numbers = [words[index] for index in (1, 6, 19)] if len(words) > 19 else []
    if not numbers or not all(re.fullmatch(r"[0-9]{1,20}", number) for number in numbers):
        return None
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def ended(text: str) -> bool:
    """Whether a process has ended, and its parent has not asked for it yet. One whose first thread alone has ended
    looks like that, but has others."""
    words = text.rpartition(")")[2].split()
    return parse_stat(text) is not None and words[0] in ("Z", "X") and words[17] in ("0", "1")


def _descendants(records: Records) -> set[int]:
    """The script's own shell, and what it started."""
    own = records.one("self")
    if not own.isdecimal():
        return set()
    parents: dict[int, int] = {}
    for fields in records.said["process"]:
        stat = parse_stat(fields[1]) if len(fields) == 4 else None
        if stat is not None and fields[0].isdecimal():
            parents[int(fields[0])] = stat[0]
    found = {int(own)}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _links(data: bytes) -> dict[str, str]:
    """Symbolic links in /proc, and where they lead."""
    texts = data.decode("utf-8", "surrogateescape").split("\0")
    return dict(zip(texts[0::2], texts[1::2], strict=False))


def _process(
    fields: tuple[str, ...], own: set[int], links: dict[str, str], again: dict[str, tuple[str, str]]
) -> ProcessSeen | None:
    """None for kernel threads, for what the script runs, and for what ended before its program could be asked for."""
    if len(fields) != 4 or not re.fullmatch(r"[0-9]{1,10}", fields[0]):
        raise ChannelError("the guest's list of processes is not what was asked for")
    pid, text, how, label = int(fields[0]), *fields[1:]
    exe, namespace = (links.get(f"/proc/{pid}/{name}", "") for name in ("exe", "ns/net"))
    stat = parse_stat(text)
    if pid in own or (stat is not None and stat[1] & _KERNEL_THREAD and not exe):
        return None
    later = again.get(fields[0])
    if not exe and (ended(text) or (again and (later is None or ended(later[1])))):
        return None
    deleted = exe.endswith(_DELETED)
    if one_line(exe, 4096) != exe:
        # As it would be written, it is the name of another.
        exe = ""
    error = ""
    if not exe:
        error = "its program cannot be told"
    elif not label:
        error = "the kernel gave no label"
    elif how != "apparmor" and _CONTEXT.fullmatch(label):
        error = FOREIGN
    elif later is not None and later[0] not in ("", label):
        error = UNSTEADY
    return ProcessSeen(
        pid=pid,
        exe=exe.removesuffix(_DELETED),
        label=one_line(label, 1000),
        error=error,
        deleted=deleted,
        started=None if stat is None else stat[2],
        namespace=one_line(namespace, 60),
    )


def _table(table: str, text: str, namespace: str, problems: dict[str, None]) -> Iterator[SocketSeen]:
    for line in text.splitlines()[1:]:
        words = line.split()
        if not words:
            continue
        try:
            yield _packet(words, namespace) if table == "packet" else _socket(table, words, namespace)
        except (ValueError, IndexError):
            problems[f"a line of /proc/net/{one_line(table, 20)} cannot be read: {one_line(line, 80)}"] = None


def _packet(words: list[str], namespace: str) -> SocketSeen:
    """sk, references, type, protocol, interface, running, memory, user, inode."""
    protocol = int(words[3], 16)
    return SocketSeen(
        protocol="packet",
        local=f"protocol {protocol:#06x}, interface {int(words[4])}",
        state="packet",
        namespace=namespace,
        inode=int(words[8]),
    )


def _socket(table: str, words: list[str], namespace: str) -> SocketSeen:
    """Number, local and remote address, state, queues, timer, retransmits, user, timeout, inode."""
    if table == "sctp/eps":
        # Its columns changed from version to version; that there is one is what counts.
        return SocketSeen(protocol=table, local=one_line(" ".join(words), 120), state="listen", namespace=namespace)
    state = int(words[3], 16)
    remote = address(words[2])
    if table.startswith("tcp"):
        name = _STATES.get(state, f"state {state}")
    elif table.startswith(("raw", "icmp")):
        name = "raw"
    else:
        name = "unconnected" if state == 7 else "established"
    return SocketSeen(
        protocol=table,
        local=address(words[1]),
        remote=remote,
        state=name,
        namespace=namespace,
        inode=int(words[9]),
    )


def address(text: str) -> str:
    """``0100007F:1F90``: 127.0.0.1:8080. The words of an address are in the byte order of the machine, little-endian.

    :raise ValueError: it is none.
    """
    match = _HEX_ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no address")
    raw = bytes.fromhex(match[1])
    packed = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    port = int(match[2], 16)
    host = str(ipaddress.ip_address(packed))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
