"""An ESMTP session: stream, TLS engine, SMTP machine, policy and the door put together. Shell.

`Desk` is what all sessions of a worker share; it is replaced whole at reload, and a session keeps the one it began
with until MAIL FROM or RSET, where it is told 421 and closed (manual, reconfig_message).
"""

from __future__ import annotations

import dataclasses
import ipaddress
from functools import lru_cache
from typing import Any

from quillon import __version__
from quillon.config.scope import IPAddress
from quillon.listener import relay
from quillon.listener.desk import Desk
from quillon.listener.security import Security
from quillon.mail import reply as replies
from quillon.mail.address import Mailbox
from quillon.mail.event import Rejected
from quillon.mail.message import MessageId, Origin
from quillon.mail.reply import Reply
from quillon.net.stream import Stream
from quillon.policy.context import Context
from quillon.policy.hook import Call, MessageView, Phase, Session
from quillon.reception import content
from quillon.reception.content import Trace
from quillon.reception.door import Envelope
from quillon.reception.intake import Intake
from quillon.smtp import server as smtp
from quillon.smtp.server import ServerSession
from quillon.smtp.tables import State
from quillon.tls.verdict import HandshakeFailure

HANDSHAKE_TIMEOUT = 60.0  # seconds
LINGER = 30.0  # seconds that a last reply may take to leave
EHLO_KEYS = ("ehlo_string", "ehlo_domain")  # connection context
MAX_UNREAD = 65536  # octets pipelined behind a paused command before reading stops


class EsmtpSession:
    """One client on one Listen."""

    def __init__(self, desk: Desk, listen: str) -> None:
        self.stream = Stream(self)
        self.deadline = 0.0
        self._desk = desk
        self._listen = listen
        self._context = Context()
        self._session: ServerSession | None = None
        self._security: Security
        self._recipients: list[Mailbox] = []
        self._sender: Mailbox | None = None
        self._intake: Intake | None = None
        self._batch_id: MessageId | None = None
        self._ends_at = 0.0
        self._data_ends_at = 0.0
        self._counted = False
        self._paused = False
        self._committing = False
        self._hung_up = False
        self._retired = False
        self._over = False

    # the stream's side ----------------------------------------------------------------------------------------

    def connected(self) -> None:
        desk = self._desk
        remote, local = self.stream.addresses()
        self._remote = remote
        self._ip: IPAddress = _address(remote[0])
        now = desk.clock.now()
        self._id = desk.ids.next(now)
        self._settings, tls = desk.config.reception(self._listen, self._ip)
        self._info = Session(_endpoint(remote), _endpoint(local), str(self._id))
        self._security = Security(desk, tls, self._info, self._id, self._context)
        desk.sessions.add(self)
        desk.deadlines.add(self)
        self._ends_at = now + self._settings.session_time if self._settings.session_time else 0.0
        self._touch()
        self._count(+1)
        self._context.connection.update(self._settings.context or {})
        self._context.connection["pathway"] = self._settings.pathway
        if self._settings.use_ssl:
            if self._security.prepare() is None:
                self._begin_tls()
            else:
                self._over = True
                self.stream.abort()
        else:
            self._begin_smtp(in_tls=False)

    def _count(self, step: int) -> None:
        counts = self._desk.counts
        self._counted = step > 0
        counts.total += step
        counts.by_listen[self._listen] = counts.by_listen.get(self._listen, 0) + step

    def _too_many(self) -> bool:
        desk, settings, counts = self._desk, self._settings, self._desk.counts
        listener, service = desk.share(settings.listener_sessions), desk.share(settings.service_sessions)
        here = counts.by_listen.get(self._listen, 0)
        return bool((listener and here > listener) or (service and counts.total > service))

    def received(self, data: bytes) -> None:
        if self._session is None or self._over:
            return
        self._touch()
        self._session.receive(data)
        self._run()

    def secured(self) -> None:
        self._security.secured()
        self._touch()
        implicit = self._session is None
        if self._session is not None:
            self._context.forget_clear_text()
            self._session.tls_started()
        refusal = self._policy(Phase.TLS_POST_ACCEPT)
        if refusal is not None:
            self._refuse_tls(refusal)
        elif implicit:
            self._begin_smtp(in_tls=True)
        else:
            self._run()

    def _refuse_tls(self, refusal: Reply) -> None:
        """Policy does not want this handshake (manual, inbound_smtp_tls_post_accept): say so and hang up."""
        if self._session is None:
            hostname = self._settings.banner_hostname or self._desk.hostname
            self._session = ServerSession(self._settings, hostname, self._remote[0], can_starttls=False, in_tls=True)
        self.end(Reply(421, refusal.enhanced or "4.7.0", refusal.text or "TLS Negotiation failed."))

    def unsecured(self, failure: Any) -> None:
        assert isinstance(failure, HandshakeFailure)
        self._security.unsecured(failure)
        self._over = True
        self.stream.close()

    def closed(self) -> None:
        self._over = True
        self._desk.sessions.discard(self)
        self._desk.deadlines.discard(self)
        if self._counted:
            self._count(-1)
        self._security.release()
        if self._intake is not None:
            self._intake.discard()
            self._intake = None

    def writable(self) -> None:
        """The client reads its replies again: go on with what it has sent meanwhile."""
        if self._session is not None and not self._over:
            self._run()

    def ended(self) -> bool:
        """The client will send no more. A message that waits for its commit is still answered."""
        self._hung_up = True
        return self._committing

    def expired(self) -> None:
        if self._over or self.stream.blocked:
            self._over = True
            self.stream.abort()  # it reads nothing: a last reply would only be kept for it
        elif self._session is None or self._security.handshaking:
            if self._security.handshaking:
                self._security.unsecured(HandshakeFailure("handshake_timeout"))
            self._over = True
            self.stream.abort()
        else:
            self.end(replies.IDLE_TIMEOUT)

    def end(self, reply: Reply) -> None:
        """Close from our side, with a last reply where the session can carry one."""
        if self._over:
            return
        if self._session is not None:
            self._session.close(reply)
            self._flush()
        self._leave()

    def _leave(self) -> None:
        """Close once the last reply has left, which may not take for ever."""
        self._over = True
        self.deadline = self._desk.clock.now() + LINGER
        self.stream.close()

    def retire(self) -> None:
        """A new configuration is in force: the next MAIL FROM or RSET ends the session (manual, reconfig_message)."""
        self._retired = True
        if self._session is not None:
            enhanced, _, rest = self._settings.reconfig_message.partition(" ")
            known = enhanced.startswith("4.") and bool(rest)
            text = rest if known else self._settings.reconfig_message
            self._session.retiring = Reply(421, enhanced if known else "", text)

    @property
    def committing(self) -> bool:
        """Whether a message waits for its commit: the session owes an answer."""
        return self._committing

    @property
    def busy(self) -> bool:
        """Whether a message is under way: mail data is coming in, or waits for its commit."""
        return self._intake is not None or self._committing

    def _touch(self) -> None:
        """The idle time begins anew, within the bounds of the session's and the data's whole time."""
        if self._committing:
            return
        now = self._desk.clock.now()
        idle = self._settings.idle_time
        reading = self._session is not None and self._session.state is State.READING_BODY
        if reading and not self._data_ends_at and self._settings.data_time:
            self._data_ends_at = now + self._settings.data_time
        handshaking = self._security.handshaking
        ends = now + (HANDSHAKE_TIMEOUT if handshaking else idle) if idle or handshaking else 0.0
        whole = self._data_ends_at if reading else self._ends_at
        self.deadline = min(ends, whole) if ends and whole else ends or whole

    # TLS ------------------------------------------------------------------------------------------------------

    def _begin_tls(self) -> None:
        self._touch()
        self._security.begin(self.stream)

    def _begin_smtp(self, *, in_tls: bool) -> None:
        too_many = self._too_many()
        refusal = replies.CONCURRENCY_LIMIT if too_many else self._policy(Phase.CONNECT)
        self._follow_pathway()
        desk, settings = self._desk, self._settings
        hostname = settings.banner_hostname or desk.hostname
        usable = (
            not settings.use_ssl and "STARTTLS" in settings.smtp_extensions and desk.tls_usable(self._security.settings)
        )
        self._session = ServerSession(settings, hostname, self._remote[0], can_starttls=usable, in_tls=in_tls)
        if too_many:
            self._session.state = State.CONCURRENCY
        if self._retired:
            self.retire()
        self._session.greet(refusal or self._banner(hostname))
        self._run()

    def _banner(self, hostname: str) -> Reply:
        static = self._settings.static_banner
        if static and static.startswith("220"):
            return Reply(220, "", static[4:].replace("\r", ""))
        return Reply(220, "", f"{hostname} ESMTP Quillon {__version__} {self._desk.date()}")

    def _follow_pathway(self) -> None:
        """The connect phase may have chosen another pathway, whose TLS settings then hold for STARTTLS too."""
        pathway = self._context.connection.setdefault("pathway", self._settings.pathway)
        if pathway != self._settings.pathway:
            use_ssl = self._settings.use_ssl
            self._settings, self._security.settings = self._desk.config.reception_by_pathway(
                self._listen, self._ip, pathway
            )
            self._settings = dataclasses.replace(self._settings, pathway=pathway, use_ssl=use_ssl)
            limit = self._settings.session_time
            self._ends_at = self._desk.clock.now() + limit if limit else 0.0
            for key, value in (self._settings.context or {}).items():
                self._context.connection.setdefault(key, value)

    # events ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        session = self._session
        assert session is not None
        while not self._over and not self.stream.blocked:
            event = session.next_event()
            if event is smtp.NEED_DATA or event is smtp.PAUSED:
                break
            self._on(session, event)
        if session.refusals:
            self._log_refusals(session)
        self._flush()
        self._throttle_reading(session)
        if not self._over and (session.closing or (self._hung_up and not self._committing)):
            self._leave()

    def _flush(self) -> None:
        if self._session is not None:
            out = self._session.data_to_send()
            if out:
                self.stream.write(out)

    def _throttle_reading(self, session: ServerSession) -> None:
        full = self.stream.blocked or session.buffered > MAX_UNREAD
        if full and not self._paused:
            self._paused = True
            self.stream.pause_reading()
        elif self._paused and not full:
            self._paused = False
            self.stream.resume_reading()

    def _on(self, session: ServerSession, event: Any) -> None:
        if isinstance(event, smtp.Data):
            self._on_data(session, event)
        elif isinstance(event, smtp.RcptTo):
            self._on_rcpt(session, event)
        elif isinstance(event, smtp.MailFrom):
            self._on_mail(session, event)
        elif isinstance(event, smtp.Hello):
            self._on_hello(session, event)
        elif isinstance(event, smtp.StartTls):
            refusal = self._security.prepare()
            session.respond(refusal)
            self._flush()
            if refusal is None:
                self._begin_tls()

    def _on_hello(self, session: ServerSession, event: smtp.Hello) -> None:
        context = self._context
        before = {key: value for key in EHLO_KEYS if (value := context.connection.get(key)) is not None}
        message = context.message
        context.connection["ehlo_string"] = event.line
        context.connection["ehlo_domain"] = event.domain
        context.new_message()
        refusal = self._policy(Phase.EHLO, event.line + "\r\n")
        if refusal is not None:
            # a refused EHLO leaves a transaction as it is, and so what policy has noted of it
            context.message = message
            for key in EHLO_KEYS:
                context.connection.pop(key, None)
            context.connection.update(before)
        session.respond(refusal)
        self._close_if_told(session)

    def _on_mail(self, session: ServerSession, event: smtp.MailFrom) -> None:
        context = self._context
        context.new_message()
        context.message["mailfrom_string"] = event.line
        context.message["mailfrom_localpart"] = event.mailbox.local
        context.message["mailfrom_domain"] = event.mailbox.domain
        refusal = self._policy(Phase.MAILFROM, event.line)
        session.respond(refusal)
        if refusal is None:
            self._sender, self._recipients = event.mailbox, []
            self._batch_id = self._desk.ids.next(self._desk.clock.now())
        self._close_if_told(session)

    def _on_rcpt(self, session: ServerSession, event: smtp.RcptTo) -> None:
        context = self._context
        context.message["rcptto_string"] = event.line
        context.message["rcptto_localpart"] = event.mailbox.local
        context.message["rcptto_domain"] = event.mailbox.domain
        client = relay.client_may(self._settings, self._ip, context.connection)
        refusal = relay.refusal(self._desk.config, self._settings, client, self._sender, event.mailbox)
        if refusal is None and self._desk.policy.has(Phase.RCPTTO):
            refusal = self._policy(Phase.RCPTTO, event.line, self._view(event.mailbox))
        session.respond(refusal)
        if refusal is None:
            self._recipients.append(event.mailbox)
        self._close_if_told(session)

    def _on_data(self, session: ServerSession, event: smtp.Data) -> None:
        intake = self._intake
        if intake is None:
            intake = self._intake = self._new_intake()
        intake.add(event.data)
        if not event.last:
            return
        if event.fault is not None:
            self._end_of_message()
            intake.discard()
            session.respond(event.fault)
            return
        assert self._sender is not None
        assert self._batch_id is not None
        origin = Origin(
            self._remote[0],
            "esmtp",
            self._id,
            self._settings.pathway,
            self._desk.config.pathway_group(self._settings.pathway),
        )
        envelope = Envelope(self._batch_id, self._sender, self._recipients, origin, self._info, self._security.facts)
        self._intake = None  # the door has it from here on
        self._committing = True
        self.deadline = 0.0  # the client has done its part: no time limit of ours may cut off the answer
        self._desk.door.accept(envelope, intake, self._settings, self._context, self._answered)

    def _new_intake(self) -> Intake:
        desk = self._desk
        assert self._batch_id is not None
        limit = content.line_limit(self._settings)
        return Intake(
            desk.door.store, self._batch_id.number, desk.door.node.large_message_threshold, self._prefix, limit
        )

    def _prefix(self, head: bytes) -> bytes:
        return content.fields_to_add(head, self._settings, self._trace())

    def _trace(self) -> Trace:
        connection = self._context.connection
        tls = ""
        found = self._security.facts
        if found is not None and found.protocol:
            shown = {True: "yes", False: "no", None: "none"}[found.verified]
            facts = f"{found.protocol} {found.cipher} bits={found.bits}"
            tls = f"{facts} client-certificate-verified={shown}"
        verb = connection.get("ehlo_string", "")[:4].upper()
        protocol = "SMTP" if verb == "HELO" else "ESMTPS" if tls else "ESMTP"
        return Trace(
            client_ip=self._remote[0],
            client_port=self._remote[1],
            helo=connection.get("ehlo_domain", ""),
            hostname=self._settings.received_hostname or self._desk.hostname,
            sender=str(self._sender or ""),
            protocol=protocol,
            tls=tls,
            message_id=str(self._batch_id),
            date=self._desk.date(),
        )

    def _answered(self, reply: Reply) -> None:
        """The door's answer: at once for a refusal, after the commit for a 250."""
        self._committing = False
        self._end_of_message()
        session = self._session
        if session is None or self._over:
            return
        session.respond(reply)
        self._close_if_told(session)
        self._touch()
        self._run()

    def _end_of_message(self) -> None:
        self._intake = None
        self._data_ends_at = 0.0
        self._recipients = []
        self._sender = None

    # policy and log -------------------------------------------------------------------------------------------

    def _policy(self, phase: Phase, text: str = "", view: MessageView | None = None) -> Reply | None:
        policy = self._desk.policy
        if not policy.has(phase):
            self._context.disconnect = False
            return None
        return policy.run(Call(phase, self._info, self._context, text, view))

    def _view(self, mailbox: Mailbox) -> MessageView:
        sender = str(self._sender or "")
        return MessageView("", str(self._batch_id), str(self._id), sender, str(mailbox), b"", 0)

    def _close_if_told(self, session: ServerSession) -> None:
        if self._context.disconnect:
            session.closing = True

    def _log_refusals(self, session: ServerSession) -> None:
        refusals, session.refusals = session.refusals, []
        pathway = self._context.connection.get("pathway", self._settings.pathway)
        for state, reply in refusals:
            self._desk.log(
                Rejected(
                    time=self._desk.clock.now(),
                    remote=self._info.remote,
                    local=self._info.local,
                    connection_id=self._id,
                    pathway=pathway,
                    pathway_group=self._desk.config.pathway_group(pathway),
                    state=state.value,
                    reply=reply,
                    module=self._context.module or "core",
                    connection_context=dict(self._context.connection),
                    message_context=dict(self._context.message),
                    tls=self._security.facts,
                )
            )


@lru_cache(maxsize=65536)
def _address(ip: str) -> IPAddress:
    return ipaddress.ip_address(ip)


def _endpoint(address: tuple[str, int]) -> str:
    ip, port = address
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
