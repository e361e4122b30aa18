"""Commands for a TPM that is switched off: swtpm runs for them alone, and nothing listens anywhere.

Control channel: swtpm_ioctls(3). Commands and responses: TCG, TPM 2.0 Library, parts 2 and 3.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.swtpm import Swtpm

_INIT, _SHUTDOWN, _SET_DATAFD = 0x02, 0x03, 0x10
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_STARTUP, _POWER_DOWN, _CLEAR = 0x144, 0x145, 0x126
_LOCKOUT_PARAMETERS, _GET_CAPABILITY = 0x13A, 0x17A
_RS_PW, _RH_LOCKOUT = 0x4000_0009, 0x4000_000A
# TPM_CAP_TPM_PROPERTIES, TPM_PT_PERMANENT and, in its TPMA_PERMANENT, inLockout (part 2, 8.6).
_PROPERTIES, _PERMANENT, _IN_LOCKOUT = 0x6, 0x200, 1 << 9
# The lockout authorisation is empty, as it is until somebody sets it.
_NOBODYS = struct.pack(">IHBH", _RS_PW, 0, 0, 0)
# Of a lockout: seconds until a failed try is forgotten (not 0, which would switch the protection off), and until the
# lockout authorisation may be used again after a wrong one.
_RECOVERY_SECONDS = 86400
_ANSWER_SECONDS = 30.0
_MOST = 4096


def clear(state: Path, log: Path, patience: float = 1.0) -> None:
    """TPM2_Clear (part 3, 24.6): the owner's seed is a new one, so that nothing sealed before can be read again.

    `state`: swtpm's directory. The lockout authorisation is empty, as it is until somebody sets it.

    :raise HostError: swtpm is missing or does not answer, or the TPM refuses.
    """
    with _powered(state, log, patience) as data:
        _as_lockout(data, _CLEAR)


def lock_out(state: Path, log: Path, patience: float = 1.0) -> None:
    """Dictionary attack lockout, from which no time leads: no failed try is allowed any more, by
    TPM2_DictionaryAttackParameters (part 3, 25.3). Whatever wants an authorisation that is protected so is refused.

    :raise HostError: swtpm is missing or does not answer, or the TPM refuses, or is in no lockout afterwards.
    """
    with _powered(state, log, patience) as data:
        _as_lockout(data, _LOCKOUT_PARAMETERS, struct.pack(">III", 0, _RECOVERY_SECONDS, _RECOVERY_SECONDS))
    if not in_lockout(state, log, patience):
        raise HostError(
            f"the TPM in {state} took the parameters of a lockout, and is in none once it is started again",
            remedy="see swtpm's log in the evidence; run: osgates doctor",
        )


def in_lockout(state: Path, log: Path, patience: float = 1.0) -> bool:
    """What the TPM itself says, once it is started (TPM2_GetCapability, part 3, 30.2).

    :raise HostError: swtpm is missing or does not answer, or the TPM refuses.
    """
    with _powered(state, log, patience) as data:
        asked = struct.pack(">III", _PROPERTIES, _PERMANENT, 1)
        said = _command(data, _NO_SESSIONS, _GET_CAPABILITY, asked)
    if len(said) != struct.calcsize(">BIIII"):
        raise HostError(f"the TPM's answer about its lockout has {len(said)} bytes", remedy="run: osgates doctor")
    _, capability, count, name, value = struct.unpack(">BIIII", said)
    if (capability, count, name) != (_PROPERTIES, 1, _PERMANENT):
        raise HostError("the TPM's answer about its lockout is about something else", remedy="run: osgates doctor")
    return bool(value & _IN_LOCKOUT)


@contextmanager
def _powered(state: Path, log: Path, patience: float) -> Iterator[socket.socket]:
    """A TPM that was switched on and started, and is switched off as it wants to be."""
    swtpm = Swtpm(state, log)
    control = swtpm.start()
    try:
        with control:
            control.settimeout(_ANSWER_SECONDS * patience)
            data, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with data:
                data.settimeout(_ANSWER_SECONDS * patience)
                with theirs:
                    _control(control, _SET_DATAFD, descriptor=theirs.fileno())
                _control(control, _INIT, struct.pack(">I", 0))
                _command(data, _NO_SESSIONS, _STARTUP, struct.pack(">H", 0))
                yield data
                _command(data, _NO_SESSIONS, _POWER_DOWN, struct.pack(">H", 0))
                _control(control, _SHUTDOWN)
    except OSError as error:
        raise HostError(
            f"swtpm did not take a command for {state}: {error}: {swtpm.said()}",
            remedy="see swtpm's log in the evidence; run: osgates doctor",
        ) from error
    finally:
        swtpm.stop()


def _as_lockout(data: socket.socket, command: int, parameters: bytes = b"") -> None:
    handle = struct.pack(">II", _RH_LOCKOUT, len(_NOBODYS))
    _command(data, _SESSIONS, command, handle + _NOBODYS + parameters)


def _control(sock: socket.socket, command: int, payload: bytes = b"", descriptor: int | None = None) -> None:
    passed = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    sock.sendmsg([struct.pack(">I", command) + payload], passed)
    answer = _exactly(sock, 4)
    (result,) = struct.unpack(">I", answer)
    if result:
        raise HostError(f"swtpm refuses the control command {command:#x}: {result:#x}", remedy="run: osgates doctor")


def _command(sock: socket.socket, tag: int, command: int, parameters: bytes) -> bytes:
    """What comes behind the answer's header."""
    sock.sendall(struct.pack(">HII", tag, 10 + len(parameters), command) + parameters)
    _, size, result = struct.unpack(">HII", _exactly(sock, 10))
    if not 10 <= size <= _MOST:
        raise HostError(f"the TPM's answer to command {command:#x} claims {size} bytes", remedy="run: osgates doctor")
    body = _exactly(sock, size - 10)
    if result:
        raise HostError(
            f"the TPM refuses command {command:#x}: {result:#x}",
            remedy="if its lockout authorisation is set, only its owner can clear it",
        )
    return body


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise OSError("it closed the connection")
        data += more
    return data
