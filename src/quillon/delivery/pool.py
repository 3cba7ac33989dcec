"""Idle connections, kept for the next message of their queue. Pure.

A connection is used again only where the TLS settings it was opened under are equal to those that hold now: otherwise
mail that requires TLS could leave over a connection without.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from quillon.config.settings import OutboundTls
from quillon.queue.backlog import Key


class Pooled(Protocol):
    @property
    def tls(self) -> OutboundTls: ...
    @property
    def usable(self) -> bool: ...


C = TypeVar("C", bound=Pooled)


class Pool(Generic[C]):
    def __init__(self) -> None:
        self._idle: dict[Key, list[C]] = {}

    def put(self, key: Key, connection: C) -> None:
        self._idle.setdefault(key, []).append(connection)

    def take(self, key: Key, tls: OutboundTls) -> tuple[C | None, list[C]]:
        """A connection that may be used, and those found on the way that may not and are to be closed."""
        unfit: list[C] = []
        waiting = self._idle.get(key)
        found: C | None = None
        while waiting and found is None:
            connection = waiting.pop()
            if connection.usable and connection.tls == tls:
                found = connection
            else:
                unfit.append(connection)
        if waiting is not None and not waiting:
            del self._idle[key]
        return found, unfit

    def discard(self, key: Key, connection: C) -> bool:
        """Take one out; whether it was there."""
        waiting = self._idle.get(key)
        if waiting is None or connection not in waiting:
            return False
        waiting.remove(connection)
        if not waiting:
            del self._idle[key]
        return True

    def drain(self) -> list[C]:
        out = [connection for waiting in self._idle.values() for connection in waiting]
        self._idle.clear()
        return out

    def waiting(self) -> list[Key]:
        """Queues that have idle connections."""
        return list(self._idle)
