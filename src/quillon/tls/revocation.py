"""Whether certificates of a chain were revoked, by lists in a file (RFC 5280 5). The same for both engines, which read
no lists themselves here: neither says of a list that is missing what the other says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from quillon.tls.engine import ContextError

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_LONGEST = 10  # certificates of a path
ChainError = tuple[str, int, str]


class Revocations:
    """The lists of a file: several in PEM, or one in DER. Raises ContextError."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            octets = Path(path).read_bytes()
            blocks = _BLOCK.findall(octets)
            self._lists = [x509.load_pem_x509_crl(block) for block in blocks] or [x509.load_der_x509_crl(octets)]
        except OSError as error:
            raise ContextError(f"TLS_CRL {path}: {error.strerror}") from None
        except ValueError as error:
            raise ContextError(f"TLS_CRL {path}: it holds no revocation list: {error}") from None

    def errors(
        self, chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: float, *, hard: bool
    ) -> list[ChainError]:
        """What the lists say of a chain that is in order otherwise, its own certificate first, up to one of `anchors`,
        of which no list is wanted. Without `hard` a list that is missing or outdated says nothing."""
        if not chain:
            return []
        found: list[ChainError] = []
        certificate, depth = chain[0], 0
        while certificate not in anchors and depth < _LONGEST:
            issuer = _issuer(certificate, [*chain[1:], *anchors])
            if issuer is None:
                # the library has found a way to a trusted one that is not seen here
                found += [("crl_missing", depth, f"the issuer is not at hand (depth {depth})")] if hard else []
                break
            cause, words = self._ask(certificate, issuer, now)
            if cause == "revoked" or (cause and hard):
                found.append((cause, depth, f"{words} (depth {depth})"))
            certificate, depth = issuer, depth + 1
        return found

    def _ask(self, certificate: x509.Certificate, issuer: x509.Certificate, now: float) -> tuple[str, str]:
        """The cause why a certificate is not known to be good, and words; empty if it is."""
        lists = [one for one in self._lists if one.issuer == issuer.subject and _signs(issuer, one)]
        if not lists:
            return "crl_missing", f"{self.path} has no list of {issuer.subject.rfc4514_string()}"
        newest = max(lists, key=lambda one: one.last_update_utc)
        if any(one.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None for one in lists):
            return "revoked", f"serial number {certificate.serial_number:x} is revoked"
        until = newest.next_update_utc
        if until is not None and until < datetime.fromtimestamp(now, UTC):
            name = issuer.subject.rfc4514_string()
            return "crl_outdated", f"the list of {name} was to be renewed by {until:%Y-%m-%d %H:%M} UTC"
        return "", ""


def _issuer(certificate: x509.Certificate, others: Sequence[x509.Certificate]) -> x509.Certificate | None:
    for one in others:
        try:
            if one.subject == certificate.issuer and one != certificate:
                certificate.verify_directly_issued_by(one)
                return one
        except Exception:  # noqa: S112 - a peer's certificate: whatever is wrong with it, it is not the issuer
            continue
    return None


def _signs(issuer: x509.Certificate, one: x509.CertificateRevocationList) -> bool:
    try:
        return one.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except Exception:
        return False  # a key of a kind that signs no lists
