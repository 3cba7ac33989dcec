"""The certificates that we trust: which of them a chain leads to, which neither library tells."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from quillon.tls.engine import SYSTEM_TRUST
from quillon.tls.verdict import Certificate

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

    def of(self, chain: list[bytes]) -> Certificate | None:
        """The trusted certificate that a chain which has verified leads to."""
        loaded = self._load()
        for der in chain:
            if der in self._ders:
                return Certificate(der)
            element = Certificate(der).parsed
            for anchor in loaded if element is not None else ():
                if element is not None and _issued(element, anchor):
                    return Certificate(anchor.public_bytes(serialization.Encoding.DER))
        return None


def _issued(element: x509.Certificate, anchor: x509.Certificate) -> bool:
    if element.issuer != anchor.subject:
        return False
    try:
        element.verify_directly_issued_by(anchor)
    except Exception:
        return False  # not its issuer, or a certificate of a kind that cannot be compared
    return True
