"""What all sessions of a worker share, made anew at reload. Shell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Protocol

from quillon.config.model import Config
from quillon.config.settings import InboundTls, share
from quillon.listener.authentication import Authenticator
from quillon.listener.contract import ContractChecks
from quillon.listener.failed_logins import FailedLogins
from quillon.listener.recorder import Recorder
from quillon.log.trace import Tracers
from quillon.mail.event import Event, Panic
from quillon.mail.message import IdSource
from quillon.mail.reply import Reply
from quillon.net.clock import Clock, Deadlines
from quillon.net.turns import Turns
from quillon.policy.hook import Policy
from quillon.policy.tls import TlsHooks
from quillon.reception.accept import Reception
from quillon.tls.context import Contexts
from quillon.tls.engine import ContextError

TRY_AGAIN = 10.0  # seconds until a certificate that could not be loaded is tried again


class OpenSession(Protocol):
    """A session, as far as a worker deals with it."""

    @property
    def client(self) -> str:
        """The client's address."""

    @property
    def busy(self) -> bool:
        """Whether a message is under way."""

    @property
    def committing(self) -> bool:
        """Whether a message waits for its commit."""

    def shown(self) -> dict[str, Any]:
        """What it is about, for the console."""

    def end(self, reply: Reply) -> None:
        """Close with a last reply."""

    def retire(self) -> None:
        """A new configuration is in force."""


@dataclass
class Counts:
    """Open sessions of this worker, by Listen and in all."""

    by_listen: dict[str, int] = field(default_factory=dict)
    total: int = 0


@dataclass
class SessionServices:
    """What sessions share. `note` counts connections, receptions and rejections of an address, `recorder` takes
    sessions that begin now. `keep` takes the certificates of a client in DER, where evidence is kept of them, and gives
    their SHA-256."""

    config: Config
    contexts: Contexts
    policy: Policy
    hooks: TlsHooks
    reception: Reception
    ids: IdSource
    clock: Clock
    deadlines: Deadlines
    hostname: str
    workers: int
    log: Callable[[Event], object]
    counts: Counts
    sessions: set[OpenSession]
    authenticator: Authenticator
    failed_logins: FailedLogins
    turns: Turns
    note: Callable[[str, str], object] = lambda event, ip: None
    recorder: Recorder | None = None
    tracers: Tracers | None = None
    keep: Callable[[Sequence[bytes]], tuple[str, ...]] | None = None
    contract_checks: ContractChecks = field(init=False)
    _date: tuple[int, str] = (0, "")
    _tls_usable: dict[InboundTls, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.contract_checks = ContractChecks(self.clock.now)

    def date(self) -> str:
        """Now, as RFC 5322 text; made once a second."""
        second = int(self.clock.now())
        if self._date[0] != second:
            self._date = (second, formatdate(second, localtime=True))
        return self._date[1]

    def tls_usable(self, settings: InboundTls) -> bool:
        """Whether a server context can be had; why not goes to the paniclog, and is asked again after a while."""
        if self._tls_usable and self._tls_usable.get(settings, 0.0) > self.clock.now():
            return False
        try:
            self.contexts.load(settings)
        except ContextError as error:
            self._tls_usable[settings] = self.clock.now() + TRY_AGAIN
            if settings.tls_certificate or settings.tls_identities:
                self.log(Panic(self.clock.now(), f"tls: {error}"))
            return False
        return True

    def share(self, limit: int) -> int:
        """This worker's part of a limit of the node; 0 stays no limit."""
        return share(limit, self.workers)
