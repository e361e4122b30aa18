"""What two images differ in, as data: each difference, its cause, and the account of the bytes."""

from __future__ import annotations

from pydantic import Field

from pytest_osgates.model import Model


class Spot(Model):
    """A place inside a file that differs: what it is, where (bytes from the file's start), and both sides."""

    locus: str
    offset: int
    size: int
    a: str
    b: str


class Difference(Model):
    """One thing that differs; see :class:`pytest_osgates.image.diff.found.Difference`. `cause`: its id, or empty."""

    layer: str
    container: str = ""
    path: str
    what: str
    a: str = ""
    b: str = ""
    offset_a: int | None = None
    offset_b: int | None = None
    delta: int | None = None
    follows: bool = False
    spots: tuple[Spot, ...] = ()
    kind: str = ""
    differing: int | None = None
    cause: str = ""

    @property
    def where(self) -> str:
        """The path, with the containers that it is in."""
        return f"{self.container}!{self.path}" if self.container else self.path


class ImageFile(Model):
    """One of the two images."""

    path: str
    size: int
    sha256: str


class Group(Model):
    """Differences of one cause, in the order of what to mend first."""

    cause: str
    title: str
    why: str = ""
    fix: str = ""
    cost: str = ""
    source: str = ""
    rank: int = 0
    count: int = 0
    paths: int = 0
    summary: str = ""
    examples: tuple[Difference, ...] = ()


class ImageComparison(Model):
    """Two images, compared.

    `unexplained`: bytes that differ and belong to no structure that is known. `left_out`: differences that were
    counted and not kept. `nodes`: files that were compared.
    """

    schema_version: int = 1
    a: ImageFile
    b: ImageFile
    equal: bool
    differences: tuple[Difference, ...] = ()
    groups: tuple[Group, ...] = ()
    unexplained: int = 0
    left_out: int = 0
    nodes: int = 0
    notes: tuple[str, ...] = ()
    seconds: float = Field(default=0.0, ge=0.0)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers in which something differs."""
        return tuple(dict.fromkeys(difference.layer for difference in self.differences))
