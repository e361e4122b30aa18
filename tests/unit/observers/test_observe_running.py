"""Processes and sockets: the script run here, its answers parsed, and hostile ones."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_shell import local_shell

from pytest_osgates.checks.apparmor_model import Mode
from pytest_osgates.checks.apparmor_running import (
    UNSTEADY,
    ProcessSeen,
    RunningSeen,
    SocketSeen,
    attachments,
    held_for_others,
    merged,
    read_label,
    socket_programs,
    unowned,
)
from pytest_osgates.observers.confinement import observe_running
from pytest_osgates.observers.confinement.parse import address, parse_stat, running
from pytest_osgates.vm.errors import ChannelError

NS = "net:[4026531840]"
KERNEL_THREAD = 0x200040


def record(*fields: str) -> bytes:
    return b"".join(text.encode() + b"\0" for text in (str(len(fields)), *fields))


def blob(tag: str, data: bytes) -> bytes:
    return record("blob", tag, str(len(data))) + data


def stat(
    pid: int, parent: int = 1, flags: int = 0x400000, state: str = "S", name: str = "a", threads: int = 1
) -> str:
    zeros = " 0" * 10
    return f"{pid} ({name}) {state} {parent} 1 1 0 -1 {flags}{zeros} {threads} 0 777 0 0"


class Told(bytes):
    """A record, and the links in /proc that go with it."""

    links = b""


def process(pid: int, exe: str, label: str, *, how: str = "apparmor", line: str = "", ns: str = NS) -> Told:
    told = Told(record("process", str(pid), line or stat(pid), how, label))
    links = {"exe": exe, "ns/net": ns}
    told.links = b"".join(f"/proc/{pid}/{name}\0{to}\0".encode() for name, to in links.items() if to)
    return told


TCP = (
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 x\n"
    b"   1: 0100007F:1F91 0100007F:0016 06 00000000:00000000 03:00000000 00000000     0        0 0 3 x\n"
)
UDP6 = (
    b"  sl  local_address                         remote_address st ...\n"
    b" 12: 00000000000000000000000000000000:0044 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 4343 2 x 0\n"
)
PACKET = b"sk RefCnt Type Proto  Iface R Rmem User Inode\n0000 3 3 0003 2 1 0 0 4444\n"
SOCKETS = b"/proc/10/fd/3\0socket:[4242]\0/proc/11/fd/7\0socket:[4343]\0/proc/10/fd/4\0socket:[9999]\0"


def answer(*more: bytes, end: bool = True) -> bytes:
    parts = [
        record("enabled", "Y"),
        record("lsm", "capability,apparmor"),
        record("scope", "2"),
        record("self", "900"),
    ]
    parts += [process(10, "/usr/sbin/d", "d (enforce)"), process(11, "/usr/bin/x y", "unconfined")]
    parts += [blob(f"{NS}:tcp", TCP), blob(f"{NS}:udp6", UDP6), blob(f"{NS}:packet", PACKET), *more]
    links = b"".join(part.links for part in parts if isinstance(part, Told)) + SOCKETS
    return b"".join(parts) + blob("links", links) + (record("end") if end else b"")


def test_an_answer() -> None:
    seen = running(answer())
    assert (seen.enabled, seen.ptrace_scope, seen.namespaces, seen.problems) == (True, 2, 1, ())
    assert [(found.pid, found.exe, found.label, found.started) for found in seen.processes] == [
        (10, "/usr/sbin/d", "d (enforce)", 777),
        (11, "/usr/bin/x y", "unconfined", 777),
    ]
    assert [(found.protocol, found.local, found.state, found.pids) for found in seen.sockets] == [
        ("tcp", "127.0.0.1:8080", "listen", (10,)),
        ("tcp", "127.0.0.1:8081", "time-wait", ()),
        ("udp6", "[::]:68", "unconnected", (11,)),
        ("packet", "protocol 0x0003, interface 2", "packet", ()),
    ]
    assert [(one.path, one.profile, one.mode, one.how) for one in attachments(seen)] == [
        ("/usr/sbin/d", "d", Mode.ENFORCE, "process"),
        ("/usr/bin/x y", "", Mode.UNCONFINED, "process"),
    ]
    assert socket_programs(seen) == {
        "/usr/sbin/d": "tcp 127.0.0.1:8080 listen",
        "/usr/bin/x y": "udp6 [::]:68 unconnected",
    }
    assert [found.protocol for found in unowned(seen)] == ["packet"]


def test_who_does_not_count() -> None:
    own = process(900, "/bin/sh", "unconfined")
    child = process(901, "/bin/cat", "unconfined", line=stat(901, 900))
    kernel = process(2, "", "unconfined", line=stat(2, 0, KERNEL_THREAD))
    zombie = process(12, "", "", line=stat(12, state="Z"))
    assert [found.pid for found in running(answer(own, child, kernel, zombie)).processes] == [10, 11]


def again(pid: int, label: str, line: str = "") -> bytes:
    return record("again", str(pid), label, line or stat(pid))


def test_who_ended_meanwhile_does_not_count() -> None:
    unknown, there = process(12, "", "unconfined"), again(10, "d (enforce)")
    for more in ((there,), (there, again(12, "unconfined", stat(12, state="Z")))):
        assert [found.pid for found in running(answer(unknown, *more)).processes] == [10, 11]
    # It is still there; its first thread alone has ended; nobody looked again.
    for more in ((there, again(12, "unconfined")), (there, again(12, "", stat(12, state="Z", threads=2))), ()):
        assert running(answer(unknown, *more)).processes[-1].error == "its program cannot be told"
    lone = process(12, "", "unconfined", line=stat(12, state="Z", threads=3))
    assert [found.pid for found in running(answer(lone)).processes] == [10, 11, 12]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (process(12, "", "unconfined"), "its program cannot be told"),
        (process(12, "/bin/a  b", "unconfined"), "its program cannot be told"),
        (process(12, "/bin/a ", "unconfined"), "its program cannot be told"),
        (process(12, "/bin/a", ""), "the kernel gave no label"),
        (process(12, "/bin/a", "system_u:system_r:init_t:s0", how="current"), "its label is not AppArmor's"),
        (process(12, "/bin/a (deleted)", "a (enforce)"), ""),
    ],
)
def test_processes_of_which_something_is_missing(more: bytes, error: str) -> None:
    seen = running(answer(more))
    assert seen.processes[-1].error == error
    assert attachments(seen)[-1].error


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (process(12, "/bin/a", "unconfined", ns="net:[5]"), "nobody looked into the network namespace net:[5]"),
        (record("unseen", "/run/netns/x", "net:[6]"), "nobody can look into the network namespace /run/netns/x"),
        (blob("net:[7]:tcp", TCP.replace(b"0100007F:1F90", b"nonsense")), "a line of /proc/net/tcp cannot be read"),
    ],
)
def test_what_was_not_seen_is_told(more: bytes, problem: str) -> None:
    assert any(problem in text for text in running(answer(more)).problems)


def test_a_listener_in_another_namespace() -> None:
    seen = running(answer(process(12, "/bin/a", "unconfined", ns="net:[5]"), blob("net:[5]:tcp", TCP)))
    assert seen.namespaces == 2
    assert seen.problems == ()
    assert {found.namespace for found in seen.sockets if found.state == "listen"} == {NS, "net:[5]"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        answer(end=False),
        answer()[:-5],
        answer() + b"x",
        b"0\0" + answer(),
        b"99\0" + answer(),
        record("blob", "x", "99999"),
        record("blob", "x", "-1"),
        record("process", "1"),
    ],
)
def test_a_broken_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ChannelError):
        running(data)


@given(st.data())
def test_a_changed_answer_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(answer())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        running(bytes(raw))
    except ChannelError:
        return


@pytest.mark.parametrize(
    ("text", "profile", "mode"),
    [
        ("unconfined", "", Mode.UNCONFINED),
        ("unconfined\n", "", Mode.UNCONFINED),
        ("", "", Mode.UNCONFINED),
        ("/usr/sbin/sshd (enforce)", "/usr/sbin/sshd", Mode.ENFORCE),
        ("my profile (with) words (complain)", "my profile (with) words", Mode.COMPLAIN),
        ("chrome (unconfined)", "chrome", Mode.UNCONFINED),
        ("a//&b (enforce)", "a//&b", Mode.ENFORCE),
        ("a//&b (mixed)", "a//&b", Mode.MIXED),
        (":ns:a (kill)", ":ns:a", Mode.KILL),
        (":ns:unconfined (enforce)", "", Mode.UNCONFINED),
        ("unconfined//&:ns:unconfined (enforce)", "", Mode.UNCONFINED),
        ("a//&:ns:unconfined (enforce)", "a//&:ns:unconfined", Mode.ENFORCE),
        ("a (newmode)", "a", Mode.MIXED),
        ("a (prompt)", "a", Mode.PROMPT),
        ("system_u:system_r:init_t:s0", "", Mode.UNCONFINED),
    ],
)
def test_labels(text: str, profile: str, mode: Mode) -> None:
    assert read_label(text) == (profile, mode)


@given(st.text(max_size=60))
def test_only_a_named_profile_confines(text: str) -> None:
    profile, mode = read_label(text)
    if mode in (Mode.ENFORCE, Mode.KILL):
        assert profile
        assert text.strip().removesuffix("\0").endswith(f"({mode})")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (stat(5, 3, 64), (3, 64, 777)),
        (stat(5, 3, 64, name="a) S 9 (b c"), (3, 64, 777)),
        ("5 (two", None),
        ("", None),
        ("5 (a) S x 1 1 0 -1 64" + " 0" * 12 + " 777 0", None),
    ],
)
def test_stat(text: str, wanted: tuple[int, int, int] | None) -> None:
    assert parse_stat(text) == wanted


def test_addresses() -> None:
    assert address("0100007F:1F90") == "127.0.0.1:8080"
    assert address("00000000000000000000000001000000:0016") == "[::1]:22"
    assert address("B80D0120000000000000000001000000:01BB") == "[2001:db8::1]:443"
    for text in ("", "01:1", "0100007F", "0100007F:1F9", "zz00007F:1F90"):
        with pytest.raises(ValueError, match="no address"):
            address(text)


def test_the_script_sees_this_very_process(tmp_path: Path) -> None:
    """Run by a shell here; a listener, a datagram socket and a connection of our own are found."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        udp.bind(("::1", 0))
        port, udp_port = server.getsockname()[1], udp.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            seen = observe_running(local_shell(tmp_path))
            client_port = client.getsockname()[1]
    mine = {(found.protocol, found.local, found.state) for found in seen.sockets if os.getpid() in found.pids}
    assert {
        ("tcp", f"127.0.0.1:{port}", "listen"),
        ("tcp", f"127.0.0.1:{client_port}", "established"),
        ("udp6", f"[::1]:{udp_port}", "unconnected"),
    } <= mine
    found = {process.pid: process for process in seen.processes}
    assert found[os.getpid()].exe == os.path.realpath("/proc/self/exe")
    assert found[os.getpid()].started
    assert os.getppid() in found
    assert not any(process.exe.endswith("/find") and process.started is None for process in seen.processes)
    assert len(seen.processes) == len(found)


def test_sockets_of_programs_that_were_not_seen() -> None:
    lone = SocketSeen(protocol="tcp", local="0.0.0.0:1", state="listen", pids=(5,))
    seen = RunningSeen(enabled=True, processes=(ProcessSeen(pid=1, exe="/init"),), sockets=(lone,))
    assert unowned(seen) == (lone,)
    assert socket_programs(seen) == {}


def one(pid: int, label: str = "p (enforce)", *, error: str = "", exe: str = "/d", started: int = 5) -> ProcessSeen:
    return ProcessSeen(pid=pid, exe=exe, label=label, error=error, started=started)


def look(*processes: ProcessSeen, sockets: tuple[SocketSeen, ...] = (), **more: object) -> RunningSeen:
    return RunningSeen(enabled=True, processes=processes, sockets=sockets, **more)  # type: ignore[arg-type]


def test_many_looks_are_one() -> None:
    unsteady = one(7, "unconfined", error=UNSTEADY)
    seen = merged([look(one(7), one(8)), look(unsteady, one(8, "unconfined")), look(one(7), problems=("x",))])
    assert {(found.pid, found.label) for found in seen.processes} == {
        (7, "p (enforce)"),
        (8, "p (enforce)"),
        (8, "unconfined"),
    }
    assert seen.problems == ("x",)
    assert merged([look(unsteady)]).processes == (unsteady,)
    other = one(7, "q (enforce)", started=9)
    assert merged([look(one(7)), look(other)]).processes == (one(7), other)
    with pytest.raises(IndexError):
        merged([])


def test_a_socket_belongs_to_whoever_held_it() -> None:
    free = SocketSeen(protocol="tcp", local="0.0.0.0:1", state="listen", inode=4)
    held = free.model_copy(update={"pids": (7,)})
    assert unowned(merged([look(one(7), sockets=(free,)), look(one(7), sockets=(held,))])) == ()
    assert unowned(merged([look(one(7), sockets=(held,)), look(one(7), sockets=(free,))])) == ()
    gone = free.model_copy(update={"inode": 0})
    assert unowned(merged([look(one(7), sockets=(gone, held))])) == (gone,)


def test_what_the_first_process_waits_on_is_for_others() -> None:
    waits = SocketSeen(protocol="tcp6", local="[::]:22", state="listen", inode=4, pids=(1,))
    talks = SocketSeen(protocol="tcp", local="10.0.0.1:5", state="established", inode=5, pids=(1,))
    seen = look(one(1, exe="/usr/lib/systemd/systemd"), one(9, exe="/d"), sockets=(waits, talks))
    assert held_for_others(seen) == (waits,)
    assert socket_programs(seen) == {"/usr/lib/systemd/systemd": "tcp 10.0.0.1:5 established"}
    both = look(one(1), one(9), sockets=(waits.model_copy(update={"pids": (1, 9)}),))
    assert held_for_others(both) == ()


def test_what_becomes_another_program_meanwhile_has_no_label() -> None:
    for label, error in (("a (enforce)", UNSTEADY), ("unconfined", ""), ("", "")):
        (*_, seen) = running(answer(process(12, "/bin/a", "unconfined"), again(12, label))).processes
        assert seen.error == error
