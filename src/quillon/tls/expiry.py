"""When certificates end. Shell: reads files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509


def ends(files: Iterable[str]) -> dict[str, float]:
    """The end of the first certificate of each PEM file, in seconds since the epoch; files that cannot be read are left
    out, for whoever loads them says so."""
    found = {}
    for path in files:
        try:
            certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
        except (OSError, ValueError):
            continue
        found[path] = certificate.not_valid_after_utc.timestamp()
    return found
