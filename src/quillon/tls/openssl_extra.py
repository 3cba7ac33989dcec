"""What OpenSSL has and pyOpenSSL does not offer: the list of groups, whether a session was resumed, and whether a chain
leads to one certificate.

The functions come from the bindings that cryptography publishes; the pointers are pyOpenSSL's own. A version of
pyOpenSSL without them shows at once, as an AttributeError in the tests of this module.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL, crypto

_lib, _ffi = Binding.lib, Binding.ffi
_CLIENT, _SERVER = 1, 2  # X509_PURPOSE_SSL_CLIENT and X509_PURPOSE_SSL_SERVER of x509v3.h
UNREADABLE = 1  # X509_V_ERR_UNSPECIFIED


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
