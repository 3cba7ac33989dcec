"""libgnutls by cffi in ABI mode: the declarations that the engine needs, and finding the library.

Declared against GnuTLS 3.6 and later, whose soname is 30. Numbers are those of gnutls/gnutls.h and gnutls/x509.h.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cffi

from quillon.tls.engine import ContextError

SONAME = "libgnutls.so.30"

SERVER, CLIENT, NONBLOCK, NO_TICKETS = 1, 2, 8, 1 << 10
CRD_CERTIFICATE = 1
PEM = 1
VERIFY_DISABLE_CRL_CHECKS = 1 << 9  # and stapled answers, which it takes for lists
REQUEST_IGNORE, REQUEST, REQUEST_REQUIRE = 0, 1, 2
SHUT_WR = 1
SFLAGS_SESSION_TICKET = 1 << 7
NAME_DNS = 1
DT_KEY_PURPOSE_OID = 2
SEC_PARAM_MEDIUM = 3
ALERT_WARNING, ALERT_FATAL = 1, 2
ALERT_HANDSHAKE_FAILURE, ALERT_NO_RENEGOTIATION, ALERT_CERTIFICATE_REQUIRED = 40, 100, 116
TLS1_3 = 5
E_FATAL_ALERT, E_WARNING_ALERT, E_AGAIN, E_INTERRUPTED, E_REHANDSHAKE = -12, -16, -28, -52, -37
E_PREMATURE = -110
ALPN_MANDATORY = 1
MAX_HANDSHAKE = 102400  # octets of a handshake message, as OpenSSL's max_cert_list has it

_DECLARATIONS = """
typedef void *session_t;
typedef void *credentials_t;
typedef void *priority_t;
typedef void *dh_params_t;
typedef struct { unsigned char *data; unsigned int size; } datum_t;
typedef struct { int type; unsigned char *data; unsigned int size; } vdata_t;
typedef ssize_t (*push_t)(void *, const void *, size_t);
typedef ssize_t (*pull_t)(void *, void *, size_t);
typedef int (*pull_timeout_t)(void *, unsigned int);
typedef int (*post_client_hello_t)(session_t);

const char *gnutls_check_version(const char *);
const char *gnutls_strerror(int);
int gnutls_error_is_fatal(int);
extern void (*gnutls_free)(void *);  // a variable that holds the function
int gnutls_init(session_t *, unsigned int);
void gnutls_deinit(session_t);
int gnutls_handshake(session_t);
int gnutls_bye(session_t, int);
ssize_t gnutls_record_send(session_t, const void *, size_t);
ssize_t gnutls_record_recv(session_t, void *, size_t);
void gnutls_transport_set_ptr(session_t, void *);
void gnutls_transport_set_push_function(session_t, push_t);
void gnutls_transport_set_pull_function(session_t, pull_t);
void gnutls_transport_set_pull_timeout_function(session_t, pull_timeout_t);
void gnutls_transport_set_errno(session_t, int);
void gnutls_session_set_ptr(session_t, void *);
void *gnutls_session_get_ptr(session_t);
void gnutls_handshake_set_post_client_hello_function(session_t, post_client_hello_t);
int gnutls_server_name_set(session_t, int, const void *, size_t);
int gnutls_server_name_get(session_t, void *, size_t *, unsigned int *, unsigned int);
int gnutls_priority_init(priority_t *, const char *, const char **);
void gnutls_priority_deinit(priority_t);
int gnutls_priority_set(session_t, priority_t);
int gnutls_credentials_set(session_t, int, void *);
int gnutls_certificate_allocate_credentials(credentials_t *);
void gnutls_certificate_free_credentials(credentials_t);
int gnutls_certificate_set_x509_key_file2(credentials_t, const char *, const char *, int, const char *, unsigned int);
int gnutls_certificate_set_x509_trust_file(credentials_t, const char *, int);
int gnutls_certificate_set_x509_system_trust(credentials_t);
int gnutls_certificate_set_known_dh_params(credentials_t, int);
int gnutls_dh_params_init(dh_params_t *);
void gnutls_dh_params_deinit(dh_params_t);
int gnutls_dh_params_import_pkcs3(dh_params_t, const datum_t *, int);
void gnutls_certificate_set_dh_params(credentials_t, dh_params_t);
void gnutls_certificate_server_set_request(session_t, int);
void gnutls_certificate_send_x509_rdn_sequence(session_t, int);
int gnutls_certificate_set_ocsp_status_request_file(credentials_t, const char *, unsigned int);
int gnutls_ocsp_status_request_get(session_t, datum_t *);
void gnutls_certificate_set_verify_flags(credentials_t, unsigned int);
int gnutls_certificate_verify_peers(session_t, vdata_t *, unsigned int, unsigned int *);
const datum_t *gnutls_certificate_get_peers(session_t, unsigned int *);
int gnutls_alert_get(session_t);
const char *gnutls_alert_get_strname(int);
int gnutls_alert_send(session_t, int, int);
int gnutls_alert_send_appropriate(session_t, int);
unsigned gnutls_safe_renegotiation_status(session_t);
int gnutls_protocol_get_version(session_t);
const char *gnutls_protocol_get_name(int);
int gnutls_cipher_get(session_t);
size_t gnutls_cipher_get_key_size(int);
int gnutls_kx_get(session_t);
int gnutls_mac_get(session_t);
const char *gnutls_cipher_suite_get_name(int, int, int);
const char *gnutls_cipher_get_name(int);
int gnutls_group_get(session_t);
const char *gnutls_group_get_name(int);
int gnutls_session_is_resumed(session_t);
unsigned gnutls_session_get_flags(session_t);
int gnutls_session_ticket_key_generate(datum_t *);
int gnutls_session_ticket_enable_server(session_t, const datum_t *);
void gnutls_db_set_cache_expiration(session_t, int);
int gnutls_session_get_data2(session_t, datum_t *);
int gnutls_session_set_data(session_t, const void *, size_t);
int gnutls_alpn_set_protocols(session_t, const datum_t *, unsigned, unsigned int);
void gnutls_handshake_set_max_packet_length(session_t, size_t);
"""
_NEWER = "const char *gnutls_ciphersuite_get(session_t);"  # since 3.7.4


@cache
def library() -> tuple[cffi.FFI, Any]:
    """The declarations and the library. Raises ContextError where it is not installed."""
    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    ffi.cdef(_NEWER)
    try:
        found = ffi.dlopen(SONAME)
    except OSError:
        raise ContextError(
            f"TLS_Engine = gnutls needs {SONAME}, which is not installed (Debian: apt install libgnutls30)"
        ) from None
    return ffi, found


def text(pointer: Any) -> str:
    """A C string; empty for NULL."""
    ffi, _ = library()
    return ffi.string(pointer).decode("ascii", "replace") if pointer != ffi.NULL else ""
