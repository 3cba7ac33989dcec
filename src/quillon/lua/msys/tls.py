"""`msys.tls`: certificates as policies compare them (own extension)."""

from __future__ import annotations

from pathlib import Path

from quillon.lua.msys.api import Api, Library
from quillon.policy.certificates import fingerprint, names_one_of

library = Library()


@library.of_api("msys.tls.fingerprint")
def fingerprint_of(api: Api, name: str) -> str:
    """SHA-256 of the first certificate of a PEM file, as tls_client_cert_sha256 and ..._anchor_sha256 have it."""
    return fingerprint(Path(api.environment.folder) / name)


@library.function("msys.tls.names_one_of")
def names_of_one(san: str | None, wanted: str) -> bool:
    """Whether tls_client_cert_san holds one of the host names wanted, with commas between; `*` is any name."""
    return names_one_of(san or "", wanted)
