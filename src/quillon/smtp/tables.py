"""The rules of the receiving role as data: one row per verb, one per EHLO keyword, one per reception state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from quillon.mail import reply as replies
from quillon.mail.reply import Reply


class State(Enum):
    """Reception states of the manual, as the rejectlog prints them."""

    CONNECTED = "just connected"
    AWAITING_HELLO = "awaiting ehlo/helo"
    AWAITING_MAIL = "awaiting mailfrom"
    AWAITING_RCPT = "awaiting rcptto"
    READING_BODY = "reading body"
    ANSWERING_BODY = "sending body response"
    CONCURRENCY = "concurrency limit"


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the client. `argument` is the reply to an argument it must not have, or None where it may have one."""

    name: str
    argument: Reply | None = None
    rfc: str = "RFC 5321"


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("EHLO"),
        Verb("HELO"),
        Verb("MAIL"),
        Verb("RCPT"),
        Verb("DATA", replies.DATA_ARGUMENTS),
        Verb("RSET", replies.RSET_ARGUMENTS),
        Verb("NOOP"),
        Verb("QUIT", replies.NO_PARAMETERS),
        Verb("VRFY"),
        Verb("HELP"),
        Verb("STARTTLS", replies.NO_PARAMETERS, rfc="RFC 3207"),
        Verb("AUTH", rfc="RFC 4954"),
        Verb("XCLIENT", rfc="postfix.org/XCLIENT_README"),
        Verb("XREMOTEIP", rfc="manual, esmtp_listener.extensions"),
        Verb("XSETCONTEXT", rfc="manual, esmtp_listener.extensions"),
        Verb("XDUMPCONTEXT", replies.NO_PARAMETERS, rfc="manual, esmtp_listener.extensions"),
    )
}


XCLIENT_ATTRIBUTES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT", "REVERSE_NAME")


class When(Enum):
    """On what it depends whether a keyword is offered."""

    ALWAYS = "always"
    LISTED = "where SMTP_Extensions lists it"
    TRUSTED = "where SMTP_Extensions lists it, and the client is one of Trusted_Clients"
    STARTTLS = "where SMTP_Extensions lists it, there is a certificate, and no TLS yet"


@dataclass(frozen=True, slots=True)
class Keyword:
    """A line of the EHLO reply; `arguments` stand behind the keyword."""

    name: str
    when: When
    rfc: str
    arguments: str = ""


KEYWORDS: tuple[Keyword, ...] = (
    Keyword("PIPELINING", When.ALWAYS, "RFC 2920"),
    Keyword("8BITMIME", When.ALWAYS, "RFC 6152"),
    Keyword("SIZE", When.ALWAYS, "RFC 1870"),
    Keyword("ENHANCEDSTATUSCODES", When.LISTED, "RFC 2034"),
    Keyword("STARTTLS", When.STARTTLS, "RFC 3207"),
    Keyword("HELP", When.ALWAYS, "RFC 5321 4.1.1.8"),
    Keyword("XCLIENT", When.TRUSTED, "postfix.org/XCLIENT_README", " ".join(XCLIENT_ATTRIBUTES)),
    Keyword("XREMOTEIP", When.TRUSTED, "manual, esmtp_listener.extensions"),
    Keyword("XSETCONTEXT", When.TRUSTED, "manual, esmtp_listener.extensions"),
    Keyword("XDUMPCONTEXT", When.TRUSTED, "manual, esmtp_listener.extensions"),
)
