"""The OpenSSL engine, through pyOpenSSL and memory BIOs.

The `ssl` module of Python ends a handshake whose client certificate fails, so it cannot do what the manual demands:
record the failure, go on, let policy decide. Here the verify callback notes every error and says yes; whether the chain
verified is then a matter of the verdict.

A session that is resumed shows no chain. Its verdict is that of the handshake which made it, kept by `Memory`.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto

from quillon.tls import identity, openssl_extra, openssl_pipe
from quillon.tls.anchors import Anchors
from quillon.tls.certificate import certificate, printable
from quillon.tls.engine import SESSION_LIFE
from quillon.tls.verdict import HandshakeFailure, TlsVerdict, alert_cause, chain_cause

ChainError = tuple[str, int, str]

_ALERT = re.compile(r"\balert (.+)")
_MAX_ERRORS = 16
_UNKNOWN: ChainError = ("certificate_rejected", 0, "the session's own handshake is not remembered any more")
# words of the library to cause codes, first match wins
_REASONS = (
    ("no shared cipher", "no_shared_cipher"),
    ("no suitable signature algorithm", "no_shared_cipher"),
    ("no ciphers available", "no_shared_cipher"),
    ("no suitable key share", "no_shared_cipher"),
    ("no suitable groups", "no_shared_cipher"),
    ("no application protocol", "no_application_protocol"),
    ("excessive message size", "handshake_too_large"),
    ("unsupported protocol", "protocol_mismatch"),
    ("version too low", "protocol_mismatch"),
    ("wrong ssl version", "protocol_mismatch"),
    ("inappropriate fallback", "protocol_mismatch"),
    ("no protocols available", "protocol_mismatch"),
    ("wrong version number", "not_tls"),
    ("http request", "not_tls"),
    ("packet length too long", "not_tls"),
    ("unknown protocol", "not_tls"),
    ("did not return a certificate", "no_client_certificate"),
    ("unexpected eof", "handshake_eof"),
    ("dh key too small", "weak_key"),
    ("ee key too small", "weak_key"),
)


class NoApplicationProtocol(Exception):
    """The client offers protocols by ALPN, and smtp is not among them. Raised out of the callback, which is how
    pyOpenSSL has the library send the alert."""


def choose_protocol(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """ALPN callback of a server: `smtp`, or the end (RFC 7301 3.2, RFC 9325 3.8)."""
    if b"smtp" in offered:
        return b"smtp"
    names = ", ".join(name.decode("ascii", "replace") for name in offered[:8])
    raise NoApplicationProtocol(f"the client offers {names}")


def failure_of(error: Exception) -> HandshakeFailure:
    """The cause of a failed handshake, out of the error queue of the library."""
    reasons = [str(entry[2]) for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    detail = "; ".join(reason for reason in reasons if reason)
    for reason in reasons:
        alert = _ALERT.search(reason)
        if alert is not None:
            return HandshakeFailure(alert_cause(alert[1]), detail)
    for words, cause in _REASONS:
        if words in detail.lower():
            return HandshakeFailure(cause, detail)
    return HandshakeFailure("handshake_failed", detail)


def note_error(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    """Verify callback: keep what is wrong with the chain for the verdict, and go on."""
    if error:
        errors = connection.get_app_data().errors
        if len(errors) < _MAX_ERRORS:
            errors.append((chain_cause(error), depth, f"{openssl_extra.error_words(error)} (depth {depth})"))
    return True


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a full handshake found out about a chain, when, until when all of its certificates are valid, and the
    trusted one that it leads to, in DER."""

    errors: tuple[ChainError, ...]
    made: float
    until: float
    session: Any = None
    anchor: bytes | None = None

    def now(self, now: float) -> tuple[ChainError, ...]:
        """The errors of that chain today."""
        if now < self.until:
            return self.errors
        if not self.until:
            return (*self.errors, _UNKNOWN)
        return (*self.errors, ("expired", 0, "the certificate has expired since the session began"))


class Memory:
    """Verdicts by key, the oldest forgotten first. `clock` gives seconds since the epoch."""

    def __init__(self, clock: Callable[[], float], size: int = 10000) -> None:
        self.clock = clock
        self._size = size
        self._kept: OrderedDict[bytes | tuple[str, str], Remembered] = OrderedDict()

    def put(self, key: bytes | tuple[str, str], value: Remembered) -> None:
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def get(self, key: bytes | tuple[str, str]) -> Remembered | None:
        return self._kept.get(key)

    def drop(self, key: bytes | tuple[str, str]) -> None:
        self._kept.pop(key, None)


@dataclass(slots=True)
class Notes:
    """What the library's callbacks note of a handshake: what is wrong with the chain, and what was stapled."""

    errors: list[ChainError] = field(default_factory=list)
    staple: bytes = b""


def note_staple(connection: SSL.Connection, octets: bytes, _data: object) -> bool:
    """Keep a stapled answer; it is looked at when the handshake is over."""
    connection.get_app_data().staple = octets
    return True


class OpenSSLEngine:
    """One connection. `checked` tells whether the context verifies the peer's chain.

    With `memory` sessions are resumed: a server recalls a client by the digest of its certificate, a client its server
    by `memory_key`.
    """

    def __init__(
        self,
        context: SSL.Context,
        *,
        server: bool,
        checked: bool,
        server_name: str = "",
        anchors: Anchors | None = None,
        memory: Memory | None = None,
        memory_key: tuple[str, str] = ("", ""),
        asks_staple: bool = False,
    ) -> None:
        self.established = False
        self.closed = False
        self.failure: HandshakeFailure | None = None
        self.lease: object = None
        self._notes = Notes()
        self.errors = self._notes.errors
        self._checked = checked
        self._server = server
        self._anchors = anchors
        self._memory = memory
        self._memory_key = memory_key
        self._to_keep = False
        self._resumed = False
        self._recalled: Remembered | None = None
        self._anchor: bytes | None = None
        self._connection = SSL.Connection(context, None)
        self._connection.set_app_data(self._notes)  # not the engine itself, which would be a cycle
        self._pipe = openssl_pipe.pipe_of(self._connection)
        if server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
            name = identity.server_name(server_name)
            if name:
                self._connection.set_tlsext_host_name(name.encode("ascii"))
            if asks_staple:
                self._connection.request_ocsp()
            self._recall()

    def _recall(self) -> None:
        """Offer the session that the last connection to this server left."""
        if self._memory is None:
            return
        kept = self._memory.get(self._memory_key)
        if kept is not None and self._memory.clock() < min(kept.until, kept.made + SESSION_LIFE):
            self._recalled = kept
            self._connection.set_session(kept.session)

    def start(self) -> None:
        if not self._server:  # a server has nothing to say before its client
            self._handshake(b"")

    def receive(self, ciphertext: bytes) -> bytes:
        if self.failure is not None or self.closed:
            return b""
        if not self.established:
            self._handshake(ciphertext)
            ciphertext = b""
        if not self.established:
            return b""
        plaintext = self._pipe.read(ciphertext)
        if self._pipe.error:
            self._ended(heard=bool(plaintext))
        if self._to_keep and plaintext:
            self._keep_session()
        return plaintext

    def _handshake(self, ciphertext: bytes) -> None:
        if self._pipe.handshake(ciphertext):
            self.established = True
            self._settle_errors()
        elif self._pipe.error:
            reason = openssl_pipe.reason(self._connection)
            if isinstance(reason, SSL.ZeroReturnError):
                self.failure = HandshakeFailure("handshake_eof", "close_notify during the handshake")
            elif isinstance(reason, NoApplicationProtocol):
                self.failure = HandshakeFailure("no_application_protocol", str(reason))
            else:
                self.failure = failure_of(reason)
                if self._recalled is not None and self._memory is not None:
                    self._memory.drop(self._memory_key)  # whatever was wrong, the next one begins anew

    def _ended(self, *, heard: bool) -> None:
        """No more records come: the peer has said so, or something is wrong."""
        self.closed = True
        reason = openssl_pipe.reason(self._connection)
        # a client that rejects us after a TLS 1.3 handshake says so here, behind its Finished
        if not heard and not isinstance(reason, SSL.ZeroReturnError):
            self.failure = failure_of(reason)

    def _settle_errors(self) -> None:
        """On a resumed session no chain is verified: what is wrong with it was found by the handshake that made it."""
        memory = self._memory
        if memory is None:
            return
        self._resumed = openssl_extra.resumed(self._connection)
        if not self._checked:
            return
        if self._server:
            der = self._pipe.peer()
            if der is None:
                return
            digest = hashlib.sha256(der).digest()
            if self._resumed:
                kept = memory.get(digest)
                self.errors = list(kept.now(memory.clock())) if kept is not None else [_UNKNOWN]
                self._anchor = kept.anchor if kept is not None else None
            else:
                until, anchor = self._valid_until(), self._verified_anchor()
                memory.put(digest, Remembered(tuple(self.errors), memory.clock(), until, anchor=anchor))
        elif self._resumed:
            kept = self._recalled
            self.errors = list(kept.now(memory.clock())) if kept is not None else [_UNKNOWN]
            self._anchor = kept.anchor if kept is not None else None

    def _keep_session(self) -> None:
        """Once the server has spoken: TLS 1.3 sends its tickets behind the handshake, before the first data."""
        assert self._memory is not None
        self._to_keep = False
        session = self._connection.get_session()
        if session is None:
            return
        if self._resumed and self._recalled is not None:
            made, until = self._recalled.made, self._recalled.until  # a renewed ticket proves nothing anew
        else:
            made, until = self._memory.clock(), self._valid_until()
        self._memory.put(self._memory_key, Remembered((), made, until, session, self._verified_anchor()))

    def _verified_anchor(self) -> bytes | None:
        """The certificate of the verified chain that is among those we trust; None where there is none."""
        wanted = self._checked and not self.errors and not self._resumed
        if self._anchor is None and wanted and self._anchors is not None:
            try:
                found = self._anchors.of(self._pipe.verified())
            except Exception:
                return None  # certificates of a peer: whatever is wrong with them, nothing is concluded from it
            self._anchor = found.der if found is not None else None
        return self._anchor

    def _valid_until(self) -> float:
        """When the first certificate of the verified chain, its anchor included, expires; 0 if that cannot be read."""
        connection = self._connection
        try:
            chain = [*(connection.get_verified_chain(as_cryptography=True) or [])]
            chain += connection.get_peer_cert_chain(as_cryptography=True) or []
            return min((c.not_valid_after_utc.timestamp() for c in chain), default=0.0)
        except Exception:
            return 0.0  # certificates of a peer: whatever is wrong with them, nothing is concluded from it

    def send(self, plaintext: bytes) -> None:
        if plaintext and self.failure is None and not self._pipe.write(plaintext):
            self.closed = True

    def data_to_send(self) -> bytes:
        return self._pipe.take()

    def eof(self) -> None:
        if not self.established and self.failure is None:
            self.failure = HandshakeFailure("handshake_eof", "the connection was closed")
        self.closed = True

    def close(self) -> None:
        try:
            self._connection.shutdown()
        except SSL.Error:
            self.closed = True

    def verdict(self) -> TlsVerdict:
        protocol, cipher, bits, group, asked = self._pipe.facts()
        der = self._pipe.peer()
        anchor = self._verified_anchor() if der is not None and not self.errors else None
        # only a session whose chain is in order is kept, and not before somebody has looked at it
        self._to_keep = self._memory is not None and not self._server and not self.errors
        return TlsVerdict(
            protocol=protocol,
            cipher=cipher,
            bits=bits,
            algorithm_bits=168 if "3DES" in cipher or "DES-CBC3" in cipher else bits,
            group=group,
            certificate=certificate(der) if der is not None else None,
            checked=self._checked,
            errors=tuple(self.errors),
            sni=printable(asked.decode("ascii", "replace")) if asked and self._server else "",
            resumed=self._resumed,
            anchor=certificate(anchor) if anchor is not None else None,
        )

    def staple(self) -> bytes:
        """As the protocol of engines has it."""
        return self._notes.staple

    def chain(self) -> list[x509.Certificate]:
        """The certificates that the peer sent, its own first."""
        try:
            return list(self._connection.get_peer_cert_chain(as_cryptography=True) or [])
        except Exception:
            return []  # one that cannot be read
