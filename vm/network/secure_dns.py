"""The encrypted resolver that a profile declares: DNS over TLS (RFC 7858) and over HTTPS (RFC 8484), with a
certificate and a key that were given for the test. HTTP/1.1 only.
"""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_osgates.vm.network import dns, http, wire
from pytest_osgates.vm.network.declared import Resolver, SecureDns
from pytest_osgates.vm.network.names import NameTable
from pytest_osgates.vm.network.wire import Malformed, Packet

if TYPE_CHECKING:
    from pytest_osgates.vm.network.sinkhole import Sinkhole

MEDIA_TYPE = "application/dns-message"
# RFC 8484 4.1: a query in a target has no padding. Nothing else may stand there: it would tell something.
_QUERY = re.compile(r"^dns=([A-Za-z0-9_-]*)$")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,6})[ \t]*\r\n", re.IGNORECASE)
_HTTP2 = b"PRI * HTTP/2.0"
MAX_MESSAGE = 65535
MAX_REASONS = 50
CUT = "the connection ended before the handshake was done"


class SecureResolver:
    """All connections to the declared resolver. `refused`: handshakes that the guest broke off, by the reason;
    `foreign`: what came over TLS and is no query, by what it is.
    """

    def __init__(self, declared: Resolver, names: NameTable) -> None:
        """:raise OSError: certificate or key cannot be read. :raise ssl.SSLError: they do not fit."""
        self.declared = declared
        self.context = context(declared.certificate, declared.key, declared.kind)
        found = [wire.address_of(declared.address)] if declared.address else []
        if declared.name and not wire.address_of(declared.name):
            found += [names.address(declared.name, v6=six) for six in (False, True)]
        self.addresses = frozenset(found)
        self.begun = self.done = self.queries = 0
        self.refused: dict[str, int] = {}
        self.foreign: dict[str, int] = {}

    def takes(self, dst: bytes, dport: int) -> bool:
        """Whether a connection is for it."""
        return dport == self.declared.port and dst in self.addresses

    def session(self, sink: Sinkhole, packet: Packet, sport: int, dport: int) -> Connection:
        """A connection that begins."""
        self.begun += 1

        def resolve(query: bytes) -> bytes | None:
            question = dns.parse_question(query)
            # What a capture's reader would say of a query in plain text.
            for what in (dns.beyond(query, question), *dns.other_questions(query, question)):
                if what:
                    tell("resolver-foreign", what[:100])
            self.queries += 1
            return sink.resolve(packet, query, sport, dport, str(self.declared.kind))

        def tell(kind: str, why: str) -> None:
            counts = {"resolver-refused": self.refused, "resolver-foreign": self.foreign}.get(kind)
            if counts is None:
                self.done += 1
            else:
                why = why if why in counts or len(counts) < MAX_REASONS else "other"
                counts[why] = counts.get(why, 0) + 1
            sink.event(kind, packet, sport, dport, why=why)

        return Connection(self, resolve, tell)

    def stats(self) -> dict[str, object]:
        """Counts."""
        return {
            "addresses": [wire.text_of(address) for address in sorted(self.addresses)],
            "begun": self.begun,
            "done": self.done,
            "queries": self.queries,
            "refused": self.refused,
            "foreign": self.foreign,
        }


def context(certificate: str, key: str, kind: SecureDns) -> ssl.SSLContext:
    """The server's.

    :raise OSError: a file cannot be read.
    :raise ssl.SSLError: they are no PEM, need a password, or do not fit.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # An empty password, so that nobody is asked at a terminal.
    made.load_cert_chain(certificate, key, password="")
    made.set_alpn_protocols(["dot"] if kind is SecureDns.DOT else ["http/1.1"])
    return made


class Connection:
    """One TLS connection to the resolver; see `Session` in tcp.py."""

    def __init__(
        self, server: SecureResolver, resolve: Callable[[bytes], bytes | None], tell: Callable[[str, str], None]
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = server.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._declared = server.declared
        self._resolve, self._tell = resolve, tell
        self._open = self._told = False
        self._said = b""
        self.finished = False

    def feed(self, data: bytes) -> bytes:
        """Takes what came and gives what is to be sent."""
        self._incoming.write(data)
        try:
            if not self._open:
                self._tls.do_handshake()
                self._open = True
                self._tell("resolver-accepted", self._tls.selected_alpn_protocol() or "")
            self._read()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            why = str(error.reason or error).replace("_", " ").lower()[:100]
            self._told = True
            self._tell("resolver-refused", why)
            self.finished = True
        except Malformed as error:
            self._tell("resolver-foreign", str(error)[:100])
            self.finished = True
        return self._outgoing.read()

    def gone(self) -> None:
        """The client ended the connection."""
        if not self._open and not self._told:
            self._told = True
            self._tell("resolver-refused", CUT)
        elif self._said:
            self._tell("resolver-foreign", "a query cut short")
        self.finished = True

    def _read(self) -> None:
        while not self.finished:
            data = self._tls.read(16384)
            if not data:
                self.gone()
                return
            self._said += data
            step = self._dot if self._declared.kind is SecureDns.DOT else self._doh
            while not self.finished and step():
                pass

    def _dot(self) -> bool:
        """Answer one query (RFC 7858 3.3: as DNS over TCP); whether there was a whole one."""
        size = int.from_bytes(self._said[:2], "big")
        if len(self._said) < 2 or len(self._said) < 2 + size:
            return False
        query, self._said = self._said[2 : 2 + size], self._said[2 + size :]
        answer = self._resolve(query)
        if answer is not None:
            self._tls.write(len(answer).to_bytes(2, "big") + answer)
        return True

    def _doh(self) -> bool:
        if self._said.startswith(_HTTP2):
            self._tell("resolver-refused", "the client speaks HTTP/2 only")
            self._said = b""
            self.finished = True
            return False
        if self._said and not http.looks_like(self._said) and len(self._said) >= 16:
            raise Malformed("not HTTP")
        request = http.parse(self._said)
        if request is None:
            return False
        end = self._said.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(self._said[:end])
        size = int(found[1]) if found else 0
        if size > MAX_MESSAGE:
            raise Malformed("a request that is too long")
        if len(self._said) < end + size:
            return False
        body, self._said = self._said[end : end + size], self._said[end + size :]
        query = self._query(request, body)
        answer = self._resolve(query)
        if answer is None:
            self._tls.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(answer)}\r\n\r\n"
            self._tls.write(head.encode() + answer)
        return True

    def _query(self, request: http.Request, body: bytes) -> bytes:
        """What a request asks (RFC 8484 4.1).

        :raise Malformed: it is no query to the declared path.
        """
        path, _, words = request.target.partition("?")
        # Another host in it is another contact, behind this one's name.
        if not request.host or request.host not in {self._declared.name, self._declared.address}:
            self._tls.write(http.NOT_FOUND)
            raise Malformed(f"a request for {request.host or 'no host'}"[:100])
        if path == self._declared.path:
            if (
                request.method == "POST"
                and not words
                and request.content_type.partition(";")[0].strip().lower() == MEDIA_TYPE
            ):
                return body
            found = _QUERY.search(words)
            if request.method == "GET" and found:
                try:
                    return base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4))
                except (binascii.Error, ValueError) as error:
                    raise Malformed("a query that is not base64") from error
        self._tls.write(http.NOT_FOUND)
        raise Malformed(f"{request.method} {request.target}"[:100])
