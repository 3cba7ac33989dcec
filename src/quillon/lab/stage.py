"""A session without a network: the server's own session, policy and reception, between a script of commands and no
spool.

What a client would send is given by hand, a TLS verdict included; what would be stored is counted and let go.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quillon.config.model import Config
from quillon.config.settings import InboundTls, ReceptionSettings
from quillon.listener.authentication import Authenticator
from quillon.listener.esmtp import EsmtpSession
from quillon.listener.failed_logins import FailedLogins
from quillon.listener.services import Counts, SessionServices
from quillon.lua.msys import db
from quillon.mail.event import Event
from quillon.mail.message import Batch, IdSource, Message
from quillon.modules import load as policies
from quillon.modules.load import Policies, Services
from quillon.net.clock import Deadlines
from quillon.net.turns import Turns
from quillon.policy.hook import Traced
from quillon.policy.tls import TlsHooks
from quillon.reception.accept import Reception, ResidentBodies
from quillon.smtp.sasl import AuthOutcome
from quillon.spool.room import Room
from quillon.tls.engine import ContextError
from quillon.tls.verdict import TlsVerdict

PATIENCE = 60.0  # seconds that a policy may take for one step


class StageClock:
    """Time that stands still until it is set."""

    def __init__(self, now: float) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def shuffle(self, items: list[str]) -> None:
        """Leave them as they are: the same play has the same end."""


class _Bodies:
    """There are no files."""

    def drop(self, name: str) -> None:
        """Nothing lies there."""


class _Store:
    """Takes everything and keeps nothing."""

    def __init__(self) -> None:
        self.stored: list[Message] = []
        self.bodies = _Bodies()

    def insert(self, batch: Batch, messages: list[Message], done: Callable[[Exception | None], None]) -> None:
        self.stored += messages
        done(None)

    def remove(self, message: Message) -> None:
        self.stored.remove(message)


class _Engine:
    """A handshake that has ended as the play has it; None is one that never ends."""

    established = True

    def __init__(self, verdict: TlsVerdict | None) -> None:
        self._verdict = verdict

    def verdict(self) -> TlsVerdict:
        assert self._verdict is not None
        return self._verdict


class _Contexts:
    """Stands for the TLS contexts of a server."""

    given: TlsVerdict | None = None  # the verdict that a handshake comes to

    def server(self, settings: InboundTls) -> _Engine:
        self.load(settings)
        return _Engine(self.given)

    def verdict(self, _settings: object, engine: _Engine) -> TlsVerdict:
        """There are no revocation lists here: what is given holds."""
        return engine.verdict()

    def load(self, settings: InboundTls) -> None:
        """Raises ContextError where the server would have nothing to show; files are not read."""
        if not settings.tls_certificate and not settings.tls_identities:
            raise ContextError("there is no TLS_Certificate")


class _Stream:
    """The session's stream: what it writes is kept."""

    def __init__(self, remote: tuple[str, int], local: tuple[str, int]) -> None:
        self.said = b""
        self.blocked = False
        self.tap: Callable[[bytes, bool], object] | None = None
        self.closed = False
        self.begun = False
        self._addresses = remote, local

    def addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return self._addresses

    def write(self, data: bytes) -> None:
        self.said += data

    def start_tls(self, engine: object) -> None:
        self.begun = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        """The play waits by itself."""

    resume_reading = pause_reading


class _Authenticator(Authenticator):
    """Takes the outcome that the play has for an exchange, where it has one."""

    outcome: str | None = None

    async def decide(self, settings: ReceptionSettings, mechanism: str, attempt: AuthOutcome) -> str:
        return self.outcome or await super().decide(settings, mechanism, attempt)


async def _injected(*_: object) -> None:
    """Mail of a policy's own goes nowhere here."""


def _sessions(service: str, block: str) -> int:
    """The one that is played."""
    return 1 if service == "SMTP" else 0


def _hostname(config: Config) -> str:
    return config.node().hostname or "localhost"


class PolicyStage:
    """Plays sessions with a configuration."""

    def __init__(
        self,
        config: Config,
        clock: StageClock,
        loaded: Policies,
        report: Callable[[str], None],
        trace: Callable[[Traced], None] | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.events: list[Event] = []
        self.contexts = _Contexts()
        node = config.node()
        self.hostname = _hostname(config)
        self.loaded = loaded
        if self.loaded.policy.modules:
            self.loaded.policy.trace = trace
        self.authenticator = _Authenticator(self.clock, report, self.loaded.environment.auth)
        self.store = _Store()
        self._services = self._session_services()
        self._services.reception.node = dataclasses.replace(node, large_message_threshold=2**40)

    @classmethod
    async def of(
        cls,
        config: Config,
        lookup: Callable[[str, str, str], Any],
        now: float,
        report: Callable[[str], None],
        trace: Callable[[Traced], None] | None = None,
    ) -> PolicyStage:
        """One at a time in seconds; `lookup` answers DNS, `trace` is told of every callout.

        Raises LoadError for a configuration whose policies do not load.
        """
        clock = StageClock(now)
        services = Services(lookup=lookup, inject=_injected, sessions=_sessions, hostname=_hostname(config))
        return cls(config, clock, await policies.load(config, clock, report, services), report, trace)

    def _session_services(self) -> SessionServices:
        config, policy = self.config, self.loaded.policy
        ids = IdSource(1)
        store: Any = self.store
        contexts: Any = self.contexts
        door = Reception(
            config=config,
            policy=policy,
            store=store,
            room=Room(Path("/"), 0, 0, self.clock.now),
            ids=ids,
            clock=self.clock,
            resident_bodies=ResidentBodies(0),
            enqueue=lambda _: None,
            log=self.events.append,
        )
        return SessionServices(
            config=config,
            contexts=contexts,
            policy=policy,
            hooks=TlsHooks(policy, config.folder),
            reception=door,
            ids=ids,
            clock=self.clock,
            deadlines=Deadlines(self.clock),
            hostname=self.hostname,
            workers=1,
            log=self.events.append,
            counts=Counts(),
            sessions=set(),
            authenticator=self.authenticator,
            failed_logins=FailedLogins(self.clock.now),
            turns=Turns(),
        )

    def play(self, listen: str, remote: tuple[str, int], local: tuple[str, int]) -> Play:
        """Begin a session, in which no handshake ends until one is announced."""
        self.contexts.given = None
        return Play(self, self._services, listen, remote, local)

    async def close(self) -> None:
        """Raises PolicyError where a script's end fails."""
        try:
            self.loaded.policy.close()
        finally:
            await db.close(self.loaded.environment.shared)


class Play:
    """One session."""

    def __init__(
        self,
        stage: PolicyStage,
        services: SessionServices,
        listen: str,
        remote: tuple[str, int],
        local: tuple[str, int],
    ) -> None:
        self._stage = stage
        self._stream = _Stream(remote, local)
        self._session = EsmtpSession(services, listen, self._stream)

    def over_tls(self, verdict: TlsVerdict) -> None:
        """What the next handshake finds out."""
        self._stage.contexts.given = verdict

    async def connect(self) -> list[str]:
        """The banner, over TLS where the listener has Use_SSL."""
        self._session.connected()
        if self._stream.begun:
            self._stream.begun = False
            self._session.secured()
        return await self._replies()

    async def command(self, line: str, outcome: str | None = None) -> list[str]:
        """Say a line; `outcome` is that of an authentication which ends with it."""
        self._stage.authenticator.outcome = outcome
        self._session.received(line.encode("ascii", "replace") + b"\r\n")
        return await self._replies()

    async def handshake(self) -> list[str]:
        """The client's handshake, after the go-ahead of STARTTLS, or nothing if there was none."""
        if not self._stream.begun:
            return []
        self._stream.begun = False
        self._session.secured()
        return await self._replies()

    async def authenticate(self, mechanism: str, user: str, outcome: str) -> list[str]:
        """An exchange of AUTH, of which only its outcome counts."""
        self._stage.authenticator.outcome = outcome
        self._session.received(f"AUTH {mechanism}\r\n".encode("ascii", "replace"))
        await self._replies()
        self._session.authenticated_as(mechanism, user)
        return await self._replies()

    async def data(self, message: bytes) -> list[str]:
        """Mail data, after the go-ahead of DATA; dots are added here."""
        lines = message.removesuffix(b"\r\n").replace(b"\r\n.", b"\r\n..")
        self._session.received((b"." if lines.startswith(b".") else b"") + lines + b"\r\n.\r\n")
        return await self._replies()

    @property
    def closed(self) -> bool:
        """Whether the server has hung up."""
        return self._stream.closed

    def end(self) -> None:
        """The client goes."""
        self._session.closed()

    async def _replies(self) -> list[str]:
        """What the server says, once its policies are done."""
        await asyncio.wait_for(self._session.settled(), PATIENCE)
        said, self._stream.said = self._stream.said, b""
        return [line for line in said.decode("ascii", "replace").split("\r\n") if line]
