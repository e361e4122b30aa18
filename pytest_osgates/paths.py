"""Where things are kept on the host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pytest_osgates.vm.errors import HostError

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
