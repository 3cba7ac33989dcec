"""A connection to a host: stream, TLS engine and SMTP machine put together. Shell.

`open` brings it to the point where it may take messages, or tells the `Attempt` why not. `deliver` sends one
transaction; idle connections wait for the next one. Whatever happens, each message given to it is settled once.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.delivery import tls_policy
from quillon.delivery.attempt import Attempt, TryHost
from quillon.delivery.tls_policy import Judgement, Turn
from quillon.mail import reply as replies
from quillon.mail.event import TlsFacts
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, Outcome, Stage, failure
from quillon.mail.reply import Reply
from quillon.net.clock import Clock, Deadlines
from quillon.net.stream import Stream
from quillon.policy.context import Context
from quillon.policy.hook import Call, Hook, Session
from quillon.policy.tls import Remote, TlsHooks
from quillon.smtp import client as smtp
from quillon.smtp.client import ClientSession, Login, Transaction
from quillon.smtp.wire import DotStuffer
from quillon.tls.context import Contexts
from quillon.tls.engine import ContextError, Engine
from quillon.tls.verdict import HandshakeFailure, Verdict

_CHUNK = 262144
HANDSHAKE_TIMEOUT = 60.0  # seconds
LINGER = 10.0  # seconds that a close may take
# no connection for a fault of this side: it says nothing of the host, which other bindings may reach
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})

Settle = Callable[[Message, Outcome], None]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a connection needs from outside."""

    clock: Clock
    deadlines: Deadlines
    contexts: Contexts
    hooks: TlsHooks
    handshake_timeout: float = HANDSHAKE_TIMEOUT


class Connection:
    """One connection for one queue. `ready` is called when it may take messages, `gone` once when it has ended."""

    def __init__(
        self,
        around: Surroundings,
        settings: DeliverySettings,
        tls: OutboundTls,
        names: tuple[str, ...],
        domain: str,
        ehlo_name: str,
        *,
        login: Login | None = None,
        gone: Callable[[Connection], None],
    ) -> None:
        self.settings = settings
        self.tls = tls
        self.login = login
        self.facts: TlsFacts | None = None
        self.verdict: Verdict | None = None
        self.offered = False
        self.delivered = 0
        self.deadline = 0.0
        self.is_open = False
        self.unreachable = False
        self.host_name = ""
        self.remote_ip = ""
        self.local_ip = ""
        self._peer = ""
        self._around = around
        self._names = names
        self._domain = domain
        self._ehlo_name = ehlo_name
        self._gone = gone
        self._stream = Stream(self)
        self._session = ClientSession(ehlo_name, esmtp=settings.delivery_method == "ESMTP")
        self._step: TryHost | None = None
        self._opened: asyncio.Future[bool] | None = None
        self._attempt: Attempt | None = None
        self._engine: Engine | None = None
        self._batch: list[Message] = []
        self._body: bytes | None = None
        self._file: Any = None
        self._stuffer = DotStuffer()
        self._sent = 0
        self._settle: Settle | None = None
        self._ended: Callable[[Connection], None] | None = None

    # opening --------------------------------------------------------------------------------------------------

    async def open(self, attempt: Attempt, step: TryHost) -> bool:
        """Connect and get ready, with TLS as the settings demand. False if not; the attempt knows why then."""
        loop = asyncio.get_running_loop()
        self._attempt, self._step = attempt, step
        self._opened = loop.create_future()
        self.host_name, self.remote_ip = step.host.name, step.host.ip
        self._peer = f"{step.host.ip} {step.host.port}"
        bind = self.settings.bind_address
        local = (bind, 0) if bind not in ("*", "") else None
        try:
            async with asyncio.timeout(self.settings.connect_timeout or None):
                await loop.create_connection(lambda: self._stream, step.host.ip, step.host.port, local_addr=local)
        except TimeoutError:
            self.unreachable = True
            attempt.unreachable(step, replies.CONNECT_TIMED_OUT)
            return False
        except OSError as error:
            self.unreachable = error.errno not in _OURS
            attempt.unreachable(step, replies.NO_VALID_HOSTS.because(_reason(error)))
            return False
        if await self._opened and self.usable:
            return True
        if self._opened.result():
            # it was ready and is gone before it could be used: that is the host's refusal, not a reason to try at once
            attempt.unwilling(step, replies.CONNECTION_CLOSED, Stage.AFTER_EHLO)
        return False

    def connected(self) -> None:
        self.local_ip = self._stream.addresses()[1][0]
        self._around.deadlines.add(self)
        self._wait(self.settings.ehlo_timeout)

    def _refused(self) -> None:
        """Opening has failed; the attempt has been told."""
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(False)
        self._stream.close()

    def _ready(self, offered: bool) -> None:
        assert self._attempt is not None
        assert self._step is not None
        if not self._session.in_tls:
            self.offered = offered
            turn = tls_policy.after_ehlo(self.tls, offered, in_clear=self._step.in_clear)
            if turn is Turn.REFUSE:
                self._attempt.not_offered(self._step)
                self._session.quit()
                self._write()
                self._refused()
                return
            if turn is Turn.STARTTLS:
                self._session.start_tls()
                self._wait(self.settings.ehlo_timeout)
                return
        if self.login is not None:
            self._log_in(self.login)
        else:
            self._open()

    def _log_in(self, login: Login) -> None:
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
        assert self._attempt is not None
        assert self._step is not None
        self._attempt.unwilling(self._step, reply, Stage.AFTER_EHLO)
        self._session.quit()
        self._write()
        self._refused()

    def _open(self) -> None:
        self.is_open = True
        self.deadline = 0.0
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(True)

    def _handshake(self) -> None:
        try:
            engine = self._around.contexts.client(self.tls, self.host_name, self._peer)
        except ContextError as error:
            self._tls_failed(replies.TLS_FAILED, Stage.HANDSHAKING_TLS, "bad_local_settings", str(error))
            return
        self._engine = engine
        self._wait(self._around.handshake_timeout)
        self._stream.start_tls(engine)

    def secured(self) -> None:
        assert self._engine is not None
        assert self._attempt is not None
        assert self._step is not None
        try:
            judgement = self._judge(self._engine)
        except Exception as defect:
            # whatever a peer's certificate has made of us: it has not been found good
            asyncio.get_running_loop().call_exception_handler({"message": "verdict", "exception": defect})
            judgement = Judgement(False, "certificate_rejected", replies.CERT_WRONG_CA, "see the paniclog")
            self.facts = HandshakeFailure(judgement.cause, judgement.detail).facts()
        if judgement.reply is not None:
            self._attempt.rejected(self._step, judgement)
            self._refused()
            return
        self._session.tls_started()
        self._write()
        self._wait(self.settings.ehlo_timeout)

    def _judge(self, engine: Engine) -> Judgement:
        """What the handshake is worth: by policy, by TLS_Verify."""
        verdict = self.verdict = engine.verdict()
        hooks = self._around.hooks
        if hooks.asks(Hook.OUTBOUND_VERIFY):
            call = Call(Hook.OUTBOUND_VERIFY, Session(self.remote_ip, "", ""), Context())
            verdict = hooks.outbound_verdict(call, verdict, Remote(self.host_name, self.remote_ip, self._domain))
        judgement = tls_policy.judge(self.tls, verdict, self._names)
        self.facts = verdict.facts(
            verified=judgement.verified,
            cause=judgement.cause,
            detail=judgement.detail,
            level=judgement.level,
            matched=judgement.matched,
        )
        return judgement

    def unsecured(self, failure: Any) -> None:
        assert isinstance(failure, HandshakeFailure)
        if not self.is_open:
            self._tls_failed(replies.TLS_FAILED, Stage.HANDSHAKING_TLS, failure.cause, failure.detail)
        self._stream.close()

    def _tls_failed(self, reply: Reply, stage: Stage, cause: str, detail: str = "") -> None:
        assert self._attempt is not None
        assert self._step is not None
        if self._opened is None or self._opened.done():
            return
        self.facts = HandshakeFailure(cause, detail).facts()
        self._attempt.tls_failed(self._step, reply, stage, cause)
        self._refused()

    # delivering -----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether it can take messages."""
        return self.is_open and not self._session.closed

    def chain(self) -> list[x509.Certificate]:
        """The certificates that the host sent, its own first."""
        return self._engine.chain() if self._engine is not None else []

    @property
    def exhausted(self) -> bool:
        """Whether max_deliveries_per_connection is reached."""
        limit = self.settings.max_deliveries_per_connection
        return bool(limit) and self.delivered >= limit

    def deliver(
        self, messages: list[Message], body: bytes | str, settle: Settle, ended: Callable[[Connection], None]
    ) -> None:
        """Send one batch; `body` is the mail data or the path of its file. `ended` says the connection is free."""
        batch = messages[0].batch
        self._batch, self._settle, self._ended = messages, settle, ended
        self._sent = 0
        self._stuffer = DotStuffer()
        if isinstance(body, bytes):
            self._body, self._file = body, None
        else:
            self._body = None
            try:
                self._file = open(body, "rb")  # noqa: SIM115 - closed when the body is sent or the session ends
            except OSError as error:
                # only a file that is gone is the message's fault; a full table of descriptors passes
                missing = isinstance(error, FileNotFoundError)
                reply = replies.BODY_MISSING if missing else replies.SPOOL_FAILED
                self._finish_all(failure(reply, Stage.IDLE, self.remote_ip))
                asyncio.get_running_loop().call_soon(ended, self)
                return
        say = batch.eight_bit and self.settings.send_8bitmime == "ifavailable"
        self._session.send(Transaction(batch.sender, [m.recipient for m in messages], batch.size, say))
        self._wait(self.settings.mailfrom_timeout)
        self._write()

    def _send_body(self) -> None:
        self._wait(self.settings.body_timeout)
        if self._body is not None:
            data = self._stuffer.feed(self._body)
            self._stream.write(data + self._stuffer.end())
            self._sent = len(self._body)
            self._session.body_sent()
            return
        self.writable()

    def writable(self) -> None:
        """Send what the transport takes of a large body."""
        while self._file is not None and self._session.body_expected and not self._stream.blocked:
            data = self._file.read(_CHUNK)
            self._wait(self.settings.body_timeout)
            if data:
                self._sent += len(data)
                self._stream.write(self._stuffer.feed(data))
                continue
            self._close_file()
            self._stream.write(self._stuffer.end())
            self._session.body_sent()

    def _done(self, event: smtp.Done) -> None:
        messages, self._batch = self._batch, []
        self._body = None
        self._close_file()
        settle, ended = self._settle, self._ended
        assert settle is not None
        assert ended is not None
        any_good = False
        for message, (reply, stage) in zip(messages, event.results, strict=True):
            if reply.positive:
                any_good = True
                settle(message, Delivered(reply, self.remote_ip))
            else:
                settle(message, failure(reply, stage, self.remote_ip, sent=self._sent))
        self.delivered += 1
        self.deadline = 0.0
        if any(reply.code == 421 for reply, _ in event.results):
            self.quit()
        elif any_good:
            ended(self)
        else:
            self._session.rset()  # RFC 5321 4.1.1.5: leave nothing of the failed transaction
            self._write()
            self._wait(self.settings.rset_timeout)

    def _finish_all(self, outcome: Outcome) -> None:
        messages, self._batch = self._batch, []
        self._close_file()
        for message in messages:
            assert self._settle is not None
            self._settle(message, outcome)

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
        if self._batch and not self._session.closed:
            self._wait(self._patience())

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
        elif isinstance(event, smtp.Ready):
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
            if self._ended is not None:
                self._ended(self)
        elif isinstance(event, smtp.Broken):
            self._broken(event)

    def _broken(self, event: smtp.Broken) -> None:
        if self._opened is not None and not self._opened.done():
            self._failed_to_open(event)
        else:
            # 5xx in the middle of a session says nothing about the message
            reply = event.reply if event.reply.transient else replies.CONNECTION_CLOSED.because(str(event.reply))
            self._finish_all(failure(reply, event.stage, self.remote_ip, sent=self._sent))
        self._leave()

    def _failed_to_open(self, event: smtp.Broken) -> None:
        assert self._attempt is not None
        assert self._step is not None
        if event.stage is Stage.DURING_STARTTLS:
            cause = "starttls_refused"
            self._tls_failed(replies.STARTTLS_NO_GO_AHEAD, event.stage, cause, str(event.reply))
        elif event.stage is Stage.HANDSHAKING_TLS:
            self._tls_failed(replies.TLS_FAILED, event.stage, "handshake_timeout")
        elif self._session.in_tls and self._engine is not None and self._engine.failure is not None:
            cause = self._engine.failure.cause
            self._tls_failed(replies.TLS_FAILED, Stage.HANDSHAKING_TLS, cause, self._engine.failure.detail)
        else:
            self._attempt.unwilling(self._step, event.reply, event.stage)
            self._refused()

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
        self._around.deadlines.discard(self)
        self.deadline = 0.0
        was_open, self.is_open = self.is_open, False
        self._session.connection_lost()
        while (event := self._session.next_event()) is not smtp.NEED_DATA:
            self._on(event)
        self._finish_all(failure(replies.CONNECTION_CLOSED, self._session.stage, self.remote_ip, sent=self._sent))
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(False)
        if was_open:
            self._engine = None
            self._gone(self)  # unknown to the dispatcher as long as `open` has not returned

    # common ---------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        data = self._session.data_to_send()
        if data:
            self._stream.write(data)

    def _wait(self, seconds: float) -> None:
        self.deadline = self._around.clock.now() + seconds if seconds else 0.0

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _reason(error: OSError) -> str:
    if error.errno is not None and error.strerror and not error.strerror.startswith("Connect call"):
        return os.strerror(error.errno) if error.errno > 0 else error.strerror
    return os.strerror(error.errno) if error.errno else str(error)
