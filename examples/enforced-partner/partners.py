"""Enforced reception: mail of the domains in the file `partners` only over TLS and from a client whose certificate has
verified; AUTH only over TLS. partners.lua does the same in Lua: load one of them.

    policy "partners" { module = "partners.py" }

The listener needs TLS_Certificate, TLS_Key, "STARTTLS" among its SMTP_Extensions, and TLS_Client_CA with the authority
that issues the partners' client certificates. The file is read again when it has changed, without a reload.
"""

from __future__ import annotations

from pathlib import Path

from quillon.policy.python import Session

FILE = Path(__file__).with_name("partners")


class Partners:
    """The table: domains, each with a fingerprint (SHA-256 of the certificate) or `*` for any that verifies."""

    def __init__(self) -> None:
        self._wanted: dict[str, str] = {}
        self._stamp = (0, 0)

    def _read(self) -> dict[str, str]:
        """A table that cannot be read stops mail: nothing is let in that was to be enforced."""
        stat = FILE.stat()
        if self._stamp != (stat.st_mtime_ns, stat.st_ino):
            rows = [line.split("#")[0].split() for line in FILE.read_text().splitlines()]
            self._wanted = {row[0].lower(): row[1].lower().replace(":", "") for row in rows if len(row) >= 2}
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
        elif wanted not in ("*", connection.get("tls_client_cert_sha256")):
            session.reject(550, f"5.7.1 mail from {domain} needs its own client certificate")

    def core_validate_auth_hook(self, session: Session) -> None:
        if session.connection_context.get("tls") != "on":
            session.reject(530, "5.7.0 Must issue a STARTTLS command first")
