"""Whether a session keeps what a TLS contract says of mail from its partner's domain. Shell: it reads the file of
authorities, again when it has changed.

The certificate is held against the contract's own authorities, names and keys, whatever TLS_Client_CA says of it: an
authority that may speak for one partner does not speak for another. One that is for servers alone counts as well, for
public authorities issue no others any more.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.config.contracts import SYSTEM_TRUST, Contract
from quillon.mail import reply as replies
from quillon.mail.event import TlsFacts
from quillon.mail.reply import Reply
from quillon.tls import identity
from quillon.tls.anchors import SYSTEM_BUNDLE, Anchors
from quillon.tls.openssl_extra import chain_error
from quillon.tls.verdict import Certificate, TlsVerdict, chain_cause

_LISTS = ("revoked", "crl_missing", "crl_outdated", "rejected_by_policy")  # that stand whichever authority is asked


class Shown(NamedTuple):
    """What a client has shown in its handshake; `facts` are None where there was none."""

    facts: TlsFacts | None
    verdict: TlsVerdict | None = None
    chain: Sequence[x509.Certificate] = ()


class Breach(NamedTuple):
    """How a session breaks a contract: the cause, and the reply to MAIL FROM."""

    cause: str
    reply: Reply


class ContractChecks:
    """`look` is asked for each sender of a domain with a contract; what it finds is kept by the session."""

    def __init__(self) -> None:
        self._anchors: dict[str, tuple[tuple[int, int], Anchors]] = {}

    def look(self, contract: Contract, shown: Shown) -> Breach | None:
        """What of a contract a session breaks, if anything."""
        cause, detail = self._find(contract, shown)
        if not cause:
            return None
        if cause == "contract_no_tls":
            oldest = contract.min_version.replace("v", " ")
            return Breach(cause, replies.CONTRACT_NO_TLS.because(f"{contract.domain}, {oldest} or later"))
        words = f"{contract.domain}: {cause}{f', {detail}' if detail else ''}"
        return Breach(cause, replies.CONTRACT_CERTIFICATE.because(words))

    def _find(self, contract: Contract, shown: Shown) -> tuple[str, str]:
        facts, verdict = shown.facts, shown.verdict
        if facts is None or verdict is None or facts.protocol not in contract.versions:
            return "contract_no_tls", ""
        if not contract.client_certificate:
            return "", ""
        certificate = verdict.certificate
        if certificate is None:
            return "no_certificate", ""
        if verdict.cause in _LISTS:
            return verdict.cause, ""
        if contract.spki and certificate.spki_sha256 not in contract.spki:
            return "key_mismatch", f"the key has SHA-256 {certificate.spki_sha256}"
        if contract.by_key_alone:
            return "", ""
        cause = self._chain(contract.ca, certificate, shown.chain) if contract.ca else _by_listen(verdict)
        if not cause and contract.names and not identity.matches(certificate, contract.names):
            return "name_mismatch", f"it has to name {' or '.join(contract.names)}"
        return cause, ""

    def _chain(self, ca: str, certificate: Certificate, chain: Sequence[x509.Certificate]) -> str:
        above = [der for one in chain if (der := one.public_bytes(Encoding.DER)) != certificate.der]
        anchors = sorted(self._load(SYSTEM_BUNDLE if ca == SYSTEM_TRUST else ca).ders)
        cause = chain_cause(chain_error(certificate.der, above, anchors, client=True))
        if cause == "wrong_purpose":
            cause = chain_cause(chain_error(certificate.der, above, anchors))
        return cause

    def _load(self, path: str) -> Anchors:
        try:
            state = os.stat(path)
            stamp = (state.st_mtime_ns, state.st_ino)
        except OSError:
            stamp = (0, 0)
        known = self._anchors.get(path)
        if known is None or (known[0] != stamp and stamp != (0, 0)):
            known = self._anchors[path] = (stamp, Anchors(path))
        return known[1]


def _by_listen(verdict: TlsVerdict) -> str:
    """Where a contract names no authority, the Listen's TLS_Client_CA has to have verified the certificate."""
    if verdict.cause:
        return verdict.cause
    return "" if verdict.checked and verdict.chain_verified else "unknown_issuer"
