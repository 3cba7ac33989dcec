"""What the receiving machine asks its shell, one value per question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from quillon.mail.address import Mailbox
from quillon.mail.reply import Reply
from quillon.smtp.sasl import AuthOutcome


class WaitReason:
    """Why there is no event."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


NEED_DATA: Final = WaitReason("NEED_DATA")
PAUSED: Final = WaitReason("PAUSED")
MORE: Final = WaitReason("MORE")
"""So many commands have been taken as were allowed at once, and more are at hand."""


class Hello(NamedTuple):
    """EHLO or HELO. `line` is the command without CRLF."""

    verb: str
    domain: str
    line: str


class MailFrom(NamedTuple):
    mailbox: Mailbox
    line: str
    size: int | None
    eight_bit: bool
    requiretls: bool = False


class RcptTo(NamedTuple):
    """`postmaster` tells of the bare `<Postmaster>`, which every server takes (RFC 5321 4.5.1)."""

    mailbox: Mailbox
    line: str
    postmaster: bool = False


@dataclass(frozen=True, slots=True)
class StartTls:
    """Answer with `respond(None)` for 220 and then `tls_started()`, or with a refusal."""


class BeginAuth(NamedTuple):
    """AUTH with a mechanism: answer with `auth(exchange, initial)`, or `respond` with a refusal."""

    mechanism: str
    initial: bytes | None


class Authenticate(NamedTuple):
    """An exchange is over: answer with `respond`; None stands for 235."""

    mechanism: str
    attempt: AuthOutcome


class Extension(NamedTuple):
    """A command that only trusted clients have: XCLIENT, XREMOTEIP, XSETCONTEXT, XDUMPCONTEXT."""

    verb: str
    argument: str


@dataclass(frozen=True, slots=True)
class BeginData:
    """DATA, with all recipients known: None stands for 354."""


class Data(NamedTuple):
    """A piece of mail data. Only the last one is answered; its `fault` is a reply for data that cannot be taken."""

    data: bytes
    last: bool
    fault: Reply | None = None


Event = Hello | MailFrom | RcptTo | StartTls | BeginAuth | Authenticate | Extension | BeginData | Data
