"""A software TPM 2.0 for one machine: its own process, state directory and log."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from pytest_osgates.vm import process
from pytest_osgates.vm.errors import MachineDied
from pytest_osgates.vm.host import INSTALL_SWTPM
from pytest_osgates.vm.text import one_line

# Its standard output; standard error, where it complains of options, goes to the same place and cannot be its log.
LOG_FD = 1


class Swtpm:
    """Runs ``swtpm`` on one end of a socket pair; QEMU gets the other.

    The state directory is private: two swtpm on one directory do not start. One that is not there, or empty, is that
    of a new TPM.
    """

    def __init__(self, state: Path, log: Path) -> None:
        self._state = state
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def start(self) -> socket.socket:
        """Start it; QEMU's end, which the caller closes once QEMU has it, so that each side notices when one dies.

        :raise MissingTool: swtpm is not installed.
        """
        process.which("swtpm", remedy=INSTALL_SWTPM)
        self._state.mkdir(mode=0o700, exist_ok=True)
        ours, qemu = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # No path is on its command line: what follows a comma would be another option, and there is no escaping.
        with ours, self._log.open("ab") as sink:
            self._process = process.spawn(
                [
                    *("swtpm", "socket", "--tpm2", "--tpmstate", "dir=.", "--terminate"),
                    *("--ctrl", f"type=unixio,clientfd={ours.fileno()}", "--log", f"fd={LOG_FD},level=1"),
                ],
                cwd=self._state,
                stdout=sink,
                stderr=sink,
                pass_fds=[ours.fileno()],
            )
        return qemu

    @property
    def ended(self) -> int | None:
        """Its exit status, 0 also when it ended because its machine did; None as long as it runs."""
        if self._process is None or self._stopped or not process.await_exit(self._process, 0):
            return None
        return process.end(self._process)

    def check(self) -> None:
        """:raise MachineDied: swtpm ended, or was stopped."""
        if self._process is None:
            return
        if self._stopped or process.is_stopped(self._process):
            # A QEMU that is to end has a last word with its TPM, and would wait for an answer.
            self._stopped = True
            process.end(self._process)
            raise MachineDied(
                "swtpm was stopped (SIGSTOP) while the machine was running: its guest cannot go on",
                remedy="find out who stops processes on this host, and run again",
            )
        if process.await_exit(self._process, 0):
            status = process.end(self._process)
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise MachineDied(
                f"swtpm {how} while the machine was running: {self.said()}",
                remedy="see swtpm.log in the evidence; run: osgates doctor",
            )

    def said(self) -> str:
        """The end of its log, on one line."""
        try:
            return one_line(self._log.read_text(errors="replace")[-1000:], 600) or "it said nothing"
        except OSError as error:
            return f"(its log cannot be read: {error})"

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            process.end(self._process)
            self._process = None
