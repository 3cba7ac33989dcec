"""The certificates that we trust: which of them a chain leads to, which neither library tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from quillon.tls.certificate import Certificate, certificate
from quillon.tls.engine import SYSTEM_TRUST

LONGEST = 10  # certificates of a path
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"  # what TLS_CA = system means on Debian


class Anchors:
    """The trusted certificates of a file, for what the library does not tell: which of them a chain leads to."""

    def __init__(self, path: str | None) -> None:
        self._path = SYSTEM_BUNDLE if path == SYSTEM_TRUST else path
        self._loaded: list[x509.Certificate] | None = None
        self._ders: frozenset[bytes] = frozenset()

    @property
    def ders(self) -> frozenset[bytes]:
        """All of them in DER."""
        self._load()
        return self._ders

    @property
    def certificates(self) -> list[x509.Certificate]:
        """All of them."""
        return self._load()

    def _load(self) -> list[x509.Certificate]:
        if self._loaded is None:
            try:
                self._loaded = x509.load_pem_x509_certificates(Path(self._path).read_bytes()) if self._path else []
            except (OSError, ValueError):
                self._loaded = []
            self._ders = frozenset(one.public_bytes(serialization.Encoding.DER) for one in self._loaded)
        return self._loaded

    def issued(self, chain: Sequence[x509.Certificate]) -> bool:
        """Whether signatures lead from the first certificate of a chain to a trusted one, whenever that was: what else
        makes a chain good is not asked."""
        trusted = self._load()
        at: x509.Certificate | None = chain[0] if chain else None
        for _ in range(LONGEST):
            if at is None or at in trusted or issuer_of(at, trusted) is not None:
                break
            at = issuer_of(at, chain[1:])
        return at is not None and (at in trusted or issuer_of(at, trusted) is not None)

    def of(self, chain: list[bytes]) -> Certificate | None:
        """The trusted certificate that a chain which has verified leads to."""
        loaded = self._load()
        for der in chain:
            if der in self._ders:
                return certificate(der)
        for der in chain:
            element = certificate(der).parsed
            for anchor in loaded if element is not None else ():
                if element is not None and _issued(element, anchor):
                    return certificate(anchor.public_bytes(serialization.Encoding.DER))
        return None


def _issued(element: x509.Certificate, anchor: x509.Certificate) -> bool:
    if element.issuer != anchor.subject:
        return False
    try:
        element.verify_directly_issued_by(anchor)
    except Exception:
        return False  # not its issuer, or a certificate of a kind that cannot be compared
    return True


def issuer_of(certificate: x509.Certificate, others: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """The certificate among others that has issued one; None for none."""
    for one in others:
        try:
            if one.subject == certificate.issuer and one != certificate:
                certificate.verify_directly_issued_by(one)
                return one
        except Exception:  # noqa: S112 - a peer's certificate: whatever is wrong with it, it is not the issuer
            continue
    return None
