"""pytest-testinfra over the guest channel: ``host.service("ssh").is_running`` without a network."""

from __future__ import annotations

from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.guest.channel import GuestShell


class ChannelBackend(BaseBackend):  # type: ignore[misc]
    """Runs testinfra's commands in the guest, as root."""

    NAME = "osgates"

    def __init__(self, shell: GuestShell, name: str, timeout: float = 120.0) -> None:
        super().__init__(hostname=name)
        self._shell = shell
        self._timeout = timeout

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:  # noqa: ANN401  (testinfra's signature)
        """Run `command` with quoted `args`."""
        done = self._shell.run(self.get_command(command, *args), timeout=self._timeout)
        return self.result(done.status, self.encode(done.command), done.stdout, done.stderr)

    def run_local(self, command: str, *args: str) -> CommandResult:
        """Refused.

        :raise HostError: always: a gate must not judge the tester's own machine.
        """
        raise HostError(
            f"a gate asked to run {command!r} on this machine instead of the guest",
            remedy="use host.run(...), which runs in the guest",
        )


def guest_host(shell: GuestShell, name: str) -> Host:
    """testinfra's Host for the guest."""
    return Host(ChannelBackend(shell, name))
