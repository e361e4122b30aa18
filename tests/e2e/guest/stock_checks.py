"""Not a test of this repository by itself: run on a stock image of live-build, by test_livebuild.py."""

from __future__ import annotations

import re

import pytest

from pytest_osgates.observers.confinement import observe_running
from pytest_osgates.vm.guest.channel import GuestShell

pytestmark = pytest.mark.own

# aa-unconfined(8): pid, program, and what confines it.
_LINE = re.compile(r"(?P<pid>\d+) (?P<exe>/\S+).* (?P<how>not confined|confined by '(?P<label>.*)')")


def _asked(shell: GuestShell, *options: str) -> dict[int, tuple[str, str]]:
    """What aa-unconfined says: program and label of each process."""
    answer = shell.run(f"LC_ALL=C aa-unconfined {' '.join(options)}", timeout=300).check().text
    lines = [match for line in answer.splitlines() if (match := _LINE.fullmatch(line.strip()))]
    return {int(match["pid"]): (match["exe"], match["label"] or "unconfined") for match in lines}


def test_aa_unconfined_sees_no_socket_that_is_missed(os_shell: GuestShell) -> None:
    """Whoever waits for others by its account does so by ours."""
    theirs = _asked(os_shell)
    seen = observe_running(os_shell)
    assert theirs
    assert seen.problems == ()
    assert theirs.keys() <= {pid for socket in seen.sockets for pid in socket.pids}


def test_aa_unconfined_has_the_same_labels(os_shell: GuestShell) -> None:
    """Of every process that both have seen, which are nearly all."""
    theirs = _asked(os_shell, "--paranoid")
    ours = {process.pid: process for process in observe_running(os_shell).processes}
    both = theirs.keys() & ours.keys()
    assert len(both) > 10
    # The process that asks is there for one of them alone.
    assert len(theirs.keys() - ours.keys()) <= 5
    assert {pid: theirs[pid] for pid in both} == {pid: (ours[pid].exe, ours[pid].label) for pid in both}


def test_ss_sees_no_socket_that_is_missed(os_shell: GuestShell) -> None:
    """iproute2's ss, too."""
    theirs = os_shell.run("ss -H -n -a -t -u -w -0 -p").check().text
    seen = observe_running(os_shell)
    pids = {int(pid) for pid in re.findall(r"pid=(\d+)", theirs)}
    assert pids, theirs
    assert pids <= {pid for socket in seen.sockets for pid in socket.pids}, theirs
