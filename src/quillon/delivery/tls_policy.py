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

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from quillon.config.settings import OutboundTls
from quillon.mail import reply as replies
from quillon.mail.reply import Reply
from quillon.tls import identity
from quillon.tls.verdict import Verdict, printable


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


def falls_back(tls: OutboundTls) -> bool:
    """Whether a failed negotiation is followed by a fresh connection in clear."""
    return tls.tls == "ifavailable" and tls.tls_ifavailable_fallback


@dataclass(frozen=True, slots=True)
class Judgement:
    """What TLS_Verify makes of a verdict. `verified` is None where nothing was checked."""

    verified: bool | None
    cause: str = ""
    reply: Reply | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a host does with TLS: whether STARTTLS is offered, the cause why the negotiation failed, or the verdict."""

    offered: bool
    cause: str = ""
    verdict: Verdict | None = None


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
        known = {True: "TLS, verified", False: f"TLS, unverified ({self.cause})", None: "TLS, not checked"}
        return known[self.verified]


def foresee(tls: OutboundTls, observed: Observed, names: Iterable[str]) -> Foreseen:
    """What a delivery under these settings would do with a host that behaves as observed."""
    turn = after_ehlo(tls, observed.offered, in_clear=False)
    if turn is Turn.REFUSE:
        return Foreseen("held", cause="no_starttls")
    if turn is Turn.CLEAR:
        return Foreseen("clear")
    if observed.verdict is None:
        return Foreseen("clear" if falls_back(tls) else "held", cause=observed.cause)
    judgement = judge(tls, observed.verdict, names)
    if judgement.reply is not None:
        return Foreseen("held", False, judgement.cause)
    return Foreseen("tls", judgement.verified, judgement.cause)


_REPLIES = {
    "name_mismatch": replies.CERT_WRONG_NAME,
    "expired": replies.CERT_EXPIRED,
    "not_yet_valid": replies.CERT_NOT_YET_VALID,
}


def judge(tls: OutboundTls, verdict: Verdict, names: Iterable[str]) -> Judgement:
    """`names` are the candidates for `host`: the MX host and the routing domain."""
    if tls.tls_verify == "no":
        return Judgement(None)
    cause, detail = verdict.cause, ""
    certificate, wanted = verdict.certificate, [name for name in names if name]
    if not cause and tls.tls_verify != "ca" and certificate is not None and not identity.matches(certificate, wanted):
        dns, addresses = identity.names(certificate)
        cause = "name_mismatch"
        detail = (
            f"wanted {' or '.join(wanted)}; the certificate names {printable(', '.join(dns + addresses)) or 'nobody'}"
        )
    if not cause:
        return Judgement(True)
    if tls.tls_verify == "optional":
        return Judgement(False, cause, None, detail)
    return Judgement(False, cause, _REPLIES.get(cause, replies.CERT_WRONG_CA), detail)
