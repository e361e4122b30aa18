"""QEMU's monitor, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError

from pytest_osgates.vm.errors import QmpFailed

T = TypeVar("T")
Event = Mapping[str, Any]
# How often a wait looks whether QEMU still lives, and how long it is given to die; seconds.
LOOK = 0.5
DYING = 1.0

# The library logs each broken connection as an error; here that is an outcome like others.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Qmp:
    """One monitor connection over an already connected socket.

    Events are kept (the newest 1000) and given to `on_event` from a thread of this object; the first failure of
    that is kept in `listener_error`. `alive` raises when QEMU is gone; it is called while waiting for an answer.
    """

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        on_event: Callable[[Event], None],
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = QMPClient(f"osgates-{name}")
        self._on_event = on_event
        self._alive = alive
        self._sock = sock
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"qmp-{name}", daemon=True)
        self._pump: asyncio.Task[None] | None = None
        self.events: deque[Event] = deque(maxlen=1000)
        self.listener_error: Exception | None = None

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float, doing: str) -> T:
        if not self._thread.is_alive():
            coroutine.close()
            raise QmpFailed(f"QEMU's monitor is closed: no '{doing}'")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        deadline = time.monotonic() + timeout
        try:
            while True:
                try:
                    return future.result(max(0.0, min(LOOK, deadline - time.monotonic())))
                except FutureTimeout:
                    if future.done() or time.monotonic() >= deadline:
                        raise
                    self._alive()
        except FutureTimeout:
            raise QmpFailed(
                f"QEMU's monitor did not answer '{doing}' within {timeout:.0f} s",
                remedy="the host may be overloaded; see qemu.log in the evidence",
            ) from None
        except ExecuteError as error:
            raise QmpFailed(f"QEMU refused '{doing}': {error}") from error
        except (QMPError, ConnectError, EOFError, OSError) as error:
            self._see_it_die()
            raise QmpFailed(f"QEMU's monitor went away during '{doing}': {error}") from error
        finally:
            future.cancel()

    def _see_it_die(self) -> None:
        """The sockets of a QEMU that ends are closed a moment before its process has ended."""
        pause = threading.Event()
        until = time.monotonic() + DYING
        while time.monotonic() < until:
            self._alive()
            pause.wait(0.02)

    def connect(self, timeout: float) -> None:
        """Negotiate capabilities.

        :raise QmpFailed: no valid greeting within `timeout` seconds.
        """
        self._thread.start()

        async def connect() -> None:
            await self._client.connect(self._sock)
            self._pump = asyncio.get_running_loop().create_task(self._events())

        self._call(connect(), timeout, "connect")

    async def _events(self) -> None:
        async for event in self._client.events:
            self.events.append(event)
            try:
                self._on_event(event)
            except Exception as error:  # noqa: BLE001  (one event that cannot be handled must not end all others)
                self.listener_error = self.listener_error or error

    def execute(self, command: str, timeout: float = 20.0, **arguments: object) -> Any:  # noqa: ANN401
        """Run one command. Keyword names have their underscores turned into dashes (QMP's own spelling).

        :raise QmpFailed: it was refused, or there was no answer in time.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self._call(self._client.execute(command, named or None), timeout, command)

    def close(self) -> None:
        """Disconnect and end the thread; safe to call twice and on a dead QEMU."""
        if not self._thread.is_alive():
            self._sock.close()
            if not self._loop.is_closed():
                self._loop.close()
            return

        async def leave() -> None:
            if self._pump is not None:
                self._pump.cancel()
                await asyncio.gather(self._pump, return_exceptions=True)
            try:
                await self._client.disconnect()
            except Exception:  # noqa: BLE001  (it raises whatever ended the connection; that is told elsewhere)
                return

        # It is wanted to be gone.
        self._alive = lambda: None
        try:
            self._call(leave(), 5.0, "disconnect")
        except QmpFailed:
            pass
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            if not self._thread.is_alive():
                self._loop.close()
            self._sock.close()
