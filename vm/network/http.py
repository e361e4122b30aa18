"""Reads HTTP/1 request heads (RFC 9112), and answers: captive-portal checks as an open network would."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pytest_osgates.vm.network.wire import Malformed, safe_ascii

MAX_HEAD = 16384
_METHOD = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE|PROPFIND|PRI) ")
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """A request's head. ``host``: without its port, in lower case."""

    method: str
    target: str
    host: str
    user_agent: str
    content_type: str = ""


def looks_like(data: bytes) -> bool:
    """Whether a stream that begins like this is HTTP/1 (or the preface of HTTP/2, which begins like it)."""
    return _METHOD.match(data) is not None


def parse(stream: bytes) -> Request | None:
    """The first request's head; None while it is not complete.

    :raise Malformed: longer than `MAX_HEAD`.
    """
    end = stream.find(b"\r\n\r\n")
    if end < 0:
        if len(stream) > MAX_HEAD:
            raise Malformed("the head of an HTTP request is too long")
        return None
    lines = stream[:end].split(b"\r\n")
    words = lines[0].split(b" ")
    headers: dict[bytes, bytes] = {}
    for line in lines[1:200]:
        name, colon, value = line.partition(b":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    target = words[1] if len(words) > 1 else b""
    host = headers.get(b"host", b"")
    if b"://" in target:
        # To a proxy, the whole address is given (RFC 9112 3.2.2), and counts.
        host = target.split(b"://", 1)[1].split(b"/", 1)[0]
    elif words[0] == b"CONNECT":
        host = target
    # Who stands before an @ is no host (RFC 3986 3.2.1).
    text = safe_ascii(host.rpartition(b"@")[2]).lower()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return Request(
        safe_ascii(words[0], 16),
        safe_ascii(target, 500),
        text.rstrip("."),
        safe_ascii(headers.get(b"user-agent", b""), 300),
        safe_ascii(headers.get(b"content-type", b""), 100),
    )


@cache
def _portals() -> tuple[tuple[re.Pattern[str], str, str], ...]:
    rows = tomllib.loads(files(__package__).joinpath("portals.toml").read_text(encoding="utf-8"))["check"]
    return tuple((re.compile(row["url"]), row.get("body", ""), row.get("type", "text/plain")) for row in rows)


def answer(request: Request) -> tuple[bytes, bool]:
    """The response, and whether it is to a captive-portal check."""
    url = request.host + request.target.partition("?")[0]
    for pattern, body, kind in _portals():
        if pattern.search(url):
            # NetworkManager heeds its header whatever else is answered (NetworkManager.conf(5), [connectivity]),
            # ConnMan nothing but its own (src/wispr.c).
            online = "X-NetworkManager-Status: online\r\nX-ConnMan-Status: online\r\nConnection: close\r\n\r\n"
            if not body:
                return f"HTTP/1.1 204 No Content\r\n{online}".encode(), True
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{online}"
            return (head + ("" if request.method == "HEAD" else body)).encode(), True
    return NOT_FOUND, False
