"""What an engine is: the interface between a stream and a TLS library.

An engine is fed ciphertext and gives plaintext; what it has to send is fetched by `data_to_send` after every call. It
never raises for anything that a peer sends: a handshake that fails becomes `failure`, a broken record ends the stream
(`closed`). `verdict` is there once `established` is true.
"""

from __future__ import annotations

from typing import Protocol

from cryptography import x509

from quillon.tls.verdict import HandshakeFailure, TlsVerdict

SYSTEM_TRUST = "system"
SESSION_LIFE = 300  # seconds that a session may be resumed


class ContextError(Exception):
    """The settings cannot be loaded. The message names the file or option and what is wrong with it."""


class ServerContext(Protocol):
    """Certificates and rules of a Listen, loaded."""

    def engine(self) -> Engine: ...


class ClientContext(Protocol):
    """Trust and rules of a delivery, loaded."""

    def engine(self, server_name: str, peer: str) -> Engine:
        """`peer` names who is connected to; a session is continued only with the same one."""


class Engine(Protocol):
    established: bool
    closed: bool
    failure: HandshakeFailure | None
    lease: object  # of whoever counts engines

    def start(self) -> None:
        """Begin; the client's first flight is ready to send afterwards."""

    def receive(self, ciphertext: bytes) -> bytes:
        """Take what the peer sent; give the plaintext that it holds, which may be empty."""

    def send(self, plaintext: bytes) -> None:
        """Encrypt; only once established."""

    def data_to_send(self) -> bytes: ...

    def eof(self) -> None:
        """The peer closed the connection below TLS."""

    def close(self) -> None:
        """Say close_notify."""

    def verdict(self) -> TlsVerdict: ...

    def chain(self) -> list[x509.Certificate]:
        """The certificates that the peer sent, its own first; those that can be read."""

    def staple(self) -> bytes:
        """The answer of an OCSP responder that a host has stapled, in DER; empty if there is none."""
