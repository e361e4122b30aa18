"""One private directory per machine, and the sweeping of those that a SIGKILL left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pytest_osgates.vm.errors import TEMPORARY, HostError

_NAME = re.compile(r"^vm-(\d+)-(\d+)-")


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)): with the pid it names one process for good. None: no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command name (field 2) may hold spaces and parentheses.
    return int(stat[stat.rindex(")") + 2 :].split()[19])


@contextlib.contextmanager
def temporary(what: str) -> Iterator[None]:
    """Whatever goes wrong with a temporary file is the host's fault.

    :raise HostError: no room for `what`, or TMPDIR is gone or cannot be written to.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or "TMPDIR"
        raise HostError(f"no place for {what}: {where}: {error.strerror}", remedy=TEMPORARY) from error


def base_directory() -> Path:
    """``$TMPDIR/osgates-UID``, ours alone.

    :raise HostError: it cannot be made.
    """
    with temporary("the files of machines"):
        return _base_directory()


def _base_directory() -> Path:
    path = Path(tempfile.gettempdir()) / f"osgates-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or path.is_symlink() or status.st_mode & 0o022:
        # Somebody else made it first, in a directory that all can write: stay out of it.
        return Path(tempfile.mkdtemp(prefix=f"osgates-{os.getuid()}-"))
    return path


def make(name: str) -> Path:
    """A fresh directory of mode 0700, marked with its owner.

    :raise HostError: it cannot be made.
    """
    pid = os.getpid()
    base = base_directory()
    with temporary(f"the files of {name}"):
        return Path(tempfile.mkdtemp(prefix=f"vm-{pid}-{start_time(pid)}-{name[:20]}-", dir=base))


def remove(path: Path) -> None:
    """Delete it with all that is in it."""
    shutil.rmtree(path, ignore_errors=True)


def sweep() -> list[Path]:
    """Delete what processes that are no more left behind; what was deleted."""
    swept = []
    for path in base_directory().iterdir():
        match = _NAME.match(path.name)
        if match and start_time(int(match[1])) != int(match[2]):
            remove(path)
            swept.append(path)
    return swept
