"""Connection and message context: what policy scripts read and write (manual, policy context variables).

Both are dictionaries of strings. The connection context lives as long as the connection; the message context is emptied
with every message, at RSET and at EHLO. A key that does not apply is absent, never "no".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quillon.mail import shown
from quillon.mail.reply import Reply
from quillon.tls.certificate import escaped
from quillon.tls.verdict import TlsVerdict


class Context:
    """What one session hands to policy. `reply` is what a script said with set_code or disconnect.

    `place` is the line of a script that spoke last. `results` are those of mail authentication, for the
    Authentication-Results field (RFC 8601); `fields` are header fields to add beside it, `facts` what modules keep of
    the message for each other.
    """

    def __init__(self, connection: dict[str, str] | None = None, message: dict[str, str] | None = None) -> None:
        self.connection: dict[str, str] = {} if connection is None else connection
        self.message: dict[str, str] = {} if message is None else message
        self.reply: Reply | None = None
        self.disconnect = False
        self.module = ""
        self.place = ""
        self.results: list[str] = []
        self.fields: list[str] = []
        self.facts: dict[str, object] = {}

    def new_message(self) -> None:
        """Empty the message context."""
        self.message, self.facts = {}, {}
        self.results, self.fields = [], []

    def begin_question(self) -> None:
        """Forget what was decided before."""
        self.reply, self.disconnect = None, False

    def forget_clear_text(self) -> None:
        """STARTTLS: what the client said in clear no longer counts (RFC 3207 4.2); `Context = [ ]` keys stay."""
        for key in ("ehlo_string", "ehlo_domain", "auth_name", "auth_status", "auth_user", "can_relay"):
            self.connection.pop(key, None)
        self.new_message()


def not_text(values: Mapping[Any, Any]) -> str | None:
    """What is wrong with a context that holds more than texts, as one that a policy in Python has set may; or None."""
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, str):
            return f"the context holds {key!r} = {value!r:.80}, and it holds texts only"
    return None


def tls_variables(verdict: TlsVerdict) -> dict[str, str]:
    """The TLS keys of the connection context after a handshake. `tls_client_*` only where a certificate was shown."""
    found = {
        "tls": "on",
        "tls_cipher": verdict.cipher,
        "tls_cipher_algbits": str(verdict.algorithm_bits),
        "tls_cipher_usebits": str(verdict.bits),
        "tls_protocol": verdict.protocol,
        "tls_group": verdict.group,
        "tls_sni": verdict.sni,
    }
    certificate = verdict.certificate
    if certificate is not None and verdict.checked:
        names, left = shown.joined(map(escaped, certificate.alternative_names), shown.CONTEXT_VALUE)
        found |= {
            "tls_client_cert_subject": certificate.subject,
            "tls_client_cert_subject_cn": certificate.subject_cn,
            "tls_client_cert_issuer": certificate.issuer,
            "tls_client_cert_issuer_cn": certificate.issuer_cn,
            "tls_client_cert_san": names,
            "tls_client_cert_san_left_out": str(left or ""),
            "tls_client_cert_sha256": certificate.sha256,
            "tls_client_cert_spki_sha256": certificate.spki_sha256,
        }
        if verdict.chain_verified:
            found["tls_client_verified"] = "yes"
            found["tls_client_verified_by"] = verdict.by_policy
            if verdict.anchor is not None:
                found["tls_client_cert_anchor_sha256"] = verdict.anchor.sha256
                found["tls_client_cert_anchor_subject"] = verdict.anchor.subject
        else:
            found["tls_client_verify_error"] = verdict.cause
            depth = next((str(d) for cause, d, _ in verdict.errors if cause == verdict.cause), "")
            found["tls_client_verify_depth"] = depth
    return {key: shown.cut(value, shown.CONTEXT_VALUE) for key, value in found.items() if value}
