"""Enforced reception: mail of the domains in the file `partners` only over TLS and from a client whose certificate the
partner's own authority has issued, for one of its names; AUTH only over TLS. partners.lua does the same in Lua: load
one of them.

    policy "partners" { module = "partners.py" }

The listener needs TLS_Certificate, TLS_Key, "STARTTLS" among its SMTP_Extensions, and TLS_Client_CA with the
authorities that issue the partners' client certificates: that one of them has verified does not yet tell whose it is.
The file is read again when it has changed, without a reload.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from quillon.policy.python import Session, fingerprint, names_one_of

FILE = Path(__file__).with_name("partners")


class Partner(NamedTuple):
    """SHA-256 of the authority's certificate, names of the client, SHA-256 of its key or nothing."""

    authority: str
    names: str
    key: str


class Partners:
    """The table: domains, each with what its clients have to show."""

    def __init__(self) -> None:
        self._wanted: dict[str, Partner] = {}
        self._stamp = (0, 0)
        self._read()  # one that cannot be read is not loaded

    def _read(self) -> dict[str, Partner]:
        """A table that cannot be read later stops mail: nothing is let in that was to be enforced."""
        stat = FILE.stat()
        if self._stamp != (stat.st_mtime_ns, stat.st_ino):
            rows = [line.split("#")[0].split() for line in FILE.read_text().splitlines()]
            self._wanted = {row[0].lower(): _partner(*row) for row in rows if row}
            self._stamp = (stat.st_mtime_ns, stat.st_ino)
        return self._wanted

    def validate_mailfrom(self, session: Session) -> None:
        domain = session.message_context["mailfrom_domain"].lower()
        wanted = self._read().get(domain)
        if wanted is None:
            return
        connection = session.connection_context
        if connection.get("tls") != "on":
            session.reject(550, f"5.7.10 mail from {domain} is accepted over TLS only")
        elif connection.get("tls_client_verified") != "yes":
            cause = connection.get("tls_client_verify_error", "no_client_certificate")
            session.reject(550, f"5.7.1 mail from {domain} needs a verified client certificate ({cause})")
        elif not _is(wanted, connection):
            session.reject(550, f"5.7.1 mail from {domain} needs its own client certificate")

    def core_validate_auth_hook(self, session: Session) -> None:
        if session.connection_context.get("tls") != "on":
            session.reject(530, "5.7.0 Must issue a STARTTLS command first")


def _partner(domain: str, authority: str, names: str, key: str = "") -> Partner:
    try:
        return Partner(fingerprint(FILE.parent / authority), names, key.lower().replace(":", ""))
    except (OSError, ValueError) as error:
        raise ValueError(f"partners: {domain}: {error}") from None


def _is(wanted: Partner, connection: dict[str, str]) -> bool:
    """Whether a client whose certificate has verified is that partner."""
    return (
        connection.get("tls_client_cert_anchor_sha256") == wanted.authority
        and names_one_of(connection.get("tls_client_cert_san", ""), wanted.names)
        and wanted.key in ("", connection.get("tls_client_cert_spki_sha256"))
    )
