"""What a host has to prove before it gets mail of a destination: one demand out of the configuration, policy, DANE and
MTA-STS. Pure.

    configuration         TLSA records            MTA-STS    what holds
    whatever it is        usable                  -          TLS, and a certificate that the records name
    verifies by a TLS_CA  usable                  -          that, and the configuration's check as well
    whatever it is        there, none usable      -          TLS; who the host is, as the configuration says
    whatever it is        there, none usable      enforce    TLS, and a certificate for the host by MTA-STS
    whatever it is        none                    enforce    TLS, and a certificate for the host
    whatever it is        whatever there is       enforce    no host that the policy does not name
    whatever it is        none                    testing    what the configuration says; certificates are looked at

A sender that says REQUIRETLS (RFC 8689 4.2.1) wants TLS with a certificate for the host on top, from a host that
DNSSEC, a policy of MTA-STS or the operator names, and REQUIRETLS offered by it. One that writes TLS-Required: No wants
what the domain has published left alone; what the configuration demands holds all the same.

The strictest wins, and what fails it is rescued by nothing less (RFC 8461 2, RFC 7672 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from quillon.config.settings import OutboundTls
from quillon.delivery import tls_policy
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import Foreseen, Judgement, Observed
from quillon.mail import reply as replies
from quillon.mail.outcome import PermanentFailure, Stage, TransientFailure
from quillon.mail.reply import Reply
from quillon.mail.shown import NAME, line
from quillon.standards.dane import LOOK_AGAIN, TlsaFound
from quillon.standards.mta_sts import StsPolicy
from quillon.standards.tlsrpt import NO_POLICY_FOUND, PolicyFound
from quillon.tls.engine import SYSTEM_TRUST
from quillon.tls.openssl_extra import chain_error
from quillon.tls.tlsa import Tlsa, match
from quillon.tls.verdict import TlsVerdict, chain_cause


class Demand(NamedTuple):
    """`configured` is what configuration and policy say, `tls` are the settings in force, `names` those that a
    certificate may bear. With `tlsa` the certificate has to be the one of a record, and with some of them for one of
    `tlsa_names`, whatever else `tls` demands.

    `standard` is what made it stricter than the configuration: dane, mta-sts, or empty; `words` say that to people.
    It holds `until` a time, in seconds since the epoch. `reasons` tell what was looked at, the winner first; `policy`
    is what reports of SMTP TLS call it. `requires_tls` tells that the host has to pass REQUIRETLS on (RFC 8689).
    """

    configured: OutboundTls
    tls: OutboundTls
    names: tuple[str, ...]
    tlsa: tuple[Tlsa, ...] = ()
    tlsa_names: tuple[str, ...] = ()
    standard: str = ""
    words: str = ""
    until: float = math.inf
    reasons: tuple[str, ...] = ()
    policy: PolicyFound = NO_POLICY_FOUND
    requires_tls: bool = False

    def server_name(self, host: str) -> str:
        """The name to say in SNI: that of the TLSA records (RFC 7672 8.1), else the host's."""
        return self.tlsa_names[0] if self.tlsa_names else host

    def told(self, reply: Reply) -> Reply:
        """A reply about a host that does not meet it, with who demands it."""
        return reply.because(f"demanded by {self.words}") if self.words else reply


class Refused(NamedTuple):
    """A host that must not get mail of this destination, whatever it would prove."""

    reply: Reply
    cause: str
    policy: PolicyFound = NO_POLICY_FOUND

    def outcome(self, ip: str) -> TransientFailure | PermanentFailure:
        """What that means for a message."""
        kind = PermanentFailure if self.reply.permanent else TransientFailure
        return kind(self.reply, Stage.NOT_CONNECTED, ip, self.cause)


MOST_TOLD = 8  # TLSA records of a host that are told to people


@dataclass(frozen=True, slots=True)
class Published:
    """What was found out for one host. `mandatory` tells that mail waits where there are no usable TLSA records
    (use_dane = mandatory); `sts` is the policy of the domain, `sts_until` when its TXT record is to be asked again.
    `requires_tls` tells that the sender has said REQUIRETLS, `local` that the operator has named the host, `uncertain`
    that something could not be looked up."""

    tlsa: TlsaFound | None = None
    mandatory: bool = False
    sts: StsPolicy | None = None
    sts_until: float = math.inf
    requires_tls: bool = False
    local: bool = False
    uncertain: bool = False


NOTHING = Published()


def demand(
    tls: OutboundTls, names: Sequence[str], host: Host, domain: str, published: Published, now: float
) -> Demand | Refused:
    """What holds for a host of a domain. `tls` and `names` are those of the configuration and of policy."""
    found = _demand(tls, names, host, domain, published, now)
    if not published.requires_tls or isinstance(found, Refused):
        return found
    policy = published.sts
    named = policy is not None and policy.mode != "none" and policy.permits(host.name)
    if not (found.tlsa or host.named_securely or named or published.local):
        reply = replies.REQUIRETLS_UNCERTAIN if published.uncertain else replies.REQUIRETLS_INSECURE
        return Refused(reply.because(host.name), "requiretls_insecure", found.policy)
    verified = found.tls
    if not found.tlsa:
        verified = replace(tls, tls="required", tls_verify="host", tls_ca=tls.tls_ca or SYSTEM_TRUST)
    return found._replace(
        tls=verified,
        names=found.names if published.local else (host.name,),
        standard=found.standard or "requiretls",
        words=found.words or "REQUIRETLS of the sender",
        requires_tls=True,
    )


def _demand(
    tls: OutboundTls, names: Sequence[str], host: Host, domain: str, published: Published, now: float
) -> Demand | Refused:
    found, policy = published.tlsa, published.sts
    enforced = policy is not None and policy.mode == "enforce"
    named = _policy(found, policy, domain)
    if policy is not None and enforced and not policy.permits(host.name):
        mx = line(", ".join(policy.mx), NAME)
        return Refused(replies.MX_NOT_IN_POLICY.because(f"{policy.domain} has {mx}"), "sts_mx_mismatch", named)
    if found is not None and found.failed:
        words = f"{found.name}: {found.failed}"
        return Refused(replies.TLSA_LOOKUP_FAILED.because(words), "tlsa_lookup_failed", named)
    fit = found.usable if found is not None else ()
    if published.mandatory and not fit:
        why = (
            f"none of the records of {found.name} is usable"
            if found is not None and found.records
            else "no secure ones"
        )
        return Refused(replies.TLSA_MISSING.because(f"{host.name}: {why}"), "tlsa_missing", named)
    reasons = [
        *_of_dane(found, fit),
        *_of_sts(policy),
        f"configuration: {_of_configuration(tls)}",
    ]
    until = min(now + (found.ttl if found is not None else LOOK_AGAIN), _sts_until(published))
    base = Demand(tls, tls, tuple(names), until=until, reasons=tuple(reasons), policy=named)
    if found is not None and fit:
        return _by_dane(base, found, fit, domain)
    if policy is not None and enforced:
        verified = replace(tls, tls="required", tls_verify="host", tls_ca=tls.tls_ca or SYSTEM_TRUST)
        return base._replace(
            tls=verified, names=(host.name,), standard="mta-sts", words=f"the MTA-STS policy of {policy.domain}"
        )
    if found is not None and found.records:
        words = f"the TLSA records of {found.name}, none of which is usable"
        return base._replace(tls=replace(tls, tls="required"), standard="dane", words=words)
    if policy is not None and policy.mode == "testing" and tls.tls_verify == "no":
        # the domain wants to know what it would meet with; what is only looked at holds nothing
        return base._replace(tls=replace(tls, tls_verify="optional", tls_ca=tls.tls_ca or SYSTEM_TRUST))
    return base


def _policy(found: TlsaFound | None, policy: StsPolicy | None, domain: str) -> PolicyFound:
    """What rules, as RFC 8460 4.4 names it."""
    if found is not None and (found.records or found.failed):
        return PolicyFound("tlsa", found.base, tuple(str(record) for record in found.records[:MOST_TOLD]))
    if policy is not None and policy.mode != "none":
        return PolicyFound("sts", policy.domain, policy.lines(), policy.mx)
    return PolicyFound("no-policy-found", domain)


def judge(demanded: Demand, verdict: TlsVerdict, certificates: Callable[[], Sequence[bytes]]) -> Judgement:
    """What a demand makes of a handshake; `certificates` gives those that the host sent in DER, its own first."""
    judgement = tls_policy.judge(demanded.tls, verdict, demanded.names)
    agreed = demanded.tls.tls_names
    if judgement.reply is None and agreed and demanded.names != agreed:
        # a standard wants the host's own name in it, and the operator one of others: it has to bear both
        other = tls_policy.judge(demanded.tls, verdict, agreed)
        judgement = other if other.reply is not None else judgement
    if judgement.reply is not None:
        return replace(judgement, reply=demanded.told(judgement.reply))
    if not demanded.tlsa:
        return judgement
    found = match(demanded.tlsa, certificates(), demanded.tlsa_names, _chain_cause)
    if found.record is None:
        reply = tls_policy.REPLIES.get(found.cause, replies.TLSA_MISMATCH)
        return Judgement(False, found.cause, demanded.told(reply), found.detail)
    return Judgement(True, level="dane", matched=f"TLSA {found.record}")


def foresee(demanded: Demand, observed: Observed, certificates: Sequence[bytes]) -> Foreseen:
    """What a delivery under a demand would do with a host that behaves as observed and sends these certificates."""
    foreseen = tls_policy.foresee(demanded.tls, observed, demanded.names)
    if foreseen.way != "tls" or observed.verdict is None:
        return foreseen
    judgement = judge(demanded, observed.verdict, lambda: certificates)
    return Foreseen("held" if judgement.reply is not None else "tls", judgement.verified, judgement.cause)


def _chain_cause(leaf: bytes, above: Sequence[bytes], anchor: bytes) -> str:
    return chain_cause(chain_error(leaf, above, [anchor]))


def _by_dane(base: Demand, found: TlsaFound, fit: tuple[Tlsa, ...], domain: str) -> Demand:
    """A certificate that a record names. What the configuration verifies by authorities of its own holds beside it, and
    what it verifies by those of the system does not: DANE stands in for them (RFC 7672 3.1.1)."""
    tls = base.tls
    written = tls.tls_ca not in (None, "", SYSTEM_TRUST) or bool(tls.tls_names)
    own = tls.tls_verify in ("ca", "host") and (written or tls.tls_agreed)
    # a session that is resumed shows no chain to hold against the records
    strict = replace(tls, tls="required", tls_verify=tls.tls_verify if own else "no", tls_session_resumption=False)
    return base._replace(
        tls=strict,
        tlsa=fit,
        tlsa_names=tuple(dict.fromkeys(name for name in (found.base, domain) if name)),
        standard="dane",
        words=f"the TLSA records of {found.name}",
    )


def _sts_until(published: Published) -> float:
    return published.sts_until if published.sts is None else min(published.sts.expires, published.sts_until)


def _of_dane(found: TlsaFound | None, fit: tuple[Tlsa, ...]) -> list[str]:
    if found is None or not found.records:
        return []
    shown = [f"DANE: TLSA {found.name} {record}" for record in fit]
    lame = [record for record in found.records if record not in fit]
    shown += [f"DANE: TLSA {found.name} {record}, which is not used" for record in lame]
    more = len(shown) - MOST_TOLD
    return [*shown[:MOST_TOLD], f"DANE: TLSA {found.name}, {more} more"] if more > 0 else shown


def _of_configuration(tls: OutboundTls) -> str:
    words = f"TLS = {tls.tls}, TLS_Verify = {tls.tls_verify}"
    words += f", TLS_Names = {', '.join(tls.tls_names)}" if tls.tls_names else ""
    return words + (f", TLS_SPKI = {', '.join(tls.tls_spki)}" if tls.tls_spki else "")


def _of_sts(policy: StsPolicy | None) -> list[str]:
    if policy is None:
        return []
    return [f"MTA-STS: {policy.domain}, mode {policy.mode}, id {policy.id}, mx {line(', '.join(policy.mx), NAME)}"]
