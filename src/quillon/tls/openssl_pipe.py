"""Octets through one OpenSSL connection, one call for each thing to do: nothing to read is no exception, and no buffer
is made for each call.

`PythonPipe` does it through the bindings that cryptography publishes. Where there was a compiler `_openssl.c` does the
same without Python between the library's calls; it is used if the bindings' functions have the types that it was
written for. The pointers are pyOpenSSL's own: a version without them shows at once, as an AttributeError in the tests.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

try:
    from quillon.tls import _openssl as _compiled

    compiled: Any = _compiled
except ImportError:  # it was installed without a compiler
    compiled = None

_lib, _ffi = Binding.lib, Binding.ffi
_ROOM = 65536  # octets; a record has 16384 at most (RFC 8446 5.2)


class _Room(threading.local):
    """Where the library puts what it gives; it is copied at once."""

    def __init__(self) -> None:
        self.octets: Any = _ffi.new("char[]", _ROOM)


_room = _Room()


class OpenSSLPipe(Protocol):
    """What both have. `error` is the SSL_ERROR number of what has ended the connection, 0 while it goes on;
    `reason` has an exception for it."""

    @property
    def error(self) -> int: ...
    def handshake(self, ciphertext: bytes, /) -> bool:
        """Go on with the handshake; whether it has ended well. Raises MemoryError."""

    def read(self, ciphertext: bytes, /) -> bytes:
        """The plaintext of all records that are whole. Raises MemoryError."""

    def write(self, plaintext: bytes, /) -> bool:
        """Encrypt; whether that was possible."""

    def take(self) -> bytes:
        """What is to be sent to the peer."""

    def facts(self) -> tuple[str, str, int, str, bytes]:
        """Protocol, cipher, its secret bits, group, and the name that a client has asked for."""

    def peer(self) -> bytes | None:
        """The peer's certificate in DER."""

    def verified(self) -> list[bytes]:
        """The chain that was verified, in DER, the peer's own certificate first and what it leads to last."""


class PythonPipe:
    """Without a compiler."""

    def __init__(self, connection: SSL.Connection) -> None:
        self.error = 0
        self._connection = connection

    def handshake(self, ciphertext: bytes) -> bool:
        self._give(ciphertext)
        _lib.ERR_clear_error()
        return self._went_on(_lib.SSL_do_handshake(self._connection._ssl))

    def read(self, ciphertext: bytes) -> bytes:
        self._give(ciphertext)
        _lib.ERR_clear_error()
        parts: list[bytes] = []
        room = _room.octets
        while True:
            count = _lib.SSL_read(self._connection._ssl, room, _ROOM)
            if not self._went_on(count):
                return b"".join(parts)
            parts.append(_ffi.buffer(room, count)[:])

    def write(self, plaintext: bytes) -> bool:
        _lib.ERR_clear_error()
        with _ffi.from_buffer(plaintext) as octets:
            at = 0
            while at < len(plaintext):
                count = _lib.SSL_write(self._connection._ssl, octets + at, len(plaintext) - at)
                if not self._went_on(count):
                    _lib.ERR_clear_error()
                    return False
                at += count
        return True

    def take(self) -> bytes:
        parts: list[bytes] = []
        room = _room.octets
        while (count := _lib.BIO_read(self._connection._from_ssl, room, _ROOM)) > 0:
            parts.append(_ffi.buffer(room, count)[:])
        return b"".join(parts)

    def facts(self) -> tuple[str, str, int, str, bytes]:
        one = self._connection
        cipher, group, asked = one.get_cipher_name() or "", one.get_group_name() or "", one.get_servername() or b""
        return one.get_protocol_version_name(), cipher, one.get_cipher_bits() or 0, group, asked

    def peer(self) -> bytes | None:
        found: Any = self._connection.get_peer_certificate(as_cryptography=False)
        return crypto.dump_certificate(crypto.FILETYPE_ASN1, found) if found is not None else None

    def verified(self) -> list[bytes]:
        chain = self._connection.get_verified_chain(as_cryptography=True) or []
        return [one.public_bytes(Encoding.DER) for one in chain]

    def _give(self, ciphertext: bytes) -> None:
        with _ffi.from_buffer(ciphertext) as octets:
            written = _lib.BIO_write(self._connection._into_ssl, octets, len(ciphertext)) if ciphertext else 0
        if written != len(ciphertext):
            raise MemoryError("OpenSSL takes no more octets")  # a BIO in memory takes all or none

    def _went_on(self, result: int) -> bool:
        if result > 0:
            return True
        error = _lib.SSL_get_error(self._connection._ssl, result)
        if error != _lib.SSL_ERROR_WANT_READ:
            self.error = error
        return False


def _bound(module: Any) -> bool:
    """Whether the compiled one can be used: it has the addresses of its functions then."""
    if module is None:
        return False
    addresses = {}
    try:
        from cryptography.hazmat.bindings._rust import _openssl as bindings  # noqa: PLC0415

        ffi = bindings.ffi
        for name, wanted in module.types().items():
            pointer = ffi.addressof(bindings.lib, name)
            if ffi.typeof(pointer).cname != wanted:
                return False
            addresses[name] = int(ffi.cast("uintptr_t", pointer))
    except (ImportError, AttributeError):
        return False  # another version of the bindings, without one of them
    module.bind(addresses)
    return True


def pipe_of(connection: SSL.Connection) -> OpenSSLPipe:
    """A pipe for a connection."""
    if _USED is None:
        return PythonPipe(connection)
    pointers = (connection._ssl, connection._into_ssl, connection._from_ssl)
    found: OpenSSLPipe = _USED.Pipe(connection, *(int(_ffi.cast("uintptr_t", pointer)) for pointer in pointers))
    return found


def reason(connection: SSL.Connection) -> Exception:
    """What has ended a connection, right after its pipe has come to `error`, as pyOpenSSL raises it."""
    try:
        connection._raise_ssl_error(connection._ssl, -1)
    except Exception as error:  # what a callback has raised is among them
        return error
    raise AssertionError("an error that pyOpenSSL does not know")


_USED = compiled if _bound(compiled) else None
