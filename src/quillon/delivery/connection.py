"""A connection to a host: stream, TLS engine and SMTP machine put together. Shell.

`open` brings it to the point where it may take messages, or says why not. `deliver` sends one transaction; idle
connections wait for the next one. Whatever happens, the end of each transaction is told once, with an outcome for each
message, or the word that it has not been tried.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NamedTuple, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.delivery import tls_policy
from quillon.delivery.attempt import Obstacle, TryHost
from quillon.delivery.demand import Demand, judge
from quillon.delivery.route import Host
from quillon.delivery.tls_policy import Judgement, Turn
from quillon.log.trace import SessionTrace, Tracers
from quillon.mail import reply as replies
from quillon.mail.event import TlsFacts
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, Outcome, PermanentFailure, Stage, TransientFailure, failure
from quillon.mail.reply import Reply
from quillon.net import eager
from quillon.net.clock import Clock, Deadlines
from quillon.net.stream import Stream
from quillon.policy.context import Context
from quillon.policy.hook import Call, Hook, Session
from quillon.policy.tls import Remote, TlsHooks
from quillon.queue.trail import Failed
from quillon.smtp import client as smtp
from quillon.smtp.client import ClientLogin, ClientSession, MailTransaction
from quillon.smtp.wire import DotStuffer
from quillon.tls.context import Contexts
from quillon.tls.engine import ContextError, Engine
from quillon.tls.verdict import HandshakeFailure, TlsVerdict

_CHUNK = 262144
HANDSHAKE_TIMEOUT = 60.0  # seconds
LINGER = 10.0  # seconds that a close may take
# no connection for a fault of this side: it says nothing of the host, which other bindings may reach
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class ConnectionServices:
    """What a connection needs from outside. `keep` takes the certificates of a host in DER, where evidence is kept of
    them, and gives their SHA-256."""

    clock: Clock
    deadlines: Deadlines
    contexts: Contexts
    hooks: TlsHooks
    handshake_timeout: float = HANDSHAKE_TIMEOUT
    tracers: Tracers | None = None
    keep: Callable[[Sequence[bytes]], tuple[str, ...]] | None = None


class Sent(NamedTuple):
    """How a transaction ended: an outcome for each message that was tried; `untried` are those that another transaction
    is to take at no cost. `refused` tells that the host takes no mail for now, whoever it is for; `only` is the number
    of recipients that it took where it took no more, else 0."""

    results: list[tuple[Message, Outcome]]
    untried: list[Message]
    refused: bool = False
    only: int = 0


class Owner(Protocol):
    """Who is told of a connection that stands."""

    def sent(self, connection: Connection, sent: Sent) -> None:
        """A transaction has ended, before anything else is told."""

    def free(self, connection: Connection) -> None:
        """It may take the next transaction."""

    def gone(self, connection: Connection) -> None:
        """It has ended; once."""


class Obstructed(NamedTuple):
    """Why a connection has not come to the point where it takes messages."""

    obstacle: Obstacle
    failed: Failed


class Connection:
    """One connection for one queue."""

    def __init__(
        self,
        services: ConnectionServices,
        settings: DeliverySettings,
        demand: Demand,
        domain: str,
        ehlo_name: str,
        *,
        login: ClientLogin | None = None,
        owner: Owner,
        leaves_from: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.settings = settings
        self.demand = demand
        self.login = login
        self.facts: TlsFacts | None = None
        self.verdict: TlsVerdict | None = None
        self.offered = False
        self.delivered = 0  # transactions that have ended
        self.took = 0  # recipients whose message the host has taken
        self.since = services.clock.now()
        self.deadline = 0.0
        self.is_open = False
        self.host: Host | None = None
        self.host_name = ""
        self.remote_ip = ""
        self.local_ip = ""
        self.peer = ""
        self.services = services
        self._domain = domain
        self.ehlo_name = ehlo_name
        self._owner = owner
        self._leaves_from = leaves_from
        self._trace: SessionTrace | None = None
        self._stream = Stream(self)
        self._session = ClientSession(ehlo_name, esmtp=settings.delivery_method == "ESMTP")
        self._in_clear = False
        self._opened: asyncio.Future[Obstructed | None] | None = None
        self._engine: Engine | None = None
        self._asking: asyncio.Task[None] | None = None
        self._batch: list[Message] = []
        self._body: bytes | str = b""
        self._sending: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._stuffer = DotStuffer()
        self._sent = 0
        self._answered = 0  # replies that have come when the deadline was set

    @property
    def carried(self) -> list[Message]:
        """The messages that are being delivered."""
        return self._batch

    # opening --------------------------------------------------------------------------------------------------

    async def open(self, step: TryHost) -> Obstructed | None:
        """Connect and get ready, with TLS as the settings demand; None if it is, else why not."""
        loop = asyncio.get_running_loop()
        self._opened = loop.create_future()
        self._in_clear = step.in_clear
        self.host = step.host
        self.host_name, self.remote_ip = step.host.name, step.host.ip
        self.peer = step.host.peer
        self._be_traced()
        local = (address, 0) if (address := self._source(step.host.ip)) else None
        try:
            async with asyncio.timeout(self.settings.connect_timeout or None):
                await loop.create_connection(lambda: self._stream, step.host.ip, step.host.port, local_addr=local)
        except TimeoutError:
            return self._obstructed(Obstacle.UNREACHABLE, replies.CONNECT_TIMED_OUT, Stage.NOT_CONNECTED)
        except OSError as error:
            obstacle = Obstacle.OURS if error.errno in _OURS else Obstacle.UNREACHABLE
            reply = replies.NO_VALID_HOSTS.because(_reason(error))
            return self._obstructed(obstacle, reply, Stage.NOT_CONNECTED)
        found = await self._opened
        if found is None and not self.usable:
            # it was ready and is gone before it could be used: that is the host's refusal, not a reason to try at once
            return self._obstructed(Obstacle.UNWILLING, replies.CONNECTION_CLOSED, Stage.AFTER_EHLO)
        return found

    def _be_traced(self) -> None:
        """Have an operator look on, who wants to; from here on."""
        if self._trace is not None or not self.services.tracers:
            return
        ip, port = self.remote_ip, self.host.port if self.host is not None else 0
        peer = f"{self.host_name} [{f'[{ip}]' if ':' in ip else ip}:{port}]"
        trace = self.services.tracers.begin("out", self.remote_ip, peer, self._domain, self._leaves_from)
        if trace is not None:
            self._trace = trace
            self._session.said, self._session.heard = trace.heard, trace.said
            level = f"TLS = {self.demand.tls.tls}, TLS_Verify = {self.demand.tls.tls_verify}"
            trace.note(f"for {self._domain}, {'in clear' if self._in_clear else level}")

    def _note(self, text: str) -> None:
        if self._trace is not None:
            self._trace.note(text)

    def _source(self, ip: str) -> str:
        """The source address for a host, "" for any."""
        bind, second = self.settings.bind_address, self.settings.bind_address_secondary or ""
        if second and (":" in ip) == (":" in second) and (":" in ip) != (":" in bind):
            return second
        return "" if bind in ("*", "") else bind

    def _obstructed(self, obstacle: Obstacle, reply: Reply, stage: Stage, cause: str = "") -> Obstructed:
        outcome = TransientFailure(reply, stage, self.remote_ip, cause)
        self._note(f"takes no mail: {reply}{f', {cause}' if cause else ''} ({stage.text})")
        return Obstructed(obstacle, Failed(outcome, self.facts, self.host_name, self.local_ip))

    def connected(self) -> None:
        self.local_ip = self._stream.addresses()[1][0]
        self._note(f"connected, from {self.local_ip}")
        self.services.deadlines.add(self)
        self._wait(self.settings.ehlo_timeout)

    def _refused(self, obstacle: Obstacle, reply: Reply, stage: Stage, cause: str = "") -> None:
        """Opening has failed."""
        self._give_up(self._obstructed(obstacle, reply, stage, cause))

    def _give_up(self, obstructed: Obstructed) -> None:
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(obstructed)
        self._stream.close()

    def _ready(self, offered: bool) -> None:
        if not self._session.in_tls:
            self.offered = offered
            turn = tls_policy.after_ehlo(self.demand.tls, offered, in_clear=self._in_clear)
            if turn is Turn.REFUSE:
                self._session.quit()
                self._write()
                reply = self.demand.told(replies.STARTTLS_NOT_ADVERTISED)
                self._refused(Obstacle.REJECTED, reply, Stage.AFTER_EHLO, "no_starttls")
                return
            if turn is Turn.STARTTLS:
                self._session.start_tls()
                self._wait(self.settings.ehlo_timeout)
                return
        if self.demand.requires_tls and "REQUIRETLS" not in self._session.extensions:
            self._session.quit()
            self._write()
            failed = PermanentFailure(replies.REQUIRETLS_NEEDED, Stage.AFTER_EHLO, self.remote_ip, "no_requiretls")
            self._give_up(Obstructed(Obstacle.REJECTED, Failed(failed, self.facts, self.host_name, self.local_ip)))
        elif self.login is not None:
            self._log_in(self.login)
        else:
            self._open()

    def _log_in(self, login: ClientLogin) -> None:
        """AUTH comes before any mail, and the password goes through TLS unless the configuration lets it go without."""
        if not self._session.in_tls and not self.settings.outbound_smtp_auth_in_clear:
            self._not_logged_in(replies.AUTH_IN_CLEAR)
        elif login.mechanism not in self._session.extensions.get("AUTH", "").upper().split():
            self._not_logged_in(replies.AUTH_NOT_OFFERED.because(login.mechanism))
        else:
            self._session.log_in(login)
            self._wait(self.settings.ehlo_timeout)

    def _logged_in(self, reply: Reply) -> None:
        if reply.code == 235:
            self._open()
        else:
            # the credentials are the operator's matter: mail waits for them to be mended, even after a 5xx
            self._not_logged_in(replies.AUTH_REFUSED.because(str(reply)))

    def _not_logged_in(self, reply: Reply) -> None:
        self._session.quit()
        self._write()
        self._refused(Obstacle.LOGIN, reply, Stage.AFTER_EHLO)

    def _open(self) -> None:
        self.is_open = True
        self.deadline = 0.0
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _handshake(self) -> None:
        try:
            engine = self.services.contexts.client(self.demand.tls, self.demand.server_name(self.host_name), self.peer)
        except ContextError as error:
            self._tls_failed(replies.TLS_FAILED, Stage.HANDSHAKING_TLS, tls_policy.OURS, str(error))
            return
        self._engine = engine
        self._wait(self.services.handshake_timeout)
        if self._trace is not None:
            self._stream.tap = self._trace.octets
        self._stream.start_tls(engine)

    def secured(self) -> None:
        self._asking = eager.start(self._look_at_host())

    async def _look_at_host(self) -> None:
        """Judge what the host has shown, and go on if it will do."""
        assert self._engine is not None
        try:
            judgement = await self._judge(self._engine)
        except Exception as defect:
            # whatever a peer's certificate has made of us: it has not been found good
            asyncio.get_running_loop().call_exception_handler({"message": "verdict", "exception": defect})
            judgement = Judgement(False, "certificate_rejected", replies.CERT_WRONG_CA, "see the paniclog")
            self.facts = HandshakeFailure(judgement.cause, judgement.detail).facts()
        if self._opened is None or self._opened.done():
            return  # it has hung up meanwhile
        if judgement.reply is not None:
            # never clear text, and the next host only under the same demand
            self._refused(Obstacle.REJECTED, judgement.reply, Stage.HANDSHAKING_TLS, judgement.cause)
            return
        self._session.tls_started()
        self._write()
        self._wait(self.settings.ehlo_timeout)

    async def _judge(self, engine: Engine) -> Judgement:
        """What the handshake is worth: by its certificate's responder, by policy, by what is demanded."""
        contexts = self.services.contexts
        verdict = contexts.verdict(self.demand.tls, engine)
        verdict = self.verdict = await contexts.by_responder(self.demand.tls, engine, verdict)
        hooks = self.services.hooks
        if hooks.asks(Hook.OUTBOUND_VERIFY):
            call = Call(Hook.OUTBOUND_VERIFY, Session(self.remote_ip, "", ""), Context())
            found = hooks.outbound_verdict(call, verdict, Remote(self.host_name, self.remote_ip, self._domain))
            if not (self.demand.tls.tls_agreed and found.by_policy):  # what was agreed on, policy may refuse alone
                verdict = found
        judgement = judge(self.demand, verdict, self.certificates)
        self.facts = self._facts(verdict, judgement)
        if self._trace is not None:
            self._trace.certificates(self.certificates())
            self._trace.secured(self.facts)
        return judgement

    def certificates(self) -> list[bytes]:
        """Those that the host sent, its own first, in DER."""
        return [certificate.public_bytes(Encoding.DER) for certificate in self.chain()]

    def _facts(self, verdict: TlsVerdict, judgement: Judgement) -> TlsFacts:
        facts = verdict.facts(
            verified=judgement.verified,
            cause=judgement.cause,
            detail=judgement.detail,
            level=judgement.level,
            matched=judgement.matched,
        )
        if self.services.keep is not None:
            facts = replace(facts, certificates=self.services.keep(self.certificates()))
        return replace(facts, standard=self.demand.standard) if self.demand.standard else facts

    def turn_to(self, names: tuple[str, ...], domain: str) -> bool:
        """Take mail of another routing domain from here on; False where the certificate that the host has shown would
        not do for it. What a policy has judged was for one domain alone, and so was what that domain has published, and
        clear text after a handshake that failed."""
        if self._in_clear or self.demand.standard:
            return False
        demand = self.demand._replace(names=names)
        if self.verdict is not None:
            if self.services.hooks.asks(Hook.OUTBOUND_VERIFY):
                return False
            judgement = judge(demand, self.verdict, self.certificates)
            if judgement.reply is not None:
                return False
            self.facts = self._facts(self.verdict, judgement)
        self.demand, self._domain = demand, domain
        return True

    def unsecured(self, failure: Any) -> None:
        assert isinstance(failure, HandshakeFailure)
        if not self.is_open:
            self._tls_failed(replies.TLS_FAILED, Stage.HANDSHAKING_TLS, failure.cause, failure.detail)
        self._stream.close()

    def _tls_failed(self, reply: Reply, stage: Stage, cause: str, detail: str = "") -> None:
        if self._opened is None or self._opened.done():
            return
        self.facts = replace(HandshakeFailure(cause, detail).facts(), standard=self.demand.standard)
        if self._trace is not None:
            self._trace.secured(self.facts)
        self._refused(Obstacle.NEGOTIATION, self.demand.told(reply), stage, cause)

    # delivering -----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether it can take messages."""
        return self.is_open and not self._session.closed

    def chain(self) -> list[x509.Certificate]:
        """The certificates that the host sent, its own first."""
        return self._engine.chain() if self._engine is not None else []

    @property
    def takes_eight_bit(self) -> bool:
        """Whether the host offers 8BITMIME (RFC 6152)."""
        return "8BITMIME" in self._session.extensions

    @property
    def tls(self) -> OutboundTls:
        """The settings of the configuration and of policy under which it was made."""
        return self.demand.configured

    @property
    def exhausted(self) -> bool:
        """Whether max_deliveries_per_connection is reached, or what was demanded of the host has to be found anew."""
        limit = self.settings.max_deliveries_per_connection
        if bool(limit) and self.delivered >= limit:
            return True
        # what it was made for it takes, however short what DNS said holds
        return self.delivered > 0 and self.services.clock.now() >= self.demand.until

    def deliver(self, messages: list[Message], body: bytes | str) -> None:
        """Send one batch; `body` is the mail data or the path of its file."""
        batch = messages[0].batch
        self._batch, self._body = messages, body
        self._sent = 0
        self._stuffer = DotStuffer()
        self._be_traced()
        if self._trace is not None:
            self._trace.messages([str(batch.id), *(str(message.id) for message in messages)])
        say = batch.eight_bit and self.settings.send_8bitmime == "ifavailable"
        required = batch.tls_request == "requiretls"
        self._session.send(MailTransaction(batch.sender, [m.recipient for m in messages], batch.size, say, required))
        self._wait(self.settings.mailfrom_timeout)
        self._write()

    def _send_body(self) -> None:
        self._wait(self.settings.body_timeout)
        if isinstance(self._body, bytes):
            data = self._stuffer.feed(self._body)
            self._stream.write(data + self._stuffer.end())
            self._sent = len(self._body)
            self._note(f"> {self._sent} octets of mail data")
            self._session.body_sent()
        else:
            self._sending = asyncio.get_running_loop().create_task(self._send_file(self._body))

    async def _send_file(self, path: str) -> None:
        """Send what the transport takes of a large body, which is read off the event loop."""
        loop = asyncio.get_running_loop()
        file: BinaryIO | None = None
        try:
            file = await loop.run_in_executor(None, open, path, "rb")
            while self._session.expects_body() and (data := await loop.run_in_executor(None, file.read, _CHUNK)):
                if not self._session.expects_body():
                    return  # the host has answered, or is gone
                self._wait(self.settings.body_timeout)
                self._sent += len(data)
                self._stream.write(self._stuffer.feed(data))
                if self._stream.blocked:
                    self._drained = loop.create_future()
                    await self._drained
            if self._session.expects_body():
                self._stream.write(self._stuffer.end())
                self._note(f"> {self._sent} octets of mail data")
                self._session.body_sent()
        except OSError as error:
            # only a file that is gone is the message's fault; a full table of descriptors passes
            reply = replies.BODY_MISSING if isinstance(error, FileNotFoundError) else replies.SPOOL_FAILED
            self._finish_all(failure(reply, Stage.IDLE, self.remote_ip))
            self._stream.abort()  # the host waits for mail data, and must take none of what it has for a whole
        finally:
            if file is not None:
                file.close()

    def writable(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _done(self, event: smtp.Done) -> None:
        messages, self._batch = self._batch, []
        self._body = b""
        if not messages:
            return  # the body could not be read: that has been told
        kept = self.delivered > 0
        self.delivered += 1
        self.deadline = 0.0
        self.took += sum(reply.positive for reply, _ in event.results)
        sent = self._sort(messages, event, kept=kept)
        self._owner.sent(self, sent)
        if self._session.closed:
            return  # `Broken` comes next
        if sent.refused or any(reply.code == 421 for reply, _ in event.results):
            self.quit()
        elif any(reply.positive for reply, _ in event.results):
            self._owner.free(self)
        else:
            self._session.rset()  # RFC 5321 4.1.1.5: leave nothing of the failed transaction
            self._write()
            self._wait(self.settings.rset_timeout)

    def _sort(self, messages: list[Message], event: smtp.Done, *, kept: bool) -> Sent:
        """What was answered to each recipient, and who is to be offered again as if nothing had been."""
        at_mail = all(stage in (Stage.DURING_MAIL, Stage.AFTER_MAIL) for _, stage in event.results)
        ending = self._session.closed or any(reply.code == 421 for reply, _ in event.results)
        for_good = any(reply.permanent for reply, _ in event.results)
        if kept and at_mail and ending and not for_good:
            return Sent([], messages)  # a session that had come to its end says nothing about the message
        results: list[tuple[Message, Outcome]] = []
        untried: list[Message] = []
        before = 0  # recipients that were taken before this one
        for message, (reply, stage) in zip(messages, event.results, strict=True):
            if stage is Stage.AFTER_RCPT and before and _takes_no_more(reply):
                untried.append(message)  # RFC 5321 4.5.3.1.10: the rest goes in further transactions
                continue
            before += stage is not Stage.AFTER_RCPT
            if reply.positive:
                results.append((message, Delivered(reply, self.remote_ip)))
            else:
                results.append((message, self._failure(reply, stage)))
        refused = at_mail and ending and not for_good
        return Sent(results, untried, refused, event.accepted if untried else 0)

    def _failure(self, reply: Reply, stage: Stage) -> Outcome:
        cause = self.facts.cause if self._in_clear and self.facts is not None else ""
        if cause and reply.code == 530:
            # it wants TLS, which has failed with it: that is what the mail waits for (RFC 3207 4)
            return TransientFailure(replies.TLS_FAILED.because(str(reply)), stage, self.remote_ip, cause, self._sent)
        return failure(reply, stage, self.remote_ip, sent=self._sent)

    def _finish_all(self, outcome: Outcome) -> None:
        messages, self._batch = self._batch, []
        if messages:
            self._owner.sent(self, Sent([(message, outcome) for message in messages], []))

    def rest(self, seconds: float) -> None:
        """Stay open without work for so long."""
        self._wait(seconds)

    def quit(self) -> None:
        """End politely."""
        if not self._session.closed:
            self._session.quit()
            self._write()
        self._leave()

    def _leave(self) -> None:
        """Close, and do not wait for ever for the host to take what is still to be sent."""
        self._wait(LINGER)
        self._stream.close()

    # events ---------------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        self._session.receive(data)
        while (event := self._session.next_event()) is not smtp.NEED_DATA:
            self._on(event)
        self._write()
        answered, self._answered = self._answered, self._session.replies
        if self._batch and not self._session.closed and answered != self._answered:
            self._wait(self._patience())  # a whole reply has come: octets alone do not put the deadline off

    def _patience(self) -> int:
        """Seconds that the reply of the running stage may take; pipelined replies are waited for one by one."""
        if self._session.stage is Stage.DURING_MAIL:
            return self.settings.mailfrom_timeout
        if self._session.stage in (Stage.DURING_RCPT, Stage.DURING_DATA):
            return self.settings.rcptto_timeout
        return self.settings.body_timeout

    def _on(self, event: Any) -> None:
        if isinstance(event, smtp.Done):
            self._done(event)
        elif isinstance(event, smtp.SendBody):
            self._write()
            self._send_body()
        elif isinstance(event, smtp.HostReady):
            self._ready("STARTTLS" in event.extensions)
        elif isinstance(event, smtp.GoAhead):
            self._write()
            self._handshake()
        elif isinstance(event, smtp.LoggedIn):
            self._logged_in(event.reply)
        elif isinstance(event, smtp.NoGoAhead):
            cause = "starttls_injection" if event.injected else "starttls_refused"
            detail = "" if event.injected else str(event.reply)
            self._tls_failed(replies.STARTTLS_NO_GO_AHEAD, Stage.AFTER_STARTTLS, cause, detail)
        elif isinstance(event, smtp.Reset):
            self.deadline = 0.0
            self._owner.free(self)
        elif isinstance(event, smtp.SessionBroken):
            self._broken(event)

    def _broken(self, event: smtp.SessionBroken) -> None:
        if not event.remote:
            self._note(f"the session is over: {event.reply} ({event.stage.text})")
        if self._opened is not None and not self._opened.done():
            self._failed_to_open(event)
        self._leave()

    def _failed_to_open(self, event: smtp.SessionBroken) -> None:
        engine = self._engine
        if event.stage is Stage.DURING_STARTTLS:
            cause = "starttls_refused"
            self._tls_failed(replies.STARTTLS_NO_GO_AHEAD, event.stage, cause, str(event.reply))
        elif event.stage is Stage.HANDSHAKING_TLS:
            self._tls_failed(replies.TLS_FAILED, event.stage, "handshake_timeout")
        elif self._session.in_tls and engine is not None and engine.failure is not None:
            self._tls_failed(replies.TLS_FAILED, Stage.HANDSHAKING_TLS, engine.failure.cause, engine.failure.detail)
        elif self._session.in_tls and event.reply is replies.CONNECTION_CLOSED and event.stage is Stage.DURING_EHLO:
            # cut off behind a finished handshake, before a word inside TLS: the host has not agreed to it
            self._tls_failed(replies.TLS_FAILED, event.stage, "closed_after_handshake")
        else:
            self._refused(Obstacle.UNWILLING, event.reply, event.stage)

    def expired(self) -> None:
        if self._session.closed:
            self._stream.abort()
            return
        if self.is_open and not self._batch:
            self.quit()
            return
        self._session.timed_out()
        while (event := self._session.next_event()) is not smtp.NEED_DATA:
            self._on(event)
        self._stream.abort()

    def ended(self) -> bool:
        return False

    def closed(self) -> None:
        self.services.deadlines.discard(self)
        self.deadline = 0.0
        was_open, self.is_open = self.is_open, False
        self._note("closed")
        self._session.connection_lost()
        while (event := self._session.next_event()) is not smtp.NEED_DATA:
            self._on(event)
        self._finish_all(failure(replies.CONNECTION_CLOSED, self._session.stage, self.remote_ip, sent=self._sent))
        self._refused(Obstacle.UNWILLING, replies.CONNECTION_CLOSED, self._session.stage)
        self.writable()
        if was_open:
            self._engine = None
            self._owner.gone(self)  # unknown to the dispatcher as long as `open` has not returned

    # common ---------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        data = self._session.data_to_send()
        if data:
            self._stream.write(data)

    def _wait(self, seconds: float) -> None:
        self.deadline = self.services.clock.now() + seconds if seconds else 0.0


def _takes_no_more(reply: Reply) -> bool:
    """Whether a host has enough recipients in this transaction: 452, and 552 of old ones (RFC 5321 4.5.3.1.10), but not
    of a mailbox that is full."""
    return reply.code in (452, 552) and not reply.enhanced[1:].startswith(".2.")


def _reason(error: OSError) -> str:
    if error.errno is not None and error.strerror and not error.strerror.startswith("Connect call"):
        return os.strerror(error.errno) if error.errno > 0 else error.strerror
    return os.strerror(error.errno) if error.errno else str(error)
