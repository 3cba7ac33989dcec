"""What TLS, TLS_Verify and TLS_Ifavailable_Fallback demand at each turn of a connection. Pure.

    TLS            STARTTLS not offered   negotiation fails                            TLS_Verify ca or host fails
    no             clear                  -                                            -
    ifavailable    clear                  fallback true: a fresh connection in clear   451 4.7.5, try again later
                                          fallback false: 451 4.7.5, later
    required       451 4.7.6, later       451 4.7.5, try again later                   451 4.7.5, try again later

Settings of our own that cannot be loaded never lead to clear text, nor does a failed verification: what failed it is
not better served by less. `optional` checks like `host` and delivers whatever it finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from quillon.config.outbound import Reported, lookup_name
from quillon.config.settings import OutboundTls
from quillon.mail import reply as replies
from quillon.mail.event import TlsFacts
from quillon.mail.reply import Reply
from quillon.mail.shown import NAME, joined
from quillon.tls import identity
from quillon.tls.certificate import Certificate, printable
from quillon.tls.proven import enough
from quillon.tls.verdict import TlsVerdict


class Turn(Enum):
    """What to do once the host has answered EHLO."""

    CLEAR = "send in clear"
    STARTTLS = "say STARTTLS"
    REFUSE = "send nothing"


def after_ehlo(tls: OutboundTls, offered: bool, *, in_clear: bool) -> Turn:
    """`in_clear` tells that this connection is a fallback to clear text, which `required` never makes."""
    if tls.tls == "required":
        return Turn.STARTTLS if offered else Turn.REFUSE
    if tls.tls == "no" or in_clear or not offered:
        return Turn.CLEAR
    return Turn.STARTTLS


OURS = "bad_local_settings"  # the cause that is no host's


def falls_back(tls: OutboundTls, cause: str) -> bool:
    """Whether a negotiation that failed for a cause is followed by a fresh connection in clear. A certificate of ours
    that cannot be loaded never is."""
    return tls.tls == "ifavailable" and tls.tls_ifavailable_fallback and cause != OURS


@dataclass(frozen=True, slots=True)
class Judgement:
    """What TLS_Verify makes of a verdict: mail goes unless there is a `reply`.

    `level` is what has been proven, whatever was demanded: none, ca (a trusted chain), host (and one of the names
    wanted, `matched`), key (of TLS_SPKI, without a chain), or policy. `verified` tells whether that is more than a
    chain; None where nothing was checked.
    """

    verified: bool | None
    cause: str = ""
    reply: Reply | None = None
    detail: str = ""
    level: str = "none"
    matched: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a host does with TLS: whether STARTTLS is offered, the cause why the negotiation failed, or the verdict."""

    offered: bool
    cause: str = ""
    verdict: TlsVerdict | None = None


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a delivery would do: `way` is clear, tls or held; `verified` None where nothing is checked."""

    way: str
    verified: bool | None = None
    cause: str = ""

    def __str__(self) -> str:
        if self.way == "held":
            return f"held: {self.cause}"
        if self.way == "clear":
            return f"in clear ({self.cause})" if self.cause else "in clear"
        if self.verified is None:
            return "TLS, not checked"
        if self.verified:
            return "TLS, verified"
        return f"TLS, unverified ({self.cause})" if self.cause else "TLS, chain verified, for another name"


def foresee(tls: OutboundTls, observed: Observed, names: Iterable[str]) -> Foreseen:
    """What a delivery under these settings would do with a host that behaves as observed."""
    turn = after_ehlo(tls, observed.offered, in_clear=False)
    if turn is Turn.REFUSE:
        return Foreseen("held", cause="no_starttls")
    if turn is Turn.CLEAR:
        return Foreseen("clear")
    if observed.verdict is None:
        return Foreseen("clear" if falls_back(tls, observed.cause) else "held", cause=observed.cause)
    judgement = judge(tls, observed.verdict, names)
    if judgement.reply is not None:
        return Foreseen("held", False, judgement.cause)
    return Foreseen("tls", judgement.verified, judgement.cause)


def would_wait(wanted: Reported, facts: TlsFacts | None) -> str:
    """The cause why a message that was delivered with these facts would have waited under other values of TLS and
    TLS_Verify; empty if it would have gone."""
    if facts is None or not facts.protocol:
        cause = facts.cause if facts is not None else ""
        if wanted.tls == "required":
            return cause or "no_starttls"
        return "" if wanted.fallback else cause
    if facts.cause == "key_mismatch":
        return facts.cause
    if enough(facts.level, wanted.verify):
        return ""
    return facts.cause or "name_mismatch"


REPLIES = {
    "name_mismatch": replies.CERT_WRONG_NAME,
    "expired": replies.CERT_EXPIRED,
    "not_yet_valid": replies.CERT_NOT_YET_VALID,
}


def certificate_names(tls: OutboundTls, host: str, domain: str, via: str) -> tuple[str, ...]:
    """Names that a certificate may bear: those of TLS_Names, else the host that MX, Routes or Gateway led to, the
    routing domain, and the recipient's domain where its own stanza rules TLS."""
    if tls.tls_names:
        return tls.tls_names
    names = (host, lookup_name(domain), via)
    return tuple(dict.fromkeys(name for name in names if name and not name.startswith("#")))


def judge(tls: OutboundTls, verdict: TlsVerdict, names: Iterable[str]) -> Judgement:
    """`names` are the candidates for `host`: the MX host and the routing domain.

    They are compared whatever is demanded, so that what is told of a delivery is what was proven.
    """
    if tls.tls_verify == "no" and not tls.tls_spki:
        return Judgement(None)
    cause, detail, matched = verdict.cause, "", ""
    if tls.tls_spki:
        key = verdict.certificate.spki_sha256 if verdict.certificate is not None else ""
        if key not in tls.tls_spki:
            detail = f"the key has SHA-256 {key}" if key else "there is no certificate"
            reply = replies.CERT_WRONG_KEY if tls.tls_enforce == "enforce" else None
            return Judgement(False, "key_mismatch", reply, detail)
        if tls.tls_verify == "no":
            return Judgement(True, "", None, "", "key", key)
    certificate, wanted = verdict.certificate, [name for name in names if name]
    level = "none" if cause else verdict.level
    if not cause and certificate is not None:
        matched = identity.matching(certificate, wanted) or ""
        if matched and level == "ca":
            level = "host"
        elif not matched and tls.tls_verify != "ca":
            cause, detail = "name_mismatch", _mismatch(certificate, wanted)
    verified = level in ("host", "policy") and not cause
    if not cause or tls.tls_verify == "optional":
        return Judgement(verified, cause, None, detail, level, matched)
    return Judgement(False, cause, REPLIES.get(cause, replies.CERT_WRONG_CA), detail, level, matched)


def _mismatch(certificate: Certificate, wanted: Sequence[str]) -> str:
    dns, addresses = identity.names(certificate)
    shown, left = joined(map(printable, dns + addresses), NAME // 2, ", ")
    more = f" and {left} more" if left else ""
    return f"wanted {' or '.join(wanted)}; the certificate names {shown or 'nobody'}{more}"
