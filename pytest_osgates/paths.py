"""Where things are kept on the host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_osgates.vm.errors import HostError

LOOK_SECONDS = 0.2
CACHE = "free some space there, or set XDG_CACHE_HOME to a directory of yours with room in it"


def cache_dir(*parts: str) -> Path:
    """A directory below ``$XDG_CACHE_HOME/osgates`` (XDG Base Directory Specification), made if absent.

    Nothing in it is needed for correctness: whatever is read from it is checked by digest first.

    :raise HostError: it cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    path = root.joinpath("osgates", *parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"the cache {path} cannot be made: {error.strerror}", remedy=CACHE) from error
    return path


@contextlib.contextmanager
def caching(what: str) -> Iterator[None]:
    """Writing `what` to the cache.

    :raise HostError: the cache is full or cannot be written to.
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise HostError(f"{what} cannot be kept in the cache: {where}{error.strerror}", remedy=CACHE) from error


@contextlib.contextmanager
def alone(lock: Path, patience: float, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `lock`. The kernel frees it when a holder dies, so nothing is ever left locked; `waiting` is
    called once if somebody else holds it now.

    :raise HostError: it cannot be made, or somebody held it for more than `patience` seconds.
    """
    with contextlib.ExitStack() as stack:
        with caching(lock.name):
            handle = stack.enter_context(lock.open("a"))
        deadline = time.monotonic() + patience
        pause = threading.Event()
        told = False
        # flock(2) has no deadline of its own.
        while not _taken(handle.fileno()):
            if not told:
                waiting()
                told = True
            if time.monotonic() > deadline:
                raise HostError(
                    f"another process has held {lock} for more than {patience:.0f} s",
                    remedy=f"see what it does (fuser -v {lock}) and end it, or set XDG_CACHE_HOME to another place",
                )
            pause.wait(LOOK_SECONDS)
        yield


def _taken(descriptor: int) -> bool:
    with caching("a lock"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
