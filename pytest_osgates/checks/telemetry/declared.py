"""``[gate.telemetry.vpn]`` and ``[gate.telemetry.resolver]``: what the profile declares, with keys for the test.

Files are named relative to the profile. That they are there and hold keys is checked while the profile is read to
run by it (pydantic's context names its directory), not when it lies in evidence without them.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from pytest_osgates.model import Acceptance

MAX_KEY_FILE = 4096
MAX_PEM = 1 << 20
_HOST = re.compile(r"^(?=.{1,253}$)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*$")
# dev_valid_name() in net/core/dev.c: at most 15 bytes, neither space nor slash nor colon.
_INTERFACE = re.compile(r"^[A-Za-z0-9_.-]{1,15}$")
# Base64 of 32 bytes, with nothing in the bits that are left over, as wg(8) has it.
_KEY = re.compile(r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$")
_PATH = re.compile(r"^/[!-~]{0,200}$")


def split_endpoint(text: str) -> tuple[str, int]:
    """Host and port of ``NAME:PORT``, ``203.0.113.9:PORT`` or ``[2001:db8::9]:PORT``; an address in its usual form.

    :raise ValueError: it is none of them.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[1-9]\d{0,4}", port) or int(port) > 65535:
        raise ValueError("an endpoint is NAME:PORT, ADDRESS:PORT or [IPV6]:PORT")
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1])), int(port)
    if re.fullmatch(r"[0-9.]+", host):
        return str(ipaddress.IPv4Address(host)), int(port)
    return _host(host), int(port)


def endpoint_text(host: str, port: int) -> str:
    """The inverse of `split_endpoint`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(text: str) -> str:
    if not _HOST.match(text):
        raise ValueError("a host name in lower case, without a dot at its end")
    return text


def _endpoint(text: str) -> str:
    return endpoint_text(*split_endpoint(text))


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text)) if text else text


def _key(text: str) -> str:
    if text and not _KEY.match(text):
        raise ValueError(
            f"a WireGuard key is 44 characters of base64 (32 bytes), as wg genkey writes it; this has {len(text)}"
        )
    return text


def _interface(text: str) -> str:
    if not _INTERFACE.match(text) or text in {".", ".."}:
        raise ValueError("the name of a network interface, at most 15 characters")
    return text


def _path(text: str) -> str:
    if not _PATH.match(text) or "?" in text:
        raise ValueError("a path that begins with /, without a query")
    return text


Key = Annotated[str, AfterValidator(_key)]
Address = Annotated[str, AfterValidator(_address)]


def read_file(directory: Path, name: str, limit: int) -> bytes:
    """A file that the profile names.

    :raise ValueError: it cannot be read, is no regular file, or is too long.
    """
    path = directory / name
    try:
        # A named pipe would wait for somebody who writes.
        if not path.is_file():
            raise OSError(errno.ENOENT, "there is no such file" if not path.exists() else "it is no regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path} cannot be read: {why}; files are named relative to the profile") from error
    if len(data) > limit:
        raise ValueError(f"{path} is too long for a key or certificate: more than {limit} bytes")
    return data


def read_key(directory: Path, name: str) -> str:
    """A WireGuard key out of a file, as ``wg genkey`` writes it.

    :raise ValueError: as `read_file`, or it holds no key.
    """
    data = read_file(directory, name, MAX_KEY_FILE)
    try:
        text = data.decode("ascii").strip()
        if not text:
            raise ValueError("it is empty")
        return _key(text)
    except ValueError as error:
        said = "it is not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ValueError(f"{directory / name}: {said}") from error


def directory_of(info: ValidationInfo) -> Path | None:
    """Where the profile lies that is being read; None: nobody will run by it."""
    found = (info.context or {}).get("directory")
    return found if isinstance(found, Path) else None


class DeclaredVpn(Acceptance):
    """The VPN that is always on.

    ``endpoint``: what the guest's configuration dials. ``interface``: its interface in the guest. ``private_key`` or
    ``private_key_file``: of the peer, for the test. ``guest_key``: the public key that belongs to the guest's private
    one. ``preshared_key`` or ``preshared_key_file``: if there is one. ``addresses``: of the peer inside the tunnel;
    ``dns``: the resolvers there.
    """

    kind: Literal["wireguard"]
    endpoint: Annotated[str, AfterValidator(_endpoint)]
    interface: Annotated[str, AfterValidator(_interface)]
    private_key: Key = Field(default="", repr=False)
    private_key_file: str = ""
    guest_key: Key = Field(min_length=1)
    preshared_key: Key = Field(default="", repr=False)
    preshared_key_file: str = ""
    addresses: tuple[Address, ...] = ()
    dns: tuple[Address, ...] = ()
    reason: str = Field(min_length=1)

    @field_validator("private_key_file", "preshared_key_file")
    @classmethod
    def _readable(cls, name: str, info: ValidationInfo) -> str:
        directory = directory_of(info)
        if name and directory is not None:
            read_key(directory, name)
        return name

    @model_validator(mode="after")
    def _one_of_each(self) -> DeclaredVpn:
        if bool(self.private_key) == bool(self.private_key_file):
            raise ValueError("give either private_key or private_key_file: the peer's, made for the test")
        if self.preshared_key and self.preshared_key_file:
            raise ValueError("give either preshared_key or preshared_key_file")
        if not self.documented:
            raise ValueError("reason is empty: say why this system has a VPN")
        return self

    @property
    def host(self) -> str:
        """The name or address that is dialled."""
        return split_endpoint(self.endpoint)[0]

    @property
    def port(self) -> int:
        """The UDP port that is dialled."""
        return split_endpoint(self.endpoint)[1]


class DeclaredResolver(Acceptance):
    """The resolver that is asked over TLS.

    ``name``: that its certificate is for; ``address``: where it is asked; empty: wherever its name leads. ``port``:
    0 is 853 or 443. ``path``: of DoH. ``certificate``, ``key``: PEM files, made for the test; the guest trusts them.
    """

    kind: Literal["dot", "doh"]
    name: Annotated[str, AfterValidator(_host)]
    address: Address = ""
    port: int = Field(default=0, ge=0, le=65535)
    path: Annotated[str, AfterValidator(_path)] = "/dns-query"
    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)
    reason: str = Field(min_length=1)

    @field_validator("certificate", "key")
    @classmethod
    def _readable(cls, name: str, info: ValidationInfo) -> str:
        directory = directory_of(info)
        if name and directory is not None and b"-----BEGIN " not in read_file(directory, name, MAX_PEM):
            raise ValueError(f"{directory / name} is no PEM file")
        return name

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> DeclaredResolver:
        if not self.documented:
            raise ValueError("reason is empty: say why this system asks this resolver")
        directory = directory_of(info)
        if directory is not None:
            try:
                # An empty password, so that nobody is asked at a terminal.
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                tls.load_cert_chain(directory / self.certificate, directory / self.key, password="")
            except (OSError, ssl.SSLError) as error:
                why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
                raise ValueError(
                    f"{self.certificate} and {self.key} are no certificate and key without a password that belong"
                    f" together: {why}"
                ) from error
        return self

    @property
    def asked_at(self) -> int:
        """The TCP port."""
        return self.port or (853 if self.kind == "dot" else 443)
