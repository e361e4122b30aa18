"""Guests at the other end of a serial console, in a time of their own."""

from __future__ import annotations

from collections.abc import Callable

from pytest_osgates.observers.tpm_talk import PROBE_TEXT
from tests.unit.tpm_samples import PASSPHRASE

ASKS = b"The TPM did not unlock the disk: policy digest does not match\r\nEnter passphrase for /dev/vda2: "
REFUSES = b"\r\nNo key available with this passphrase.\r\nEnter passphrase for /dev/vda2: "
LOGIN = b"\r\nDebian GNU/Linux 13 host ttyS0\r\n\r\nhost login: "
MAINTENANCE = b"\r\nPress Enter for maintenance\r\n(or press Control-D to continue): "
LOCKED = (
    b"\r\nCannot open access to console, the root account is locked.\r\nSee sulogin(8) man page for more details.\r\n"
    b"\r\nPress Enter to continue.\r\n"
)


class Clock:
    """Time passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


Guest = Callable[[str], bytes]


class Console:
    """A guest that says `first`, and to each line what `guest` answers. `after`: seconds until it says anything."""

    def __init__(self, clock: Clock, first: bytes, guest: Guest = lambda text: b"", after: float = 3.0) -> None:
        self.clock = clock
        self.guest = guest
        self.after = after
        self.pending = [(clock.now + after, first)]
        self.typed: list[str] = []
        self.dropped = 0
        self.closed = False

    def take_unread(self, size: int, timeout: float) -> bytes:
        due, data = self.pending[0] if self.pending else (float("inf"), b"")
        if due > self.clock.now + timeout:
            self.clock.now += timeout
            return b""
        self.clock.now = max(self.clock.now, due)
        self.pending[0] = (due, data[size:])
        if not data[size:]:
            self.pending.pop(0)
        return data[:size]

    def send(self, data: bytes) -> None:
        assert data.endswith(b"\r")
        self.typed.append(data[:-1].decode())
        if answer := self.guest(self.typed[-1]):
            self.pending.append((self.clock.now + self.after, answer))
        self.pending.sort(key=lambda entry: entry[0])


def honest(text: str) -> bytes:
    return LOGIN if text == PASSPHRASE else REFUSES


def shell_behind(text: str) -> bytes:
    return b"\r\nosgates-42\r\n# " if text == PROBE_TEXT else b"\r\n# "


JOURNAL = b"\r\nTPM2 operation failed, falling back to traditional unlocking\r\nosgates-journal-42\r\n# "


def journal_guest(*, password: bytes = b"# ", shown: bytes = JOURNAL, become: bytes = b"") -> Guest:
    asked = [become]

    def guest(text: str) -> bytes:
        if text == PASSPHRASE:
            return LOGIN
        if text == "tester":
            return b"\r\nPassword: "
        if text == "word":
            return b"\r\n" + (shown if asked[0] == b"done" else password)
        assert "journalctl --boot" in text
        if asked[0]:
            asked[0] = b"done"
            return text.encode() + b"\r\n[sudo] password for tester: "
        return text.encode() + shown

    return guest
