"""What can go wrong, by whose fault it is.

    OsgatesError
    ├── UsageError            the user asked for something that cannot be: exit status 4
    ├── HostError             this machine lacks something, or a program of ours died
    │   ├── MissingTool       a program or file is not installed
    │   ├── CommandFailed     a host program ended badly
    │   ├── HostTimeout       a host program did not answer in time
    │   ├── LaunchFailed      QEMU or swtpm did not come up
    │   ├── MachineDied       QEMU or swtpm ended, or was stopped, while it was needed
    │   └── QmpFailed         QEMU refused a command
    ├── ImageError            the image (ISO, disk) cannot be read: damaged, foreign or hostile
    ├── CaptureError          a capture of network traffic cannot be read: cut short, corrupt or foreign
    └── GuestError            the guest did not do what was expected: what a gate judges, never a defect here
        ├── GuestTimeout      it did not get there before the deadline
        ├── GuestFailed       it said that it failed (panic, emergency shell, ...)
        ├── ChannelError      the shell inside broke the protocol, or went away
        └── LoginFailed       no login with the profile's credentials

Every message says what happened, where, and what to do about it.
"""

from collections.abc import Sequence

# Remedies that several layers name.
MORE_ROOM = "free some space, or choose another directory with --iso-evidence"
TEMPORARY = "free some space there, or set TMPDIR to a directory of yours with room in it, and run again"


class OsgatesError(Exception):
    """The root. ``remedy`` is what the reader can do; it is part of the message."""

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what if remedy is None else f"{what}\n  -> {remedy}")
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[OsgatesError], args: tuple[object, ...], state: dict[str, object]) -> OsgatesError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(OsgatesError):
    """Wrong options, a wrong profile, a file that is not there."""


class HostError(OsgatesError):
    """This machine, or a program of ours on it."""


class MissingTool(HostError):
    """A program or file that has to be installed."""


class CommandFailed(HostError):
    """A host program ended with another status than expected."""

    def __init__(self, command: Sequence[str], returncode: int, output: str, *, remedy: str | None = None) -> None:
        tail = "\n".join(f"  | {line}" for line in output.strip().splitlines()[-12:])
        name = command[0].rsplit("/", 1)[-1] if command else "?"
        how = f"was killed by signal {-returncode}" if returncode < 0 else f"ended with status {returncode}"
        super().__init__(f"{name} {how}" + (f":\n{tail}" if tail else ""), remedy=remedy)
        self.command = tuple(command)
        self.returncode = returncode
        self.output = output


class HostTimeout(HostError):
    """A host program did not answer before its deadline."""


class LaunchFailed(HostError):
    """QEMU or swtpm did not come up."""


class MachineDied(HostError):
    """QEMU or swtpm ended, or was stopped, while it was needed."""


class QmpFailed(HostError):
    """QEMU refused a QMP command, or its monitor went silent."""


class ImageError(OsgatesError):
    """An image that cannot be read: damaged, cut short, of a foreign format, or hostile."""


class CaptureError(OsgatesError):
    """A capture of network traffic that cannot be read: cut short, corrupt, of a foreign format."""


class GuestError(OsgatesError):
    """What the guest did, or failed to do."""


class GuestTimeout(GuestError):
    """The guest did not get there before its deadline."""


class GuestFailed(GuestError):
    """The guest itself said that it failed."""


class ChannelError(GuestError):
    """The shell in the guest broke the protocol, or went away."""


class LoginFailed(GuestError):
    """No login with the credentials of the profile."""
