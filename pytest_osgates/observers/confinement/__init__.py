"""Asks a booted machine what runs in it, under which labels, and with which sockets, in all network namespaces."""

from __future__ import annotations

from pytest_osgates.checks.apparmor_running import RunningSeen
from pytest_osgates.observers.confinement import parse
from pytest_osgates.observers.confinement.script import SCRIPT
from pytest_osgates.vm.guest.channel import GuestShell

MAX_OUTPUT = 16 << 20


def observe_running(shell: GuestShell, *, timeout: float = 120.0) -> RunningSeen:
    """One look at all processes and sockets. What comes and goes between two looks is not seen.

    :raise GuestTimeout: the guest did not answer in `timeout` seconds.
    :raise ChannelError: its answer is cut short, or not what was asked for.
    """
    answer = shell.run(SCRIPT, timeout=timeout, max_output=MAX_OUTPUT, shown="listing processes and sockets")
    return parse.running(answer.check().stdout)
