"""An ESMTP session: stream, TLS engine, SMTP machine, policy and reception put together. Shell.

`SessionServices` is what all sessions of a worker share; it is replaced whole at reload, and a session keeps the one it
began with until MAIL FROM or RSET, where it is told 421 and closed (manual, reconfig_message).

A step that has to wait, for a policy or a password, becomes a task; the SMTP machine is paused meanwhile, and what the
client sends is kept. `Policy_Time` bounds the wait.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
from collections.abc import Callable, Coroutine, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any

from quillon import __version__
from quillon.config.contracts import KIND
from quillon.config.scope import IPAddress
from quillon.config.values import TRUSTED_EXTENSIONS
from quillon.listener import authentication, relay, trusted
from quillon.listener.contract import Breach
from quillon.listener.login import AUTH_KEYS, Login
from quillon.listener.recorder import SessionRecord
from quillon.listener.services import SessionServices
from quillon.listener.session_tls import SessionTls
from quillon.listener.transaction import Transaction
from quillon.log.trace import SessionTrace
from quillon.mail import reply as replies
from quillon.mail import shown
from quillon.mail.event import Rejected
from quillon.mail.reply import Reply
from quillon.net import eager
from quillon.net.stream import SessionStream, Stream
from quillon.policy.context import Context
from quillon.policy.hook import Call, Phase, Session, reply_of
from quillon.smtp import events as smtp
from quillon.smtp.sasl import AuthOutcome
from quillon.smtp.server import ServerSession
from quillon.smtp.tables import State
from quillon.tls.verdict import HandshakeFailure

HANDSHAKE_TIMEOUT = 60.0  # seconds
LINGER = 30.0  # seconds that a last reply may take to leave
EHLO_KEYS = ("ehlo_string", "ehlo_domain")  # connection context
COMMANDS_A_TURN = 32  # that the machine answers by itself before other sessions get their turn
MAX_UNREAD = 65536  # octets pipelined behind a paused command before reading stops


Step = Coroutine[Any, Any, None] | None  # what is left of a step that has to wait


class Link(IntEnum):
    """How much of a connection still stands; it only goes down."""

    OPEN = 0
    HALF_CLOSED = 1  # the client will send no more: what it has sent is answered
    CLOSING = 2  # a last reply leaves, and nothing is read
    GONE = 3


class EsmtpSession:
    """One client on one Listen."""

    def __init__(self, services: SessionServices, listen: str, stream: SessionStream | None = None) -> None:
        self.stream: SessionStream = stream if stream is not None else Stream(self)
        self.deadline = 0.0
        self._services = services
        self._listen = listen
        self._context = Context()
        self._link = Link.OPEN
        self._session: ServerSession
        self._security: SessionTls
        self._transaction: Transaction
        self._login: Login
        self._task: asyncio.Task[None] | None = None
        self._record: SessionRecord | None = None
        self._trace: SessionTrace | None = None
        self._rcpt_commands = 0  # since MAIL FROM
        self._breach: Breach | None = None  # of a contract, by the last MAIL FROM
        self._ends_at = 0.0
        self._data_ends_at = 0.0

    # the stream's side ----------------------------------------------------------------------------------------

    def connected(self) -> None:
        services = self._services
        remote, local = self.stream.addresses()
        self._remote = remote
        self._ip: IPAddress = _address(remote[0])
        self._own_ip = self._ip
        now = services.clock.now()
        self._id = services.ids.next(now)
        self._settings, tls = services.config.inbound.reception(self._listen, self._ip)
        self._info = Session(_endpoint(remote), _endpoint(local), str(self._id))
        self._security = SessionTls(services, tls, self._info, self._id, self._context)
        self._transaction = Transaction(services, self._settings, self._info, self._id, self._context, self._security)
        self._login = Login(services, self._settings, self._info, self._id, self._context)
        self._session = self._machine(services)
        services.sessions.add(self)
        services.deadlines.add(self)
        self._ends_at = now + self._settings.session_time if self._settings.session_time else 0.0
        self._touch()
        self._count(+1)
        services.note("connections", remote[0])
        if services.recorder is not None:
            record = services.recorder.begin(self._info.remote, self._info.local, self._listen)
            self._record = self._security.record = self._transaction.record = self._login.record = record
        if services.tracers:
            trace = services.tracers.begin("in", remote[0], self._info.remote)
            self._trace = self._security.trace = self._transaction.trace = trace
        self._be_looked_on()
        self._context.connection.update(self._settings.context or {})
        self._context.connection["pathway"] = self._settings.pathway
        if self._settings.use_ssl:
            if self._security.prepare() is None:
                self._begin_tls()
            else:
                self._abort()
        else:
            self._start(self._begin_smtp())

    def _be_looked_on(self) -> None:
        """Commands and replies go to whoever records or traces the session."""
        watchers = [one for one in (self._record, self._trace) if one is not None]
        if not watchers:
            return

        def heard(line: str) -> None:
            for one in watchers:
                one.heard(line)

        def said(reply: Reply) -> None:
            for one in watchers:
                one.said(reply)

        self._session.heard, self._session.said = heard, said

    def _machine(self, services: SessionServices) -> ServerSession:
        """The SMTP of this session, which waits for its banner. The settings that STARTTLS and AUTH depend on may be
        others after the connect phase."""
        settings = self._settings
        session = ServerSession(
            settings,
            self._hostname,
            self._remote[0],
            can_starttls=self._can_starttls(),
            mechanisms=authentication.mechanisms(settings),
            capabilities=self._info.capabilities,
        )
        session.must_authenticate = self._must_authenticate()
        return session

    def _must_authenticate(self) -> bool:
        settings = self._settings
        return settings.enable_authentication and not relay.needs_no_authentication(settings, self._ip)

    def _count(self, step: int) -> None:
        counts = self._services.counts
        counts.total += step
        counts.by_listen[self._listen] = counts.by_listen.get(self._listen, 0) + step

    def _too_many(self) -> bool:
        services, settings, counts = self._services, self._settings, self._services.counts
        listener, service = services.share(settings.listener_sessions), services.share(settings.service_sessions)
        here = counts.by_listen.get(self._listen, 0)
        return bool((listener and here > listener) or (service and counts.total > service))

    def shown(self) -> dict[str, Any]:
        """What it is about, for the console."""
        tls = self._security.facts
        return {
            "client": _endpoint(self._remote),
            "listen": self._listen,
            "state": self._session.state.name.lower().replace("_", " ") if self._link is Link.OPEN else "closing",
            "tls": tls.protocol if tls is not None else "",
            "since": float(self._id.slot),
        }

    @property
    def client(self) -> str:
        """The client's address."""
        return self._remote[0]

    def received(self, data: bytes) -> None:
        if self._link >= Link.CLOSING:
            return
        if self._task is None:
            self._touch()
        self._session.receive(data)
        self._run()

    def secured(self) -> None:
        self._touch()
        if self._session.greeted:
            self._context.forget_clear_text()
        if self._start(self._after_handshake()) and self._session.greeted and self._link < Link.CLOSING:
            self._run()

    async def _after_handshake(self) -> None:
        await self._security.secured()
        if self._link >= Link.CLOSING:
            return
        refusal = await self._policy(Phase.TLS_POST_ACCEPT)
        session = self._session
        if session.greeted:
            session.tls_started()
        else:
            session.in_tls = True
        if refusal is not None:
            self._refuse_tls(refusal)
        elif not session.greeted:
            await self._begin_smtp()

    def _refuse_tls(self, refusal: Reply) -> None:
        """Policy does not want this handshake (manual, inbound_smtp_tls_post_accept): say so and hang up.

        `_tls_note` of the context is what is said, where a script has set it.
        """
        note = self._context.connection.get("_tls_note")
        if note:
            refusal = reply_of(421, note.removeprefix("421 "))
        text = "TLS Negotiation failed." if refusal.text == replies.NO_TEXT else refusal.text
        self.end(Reply(421, refusal.enhanced or "4.7.0", text))

    def unsecured(self, failure: Any) -> None:
        assert isinstance(failure, HandshakeFailure)
        self._security.unsecured(failure)
        self._link = Link.CLOSING
        self.stream.close()

    def closed(self) -> None:
        self._link = Link.GONE
        if self._task is not None:
            self._task.cancel()
        self._services.sessions.discard(self)
        self._services.deadlines.discard(self)
        self._count(-1)
        self._login.ended(self._session)
        self._security.release()
        self._transaction.abandon()
        self._info.over = True
        if self._trace is not None:
            self._trace.note("closed")
        if self._record is not None and self._services.recorder is not None:
            self._record.context(self._context.connection)
            self._services.recorder.finish(self._record)
        if self._services.policy.has(Phase.DEALLOC):
            eager.at_once(self._services.policy.run(Call(Phase.DEALLOC, self._info, self._context)))

    def writable(self) -> None:
        """The client reads its replies again: go on with what it has sent meanwhile."""
        if self._link < Link.CLOSING:
            self._run()

    def ended(self) -> bool:
        """The client will send no more. What it has sent is still answered."""
        self._link = max(self._link, Link.HALF_CLOSED)
        return self._link is Link.HALF_CLOSED and (self._waiting or self.stream.blocked)

    @property
    def _waiting(self) -> bool:
        """Whether this session goes on by itself: a policy or a commit answers, or its turn comes."""
        return self._transaction.committing or self._task is not None or self._services.turns.waits(self)

    def expired(self) -> None:
        if self._task is not None and self._link < Link.CLOSING:
            self._waited_too_long(self._task)
        elif self._link >= Link.CLOSING or self.stream.blocked:
            self._abort()  # it reads nothing: a last reply would only be kept for it
        elif self._security.handshaking:
            self._security.unsecured(HandshakeFailure("handshake_timeout"))
            self._abort()
        else:
            self.end(replies.IDLE_TIMEOUT)

    def end(self, reply: Reply) -> None:
        """Close from our side, with a last reply where the session can carry one."""
        if self._link >= Link.CLOSING:
            return
        if not self._security.handshaking:
            self._session.close(reply)
            self._flush()
        self._leave()

    def _leave(self) -> None:
        """Close once the last reply has left, which may not take for ever."""
        self._link = Link.CLOSING
        self.deadline = self._services.clock.now() + LINGER
        self.stream.close()

    def _abort(self) -> None:
        """Close at once."""
        self._link = Link.CLOSING
        self.stream.abort()

    def retire(self) -> None:
        """A new configuration is in force: the next MAIL FROM or RSET ends the session (manual, reconfig_message)."""
        enhanced, _, rest = self._settings.reconfig_message.partition(" ")
        known = enhanced.startswith("4.") and bool(rest)
        text = rest if known else self._settings.reconfig_message
        self._session.retiring = Reply(421, enhanced if known else "", text)

    @property
    def committing(self) -> bool:
        """Whether a message waits for its commit: the session owes an answer."""
        return self._transaction.committing

    @property
    def busy(self) -> bool:
        """Whether a message is under way: mail data is coming in, or waits for its commit."""
        return self._transaction.busy

    def _touch(self) -> None:
        """The idle time begins anew, within the bounds of the session's and the data's whole time."""
        if self._transaction.committing:
            return
        now = self._services.clock.now()
        idle = float(self._settings.idle_time)
        reading = self._session.state is State.READING_BODY
        if reading and not self._data_ends_at and self._settings.data_time:
            self._data_ends_at = now + self._settings.data_time
        if self._security.handshaking:
            idle = min(idle, HANDSHAKE_TIMEOUT) if idle else HANDSHAKE_TIMEOUT
        ends = now + idle if idle else 0.0
        whole = self._data_ends_at if reading else self._ends_at
        self.deadline = min(ends, whole) if ends and whole else ends or whole

    def authenticated_as(self, mechanism: str, user: str) -> None:
        """End an exchange of AUTH without its dialog; for plays of recorded sessions, which hold no secrets."""
        if self._session.authenticating:
            self._session.end_exchange(AuthOutcome(user, None))
            self._run()

    async def settled(self) -> None:
        """Until nothing of this session waits for a policy, or for its turn."""
        while self._task is not None or self._services.turns.waits(self):
            if self._task is not None:
                await asyncio.wait([self._task])
            await asyncio.sleep(0)

    # steps that may have to wait ------------------------------------------------------------------------------

    def _start(self, step: Coroutine[Any, Any, None]) -> bool:
        """Take a step; whether it is done. One that has to wait goes on by itself, and the session with it."""
        task = eager.start(step)
        if task is None:
            return True
        self._task = task
        limit = self._settings.policy_time
        self.deadline = self._services.clock.now() + limit + self._info.delay if limit else 0.0
        task.add_done_callback(self._went_on)
        return False

    def _went_on(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not (task.cancelled() and self._link >= Link.CLOSING):
            context = {"message": "session", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            self.end(replies.INTERNAL_ERROR)
        if self._link < Link.CLOSING:
            self._touch()
            self._run()

    def _waited_too_long(self, task: asyncio.Task[None]) -> None:
        """A policy did not come to an end: the command is answered 451, and the session goes on."""
        if self._transaction.committing or task.done():
            return  # policy has just decided: the answer comes with the commit, or is about to leave
        session = self._session
        where = self._context.module or "core"
        self._services.policy.report(
            f"scriptlet: {where} waited longer than {self._settings.policy_time} s (Policy_Time)"
        )
        task.remove_done_callback(self._went_on)
        task.cancel()
        self._task = None
        if session.waiting is None or self._security.handshaking:
            self._abort()
            return
        if isinstance(session.waiting, smtp.Authenticate):
            self._login.given_up()
        data = isinstance(session.waiting, smtp.Data)
        session.respond(replies.POLICY_FAILED)
        if data:
            self._transaction.forget()
        self._touch()
        self._run()

    # TLS ------------------------------------------------------------------------------------------------------

    def _begin_tls(self) -> None:
        self._touch()
        self._security.begin(self.stream)

    async def _begin_smtp(self) -> None:
        too_many = self._too_many()
        refusal = replies.CONCURRENCY_LIMIT if too_many else await self._policy(Phase.CONNECT)
        if self._link >= Link.CLOSING:
            return
        session, before = self._session, self._settings
        self._follow_pathway()
        if self._settings is not before:
            self._client_is(session)
        session.trusted = _within(self._own_ip, self._settings.trusted_clients)
        if too_many:
            session.state = State.CONCURRENCY
        session.greet(refusal or self._banner(self._hostname))
        if self._task is None:
            self._run()  # else the end of the task does it

    @property
    def _hostname(self) -> str:
        return self._settings.banner_hostname or self._services.hostname

    def _can_starttls(self) -> bool:
        settings = self._settings
        offered = not settings.use_ssl and "STARTTLS" in settings.smtp_extensions
        return offered and self._services.tls_usable(self._security.settings)

    def _banner(self, hostname: str) -> Reply:
        static = self._settings.static_banner
        if static and static.startswith("220"):
            return Reply(220, "", static[4:].replace("\r", ""))
        return Reply(220, "", f"{hostname} ESMTP Quillon {__version__} {self._services.date()}")

    def _follow_pathway(self) -> None:
        """The connect phase may have chosen another pathway, whose TLS settings then hold for STARTTLS too."""
        pathway = self._context.connection.setdefault("pathway", self._settings.pathway)
        if pathway != self._settings.pathway:
            use_ssl = self._settings.use_ssl
            self._settings, self._security.settings = self._services.config.inbound.reception_by_pathway(
                self._listen, self._ip, pathway
            )
            self._settings = dataclasses.replace(self._settings, pathway=pathway, use_ssl=use_ssl)
            self._transaction.settings = self._login.settings = self._settings
            limit = self._settings.session_time
            self._ends_at = self._services.clock.now() + limit if limit else 0.0
            for key, value in (self._settings.context or {}).items():
                self._context.connection.setdefault(key, value)

    # events ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        session, turns = self._session, self._services.turns
        if turns.waits(self):
            return
        end, more = turns.slice_ends(), False
        while self._link < Link.CLOSING and not self.stream.blocked and self._task is None and not more:
            event = session.next_event(COMMANDS_A_TURN)
            if event is smtp.NEED_DATA or event is smtp.PAUSED:
                break
            if event is smtp.MORE:
                more = True
            elif isinstance(event, smtp.Data) and not event.last:
                self._transaction.add(event.data)
            elif (step := self._on(session, event)) is not None and not self._start(step):
                break
            else:
                more = turns.over(end)
        if session.refusals:
            self._log_refusals(session)
        self._flush()
        self._throttle_reading(session)
        if self._link >= Link.CLOSING:
            return
        if more and not session.closing:
            turns.ask(self)
        done = self._link is Link.HALF_CLOSED and not self._waiting and not self.stream.blocked
        if done or (session.closing and self._task is None):
            self._leave()

    def take_turn(self) -> None:
        """Go on with what the client has pipelined."""
        if self._link < Link.CLOSING:
            if self._task is None:
                self._touch()
            self._run()

    def _flush(self) -> None:
        out = self._session.data_to_send()
        if out:
            self.stream.write(out)

    def _throttle_reading(self, session: ServerSession) -> None:
        if self.stream.blocked or session.buffered > MAX_UNREAD:
            self.stream.pause_reading()
        else:
            self.stream.resume_reading()

    def _on(self, session: ServerSession, event: Any) -> Step:
        return self._on_later(session, event) if self._info.delay else self._take(session, event)

    async def _on_later(self, session: ServerSession, event: Any) -> None:
        await self._sleep(self._info.delay)
        step = self._take(session, event)
        if step is not None:
            await step

    def _take(self, session: ServerSession, event: Any) -> Step:
        """Take an event. Most are done with at once, for nobody listens; else what is left to wait for is given."""
        if isinstance(event, smtp.Data):
            self.deadline = 0.0  # the client has done its part: no time limit of ours may cut off the answer
            return self._transaction.complete(event, self._remote, self._answered)
        if isinstance(event, smtp.RcptTo):
            return self._on_rcpt(session, event)
        if isinstance(event, smtp.MailFrom):
            return self._on_mail(session, event)
        if isinstance(event, smtp.BeginData):
            return self._on_list(session)
        if isinstance(event, smtp.Hello):
            return self._on_hello(session, event)
        if isinstance(event, smtp.Authenticate):
            return self._on_authenticate(session, event)
        if isinstance(event, smtp.Extension):
            return self._on_extension(session, event)
        if isinstance(event, smtp.BeginAuth):
            self._login.begin(session, event, self._remote[0])
        elif isinstance(event, smtp.StartTls):
            refusal = self._security.prepare()
            session.respond(refusal)
            self._flush()
            if refusal is None:
                self._begin_tls()
        return None

    def _ask(self, phase: Phase, text: str, decided: Callable[[Reply | None], object]) -> Step:
        """Have policy asked, and tell what it decides: at once where nobody listens."""
        if self._services.policy.has(phase):
            return _told(self._policy(phase, text), decided)
        self._context.disconnect = False
        decided(None)
        return None

    async def _on_authenticate(self, session: ServerSession, event: smtp.Authenticate) -> None:
        await self._login.finish(session, event, self._remote[0])
        self._close_if_told(session)

    def _on_hello(self, session: ServerSession, event: smtp.Hello) -> Step:
        context = self._context
        before = {key: value for key in EHLO_KEYS if (value := context.connection.get(key)) is not None}
        message = context.message
        context.connection["ehlo_string"] = shown.cut(event.line, shown.NAME)
        context.connection["ehlo_domain"] = event.domain
        context.new_message()

        def decided(refusal: Reply | None) -> None:
            if refusal is not None:
                # a refused EHLO leaves a transaction as it is, and so what policy has noted of it
                context.message = message
                for key in EHLO_KEYS:
                    context.connection.pop(key, None)
                context.connection.update(before)
            session.respond(refusal)
            self._close_if_told(session)

        return self._ask(Phase.EHLO, event.line + "\r\n", decided)

    def _on_mail(self, session: ServerSession, event: smtp.MailFrom) -> Step:
        context = self._context
        if self._services.reception.room.shortage():
            session.respond(replies.NO_ROOM)  # before the client has sent anything large (RFC 1870 6.1)
            return None
        context.new_message()
        context.message["mailfrom_string"] = shown.cut(event.line, shown.CONTEXT_VALUE)
        context.message["mailfrom_localpart"] = event.mailbox.local
        context.message["mailfrom_domain"] = event.mailbox.domain
        self._breach = self._security.breach(event.mailbox.domain)
        if self._breach is not None:
            session.respond(self._breach.reply)
            return None
        if event.requiretls:
            context.message["requiretls"] = "true"
        context.connection["connection_message_count"] = str(session.messages)

        def decided(refusal: Reply | None) -> None:
            session.respond(refusal or self._own_words(Phase.MAILFROM))
            if refusal is None:
                self._transaction.begin(event.mailbox, requiretls=event.requiretls)
                self._rcpt_commands = 0
            self._close_if_told(session)

        return self._ask(Phase.MAILFROM, event.line, decided)

    def _on_rcpt(self, session: ServerSession, event: smtp.RcptTo) -> Step:
        context = self._context
        context.message["rcptto_string"] = shown.cut(event.line, shown.CONTEXT_VALUE)
        context.message["rcptto_localpart"] = event.mailbox.local
        context.message["rcptto_domain"] = event.mailbox.domain
        self._rcpt_commands += 1
        context.connection["connection_rcpt_count"] = str(session.recipients)
        context.connection["message_rcpt_count"] = str(self._rcpt_commands)

        def decided(refusal: Reply | None) -> None:
            session.respond(refusal or self._own_words(Phase.RCPTTO))
            self._close_if_told(session)

        if self._transaction.asks_about_recipients:
            return _told(self._transaction.recipient_by_policy(event, self._ip), decided)
        decided(self._transaction.recipient(event, self._ip))
        return None

    def _on_list(self, session: ServerSession) -> Step:
        def decided(refusal: Reply | None) -> None:
            session.respond(refusal)
            self._close_if_told(session)

        if self._transaction.asks_about_list:
            return _told(self._transaction.list_complete_by_policy(), decided)
        decided(self._transaction.list_complete())
        return None

    def _answered(self, reply: Reply) -> None:
        """The answer of reception: at once for a refusal, after the commit for a 250."""
        self._data_ends_at = 0.0
        session = self._session
        if self._link >= Link.CLOSING:
            return
        if reply.positive:
            self._services.note("receptions", self._remote[0])
            self._context.connection["connection_message_count"] = str(session.messages + 1)
            reply = self._own_words(Phase.DATA, Phase.DATA_SPOOL) or reply
        session.respond(reply)
        self._close_if_told(session)
        if self._task is None:
            self._touch()
            self._run()
        else:
            self.deadline = 0.0  # policy has decided: what is left of the step is its end, which sends the answer

    # trusted clients ------------------------------------------------------------------------------------------

    async def _on_extension(self, session: ServerSession, event: smtp.Extension) -> None:
        context = self._context
        if event.verb == "XDUMPCONTEXT":
            session.respond(trusted.dump(context.connection, context.message))
        elif event.verb == "XSETCONTEXT":
            pairs = trusted.parse_context(event.argument)
            if isinstance(pairs, dict) and len(pairs.keys() | context.connection.keys()) > shown.MOST_KEYS:
                pairs = replies.XSETCONTEXT_SYNTAX
            if isinstance(pairs, dict):
                context.connection.update(pairs)
            session.respond(None if isinstance(pairs, dict) else pairs)
        elif event.verb == "XREMOTEIP":
            ip = trusted.parse_ip(event.argument.strip())
            if ip is not None:
                self._become(session, ip, self._remote[1])
            session.respond(None if ip is not None else replies.XREMOTEIP_SYNTAX)
        else:
            await self._on_xclient(session, trusted.parse_xclient(event.argument))

    async def _on_xclient(self, session: ServerSession, client: trusted.Client | Reply) -> None:
        """The session is as after the banner, for somebody else (postfix.org/XCLIENT_README)."""
        if isinstance(client, Reply):
            session.respond(client)
            return
        connection = self._context.connection
        self._become(session, client.ip or self._remote[0], client.port or self._remote[1])
        for key in (*EHLO_KEYS, *AUTH_KEYS):
            connection.pop(key, None)
        if client.helo:
            connection["ehlo_domain"] = client.helo
        if client.login:
            connection |= {
                "auth_user": client.login,
                "auth_status": "pass",
                "auth_name": "XCLIENT",
                "can_relay": "true",
            }
        session.authenticated = bool(client.login)
        session.begin_anew()
        refusal = await self._policy(Phase.CONNECT)
        before = self._settings
        self._follow_pathway()
        if self._settings is not before:
            self._client_is(session)
        session.respond(refusal or self._banner(self._hostname))
        session.closing = session.closing or refusal is not None

    def _become(self, session: ServerSession, ip: str, port: int) -> None:
        """The client speaks for another one, whose settings hold from here on; those of TLS stay."""
        self._remote, self._ip = (ip, port), _address(ip)
        own = [word for word in self._settings.smtp_extensions if word in TRUSTED_EXTENSIONS]
        settings, _ = self._services.config.inbound.reception(self._listen, self._ip)
        theirs = [word for word in settings.smtp_extensions if word not in TRUSTED_EXTENSIONS]
        extensions = tuple(theirs + own)
        self._settings = dataclasses.replace(settings, use_ssl=self._settings.use_ssl, smtp_extensions=extensions)
        limit = settings.session_time
        self._ends_at = self._services.clock.now() + limit if limit else 0.0
        self._info.remote = _endpoint(self._remote)
        self._security.become()
        self._transaction.abandon()
        self._transaction.settings = self._login.settings = self._settings
        connection = self._context.connection
        connection.pop("can_relay", None)
        connection["pathway"] = settings.pathway
        connection.update(settings.context or {})
        self._context.new_message()
        self._client_is(session)

    def _client_is(self, session: ServerSession) -> None:
        """Hand the settings of another client to the machine."""
        session.client_is(
            self._remote[0],
            self._settings,
            hostname=self._hostname,
            mechanisms=authentication.mechanisms(self._settings),
            can_starttls=self._can_starttls(),
        )
        session.must_authenticate = self._must_authenticate()

    # policy and log -------------------------------------------------------------------------------------------

    async def _policy(self, phase: Phase, text: str = "") -> Reply | None:
        policy = self._services.policy
        if not policy.has(phase):
            self._context.disconnect = False
            return None
        before = self._info.delay
        refusal = await policy.run(Call(phase, self._info, self._context, text))
        if self._info.delay > before:
            await self._sleep(self._info.delay - before)  # this answer waits already
        return refusal

    async def _sleep(self, seconds: float) -> None:
        """A tarpit, which takes nothing of the time that a policy has."""
        if self._task is not None and self.deadline:
            self.deadline += seconds
        await asyncio.sleep(seconds)

    def _own_words(self, *phases: Phase) -> Reply | None:
        """The reply that a callout has set for what is taken, such as 251, or None for the usual one."""
        reply = self._context.reply
        if reply is None or not 250 <= reply.code < 300 or not any(map(self._services.policy.has, phases)):
            return None
        return reply

    def _close_if_told(self, session: ServerSession) -> None:
        if self._context.disconnect:
            session.closing = True

    def _log_refusals(self, session: ServerSession) -> None:
        refusals, session.refusals = session.refusals, []
        pathway = self._context.connection.get("pathway", self._settings.pathway)
        self._services.note("rejections", self._remote[0])
        for state, reply in refusals:
            breach = self._breach if self._breach is not None and reply is self._breach.reply else None
            if reply is replies.TLS_IN_CLEAR:
                self._security.unsecured(HandshakeFailure("tls_on_clear_port"))
            self._services.log(
                Rejected(
                    time=self._services.clock.now(),
                    remote=self._info.remote,
                    local=self._info.local,
                    connection_id=self._id,
                    pathway=pathway,
                    pathway_group=self._services.config.inbound.pathway_group(pathway),
                    state=state.value,
                    reply=reply,
                    module=KIND if breach is not None else self._context.module or "core",
                    connection_context=_texts(self._context.connection),
                    message_context=_texts(self._context.message),
                    tls=self._security.facts,
                    cause=breach.cause if breach is not None else "",
                    contract=breach.contract if breach is not None else "",
                )
            )


async def _told(question: Coroutine[Any, Any, Reply | None], decided: Callable[[Reply | None], object]) -> None:
    decided(await question)


def _texts(context: Mapping[Any, Any]) -> dict[str, str]:
    """A context for the log, whatever a policy has put into it."""
    return {str(key): str(value) for key, value in context.items()}


def _within(ip: IPAddress, blocks: tuple[Any, ...]) -> bool:
    return any(ip.version == block.version and ip in block for block in blocks)


@lru_cache(maxsize=65536)
def _address(ip: str) -> IPAddress:
    return ipaddress.ip_address(ip)


def _endpoint(address: tuple[str, int]) -> str:
    ip, port = address
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
