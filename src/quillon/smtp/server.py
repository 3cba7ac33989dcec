"""The receiving role of SMTP as a machine without I/O (RFC 5321, 2920, 1870, 2034, 3207).

    receive(octets)   what the client sent
    next_event()      one of `smtp.events`, or NEED_DATA, or PAUSED
    respond(reply)    answers the event; None stands for the usual positive reply
    data_to_send()    replies, batched: one write per round

The machine is PAUSED from an event until `respond`, so pipelined commands keep their order while a policy thinks.
What it can answer by itself (NOOP, RSET, faults of syntax and sequence) makes no event. Refusals of either kind are
kept in `refusals` for the rejectlog. Whether a client may relay, and what a policy says, is not decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from quillon.config.settings import ReceptionSettings
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.reply import Reply
from quillon.smtp import sasl
from quillon.smtp.auth import AuthDialog
from quillon.smtp.command import PathCommand, SyntaxFault, parse_path, path_rules, split
from quillon.smtp.events import (
    MORE,
    NEED_DATA,
    PAUSED,
    Authenticate,
    BeginAuth,
    BeginData,
    Data,
    Event,
    Extension,
    Hello,
    MailFrom,
    RcptTo,
    StartTls,
    WaitReason,
)
from quillon.smtp.tables import KEYWORDS, VERBS, State, Verb, When
from quillon.smtp.wire import MAX_COMMAND_LINE, MailDataReader

# Methods of the IANA registry, and whatever ends as a request line does (RFC 9325 3.8 on cross-protocol attacks)
_HTTP = re.compile(
    rb"(?:ACL|BASELINE-CONTROL|BIND|CHECKIN|CHECKOUT|CONNECT|COPY|DELETE|GET|HEAD|LABEL|LINK|LOCK|MERGE|MKACTIVITY"
    rb"|MKCALENDAR|MKCOL|MKREDIRECTREF|MKWORKSPACE|MOVE|OPTIONS|ORDERPATCH|PATCH|POST|PRI|PROPFIND|PROPPATCH|PUT|QUERY"
    rb"|REBIND|REPORT|SEARCH|TRACE|UNBIND|UNCHECKOUT|UNLINK|UNLOCK|UPDATE|UPDATEREDIRECTREF|VERSION-CONTROL)"
    rb"(?=[ \t\r\n]|\Z)|[^\r\n]{1,4096} HTTP/[0-9](?:\.[0-9])?[ \t]*\r?\n",
    re.IGNORECASE,
)
_HELLO_OF_TLS = re.compile(rb"\x16\x03|[\x80-\xff][\x00-\xff]\x01\x03", re.DOTALL)  # RFC 8446 5.1, and of SSL 2


class ServerSession:
    """One session. `hostname` is the name in replies, `client` the address of the client as text.

    `mechanisms` are the SASL mechanisms that can be used at all, `capabilities` the EHLO keywords that policy has added
    (True) or taken away (False), `trusted` whether the client may use the extensions by which it speaks for others.
    `heard` and `said` are told each command, without what AUTH hides, and each reply.
    """

    def __init__(
        self,
        settings: ReceptionSettings,
        hostname: str,
        client: str,
        *,
        can_starttls: bool,
        mechanisms: Sequence[str] = (),
        capabilities: Mapping[str, bool] | None = None,
    ):
        self.state = State.CONNECTED
        self.closing = False
        self.in_tls = False
        self.refusals: list[tuple[State, Reply]] = []
        self.messages = 0
        self.recipients = 0
        self.heard: Callable[[str], object] | None = None
        self.said: Callable[[Reply], object] | None = None
        self.retiring: Reply | None = None
        self._client = client
        self.trusted = False
        self._capabilities: Mapping[str, bool] = capabilities if capabilities is not None else {}
        self.authenticated = False
        self.must_authenticate = settings.enable_authentication
        self._ready: Event | None = None
        self._hello = ""
        self._hello_needed = True
        self._buffer = b""
        self._at = 0
        self._out: list[bytes] = []
        self._pending: Event | None = None
        self.greeted = False
        self._handshaking = False
        self._accepted: int = 0
        self._mail_data: MailDataReader | None = None
        self._size = 0
        self._skipping = False
        self._commands = 0
        self._errors = 0
        self._adopt(settings, hostname, mechanisms, can_starttls)

    def _adopt(self, settings: ReceptionSettings, hostname: str, mechanisms: Sequence[str], can_starttls: bool) -> None:
        """Everything that comes of the settings of a client, now and when the client is another one."""
        self.settings = settings
        self._hostname = hostname
        self._can_starttls = can_starttls
        self._auth = AuthDialog(mechanisms, settings.auth_in_clear)
        self._rules = path_rules(
            settings.rfc2821_pedantic_address_rules,
            settings.allow_trailing_whitespace_in_commands,
            settings.rfc2821_allow_whitespace_in_envelope or settings.allow_trailing_whitespace_in_commands,
            bool(mechanisms),
        )

    # the shell's side -----------------------------------------------------------------------------------------

    def greet(self, reply: Reply) -> None:
        """Send the banner, or the refusal of the connection, which closes it."""
        self.greeted = True
        self._hello_needed = self.settings.require_ehlo
        self._send(reply)
        self.state = State.AWAITING_HELLO
        if not reply.positive:
            self.closing = True

    def receive(self, data: bytes) -> None:
        if self._at >= len(self._buffer):
            self._buffer, self._at = data, 0
        else:
            self._buffer = self._buffer[self._at :] + data
            self._at = 0

    @property
    def waiting(self) -> Event | None:
        """The event that has not been answered."""
        return self._pending

    @property
    def buffered(self) -> int:
        """Octets received and not yet read: the shell stops reading when a paused session has many."""
        return len(self._buffer) - self._at

    def data_to_send(self) -> bytes:
        if not self._out:
            return b""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def next_event(self, budget: int = 0) -> Event | WaitReason:
        """What the client wants next. After `budget` commands that made no event MORE is given; 0 is no limit."""
        if self._pending is not None or not self.greeted or self._handshaking:
            return PAUSED
        if self._ready is not None:
            self._pending, self._ready = self._ready, None
            return self._pending
        taken = 0
        while not self.closing:
            if self._mail_data is not None:
                event = self._next_data(self._mail_data)
                return event or NEED_DATA
            if budget and taken >= budget:
                return MORE
            taken += 1
            line = self._next_line()
            if line is None:
                return NEED_DATA
            found = self._command(line) if self._auth.exchange is None else self._went_on(self._auth.response(line))
            if found is not None:
                self._pending = found
                return found
        return NEED_DATA

    def respond(self, reply: Reply | None) -> None:
        """Answer the pending event. A negative reply undoes what the command would have established."""
        event, self._pending = self._pending, None
        if reply is not None and reply.code == 421:
            self._send(reply)
            self.closing = True
            return
        if isinstance(event, Hello):
            self._answer_hello(event, reply)
        elif isinstance(event, MailFrom):
            self._send(reply or replies.SENDER_OK)
            if reply is None or reply.positive:
                self._accepted = 0
                self._go_on("MAIL")
        elif isinstance(event, RcptTo):
            self._send(reply or replies.RECIPIENT_OK)
            if reply is None or reply.positive:
                self._accepted += 1
        elif isinstance(event, Data):
            self._send(reply or replies.OK)
            if reply is None or reply.positive:
                self.messages += 1
            self._reset()
        elif isinstance(event, BeginData):
            self._answer_data(reply)
        else:
            self._answer_extension(event, reply)
        if reply is not None and reply.permanent and not isinstance(event, BeginAuth | Authenticate):
            self._count_error()  # what relaying rules and policies refuse is guessed at as well

    def _answer_extension(self, event: Event | None, reply: Reply | None) -> None:
        if isinstance(event, StartTls):
            self._send(reply or replies.READY_FOR_TLS)
            self._handshaking = reply is None or reply.positive
            if self._handshaking and self.settings.starttls_injection_policy != "allow":
                self._buffer, self._at = b"", 0
        elif isinstance(event, BeginAuth | Authenticate):
            self._answer_auth(reply)
        elif isinstance(event, Extension):
            self._send(reply or replies.OK)

    def tls_started(self) -> None:
        """The handshake ended well: forget all that was said in clear (RFC 3207 4.2).

        Only under Starttls_Injection_Policy = allow is something left in the buffer, to be read as if it had come now.
        """
        self.in_tls, self._handshaking = True, False
        self.authenticated, self._auth.exchange = False, None
        self.begin_anew()

    def begin_anew(self) -> None:
        """As after the banner: whoever speaks now has to say EHLO."""
        self._hello, self._hello_needed = "", True
        self._reset()
        self._go_on("STARTTLS")

    def client_is(
        self,
        client: str,
        settings: ReceptionSettings,
        *,
        hostname: str,
        mechanisms: Sequence[str],
        can_starttls: bool,
    ) -> None:
        """The client is somebody else now (XCLIENT, XREMOTEIP), whose settings hold: drop what was begun."""
        self._client = client
        self._adopt(settings, hostname, mechanisms, can_starttls)
        if self.greeted:
            self._reset()

    def auth(self, exchange: sasl.Exchange, initial: bytes | None) -> None:
        """Answer BeginAuth: go on with this exchange."""
        event, self._pending = self._pending, None
        assert isinstance(event, BeginAuth)
        self._ready = self._went_on(self._auth.begin(event.mechanism, exchange, initial))

    def end_exchange(self, attempt: sasl.AuthOutcome) -> None:
        """End the exchange with this attempt instead of the client's next response."""
        self._ready = self._auth.end(attempt)

    @property
    def authenticating(self) -> str:
        """The mechanism of the exchange that waits for the client, or nothing."""
        return self._auth.mechanism if self._auth.exchange is not None else ""

    def close(self, reply: Reply) -> None:
        """End the session from our side: time limits, shutdown."""
        self._pending = None
        self._send(reply)
        self.closing = True

    # commands -------------------------------------------------------------------------------------------------

    def _next_line(self) -> bytes | None:
        if not self._commands and not self.in_tls and _HELLO_OF_TLS.match(self._buffer, self._at):
            self._buffer, self._at = b"", 0
            self._refuse(replies.TLS_IN_CLEAR)
            return None
        end = self._buffer.find(b"\n", self._at)
        if end < 0:
            longest = MAX_COMMAND_LINE if self._auth.exchange is None else sasl.MAX_RESPONSE
            if len(self._buffer) - self._at > longest:
                if not self._skipping and _HTTP.match(self._buffer, self._at):
                    self._refuse(replies.NOT_HTTP)
                self._skipping = True
                self._buffer, self._at = b"", 0
            return None
        line = self._buffer[self._at : end + 1]
        self._at = end + 1
        if self._skipping:
            self._skipping = False
            return b"\0" * (sasl.MAX_RESPONSE + 1)
        return line

    def _command(self, line: bytes) -> Event | None:
        self._commands += 1
        limit = self.settings.max_commands_per_connection
        if limit and self._commands > limit:
            return self._refuse(replies.TOO_MANY_ERRORS)
        if len(line) > MAX_COMMAND_LINE:
            return self._unrecognized(line) if _HTTP.match(line) else self._refuse(replies.LINE_TOO_LONG)
        try:
            text = line[:-2].decode("ascii")
        except UnicodeDecodeError:
            return self._unrecognized(line)
        if not line.endswith(b"\r\n") or "\r" in text or "\0" in text:
            return self._unrecognized(line)  # a lone CR or LF ends no line
        verb, argument = split(text)
        if self.heard is not None:
            self.heard(_without_secrets(verb, argument, text))
        row = VERBS.get(verb)
        if row is None:
            if self.settings.allow_trailing_whitespace_in_commands and verb.strip() in VERBS:
                row = VERBS[verb.strip()]
            else:
                return self._unrecognized(line)
        if row.argument is not None and argument:
            if not (self.settings.allow_trailing_whitespace_in_commands and not argument.strip()):
                return self._refuse(row.argument)
            argument = ""
        refusal = self._out_of_order(row)
        if refusal is not None:
            return self._refuse(refusal)
        return _HANDLERS[row.name](self, argument, text)

    def _out_of_order(self, row: Verb) -> Reply | None:
        """Why a verb cannot come now."""
        if row.known and not getattr(self, row.known)():
            return replies.UNRECOGNIZED
        if row.retires and self.retiring is not None:
            return self.retiring
        if row.hello_optional and self.state is State.AWAITING_HELLO and not self._hello_needed:
            return None
        return row.refused.get(self.state)

    def _do_hello(self, argument: str, line: str) -> Event | None:
        verb = line[:4].upper()
        domain = argument.strip()
        if not domain or " " in domain or len(domain) > 255 or not domain.isprintable():
            return self._refuse(replies.INVALID_EHLO if verb == "EHLO" else replies.INVALID_HELO)
        return Hello(verb, domain, line)

    def _answer_hello(self, event: Hello, reply: Reply | None) -> None:
        if reply is not None and not reply.positive:
            self._send(reply)
            return
        self._reset()
        self._hello, self._hello_needed = event.domain, False
        self._go_on(event.verb)
        greeting = f"{self._hostname} says {event.verb} to {self._client}"
        lines = [greeting] if event.verb == "HELO" else [greeting, *self._keywords()]
        self._send(_hello_reply("\n".join(lines)))

    def _keywords(self) -> list[str]:
        out = []
        taken = {name.partition(" ")[0] for name, there in self._capabilities.items() if not there}
        for keyword in KEYWORDS:
            listed = keyword.when in (When.LISTED, When.TRUSTED, When.IN_TLS)
            if keyword.name in taken or (listed and not self._lists(keyword.name)):
                continue
            if keyword.when is When.IN_TLS and not self.in_tls:
                continue
            if keyword.when is When.TRUSTED and not self.trusted:
                continue
            if keyword.when is When.STARTTLS and not self._offers_starttls():
                continue
            limit = self.settings.max_message_size
            arguments = str(limit) if keyword.name == "SIZE" and limit else keyword.arguments
            out.append(f"{keyword.name} {arguments}" if arguments else keyword.name)
        offered = self._auth.offered(in_tls=self.in_tls)
        if offered and "AUTH" not in taken:
            out += [f"AUTH={' '.join(offered)}", f"AUTH {' '.join(offered)}"]
        out += [name for name, there in self._capabilities.items() if there and name not in out]
        return out

    def _lists(self, keyword: str) -> bool:
        return keyword in self.settings.smtp_extensions

    def _offers_requiretls(self) -> bool:
        return self.in_tls and self._lists("REQUIRETLS") and self._capabilities.get("REQUIRETLS", True)

    def _offers_starttls(self) -> bool:
        return self._can_starttls and not self.in_tls and self._lists_starttls()

    def _lists_starttls(self) -> bool:
        return self._lists("STARTTLS") and not self.settings.use_ssl and self._capabilities.get("STARTTLS", True)

    def _do_mail(self, argument: str, line: str) -> Event | None:
        if self.must_authenticate and not self.authenticated:
            return self._refuse(replies.AUTHENTICATION_REQUIRED)
        limit = self.settings.max_receptions_per_connection
        if limit and self.messages >= limit:
            return self._refuse(replies.MESSAGES_PER_CONNECTION)
        command = parse_path(argument, self._rules, sender=True, requiretls=self._offers_requiretls())
        if isinstance(command, SyntaxFault):
            return self._refuse(command.reply)
        refusal = self._check_sender(command)
        if refusal is not None:
            return self._refuse(refusal)
        domain = self.settings.domain_for_unqualified_sender_address
        mailbox = _qualified(command.mailbox, domain)
        return MailFrom(mailbox, line, command.size, command.eight_bit, command.requiretls)

    def _check_sender(self, command: PathCommand) -> Reply | None:
        settings, mailbox = self.settings, command.mailbox
        if mailbox.null and not settings.allow_null_envelope_sender:
            return replies.NULL_SENDER_REFUSED
        if mailbox.domain.startswith("[") and not settings.allow_ip_literal:
            return replies.LITERAL_REFUSED
        if not mailbox.null and not mailbox.domain and not settings.domain_for_unqualified_sender_address:
            return replies.UNQUALIFIED
        if settings.max_message_size and command.size and command.size > settings.max_message_size:
            return replies.MESSAGE_TOO_LARGE
        return None

    def _do_rcpt(self, argument: str, line: str) -> Event | None:
        self.recipients += 1
        settings = self.settings
        if settings.max_recipients_per_connection and self.recipients > settings.max_recipients_per_connection:
            return self._refuse(replies.RECIPIENTS_PER_CONNECTION)
        if settings.max_recipients_per_message and self._accepted >= settings.max_recipients_per_message:
            return self._refuse(replies.RECIPIENTS_PER_MESSAGE)
        command = parse_path(argument, self._rules, sender=False)
        if isinstance(command, SyntaxFault):
            return self._refuse(command.reply)
        if command.mailbox.domain.startswith("[") and not settings.allow_ip_literal:
            return self._refuse(replies.LITERAL_REFUSED)
        domain = settings.domain_for_unqualified_recipient_addresses
        postmaster = not command.mailbox.domain and command.mailbox.local.strip('"').lower() == "postmaster"
        if not command.mailbox.domain and not domain and not postmaster:
            return self._refuse(replies.UNQUALIFIED)
        own = settings.received_hostname or self._hostname
        return RcptTo(_qualified(command.mailbox, domain or own), line, postmaster)

    def _do_data(self, argument: str, line: str) -> Event | None:
        if not self._accepted:
            return self._refuse(replies.DATA_WITHOUT_RCPT)
        return BeginData()

    def _answer_data(self, reply: Reply | None) -> None:
        """A refusal leaves the transaction as it is (RFC 5321 4.1.1.4)."""
        self._send(reply or replies.START_MAIL_INPUT)
        if reply is not None:
            return
        self._mail_data = MailDataReader(
            repair_headers=self.settings.rfc2822_lone_lf_in_headers == "fix",
            repair_body=self.settings.rfc2822_lone_lf_in_body == "fix",
        )
        self._size = 0
        self._go_on("DATA")

    def _do_rset(self, argument: str, line: str) -> Event | None:
        self._reset()
        self._send(replies.RESET)
        return None

    def _do_noop(self, argument: str, line: str) -> Event | None:
        self._send(replies.OK)
        return None

    def _do_quit(self, argument: str, line: str) -> Event | None:
        self._send(replies.CLOSING)
        self.closing = True
        return None

    def _do_vrfy(self, argument: str, line: str) -> Event | None:
        self._send(replies.CANNOT_VERIFY)
        return None

    def _do_help(self, argument: str, line: str) -> Event | None:
        self._send(replies.HELP)
        return None

    def _do_starttls(self, argument: str, line: str) -> Event | None:
        if not self._lists_starttls():
            return self._refuse(replies.UNRECOGNIZED)
        if self.in_tls:
            return self._refuse(replies.BAD_SEQUENCE)
        if not self._can_starttls:
            return self._refuse(replies.TLS_NOT_AVAILABLE)
        policy = self.settings.starttls_injection_policy
        if self._at < len(self._buffer) and policy == "reject":
            # CVE-2011-0411: commands sent in clear behind STARTTLS would count as sent inside TLS
            self.closing = True
            return self._refuse(replies.BAD_SEQUENCE)
        return StartTls()

    def _do_extension(self, argument: str, line: str) -> Event | None:
        verb = line.partition(" ")[0].upper()
        if not (self.trusted and self._lists(verb)):
            return self._refuse(replies.UNRECOGNIZED)
        return Extension(verb, argument)

    # AUTH (RFC 4954) ------------------------------------------------------------------------------------------

    def _knows_auth(self) -> bool:
        return bool(self._auth.mechanisms) and self._capabilities.get("AUTH") is not False

    def _do_auth(self, argument: str, line: str) -> Event | None:
        if self.authenticated:
            return self._refuse(replies.BAD_SEQUENCE)
        found = self._auth.command(argument, in_tls=self.in_tls)
        return self._refuse(found) if isinstance(found, Reply) else found

    def _went_on(self, found: Authenticate | Reply) -> Event | None:
        """The end of an exchange, a challenge, or a refusal."""
        if not isinstance(found, Reply):
            return found
        if not found.positive:
            return self._refuse(found)
        self._send(found)
        return None

    def _answer_auth(self, reply: Reply | None) -> None:
        if reply is not None:
            self._refuse(reply)
            return
        self.authenticated = True
        self._send(replies.AUTHENTICATED)

    # mail data ------------------------------------------------------------------------------------------------

    def _next_data(self, reader: MailDataReader) -> Data | None:
        if self._at >= len(self._buffer):
            return None
        octets = self._buffer[self._at :] if self._at else self._buffer
        self._buffer, self._at = b"", 0
        data = reader.feed(octets)
        self._size += len(data)
        limit = self.settings.max_message_size
        too_large = bool(limit) and self._size > limit
        if reader.complete:
            self._mail_data = None
            self._buffer, self._at = reader.rest, 0
            self.state = State.ANSWERING_BODY
            event = Data(b"" if too_large else data, True, self._data_fault(reader, too_large))
            self._pending = event
            return event
        return Data(data, False) if data and not too_large else None

    def _data_fault(self, reader: MailDataReader, too_large: bool) -> Reply | None:
        if too_large:
            return replies.MESSAGE_TOO_LARGE
        if reader.nul and self.settings.nul_in_message == "reject":
            return replies.NUL_IN_MESSAGE
        if reader.lone_in_headers and self.settings.rfc2822_lone_lf_in_headers == "pedantic":
            return replies.LONE_LF_IN_HEADERS
        if reader.lone_in_body and self.settings.rfc2822_lone_lf_in_body == "pedantic":
            return replies.LONE_LF_IN_BODY
        return None

    # common ---------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._accepted = 0
        self.state = State.AWAITING_MAIL if self._hello else State.AWAITING_HELLO

    def _go_on(self, verb: str) -> None:
        """A verb was answered with a positive reply."""
        self.state = VERBS[verb].leads_to or self.state

    def _refuse(self, reply: Reply) -> Event | None:
        self._send(reply)
        if reply.code == 421:
            self.closing = True
        self._count_error()
        return None

    def _count_error(self) -> None:
        """One refusal more; Max_Errors_Per_Connection ends the session behind its reply."""
        self._errors += 1
        limit = self.settings.max_errors_per_connection
        if limit and self._errors >= limit and not self.closing:
            self._send(replies.TOO_MANY_ERRORS)
            self.closing = True

    def _unrecognized(self, line: bytes) -> Event | None:
        """A line that is no command. What speaks HTTP is cut off, for the rest of it may be made to look like SMTP."""
        if _HTTP.match(line):
            self._buffer, self._at = b"", 0
            return self._refuse(replies.NOT_HTTP)
        return self._refuse(replies.UNRECOGNIZED)

    def _send(self, reply: Reply) -> None:
        if reply.code >= 400:
            self.refusals.append((self.state, reply))
        if self.said is not None:
            self.said(reply)
        self._out.append(reply.encode())


def _without_secrets(verb: str, argument: str, line: str) -> str:
    """A command line without what may be a password: that of AUTH, and a response that comes where none is expected."""
    if verb == "AUTH":
        words = argument.split()[:1]  # a client may leave the mechanism out, and say its password there
        return " ".join([verb, *(word for word in words if word.upper() in sasl.MECHANISMS)])
    return line if verb in VERBS else "(unrecognized)"


@lru_cache(maxsize=256)
def _hello_reply(text: str) -> Reply:
    """One object for all sessions of a client, which is put into octets once."""
    return Reply(250, "", text)


def _qualified(mailbox: Mailbox, domain: str | None) -> Mailbox:
    if mailbox.domain or mailbox.null or not domain:
        return mailbox
    return Mailbox(mailbox.local, domain)


_Handler = Callable[[ServerSession, str, str], Event | None]
_HANDLERS: dict[str, _Handler] = {name: getattr(ServerSession, row.handler) for name, row in VERBS.items()}
