"""deb822 stanzas (deb-control(5), Packages indices), as far as apt and dpkg print them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pytest_osgates.debian.model import Archive, LockedPackage
from pytest_osgates.vm.errors import HostError


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The stanzas of `text`. Continuation lines stay part of their value, as written.

    :raise HostError: a line that is neither a field nor a continuation.
    """
    fields: dict[str, str] = {}
    last: str | None = None
    for line in text.split("\n"):
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, None
        elif line[0] in " \t":
            if last is None:
                raise HostError(f"a Debian control file begins with a continuation line: {line[:80]!r}")
            fields[last] += "\n" + line
        else:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise HostError(f"not a field of a Debian control file: {line[:80]!r}")
            fields[name] = value.strip(" \t")
            last = name
    if fields:
        yield fields


def render(fields: Mapping[str, str]) -> str:
    """One stanza as text, fields in the order given."""
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def locked(fields: Mapping[str, str], archive: Archive) -> LockedPackage:
    """The package that a stanza of a Packages index describes.

    :raise HostError: a field is missing (an index without SHA256, say).
    """
    try:
        return LockedPackage(
            name=fields["Package"],
            version=fields["Version"],
            architecture=fields["Architecture"],
            archive=archive,
            filename=fields["Filename"],
            sha256=fields["SHA256"],
            size=int(fields["Size"]),
        )
    except KeyError as missing:
        raise HostError(f"a package index has a stanza without {missing}") from None
    except ValueError as wrong:
        raise HostError(f"a package index has a bad stanza: {wrong}") from None


def packages_index(entries: Iterable[tuple[LockedPackage, Mapping[str, str], str]]) -> str:
    """A Packages index: (package, its control fields, its path relative to the repository) each."""
    parts = []
    for package, fields, path in sorted(entries, key=lambda entry: (entry[0].name, entry[0].architecture)):
        parts.append(render({**fields, "Filename": path, "Size": str(package.size), "SHA256": package.sha256}))
    return "\n".join(parts)
