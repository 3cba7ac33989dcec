"""The DNS records and the policy by which a domain of ours tells others that mail to it has to come over TLS, and what
is wrong with those that are published. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from quillon.config.settings import StsPolicySettings
from quillon.standards.mta_sts import StsPolicyError, parse_policy, record_id
from quillon.standards.tlsrpt import destinations
from quillon.tls import identity
from quillon.tls.certificate import Certificate
from quillon.tls.tlsa import Tlsa, public_key, tlsa, usable

SOON = 21  # days before the end of a certificate in which it is told


class ListenCertificate(NamedTuple):
    """A certificate that a Listen has, in DER, and its file. `next` is one that is to take its place."""

    file: str
    der: bytes
    next: bool = False


class LookedUp(NamedTuple):
    """An answer of DNS or of the policy host: whether it is secure, what it holds, why there is none."""

    records: tuple[str, ...] = ()
    secure: bool = False
    problem: str = ""


@dataclass(frozen=True)
class DomainRecords:
    """What there is of a domain: MX hosts with their preferences, TLSA records in hexadecimal digits by host, TXT
    records, and the policy."""

    mx: tuple[tuple[int, str], ...]
    mx_secure: bool
    tlsa: Mapping[str, LookedUp]
    sts: LookedUp
    policy: LookedUp
    reports: LookedUp


@dataclass(frozen=True)
class Setup:
    """What should be published: lines of a zone, the policy, and what is wrong now."""

    zone: tuple[str, ...]
    policy: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def setup(
    domain: str,
    identities: Sequence[ListenCertificate],
    published: DomainRecords,
    wanted: StsPolicySettings,
    rua: str,
    now: datetime,
) -> Setup:
    """`wanted` is the policy that is to be, of all hosts of MX where it names none; `rua` says where reports are to
    go."""
    hosts = tuple(host for _, host in sorted(published.mx)) or (domain,)
    zone: list[str] = []
    problems: list[str] = []
    notes: list[str] = []
    for host in hosts:
        own = [one for one in identities if one.next or identity.matches(Certificate(one.der), [host])]
        if not any(not one.next for one in own):
            notes.append(f"{host}: no certificate of this configuration names it, so its TLSA records are another's")
            continue
        records = tuple(dict.fromkeys(ee(one.der) for one in own))
        zone += [f"_25._tcp.{host}. 3600 IN TLSA {record}" for record in records]
        problems += _tlsa_problems(host, own, published)
        notes += _ends(own, now)
    policy = policy_text(wanted.mode, wanted.mx or hosts, wanted.max_age)
    problems += [f"mta_sts_policy: {text}" for text in _left_out(policy, domain, hosts)]
    zone.append(f'_mta-sts.{domain}. 3600 IN TXT "v=STSv1; id={policy_id(policy)};"')
    zone.append(f'_smtp._tls.{domain}. 3600 IN TXT "v=TLSRPTv1; rua={rua}"')
    problems += _sts_problems(domain, hosts, published, policy if wanted.mx else "")
    if not destinations(published.reports.records):
        notes.append(f"_smtp._tls.{domain}: no record that asks for reports is published")
    if not published.mx_secure:
        notes.append(
            f"{domain}: its MX records do not validate, so TLSA records have no effect: sign the zone (DNSSEC)"
        )
    return Setup(tuple(zone), policy, tuple(problems), tuple(dict.fromkeys(notes)))


def ee(der: bytes) -> Tlsa:
    """The record of a key: usage 3, selector 1, SHA-256 (RFC 7672 3.1: what a server should publish)."""
    return Tlsa(3, 1, 1, hashlib.sha256(public_key(der) or b"").digest())


def policy_text(mode: str, hosts: Sequence[str], max_age: int) -> str:
    """A policy of MTA-STS."""
    mx = "".join(f"mx: {host}\n" for host in hosts)
    return f"version: STSv1\nmode: {mode}\n{mx}max_age: {max_age}\n"


def policy_id(text: str) -> str:
    """An id that is another one whenever the policy is."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _tlsa_problems(host: str, own: Sequence[ListenCertificate], published: DomainRecords) -> list[str]:
    found = published.tlsa.get(host, LookedUp())
    name = f"_25._tcp.{host}"
    if found.problem:
        return [f"{name}: {found.problem}: who obeys DANE sends nothing to {host}"]
    records = usable(tlsa(bytes.fromhex(text)) for text in found.records)
    if not found.records:
        return [f"{name}: no TLSA record is published"]
    if not records:
        return [f"{name}: no usable TLSA record is published"]
    out = []
    for one in own:
        if any(record.usage == 3 and record.names(one.der) for record in records):
            continue
        if one.next:
            out.append(
                f"{name}: the next key ({one.file}) has no record yet: publish it, and wait two TTLs before it is used"
            )
        elif all(record.usage == 3 for record in records):
            out.append(f"{name}: no record names the certificate in use ({one.file}): who obeys DANE sends nothing now")
    return out


def _ends(own: Sequence[ListenCertificate], now: datetime) -> list[str]:
    out = []
    for one in own:
        parsed = Certificate(one.der).parsed
        if parsed is not None and (days := (parsed.not_valid_after_utc - now).days) < SOON:
            out.append(
                f"{one.file} ends in {days} days: if the next one has another key, publish its record before it is used"
            )
    return out


def _left_out(text: str, domain: str, hosts: Sequence[str]) -> list[str]:
    """Hosts that take mail and are not in a policy. Raises StsPolicyError."""
    policy = parse_policy(text.encode(), domain, "", 0.0)
    left_out = [host for host in hosts if policy.mode != "none" and not policy.permits(host)]
    return [f"the policy of {domain} does not name {host}: who obeys it sends nothing there" for host in left_out]


def _sts_problems(domain: str, hosts: Sequence[str], published: DomainRecords, wanted: str) -> list[str]:
    """What is wrong with what is published; `wanted` is the policy that the configuration has, if it has one."""
    try:
        found = record_id(published.sts.records)
    except StsPolicyError as error:
        return [f"_mta-sts.{domain}: {error}"]
    if not found:
        return [f"_mta-sts.{domain}: no record is published"]
    if published.policy.problem:
        return [f"the policy of {domain}: {published.policy.problem}"]
    text = "\n".join(published.policy.records)
    try:
        policy = parse_policy(text.encode(), domain, found, 0.0)
    except StsPolicyError as error:
        return [f"the policy of {domain}: {error}"]
    out = []
    if wanted and text.split() != wanted.split():
        out.append(f"the policy of {domain} is published as another one than is wanted here")
    out += _left_out(text, domain, hosts)
    if policy.mode == "none":
        out.append(f"the policy of {domain} has mode none: it asks for nothing")
    return out
