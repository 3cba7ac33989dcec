"""Places under limits of connections: who waits for one, and who gives one up.

A limit may be a destination's, a host's, one of a scope, or that of the whole server; what a worker's share does not
hold is on lease from the node (`lessee`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from quillon.delivery.connection import Connection
from quillon.delivery.host_memory import HostMemory
from quillon.delivery.lessee import TURN, Lessee
from quillon.queue.destination import DestinationQueue
from quillon.queue.limit import Limit

if TYPE_CHECKING:
    from quillon.delivery.dispatcher import Dispatcher

LOOKED_AT = 64  # idle connections that are looked at for one whose place somebody needs

Queue = DestinationQueue[Connection]


class Places:
    """Those of one dispatcher. `say` takes what is for the node."""

    def __init__(self, dispatcher: Dispatcher, memory: HostMemory, say: Callable[[dict[str, Any]], object]) -> None:
        self.lessee = Lessee(say)
        self._dispatcher = dispatcher
        self._memory = memory

    def wait_for(self, queue: Queue, host: str) -> None:
        """A destination waits for a place under the limit of a host."""
        limit = self._memory.limit(host)
        if queue not in limit.held:
            limit.held[queue] = None
            self.make_room(limit)
        if limit.wants:
            self.lessee.ask(limit)

    def make_room(self, limit: Limit | None) -> None:
        """A destination waits for a place under a limit, or under that of the whole server: an idle connection that has
        one ends."""
        for connection, queue in islice(self._dispatcher.siblings.idle(), LOOKED_AT):
            if limit is None or limit in queue.limits or limit is self._memory.limit(connection.host_name):
                self._dispatcher.dismiss(queue, connection)
                return

    def freed(self, host: str, ip: str = "") -> None:
        """A connection to a host is gone: whoever waits for one may try."""
        limit = self._memory.closed(host, ip)
        self.lessee.released(limit)
        self._try_held(limit, 1)

    def _try_held(self, limit: Limit, count: int) -> None:
        """Let so many of those that wait for a place try."""
        now = self._now()
        for queue in list(limit.held):
            if limit not in queue.limits:  # a host's: it waits by a pause
                del limit.held[queue]
                queue.resume()
            self._dispatcher.queues.touch(queue, now)
            count -= queue.waiting > 0
            if count <= 0:
                break
        self._dispatcher.kick()

    def leased(self, name: str) -> None:
        """The node lets one more connection stand."""
        limit = self.lessee.leased(name, self._now())
        if limit is not None:
            self._try_held(limit, len(limit.held))

    def wanted(self, name: str) -> None:
        """Another worker waits for a connection of this name: one that is idle ends now, others when they have had
        their turn."""
        limit = self.lessee.wanted(name, self._now())
        if limit is None:
            return
        if limit.idle_lease:  # it has just come: see whether it is used
            asyncio.get_running_loop().call_later(TURN, self.wanted, name)
            return
        for connection, queue in self._dispatcher.connections():
            its = (*queue.limits, self._memory.limit(connection.host_name))
            if connection in queue.idle and limit in its:
                self._dispatcher.dismiss(queue, connection)
                return

    def gives_way(self, connection: Connection, queue: Queue, now: float) -> bool:
        """Whether a connection has had its turn and others wait for its place."""
        if not connection.delivered or now - connection.since < TURN:
            return False
        queues = self._dispatcher.queues
        host = self._memory.limit(connection.host_name)
        others = queue.full and any(len(limit.held) > (queue in limit.held) for limit in queue.limits)
        crowded = queues.full and queues.crowded
        wanted = host.wanted or any(limit.wanted for limit in queue.limits)
        return bool(others or wanted or host.held or crowded)

    def others_wait(self, queue: Queue) -> bool:
        """Whether another destination waits for a place that a connection of this one has."""
        return any(len(limit.held) > (queue in limit.held) for limit in queue.limits if limit.full)

    def _now(self) -> float:
        return self._dispatcher.services.clock.now()
