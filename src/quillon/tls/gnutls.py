"""The GnuTLS engine: libgnutls between two buffers.

GnuTLS judges a chain only when asked, so that a bad client certificate does not end the handshake; the question is put
when the verdict is wanted, on a resumed session as on a new one, for its tickets carry the chain.
"""

from __future__ import annotations

import datetime
import errno
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, rsa

from quillon.tls import gnutls_library as g
from quillon.tls.certificate import certificate, printable
from quillon.tls.verdict import HandshakeFailure, TlsVerdict, alert_cause

_CHUNK = 16384
_CAUSES = {
    -8: "protocol_mismatch",  # UNSUPPORTED_VERSION_PACKET
    -347: "protocol_mismatch",  # INAPPROPRIATE_FALLBACK
    -21: "no_shared_cipher",  # UNKNOWN_CIPHER_SUITE
    -87: "no_shared_cipher",  # NO_CIPHER_SUITES
    -106: "no_shared_cipher",  # UNSUPPORTED_SIGNATURE_ALGORITHM
    -423: "no_shared_cipher",  # NO_COMMON_KEY_SHARE
    -344: "no_application_protocol",  # NO_APPLICATION_PROTOCOL
    -210: "handshake_too_large",  # HANDSHAKE_TOO_LARGE
    -32: "no_shared_cipher",  # INSUFFICIENT_CREDENTIALS: none of our keys fits
    -63: "weak_key",  # DH_PRIME_UNACCEPTABLE
    -110: "handshake_eof",  # PREMATURE_TERMINATION
    -54: "handshake_eof",  # PULL_ERROR
    -10: "handshake_eof",  # INVALID_SESSION
}
_NO_CERTIFICATE = {-49, -112}  # NO_CERTIFICATE_FOUND, CERTIFICATE_REQUIRED
# GNUTLS_CERT_* bits of the verification status to cause codes
_STATUS = (
    (1 << 5, "revoked"),
    (1 << 6, "unknown_issuer"),
    (1 << 7, "invalid_ca"),
    (1 << 16, "invalid_ca"),
    (1 << 11, "bad_signature"),
    (1 << 10, "expired"),
    (1 << 9, "not_yet_valid"),
    (1 << 18, "wrong_purpose"),
    (1 << 8, "weak_signature"),
)
_SIGNER_NOT_FOUND = 1 << 6
_ANY_PURPOSE = "2.5.29.37.0"
_SUPPORTED_VERSIONS = 43  # extension number
_VERSIONS = {0x0301: "TLSv1.0", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}
_RECORD_TYPES = (20, 21, 22, 23)
_PURPOSE = {True: b"1.3.6.1.5.5.7.3.2", False: b"1.3.6.1.5.5.7.3.1"}  # what a server and a client want of the peer


class Pipe:
    """Ciphertext that came in and has to go out; what the library's callbacks reach."""

    def __init__(self, context: Any = None) -> None:
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.ended = False
        self.context = context
        self.session: Any = None


class GnuTLSEngine:
    """One connection over a prepared session. `context` made it, and keeps sessions to resume."""

    def __init__(self, context: Any, session: Any, pipe: Pipe, handle: Any, *, server: bool, checked: bool) -> None:
        self.established = False
        self.closed = False
        self.failure: HandshakeFailure | None = None
        self.lease: object = None
        self._ffi, self._lib = g.library()
        self._context = context
        self._session = session
        self._pipe = pipe
        self._handle = handle
        self._server = server
        self._checked = checked
        self._renegotiating = False
        self._heard = False
        self._hello = b""
        self._to_keep = False

    def start(self) -> None:
        self._handshake()

    def receive(self, ciphertext: bytes) -> bytes:
        if self.failure is not None or self.closed:
            return b""
        if not self._heard and not self._is_tls(ciphertext):
            self.failure = HandshakeFailure("not_tls", f"the peer sent {ciphertext[:16]!r}")
            return b""
        self._heard = True
        if self._server and not self.established and len(self._hello) < _CHUNK:
            self._hello += ciphertext
        self._pipe.incoming += ciphertext
        if not self.established or self._renegotiating:
            self._handshake()
        out: list[bytes] = []
        if self.established and not self._renegotiating:
            self._read(out)
        if self._to_keep and out:
            self._to_keep = False
            self._context.keep(self)
        return b"".join(out)

    @staticmethod
    def _is_tls(data: bytes) -> bool:
        """Whether this may be the begin of a TLS record (RFC 8446 5.1)."""
        return not data or (data[0] in _RECORD_TYPES and (len(data) < 2 or data[1] == 3))

    def _handshake(self) -> None:
        while True:
            before = len(self._pipe.incoming)
            code = self._lib.gnutls_handshake(self._session)
            if code == 0:
                self._to_keep = not self.established and not self._server and self._context.keeps
                self.established, self._renegotiating = True, False
                self._hello = b""
                return
            if code in (g.E_AGAIN, g.E_INTERRUPTED):
                if 0 < len(self._pipe.incoming) < before:
                    continue  # it takes so many records at once, and the peer has nothing more to send
                return
            if not self._lib.gnutls_error_is_fatal(code):
                continue  # a warning alert
            if self.established:
                self.closed = True
            else:
                self._failed(code)
                self._context.forget(self)
            return

    def _failed(self, code: int) -> None:
        detail = g.text(self._lib.gnutls_strerror(code))
        if code == g.E_FATAL_ALERT:
            name = g.text(self._lib.gnutls_alert_get_strname(self._lib.gnutls_alert_get(self._session)))
            cause = alert_cause(name.removeprefix("GNUTLS_A_"))
            self.failure = HandshakeFailure(cause, f"{detail} ({name})")
            return
        if code in _NO_CERTIFICATE and self._server:
            cause = "no_client_certificate"
            # RFC 8446 4.4.2.4 and RFC 5246 7.4.6; the library's own choice for 1.2 is decode_error
            modern = self._lib.gnutls_protocol_get_version(self._session) >= g.TLS1_3
            alert = g.ALERT_CERTIFICATE_REQUIRED if modern else g.ALERT_HANDSHAKE_FAILURE
            self._lib.gnutls_alert_send(self._session, g.ALERT_FATAL, alert)
        else:
            cause = _CAUSES.get(code, "handshake_failed")
            if cause == "no_shared_cipher" and self._server and not self._shares_version():
                cause = "protocol_mismatch"  # GnuTLS looks for suites of the version that it would have liked
            if not self._pipe.ended:
                self._lib.gnutls_alert_send_appropriate(self._session, code)
        self.failure = HandshakeFailure(cause, detail)

    def _shares_version(self) -> bool:
        """Whether the ClientHello offers a version of ours; True where it does not say."""
        offered = client_versions(self._hello)
        return not offered or any(_VERSIONS.get(v) in self._context.settings.tls_protocols for v in offered)

    def _read(self, out: list[bytes]) -> None:
        ffi = self._ffi
        buffer = self._context.buffer
        while True:
            got = self._lib.gnutls_record_recv(self._session, buffer, _CHUNK)
            if got > 0:
                out.append(ffi.buffer(buffer, got)[:])
            elif got == 0:
                self.closed = True
                return
            elif got in (g.E_AGAIN, g.E_INTERRUPTED):
                if not self._pipe.incoming:
                    return  # else a ticket was taken, and data stands behind it
            elif got == g.E_REHANDSHAKE:
                if self._may_renegotiate():
                    self._renegotiating = True
                    self._handshake()
                    if self._renegotiating or self.closed:
                        return
                else:
                    self._lib.gnutls_alert_send(self._session, g.ALERT_WARNING, g.ALERT_NO_RENEGOTIATION)
            elif self._lib.gnutls_error_is_fatal(int(got)):
                # a client that rejects us after a TLS 1.3 handshake says so here, behind its Finished
                self.closed = True
                if not out:
                    self._failed(int(got))
                return

    def _may_renegotiate(self) -> bool:
        """Only where it was allowed, and only as RFC 5746 secures it."""
        return bool(
            self._server
            and self._context.settings.tls_allow_renegotiation
            and self._lib.gnutls_safe_renegotiation_status(self._session)
        )

    def send(self, plaintext: bytes) -> None:
        if not plaintext or self.failure is not None:
            return
        view = memoryview(plaintext)
        while view:
            sent = self._lib.gnutls_record_send(self._session, self._ffi.from_buffer(view), len(view))
            if sent in (g.E_AGAIN, g.E_INTERRUPTED):
                continue
            if sent < 0:
                self.closed = True
                return
            view = view[int(sent) :]

    def data_to_send(self) -> bytes:
        out = bytes(self._pipe.outgoing)
        self._pipe.outgoing.clear()
        return out

    def eof(self) -> None:
        self._pipe.ended = True
        if not self.established and self.failure is None:
            self.failure = HandshakeFailure("handshake_eof", "the connection was closed")
        self.closed = True

    def close(self) -> None:
        self._lib.gnutls_bye(self._session, g.SHUT_WR)

    # the verdict ----------------------------------------------------------------------------------------------

    def verdict(self) -> TlsVerdict:
        lib, session = self._lib, self._session
        chain = self._peers()
        cipher = lib.gnutls_cipher_get(session)
        bits = int(lib.gnutls_cipher_get_key_size(cipher)) * 8
        group = lib.gnutls_group_get(session)
        errors = tuple(self._verify(chain)) if chain and self._checked else ()
        anchor = self._context.anchors.of(chain) if chain and self._checked and not errors else None
        return TlsVerdict(
            protocol=g.text(lib.gnutls_protocol_get_name(lib.gnutls_protocol_get_version(session))).replace(
                "TLS", "TLSv", 1
            ),
            cipher=self._suite(cipher),
            bits=bits,
            algorithm_bits=bits,
            group=_group(g.text(lib.gnutls_group_get_name(group))) if group else "",
            certificate=certificate(chain[0]) if chain else None,
            checked=self._checked,
            errors=errors,
            sni=printable(server_name(session)) if self._server else "",
            resumed=bool(lib.gnutls_session_is_resumed(session)),
            anchor=anchor,
        )

    def _suite(self, cipher: int) -> str:
        lib, session = self._lib, self._session
        try:
            name = g.text(lib.gnutls_ciphersuite_get(session))
        except AttributeError:
            name = ""
        if not name:
            name = g.text(
                lib.gnutls_cipher_suite_get_name(lib.gnutls_kx_get(session), cipher, lib.gnutls_mac_get(session))
            )
        return name or g.text(lib.gnutls_cipher_get_name(cipher))

    def _peers(self) -> list[bytes]:
        count = self._ffi.new("unsigned int *")
        data = self._lib.gnutls_certificate_get_peers(self._session, count)
        if data == self._ffi.NULL:
            return []
        return [self._ffi.buffer(data[n].data, data[n].size)[:] for n in range(count[0])]

    def _verify(self, chain: list[bytes]) -> list[tuple[str, int, str]]:
        ffi = self._ffi
        status = ffi.new("unsigned int *")
        purpose = ffi.new("unsigned char[]", _PURPOSE[self._server])
        wanted = ffi.new(
            "vdata_t *", {"type": g.DT_KEY_PURPOSE_OID, "data": purpose, "size": len(_PURPOSE[self._server])}
        )
        code = self._lib.gnutls_certificate_verify_peers(self._session, wanted, 1, status)
        if code < 0:
            return [("certificate_rejected", 0, g.text(self._lib.gnutls_strerror(code)))]
        if not status[0]:
            return []
        if status[0] & _SIGNER_NOT_FOUND and chain[0] in self._context.anchors.ders:
            # the library takes a trusted certificate that is no authority only where it is sent alone
            return _pinned(chain[0], _PURPOSE[self._server].decode("ascii"))
        found = [_shaped(cause, chain, status[0]) for bit, cause in _STATUS if status[0] & bit]
        return found or [("certificate_rejected", 0, f"GnuTLS verification status {status[0]:#x}")]

    @property
    def peer(self) -> tuple[str, str]:
        """A client's key for sessions: server name and address."""
        found: tuple[str, str] = self._pipe.context
        return found

    def session_data(self) -> bytes:
        """The session as the library packs it; empty if it cannot be resumed, or brought no ticket of its own."""
        ticket = self._lib.gnutls_session_get_flags(self._session) & g.SFLAGS_SESSION_TICKET
        if self._lib.gnutls_session_is_resumed(self._session) and not ticket:
            return b""
        datum = self._ffi.new("datum_t *")
        if self._lib.gnutls_session_get_data2(self._session, datum) < 0 or not datum.size:
            return b""
        data: bytes = self._ffi.buffer(datum.data, datum.size)[:]
        self._lib.gnutls_free(datum.data)
        return data

    def staple(self) -> bytes:
        """As the protocol of engines has it."""
        datum = self._ffi.new("datum_t *")
        if self._server or self._lib.gnutls_ocsp_status_request_get(self._session, datum) < 0:
            return b""
        data: bytes = self._ffi.buffer(datum.data, datum.size)[:]
        return data

    def chain(self) -> list[x509.Certificate]:
        """The certificates that the peer sent, its own first."""
        found = [certificate(der).parsed for der in self._peers()]
        return [one for one in found if one is not None]


def _pinned(der: bytes, purpose: str) -> list[tuple[str, int, str]]:
    """What is wrong with a certificate that is itself among those that we trust."""
    leaf = certificate(der).parsed
    if leaf is None:
        return [("certificate_rejected", 0, "the certificate cannot be read")]
    now = datetime.datetime.now(datetime.UTC)
    found = []
    if leaf.not_valid_after_utc < now:
        found.append(("expired", 0, "certificate has expired"))
    if leaf.not_valid_before_utc > now:
        found.append(("not_yet_valid", 0, "certificate is not yet valid"))
    try:
        usage = [oid.dotted_string for oid in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value]
    except x509.ExtensionNotFound:
        usage = [purpose]
    except Exception:
        usage = []  # a peer's octets: the library has an exception for each way to be wrong
    if not {purpose, _ANY_PURPOSE} & set(usage):
        found.append(("wrong_purpose", 0, "unsuitable certificate purpose"))
    if _is_weak(leaf):
        found.append(("weak_key", 0, "the key is too short"))
    return found


def _group(name: str) -> str:
    """The group's name as the other engine writes it."""
    return "X25519MLKEM768" if "MLKEM768" in name.upper() and "25519" in name else name.lower()


def _shaped(cause: str, chain: list[bytes], status: int) -> tuple[str, int, str]:
    """Cause and depth as the other engine tells them: GnuTLS has one status for the whole chain."""
    text = f"GnuTLS verification status {status:#x}"
    parsed = [certificate(der) for der in chain]
    leaf = parsed[0].parsed
    if cause == "unknown_issuer" and parsed[0].subject and parsed[0].subject == parsed[0].issuer:
        return "self_signed", 0, text
    if cause == "unknown_issuer":
        return cause, len(chain) - 1, text
    if cause == "weak_signature" and leaf is not None and _is_weak(leaf):
        return "weak_key", 0, text
    return cause, 0, text


def _is_weak(one: x509.Certificate) -> bool:
    try:
        key = one.public_key()
    except Exception:
        return False  # a key that cannot be read is no short key; the cause stays the library's
    return isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey) and key.key_size < 2048


def client_versions(hello: bytes) -> list[int]:
    """The supported_versions of a ClientHello's first record (RFC 8446 4.2.1); empty if there are none to read."""
    try:
        at = 5 + 4 + 2 + 32  # record and handshake headers, legacy version, random
        at += 1 + hello[at]  # session id
        at += 2 + int.from_bytes(hello[at : at + 2], "big")  # cipher suites
        at += 1 + hello[at]  # compression methods
        end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
        at += 2
        while at < end:
            kind, size = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
            if kind == _SUPPORTED_VERSIONS:
                listed = hello[at + 5 : at + 4 + size]
                return [int.from_bytes(listed[n : n + 2], "big") for n in range(0, len(listed), 2)]
            at += 4 + size
    except IndexError:
        pass
    return []


def server_name(session: Any) -> str:
    """The name that the client asked for (RFC 6066 3), or ""."""
    ffi, lib = g.library()
    size, kind = ffi.new("size_t *", 256), ffi.new("unsigned int *")
    buffer = ffi.new("char[]", 256)
    code = lib.gnutls_server_name_get(session, buffer, size, kind, 0)
    return ffi.buffer(buffer, size[0])[:].decode("ascii", "replace").lower() if code == 0 else ""


def pull(pipe: Pipe, session: Any, buffer: Any, size: int) -> int:
    """Give the library what came in; EAGAIN when there is no more yet."""
    ffi, lib = g.library()
    if not pipe.incoming:
        if pipe.ended:
            return 0
        lib.gnutls_transport_set_errno(session, errno.EAGAIN)
        return -1
    part = pipe.incoming[:size]
    del pipe.incoming[: len(part)]
    ffi.memmove(buffer, part, len(part))
    return len(part)
