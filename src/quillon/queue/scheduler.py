"""Decides which queues get connections, and what becomes of a message after an attempt.

    enqueue(message)              a new or recovered message
    next(now)                     the queues that are to get a new connection, and when to ask again
    take(key, limit)              messages for a connection
    settle(message, outcome, now) Remove, Delay or Fail

The caller performs what is decided: it opens connections, writes the spool, and makes notifications.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from quillon.mail import reply as replies
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, Outcome, PermanentFailure, Stage
from quillon.queue import retry
from quillon.queue.backlog import Backlog, Key, key_of
from quillon.queue.retry import RetrySettings

CEILING_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What rules one queue: connections for this worker, and whether it is suspended."""

    connections: int
    suspended: bool
    retry: RetrySettings


@dataclass(frozen=True, slots=True)
class Remove:
    """The message is done."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The message waits until `at`."""

    at: float


@dataclass(frozen=True, slots=True)
class Fail:
    """The message is given up; a notification is due. `outcome` is what the log and the sender are told."""

    outcome: PermanentFailure


Settled = Remove | Delay | Fail


class Scheduler:
    """`limits` tells what rules a queue; `total` is the most connections of this worker."""

    def __init__(self, limits: Callable[[Key], Limits], total: int) -> None:
        self._limits = limits
        self._total = total
        self._open = 0
        self._backlogs: dict[Key, Backlog] = {}
        self._runnable: dict[Key, None] = {}
        self._delayed: list[tuple[float, int, Message]] = []

    # messages -------------------------------------------------------------------------------------------------

    def enqueue(self, message: Message, now: float) -> Key:
        """Put a message into its active queue, or the delayed one if its time is not yet."""
        key = key_of(message)
        backlog = self.backlog(key)
        if message.next_at > now:
            backlog.delayed += 1
            heapq.heappush(self._delayed, (message.next_at, message.id.number, message))
        else:
            backlog.add(message)
            self._runnable[key] = None
        return key

    def take(self, key: Key, limit: int) -> list[Message]:
        """Messages for a connection of that queue: one batch, `limit` recipients at most."""
        backlog = self._backlogs.get(key)
        return backlog.take(limit) if backlog is not None else []

    def put_back(self, key: Key, messages: list[Message]) -> None:
        """Messages that were taken and not tried."""
        if messages:
            self.backlog(key).put_back(messages)
            self._runnable[key] = None

    def drain(self, key: Key) -> list[Message]:
        """All active messages of a queue, to be settled by one failure of the whole site."""
        backlog = self._backlogs.get(key)
        return list(backlog.drain()) if backlog is not None else []

    def settle(
        self,
        message: Message,
        outcome: Outcome,
        now: float,
        choose: Callable[[float], float] = lambda when: when,
        limits: Callable[[], RetrySettings] | None = None,
    ) -> Settled:
        """What becomes of a message whose attempt ended. Counts the attempt.

        For one that is to be tried again `limits` may limit retries otherwise than its queue does, and `choose` put the
        next attempt at another time, though not behind its expiry.
        """
        message.tries += 1
        if isinstance(outcome, Delivered):
            return Remove()
        message.last_reply = str(outcome.reply)
        if isinstance(outcome, PermanentFailure):
            return Fail(outcome)
        settings = limits() if limits is not None else self._limits(key_of(message)).retry
        reason = retry.give_up(settings, message, now)
        if reason is not None:
            return Fail(PermanentFailure(reason, outcome.stage, outcome.remote_ip, outcome.cause, outcome.sent))
        expiry = message.batch.received_at + settings.message_expiration
        due = now + retry.delay(settings, message.tries)
        message.next_at = min(choose(due), max(expiry, due))
        self.enqueue(message, now)
        return Delay(message.next_at)

    def unattempted(self, message: Message, now: float, settings: RetrySettings) -> PermanentFailure | None:
        """The failure of a message that expired in the queue and is not to be tried any more."""
        if retry.expired_unattempted(settings, message, now):
            return PermanentFailure(replies.EXPIRED_UNATTEMPTED, Stage.NOT_CONNECTED)
        return None

    # connections ----------------------------------------------------------------------------------------------

    def next(self, now: float) -> list[Key]:
        """Queues to open a connection for, one entry per connection. They count as connecting from now on."""
        self._promote(now)
        starts: list[Key] = []
        for key in list(self._runnable):
            backlog = self._backlogs[key]
            limits = self._limits(key)
            if not backlog.active or limits.suspended:
                del self._runnable[key]
                continue
            if backlog.paused_until > now:
                continue
            allowed = max(limits.connections, 1)
            if backlog.ceiling and backlog.ceiling_until > now:
                allowed = min(allowed, backlog.ceiling)
            while (
                backlog.connections + backlog.connecting < allowed
                and backlog.connecting < len(backlog.active)
                and self._open < self._total
            ):
                backlog.connecting += 1
                self._open += 1
                starts.append(key)
            full = backlog.connections + backlog.connecting >= max(limits.connections, 1)
            if full or backlog.connecting >= len(backlog.active):
                del self._runnable[key]  # a connection that ends brings it back
        return starts

    def _promote(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            _, _, message = heapq.heappop(self._delayed)
            key = key_of(message)
            backlog = self.backlog(key)
            backlog.delayed -= 1
            backlog.add(message)
            self._runnable[key] = None

    def connected(self, key: Key) -> None:
        """A connection that was connecting is ready to take messages."""
        backlog = self.backlog(key)
        backlog.connecting -= 1
        backlog.connections += 1

    def closed(self, key: Key, *, was_connected: bool) -> None:
        """A connection is gone."""
        backlog = self.backlog(key)
        self._open -= 1
        if was_connected:
            backlog.connections -= 1
        else:
            backlog.connecting -= 1
        if backlog.active:
            self._runnable[key] = None
        elif backlog.idle:
            self._backlogs.pop(key, None)
            self._runnable.pop(key, None)

    def hold(self, key: Key, until: float) -> None:
        """Open no connection for a queue before `until`: a throttle, or hosts that rest."""
        backlog = self.backlog(key)
        backlog.paused_until = max(backlog.paused_until, until)
        if backlog.active:
            self._runnable[key] = None

    def too_many(self, key: Key, now: float) -> None:
        """The host would not take one more connection: stay at those that stand, for a while."""
        backlog = self.backlog(key)
        backlog.ceiling = max(backlog.connections, 1)
        backlog.ceiling_until = now + CEILING_SECONDS

    def rekey(self, change: Callable[[Message], None], now: float) -> None:
        """Let `change` alter what decides a message's queue, for every message, and sort them anew."""
        waiting = [message for _, _, message in sorted(self._delayed)]
        self._delayed.clear()
        for backlog in list(self._backlogs.values()):
            backlog.delayed = 0
            waiting += backlog.drain()
        for message in waiting:
            change(message)
            self.enqueue(message, now)

    def delay_all(self, domain: str, until: float, reply: str) -> list[Message]:
        """Put the active messages of a domain off, with a reply as their last one; those messages."""
        found = [
            message for key, backlog in self._backlogs.items() if key.domain == domain for message in backlog.drain()
        ]
        for message in found:
            message.next_at, message.last_reply = until, reply
            self.enqueue(message, until - 1.0)
        return found

    def wake_all(self) -> None:
        """Look at every queue again: limits have changed."""
        for key, backlog in self._backlogs.items():
            if backlog.active:
                self._runnable[key] = None

    # what there is --------------------------------------------------------------------------------------------

    def backlog(self, key: Key) -> Backlog:
        found = self._backlogs.get(key)
        if found is None:
            found = self._backlogs[key] = Backlog(key)
        return found

    def messages(self) -> Iterator[Message]:
        """Every message that waits, active or delayed."""
        for backlog in self._backlogs.values():
            yield from backlog.active
        for _, _, message in self._delayed:
            yield message

    def backlogs(self) -> list[Backlog]:
        return list(self._backlogs.values())

    def next_due(self) -> float | None:
        """When the first delayed message is due."""
        return self._delayed[0][0] if self._delayed else None

    def set_total(self, total: int) -> None:
        self._total = total
        self.wake_all()
