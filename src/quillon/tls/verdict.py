"""The frozen result of a handshake, and the one cause code that each failure has.

The codes stand in `quillon.tls.causes`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quillon.mail import shown
from quillon.mail.event import TlsFacts
from quillon.tls.certificate import Certificate

# X509_V_ERR_* of x509_vfy.h
_CHAIN_CAUSES = {
    2: "unknown_issuer",
    20: "unknown_issuer",
    21: "unknown_issuer",
    19: "unknown_issuer",
    18: "self_signed",
    9: "not_yet_valid",
    10: "expired",
    7: "bad_signature",
    23: "revoked",
    24: "invalid_ca",
    25: "invalid_ca",
    47: "invalid_ca",
    48: "invalid_ca",
    79: "invalid_ca",
    26: "wrong_purpose",
    28: "wrong_purpose",
    66: "weak_key",
    67: "weak_key",
    68: "weak_signature",
}
# which of several errors of one chain is told: the first that is present
_ORDER = ("rejected_by_policy", "revoked", "self_signed", "unknown_issuer", "bad_signature", "expired", "not_yet_valid")


def alert_cause(name: str) -> str:
    """`alert_unknown_ca` out of a library's words for an alert that the other side sent."""
    return "alert_" + re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def chain_cause(error: int) -> str:
    """The cause code of an X509_V_ERR number; empty for 0."""
    return _CHAIN_CAUSES.get(error, "certificate_rejected") if error else ""


@dataclass(frozen=True)
class TlsVerdict:
    """What a finished handshake found out.

    `bits` are the secret bits of the cipher, `algorithm_bits` those of its algorithm. `checked` tells whether the chain
    was verified at all; `errors` are (cause, depth, text) of what was wrong with it, in the order found. `anchor` is
    the certificate that we trust and the chain leads to, `by_policy` the module that found good what was not.
    """

    protocol: str
    cipher: str
    bits: int
    algorithm_bits: int
    group: str
    certificate: Certificate | None
    checked: bool
    errors: tuple[tuple[str, int, str], ...] = ()
    sni: str = ""
    resumed: bool = False
    anchor: Certificate | None = None
    by_policy: str = ""

    @property
    def cause(self) -> str:
        """The cause code of the chain; empty if it verified or was not to be verified."""
        if not self.checked:
            return ""
        if self.certificate is None:
            return "no_certificate"
        causes = [cause for cause, _, _ in self.errors]
        return next((cause for cause in _ORDER if cause in causes), causes[0] if causes else "")

    @property
    def chain_verified(self) -> bool:
        return self.checked and not self.cause

    @property
    def level(self) -> str:
        """What the chain proves: none, ca, or policy where a module vouches for it; names are judged elsewhere."""
        if self.by_policy:
            return "policy"
        return "ca" if self.chain_verified else "none"

    def facts(
        self,
        *,
        verified: bool | None,
        cause: str = "",
        detail: str = "",
        level: str = "",
        matched: str = "",
    ) -> TlsFacts:
        """For logs: `verified` is the judgement, `level` and `matched` what it rests on."""
        certificate, anchor = self.certificate, self.anchor
        text = detail or next((text for c, _, text in self.errors if c == cause), "")
        return TlsFacts(
            protocol=self.protocol,
            cipher=self.cipher,
            bits=self.bits,
            group=self.group,
            verified=verified,
            cause=cause,
            detail=_short(text),
            subject=_short(certificate.subject) if certificate else "",
            issuer=_short(certificate.issuer) if certificate else "",
            fingerprint=certificate.sha256 if certificate else "",
            algorithm_bits=self.algorithm_bits,
            subject_cn=_short(certificate.subject_cn) if certificate else "",
            issuer_cn=_short(certificate.issuer_cn) if certificate else "",
            resumed=self.resumed,
            level=level or self.level,
            matched=matched,
            anchor=_short(anchor.subject) if anchor else "",
            anchor_sha256=anchor.sha256 if anchor else "",
            ends=certificate.ends if certificate else 0.0,
        )


def _short(text: str) -> str:
    return shown.line(text, shown.NAME)


@dataclass(frozen=True)
class HandshakeFailure:
    """A handshake that did not end well: the cause code and the library's words."""

    cause: str
    detail: str = ""

    def facts(self) -> TlsFacts:
        return TlsFacts(cause=self.cause, detail=_short(self.detail))
