"""Where no credential can carry the channel in: log in on the serial console and start it from there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pexpect

from pytest_osgates.vm.console import Console, ConsoleSpawn
from pytest_osgates.vm.errors import LoginFailed
from pytest_osgates.vm.guest.channel import DYING
from pytest_osgates.vm.guest.injection import Injection
from pytest_osgates.vm.text import one_line

# How often a wait looks whether the machine lives, and how often it asks for a prompt that may have been missed.
LOOK_SECONDS = 0.5
NUDGE_SECONDS = 2.0
LOGIN_PROMPT = r"(?:^|[\r\n])[^\r\n]{0,80}login: ?$"
HIDDEN_PROMPT = r"[Pp]assword[^\r\n]{0,40}: ?$"
REFUSAL = r"incorrect|denied|[Ss]orry, try again|[Aa]uthentication failure"
SHELL_PROMPT = r"[$#] ?(?:\x1b\[[0-9;?]*[a-zA-Z])*$"


@dataclass(frozen=True)
class Credentials:
    """A user of the image and how it becomes root: `become` is typed once logged in, empty for root itself."""

    user: str
    password: str = field(default="", repr=False)
    become: str = ""


def start_channel(
    console: Console, credentials: Credentials, injection: Injection, timeout: float, alive: Callable[[], None]
) -> None:
    """Log in on `console` as the profile says and leave the channel's shell running in the background.

    :raise LoginFailed: no prompt, or the credentials were refused; the console's last lines are in the message.
    """
    try:
        _log_in(console, credentials, injection, time.monotonic() + timeout, alive)
    except OSError as error:
        # The sockets of a QEMU that ends are closed a moment before its process has ended.
        until = time.monotonic() + DYING
        while time.monotonic() < until:
            alive()
            time.sleep(0.05)
        raise LoginFailed(f"the serial console went away: {error}", remedy="see qemu.log in the evidence") from error


def _log_in(
    console: Console, credentials: Credentials, injection: Injection, deadline: float, alive: Callable[[], None]
) -> None:
    spawn = ConsoleSpawn(console, timeout=2.0)
    shell = "sh" if not credentials.become else credentials.become
    # setsid: the shell must outlive the login, and must not have the console as its terminal.
    start = f"{shell} -c '(setsid sh -c \"{injection.shell_command()}\" &)' && echo osgates-''started"
    spawn.sendline()
    _expect(spawn, LOGIN_PROMPT, deadline, alive, "login prompt", nudge=True)
    spawn.sendline(credentials.user)
    seen = _expect(spawn, [HIDDEN_PROMPT, SHELL_PROMPT], deadline, alive, "password prompt and no shell")
    if seen == 0:
        spawn.sendline(credentials.password)
        if _expect(spawn, [SHELL_PROMPT, REFUSAL], deadline, alive, "shell") == 1:
            raise _refused(f"the login of {credentials.user!r}")
    spawn.sendline(start)
    started = "sign of the channel's start"
    if _expect(spawn, [r"osgates-started", HIDDEN_PROMPT], deadline, alive, started) == 1:
        spawn.sendline(credentials.password)
        if _expect(spawn, [r"osgates-started", REFUSAL, HIDDEN_PROMPT], deadline, alive, started) > 0:
            raise _refused(f"{credentials.become!r} to {credentials.user!r}")


def _refused(what: str) -> LoginFailed:
    return LoginFailed(
        f"the image refuses {what} with the profile's password", remedy="correct [login] in the distro profile"
    )


def _expect(
    spawn: ConsoleSpawn,
    patterns: str | list[str],
    deadline: float,
    alive: Callable[[], None],
    what: str,
    *,
    nudge: bool = False,
) -> int:
    wanted: list[Any] = [patterns] if isinstance(patterns, str) else list(patterns)
    nudged = time.monotonic()
    while (left := deadline - time.monotonic()) > 0:
        alive()
        try:
            return int(spawn.expect(wanted, timeout=min(LOOK_SECONDS, left)))
        except pexpect.TIMEOUT:
            if nudge and time.monotonic() - nudged >= NUDGE_SECONDS:
                nudged = time.monotonic()
                spawn.sendline()
        except pexpect.EOF:
            raise OSError("the console was closed") from None
    last = one_line(str(spawn.before or "")[-300:])
    raise LoginFailed(
        f"no {what} on the serial console; its last text: {last!r}",
        remedy="check that the image has a serial console (console=ttyS0) and [login] in the distro profile",
    )
