"""A shell like a guest's, that runs here: what the observers write for ``sh`` is really run by one."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from typing import cast

from pytest_osgates.vm.errors import ChannelError, GuestTimeout
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult


class LocalShell:
    """`directory` stands for the channel's own; commands run with ``sh -c``, as in a guest."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.commands: list[str] = []

    def run(
        self, command: str, *, timeout: float = 60.0, max_output: int = 1 << 20, shown: str | None = None
    ) -> ShellResult:
        """Run it here."""
        self.commands.append(command)
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=min(timeout, 30.0),
                check=False,
                cwd="/",
            )
        except subprocess.TimeoutExpired as error:
            raise GuestTimeout(f"{command[:80]} did not end") from error
        if len(done.stdout) > max_output:
            raise ChannelError(f"wrote more than {max_output} bytes")
        return ShellResult(command, done.returncode, done.stdout, done.stderr)

    def read_file(self, path: str, *, timeout: float = 60.0, max_size: int = 1 << 20) -> bytes:
        """Read it here."""
        data = Path(path).read_bytes()
        if len(data) > max_size:
            raise ChannelError(f"{path} is larger than {max_size}")
        return data

    def write_file(self, path: str, data: bytes, *, mode: int = 0o600, timeout: float = 60.0) -> None:
        """Write it here."""
        Path(path).write_bytes(data)
        Path(path).chmod(mode)


def local_shell(directory: Path) -> GuestShell:
    """As observers take it."""
    return cast("GuestShell", LocalShell(directory))


def gone(pid: int) -> bool:
    """Whether a killed process ends; as a zombie nobody reaped it yet."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10.0)[0])
    finally:
        os.close(descriptor)
