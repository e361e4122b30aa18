"""Flatpak applications that may talk on the network: by their metadata, and its overrides (flatpak-metadata(5)). And
snaps, of which nobody looks into the images."""

from __future__ import annotations

import configparser
import hashlib
from collections.abc import Iterator

from pytest_osgates.checks.apparmor_model import Evidence, Kind, Networked
from pytest_osgates.image.packages import Trouble
from pytest_osgates.image.packages.sandboxed import MAX_TEXT, Deployed, deployed, read_snap
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.text import one_line


def applications(view: RootView, places: tuple[str, ...]) -> Iterator[Networked]:
    """One entry for each application that is deployed; one without the network is only reported."""
    for found in deployed(view, places, Trouble()):
        if found.kind != "app":
            continue
        try:
            raw = view.read(f"{found.path}/metadata", MAX_TEXT)
        except ImageError:
            raw = None
        reason = _reason(view, found, raw)
        yield Networked(
            path=one_line(found.path, 4096),
            package=f"flatpak:{one_line(found.name)}",
            evidence=(reason,),
            sha256=hashlib.sha256(raw).hexdigest() if raw is not None else "",
        )


def snaps(view: RootView) -> Iterator[Networked]:
    """One entry for each snap, by the place that it is mounted on, whatever its revision."""
    database = read_snap(view)
    for name in dict.fromkeys(package.name for package in database.packages) if database is not None else ():
        untold = Evidence(kind=Kind.UNTOLD, detail="a snap, whose image nobody looked into")
        yield Networked(path=one_line(f"/snap/{name}", 4096), package=f"snap:{one_line(name)}", evidence=(untold,))


def _reason(view: RootView, found: Deployed, raw: bytes | None) -> Evidence:
    own = None if raw is None else shared(raw)
    if own is None:
        return Evidence(kind=Kind.UNTOLD, detail="an application whose metadata cannot be read")
    allowed = set(own)
    for name in ("global", found.name):
        path = f"{found.installation}/overrides/{name}"
        try:
            text = view.read(path, MAX_TEXT)
        except ImageError:
            text = b"\0"
        more = () if text is None else shared(text)
        if more is None:
            return Evidence(
                kind=Kind.UNTOLD, detail=f"an application whose overrides {one_line(path)} cannot be read"
            )
        for word in more:
            # A user may have overrides as well: what is taken away here can be given back there.
            allowed.discard(word[1:]) if word.startswith("!") else allowed.add(word)
    if "network" in allowed:
        return Evidence(kind=Kind.FLATPAK, detail="shared=network")
    return Evidence(kind=Kind.REACHES, detail="an application that does not share the network")


def shared(raw: bytes) -> tuple[str, ...] | None:
    """The words of ``shared`` in ``[Context]``; None: it is no key file."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    try:
        parser.read_string(raw.decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError):
        return None
    value = parser.get("Context", "shared", fallback="")
    return tuple(word.strip() for word in value.split(";") if word.strip())
