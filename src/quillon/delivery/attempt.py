"""One attempt to reach a site: which host next, with TLS or in clear, and when to stop. Pure.

A host that cannot be reached, will not talk, fails in TLS or is not who it should be leads to the next one, under the
same demand (RFC 5321 5.1): no host makes another one's TLS weaker. Failed TLS is first answered by a fresh connection
in clear to the same host, where the configuration allows that. Settings of our own that cannot be loaded end the
attempt, for they would at every host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from quillon.config.settings import OutboundTls
from quillon.delivery import tls_policy
from quillon.delivery.route import Host
from quillon.queue.trail import Failed, Trail


class Obstacle(Enum):
    """What kept a host from taking mail before any was offered."""

    UNREACHABLE = "no connection, or none in time"
    OURS = "this side had nothing to connect with"
    UNWILLING = "banner or EHLO were refused, or the host broke off"
    LOGIN = "AUTH was not offered, or refused"
    NEGOTIATION = "STARTTLS was refused, or the handshake failed"
    REJECTED = "STARTTLS was not offered, or TLS_Verify says no"
    BARRED = "DNS or the policy of the domain says that this is no host for it"


@dataclass(frozen=True, slots=True)
class TryHost:
    """Connect to this host. `in_clear` is a fallback after failed TLS."""

    host: Host
    in_clear: bool = False


class Attempt:
    """`hosts` in the order in which they are tried, `trail` where the attempt has been already. At most `sessions`
    hosts are talked to and `addresses` tried; 0 is no limit."""

    def __init__(
        self,
        hosts: Sequence[Host],
        trail: Trail | None = None,
        *,
        sessions: int = 0,
        addresses: int = 0,
    ) -> None:
        self.trail = trail or Trail()
        self._sessions = sessions
        self._addresses = addresses
        self._todo = deque(TryHost(host) for host in hosts if host.peer not in self.trail.tried)

    def next_step(self) -> TryHost | None:
        """The next host, or None at the end."""
        if self._todo and not self._todo[0].in_clear and self._used_up():
            self._todo.clear()
        return self._todo.popleft() if self._todo else None

    def best(self) -> list[Host]:
        """Hosts that may be next, none of them worse than another."""
        if not self._todo or self._used_up():
            return []
        rank = min(step.host.rank for step in self._todo)
        return [step.host for step in self._todo if step.host.rank == rank]

    @property
    def goes_clear(self) -> bool:
        """Whether the host that has just failed is tried again in clear."""
        return bool(self._todo) and self._todo[0].in_clear

    def _used_up(self) -> bool:
        trail = self.trail
        return bool(
            (self._sessions and trail.sessions >= self._sessions)
            or (self._addresses and len(trail.tried) >= self._addresses)
        )

    def failed(self, step: TryHost, obstacle: Obstacle, failed: Failed, tls: OutboundTls) -> None:
        """A host has not come to the point of taking mail under the settings that were demanded of it."""
        reached = obstacle not in (Obstacle.UNREACHABLE, Obstacle.OURS, Obstacle.BARRED)
        self.trail = self.trail.after(step.host.peer, failed, session=reached and not step.in_clear)
        cause = failed.outcome.cause
        if cause == tls_policy.OURS:
            self._todo.clear()
        elif obstacle is Obstacle.NEGOTIATION and tls_policy.falls_back(tls, cause):
            self._todo.appendleft(TryHost(step.host, in_clear=True))
