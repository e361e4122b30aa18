"""The kernel's record of sockets: traces as it writes them, and one that is made here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_shell import local_shell

from pytest_osgates.observers.confinement import recorder
from pytest_osgates.observers.confinement.recorder import Recorded, Recording, attribute
from pytest_osgates.paths import alone
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult

# Five columns of flags since Linux 5.17, four before.
LINE = "          {comm}-{pid}   [001] {flags} 55830.{at:06}: {text}"


@pytest.fixture
def alone_here() -> Iterator[None]:
    """There is one kernel here, and one instance of its trace."""
    with alone(Path(tempfile.gettempdir(), "osgates-tests-trace.lock"), 300.0):
        yield


def line(pid: int, text: str, *, at: int = 1, flags: str = ".....", comm: str = "sh") -> str:
    return LINE.format(comm=comm, pid=pid, flags=flags, at=at, text=text)


def executes(pid: int, path: str) -> str:
    return line(pid, f"sched_process_exec: filename={path} pid={pid} old_pid={pid}")


def forks(parent: int, child: int) -> str:
    return line(parent, f"sched_process_fork: comm=a b pid={parent} child_comm=c=d child_pid={child}")


def asks(pid: int, family: int, kind: int, descriptor: int = 3) -> str:
    first = line(pid, f"sys_socket(family: {family:x}, type: {kind:x}, protocol: 0)", flags="....")
    return f"{first}\n{line(pid, f'sys_socket -> 0x{descriptor:x}')}"


def uses(pid: int, call: str, descriptor: int = 3, length: int = 16) -> str:
    return line(pid, f"sys_{call}(fd: {descriptor:x}, umyaddr: 7ffd, addrlen: {length:x})")


def message(pid: int, way: str, family: str = "AF_INET", protocol: str = "0x11") -> str:
    text = (
        f"sk address = 00000000a1b2c3d4, family = {family} protocol = {protocol}, length = 9, error = 0, flags = 0x0"
    )
    return line(pid, f"sock_{way}_length: {text}")


def tcp(pid: int, state: str, sport: int = 80, dport: int = 0) -> str:
    addresses = "saddr=0.0.0.0 daddr=0.0.0.0 saddrv6=::ffff:0.0.0.0 daddrv6=::"
    text = f"family=AF_INET protocol=IPPROTO_TCP sport={sport} dport={dport} {addresses} oldstate=TCP_CLOSE"
    return line(pid, f"inet_sock_set_state: {text} newstate={state}")


def told(*lines: str, running: dict[int, str] | None = None) -> Recorded:
    return attribute("\n".join(lines).encode(), {10: "/bin/old"} if running is None else running, lambda path: path)


@pytest.mark.parametrize(
    ("lines", "programs"),
    [
        ((tcp(10, "TCP_LISTEN"),), {"/bin/old": "tcp listens on port 80"}),
        ((tcp(10, "TCP_SYN_SENT", 5, 443),), {"/bin/old": "tcp connects to port 443"}),
        ((executes(10, "/bin/new"), tcp(10, "TCP_LISTEN")), {"/bin/new": "tcp listens on port 80"}),
        ((forks(10, 11), executes(10, "/bin/new"), tcp(11, "TCP_LISTEN")), {"/bin/old": "tcp listens on port 80"}),
        ((asks(10, 2, 0o2000002), uses(10, "bind")), {"/bin/old": "inet datagram, bound"}),
        ((asks(10, 10, 2), uses(10, "connect")), {"/bin/old": "inet6 datagram, connected"}),
        ((asks(10, 2, 2), uses(10, "sendmmsg")), {"/bin/old": "inet datagram, sent"}),
        ((asks(10, 2, 2), forks(10, 11), uses(11, "sendto")), {"/bin/old": "inet datagram, sent"}),
        ((asks(10, 2, 3),), {"/bin/old": "inet raw"}),
        ((asks(10, 17, 2),), {"/bin/old": "packet datagram"}),
        # Asks for the state of an interface, and talks to nobody.
        ((asks(10, 2, 2),), {}),
        ((asks(10, 2, 2), asks(10, 1, 2, 4), uses(10, "bind", 4)), {}),
        # A copy of its descriptor, or a socket of the file system that was there before.
        ((asks(10, 2, 2), uses(10, "sendto", 0)), {"/bin/old": "inet datagram, sent"}),
        ((asks(10, 2, 2), uses(10, "bind", 0, 28)), {"/bin/old": "inet datagram, bound"}),
        ((asks(10, 2, 2), uses(10, "connect", 0, 128)), {"/bin/old": "inet datagram, connected"}),
        ((asks(10, 2, 2), uses(10, "connect", 0, 110)), {}),
        ((asks(10, 2, 2), uses(10, "sendto", 0, 12)), {}),
        ((asks(10, 2, 2), line(10, "sys_sendmsg(fd: 0, msg: 7ffd, flags: 0)")), {}),
        ((uses(10, "sendto", 0),), {}),
        # What it becomes has its descriptors.
        ((asks(10, 2, 2), forks(10, 11), executes(11, "/bin/new"), uses(11, "sendmsg")),
         {"/bin/new": "inet datagram, sent"}),
        ((asks(10, 2, 2), executes(10, "/bin/new"), executes(10, "/bin/more"), uses(10, "bind")),
         {"/bin/more": "inet datagram, bound"}),
        ((asks(10, 2, 2), executes(10, "/bin/new"), asks(10, 1, 2), uses(10, "bind")), {}),
        ((asks(10, 2, 2), executes(12, "/bin/new"), uses(12, "bind")), {}),
        # Where the kernel says what was sent, it does not matter through what.
        ((message(10, "send"),), {"/bin/old": "inet udp, sent"}),
        ((message(10, "recv", "AF_INET6", "0x3a"),), {"/bin/old": "inet6 icmp6, received"}),
        ((message(10, "send", "AF_INET6", "IPPROTO_SCTP"),), {"/bin/old": "inet6 sctp, sent"}),
        ((message(10, "send", "0x11", "0x3"),), {"/bin/old": "packet, sent"}),
        ((message(10, "send", protocol="0xff"),), {"/bin/old": "inet protocol 255, sent"}),
        ((message(1, "send"),), {}),
        # The descriptor is another socket's by now.
        ((asks(10, 2, 2), asks(10, 1, 2), uses(10, "bind")), {}),
        ((asks(10, 1, 1), uses(10, "bind")), {}),
        # A stream is told of when it listens or connects.
        ((asks(10, 2, 1), uses(10, "bind")), {}),
        ((asks(10, 2, 2, -1 & (2**64 - 1)), uses(10, "bind")), {}),
        ((executes(10, "/a/../b/./c"), tcp(10, "TCP_LISTEN")), {"/b/c": "tcp listens on port 80"}),
        # What the first process listens on is for services.
        ((tcp(1, "TCP_LISTEN"),), {}),
        ((line(10, "osgates: no event"), "", "# a comment"), {}),
    ],
)  # fmt: skip
def test_who_used_what(lines: tuple[str, ...], programs: dict[str, str]) -> None:
    assert told(*lines) == Recorded(programs)


def test_who_cannot_be_told() -> None:
    assert told(tcp(77, "TCP_LISTEN")).unnamed == ("thread 77: tcp listens on port 80",)
    assert told(executes(10, "./here"), tcp(10, "TCP_LISTEN")).unnamed == ("./here: tcp listens on port 80",)
    # Written on one line, it would be another program.
    assert told(executes(10, "/bin/a  b"), tcp(10, "TCP_LISTEN")) == Recorded(
        unnamed=("/bin/a b, whose name cannot be written as it is: tcp listens on port 80",)
    )
    # A thread's number is used again, for a child of somebody unknown.
    assert told(forks(99, 10), tcp(10, "TCP_LISTEN")).unnamed == ("thread 10: tcp listens on port 80",)


def test_threads_are_those_of_processes() -> None:
    trace = "\n".join((tcp(10, "TCP_LISTEN"), forks(10, 12), tcp(12, "TCP_LISTEN"), tcp(13, "TCP_LISTEN"))).encode()
    running = {10: "/bin/old", 13: "/bin/old"}
    found = attribute(trace, running, str, {10: 9, 12: 1, 13: 9}, {})
    # What was thread 12 at the beginning is another one by now.
    assert found.processes == {"/bin/old": frozenset({9, 12})}
    assert attribute(trace, running, str, {10: 9, 13: 9}, {12: 9}).processes == {"/bin/old": frozenset({9})}


class Stopping:
    """A guest whose record lost events."""

    directory = "/run/nonce"

    def run(self, command: str, *, timeout: float, max_output: int, shown: str) -> ShellResult:
        records = ("blob", "lost", "11"), ("blob", "trace", "0"), ("end",)
        texts = ["".join(f"{text}\0" for text in (len(fields), *fields)) for fields in records]
        return ShellResult(command, 0, f"{texts[0]}overrun: 7\n{texts[1]}{texts[2]}".encode(), b"")


def test_lost_events_are_counted() -> None:
    found = recorder.stop(cast("GuestShell", Stopping()), Recording(), str)
    assert found.lost == 7
    assert "lost 7 events" in found.problem


@given(st.text(), st.integers(0, 400))
def test_any_text_is_read(text: str, at: int) -> None:
    clean = "\n".join((executes(10, "/bin/new"), asks(10, 2, 2), uses(10, "bind"), tcp(10, "TCP_LISTEN")))
    told(clean[:at] + text + clean[at:])
    told(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may record")
def test_a_record_made_here(tmp_path: Path, alone_here: None) -> None:
    shell = local_shell(tmp_path)
    recording = recorder.start(shell)
    if recording.problem:
        assert recorder.stop(shell, recording, str) == Recorded(problem=recording.problem)
        pytest.skip(f"this host keeps no record: {recording.problem}")
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
    program = "import socket; s = socket.socket(10, 2); s.bind(('::1', 0)); t = socket.socket(2, 2)"
    subprocess.run([sys.executable, "-c", program], check=True)
    seen = recorder.stop(shell, recording, os.path.realpath)
    assert seen.problem == ""
    mine = seen.programs[os.path.realpath(sys.executable)]
    assert f"tcp listens on port {port}" in mine
    assert "inet6 datagram, bound" in mine
    assert "inet datagram" not in mine
    assert not Path("/sys/kernel/tracing/instances/osgates").exists()
    assert not os.path.ismount(tmp_path / "tracing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may record")
@pytest.mark.parametrize("way", ["os.dup2(s.fileno(), 0); sent(0)", "os.set_inheritable(s.fileno(), True); become()"])
def test_a_copied_descriptor_and_an_inherited_one_here(tmp_path: Path, alone_here: None, way: str) -> None:
    shell = local_shell(tmp_path)
    recording = recorder.start(shell)
    if recording.problem:
        pytest.skip(f"this host keeps no record: {recording.problem}")
    copy = tmp_path / "env"
    copy.write_bytes(Path("/usr/bin/env").read_bytes())
    copy.chmod(0o755)
    program = f"""
import os, socket, sys
def sent(number):
    socket.socket(2, 2, 0, number).sendto(b"x", ("127.0.0.1", 9))
def become():
    again = f"import socket; socket.socket(2, 2, 0, {{s.fileno()}}).sendto(b'x', ('127.0.0.1', 9))"
    os.execv({str(copy)!r}, ["env", sys.executable, "-c", again])
s = socket.socket(2, 2)
{way}
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    seen = recorder.stop(shell, recording, os.path.realpath)
    assert "inet datagram, sent" in seen.programs.get(os.path.realpath(sys.executable), ()), seen
    assert str(copy) not in seen.programs


def test_no_record_is_told(tmp_path: Path) -> None:
    assert "gone" in recorder.stop(local_shell(tmp_path), Recording(), str).problem
