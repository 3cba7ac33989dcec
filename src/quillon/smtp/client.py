"""The sending role of SMTP as a machine without I/O (RFC 5321, 2920, 3207, 4954).

    receive(octets)     what the host sent
    next_event()        Ready, GoAhead, NoGoAhead, LoggedIn, SendBody, Done, Broken, or NEED_DATA
    start_tls(), tls_started(), log_in(login), send(transaction), body_sent(), rset(), quit()
    data_to_send()      commands, pipelined where the host offers it

After the banner and EHLO the machine is `HostReady` and says nothing more until it is told to: whether to start TLS, to
go on in clear, or to leave is the caller's decision. `SessionBroken` ends the session; it carries a reply, the stage,
and whether the remote host gave that reply or we made it up. In a transaction `Done` comes before it: what the host had
answered by then counts, though it hung up behind it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.outcome import Stage
from quillon.mail.reply import Reply
from quillon.mail.shown import REPLY, cut
from quillon.smtp.wire import MAX_REPLY_LINE, MAX_REPLY_LINES

# RFC 5321 4.2; octets outside of ASCII and control characters are not passed on
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(?:([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |\Z))?(.*))?\Z", re.S)

_BASE64 = re.compile(r"[A-Za-z0-9+/=]{8,}")
HIDDEN = "(hidden)"


class _Wait:
    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = _Wait()


class MailTransaction:
    """What goes into one MAIL, RCPT, DATA. `size` is announced where the host offers SIZE."""

    def __init__(
        self,
        sender: Mailbox,
        recipients: Sequence[Mailbox],
        size: int,
        say_eight_bit: bool = False,
        requiretls: bool = False,
    ) -> None:
        self.sender = sender
        self.recipients = recipients
        self.size = size
        self.say_eight_bit = say_eight_bit
        self.requiretls = requiretls


@dataclass(frozen=True, slots=True)
class HostReady:
    """The host answered EHLO (again): `extensions` maps keywords to parameters."""

    extensions: dict[str, str]


@dataclass(frozen=True, slots=True)
class GoAhead:
    """220 to STARTTLS, and nothing in clear behind it: begin the handshake."""


@dataclass(frozen=True, slots=True)
class NoGoAhead:
    """STARTTLS was refused, or octets stood in clear behind the 220 (`injected`)."""

    reply: Reply
    injected: bool = False


@dataclass(frozen=True, slots=True)
class ClientLogin:
    """What AUTH takes: PLAIN or LOGIN, user and password."""

    mechanism: str
    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The host answered AUTH: 235, or its refusal."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class SendBody:
    """The host waits for mail data: send it with dots and end, then call `body_sent`."""


@dataclass(frozen=True, slots=True)
class Done:
    """A transaction ended. One (reply, stage) per recipient, in the order given."""

    results: tuple[tuple[Reply, Stage], ...]
    accepted: int = 0  # recipients that the host took at RCPT


@dataclass(frozen=True, slots=True)
class Reset:
    """RSET was answered; the connection is good for another transaction."""


@dataclass(frozen=True, slots=True)
class SessionBroken:
    """The session cannot go on. `remote` tells that the reply is the host's own."""

    reply: Reply
    stage: Stage
    remote: bool


Event = HostReady | GoAhead | NoGoAhead | LoggedIn | SendBody | Done | Reset | SessionBroken


class ClientSession:
    """One session. `ehlo_name` is our name; with `esmtp` false HELO is said instead of EHLO. `said` and `heard` are
    told each command, without what AUTH hides, and each reply."""

    def __init__(self, ehlo_name: str, *, esmtp: bool = True) -> None:
        self.stage = Stage.READING_BANNER
        self.in_tls = False
        self.extensions: dict[str, str] = {}
        self.closed = False
        self.replies = 0  # whole ones that have come
        self.said: Callable[[str], object] | None = None
        self.heard: Callable[[Reply], object] | None = None
        self._ehlo_name = ehlo_name
        self._esmtp = esmtp
        self._buffer = b""
        self._lines: list[tuple[bytes, bytes, bytes]] = []
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self._expect: list[Callable[[Reply], object]] = [self._banner]
        self._transaction: MailTransaction | None = None
        self._mail_reply: Reply | None = None
        self._rcpt_replies: list[Reply] = []
        self._answers: list[bytes] = []
        self._secrets: list[str] = []

    def receive(self, data: bytes) -> None:
        self._buffer += data
        while not self.closed and (end := self._buffer.find(b"\n")) >= 0:
            line, self._buffer = self._buffer[: end + 1].rstrip(b"\r\n"), self._buffer[end + 1 :]
            self._line(line)
        if not self.closed and len(self._buffer) > MAX_REPLY_LINE:
            self._break(replies.MALFORMED_REPLY)

    def connection_lost(self) -> None:
        """The host closed the connection, or it broke."""
        self._break(replies.CONNECTION_CLOSED)

    def timed_out(self) -> None:
        """No reply came in time for the stage."""
        self._break(_NO_REPLY.get(self.stage, replies.CONNECTION_CLOSED))

    def next_event(self) -> Event | _Wait:
        return self._events.pop(0) if self._events else NEED_DATA

    def data_to_send(self) -> bytes:
        if not self._out:
            return b""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def expects_body(self) -> bool:
        """Whether mail data is what comes next."""
        return self.stage is Stage.SENDING_BODY

    # what the caller tells ------------------------------------------------------------------------------------

    def start_tls(self) -> None:
        self._say(b"STARTTLS\r\n", Stage.DURING_STARTTLS, self._starttls)

    def tls_started(self) -> None:
        """The handshake ended well: what the host said in clear counts no more (RFC 3207 4.2)."""
        self.in_tls = True
        self._buffer = b""
        self._hello()

    def log_in(self, login: ClientLogin) -> None:
        """AUTH (RFC 4954, 4616), answered by `LoggedIn`."""
        user, password = login.user.encode(), login.password.encode()
        if login.mechanism == "PLAIN":
            given, answers = b" PLAIN " + base64.b64encode(b"\0" + user + b"\0" + password), []
        else:
            given, answers = b" LOGIN", [user, password]
        self._answers = [base64.b64encode(octets) for octets in answers]
        self._secrets = [word.decode() for word in (given[7:], *self._answers[1:]) if word]
        self._secrets += [word for word in (login.password, base64.b64encode(password).decode()) if len(word) > 3]
        self._say(b"AUTH" + given + b"\r\n", Stage.AFTER_EHLO, self._challenged)

    def send(self, transaction: MailTransaction) -> None:
        """Begin a transaction, in one round where the host offers PIPELINING."""
        self._transaction = transaction
        self._mail_reply, self._rcpt_replies = None, []
        size = f" SIZE={transaction.size}" if "SIZE" in self.extensions else ""
        eight = " BODY=8BITMIME" if transaction.say_eight_bit and "8BITMIME" in self.extensions else ""
        tls = " REQUIRETLS" if transaction.requiretls else ""
        mail = f"MAIL FROM:<{transaction.sender}>{size}{eight}{tls}\r\n".encode("ascii", "replace")
        if "PIPELINING" not in self.extensions:
            self._say(mail, Stage.DURING_MAIL, self._mail)
            return
        rcpts = [_rcpt(mailbox) for mailbox in transaction.recipients]
        self._say(b"".join([mail, *rcpts, b"DATA\r\n"]), Stage.DURING_MAIL, self._mail)
        self._expect += [self._rcpt] * len(rcpts)
        self._expect.append(self._data)

    def body_sent(self) -> None:
        """All mail data and its end are on their way."""
        self.stage = Stage.READING_CONFIRMATION
        self._expect.append(self._confirmation)

    def rset(self) -> None:
        self._say(b"RSET\r\n", Stage.DURING_RSET, self._rset)

    def quit(self) -> None:
        if self.said is not None:
            self.said("QUIT")
        self._out.append(b"QUIT\r\n")
        self.closed = True

    # replies --------------------------------------------------------------------------------------------------

    def _line(self, line: bytes) -> None:
        match = _REPLY_LINE.match(line)
        if match is None or len(self._lines) >= MAX_REPLY_LINES or len(line) > MAX_REPLY_LINE:
            self._break(replies.MALFORMED_REPLY)
            return
        code, more, enhanced, text = match.groups()
        if self._lines and self._lines[0][0] != code:
            self._break(replies.MALFORMED_REPLY)
            return
        self._lines.append((code, enhanced or b"", text or b""))
        if more == b"-":
            return
        lines, self._lines = self._lines, []
        text = "\n".join(self._shown(part) for _, _, part in lines)
        if self.stage is not Stage.DURING_EHLO:
            text = cut(text, REPLY)  # it goes into logs, the spool and notifications
        self.replies += 1
        reply = Reply(int(code), lines[0][1].decode("ascii"), text)
        if self.heard is not None:
            self.heard(reply)
        in_transaction = self._transaction is not None  # there a 421 is the reply to its command
        if reply.code == 421 and self.stage is not Stage.READING_BANNER and not in_transaction:
            self._break(reply, remote=True)
            return
        if not self._expect:
            # with the mail data under way it is the answer to them: the host will not read on
            early = self.stage is Stage.SENDING_BODY and not reply.positive
            self._break(reply if early else replies.MALFORMED_REPLY, remote=early)
            return
        self._expect.pop(0)(reply)

    def _shown(self, text: bytes) -> str:
        """Text of a reply, which goes to logs and notifications, without the credentials that some hosts repeat."""
        shown = _printable(text)
        if not self._secrets:
            return shown
        for secret in self._secrets:
            shown = shown.replace(secret, HIDDEN)
        # pieces of what was sent, as of a line that was cut or folded
        return _BASE64.sub(lambda word: HIDDEN if any(word[0] in s for s in self._secrets) else word[0], shown)

    def _banner(self, reply: Reply) -> None:
        if reply.code != 220:
            self._break(reply, remote=True)
        else:
            self._hello()

    def _hello(self) -> None:
        self.extensions = {}
        verb = "EHLO" if self._esmtp else "HELO"
        self._say(
            f"{verb} {self._ehlo_name}\r\n".encode("ascii", "replace"),
            Stage.DURING_EHLO,
            self._hello_answered,
        )

    def _hello_answered(self, reply: Reply) -> None:
        if reply.permanent and self._esmtp:
            self._esmtp = False  # RFC 5321 3.2: an old server; it offers nothing then, STARTTLS included
            self._hello()
            return
        self.stage = Stage.AFTER_EHLO
        if reply.code != 250:
            self._break(reply, remote=True)
            return
        if self._esmtp:
            for line in reply.text.split("\n")[1:]:
                keyword, _, parameters = line.strip().partition(" ")
                self.extensions[keyword.upper()] = parameters
        self._events.append(HostReady(self.extensions))

    def _starttls(self, reply: Reply) -> None:
        self.stage = Stage.AFTER_STARTTLS
        if reply.code != 220:
            self._events.append(NoGoAhead(reply))
        elif self._buffer:
            # replies put behind the 220 would be read as if they had come through TLS
            self.closed = True
            self._events.append(NoGoAhead(reply, injected=True))
        else:
            self.stage = Stage.HANDSHAKING_TLS
            self._events.append(GoAhead())

    def _challenged(self, reply: Reply) -> None:
        if reply.code == 334 and self._answers:
            self._say(self._answers.pop(0) + b"\r\n", Stage.AFTER_EHLO, self._challenged)
        elif 300 <= reply.code < 400:
            self._break(replies.MALFORMED_REPLY)  # it wants more than the mechanism has
        else:
            self._events.append(LoggedIn(reply))

    def _mail(self, reply: Reply) -> None:
        reply = self._mail_reply = _final(reply)
        self.stage = Stage.DURING_RCPT if reply.positive else Stage.AFTER_MAIL
        if "PIPELINING" in self.extensions:
            return
        if reply.positive:
            self._next_rcpt()
        else:
            self._finish(reply, Stage.AFTER_MAIL)

    def _next_rcpt(self) -> None:
        assert self._transaction is not None
        n = len(self._rcpt_replies)
        if n < len(self._transaction.recipients):
            self._say(_rcpt(self._transaction.recipients[n]), Stage.DURING_RCPT, self._rcpt)
        elif any(reply.positive for reply in self._rcpt_replies):
            self._say(b"DATA\r\n", Stage.DURING_DATA, self._data)
        else:
            self._finish(None, Stage.AFTER_RCPT)

    def _rcpt(self, reply: Reply) -> None:
        self._rcpt_replies.append(_final(reply))
        if "PIPELINING" not in self.extensions:
            self._next_rcpt()
        elif self._transaction is not None and len(self._rcpt_replies) == len(self._transaction.recipients):
            self.stage = Stage.DURING_DATA

    def _data(self, reply: Reply) -> None:
        accepted = (
            self._mail_reply is not None and self._mail_reply.positive and any(r.positive for r in self._rcpt_replies)
        )
        if reply.code == 354 and accepted:
            self.stage = Stage.SENDING_BODY
            self._events.append(SendBody())
        elif reply.code == 354:
            # RFC 2920 3.1: DATA went out with its group and was taken although no recipient was: end it empty
            self._say(
                b".\r\n",
                Stage.READING_CONFIRMATION,
                lambda _: self._finish(self._refused_mail(), Stage.AFTER_RCPT),
            )
        elif not accepted:
            self._finish(self._refused_mail(), Stage.AFTER_RCPT)
        else:
            bad = reply if not reply.positive else replies.MALFORMED_REPLY
            self._finish(bad, Stage.AFTER_DATA)

    def _refused_mail(self) -> Reply | None:
        return self._mail_reply if self._mail_reply is not None and not self._mail_reply.positive else None

    def _confirmation(self, reply: Reply) -> None:
        self._finish(_final(reply), Stage.READING_CONFIRMATION)

    def _finish(self, reply: Reply | None, stage: Stage) -> None:
        """Give each recipient its reply: its own refusal, else that of the command that ended the transaction."""
        assert self._transaction is not None
        results: list[tuple[Reply, Stage]] = []
        mail = self._refused_mail()
        for n in range(len(self._transaction.recipients)):
            own = self._rcpt_replies[n] if n < len(self._rcpt_replies) else None
            if mail is not None:
                results.append((mail, Stage.AFTER_MAIL))
            elif own is not None and not own.positive:
                results.append((own, Stage.AFTER_RCPT))
            else:
                results.append((reply or replies.MALFORMED_REPLY, stage))
        accepted = sum(reply.positive for reply in self._rcpt_replies)
        self._transaction = None
        self.stage = Stage.IDLE
        self._events.append(Done(tuple(results), accepted))

    def _rset(self, reply: Reply) -> None:
        self.stage = Stage.AFTER_RSET
        if reply.code == 250:
            self._events.append(Reset())
        else:
            self._break(reply, remote=True)

    # common ---------------------------------------------------------------------------------------------------

    def _say(self, line: bytes, stage: Stage, then: Callable[[Reply], object]) -> None:
        if self.said is not None:
            for one in line.splitlines():
                self.said(self._shown(one))
        self._out.append(line)
        self.stage = stage
        self._expect.append(then)

    def _break(self, reply: Reply, *, remote: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        if remote and reply.positive:
            reply, remote = replies.MALFORMED_REPLY, False
        stage = self.stage
        if self._transaction is not None:
            self._finish(reply, stage)
        self._events.append(SessionBroken(reply, stage, remote))


def _final(reply: Reply) -> Reply:
    """The reply to a command that knows no 3xx: that one would be neither yes nor no."""
    return replies.MALFORMED_REPLY if 300 <= reply.code < 400 else reply


def _rcpt(mailbox: Mailbox) -> bytes:
    return f"RCPT TO:<{mailbox}>\r\n".encode("ascii", "replace")


def _printable(text: bytes) -> str:
    """Text of a host, fit for a log line: whatever is not printable ASCII becomes a question mark."""
    known = text.decode("latin-1")
    if known.isascii() and known.isprintable():
        return known
    return _UNPRINTABLE.sub(b"?", text).decode("ascii")


_UNPRINTABLE = re.compile(rb"[^\x20-\x7e]")
_NO_REPLY = {
    Stage.READING_BANNER: replies.NO_BANNER,
    Stage.DURING_EHLO: replies.NO_EHLO_RESPONSE,
    Stage.AFTER_EHLO: replies.NO_AUTH_RESPONSE,
    Stage.DURING_STARTTLS: replies.STARTTLS_NO_GO_AHEAD,
    Stage.HANDSHAKING_TLS: replies.TLS_FAILED,
    Stage.DURING_MAIL: replies.NO_MAIL_RESPONSE,
    Stage.DURING_RCPT: replies.NO_RCPT_RESPONSE,
    Stage.DURING_DATA: replies.NO_DATA_RESPONSE,
    Stage.SENDING_BODY: replies.NO_BODY_RESPONSE,
    Stage.READING_CONFIRMATION: replies.NO_BODY_RESPONSE,
    Stage.DURING_RSET: replies.NO_RSET_RESPONSE,
}
