"""The frozen result of a handshake, and the one cause code that each failure has.

The codes stand in `quillon.tls.causes`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import dataclass
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from quillon.mail.event import TlsFacts

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


_SAN_KINDS: dict[type[x509.GeneralName], str] = {
    x509.DNSName: "DNS",
    x509.IPAddress: "IP",
    x509.RFC822Name: "EMAIL",
    x509.UniformResourceIdentifier: "URI",
}


@dataclass(frozen=True)
class Certificate:
    """A peer's own certificate, parsed when asked."""

    der: bytes

    @cached_property
    def parsed(self) -> x509.Certificate | None:
        """The certificate, or None where it is too malformed to read."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a peer's certificate deserves is not said on our stderr
                return x509.load_der_x509_certificate(self.der)
        except Exception:
            return None  # a peer's octets: the library has an exception for each way to be wrong

    @cached_property
    def subject(self) -> str:
        """`/C=FI/O=Bank/CN=mx.bank.fi`, the one-line form of OpenSSL."""
        return _name(self.parsed, issuer=False)

    @cached_property
    def issuer(self) -> str:
        return _name(self.parsed, issuer=True)

    @cached_property
    def subject_cn(self) -> str:
        return _common_name(self.parsed, issuer=False)

    @cached_property
    def issuer_cn(self) -> str:
        return _common_name(self.parsed, issuer=True)

    @cached_property
    def alternative_names(self) -> tuple[str, ...]:
        """subjectAltName entries as `DNS:`, `IP:`, `EMAIL:` or `URI:` and the value; others are left out."""
        if self.parsed is None:
            return ()
        try:
            names = self.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:
            return ()  # none, or none that can be read
        return tuple(
            f"{_SAN_KINDS[type(name)]}:{printable(str(name.value))}" for name in names if type(name) in _SAN_KINDS
        )

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the certificate in lower-case hexadecimal digits."""
        return hashlib.sha256(self.der).hexdigest()

    @cached_property
    def spki_sha256(self) -> str:
        """SHA-256 of the public key (SubjectPublicKeyInfo), as DANE and key pinning use it."""
        if self.parsed is None:
            return ""
        try:
            key = self.parsed.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        except Exception:
            return ""
        return hashlib.sha256(key).hexdigest()


def _rdn_name(certificate: x509.Certificate | None, issuer: bool) -> x509.Name | None:
    if certificate is None:
        return None
    try:
        return certificate.issuer if issuer else certificate.subject
    except Exception:
        return None


def _name(certificate: x509.Certificate | None, issuer: bool) -> str:
    name = _rdn_name(certificate, issuer)
    if name is None:
        return ""
    return "".join(
        f"/{attribute.rfc4514_attribute_name}={printable(attribute.value)}" for rdn in name.rdns for attribute in rdn
    )


def _common_name(certificate: x509.Certificate | None, issuer: bool) -> str:
    name = _rdn_name(certificate, issuer)
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME) if name is not None else []
    return printable(found[-1].value) if found else ""


def printable(value: str | bytes) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return "".join(c if c.isprintable() else "?" for c in text)


@dataclass(frozen=True)
class Verdict:
    """What a finished handshake found out.

    `bits` are the secret bits of the cipher, `algorithm_bits` those of its algorithm. `checked` tells whether the chain
    was verified at all; `errors` are (cause, depth, text) of what was wrong with it, in the order found.
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

    def facts(self, *, verified: bool | None, cause: str = "", detail: str = "") -> TlsFacts:
        """For logs: `verified` is the judgement, which may include the name."""
        certificate = self.certificate
        return TlsFacts(
            protocol=self.protocol,
            cipher=self.cipher,
            bits=self.bits,
            group=self.group,
            verified=verified,
            cause=cause,
            detail=detail or next((text for c, _, text in self.errors if c == cause), ""),
            subject=certificate.subject if certificate else "",
            issuer=certificate.issuer if certificate else "",
            fingerprint=certificate.sha256 if certificate else "",
            algorithm_bits=self.algorithm_bits,
            subject_cn=certificate.subject_cn if certificate else "",
            issuer_cn=certificate.issuer_cn if certificate else "",
            resumed=self.resumed,
        )


@dataclass(frozen=True)
class HandshakeFailure:
    """A handshake that did not end well: the cause code and the library's words."""

    cause: str
    detail: str = ""

    def facts(self) -> TlsFacts:
        return TlsFacts(cause=self.cause, detail=self.detail)
