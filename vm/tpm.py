"""Commands for a TPM that is switched off: swtpm runs for them alone, and nothing listens anywhere.

Control channel: swtpm_ioctls(3). Commands and responses: TCG, TPM 2.0 Library, parts 2 and 3.
"""

from __future__ import annotations

import array
import socket
import struct
from pathlib import Path

from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.swtpm import Swtpm

_INIT, _SHUTDOWN, _SET_DATAFD = 0x02, 0x03, 0x10
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_STARTUP, _POWER_DOWN, _CLEAR = 0x144, 0x145, 0x126
_RS_PW, _RH_LOCKOUT = 0x4000_0009, 0x4000_000A
_ANSWER_SECONDS = 30.0
_MOST = 4096


def clear(state: Path, log: Path, patience: float = 1.0) -> None:
    """TPM2_Clear (part 3, 24.6): the owner's seed is a new one, so that nothing sealed before can be read again.

    `state`: swtpm's directory. The lockout authorisation is empty, as it is until somebody sets it.

    :raise HostError: swtpm is missing or does not answer, or the TPM refuses.
    """
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
                password = struct.pack(">IHBH", _RS_PW, 0, 0, 0)
                _command(data, _SESSIONS, _CLEAR, struct.pack(">II", _RH_LOCKOUT, len(password)) + password)
                _command(data, _NO_SESSIONS, _POWER_DOWN, struct.pack(">H", 0))
                _control(control, _SHUTDOWN)
    except OSError as error:
        raise HostError(
            f"swtpm did not take a command for {state}: {error}: {swtpm.said()}",
            remedy="see swtpm's log in the evidence; run: osgates doctor",
        ) from error
    finally:
        swtpm.stop()


def _control(sock: socket.socket, command: int, payload: bytes = b"", descriptor: int | None = None) -> None:
    passed = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    sock.sendmsg([struct.pack(">I", command) + payload], passed)
    answer = _exactly(sock, 4)
    (result,) = struct.unpack(">I", answer)
    if result:
        raise HostError(f"swtpm refuses the control command {command:#x}: {result:#x}", remedy="run: osgates doctor")


def _command(sock: socket.socket, tag: int, command: int, parameters: bytes) -> None:
    sock.sendall(struct.pack(">HII", tag, 10 + len(parameters), command) + parameters)
    _, size, result = struct.unpack(">HII", _exactly(sock, 10))
    if not 10 <= size <= _MOST:
        raise HostError(f"the TPM's answer to command {command:#x} claims {size} bytes", remedy="run: osgates doctor")
    _exactly(sock, size - 10)
    if result:
        raise HostError(
            f"the TPM refuses command {command:#x}: {result:#x}",
            remedy="if its lockout authorisation is set, only its owner can clear it",
        )


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise OSError("it closed the connection")
        data += more
    return data
