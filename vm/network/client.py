"""The plugin's side of a sinkhole: starts its process, asks it, ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_osgates.vm import process
from pytest_osgates.vm.errors import HostError, LaunchFailed, MachineDied
from pytest_osgates.vm.network.settings import Misbehaviour, Settings
from pytest_osgates.vm.text import one_line

READY_SECONDS = 60.0
ANSWER_SECONDS = 30.0
MAX_ANSWER = 1 << 20


class SinkholeLink:
    """One sinkhole. `records` receives ``NAME.sinkhole.json`` (its settings), ``.events.jsonl`` and ``.log``; of a
    VPN that it plays ``NAME.vpn.pcap`` and ``NAME.vpn.events.jsonl``.
    """

    def __init__(self, name: str, settings: Settings, records: Path) -> None:
        self.name = name
        self.settings = settings
        self.events = records / f"{name}.events.jsonl"
        self.tunnel_capture = records / f"{name}.vpn.pcap"
        self.tunnel_events = records / f"{name}.vpn.events.jsonl"
        self._settings_file = records / f"{name}.sinkhole.json"
        self._log = records / f"{name}.sinkhole.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self.final: dict[str, Any] | None = None

    def start(self) -> socket.socket:
        """QEMU's end of the link, which the caller hands over and closes.

        :raise LaunchFailed: the process did not come up.
        """
        self._settings_file.write_text(self.settings.for_record() + "\n", encoding="utf-8")
        ours, qemu = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        mine, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control = mine
        try:
            # QEMU's writes are small: room for a burst keeps it from waiting for this process.
            for end in (ours, qemu):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            # Not the file that is kept: keys may be in it.
            with self._log.open("wb") as sink, tempfile.TemporaryFile() as settings:
                settings.write(self.settings.to_json().encode())
                settings.seek(0)
                self._process = process.spawn(
                    [
                        *(sys.executable, "-P", "-m", "pytest_osgates.vm.network.peer"),
                        *(str(ours.fileno()), str(control.fileno())),
                        *(str(settings.fileno()), str(self.events)),
                        str(self.tunnel_events).removesuffix(".events.jsonl"),
                    ],
                    stdout=sink,
                    stderr=sink,
                    pass_fds=(ours.fileno(), control.fileno(), settings.fileno()),
                )
            ours.close()
            control.close()
            self._line(time.monotonic() + READY_SECONDS)
        except HostError as error:
            qemu.close()
            raise LaunchFailed(f"the sinkhole did not come up: {error.what}", remedy="run: osgates doctor") from error
        except BaseException:
            qemu.close()
            raise
        finally:
            ours.close()
            control.close()
        return qemu

    def check(self) -> None:
        """That it lives.

        :raise MachineDied: it ended.
        """
        if self._process is None or process.await_exit(self._process, 0):
            raise MachineDied(f"the sinkhole of {self.name} ended: {self._words()}", remedy=f"see {self._log}")

    def _words(self) -> str:
        try:
            return one_line(self._log.read_text(errors="replace")[-2000:], 400) or "it said nothing"
        except OSError as error:
            return f"its log cannot be read: {error.strerror}"

    def _line(self, deadline: float) -> dict[str, Any]:
        control = self._control
        if control is None:
            raise HostError(f"the sinkhole of {self.name} is not running")
        while (end := self._buffer.find(b"\n")) < 0:
            self.check()
            if time.monotonic() > deadline:
                raise HostError(f"the sinkhole of {self.name} does not answer: {self._words()}")
            control.settimeout(0.5)
            try:
                data = control.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as error:
                raise MachineDied(f"the sinkhole of {self.name} is gone: {error}") from error
            if not data:
                process.await_exit(self._process, 2.0) if self._process is not None else None
                raise MachineDied(f"the sinkhole of {self.name} ended: {self._words()}", remedy=f"see {self._log}")
            self._buffer += data
            if len(self._buffer) > MAX_ANSWER:
                raise HostError(f"the sinkhole of {self.name} answers too much")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **fields: object) -> dict[str, Any]:
        """One command and its answer.

        :raise HostError: it died, or does not answer.
        """
        with self._lock:
            if self._control is None:
                raise HostError(f"the sinkhole of {self.name} is not running")
            self.check()
            try:
                self._control.settimeout(ANSWER_SECONDS)
                self._control.sendall(json.dumps({"do": do, **fields}).encode() + b"\n")
            except OSError as error:
                raise MachineDied(f"the sinkhole of {self.name} is gone: {error}") from error
            return self._line(time.monotonic() + ANSWER_SECONDS)

    def stats(self) -> dict[str, Any]:
        """Counts so far; events so far are in the file."""
        return self.ask("stats")

    def probe(self) -> list[str]:
        """Ask the guest's own addresses over the link, from outside; which ones. `stats` says who answered."""
        return [str(address) for address in self.ask("probe")["asked"]]

    def sweep(self, plan: Sequence[dict[str, object]]) -> list[str]:
        """Let the prober begin (:meth:`pytest_osgates.vm.network.prober.Prober.start`); the names of all sweeps."""
        return [str(name) for name in self._asked("sweep", plan=list(plan))["sweeps"]]

    def sweep_status(self) -> dict[str, Any]:
        """Whether it runs, what it did, and what the light probe heard."""
        return self._asked("sweep-status")

    def sweep_result(self, index: int) -> dict[str, Any]:
        """Of one sweep, by its number."""
        return self._asked("sweep-result", index=index)

    def _asked(self, do: str, **fields: object) -> dict[str, Any]:
        answer = self.ask(do, **fields)
        if "error" in answer:
            raise HostError(f"the prober of {self.name}: {answer['error']}")
        return answer

    def behave(self, misbehaviour: Misbehaviour) -> None:
        """From now on."""
        self.ask("behave", misbehaviour=dataclasses.asdict(misbehaviour))

    def stop(self) -> dict[str, Any]:
        """End it, after all that QEMU sent was read; its last counts.

        :raise HostError: it did not live to tell.
        """
        if self.final is None:
            self.final = self.ask("stop")
        return self.final

    def close(self) -> None:
        """End the process; never raises, safe to call twice."""
        if self.final is None and self._process is not None:
            with contextlib.suppress(HostError, OSError, ValueError):
                self.stop()
        if self._process is not None:
            process.await_exit(self._process, 5.0)
            process.end(self._process)
        if self._control is not None:
            self._control.close()
            self._control = None
