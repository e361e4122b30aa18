"""The login fall-back, against a scripted getty, login and sudo."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_osgates.vm.console import Console
from pytest_osgates.vm.errors import LoginFailed, MachineDied
from pytest_osgates.vm.guest import login
from pytest_osgates.vm.guest.injection import Injection
from pytest_osgates.vm.guest.login import Credentials, start_channel
from pytest_osgates.vm.watch import Watcher

INJECTION = Injection("0123456789abcdef")
COMMAND = f'(setsid sh -c "{INJECTION.shell_command()}" &)'


class Getty(threading.Thread):
    """The guest's end of a serial console with an echo, as a tty has one while no password is asked for."""

    def __init__(
        self, end: socket.socket, *, user: str = "root", password: str = "", become: str = "", sudo: str = ""
    ) -> None:
        super().__init__(daemon=True)
        self.end = end
        self.user, self.password, self.become, self.sudo = user, password, become, sudo
        self.started: list[str] = []
        self.typed: list[str] = []

    def say(self, text: str) -> None:
        self.end.sendall(text.replace("\n", "\r\n").encode())

    def line(self, *, echo: bool = True) -> str:
        text = b""
        while (char := self.end.recv(1)) != b"\r":
            if not char:
                raise EOFError
            text += char
            if echo:
                self.end.sendall(char)
        self.end.sendall(b"\r\n")
        self.typed.append(text.decode())
        return text.decode()

    def run(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            self.say("[    3.1] systemd[1]: Welcome\n\x1b[2JDebian GNU/Linux 12 debian ttyS0\n\n")
            while True:
                self.say("debian login: ")
                name = self.line()
                if name and self.login(name):
                    self.shell()

    def login(self, name: str) -> bool:
        if name == self.user and not self.password:
            return True
        self.say("Password: ")
        if self.line(echo=False) == self.password and name == self.user:
            return True
        self.say("\nLogin incorrect\n")
        return False

    def shell(self) -> None:
        prompt = "root@debian:~# " if self.user == "root" else f"\x1b[?2004h{self.user}@debian:~$ \x1b[0m"
        self.say("Linux debian 6.1\nThe programs included with the Debian GNU/Linux system are free #1\n")
        while True:
            self.say(prompt)
            command = self.line()
            starter = self.become or "sh"
            assert command == f"{starter} -c '{COMMAND}' && echo osgates-''started", command
            if self.sudo and not self.ask_sudo():
                continue
            self.started.append(command)
            self.say("osgates-started\n")

    def ask_sudo(self) -> bool:
        for attempt in range(3):
            self.say(f"[sudo] password for {self.user}: ")
            if self.line(echo=False) == self.sudo:
                return True
            self.say("Sorry, try again.\n" if attempt < 2 else "sudo: 3 incorrect password attempts\n")
        return False


Begin = Callable[..., tuple[Console, Getty]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a console with a `Getty` of the given properties at its other end."""
    made: list[tuple[Console, Getty]] = []

    def start(kind: type[Getty] = Getty, **properties: str) -> tuple[Console, Getty]:
        ours, theirs = socket.socketpair()
        getty = kind(theirs, **properties)
        console = Console(ours, "serial", tmp_path / "serial.log", Watcher([]))
        made.append((console, getty))
        console.start()
        getty.start()
        return console, getty

    yield start
    for console, getty in made:
        console.close()
        getty.join(10)
        getty.end.close()
        assert not getty.is_alive()


def lives() -> None:
    """A machine in good health."""


def test_root_with_a_password(begin: Begin) -> None:
    console, getty = begin(password="secret")
    start_channel(console, Credentials("root", "secret"), INJECTION, 20.0, lives)
    assert len(getty.started) == 1
    assert "secret" not in console.tail()


def test_root_without_a_password(begin: Begin) -> None:
    console, getty = begin()
    start_channel(console, Credentials("root"), INJECTION, 20.0, lives)
    assert len(getty.started) == 1


def test_a_user_who_becomes_root(begin: Begin) -> None:
    console, getty = begin(user="user", password="live", become="sudo sh", sudo="live")
    start_channel(console, Credentials("user", "live", "sudo sh"), INJECTION, 20.0, lives)
    assert len(getty.started) == 1


def test_a_user_who_becomes_root_without_being_asked(begin: Begin) -> None:
    console, getty = begin(user="user", become="sudo sh")
    start_channel(console, Credentials("user", "", "sudo sh"), INJECTION, 20.0, lives)
    assert len(getty.started) == 1


def test_a_wrong_password(begin: Begin) -> None:
    console, getty = begin(password="secret")
    with pytest.raises(LoginFailed, match="refuses the login of 'root'") as caught:
        start_channel(console, Credentials("root", "wrong"), INJECTION, 20.0, lives)
    assert caught.value.remedy == "correct [login] in the distro profile"
    assert "wrong" not in str(caught.value)
    assert getty.started == []


def test_a_wrong_password_for_sudo(begin: Begin) -> None:
    """sudo gives up after three attempts and the shell goes on: that must not pass for a start."""
    console, getty = begin(user="user", password="live", become="sudo sh", sudo="another")
    with pytest.raises(LoginFailed, match="refuses 'sudo sh' to 'user'"):
        start_channel(console, Credentials("user", "live", "sudo sh"), INJECTION, 20.0, lives)
    assert getty.started == []


class Mute(Getty):
    """A console on which no getty runs."""

    def run(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            self.say("[    0.0] Linux version 6.1\n[    9.9] last \x1b[31mwords\n")
            while True:
                self.line()


def test_no_prompt(begin: Begin) -> None:
    console, getty = begin(Mute)
    with pytest.raises(LoginFailed, match=r"no login prompt on the serial console; its last text: .*words") as caught:
        start_channel(console, Credentials("root"), INJECTION, 0.3, lives)
    assert "console=ttyS0" in str(caught.value.remedy)
    assert "\x1b" not in str(caught.value)
    # Enter was pressed: a getty that had said its prompt before would have said it again.
    assert getty.typed.count("") >= 1


class Deaf(Getty):
    """It asks for a password and says no more."""

    def login(self, name: str) -> bool:
        self.say("Password: ")
        while True:
            self.line(echo=False)


def test_no_shell_after_the_password(begin: Begin) -> None:
    console, _ = begin(Deaf)
    with pytest.raises(LoginFailed, match="no shell on the serial console"):
        start_channel(console, Credentials("root", "secret"), INJECTION, 0.3, lives)


def test_the_machine_s_death_is_what_is_reported(begin: Begin) -> None:
    def died() -> None:
        raise MachineDied("QEMU was killed by signal 9")

    console, _ = begin(Mute)
    begun = time.monotonic()
    with pytest.raises(MachineDied, match="signal 9"):
        start_channel(console, Credentials("root"), INJECTION, 60.0, died)
    assert time.monotonic() - begun < 5.0


def test_a_console_that_closes_a_moment_before_its_machine_ends(begin: Begin) -> None:
    looks: list[int] = []

    def alive() -> None:
        looks.append(1)
        if len(looks) > 3:
            raise MachineDied("QEMU ended with status 1")

    console, getty = begin(Mute)
    getty.end.shutdown(socket.SHUT_RDWR)
    with pytest.raises(MachineDied):
        start_channel(console, Credentials("root"), INJECTION, 60.0, alive)


def test_a_console_that_closes_while_the_machine_lives(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "DYING", 0.0)
    console, getty = begin(Mute)
    getty.end.shutdown(socket.SHUT_RDWR)
    with pytest.raises(LoginFailed, match="the serial console went away"):
        start_channel(console, Credentials("root"), INJECTION, 60.0, lives)


def test_passwords_stay_out_of_the_repr() -> None:
    assert "secret" not in repr(Credentials("root", "secret"))
