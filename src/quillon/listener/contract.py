"""Whether a session keeps what a TLS contract says of mail from its partner's domain. Shell: it reads the file of
authorities, again when it has changed.

The certificate is held against the contract's own authorities, names and keys, whatever TLS_Client_CA says of it: an
authority that may speak for one partner does not speak for another. No policy makes good what is not; it may refuse
what is. A certificate that is for servers alone counts as well, for
public authorities issue no others any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.config.contracts import SYSTEM_TRUST, Contract
from quillon.mail import reply as replies
from quillon.mail.event import TlsFacts
from quillon.mail.reply import Reply
from quillon.tls import identity
from quillon.tls.anchors import SYSTEM_BUNDLE, Anchors
from quillon.tls.certificate import Certificate
from quillon.tls.openssl_extra import chain_error
from quillon.tls.revocation import Revocations
from quillon.tls.verdict import TlsVerdict, chain_cause

_REVOKED = (
    "revoked",
    "crl_missing",
    "crl_outdated",
    "ocsp_missing",
    "ocsp_outdated",
    "ocsp_invalid",
)  # that stand whichever authority is asked


class Shown(NamedTuple):
    """What a client has shown in its handshake; `facts` are None where there was none. `verdict` is that of the
    handshake, whatever policy makes of it; `rejected` tells that policy is not content. `authorities` are the file of
    those that the Listen trusts, `lists` its revocation lists, and whether they have to be there and fresh; `answer` is
    the cause for which the responder of a certificate that the Listen does not trust holds it back, and words."""

    facts: TlsFacts | None
    verdict: TlsVerdict | None = None
    chain: Sequence[x509.Certificate] = ()
    rejected: bool = False
    authorities: str | None = None
    lists: tuple[Revocations, bool] | None = None
    answer: tuple[str, str] = ("", "")


class Breach(NamedTuple):
    """How a session breaks a contract: the cause, the reply to MAIL FROM, and the contract's label."""

    cause: str
    reply: Reply
    contract: str


class ContractChecks:
    """`look` is asked for each sender of a domain with a contract; what it finds is kept by the session. `clock` gives
    seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._anchors: dict[str, tuple[tuple[int, int], Anchors]] = {}

    def look(self, contract: Contract, shown: Shown) -> Breach | None:
        """What of a contract a session breaks, if anything."""
        cause, detail = self._find(contract, shown)
        if not cause:
            return None
        if cause == "contract_no_tls":
            oldest = contract.min_version.replace("v", " ")
            return Breach(
                cause, replies.CONTRACT_NO_TLS.because(f"{contract.domain}, {oldest} or later"), contract.domain
            )
        words = f"{contract.domain}: {cause}{f', {detail}' if detail else ''}"
        return Breach(cause, replies.CONTRACT_CERTIFICATE.because(words), contract.domain)

    def _find(self, contract: Contract, shown: Shown) -> tuple[str, str]:
        facts, verdict = shown.facts, shown.verdict
        if facts is None or verdict is None or facts.protocol not in contract.versions:
            return "contract_no_tls", ""
        if not contract.client_certificate:
            return "", ""
        certificate = verdict.certificate
        if certificate is None:
            return "no_certificate", ""
        if shown.rejected:
            return "rejected_by_policy", ""
        if verdict.cause in _REVOKED:
            return verdict.cause, ""
        if shown.answer[0]:
            return shown.answer
        if contract.spki and certificate.spki_sha256 not in contract.spki:
            return "key_mismatch", f"the key has SHA-256 {certificate.spki_sha256}"
        if contract.by_key_alone:
            return "", ""
        ca = contract.ca or shown.authorities
        cause = self._chain(ca, certificate, shown) if ca else "unknown_issuer"
        if not cause and contract.names and not identity.matches(certificate, contract.names):
            return "name_mismatch", f"it has to name {' or '.join(contract.names)}"
        return cause, ""

    def anchors(self, contracts: Sequence[Contract], shown: Shown) -> list[x509.Certificate]:
        """The authorities of the first contract by which a client's certificate is good; none where it is by none."""
        certificate = shown.verdict.certificate if shown.verdict is not None else None
        for ca in dict.fromkeys(one.ca for one in contracts if one.inbound and one.client_certificate and one.ca):
            if certificate is not None and not self._chain(ca, certificate, shown):
                return self._authorities(ca).certificates
        return []

    def _authorities(self, ca: str) -> Anchors:
        return self._load(SYSTEM_BUNDLE if ca == SYSTEM_TRUST else ca)

    def _chain(self, ca: str, certificate: Certificate, shown: Shown) -> str:
        """What is wrong with a certificate by the authorities of a file, and by the lists of the Listen."""
        known = self._authorities(ca)
        others = [one for one in shown.chain if one.public_bytes(Encoding.DER) != certificate.der]
        above, anchors = [one.public_bytes(Encoding.DER) for one in others], sorted(known.ders)
        cause = chain_cause(chain_error(certificate.der, above, anchors, client=True))
        if cause == "wrong_purpose":
            cause = chain_cause(chain_error(certificate.der, above, anchors))
        if cause or shown.lists is None or certificate.parsed is None:
            return cause
        lists, hard = shown.lists
        errors = lists.errors([certificate.parsed, *others], known.certificates, self._clock(), hard=hard)
        return errors[0][0] if errors else ""

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
