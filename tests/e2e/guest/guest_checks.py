"""Not a test of this repository by itself: run with --iso by test_demo.py, as a distribution's own test would be."""

from __future__ import annotations

import hashlib
import re
import time

import pytest
from testinfra.host import Host

from pytest_osgates.observers.confinement import observe_running, recorder
from pytest_osgates.observers.confinement.probe import Question, probe
from pytest_osgates.vm.errors import ChannelError, GuestTimeout, HostError
from pytest_osgates.vm.guest.channel import GuestShell

pytestmark = pytest.mark.own


def test_testinfra_asks_the_guest(host: Host) -> None:
    """Services, files, sysctls, packages of the guest, not of this machine."""
    assert host.system_info.distribution == "osgates-demo"
    assert not host.service("ssh").is_running
    assert host.service("nftables").is_running
    assert host.file("/etc/os-release").contains("osgates-demo")
    assert host.sysctl("kernel.kptr_restrict") == 2
    assert host.package("apparmor").is_installed
    assert host.run("test -e /dev/tpm0").rc == 0


def test_nothing_runs_on_the_host(host: Host) -> None:
    """A local command is refused."""
    with pytest.raises(HostError, match="instead of the guest"):
        host.backend.run_local("true")


def test_shell(os_shell: GuestShell) -> None:
    """Status, outputs apart, binary data both ways, deadlines."""
    done = os_shell.run("printf out; printf err >&2; exit 7")
    assert (done.status, done.stdout, done.stderr) == (7, b"out", b"err")
    data = bytes(range(256)) * 8192
    os_shell.write_file("/run/osgates-test", data)
    assert os_shell.read_file("/run/osgates-test") == data
    assert os_shell.run("sha256sum /run/osgates-test").text.split()[0] == hashlib.sha256(data).hexdigest()
    begun = time.monotonic()
    with pytest.raises(GuestTimeout):
        os_shell.run("sleep 1000", timeout=3)
    assert time.monotonic() - begun < 20
    with pytest.raises(ChannelError, match="wrote more than"):
        os_shell.run("cat /dev/zero", timeout=30, max_output=1 << 20)
    assert os_shell.run("rm /run/osgates-test && echo well").text == "well\n"


def test_ss_sees_no_socket_that_is_missed(os_shell: GuestShell) -> None:
    """iproute2's ss knows of no process with a socket of the internet that the observer misses."""
    seen = observe_running(os_shell)
    assert seen.enabled
    assert seen.problems == ()
    theirs = os_shell.run("ss -H -n -a -t -u -w -0 -p").check().text
    pids = {int(pid) for pid in re.findall(r"pid=(\d+)", theirs)}
    assert pids, theirs
    assert pids <= {pid for socket in seen.sockets for pid in socket.pids}, theirs
    labels = {process.exe: process.label for process in seen.processes}
    assert labels["/usr/lib/systemd/systemd"] == "unconfined"


def test_labels_at_execve(os_shell: GuestShell) -> None:
    """By ptrace and without it the same, the kernel's; and nothing is run."""
    asked = [Question("/usr/sbin/unix_chkpwd"), Question("/usr/bin/busybox"), Question("/usr/bin/touch")]
    found = {}
    for method in ("ptrace", "exit"):
        seen = probe(os_shell, asked, method=method)
        assert (seen.problem, seen.own, seen.first, seen.method) == ("", "unconfined", "unconfined", method)
        assert [answer.error for answer in seen.answers] == ["", "", ""]
        assert len(seen.sums) == 3
        found[method] = [answer.label for answer in seen.answers]
    assert found["ptrace"] == ["unix-chkpwd (complain)", "busybox (unconfined)", "unconfined"]
    assert found["exit"] == found["ptrace"]
    assert seen.allowed["unix-chkpwd"]["file0"] is not None


def test_sockets_are_recorded(os_shell: GuestShell) -> None:
    """What is gone when anybody looks, with its program."""
    recording = recorder.start(os_shell)
    assert recording.problem == ""
    os_shell.run("bash -c 'echo >/dev/udp/127.0.0.1/9'")
    seen = recorder.stop(os_shell, recording, str)
    assert seen.problem == ""
    assert any(path.endswith("/bash") and "inet datagram, connected" in what for path, what in seen.programs.items())
