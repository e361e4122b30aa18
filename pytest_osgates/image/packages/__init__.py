"""Which packages are installed in an image, by the data bases of their managers, read where they lie.

A data base that is damaged, or of a kind that cannot be read, is told with what could be read of it: whoever judges
must not take what is missing from it for absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Package:
    """A package that a data base knows. `status` is dpkg's three words (``install ok installed``), else empty.

    `files` are the absolute paths that it installed, as it calls them: symbolic links in them are not followed.
    None: its manager keeps no list. `optional`: those of them that need not be there. `filled`: those that are known
    to be regular files with something in them. `source`: the source package that it was built from, as one of several
    perhaps.
    """

    name: str
    version: str = ""
    arch: str = ""
    status: str = ""
    files: tuple[str, ...] | None = None
    optional: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Database:
    """What one manager says. `problems`: why it may not be all; `left`: packages that it does not know, but of which
    it still keeps a list of files; `diverted`: paths that packages take from others, where those files go, and who
    takes them.
    """

    manager: str
    path: str
    packages: tuple[Package, ...] = ()
    problems: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    diverted: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Trouble:
    """Problems as they are met, bounded: a hostile file has endlessly many."""

    found: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """Note `what`, unless there are enough."""
        if len(self.found) < 20 and what not in self.found:
            self.found.append(what)
