"""Asks the node for connections beyond this worker's share, and gives them back. The other end is `app/leases.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quillon.queue.limit import Limit

TURN = 2.0  # seconds for which a connection is kept although others wait for its place


class Lessee:
    """`send` takes what is to be said to the node."""

    def __init__(self, send: Callable[[dict[str, Any]], object]) -> None:
        self._send = send
        self._limits: dict[str, Limit] = {}  # those that have a lease, or have asked for one
        self._since: dict[str, float] = {}  # when the last lease of a name came

    def ask(self, limit: Limit) -> None:
        """One connection more is wanted."""
        known = self._limits.get(limit.name)
        if known is not None and known is not limit:
            limit.leases, known.leases = limit.leases + known.leases, 0  # of a destination that was forgotten
        limit.asked = True
        self._limits[limit.name] = limit
        self._send({"event": "lease", "name": limit.name, "most": limit.spare})

    def leased(self, name: str, now: float) -> Limit | None:
        """A lease has come: the limit that it is for, if it is still wanted."""
        limit = self._limits.get(name)
        if limit is None:
            self._send({"event": "lease back", "name": name})
            return None
        limit.asked = False
        limit.leases += 1
        self._since[name] = now
        if not _needed(limit):
            self._give_back(limit)
            return None
        return limit

    def wanted(self, name: str, now: float) -> Limit | None:
        """Another worker waits for a lease of this name: the limit, if a lease of it is in use here, or has just come
        to be used."""
        limit = self._limits.get(name)
        if limit is None or not limit.leases:
            return None
        limit.wanted = True
        if limit.idle_lease and now - self._since.get(name, 0.0) >= TURN:
            self._give_back(limit)
        return limit if limit.wanted else None

    def released(self, limit: Limit) -> None:
        """A connection is gone: give its lease back where nobody here needs it, or another worker waits."""
        while limit.idle_lease and (limit.wanted or not _needed(limit)):
            self._give_back(limit)

    def _give_back(self, limit: Limit) -> None:
        limit.leases -= 1
        limit.wanted = False
        self._send({"event": "lease back", "name": limit.name})
        if _needed(limit) and limit.wants:
            self.ask(limit)  # whoever waits here waits in line with the others
        elif not limit.leases and not limit.asked and self._limits.get(limit.name) is limit:
            self._limits.pop(limit.name, None)
            self._since.pop(limit.name, None)


def _needed(limit: Limit) -> bool:
    """Whether a destination waits for a place under a limit."""
    return any(queue.waiting for queue in limit.held)
