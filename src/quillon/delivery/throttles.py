"""When the throttles of the stanzas let a destination, and connections to a host, act. Pure: `now` comes in."""

from __future__ import annotations

from collections import defaultdict

from quillon.config.model import Config
from quillon.config.scope import Node
from quillon.config.values import Throttle
from quillon.delivery.connection import Connection
from quillon.queue.destination import DestinationQueue
from quillon.queue.throttle import Bucket

MESSAGES, CONNECTIONS = "outbound_throttle_messages", "outbound_throttle_connections"

Queue = DestinationQueue[Connection]


class Throttles:
    """Counters belong to the stanza that sets a throttle. Each of the node's workers has an even part of its rate."""

    def __init__(self, config: Config, workers: int) -> None:
        self._workers = workers
        self.held: defaultdict[str, float] = defaultdict(float)  # seconds for which destinations were held, by option
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Other stanzas; what was counted is forgotten."""
        self._config = config
        self._buckets: dict[tuple[int, str], Bucket] = {}

    def let(self, queue: Queue, option: str, now: float, host: str = "") -> bool:
        """Whether the throttles of a destination, and of the Host of a connection, let it act now; if not, it waits for
        a turn that is its own then."""
        passed: list[str] = []
        for throttle, node in self._of(queue, option, host):
            name, when = self._turn(queue, option, throttle, node, now)
            if when > now:
                queue.granted.update(dict.fromkeys(passed, now))  # they need not be asked again
                queue.pause(when, name, messages=option == MESSAGES)
                return False
            passed.append(name)
        return True

    def host_turn(self, queue: Queue, host: str, now: float) -> float:
        """When the throttle of a Host lets a connection to it be opened."""
        key = queue.key
        found = self._config.outbound.host_throttle(CONNECTIONS, key.binding_group, key.binding, host)
        return self._turn(queue, CONNECTIONS, *found, now)[1] if found is not None else now

    def _turn(self, queue: Queue, option: str, throttle: Throttle, node: Node | None, now: float) -> tuple[str, float]:
        """When the counter of a stanza lets a destination act, and what that is called. A turn that is still to come is
        kept for it."""
        name = f"{option} of {node.path if node is not None else 'the default'}"
        key = (id(node), option)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(throttle.count / self._workers, throttle.seconds)
        when = queue.granted.pop(name, 0.0)
        if not when:
            when = bucket.reserve(now)
            self.held[option] += max(when - now, 0.0)
        if when > now:
            queue.granted[name] = when
        return name, when

    def _of(self, queue: Queue, option: str, host: str) -> list[tuple[Throttle, Node | None]]:
        """The throttles that hold, each with the stanza that set it."""
        found: list[tuple[Throttle, Node | None]] = []
        key, outbound = queue.key, self._config.outbound
        throttle: Throttle | None = getattr(queue.rules.settings, option)
        if throttle is not None and throttle.count:
            found.append((throttle, outbound.option(option, key.binding_group, key.binding, key.domain).node))
        if host and outbound.throttles_hosts:
            of_host = outbound.host_throttle(option, key.binding_group, key.binding, host)
            found += [of_host] if of_host is not None else []
        return found
