"""Settings to GnuTLS credentials and priorities."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quillon.config.settings import InboundTls, OutboundTls
from quillon.tls import gnutls_library as g
from quillon.tls import identity
from quillon.tls.anchors import Anchors
from quillon.tls.engine import SESSION_LIFE, SYSTEM_TRUST, ContextError
from quillon.tls.gnutls import GnuTLSEngine, Pipe, pull, server_name
from quillon.tls.identity import default_pairs, match_identity
from quillon.tls.revocation import fresh, staple_of

_MAX_SESSIONS = 1000
_NO_DHE = ":-DHE-RSA:-DHE-DSS:-GROUP-FFDHE2048:-GROUP-FFDHE3072:-GROUP-FFDHE4096:-GROUP-FFDHE6144:-GROUP-FFDHE8192"


def priority_string(settings: InboundTls | OutboundTls) -> str:
    """TLS_Ciphers as GnuTLS reads it.

    Versions follow TLS_Protocols unless the string names some itself, keys of less than 2048 bits do not verify unless
    it names a profile: the library's own NORMAL still has TLS 1.0.
    """
    text = settings.tls_ciphers or "NORMAL"
    if text.upper() == "DEFAULT":
        text = "NORMAL"
    if "VERS-" not in text.upper():
        versions = sorted(settings.tls_protocols, reverse=True)
        text += ":-VERS-ALL" + "".join(":+VERS-" + version.replace("TLSv", "TLS") for version in versions)
    if "%PROFILE" not in text.upper():
        text += ":%PROFILE_MEDIUM"
    return text if settings.tls_enable_dhe_ciphers else text + _NO_DHE


class _Callbacks:
    """Functions that the library calls; one set for all sessions, which find their pipe by a handle."""

    def __init__(self) -> None:
        ffi, lib = g.library()

        @ffi.callback("ssize_t(void *, const void *, size_t)", error=-1)  # type: ignore[untyped-decorator]
        def push(handle: Any, data: Any, size: int) -> int:
            ffi.from_handle(handle).outgoing.extend(ffi.buffer(data, size))
            return size

        @ffi.callback("ssize_t(void *, void *, size_t)", error=-1)  # type: ignore[untyped-decorator]
        def take(handle: Any, buffer: Any, size: int) -> int:
            pipe = ffi.from_handle(handle)
            return pull(pipe, pipe.session, buffer, size)

        @ffi.callback("int(void *, unsigned int)", error=-1)  # type: ignore[untyped-decorator]
        def waiting(handle: Any, _milliseconds: int) -> int:
            return 1 if ffi.from_handle(handle).incoming else 0

        @ffi.callback("int(session_t)", error=0)  # type: ignore[untyped-decorator]
        def choose(session: Any) -> int:
            ffi.from_handle(lib.gnutls_session_get_ptr(session)).context.choose(session)
            return 0

        self.push, self.take, self.waiting, self.choose = push, take, waiting, choose


_callbacks: _Callbacks | None = None


def _session(context: Any, flags: int, priority: Any, credentials: Any) -> tuple[Any, Pipe, Any]:
    """A session over a fresh pipe, and the handle that keeps the pipe known to the library."""
    global _callbacks
    ffi, lib = g.library()
    if _callbacks is None:
        _callbacks = _Callbacks()
    made = ffi.new("session_t *")
    _check("session", lib.gnutls_init(made, flags | g.NONBLOCK))
    session = ffi.gc(made[0], lib.gnutls_deinit)
    lib.gnutls_handshake_set_max_packet_length(session, g.MAX_HANDSHAKE)
    pipe = Pipe(context)
    pipe.session = made[0]
    handle = ffi.new_handle(pipe)
    lib.gnutls_transport_set_ptr(session, handle)
    lib.gnutls_session_set_ptr(session, handle)
    lib.gnutls_transport_set_push_function(session, _callbacks.push)
    lib.gnutls_transport_set_pull_function(session, _callbacks.take)
    lib.gnutls_transport_set_pull_timeout_function(session, _callbacks.waiting)
    _check("priority", lib.gnutls_priority_set(session, priority))
    _check("credentials", lib.gnutls_credentials_set(session, g.CRD_CERTIFICATE, credentials))
    return session, pipe, handle


class GnuTLSServer:
    """A Listen's side of TLS. Raises ContextError when made."""

    keeps = False

    def __init__(self, settings: InboundTls, clock: Callable[[], float]) -> None:
        ffi, lib = g.library()
        self.settings = settings
        self.buffer = ffi.new("char[]", 16384)
        self._priority = _priority(settings)
        self._identities = [
            (one.name, _server_credentials(settings, one.pairs, clock)) for one in settings.tls_identities
        ]
        self._default = _server_credentials(settings, default_pairs(settings), clock)
        modes = {"none": g.REQUEST_IGNORE, "require": g.REQUEST_REQUIRE}
        self._request = modes.get(settings.tls_verify_mode or "", g.REQUEST)
        self._smtp = ffi.new("unsigned char[]", b"smtp")
        self._protocol = ffi.new("datum_t *", {"data": self._smtp, "size": 4})
        self.anchors = Anchors(settings.tls_client_ca if settings.tls_verify_mode != "none" else None)
        self._ticket_key: Any = None
        if settings.tls_session_resumption:
            self._ticket_key = ffi.new("datum_t *")
            _check("TLS_Session_Resumption", lib.gnutls_session_ticket_key_generate(self._ticket_key))

    def engine(self) -> GnuTLSEngine:
        _, lib = g.library()
        flags = g.SERVER | (0 if self._ticket_key else g.NO_TICKETS)
        session, pipe, handle = _session(self, flags, self._priority, self._default)
        # smtp, or none of what the client offers (RFC 7301 3.2, RFC 9325 3.8)
        lib.gnutls_alpn_set_protocols(session, self._protocol, 1, g.ALPN_MANDATORY)
        lib.gnutls_certificate_server_set_request(session, self._request)
        if self.settings.tls_any_client:  # who names no authority asks for a certificate of any (RFC 8446 4.2.4)
            lib.gnutls_certificate_send_x509_rdn_sequence(session, 1)
        if self._identities:
            assert _callbacks is not None
            lib.gnutls_handshake_set_post_client_hello_function(session, _callbacks.choose)
        if self._ticket_key:
            lib.gnutls_session_ticket_enable_server(session, self._ticket_key)
            lib.gnutls_db_set_cache_expiration(session, SESSION_LIFE)
        return GnuTLSEngine(self, session, pipe, handle, server=True, checked=self.settings.tls_verify_mode != "none")

    def choose(self, session: Any) -> None:
        """The certificate for the name that the client asks for; without a match the default serves."""
        _, lib = g.library()
        found = match_identity([name for name, _ in self._identities], server_name(session))
        if found is not None:
            lib.gnutls_credentials_set(session, g.CRD_CERTIFICATE, self._identities[found][1])

    def forget(self, engine: GnuTLSEngine) -> None:
        """A server keeps no sessions: its tickets do."""


class GnuTLSClient:
    """A delivery's side of TLS. Raises ContextError when made."""

    def __init__(self, settings: OutboundTls) -> None:
        ffi, lib = g.library()
        self.settings = settings
        self.buffer = ffi.new("char[]", 16384)
        self.keeps = settings.tls_session_resumption
        self._sessions: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._priority = _priority(settings)
        self._credentials = _credentials()
        # what is stapled is looked at as TLS_OCSP says, by neither library
        lib.gnutls_certificate_set_verify_flags(self._credentials, g.VERIFY_DISABLE_CRL_CHECKS)
        self.anchors = Anchors(settings.tls_ca if settings.tls_verify != "no" else None)
        if settings.tls_certificate:
            _load_pair(self._credentials, settings.tls_certificate, settings.tls_key or "")
        if settings.tls_verify != "no" and settings.tls_ca == SYSTEM_TRUST:
            _check("TLS_CA system", lib.gnutls_certificate_set_x509_system_trust(self._credentials))
        elif settings.tls_verify != "no" and settings.tls_ca:
            _trust("TLS_CA", self._credentials, settings.tls_ca)

    def engine(self, server_name: str, peer: str) -> GnuTLSEngine:
        _, lib = g.library()
        flags = g.CLIENT | (0 if self.keeps else g.NO_TICKETS)
        session, pipe, handle = _session((server_name, peer), flags, self._priority, self._credentials)
        name = identity.server_name(server_name).encode("ascii")
        if name:
            lib.gnutls_server_name_set(session, g.NAME_DNS, name, len(name))
        kept = self._sessions.get((server_name, peer))
        if kept is not None:
            lib.gnutls_session_set_data(session, kept, len(kept))
        return GnuTLSEngine(self, session, pipe, handle, server=False, checked=self.settings.tls_verify != "no")

    def keep(self, engine: GnuTLSEngine) -> None:
        """Keep the session of a connection for the next one to the same server."""
        data = engine.session_data()
        if data:
            self._sessions[engine.peer] = data
            self._sessions.move_to_end(engine.peer)
            if len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)

    def forget(self, engine: GnuTLSEngine) -> None:
        """The handshake failed: the next one begins anew."""
        self._sessions.pop(engine.peer, None)


def _priority(settings: InboundTls | OutboundTls) -> Any:
    ffi, lib = g.library()
    text = priority_string(settings).encode()
    made, fault = ffi.new("priority_t *"), ffi.new("const char **")
    source = ffi.new("char[]", text)
    if lib.gnutls_priority_init(made, source, fault) < 0:
        wrong = g.text(fault[0]).partition(":-VERS-ALL")[0].partition(":%PROFILE")[0] if fault[0] != ffi.NULL else ""
        raise ContextError(
            f"TLS_Ciphers {settings.tls_ciphers!r} is no GnuTLS priority string"
            + (f": it is wrong from {wrong!r} on" if wrong else "")
        )
    return ffi.gc(made[0], lib.gnutls_priority_deinit)


def _credentials() -> Any:
    ffi, lib = g.library()
    made = ffi.new("credentials_t *")
    _check("credentials", lib.gnutls_certificate_allocate_credentials(made))
    return ffi.gc(made[0], lib.gnutls_certificate_free_credentials)


def _server_credentials(settings: InboundTls, pairs: tuple[tuple[str, str], ...], clock: Callable[[], float]) -> Any:
    made = _credentials()
    for certificate, key in pairs:
        _load_pair(made, certificate, key)
    if settings.tls_ocsp_response and pairs:
        octets, own = staple_of(settings.tls_ocsp_response, pairs[0][0])
        if fresh(octets, own, clock()):  # the library sends none that has become too old since
            path = settings.tls_ocsp_response.encode()
            code = g.library()[1].gnutls_certificate_set_ocsp_status_request_file(made, path, 0)
            _check(f"TLS_OCSP_Response {settings.tls_ocsp_response}", code)
    if settings.tls_client_ca and settings.tls_verify_mode != "none":
        _trust("TLS_Client_CA", made, settings.tls_client_ca)
    if settings.tls_enable_dhe_ciphers:
        _set_dh(made, settings.tls_dhparams_file)
    return made


def _load_pair(credentials: Any, certificate: str, key: str) -> None:
    ffi, lib = g.library()
    source = key or certificate
    for path in (certificate, source):
        _readable(path)
    code = lib.gnutls_certificate_set_x509_key_file2(
        credentials, certificate.encode(), source.encode(), g.PEM, ffi.NULL, 0
    )
    _check(f"TLS_Certificate {certificate} and TLS_Key {source}", code)


def _trust(option: str, credentials: Any, path: str) -> None:
    _, lib = g.library()
    _readable(path)
    code = lib.gnutls_certificate_set_x509_trust_file(credentials, path.encode(), g.PEM)
    _check(f"{option} {path}", code if code else -1)


def _set_dh(credentials: Any, path: str | None) -> None:
    ffi, lib = g.library()
    if not path:
        _check("DH parameters", lib.gnutls_certificate_set_known_dh_params(credentials, g.SEC_PARAM_MEDIUM))
        return
    data = Path(path).read_bytes() if _readable(path) else b""
    content = ffi.new("unsigned char[]", data)
    made = ffi.new("dh_params_t *")
    _check("DH parameters", lib.gnutls_dh_params_init(made))
    datum = ffi.new("datum_t *", {"data": content, "size": len(data)})
    _check(f"TLS_DHParams_File {path}", lib.gnutls_dh_params_import_pkcs3(made[0], datum, g.PEM))
    lib.gnutls_certificate_set_dh_params(credentials, made[0])  # in use as long as the credentials: never freed


def _readable(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError as error:
        raise ContextError(f"{path}: {error.strerror}") from None


def _check(what: str, code: int) -> None:
    if code < 0:
        _, lib = g.library()
        raise ContextError(f"{what}: {g.text(lib.gnutls_strerror(code))}")
