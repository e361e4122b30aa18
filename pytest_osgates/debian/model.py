"""What a package is, wherever it is fetched from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Debian policy 5.6.7 (names), 5.6.12 (versions), 5.6.8 (architectures).
NAME = r"[a-z0-9][a-z0-9+.\-]+"
VERSION = r"(?:[0-9]+:)?[0-9A-Za-z][0-9A-Za-z.+~\-]*"
ARCHITECTURE = r"[a-z0-9][a-z0-9\-]*"


class Archive(StrEnum):
    """Which of Debian's two archives: they have one layout and lie side by side on mirrors."""

    DEBIAN = "debian"
    SECURITY = "debian-security"


@dataclass(frozen=True)
class Suite:
    """One suite of an archive. An `optional` one is left out when the mirror does not carry it."""

    name: str
    archive: Archive = Archive.DEBIAN
    components: tuple[str, ...] = ("main",)
    optional: bool = False


class LockedPackage(BaseModel):
    """One exact package. `filename` is relative to the archive's root, so it names no mirror."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=rf"^{NAME}$")
    version: str = Field(pattern=rf"^{VERSION}$")
    architecture: str = Field(pattern=rf"^{ARCHITECTURE}$")
    archive: Archive = Archive.DEBIAN
    filename: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(gt=0, lt=1 << 32)

    @field_validator("filename")
    @classmethod
    def _inside_the_pool(cls, value: str) -> str:
        # It becomes part of a URL and of a path: nothing may climb out of the archive.
        if re.fullmatch(r"pool(/[0-9A-Za-z][0-9A-Za-z.+~_%:\-]*)+\.deb", value) is None:
            raise ValueError(f"not a path of a package inside an archive: {value!r}")
        return value

    @property
    def key(self) -> str:
        """``name=version``, as apt writes it."""
        return f"{self.name}={self.version}"
