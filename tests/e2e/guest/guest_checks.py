"""Not a test of this repository by itself: run with --iso by test_demo.py, as a distribution's own test would be."""

from __future__ import annotations

import hashlib
import time

import pytest
from testinfra.host import Host

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
