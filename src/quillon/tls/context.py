"""Contexts: certificates, keys, CAs, protocols and ciphers, loaded once per distinct setting and shared.

A context cannot be changed once it is in use, and building one costs a thousand times a lookup. The key is the frozen
settings themselves. A new `Contexts` is made at reload, so that sessions in flight keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from OpenSSL import SSL, crypto

from quillon.config.settings import InboundTls, OutboundTls
from quillon.tls.openssl import OpenSSLEngine, note_error

SYSTEM_TRUST = "system"
_OP_ALLOW_CLIENT_RENEGOTIATION = 1 << 8  # SSL_OP_ALLOW_CLIENT_RENEGOTIATION, ssl.h
_VERSIONS = {
    "TLSv1.0": (SSL.TLS1_VERSION, SSL.OP_NO_TLSv1),
    "TLSv1.1": (SSL.TLS1_1_VERSION, SSL.OP_NO_TLSv1_1),
    "TLSv1.2": (SSL.TLS1_2_VERSION, SSL.OP_NO_TLSv1_2),
    "TLSv1.3": (SSL.TLS1_3_VERSION, SSL.OP_NO_TLSv1_3),
}


class ContextError(Exception):
    """The settings cannot be loaded. The message names the file or option and what is wrong with it."""


class Contexts:
    """Engines for sessions, from contexts that are built on first use."""

    def __init__(self) -> None:
        self._inbound: dict[InboundTls, SSL.Context] = {}
        self._outbound: dict[OutboundTls, SSL.Context] = {}

    def server(self, settings: InboundTls) -> OpenSSLEngine:
        """An engine for a session that a client opened. Raises ContextError."""
        context = self._inbound.get(settings)
        if context is None:
            context = self._inbound[settings] = _server_context(settings)
        return OpenSSLEngine(context, server=True, checked=settings.tls_verify_mode != "none")

    def client(self, settings: OutboundTls, server_name: str) -> OpenSSLEngine:
        """An engine for a delivery. Raises ContextError."""
        context = self._outbound.get(settings)
        if context is None:
            context = self._outbound[settings] = _client_context(settings)
        checked = settings.tls_verify != "no"
        return OpenSSLEngine(context, server=False, checked=checked, server_name=server_name)

    def load(self, settings: InboundTls) -> None:
        """Build a server context now, so that what is wrong shows before a client comes. Raises ContextError."""
        if settings not in self._inbound:
            self._inbound[settings] = _server_context(settings)


def _server_context(settings: InboundTls) -> SSL.Context:
    context = _context(SSL.TLS_SERVER_METHOD, settings)
    if not settings.tls_certificate:
        raise ContextError("TLS_Certificate is not set")
    _load_pair(context, settings.tls_certificate, settings.tls_key)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_SINGLE_DH_USE | SSL.OP_NO_TICKET)
    # a resumed session would carry the client's certificate without showing it again
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(_OP_ALLOW_CLIENT_RENEGOTIATION if settings.tls_allow_renegotiation else SSL.OP_NO_RENEGOTIATION)
    if settings.tls_verify_mode == "none":
        context.set_verify(SSL.VERIFY_NONE)
    else:
        mode = SSL.VERIFY_PEER
        if settings.tls_verify_mode == "require":
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(mode, note_error)
        if settings.tls_client_ca:
            ca = settings.tls_client_ca
            _try(f"TLS_Client_CA {ca}", lambda: context.load_verify_locations(ca))
            _try(f"TLS_Client_CA {ca}", lambda: context.load_client_ca(ca.encode()))
    return context


def _client_context(settings: OutboundTls) -> SSL.Context:
    context = _context(SSL.TLS_CLIENT_METHOD, settings)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    if settings.tls_certificate:
        _load_pair(context, settings.tls_certificate, settings.tls_key)
    if settings.tls_verify == "no":
        context.set_verify(SSL.VERIFY_NONE)
        return context
    context.set_verify(SSL.VERIFY_PEER, note_error)
    if settings.tls_ca == SYSTEM_TRUST:
        context.set_default_verify_paths()
    elif settings.tls_ca:
        ca = settings.tls_ca
        _try(f"TLS_CA {ca}", lambda: context.load_verify_locations(ca))
    return context


def _context(method: int, settings: InboundTls | OutboundTls) -> SSL.Context:
    context = SSL.Context(method)
    versions = [version for version in _VERSIONS if version in settings.tls_protocols]
    context.set_min_proto_version(_VERSIONS[versions[0]][0])
    context.set_max_proto_version(_VERSIONS[versions[-1]][0])
    for version, (_, option) in _VERSIONS.items():
        if version not in settings.tls_protocols:
            context.set_options(option)
    context.set_options(SSL.OP_NO_COMPRESSION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    ciphers = cipher_list(settings)
    _try(f"TLS_Ciphers {ciphers!r}", lambda: context.set_cipher_list(ciphers.encode()))
    if settings.tls_enable_dhe_ciphers:
        path = settings.tls_dhparams_file or str(resources.files(__package__).joinpath("ffdhe2048.pem"))
        _try(f"TLS_DHParams_File {path}", lambda: context.load_tmp_dh(path))
    return context


def cipher_list(settings: InboundTls | OutboundTls) -> str:
    """The OpenSSL cipher list: what was written, without DHE if so configured.

    TLS 1.0 and 1.1, which have to be asked for by name, sign with SHA-1, which security level 0 alone allows.
    """
    text = settings.tls_ciphers or "DEFAULT"
    if text.upper().startswith("NORMAL"):
        text = "DEFAULT"  # GnuTLS's word for it, warned about at load
    if not settings.tls_enable_dhe_ciphers:
        text += ":!DHE:!kDHE"
    if {"TLSv1.0", "TLSv1.1"} & settings.tls_protocols and "@SECLEVEL" not in text:
        text += ":@SECLEVEL=0"
    return text


def _load_pair(context: SSL.Context, certificate: str, key: str | None) -> None:
    _try(f"TLS_Certificate {certificate}", lambda: context.use_certificate_chain_file(certificate))
    source = key or certificate
    _try(f"TLS_Key {source}", lambda: context.use_privatekey(_private_key(source)))
    _try(f"TLS_Key {source} and TLS_Certificate {certificate}", context.check_privatekey)


def _private_key(path: str) -> crypto.PKey:
    # an empty passphrase: an encrypted key fails at once and does not ask on the terminal
    return crypto.load_privatekey(crypto.FILETYPE_PEM, Path(path).read_bytes(), b"")


def _try(what: str, do: Callable[[], object]) -> None:
    try:
        do()
    except OSError as error:
        raise ContextError(f"{what}: {error.strerror or error}") from None
    except (SSL.Error, crypto.Error, ValueError) as error:
        reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
        detail = "; ".join(str(entry[2]) for entry in reasons if entry[2]) or str(error) or type(error).__name__
        raise ContextError(f"{what}: {detail}") from None
