"""How an attempt to deliver ended: a value, with the stage of the connection at which it was decided."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from quillon.mail.reply import Reply


class Stage(IntEnum):
    """Connection stages with the numbers of the log formats chapter; `text` is their wording there."""

    NOT_CONNECTED = 0
    IDLE = 1
    DURING_MAIL = 2
    AFTER_MAIL = 3
    DURING_RCPT = 4
    AFTER_RCPT = 5
    DURING_DATA = 6
    AFTER_DATA = 7
    SENDING_BODY = 8
    READING_CONFIRMATION = 9
    DURING_EHLO = 10
    AFTER_EHLO = 11
    READING_BANNER = 12
    DURING_RSET = 13
    AFTER_RSET = 14
    DURING_STARTTLS = 15
    AFTER_STARTTLS = 16
    HANDSHAKING_TLS = 17
    RENEGOTIATING_TLS = 18
    DURING_XCLIENT = 19
    AFTER_XCLIENT = 20
    OUT_OF_BAND = 21
    UNKNOWN = 22

    @property
    def text(self) -> str:
        return _STAGE_TEXTS[self]


_STAGE_TEXTS = (
    "while not connected",
    "while idle",
    "during MAIL FROM",
    "after MAIL FROM",
    "during RCPT TO",
    "after RCPT TO",
    "during DATA",
    "after DATA",
    "while sending BODY",
    "reading confirmation",
    "during EHLO",
    "after EHLO",
    "reading BANNER",
    "during RSET",
    "after RSET",
    "during STARTTLS",
    "after STARTTLS",
    "handshaking TLS",
    "renegotiating TLS",
    "during XCLIENT",
    "after XCLIENT",
    "out of band bounce",
    "in unknown state",
)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The remote host took responsibility for the message."""

    reply: Reply
    remote_ip: str = ""


@dataclass(frozen=True, slots=True)
class TransientFailure:
    """To be tried again. `cause` is the cause code of a TLS failure, else empty; `sent` counts octets of mail data."""

    reply: Reply
    stage: Stage
    remote_ip: str = ""
    cause: str = ""
    sent: int = 0


@dataclass(frozen=True, slots=True)
class PermanentFailure:
    """Not to be tried again; a delivery status notification is due."""

    reply: Reply
    stage: Stage
    remote_ip: str = ""
    cause: str = ""
    sent: int = 0


Outcome = Delivered | TransientFailure | PermanentFailure


def failure(reply: Reply, stage: Stage, remote_ip: str = "", cause: str = "", sent: int = 0) -> Outcome:
    """Transient or permanent by the reply's first digit, the one place where that is decided (RFC 5321 4.2.1)."""
    kind = PermanentFailure if reply.permanent else TransientFailure
    return kind(reply, stage, remote_ip, cause, sent)
