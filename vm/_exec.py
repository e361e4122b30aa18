"""Run as ``python -I -S _exec.py PARENT_PID COMMAND...``: becomes COMMAND, and dies with its parent.

PR_SET_PDEATHSIG (prctl(2)) survives execve(2) of ordinary programs, so a program that knows nothing of it
still dies with us. It is set here and not in a ``preexec_fn``: that would run Python between fork and exec of
a process with threads. The parent may have died before the call, hence the look at getppid() after it.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        os.write(2, f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}\n".encode())
        os._exit(126)
    if os.getppid() != parent:
        os._exit(125)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  (no shell: that is the point)
    except OSError as error:
        os.write(2, f"{sys.argv[2]}: {error.strerror}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    main()
