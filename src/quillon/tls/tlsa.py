"""TLSA records, and whether a host's certificates are those that they name (RFC 6698, 7671, 7672). Pure.

Certificate usage 3 (DANE-EE) names the host's own certificate or key: names, dates and issuer do not matter. Usage 2
(DANE-TA) names one above it, to which the chain has to lead without any public trust; there the names count. The usages
0 and 1 are not for SMTP (RFC 7672 3.1.3), and make no record usable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization

from quillon.mail.shown import NAME, line
from quillon.tls import identity
from quillon.tls.certificate import Certificate, printable

EE, TA = 3, 2
_FULL = 0
_DIGESTS: dict[int, Callable[[bytes], bytes]] = {
    1: lambda data: hashlib.sha256(data).digest(),
    2: lambda data: hashlib.sha512(data).digest(),
}
_LENGTHS = {1: 32, 2: 64}
MOST_CERTIFICATES = 16  # of a chain that are looked at

ChainErrors = Callable[[bytes, Sequence[bytes], bytes], str]


@dataclass(frozen=True, slots=True, order=True)
class Tlsa:
    """One record; the numbers are those of RFC 6698 2.1."""

    usage: int
    selector: int
    matching: int
    data: bytes

    def __str__(self) -> str:
        text = self.data.hex()
        return f"{self.usage} {self.selector} {self.matching} {text if len(text) <= 128 else text[:64] + '...'}"

    @property
    def usable(self) -> bool:
        """Whether a sender can go by it (RFC 7672 3.1.3, RFC 7671 4)."""
        if self.usage not in (EE, TA) or self.selector not in (0, 1):
            return False
        if self.matching == _FULL:
            return self._is_whole()
        return len(self.data) == _LENGTHS.get(self.matching, -1)

    def _is_whole(self) -> bool:
        """Whether the data is what it stands for: a certificate, or a public key."""
        if self.selector == 0:
            return Certificate(self.data).parsed is not None
        try:
            serialization.load_der_public_key(self.data)
        except Exception:
            return False  # a stranger's octets: the library has an exception for each way to be wrong
        return True

    def names(self, der: bytes) -> bool:
        """Whether this is the record of a certificate."""
        data: bytes | None = der if self.selector == 0 else public_key(der)
        if data is None:
            return False
        digest = _DIGESTS.get(self.matching)
        return (digest(data) if digest is not None else data) == self.data


def tlsa(rdata: bytes) -> Tlsa:
    """A record out of its wire form. One that is too short for its numbers is not usable, but it is there."""
    if len(rdata) < 3:
        return Tlsa(255, 255, 255, rdata)
    return Tlsa(rdata[0], rdata[1], rdata[2], rdata[3:])


def usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """Those that count: of the digests of one usage and selector only the strongest one (RFC 7671 9)."""
    fit = [record for record in records if record.usable]
    strongest: dict[tuple[int, int], int] = {}
    for record in fit:
        kind = record.usage, record.selector
        strongest[kind] = max(strongest.get(kind, _FULL), record.matching)
    return tuple(sorted(r for r in set(fit) if r.matching == _FULL or r.matching == strongest[r.usage, r.selector]))


class Match(NamedTuple):
    """What the certificates of a host are worth under its records: authenticated by `record`, by `name` where that
    counts; or not, for a `cause`."""

    record: Tlsa | None
    cause: str = ""
    detail: str = ""
    name: str = ""


def match(records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], errors: ChainErrors) -> Match:
    """`records` are usable, `chain` the certificates that the host sent in DER, its own first, `names` those that the
    certificate may bear. `errors` tells the cause why a leaf, some certificates and an anchor make no valid chain, ""
    if they do."""
    if not chain:
        return Match(None, "no_certificate")
    leaf, above = chain[0], chain[1:MOST_CERTIFICATES]
    for record in records:
        if record.usage == EE and record.names(leaf):
            return Match(record)
    worst = Match(None, "tlsa_mismatch", _differs(records, chain))
    for record in records:
        if record.usage != TA:
            continue
        anchors = [der for der in above if record.names(der)]
        if record.selector == 0 and record.matching == _FULL:
            anchors.append(record.data)  # an anchor that need not be sent
        for anchor in dict.fromkeys(anchors):
            found = _leads_to(record, leaf, above, anchor, names, errors)
            if found.record is not None:
                return found
            worst = found
    return worst


def _leads_to(
    record: Tlsa, leaf: bytes, above: Sequence[bytes], anchor: bytes, names: Sequence[str], errors: ChainErrors
) -> Match:
    cause = errors(leaf, above, anchor)
    if cause:
        return Match(None, cause, f"the chain to the anchor of TLSA {record}")
    certificate = Certificate(leaf)
    name = identity.matching(certificate, names)
    if name is None:
        claimed = ", ".join(map(printable, sum(identity.names(certificate), ()))) or "nobody"
        return Match(None, "name_mismatch", f"wanted {' or '.join(names)}; the certificate names {line(claimed, NAME)}")
    return Match(record, name=name)


def _differs(records: Sequence[Tlsa], chain: Sequence[bytes]) -> str:
    key = public_key(chain[0])
    shown = f"key {hashlib.sha256(key).hexdigest()}" if key is not None else "a certificate that cannot be read"
    wanted = " or ".join(str(record) for record in records[:2])
    more = f" and {len(records) - 2} more" if len(records) > 2 else ""
    return f"TLSA {wanted}{more}; the host has {shown} (SHA-256)"


@lru_cache(maxsize=64)
def public_key(der: bytes) -> bytes | None:
    """SubjectPublicKeyInfo of a certificate; None for one that cannot be read."""
    parsed = Certificate(der).parsed
    if parsed is None:
        return None
    try:
        return parsed.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except Exception:
        return None  # a peer's octets
