"""Everything about one destination: what waits, what runs, how much may run, and why nothing does. Pure.

A destination is a binding and a routing domain, and what is particular to some of its messages. Messages wait in
groups: recipients of one batch that can share a transaction. Groups, not recipients, ask for connections. Three lines
of groups are served in this order: those that look for another host after one has failed them, those with priority, the
others. Messages whose time has not come stand in a heap of their own.

`state` is the one place that decides whether a destination may act. It looks at this destination alone, and costs the
same whatever else is queued.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Set
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

from quillon.config.settings import DeliverySettings, OutboundTls
from quillon.mail.message import Message
from quillon.queue.limit import Cap, Limit
from quillon.queue.line import Line
from quillon.queue.trail import Trail
from quillon.queue.window import Window

_LOOKED_AT = 16  # groups in search of another host that are looked through for a connection


class Key(NamedTuple):
    """What a queue belongs to. `via` is set where the recipient's own stanza rules TLS behind a gateway, `override`
    where its messages have TLS or AUTH of their own, `request` where their senders want more or less of TLS
    (`Batch.tls_request`)."""

    binding_group: str
    binding: str
    domain: str
    via: str = ""
    override: Hashable = None
    request: str = ""

    def leaves_from(self, name: str) -> bool:
        """Whether a name is that of its binding, or of the group that holds it. Bindings that stand alone are of the
        group `default` here, which is no group of the operator's: the name means the binding."""
        return name == self.binding or (name == self.binding_group and name != "default")


def key_of(message: Message) -> Key:
    request = message.batch.tls_request
    return Key(message.binding_group, message.binding, message.destination, message.via, message.override, request)


class QueueConnection(Protocol):
    """A connection, as far as a queue cares."""

    @property
    def peer(self) -> str:
        """Address and port of the host."""


C = TypeVar("C", bound=QueueConnection)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of a destination: its settings, connections of this worker (a share of its own, and
    how many there are on lease, see `limit`), whether nothing leaves, and whether connections are needed at all, as
    they are not where policy is to be asked or nothing may leave; `caps` are limits over several destinations.
    Destinations that the same stanzas rule share one object."""

    settings: DeliverySettings
    tls: OutboundTls
    connections: int
    suspended: bool
    spare: int = 0
    talks: bool = True
    caps: tuple[Cap, ...] = ()


class Site:
    """What all queues of one binding and domain have in common, whatever TLS or AUTH their messages have: how many
    connections there may be. With MX_Rollup it is one for all domains that the same hosts take mail for."""

    __slots__ = ("key", "limit", "queues", "standing", "window")

    def __init__(self, key: Hashable, name: str, window: Window) -> None:
        self.key = key
        self.limit = Limit(name)
        self.window = window
        self.queues = 0
        self.standing = 0  # connections that take messages, or could


class QueueState(Enum):
    """Why a destination acts, or does not."""

    EMPTY = "nothing waits"
    DELAYED = "all messages wait for their next attempt"
    SUSPENDED = "delivery is suspended"
    PAUSED = "no connection before a time"
    AT_LIMIT = "as many connections as are allowed"
    CROWDED = "as many connections as the whole server may have"
    READY = "may act"


@dataclass(slots=True)
class Group:
    """Recipients of one batch. `trail` is set while they look for another host."""

    messages: list[Message]
    trail: Trail | None = None


_EMPTY: Line[Group] = Line()  # stands for a line that nothing is in, and is never written to


class DestinationQueue(Generic[C]):
    """`waiting` counts messages that may leave now. `connecting` connections have not taken a message yet; `idle` ones
    may take the next."""

    __slots__ = (
        "_again",
        "_delayed",
        "_first",
        "_groups",
        "busy",
        "connecting",
        "epoch",
        "granted",
        "idle",
        "key",
        "limits",
        "paused_until",
        "rules",
        "silent_until",
        "site",
        "unreachable",
        "waiting",
        "wakes_at",
        "why_paused",
    )

    def __init__(self, key: Key, rules: Rules, epoch: int, site: Site, caps: tuple[Limit, ...] = ()) -> None:
        self.key = key
        self.site = site
        self.epoch = epoch
        self.waiting = 0
        self.connecting = 0
        self.busy = 0
        self.idle: list[C] = []
        self.limits: tuple[Limit, ...] = ()
        self.rule(rules, caps)
        self.granted: dict[str, float] = {}  # throttles whose turn at a time is this destination's
        self.silent_until = 0.0
        self.paused_until = 0.0
        self.why_paused = ""
        self.unreachable = False  # no host has answered for now, and what waits is in memory no more
        self.wakes_at = 0.0  # when `Queues` is to look at it again; 0: not at all
        self._again: Line[Group] = _EMPTY  # lines of their own once there is something in them
        self._first: Line[Group] = _EMPTY
        self._groups: Line[Group] = Line()
        self._delayed: list[tuple[float, int, Message]] = []

    def rule(self, rules: Rules, caps: tuple[Limit, ...]) -> None:
        """Other settings; connections that stand count under the limits of those."""
        self.rules = rules
        self.site.limit.rule(rules.connections, rules.spare)
        for cap in self.limits[1:]:
            cap.used -= self.standing + self.connecting
        self.limits = (self.site.limit, *caps)
        for cap in caps:
            cap.used += self.standing + self.connecting

    def move(self, site: Site) -> None:
        """Count under another site, with the connections that there are."""
        self.site.limit.used -= self.standing + self.connecting
        self.site.standing -= self.standing
        self.site.queues -= 1
        site.limit.used += self.standing + self.connecting
        site.standing += self.standing
        site.queues += 1
        self.site, self.limits = site, (site.limit, *self.limits[1:])
        site.limit.rule(self.rules.connections, self.rules.spare)

    # messages -------------------------------------------------------------------------------------------------

    def add(self, message: Message) -> None:
        """A message that may leave now, to the end of its line."""
        if message.priority and self._first is _EMPTY:
            self._first = Line()
        line = self._first if message.priority else self._groups
        if line and line[-1].messages[-1].batch is message.batch:
            line[-1].messages.append(message)
        else:
            line.append(Group([message]))
        self.waiting += 1

    def delay(self, message: Message) -> None:
        """A message that waits until its `next_at`."""
        heapq.heappush(self._delayed, (message.next_at, message.id.number, message))

    def put_back(self, messages: list[Message], trail: Trail | None = None) -> None:
        """Messages of one batch that were taken and have not been tried, or not at every host, go before the others."""
        if not messages:
            return
        if trail is not None:
            self._again = Line() if self._again is _EMPTY else self._again
            self._again.push(Group(messages, trail))
        else:
            self._first = Line() if self._first is _EMPTY else self._first
            self._first.push(Group(messages))
        self.waiting += len(messages)

    def promote(self, now: float, most: int) -> int:
        """Delayed messages whose time has come may leave, so many at most; how many did."""
        count = 0
        while count < most and self._delayed and self._delayed[0][0] <= now:
            self.add(heapq.heappop(self._delayed)[2])
            count += 1
        return count

    def take(self, limit: int, peer: str) -> tuple[list[Message], Trail | None]:
        """Messages for one transaction with the host at `peer`, `limit` at most (0: no limit), and where they have
        been."""
        for index, group in enumerate(islice(self._again, _LOOKED_AT)):
            if group.trail is None or peer not in group.trail.tried:
                return self._take_of(self._again, index, limit)
        line = self._first or self._groups
        return self._take_of(line, 0, limit) if line else ([], None)

    def _take_of(self, line: Line[Group], index: int, limit: int) -> tuple[list[Message], Trail | None]:
        group = line[index]
        if limit and len(group.messages) > limit:
            taken = group.messages[:limit]
            del group.messages[:limit]
        else:
            taken = group.messages
            line.remove(index)
        self.waiting -= len(taken)
        return taken, group.trail

    def astray(self) -> Trail | None:
        """Where the first group that looks for another host has been."""
        return self._again[0].trail if self._again else None

    def take_astray(self, trail: Trail | None) -> list[Message]:
        """The group that has been this way and looks for another host: there is none for it."""
        index = next((n for n, group in enumerate(self._again) if group.trail is trail), -1)
        if index < 0:
            return []
        taken = self._again[index].messages
        self._again.remove(index)
        self.waiting -= len(taken)
        return taken

    def fits(self, peer: str) -> bool:
        """Whether a connection to `peer` would get something to do."""
        if self._first or self._groups:
            return True
        return any(group.trail is None or peer not in group.trail.tried for group in islice(self._again, _LOOKED_AT))

    def drain(self) -> list[Message]:
        """All messages that may leave now are taken out, with those that look for another host."""
        found = [m for line in (self._again, self._first, self._groups) for group in line for m in group.messages]
        self._again = self._first = _EMPTY
        self._groups.clear()
        self.waiting = 0
        return found

    def drain_all(self) -> list[Message]:
        """As `drain`, with the delayed ones."""
        found = self.drain() + [message for _, _, message in sorted(self._delayed)]
        self._delayed.clear()
        return found

    def withdraw(self, ids: Set[int]) -> list[Message]:
        """Take out those of these messages, by the numbers of their ids, that wait here."""
        found: list[Message] = []
        for line in (self._again, self._first, self._groups):
            if not line:
                continue
            groups = list(line)
            line.clear()
            for group in groups:
                taken = [message for message in group.messages if message.id.number in ids]
                if taken:
                    found += taken
                    group.messages = [message for message in group.messages if message.id.number not in ids]
                if group.messages:
                    line.append(group)
        self.waiting -= len(found)
        late = [entry for entry in self._delayed if entry[1] in ids]
        if late:
            self._delayed = [entry for entry in self._delayed if entry[1] not in ids]
            heapq.heapify(self._delayed)
        return found + [message for _, _, message in late]

    def snapshot(self) -> Iterator[Message]:
        """Every message that waits here now, to be looked through while the queue goes on. One that is taken meanwhile
        may be among them, or not."""
        lines = [list(line) for line in (self._again, self._first, self._groups) if line]
        delayed = list(self._delayed)
        for line in lines:
            for group in line:
                yield from list(group.messages)
        for _, _, message in delayed:
            yield message

    def messages(self) -> Iterator[Message]:
        """Every message that waits here."""
        for line in (self._again, self._first, self._groups):
            for group in line:
                yield from group.messages
        for _, _, message in self._delayed:
            yield message

    @property
    def delayed(self) -> int:
        """How many messages wait for their next attempt."""
        return len(self._delayed)

    @property
    def groups(self) -> int:
        """How many transactions what waits asks for, at least."""
        return len(self._again) + len(self._first) + len(self._groups)

    # connections ----------------------------------------------------------------------------------------------

    @property
    def standing(self) -> int:
        """Connections that take messages, or could."""
        return self.busy + len(self.idle)

    def state(self, now: float) -> QueueState:
        """Whether it may act; whether the whole server has room is not its matter."""
        if not self.waiting:
            return QueueState.DELAYED if self._delayed else QueueState.EMPTY
        if self.rules.suspended:
            return QueueState.SUSPENDED
        if self.silent_until > now:
            return QueueState.PAUSED
        if not self.rules.talks:
            return QueueState.PAUSED if self.paused_until > now else QueueState.READY
        if any(self.fits(line.peer) for line in self.idle):
            return QueueState.READY
        if self.paused_until > now:
            return QueueState.PAUSED
        if self.connecting >= self.groups or (self.full and not self.idle):
            return QueueState.AT_LIMIT
        return QueueState.READY

    @property
    def full(self) -> bool:
        """Whether no further connection may be opened; an idle one that does not fit may give its place away."""
        return self.site.limit.used >= self.allowed or any(cap.full for cap in self.limits[1:])

    @property
    def allowed(self) -> int:
        """Connections that may stand or be opened, by all queues of the site."""
        return self.site.window.allowed(self.site.limit.most)

    @property
    def shared_limits(self) -> tuple[Limit, ...]:
        """Limits that hold for other destinations as well."""
        return self.limits[self.site.key == self.key[:3] :]

    def pause(self, until: float, why: str, *, messages: bool = False) -> None:
        """Open no connection before a time; with `messages` send nothing over those that stand either."""
        if messages:
            self.silent_until = max(self.silent_until, until)
        if until > self.paused_until:
            self.paused_until, self.why_paused = until, why

    def resume(self) -> None:
        """It may act again, but for a throttle."""
        self.paused_until = max(self.granted.values(), default=0.0)

    def unsilence(self) -> None:
        """What kept it from sending, or from opening connections, is over."""
        self.silent_until = 0.0
        self.resume()

    @property
    def far(self) -> bool:
        """Whether what comes now will not leave soon, as far as is known."""
        most = self.rules.settings.max_resident_active_queue
        return self.rules.suspended or self.unreachable or 0 <= most < self.waiting

    def renew(self, rules: Rules, epoch: int, caps: tuple[Limit, ...] = ()) -> None:
        """Other settings hold: whatever it has waited for by the old ones counts no more."""
        self.rule(rules, caps)
        self.epoch = epoch
        self.granted.clear()
        self.paused_until = self.silent_until = 0.0

    def due(self, now: float) -> float:
        """When it is to be looked at again if nothing happens; 0 for never."""
        times = [self._delayed[0][0]] if self._delayed else []
        if self.waiting:
            times += [when for when in (self.paused_until, self.silent_until) if when > now]
        return min(times, default=0.0)

    @property
    def forgettable(self) -> bool:
        """Nothing waits and nothing runs."""
        return not (self.waiting or self._delayed or self.busy or self.connecting or self.idle)


def site_of(key: Key, rules: Rules, hosts: tuple[str, ...] = ()) -> Site:
    """A site for queues of this binding and domain, or of all domains that lead to these hosts."""
    at_once = rules.settings.connection_allocation_aggressiveness == "high"
    place = f"mx {' '.join(hosts)}" if hosts else key.domain
    name = f"{key.binding_group}/{key.binding}/{place}"
    if hosts:
        settings = rules.settings
        name += f" at {settings.max_outbound_connections}, {settings.connection_allocation_aggressiveness}"
    return Site(site_key(key, rules, hosts), name, Window(whole=rules.connections + rules.spare if at_once else 0))


def site_key(key: Key, rules: Rules, hosts: tuple[str, ...] = ()) -> Hashable:
    """What tells sites apart; of those by hosts, domains with other limits have another."""
    if not hosts:
        return key[:3]
    settings = rules.settings
    limits = (settings.max_outbound_connections, settings.connection_allocation_aggressiveness)
    return key.binding_group, key.binding, limits, hosts
