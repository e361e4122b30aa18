"""QEMU's monitor, against a server of ours."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from vm_fakes import wait_for

from pytest_osgates.vm import qmp
from pytest_osgates.vm.errors import QmpFailed
from pytest_osgates.vm.qmp import Event, Qmp

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


class Server(threading.Thread):
    """QEMU's end: greets, and answers each command by `answer`, which may return None for silence."""

    def __init__(self, end: socket.socket, answer: Callable[[str, Any], Any], greeting: bytes | None = None) -> None:
        super().__init__(daemon=True)
        self.end = end
        self.answer = answer
        self.greeting = json.dumps(GREETING).encode() + b"\r\n" if greeting is None else greeting
        self.commands: list[dict[str, Any]] = []

    def send(self, message: Any) -> None:
        self.end.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n")

    def received(self) -> Iterator[dict[str, Any]]:
        """The commands: objects one after the other, with nothing in between (as QEMU takes them)."""
        text = ""
        while data := self.end.recv(1 << 16):
            text += data.decode()
            while text.strip():
                try:
                    command, end = json.JSONDecoder().raw_decode(text.lstrip())
                except ValueError:
                    break
                text = text.lstrip()[end:]
                yield command

    def run(self) -> None:
        with contextlib.suppress(OSError):
            self.send(self.greeting)
            for command in self.received():
                self.commands.append(command)
                if command["execute"] == "qmp_capabilities":
                    self.send({"return": {}})
                    continue
                reply = self.answer(command["execute"], command.get("arguments"))
                if isinstance(reply, dict):
                    reply = {**reply, "id": command["id"]}
                if reply is not None:
                    self.send(reply)


class Monitor:
    """A `Qmp` and its server."""

    def __init__(self, answer: Callable[[str, Any], Any], greeting: bytes | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.events: list[Event] = []
        self.qmp = Qmp(ours, "test", self.events.append)
        self.server = Server(theirs, answer, greeting)
        self.server.start()

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.server.end.shutdown(socket.SHUT_RDWR)


Begin = Callable[..., Monitor]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server here needs a second to die."""
    monkeypatch.setattr(qmp, "DYING", 0.05)


@pytest.fixture
def begin() -> Iterator[Begin]:
    made: list[Monitor] = []

    def start(answer: Callable[[str, Any], Any] = lambda name, arguments: {"return": {}}, **more: Any) -> Monitor:
        made.append(Monitor(answer, **more))
        return made[-1]

    yield start
    for monitor in made:
        monitor.qmp.close()
        monitor.hang_up()
        monitor.server.join(5.0)
        monitor.server.end.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("qmp-")]


def test_a_command_and_its_answer(begin: Begin) -> None:
    monitor = begin(lambda name, arguments: {"return": [name, arguments]})
    monitor.qmp.connect(10.0)
    assert monitor.qmp.execute("query-status") == ["query-status", None]
    assert monitor.qmp.execute("send-key", hold_time=5, keys=[1]) == ["send-key", {"hold-time": 5, "keys": [1]}]
    assert monitor.server.commands[0]["execute"] == "qmp_capabilities"


def test_a_refusal(begin: Begin) -> None:
    monitor = begin(lambda name, arguments: {"error": {"class": "GenericError", "desc": "no such device"}})
    monitor.qmp.connect(10.0)
    with pytest.raises(QmpFailed, match="QEMU refused 'device_del': no such device"):
        monitor.qmp.execute("device_del", id="x")
    # The monitor is as good as before.
    with pytest.raises(QmpFailed, match="refused"):
        monitor.qmp.execute("again")


def test_a_silent_monitor(begin: Begin) -> None:
    monitor = begin(lambda name, arguments: None if name == "stop" else {"return": 5})
    monitor.qmp.connect(10.0)
    begun = time.monotonic()
    with pytest.raises(QmpFailed, match="did not answer 'stop' within 0 s"):
        monitor.qmp.execute("stop", timeout=0.1)
    assert time.monotonic() - begun < 3.0
    assert monitor.qmp.execute("query-status") == 5


def test_no_greeting(begin: Begin) -> None:
    monitor = begin(greeting=b"")
    with pytest.raises(QmpFailed, match="did not answer 'connect'"):
        monitor.qmp.connect(0.1)


@pytest.mark.parametrize(
    "greeting", [b"hello\r\n", b"{}\r\n", b'{"QMP": 5}\r\n', b"[]\r\n", b"\xff\xfe\r\n", b"\r\n\0\r\n"]
)
def test_a_wrong_greeting(begin: Begin, greeting: bytes) -> None:
    monitor = begin(greeting=greeting)
    with pytest.raises(QmpFailed, match="during 'connect'"):
        monitor.qmp.connect(10.0)


def test_nobody_there(begin: Begin) -> None:
    monitor = begin(greeting=b"")
    monitor.hang_up()
    with pytest.raises(QmpFailed, match="during 'connect'"):
        monitor.qmp.connect(10.0)


@pytest.mark.parametrize(
    "garbage", [b"garbage\r\n", b"\xff\r\n", b"[]\r\n", b'{"return": {}, "id": "unknown"}\r\n', b"{}\r\n"]
)
def test_garbage_for_an_answer(begin: Begin, garbage: bytes) -> None:
    monitor = begin(lambda name, arguments: garbage)
    monitor.qmp.connect(10.0)
    for _ in range(2):
        with pytest.raises(QmpFailed):
            monitor.qmp.execute("query-status", timeout=0.2)


def test_the_end_of_qemu_during_a_command(begin: Begin) -> None:
    monitor = begin(lambda name, arguments: monitor.hang_up())
    monitor.qmp.connect(10.0)
    begun = time.monotonic()
    with pytest.raises(QmpFailed, match="went away during 'quit'"):
        monitor.qmp.execute("quit", timeout=30.0)
    assert time.monotonic() - begun < 5.0
    with pytest.raises(QmpFailed):
        monitor.qmp.execute("query-status", timeout=1.0)


def event(name: str, **data: Any) -> dict[str, Any]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}


def test_events_are_kept_and_handed_on(begin: Begin) -> None:
    monitor = begin()
    monitor.qmp.connect(10.0)
    for number in range(1100):
        monitor.server.send(event("RESET", guest=True, number=number))
    wait_for(lambda: len(monitor.events) == 1100, "all events are handed on")
    assert [seen["data"]["number"] for seen in monitor.events] == list(range(1100))
    assert [seen["data"]["number"] for seen in monitor.qmp.events] == list(range(100, 1100))
    assert monitor.qmp.execute("query-status") == {}


def test_a_listener_that_fails_does_not_deafen(begin: Begin) -> None:
    monitor = begin()
    seen: list[str] = []

    def listen(event: Event) -> None:
        seen.append(event["event"])
        if event["event"] == "FIRST":
            raise OSError("no space left on device")

    monitor.qmp._on_event = listen
    monitor.qmp.connect(10.0)
    monitor.server.send(event("FIRST"))
    monitor.server.send(event("SECOND"))
    wait_for(lambda: seen == ["FIRST", "SECOND"], "the second event arrives as well")
    assert "no space left" in str(monitor.qmp.listener_error)


def test_closing_twice_and_at_any_time(begin: Begin) -> None:
    connected = begin()
    connected.qmp.connect(10.0)
    connected.qmp.close()
    connected.qmp.close()
    with pytest.raises(QmpFailed):
        connected.qmp.execute("query-status", timeout=1.0)
    never = begin()
    never.qmp.close()
    never.qmp.close()
    dead = begin()
    dead.qmp.connect(10.0)
    dead.hang_up()
    dead.qmp.close()
    refused = begin(greeting=b"hello\r\n")
    with pytest.raises(QmpFailed):
        refused.qmp.connect(10.0)
    refused.qmp.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("qmp-")]


def test_closing_does_not_wait_for_an_unanswered_command(begin: Begin) -> None:
    monitor = begin(lambda name, arguments: None)
    monitor.qmp.connect(10.0)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            monitor.qmp.execute("migrate", timeout=30.0)
        except BaseException as error:  # noqa: BLE001  (whatever it is: it is looked at below)
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: len(monitor.server.commands) == 2, "the command is under way")
    begun = time.monotonic()
    monitor.qmp.close()
    thread.join(5.0)
    assert time.monotonic() - begun < 3.0
    assert [type(error) for error in failures] == [QmpFailed]
