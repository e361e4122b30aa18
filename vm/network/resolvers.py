"""Known public resolvers: by name and by address."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

from pytest_osgates.vm.network.http import Request

DOT_PORT = 853
_PATHS = ("/dns-query", "/resolve", "/doh")


@cache
def _tables() -> tuple[dict[str, str], dict[str, str]]:
    rows = tomllib.loads(files(__package__).joinpath("resolvers.toml").read_text(encoding="utf-8"))["resolver"]
    names = {name: row["provider"] for row in rows for name in row["names"]}
    addresses = {address: row["provider"] for row in rows for address in row.get("addresses", ())}
    return names, addresses


def provider(name: str, address: str = "") -> str:
    """Who runs the public resolver with this name (or one above it) or address; empty if it is none."""
    names, addresses = _tables()
    while name:
        if name in names:
            return names[name]
        name = name.partition(".")[2]
    return addresses.get(address, "")


def is_doh(request: Request) -> bool:
    """Whether an HTTP request carries DNS (RFC 8484)."""
    path = request.target.partition("?")[0]
    return request.content_type == "application/dns-message" or path.endswith(_PATHS) or "?dns=" in request.target
