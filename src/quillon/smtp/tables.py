"""The rules of the receiving role as data: one row per verb, one per EHLO keyword, one per reception state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from quillon.mail import reply as replies
from quillon.mail.reply import Reply


class State(Enum):
    """Reception states of the manual, as the rejectlog prints them."""

    __hash__ = object.__hash__  # members are compared by identity, and Enum hashes their names each time

    CONNECTED = "just connected"
    AWAITING_HELLO = "awaiting ehlo/helo"
    AWAITING_MAIL = "awaiting mailfrom"
    AWAITING_RCPT = "awaiting rcptto"
    READING_BODY = "reading body"
    ANSWERING_BODY = "sending body response"
    CONCURRENCY = "concurrency limit"


_IN_SESSION = "manual, esmtp_listener.extensions"


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the client: one row of the state machine, which checks it from left to right.

    `handler` is the method of `ServerSession` that takes it, `known` the one that tells whether it is a verb at all in
    this session. `argument` is the reply to an argument it must not have.
    `refused` are states in which it cannot come, with the reply. `hello_optional` lets it come before EHLO where
    Require_EHLO is false. `retires` tells that a session of an older configuration ends here. `asks` is what is asked
    before it is answered, a phase of policy or a part of Quillon; without it the machine answers by itself. `leads_to`
    is the state after a positive reply, None the same one.
    """

    name: str
    handler: str
    argument: Reply | None = None
    refused: Mapping[State, Reply] = field(default_factory=dict)
    known: str = ""
    hello_optional: bool = False
    retires: bool = False
    asks: str = ""
    leads_to: State | None = None
    rfc: str = "RFC 5321"


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("EHLO", "_do_hello", asks="ehlo", leads_to=State.AWAITING_MAIL, rfc="RFC 5321 4.1.1.1"),
        Verb("HELO", "_do_hello", asks="ehlo", leads_to=State.AWAITING_MAIL, rfc="RFC 5321 4.1.1.1"),
        Verb(
            "MAIL",
            "_do_mail",
            refused={State.AWAITING_HELLO: replies.HELO_NEEDED, State.AWAITING_RCPT: replies.MAIL_AGAIN},
            hello_optional=True,
            retires=True,
            asks="mailfrom",
            leads_to=State.AWAITING_RCPT,
            rfc="RFC 5321 4.1.1.2",
        ),
        Verb(
            "RCPT",
            "_do_rcpt",
            refused=dict.fromkeys((State.AWAITING_HELLO, State.AWAITING_MAIL), replies.RCPT_WITHOUT_MAIL),
            asks="rcptto",
            rfc="RFC 5321 4.1.1.3",
        ),
        Verb(
            "DATA",
            "_do_data",
            argument=replies.DATA_ARGUMENTS,
            refused=dict.fromkeys((State.AWAITING_HELLO, State.AWAITING_MAIL), replies.DATA_WITHOUT_MAIL),
            asks="rcptto_list, then data and data_spool behind the last dot",
            leads_to=State.READING_BODY,
            rfc="RFC 5321 4.1.1.4",
        ),
        Verb("RSET", "_do_rset", argument=replies.RSET_ARGUMENTS, retires=True, rfc="RFC 5321 4.1.1.5"),
        Verb("NOOP", "_do_noop", rfc="RFC 5321 4.1.1.9"),
        Verb("QUIT", "_do_quit", argument=replies.NO_PARAMETERS, rfc="RFC 5321 4.1.1.10"),
        Verb("VRFY", "_do_vrfy", rfc="RFC 5321 4.1.1.6"),
        Verb("HELP", "_do_help", rfc="RFC 5321 4.1.1.8"),
        Verb(
            "STARTTLS",
            "_do_starttls",
            argument=replies.NO_PARAMETERS,
            asks="TLS",
            leads_to=State.AWAITING_HELLO,
            rfc="RFC 3207",
        ),
        Verb(
            "AUTH",
            "_do_auth",
            refused=dict.fromkeys((State.AWAITING_HELLO, State.AWAITING_RCPT), replies.BAD_SEQUENCE),
            known="_knows_auth",
            asks="AUTH",
            rfc="RFC 4954",
        ),
        Verb(
            "XCLIENT",
            "_do_extension",
            asks="connect",
            leads_to=State.AWAITING_HELLO,
            rfc="postfix.org/XCLIENT_README",
        ),
        Verb("XREMOTEIP", "_do_extension", asks="session", rfc=_IN_SESSION),
        Verb("XSETCONTEXT", "_do_extension", asks="session", rfc=_IN_SESSION),
        Verb("XDUMPCONTEXT", "_do_extension", argument=replies.NO_PARAMETERS, asks="session", rfc=_IN_SESSION),
    )
}


XCLIENT_ATTRIBUTES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT", "REVERSE_NAME")


class When(Enum):
    """On what it depends whether a keyword is offered."""

    ALWAYS = "always"
    LISTED = "where SMTP_Extensions lists it"
    TRUSTED = "where SMTP_Extensions lists it, and the client is one of Trusted_Clients"
    STARTTLS = "where SMTP_Extensions lists it, there is a certificate, and no TLS yet"
    IN_TLS = "where SMTP_Extensions lists it, and inside TLS"


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
    Keyword("REQUIRETLS", When.IN_TLS, "RFC 8689"),
    Keyword("HELP", When.ALWAYS, "RFC 5321 4.1.1.8"),
    Keyword("XCLIENT", When.TRUSTED, "postfix.org/XCLIENT_README", " ".join(XCLIENT_ATTRIBUTES)),
    Keyword("XREMOTEIP", When.TRUSTED, "manual, esmtp_listener.extensions"),
    Keyword("XSETCONTEXT", When.TRUSTED, "manual, esmtp_listener.extensions"),
    Keyword("XDUMPCONTEXT", When.TRUSTED, "manual, esmtp_listener.extensions"),
)
