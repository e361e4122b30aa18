"""Where things are kept on the host."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """A directory below ``$XDG_CACHE_HOME/osgates`` (XDG Base Directory Specification), made if absent.

    Nothing in it is needed for correctness: whatever is read from it is checked by digest first.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    path = root.joinpath("osgates", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
