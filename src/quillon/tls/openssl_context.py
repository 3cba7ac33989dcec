"""Settings to OpenSSL contexts: certificates, keys, CAs, protocols, ciphers and groups."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

from quillon.config.settings import InboundTls, OutboundTls
from quillon.tls import openssl_extra
from quillon.tls.anchors import Anchors
from quillon.tls.engine import SESSION_LIFE, SYSTEM_TRUST, ContextError
from quillon.tls.identity import default_pairs, match_identity
from quillon.tls.openssl import Memory, OpenSSLEngine, choose_protocol, note_error, note_staple
from quillon.tls.revocation import fresh, staple_of

_OP_ALLOW_CLIENT_RENEGOTIATION = 1 << 8  # SSL_OP_ALLOW_CLIENT_RENEGOTIATION, ssl.h
_MODE_NO_AUTO_CHAIN = 1 << 3  # SSL_MODE_NO_AUTO_CHAIN, ssl.h
_BEGIN = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
# A share for X25519 and the offer of the post-quantum group, which a server that prefers it asks for (RFC 8446 4.1.4):
# the hello stays in one packet, 331 octets instead of 1550, and old middleboxes let it pass.
_WITHOUT_DHE = "?X25519MLKEM768:?*X25519:?prime256v1:?X448:?secp384r1:?secp521r1"
CLIENT_GROUPS = f"{_WITHOUT_DHE}:?ffdhe2048:?ffdhe3072"
_VERSIONS = {
    "TLSv1.0": (SSL.TLS1_VERSION, SSL.OP_NO_TLSv1),
    "TLSv1.1": (SSL.TLS1_1_VERSION, SSL.OP_NO_TLSv1_1),
    "TLSv1.2": (SSL.TLS1_2_VERSION, SSL.OP_NO_TLSv1_2),
    "TLSv1.3": (SSL.TLS1_3_VERSION, SSL.OP_NO_TLSv1_3),
}


class OpenSSLServer:
    """A Listen's side of TLS. Raises ContextError when made."""

    def __init__(self, settings: InboundTls, clock: Callable[[], float]) -> None:
        self._checked = settings.tls_verify_mode != "none"
        self._anchors = Anchors(settings.tls_client_ca)
        self._memory = Memory(clock) if settings.tls_session_resumption else None
        self._identities = [(one.name, _server_context(settings, one.pairs, clock)) for one in settings.tls_identities]
        self._default = _server_context(settings, default_pairs(settings), clock)
        if self._identities:
            self._default.set_tlsext_servername_callback(self._choose)

    def _choose(self, connection: SSL.Connection) -> None:
        """The certificate for the name that the client asks for; RFC 6066 3: without a match the default serves."""
        asked = (connection.get_servername() or b"").decode("ascii", "replace").lower()
        found = match_identity([name for name, _ in self._identities], asked)
        if found is not None:
            connection.set_context(self._identities[found][1])

    def engine(self) -> OpenSSLEngine:
        return OpenSSLEngine(
            self._default, server=True, checked=self._checked, anchors=self._anchors, memory=self._memory
        )


class OpenSSLClient:
    """A delivery's side of TLS. Raises ContextError when made."""

    def __init__(self, settings: OutboundTls, clock: Callable[[], float]) -> None:
        self._checked = settings.tls_verify != "no"
        self._anchors = Anchors(settings.tls_ca)
        self._memory = Memory(clock, 1000) if settings.tls_session_resumption else None
        self._asks_staple = settings.tls_ocsp != "no"
        self._context = _client_context(settings)
        if self._asks_staple:
            self._context.set_ocsp_client_callback(note_staple)

    def engine(self, server_name: str, peer: str) -> OpenSSLEngine:
        return OpenSSLEngine(
            self._context,
            server=False,
            checked=self._checked,
            anchors=self._anchors,
            server_name=server_name,
            memory=self._memory,
            memory_key=(server_name, peer),
            asks_staple=self._asks_staple,
        )


def _server_context(
    settings: InboundTls, pairs: tuple[tuple[str, str], ...], clock: Callable[[], float]
) -> SSL.Context:
    context = _context(SSL.TLS_SERVER_METHOD, settings)
    for certificate, key in pairs:
        _load_pair(context, certificate, key)
    if settings.tls_ocsp_response and pairs:
        octets, own = staple_of(settings.tls_ocsp_response, pairs[0][0])
        context.set_ocsp_server_callback(lambda _, __: octets if fresh(octets, own, clock()) else b"")
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_SINGLE_DH_USE)
    if settings.tls_session_resumption:
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # tickets only: no state that fills up
        context.set_session_id(b"quillon")
        context.set_timeout(SESSION_LIFE)
    else:
        context.set_options(SSL.OP_NO_TICKET)
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
            _try_file("TLS_Client_CA", ca, context.load_verify_locations)
            if not settings.tls_any_client:  # who names no authority asks for a certificate of any (RFC 8446 4.2.4)
                _try(f"TLS_Client_CA {ca}", lambda: context.load_client_ca(ca.encode()))
            _trust_partial_chains(context)
            _complete_chains(context, [certificate for certificate, _ in pairs])
    context.set_alpn_select_callback(choose_protocol)
    return context


def _trust_partial_chains(context: SSL.Context) -> None:
    """A certificate in the file of authorities is trusted as it stands, root or not (RFC 5280 6.1.1 d)."""
    store = context.get_cert_store()
    if store is not None:
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)


def _client_context(settings: OutboundTls) -> SSL.Context:
    context = _context(SSL.TLS_CLIENT_METHOD, settings)
    if not settings.tls_ec_curve_names:
        # a library that does not know this notation keeps its own list
        openssl_extra.set_groups(context, CLIENT_GROUPS if settings.tls_enable_dhe_ciphers else _WITHOUT_DHE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    if not settings.tls_session_resumption:
        context.set_options(SSL.OP_NO_TICKET)
    if settings.tls_certificate:
        _load_pair(context, settings.tls_certificate, settings.tls_key or "")
    if settings.tls_verify == "no":
        context.set_verify(SSL.VERIFY_NONE)
        return context
    context.set_verify(SSL.VERIFY_PEER, note_error)
    if settings.tls_ca == SYSTEM_TRUST:
        context.set_default_verify_paths()
    elif settings.tls_ca:
        _try_file("TLS_CA", settings.tls_ca, context.load_verify_locations)
        _trust_partial_chains(context)
    if settings.tls_certificate:
        _complete_chains(context, [settings.tls_certificate])
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
    suites = settings.tlsv13_ciphersuites
    if suites:
        _try(f"TLSv13_Ciphersuites {suites!r}", lambda: context.set_tls13_ciphersuites(suites.encode()))
    groups = settings.tls_ec_curve_names
    if groups and not openssl_extra.set_groups(context, groups):
        raise ContextError(f"TLS_EC_Curve_Names {groups!r}: a group is unknown to OpenSSL")
    if settings.tls_enable_dhe_ciphers:
        path = settings.tls_dhparams_file or str(resources.files(__package__).joinpath("ffdhe2048.pem"))
        _try_file("TLS_DHParams_File", path, context.load_tmp_dh)
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


def _load_pair(context: SSL.Context, certificate: str, key: str) -> None:
    _try_file("TLS_Certificate", certificate, context.use_certificate_chain_file)
    source = key or certificate
    _try(f"TLS_Key {source}", lambda: context.use_privatekey(_private_key(source)))
    _try(f"TLS_Key {source} and TLS_Certificate {certificate}", context.check_privatekey)


def _complete_chains(context: SSL.Context, paths: Sequence[str]) -> None:
    """With a certificate that stands alone in its file those authorities are sent that it leads to. The library would
    look for them, and verify all signatures, at every handshake; it does so still where they cannot be found now."""
    store = context.get_cert_store()
    try:
        for path in paths:
            octets = Path(path).read_bytes()
            if store is None or len(_BEGIN.findall(octets)) > 1:
                continue
            own = crypto.load_certificate(crypto.FILETYPE_PEM, octets)
            chain = crypto.X509StoreContext(store, own).get_verified_chain()
            if len(chain) > 1:
                with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # a chain can be given in a file only
                    file.write(b"".join(crypto.dump_certificate(crypto.FILETYPE_PEM, one) for one in chain))
                    file.flush()
                    context.use_certificate_chain_file(file.name)
    except (OSError, SSL.Error, crypto.Error, crypto.X509StoreContextError):
        return
    context.set_mode(_MODE_NO_AUTO_CHAIN)


def _private_key(path: str) -> Any:
    try:
        return serialization.load_pem_private_key(Path(path).read_bytes(), None)
    except (TypeError, UnsupportedAlgorithm) as error:  # encrypted, or of a kind that TLS does not know
        raise ValueError(str(error)) from None


def _try_file(what: str, path: str, do: Callable[[str], object]) -> None:
    """`do` with a file's path; why a file cannot be opened is nothing that OpenSSL would tell."""

    def opened() -> None:
        with open(path, "rb"):
            do(path)

    _try(f"{what} {path}", opened)


def _try(what: str, do: Callable[[], object]) -> None:
    try:
        do()
    except OSError as error:
        raise ContextError(f"{what}: {error.strerror or error}") from None
    except (SSL.Error, crypto.Error, ValueError, TypeError) as error:
        reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
        detail = "; ".join(str(entry[2]) for entry in reasons if entry[2]) or str(error) or type(error).__name__
        raise ContextError(f"{what}: {detail}") from None
