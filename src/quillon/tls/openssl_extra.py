"""What OpenSSL has and pyOpenSSL does not offer: the list of groups, whether a session was resumed, and reading and
writing in which nothing to read is no exception and no buffer is made for each call, and whether a chain leads to one
certificate.

The functions come from the bindings that cryptography publishes; the pointers are pyOpenSSL's own. A version of
pyOpenSSL without them shows at once, as an AttributeError in the tests of this module.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL, crypto

_lib, _ffi = Binding.lib, Binding.ffi
_READ = 65536  # octets; a record has 16384 at most (RFC 8446 5.2)
_CLIENT, _SERVER = 1, 2  # X509_PURPOSE_SSL_CLIENT and X509_PURPOSE_SSL_SERVER of x509v3.h
UNREADABLE = 1  # X509_V_ERR_UNSPECIFIED


class _Room(threading.local):
    """Where the library puts what it gives; it is copied at once."""

    def __init__(self) -> None:
        self.octets: Any = _ffi.new("char[]", _READ)


_room = _Room()


def give(connection: SSL.Connection, ciphertext: bytes) -> None:
    """Hand over what the peer has sent. Raises MemoryError."""
    with _ffi.from_buffer(ciphertext) as octets:
        written = _lib.BIO_write(connection._into_ssl, octets, len(ciphertext))
    if written != len(ciphertext):
        raise MemoryError("OpenSSL takes no more octets")  # a BIO in memory takes all or none


def take(connection: SSL.Connection) -> bytes:
    """What is to be sent to the peer."""
    parts: list[bytes] = []
    while True:
        count = _lib.BIO_read(connection._from_ssl, _room.octets, _READ)
        if count <= 0:
            return b"".join(parts)
        part: bytes = _ffi.buffer(_room.octets, count)[:]
        if count < _READ and not parts:
            return part
        parts.append(part)


def handshake(connection: SSL.Connection) -> bool:
    """Go on with the handshake; whether it has ended well. Raises what SSL.Connection.do_handshake does but for
    WantReadError."""
    return _went_on(connection, _lib.SSL_do_handshake(connection._ssl))


def read(connection: SSL.Connection) -> bytes:
    """Plaintext of one record, or nothing where none is whole. Raises what SSL.Connection.recv does but for
    WantReadError."""
    count = _lib.SSL_read(connection._ssl, _room.octets, _READ)
    return _ffi.buffer(_room.octets, count)[:] if _went_on(connection, count) else b""


def _went_on(connection: SSL.Connection, result: int) -> bool:
    if result > 0:
        return True
    if _lib.SSL_get_error(connection._ssl, result) == _lib.SSL_ERROR_WANT_READ:
        return False
    connection._raise_ssl_error(connection._ssl, result)
    raise AssertionError("an error that pyOpenSSL does not know")


def set_groups(context: SSL.Context, names: str) -> bool:
    """Offer these groups in this order, as in `X25519MLKEM768:prime256v1`; False if one of them is unknown."""
    return bool(_lib.SSL_CTX_set1_curves_list(context._context, names.encode()) == 1)


def error_words(number: int) -> str:
    """OpenSSL's words for an X509_V_ERR number."""
    found: bytes = _ffi.string(_lib.X509_verify_cert_error_string(number))
    return found.decode("ascii", "replace")


def resumed(connection: SSL.Connection) -> bool:
    """Whether the handshake continued an earlier session (SSL_session_reused)."""
    return bool(_lib.SSL_session_reused(connection._ssl))


def chain_error(leaf: bytes, above: Sequence[bytes], anchors: Sequence[bytes], *, client: bool = False) -> int:
    """The X509_V_ERR number why a server's certificate, or a `client`'s, and those sent with it, in DER, do not lead to
    one of the `anchors`, root or not, today; 0 if they do."""
    try:
        store = crypto.X509Store()
        for anchor in anchors:
            store.add_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, anchor))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        _lib.X509_STORE_set_purpose(store._store, _CLIENT if client else _SERVER)
        others = [crypto.load_certificate(crypto.FILETYPE_ASN1, der) for der in above]
        own = crypto.load_certificate(crypto.FILETYPE_ASN1, leaf)
        crypto.X509StoreContext(store, own, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        return int(error.errors[0])
    except (crypto.Error, ValueError, TypeError):
        return UNREADABLE
    return 0
