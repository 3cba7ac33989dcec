"""An SMTP sink with STARTTLS: takes every message, keeps it, and tells what the handshake was.

It is built from the parts of Quillon itself, with answers that can be bent: `answer` may give a reply of its own to
any command, as in `lambda event: Reply(450, "4.2.1", "busy") if isinstance(event, RcptTo) else None`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from quillon.config.options import table
from quillon.config.scope import resolve
from quillon.config.settings import InboundTls, ReceptionSettings, build
from quillon.mail.event import TlsFacts
from quillon.mail.reply import Reply
from quillon.net.clock import SystemClock
from quillon.net.stream import Stream
from quillon.smtp import events as smtp
from quillon.smtp.server import ServerSession
from quillon.tls.context import Contexts
from quillon.tls.engine import Engine

Answer = Callable[[Any], Reply | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Caught:
    """One message as it arrived."""

    sender: str
    recipients: tuple[str, ...]
    data: bytes
    tls: TlsFacts | None
    helo: str


def reception_defaults(**changes: Any) -> ReceptionSettings:
    """Reception settings as an empty configuration has them, with changes by field name."""
    options = table().options
    settings = build(ReceptionSettings, lambda name: resolve(options[name], [], "/").value)
    return dataclasses.replace(settings, **changes)


def inbound_tls(certificate: str, key: str, **changes: Any) -> InboundTls:
    """TLS settings for a sink, with changes by field name."""
    options = table().options
    settings = build(InboundTls, lambda name: resolve(options[name], [], "/").value)
    return dataclasses.replace(
        settings, **{"tls_certificate": certificate, "tls_key": key, "tls_verify_mode": "none", **changes}
    )


class Sink:
    """`tls` None offers no STARTTLS. `caught` grows by one for each message; `sessions` counts connections."""

    def __init__(self, tls: InboundTls | None = None, answer: Answer = lambda _: None) -> None:
        self.tls = tls
        self.answer = answer
        self.caught: list[Caught] = []
        self.sessions = 0
        self.open: set[_SinkSession] = set()
        self.contexts = Contexts(SystemClock().now)
        self.settings = reception_defaults(
            smtp_extensions=("ENHANCEDSTATUSCODES", "STARTTLS"), rfc2822_lone_lf_in_body="ignore"
        )
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; gives the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _SinkSession(self).stream, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Stop listening and cut off the sessions that stand."""
        if self._server is not None:
            self._server.close()
        for session in list(self.open):
            session.stream.abort()


class _SinkSession:
    def __init__(self, sink: Sink) -> None:
        self.stream = Stream(self)
        self._sink = sink
        self._session = ServerSession(sink.settings, "sink.test", "client", can_starttls=sink.tls is not None)
        self._engine: Engine | None = None
        self._facts: TlsFacts | None = None
        self._helo = ""
        self._sender = ""
        self._recipients: list[str] = []
        self._data: list[bytes] = []

    def connected(self) -> None:
        self._sink.sessions += 1
        self._sink.open.add(self)
        self._session.greet(self._sink.answer("banner") or Reply(220, "", "sink.test ESMTP"))
        self._run()

    def received(self, data: bytes) -> None:
        self._session.receive(data)
        self._run()

    def _run(self) -> None:
        while (event := self._session.next_event()) is not smtp.NEED_DATA and event is not smtp.PAUSED:
            self._on(event)
        self.stream.write(self._session.data_to_send())
        if self._session.closing:
            self.stream.close()

    def _on(self, event: Any) -> None:
        if isinstance(event, smtp.Data):
            self._data.append(event.data)
            if not event.last:
                return
        reply = self._sink.answer(event)
        if isinstance(event, smtp.Hello):
            self._helo = event.domain
        elif isinstance(event, smtp.MailFrom):
            self._sender, self._recipients = str(event.mailbox), []
        elif isinstance(event, smtp.RcptTo) and reply is None:
            self._recipients.append(str(event.mailbox))
        elif isinstance(event, smtp.Data):
            data, self._data = b"".join(self._data), []
            if reply is None:
                self._sink.caught.append(Caught(self._sender, tuple(self._recipients), data, self._facts, self._helo))
        self._session.respond(reply)
        if isinstance(event, smtp.StartTls) and reply is None and self._sink.tls is not None:
            self.stream.write(self._session.data_to_send())
            self._engine = self._sink.contexts.server(self._sink.tls)
            self.stream.start_tls(self._engine)

    def secured(self) -> None:
        assert self._engine is not None
        verdict = self._engine.verdict()
        self._facts = verdict.facts(verified=verdict.chain_verified if verdict.certificate else None)
        self._session.tls_started()

    def unsecured(self, failure: Any) -> None:
        self.stream.close()

    def writable(self) -> None:
        """Replies are small."""

    def ended(self) -> bool:
        return False

    def closed(self) -> None:
        self._sink.open.discard(self)
