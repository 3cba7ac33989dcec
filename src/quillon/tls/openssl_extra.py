"""What OpenSSL has and pyOpenSSL does not offer: the list of groups, and whether a session was resumed.

The functions come from the bindings that cryptography publishes; only the two pointers are pyOpenSSL's own. A version
of pyOpenSSL without them shows at once, as an AttributeError in the tests of this module.
"""

from __future__ import annotations

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

_lib = Binding.lib


def set_groups(context: SSL.Context, names: str) -> bool:
    """Offer these groups in this order, as in `X25519MLKEM768:prime256v1`; False if one of them is unknown."""
    return bool(_lib.SSL_CTX_set1_curves_list(context._context, names.encode()) == 1)


def error_words(number: int) -> str:
    """OpenSSL's words for an X509_V_ERR number."""
    found: bytes = Binding.ffi.string(_lib.X509_verify_cert_error_string(number))
    return found.decode("ascii", "replace")


def resumed(connection: SSL.Connection) -> bool:
    """Whether the handshake continued an earlier session (SSL_session_reused)."""
    return bool(_lib.SSL_session_reused(connection._ssl))
