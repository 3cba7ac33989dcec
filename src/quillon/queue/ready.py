"""Which destinations may act now. Pure: `now` comes in.

A destination moves by events: a message came, a connection was freed, a pause is over, settings have changed. Each
costs O(log n) at most, whatever is queued; nothing looks at all destinations. Those that may act stand in a ring and
get one turn each; those that only lack a connection of the whole server stand in another and come when one is freed.

    submit(message, now)     a new message, or one that waits for its time
    next(now)                the destination whose turn it is, or None
    touch(queue, now)        something about it has changed
    due()                    when to ask again if nothing happens
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from typing import Generic

from quillon.mail.message import Message
from quillon.queue.destination import C, DestinationQueue, Key, QueueState, Rules, Site, key_of, site_key, site_of
from quillon.queue.limit import UNLIMITED, Limit

AT_ONCE = 1000  # messages that become due in one call


class Queues(Generic[C]):
    """`rules` tells what the configuration says of a destination; `total` is the most connections of this worker.
    `at_limit` is told of a limit that a lease would help, `released` of one that has a place free,
    `no_room` that a destination begins to wait for a place under a limit, or None for that of the whole server."""

    def __init__(
        self,
        rules: Callable[[Key], Rules],
        total: int,
        at_limit: Callable[[Limit], object] = lambda _: None,
        released: Callable[[Limit], object] = lambda _: None,
        no_room: Callable[[Limit | None], object] = lambda _: None,
    ) -> None:
        self._no_room = no_room
        self._at_limit = at_limit
        self._released = released
        self._sites: dict[Hashable, Site] = {}
        self.epoch = 0  # counts configurations: a destination of an older one is renewed before it acts
        self.opened = 0  # connections that stand or are being opened
        self._rules = rules
        self._total = total
        self._caps: dict[str, Limit] = {}  # over several destinations, by name
        self._queues: dict[Key, DestinationQueue[C]] = {}
        self._ready: dict[DestinationQueue[C], None] = {}
        self._crowded: dict[DestinationQueue[C], None] = {}
        self._timers: list[tuple[float, int, DestinationQueue[C]]] = []
        self._serial = 0

    # what there is --------------------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> DestinationQueue[C]:
        """The destination of a key, made if it is new."""
        found = self._queues.get(key)
        if found is None:
            rules = self._rules(key)
            site = self._site(key, rules)
            site.queues += 1
            found = self._queues[key] = DestinationQueue(key, rules, self.epoch, site, self._limits_of(rules))
        return found

    def renew(self, queue: DestinationQueue[C]) -> None:
        """Other settings hold for a destination."""
        rules = self._rules(queue.key)
        self._leave(queue)
        queue.renew(rules, self.epoch, self._limits_of(rules))
        self._move(queue, self._site(queue.key, rules))

    def _line_up(self, limit: Limit, queue: DestinationQueue[C]) -> None:
        if queue not in limit.held:
            limit.held[queue] = None
            self._no_room(limit)

    def share(self, queue: DestinationQueue[C], hosts: tuple[str, ...], now: float) -> bool:
        """Have a destination count its connections with all that lead to the same hosts, for MX_Rollup; whether there
        is room for those it has then. A destination shares from its first connection on, until it is renewed."""
        if queue.site.key != site_key(queue.key, queue.rules, hosts):
            self._leave(queue)
            before = queue.site
            self._move(queue, self._site(queue.key, queue.rules, hosts))
            self._pass_on(before.limit, now)  # the places that it had
        return queue.site.limit.used <= queue.allowed

    def _site(self, key: Key, rules: Rules, hosts: tuple[str, ...] = ()) -> Site:
        name = site_key(key, rules, hosts)
        site = self._sites.get(name)
        if site is None:
            site = self._sites[name] = site_of(key, rules, hosts)
        return site

    def _move(self, queue: DestinationQueue[C], site: Site) -> None:
        before = queue.site
        if site is not before:
            queue.move(site)
            if before.queues:
                self._released(before.limit)
            else:
                self._drop(before)

    def _drop(self, site: Site) -> None:
        """Forget a site with its last destination."""
        if not site.queues:
            del self._sites[site.key]
            self._released(site.limit)  # whatever it has on lease

    def _limits_of(self, rules: Rules) -> tuple[Limit, ...]:
        """What several destinations share, as it stands."""
        found = []
        for cap in rules.caps:
            limit = self._caps.setdefault(cap.name, Limit(cap.name))
            limit.rule(cap.share, cap.spare)
            found.append(limit)
        return tuple(found)

    def __iter__(self) -> Iterator[DestinationQueue[C]]:
        return iter(list(self._queues.values()))

    def __len__(self) -> int:
        return len(self._queues)

    def of_domain(self, domain: str) -> list[DestinationQueue[C]]:
        """Destinations of a routing domain, of whichever binding."""
        return [queue for queue in self._queues.values() if queue.key.domain == domain]

    def messages(self) -> Iterator[Message]:
        """Every message that waits."""
        for queue in self:
            yield from queue.messages()

    # events ---------------------------------------------------------------------------------------------------

    def submit(self, message: Message, now: float) -> DestinationQueue[C]:
        """Put a message where it belongs: it may leave now, or waits until its `next_at`."""
        queue = self[key_of(message)]
        if message.next_at > now:
            queue.delay(message)
        else:
            queue.add(message)
        self.touch(queue, now)
        return queue

    def touch(self, queue: DestinationQueue[C], now: float) -> None:
        """Something about a destination has changed: see whether it may act, and when to look again."""
        state = self._state(queue, now)
        if state is QueueState.READY:
            self._ready[queue] = None
            self._crowded.pop(queue, None)
        else:
            self._ready.pop(queue, None)
            if state is QueueState.CROWDED:
                if queue not in self._crowded:
                    self._crowded[queue] = None
                    self._no_room(None)
            else:
                self._crowded.pop(queue, None)
        if state is QueueState.AT_LIMIT and queue.full:
            self._hold(queue)
        else:
            for limit in queue.limits:
                if limit.held:
                    limit.held.pop(queue, None)
                    if state is not QueueState.READY:
                        self._pass_on(limit, now)
        due = queue.due(now)
        if due and (not queue.wakes_at or due < queue.wakes_at):
            queue.wakes_at = due
            self._serial += 1
            heapq.heappush(self._timers, (due, self._serial, queue))
        elif state is QueueState.EMPTY and queue.forgettable:
            self.forget(queue)

    def _hold(self, queue: DestinationQueue[C]) -> None:
        """Have a destination wait for a place under each limit that keeps it from one. Leases are asked for in one
        order and one at a time, lest two workers have one each of the two that both need."""
        site, *caps = queue.limits
        asks = True
        if site.used >= queue.allowed:
            self._line_up(site, queue)
            asks = False
            if site.wants and queue.site.window.allowed(UNLIMITED) > site.most:
                self._at_limit(site)
        for cap in caps:
            if cap.full:
                self._line_up(cap, queue)
                if asks and cap.wants:
                    self._at_limit(cap)
                asks = False

    def _leave(self, queue: DestinationQueue[C]) -> None:
        for limit in queue.limits:
            limit.held.pop(queue, None)

    def _state(self, queue: DestinationQueue[C], now: float) -> QueueState:
        state = queue.state(now)
        if state is QueueState.READY and self.full and not queue.idle and queue.rules.talks:
            return QueueState.CROWDED
        return state

    def forget(self, queue: DestinationQueue[C]) -> None:
        """Nothing waits here any more."""
        if self._queues.get(queue.key) is queue:
            del self._queues[queue.key]
            queue.site.queues -= 1
            self._drop(queue.site)
        self._leave(queue)
        self._ready.pop(queue, None)
        self._crowded.pop(queue, None)

    def next(self, now: float) -> DestinationQueue[C] | None:
        """The destination whose turn it is; the caller acts, and touches it then."""
        self._wake(now)
        while True:
            while self._ready:
                queue = next(iter(self._ready))
                del self._ready[queue]
                if self._state(queue, now) is QueueState.READY:
                    return queue
                self.touch(queue, now)  # it waits for something else by now
            if not self._crowded or self.full:
                return None
            waiting = next(iter(self._crowded))
            del self._crowded[waiting]
            self.touch(waiting, now)

    @property
    def full(self) -> bool:
        """Whether the whole server may have no further connection."""
        return self.opened >= self._total

    @property
    def crowded(self) -> bool:
        """Whether destinations wait for a connection of the whole server."""
        return bool(self._crowded)

    def _wake(self, now: float) -> None:
        """Destinations with a message that is due, or whose pause is over; so many at most, and the others next
        time."""
        left = AT_ONCE
        while left > 0 and self._timers and self._timers[0][0] <= now:
            when, _, queue = heapq.heappop(self._timers)
            if when != queue.wakes_at:
                continue  # an earlier one has been set since
            queue.wakes_at = 0.0
            left -= 1 + queue.promote(now, left)
            self.touch(queue, now)

    def due(self) -> float | None:
        """When `next` may give something although nothing has happened."""
        while self._timers and self._timers[0][0] != self._timers[0][2].wakes_at:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def set_total(self, total: int, now: float) -> None:
        """Another limit of connections of this worker."""
        self._total = total
        for queue in list(self._crowded):
            self.touch(queue, now)

    # connections ----------------------------------------------------------------------------------------------

    def opening(self, queue: DestinationQueue[C]) -> None:
        """A connection is being opened."""
        queue.connecting += 1
        for limit in queue.limits:
            limit.used += 1
        self.opened += 1

    def connected(self, queue: DestinationQueue[C]) -> None:
        """It stands, and takes messages at once."""
        queue.connecting -= 1
        queue.busy += 1
        queue.site.standing += 1

    def not_connected(self, queue: DestinationQueue[C], now: float) -> None:
        """It did not come about."""
        queue.connecting -= 1
        self._freed(queue, now)

    def rest(self, queue: DestinationQueue[C], line: C, now: float) -> None:
        """A connection has nothing to do."""
        queue.busy -= 1
        queue.idle.append(line)
        self.touch(queue, now)

    def wake(self, queue: DestinationQueue[C], line: C) -> None:
        """An idle connection takes messages."""
        queue.idle.remove(line)
        queue.busy += 1

    def closed(self, queue: DestinationQueue[C], line: C, now: float) -> None:
        """A connection is gone."""
        if line in queue.idle:
            queue.idle.remove(line)
        else:
            queue.busy -= 1
        queue.site.standing -= 1
        self._freed(queue, now)

    def _freed(self, queue: DestinationQueue[C], now: float) -> None:
        self.opened -= 1
        for limit in queue.limits:
            limit.used -= 1
            self._released(limit)
            self._pass_on(limit, now)
        if self._crowded and not self.full:
            waiting = next(iter(self._crowded))
            del self._crowded[waiting]
            self.touch(waiting, now)  # before the one that has had its turn
        self.touch(queue, now)

    def _pass_on(self, limit: Limit, now: float) -> None:
        """A place under a limit is free: the first who waits for it and can use it may act."""
        while limit.held and limit.used < limit.most:
            first = next(iter(limit.held))
            del limit.held[first]
            self.touch(first, now)
            if first in self._ready or first in limit.held:
                return
