"""Which mirror, and through which proxy: what the user says, else what the host's own apt uses."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from pytest_osgates.debian.model import Archive
from pytest_osgates.vm.errors import CommandFailed, MissingTool, UsageError
from pytest_osgates.vm.process import run, which

MIRROR_VARIABLE = "OSGATES_DEBIAN_MIRROR"
SECURITY_VARIABLE = "OSGATES_DEBIAN_SECURITY_MIRROR"
_REMEDY = f"set {MIRROR_VARIABLE} to a Debian mirror, e.g. http://mirror.example/debian"
_ORIGIN_LABEL = {("Debian", "Debian"): Archive.DEBIAN, ("Debian", "Debian-Security"): Archive.SECURITY}
# apt.conf(5), apt-transport-http(1), apt-transport-https(1): how to get out of this host, and nothing more.
_PROXY = re.compile(
    r'^Acquire::(?:http|https)::(?:[^ "]+::)?(?:Proxy|Proxy-Auto-Detect|ProxyAutoDetect|CAInfo|CAPath)'
    r'(?:::[^ "]+)? "[^"\\\x00-\x1f]*";$',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mirror:
    """Base URLs of the two archives, without a slash at the end."""

    debian: str
    security: str | None = None

    def base(self, archive: Archive) -> str:
        """:raise UsageError: this mirror has no such archive."""
        if archive is Archive.DEBIAN:
            return self.debian
        if self.security is None:
            raise UsageError(
                "it is not known where the security archive is", remedy=f"set {SECURITY_VARIABLE} to its URL"
            )
        return self.security

    def url(self, archive: Archive, filename: str) -> str:
        """Of a file of the archive; quoted as apt does ('+' is not literal on every server)."""
        return f"{self.base(archive)}/{quote(filename, safe='/~')}"


def discover_mirror(given: str | None = None, *, environment: Mapping[str, str] | None = None) -> Mirror:
    """The mirror that `given` (an option) or the environment names, else the one of the host's apt sources.

    :raise UsageError: no usable URL was given and the host has no Debian source.
    """
    values = os.environ if environment is None else environment
    wanted = given or values.get(MIRROR_VARIABLE)
    security = values.get(SECURITY_VARIABLE)
    if wanted:
        debian = _checked(wanted)
        return Mirror(debian, _checked(security) if security else beside(debian))
    found = _of_the_host()
    if Archive.DEBIAN not in found:
        raise UsageError("no Debian mirror is known: this host's apt has no source of Debian's", remedy=_REMEDY)
    debian = found[Archive.DEBIAN]
    if security:
        return Mirror(debian, _checked(security))
    return Mirror(debian, found.get(Archive.SECURITY) or beside(debian))


def beside(debian: str) -> str | None:
    """Where a mirror at ``.../debian`` keeps the security archive by convention, else None."""
    return f"{debian}-security" if debian.endswith("/debian") else None


def _checked(url: str) -> str:
    parts = urlsplit(url)
    # Whitespace and brackets would end the field of a sources.list(5) line.
    if parts.scheme not in {"http", "https", "file", "copy"} or re.search(r"[\s\[\]\"'\\]", url) is not None:
        raise UsageError(f"not the URL of a Debian mirror: {url!r}", remedy=_REMEDY)
    return url.rstrip("/")


def parse_targets(text: str) -> dict[Archive, str]:
    """Lines ``origin|label|repository URI``: the first usable URI of each archive."""
    found: dict[Archive, str] = {}
    for line in text.splitlines():
        origin, _, rest = line.partition("|")
        label, _, uri = rest.partition("|")
        archive = _ORIGIN_LABEL.get((origin, label))
        if archive is None or archive in found:
            continue
        try:
            found[archive] = _checked(uri)
        except UsageError:  # cdrom:, mirror+file: and the like are of no use elsewhere
            continue
    return found


def _of_the_host() -> dict[Archive, str]:
    try:
        which("apt-get")
        done = run(
            ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"],
            timeout=60,
        )
    except (MissingTool, CommandFailed):  # no apt, or broken sources: the user's word is needed
        return {}
    return parse_targets(done.text)


def parse_proxies(dump: str) -> list[str]:
    """The lines of ``apt-config dump`` that say how to get out of this host."""
    return [line for line in dump.splitlines() if _PROXY.match(line)]


def host_proxies() -> list[str]:
    """apt.conf lines with the host's own proxy settings. (Those of the environment, apt reads by itself.)"""
    try:
        which("apt-config")
        return parse_proxies(run(["apt-config", "dump"], timeout=30).text)
    except (MissingTool, CommandFailed):
        return []
