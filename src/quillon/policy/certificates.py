"""Certificates as policies compare them (own extension)."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from quillon.tls.certificate import unescaped
from quillon.tls.identity import name_matches


def fingerprint(path: Path) -> str:
    """SHA-256 of the first certificate of a PEM file, in lower-case hexadecimal digits. Raises OSError, ValueError."""
    found = x509.load_pem_x509_certificates(path.read_bytes())
    return found[0].fingerprint(hashes.SHA256()).hex()


def names_one_of(san: str, wanted: str) -> bool:
    """Whether a certificate's names, as tls_client_cert_san has them, hold one of the host names wanted, which have
    commas between them and may begin with `*.`; `*` alone is any name."""
    names = [name.removeprefix("DNS:").lower() for name in unescaped(san) if name.startswith("DNS:")]
    for pattern in wanted.lower().split(","):
        if pattern == "*" or any(name == pattern or name_matches(pattern, name) for name in names):
            return True
    return False
