"""A resolver's certificate made for a test, and a client that speaks TLS over the sinkhole's TCP."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from net_samples import Connection

from pytest_osgates.vm.network import dns
from pytest_osgates.vm.network.declared import Resolver, SecureDns

NAME = "dns.example.org"


@cache
def _made(name: str) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def write_certificate(directory: Path, name: str = NAME) -> tuple[Path, Path]:
    """``resolver.pem`` and ``resolver.key`` in `directory`; the certificate is its own authority."""
    certificate, key = directory / "resolver.pem", directory / "resolver.key"
    for path, data in zip((certificate, key), _made(name), strict=True):
        path.write_bytes(data)
    return certificate, key


def resolver(directory: Path, kind: SecureDns = SecureDns.DOT, **changes: Any) -> Resolver:
    """As a sinkhole is told."""
    certificate, key = write_certificate(directory)
    fields = {"address": "", "port": 853 if kind is SecureDns.DOT else 443, "path": "/dns-query"}
    return Resolver(
        **{"kind": kind, "name": NAME, **fields, "certificate": str(certificate), "key": str(key), **changes}
    )


class TlsClient:
    """A client that trusts `trusted`; `got` is what the server said inside."""

    def __init__(
        self, connection: Connection, trusted: Path | None, *, name: str = NAME, alpn: tuple[str, ...] = ()
    ) -> None:
        context = ssl.create_default_context(cafile=str(trusted) if trusted else None)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self.connection = connection
        self.got = b""

    def _exchange(self) -> None:
        while self._out.pending:
            self._in.write(self.connection.say(self._out.read()))

    def shake(self) -> None:
        """The handshake.

        :raise ssl.SSLError: the certificate is not trusted; the server was told.
        """
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._exchange()
            except ssl.SSLError:
                self._exchange()
                raise
            else:
                break
        self._exchange()

    def say(self, data: bytes) -> bytes:
        """Send `data` inside; what came back inside."""
        self.tls.write(data)
        self._exchange()
        got = b""
        try:
            while more := self.tls.read(65536):
                got += more
        except ssl.SSLWantReadError:
            pass
        return got

    def leave(self) -> None:
        """close_notify (RFC 8446 6.1), then FIN."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._exchange()
        self.connection.close()

    def ask(self, name: str) -> list[str]:
        """DNS over TLS; the addresses."""
        query = dns.query(name)
        return addresses(self.say(len(query).to_bytes(2, "big") + query)[2:])


def addresses(message: bytes) -> list[str]:
    """Of an answer."""
    return [record.value for record in dns.parse(message).records]
