"""Files whose path fits a pattern, by every name that symbolic links of directories give them."""

from __future__ import annotations

import re

from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.source import shown
from pytest_osgates.image.squashfs import MAX_ENTRIES
from pytest_osgates.image.walk import Node, locate
from pytest_osgates.vm.errors import ImageError

# What one pattern may look at. A name counts again only where another part of the pattern may go on behind it.
MAX_LOOKS = 4 * MAX_ENTRIES


class Glob:
    """A pattern with ``*`` (any text, ``/`` as well) and ``?`` (any character), taken a character at a time.

    A state is a set of places in the pattern, as bits: everything before each of them has been met.
    """

    def __init__(self, pattern: str) -> None:
        pattern = re.sub(r"\*+", "*", pattern)
        self._any = self._star = 0
        self._places: dict[str, int] = {}
        for place, char in enumerate(pattern):
            if char == "*":
                self._star |= 1 << place
            elif char == "?":
                self._any |= 1 << place
            else:
                self._places[char] = self._places.get(char, 0) | 1 << place
        self._end = 1 << len(pattern)
        self.start = self._beyond(1)

    def _beyond(self, state: int) -> int:
        """`state`, and what follows where a ``*`` stands for nothing."""
        return state | (state & self._star) << 1

    def after(self, state: int, text: str) -> int:
        """The state once `text` has followed; 0: nothing that fits begins like that."""
        for char in text:
            if not state:
                break
            moved = (state & (self._any | self._places.get(char, 0))) << 1
            state = self._beyond(moved | state & self._star)
        return state

    def is_whole(self, state: int) -> bool:
        """Whether what has been met fits."""
        return bool(state & self._end)

    def goes_on(self, state: int) -> bool:
        """Whether something longer may fit."""
        return bool(state & ~self._end)


class Names:
    """All names in an image, as a walk meets them."""

    def __init__(self, view: RootView) -> None:
        self._view = view
        self._children: dict[str, list[str]] = {"": []}
        self._links: set[str] = set()
        self._followed: dict[str, str | None] = {}

    def add(self, node: Node) -> None:
        """Note a name; what is in a directory comes after it."""
        parent, _, name = node.path.rpartition("/")
        self._children[parent].append(name)
        if node.inode.is_dir:
            self._children[node.path] = []
        elif node.inode.target is not None:
            self._links.add(node.path)

    def fitting(self, pattern: str) -> list[str]:
        """The paths, free of links but at their end, of everything that has a name which fits `pattern`.

        Each directory is looked into once for each state that it is met in: links that lead in circles end by that.

        :raise ImageError: it takes too long.
        """
        glob = Glob(pattern)
        found: set[str] = set()
        pending = [("", glob.start)]
        seen = set(pending)
        looks = 0
        while pending:
            directory, state = pending.pop()
            inside = glob.after(state, "/")
            names = self._children[directory] if inside else []
            looks += len(names)
            if looks > MAX_LOOKS:
                raise ImageError(f"links of directories make too many names that may fit {shown(pattern)}")
            for name in names:
                reached = glob.after(inside, name)
                if not reached:
                    continue
                path = f"{directory}/{name}"
                if glob.is_whole(reached):
                    found.add(path)
                below = self._directory(path) if glob.goes_on(reached) else None
                if below is not None and (below, reached) not in seen:
                    seen.add((below, reached))
                    pending.append((below, reached))
        return sorted(found)

    def _directory(self, path: str) -> str | None:
        """The directory that is at `path`, links followed; None: there is none."""
        if path in self._children:
            return path
        if path not in self._links:
            return None
        if path not in self._followed:
            node = locate(self._view, path)
            self._followed[path] = node.path.rstrip("/") if node is not None and node.inode.is_dir else None
        return self._followed[path]
