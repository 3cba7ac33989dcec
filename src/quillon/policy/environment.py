"""What a policy may use of the server, beyond the session it is called for. One per worker and loaded policy.

Each service is a function that the composition root hands in; where there is none (a policy that is only checked, a
test) its use is an error that says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quillon.mail.address import Mailbox
from quillon.mail.event import Event
from quillon.mailauth.lookup import Records
from quillon.policy.hook import PolicyError


@dataclass(frozen=True, slots=True)
class Lookup:
    """Result of a DNS question: `records` are (preference, text), best first; `error` where there is no answer."""

    records: tuple[tuple[int, str], ...] = ()
    error: str = ""
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class Datasource:
    """A datasource stanza (manual, ds_core): `uris` as driver:connection, times in seconds; max_rows -1 is no limit."""

    uris: tuple[str, ...]
    cache_life: int = 3600
    cache_size: int = 1000
    max_rows: int = 100
    no_cache: bool = False


async def _no_lookup(name: str, kind: str, server: str) -> Lookup:
    raise PolicyError("there is no resolver here")


async def _no_injection(sender: Mailbox, recipients: Sequence[Mailbox], data: bytes) -> None:
    raise PolicyError("no message can be injected here")


def _unheard(event: Event) -> None:
    """Where nothing is logged."""


def _no_value(path: Sequence[str]) -> tuple[str, str]:
    raise PolicyError("there is no configuration here")


def _no_sessions(service: str, block: str) -> int:
    raise PolicyError("sessions are not counted here")


Authenticate = Callable[[str, Mapping[str, str], str, str], Awaitable[Any]]
"""File, parameters, user and password to EC_AUTH_OK, EC_AUTH_FAIL or EC_AUTH_ERROR."""


@dataclass
class Environment:
    """`lookup(name, type, server)` asks DNS, `inject` takes a message durably, `option(path)` reads an option and its
    console text, `sessions(service, CIDR block)` counts open ones, `later` runs a function when the phase is over,
    `after` when seconds have passed, and gives what cancels it, `log` takes what a module has to tell.

    `bindings` has the names of bindings and of binding groups. `monitors` are those of inbound_audit as (seconds,
    windows). Counters and caches live in `shared`, which outlives a reload. `auth` and `control` are schemes and
    console commands that scripts have registered, `stops` what to call when they are replaced, by whose it is.
    """

    now: Callable[[], float]
    report: Callable[[str], None]
    hostname: str = "localhost"
    folder: str = "."
    lookup: Callable[[str, str, str], Awaitable[Lookup]] = _no_lookup
    inject: Callable[[Mailbox, Sequence[Mailbox], bytes], Awaitable[None]] = _no_injection
    option: Callable[[Sequence[str]], tuple[str, str]] = _no_value
    sessions: Callable[[str, str], int] = _no_sessions
    later: Callable[[Callable[[], None]], None] | None = None
    after: Callable[[float, Callable[[], None]], Callable[[], None]] | None = None
    delay_domain: Callable[[str, str], None] | None = None
    datasources: Mapping[str, Datasource] = field(default_factory=dict)
    bindings: Mapping[str, Collection[str]] = field(default_factory=lambda: {"binding": (), "binding_group": ()})
    monitors: Sequence[tuple[int, int]] = ()
    shared: dict[str, Any] = field(default_factory=dict)
    auth: dict[str, Authenticate] = field(default_factory=dict)
    control: dict[str, Callable[[Sequence[str]], Awaitable[str]]] = field(default_factory=dict)
    stops: dict[int, Callable[[], None]] = field(default_factory=dict)
    log: Callable[[Event], None] = _unheard

    async def records(self, name: str, kind: str) -> Records:
        """DNS as the checks of mail authentication ask it."""
        found = await self.lookup(name, kind, "")
        return Records(found.status, [text for _, text in found.records])

    def stop(self) -> None:
        """The policies are replaced: what they have begun ends."""
        for stop in list(self.stops.values()):
            stop()
