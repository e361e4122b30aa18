"""Where a gate that is not built in comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from pytest_osgates.model import AnyGate, Model


class Origin(Model):
    """What the evidence says of a gate that is not built in.

    ``path``: its file, relative to the profile, or to where its package is installed. ``sha256``: of that file.
    ``beside``: digests of the other Python files of its directory, which it may import. ``entry_point`` and
    ``distribution`` (name and version) only of an installed one.
    """

    path: str
    sha256: str
    beside: dict[str, str]
    entry_point: str = ""
    distribution: str = ""

    @property
    def where(self) -> str:
        """For the reader."""
        return f"{self.path} of {self.distribution}" if self.distribution else self.path


@dataclass(frozen=True)
class OutsideGate:
    """A gate from outside, loaded; its tests are in `module`, which is `file`."""

    gate: AnyGate
    origin: Origin
    module: ModuleType = field(repr=False)
    file: Path
