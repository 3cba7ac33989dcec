"""The OpenSSL engine, through pyOpenSSL and memory BIOs.

The `ssl` module of Python ends a handshake whose client certificate fails, so it cannot do what the manual demands:
record the failure, go on, let policy decide. Here the verify callback notes every error and says yes; whether the chain
verified is then a matter of the verdict.
"""

from __future__ import annotations

import re
from typing import Any

from OpenSSL import SSL, crypto

from quillon.tls.verdict import Certificate, HandshakeFailure, Verdict, chain_cause

_ALERT = re.compile(r"(?:ssl/tls |(?:ssl|tls)v\d+ )alert (.*)")
_READ = 65536
# words of the library to cause codes, first match wins
_REASONS = (
    ("no shared cipher", "no_shared_cipher"),
    ("no suitable signature algorithm", "no_shared_cipher"),
    ("no ciphers available", "no_shared_cipher"),
    ("no suitable key share", "no_shared_cipher"),
    ("no suitable groups", "no_shared_cipher"),
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
)


def failure_of(error: SSL.Error) -> HandshakeFailure:
    """The cause of a failed handshake, out of the error queue of the library."""
    reasons = [str(entry[2]) for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    detail = "; ".join(reason for reason in reasons if reason)
    for reason in reasons:
        alert = _ALERT.search(reason)
        if alert is not None:
            return HandshakeFailure("alert_" + re.sub(r"[^a-z0-9]+", "_", alert[1].lower()).strip("_"), detail)
    for words, cause in _REASONS:
        if words in detail.lower():
            return HandshakeFailure(cause, detail)
    return HandshakeFailure("handshake_failed", detail)


def note_error(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    """Verify callback: keep what is wrong with the chain for the verdict, and go on."""
    if error:
        engine = connection.get_app_data()
        if len(engine.errors) < 16:
            engine.errors.append((chain_cause(error), depth, f"X509 error {error} at depth {depth}"))
    return True


class OpenSSLEngine:
    """One connection. `checked` tells whether the context verifies the peer's chain."""

    def __init__(self, context: SSL.Context, *, server: bool, checked: bool, server_name: str = "") -> None:
        self.established = False
        self.closed = False
        self.failure: HandshakeFailure | None = None
        self.errors: list[tuple[str, int, str]] = []
        self._checked = checked
        self._server = server
        self._connection = SSL.Connection(context, None)
        self._connection.set_app_data(self)
        if server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
            if server_name:
                self._connection.set_tlsext_host_name(server_name.encode("ascii", "ignore"))

    def start(self) -> None:
        self._handshake()

    def receive(self, ciphertext: bytes) -> bytes:
        if self.failure is not None or self.closed:
            return b""
        out: list[bytes] = []
        view = ciphertext
        while view:
            written = self._connection.bio_write(view)
            view = view[written:]
        if not self.established:
            self._handshake()
        if self.established:
            self._read(out)
        return b"".join(out)

    def _handshake(self) -> None:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.ZeroReturnError:
            self.failure = HandshakeFailure("handshake_eof", "close_notify during the handshake")
        except SSL.Error as error:
            self.failure = failure_of(error)
        else:
            self.established = True

    def _read(self, out: list[bytes]) -> None:
        try:
            while True:
                out.append(self._connection.recv(_READ))
        except SSL.WantReadError:
            return
        except SSL.ZeroReturnError:
            self.closed = True
        except SSL.Error as error:
            # a client that rejects us after a TLS 1.3 handshake says so here, behind its Finished
            self.closed = True
            if not out:
                self.failure = failure_of(error)

    def send(self, plaintext: bytes) -> None:
        if not plaintext or self.failure is not None:
            return
        try:
            view = plaintext
            while view:
                sent = self._connection.send(view)
                view = view[sent:]
        except SSL.Error:
            self.closed = True

    def data_to_send(self) -> bytes:
        out: list[bytes] = []
        try:
            while True:
                out.append(self._connection.bio_read(_READ))
        except SSL.WantReadError:
            pass
        return out[0] if len(out) == 1 else b"".join(out)

    def eof(self) -> None:
        if not self.established and self.failure is None:
            self.failure = HandshakeFailure("handshake_eof", "the connection was closed")
        self.closed = True

    def close(self) -> None:
        try:
            self._connection.shutdown()
        except SSL.Error:
            self.closed = True

    def verdict(self) -> Verdict:
        connection = self._connection
        cipher = connection.get_cipher_name() or ""
        bits = connection.get_cipher_bits() or 0
        peer: Any = connection.get_peer_certificate(as_cryptography=False)
        der = crypto.dump_certificate(crypto.FILETYPE_ASN1, peer) if peer is not None else None
        sni = connection.get_servername() if self._server else None
        return Verdict(
            protocol=connection.get_protocol_version_name(),
            cipher=cipher,
            bits=bits,
            algorithm_bits=168 if "3DES" in cipher or "DES-CBC3" in cipher else bits,
            group=connection.get_group_name() or "",
            certificate=Certificate(der) if der is not None else None,
            checked=self._checked,
            errors=tuple(self.errors),
            sni=sni.decode("ascii", "replace") if sni else "",
        )
