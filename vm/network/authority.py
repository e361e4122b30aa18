"""Completes TLS with certificates of a CA that is made for one run, and that no guest has reason to trust.

A guest that refuses the certificate validates; one that goes on says its HTTP request in the clear.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path

from pytest_osgates.vm.network import http
from pytest_osgates.vm.network.wire import Malformed

MAX_CONTEXTS = 1000
_DAYS = datetime.timedelta(days=30)
# Certificates are looked at with the guest's clock, which may be a little behind.
_BEFORE = datetime.timedelta(days=2)


class Authority:
    """Keys and certificates in `directory`, which is private to this run."""

    def __init__(self, directory: Path, now: float) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        self._directory = directory
        self._now = datetime.datetime.fromtimestamp(now, datetime.UTC)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._leaf = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "OS Gates test CA (trust it nowhere)")])
        self._certificate = self._sign(self._name, self._key.public_key(), None)

    def _sign(self, subject: object, public: object, name: str | None) -> object:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)  # type: ignore[arg-type]
            .issuer_name(self._name)
            .public_key(public)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _BEFORE)
            .not_valid_after(self._now + _DAYS)
            .add_extension(x509.BasicConstraints(ca=name is None, path_length=None), critical=True)
        )
        if name is not None:
            try:
                entry: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
            except ValueError:
                entry = x509.DNSName(name)
            builder = builder.add_extension(x509.SubjectAlternativeName([entry]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        """The CA's certificate, for a guest that is to trust it in a test."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return bytes(self._certificate.public_bytes(Encoding.PEM))  # type: ignore[attr-defined]

    def context(self, name: str) -> ssl.SSLContext:
        """A server's context with a certificate for `name`; a name that no certificate can hold gets another."""
        name = name if name and name.isascii() and "\\" not in name and len(name) < 64 else "unnamed.invalid"
        known = self._contexts.get(name)
        if known is not None:
            return known
        if len(self._contexts) >= MAX_CONTEXTS:
            self._contexts.clear()
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
        from cryptography.x509.oid import NameOID

        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        leaf = self._sign(subject, self._leaf.public_key(), name)
        path = self._directory / "leaf.pem"
        path.touch(mode=0o600)
        path.write_bytes(
            self._leaf.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + leaf.public_bytes(Encoding.PEM)  # type: ignore[attr-defined]
            + self.pem
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.set_alpn_protocols(["http/1.1", "dot"])
        path.unlink()
        self._contexts[name] = context
        return context


class Completed:
    """One TLS connection's server. `tell` gets events: ``tls-refused``, ``tls-accepted``, ``http``."""

    def __init__(self, context: ssl.SSLContext, tell: Callable[[str, dict[str, object]], None]) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._tell = tell
        self._open = False
        self._head = b""
        self.finished = False

    def feed(self, data: bytes) -> bytes:
        """Takes what came and gives what is to be sent."""
        self._incoming.write(data)
        try:
            if not self._open:
                self._tls.do_handshake()
                self._open = True
                self._tell("tls-accepted", {"alpn": self._tls.selected_alpn_protocol() or ""})
            self._read()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._tell("tls-refused", {"why": str(error.reason or error)[:100]})
            self.finished = True
        return self._outgoing.read()

    def gone(self) -> None:
        """The client ended the connection."""
        self.finished = True

    def _read(self) -> None:
        while True:
            data = self._tls.read(16384)
            if not data:
                self.finished = True
                return
            self._head += data
            try:
                request = http.parse(self._head) if http.looks_like(self._head) else None
            except Malformed:
                request = None
                self.finished = True
            if request is not None:
                answer, portal = http.answer(request)
                self._tell(
                    "http-in-tls",
                    {
                        "method": request.method,
                        "host": request.host,
                        "target": request.target,
                        "user_agent": request.user_agent,
                        "portal": portal,
                    },
                )
                self._tls.write(answer)
                self.finished = True
                return
            if len(self._head) > http.MAX_HEAD:
                self.finished = True
                return
