"""When a message is tried again, and when it is given up (manual: retry_interval, max_retries, message_expiration).

Retry n (1 is the first) comes min(retry_interval x 2^(n-1), max_retry_interval) after the attempt before it, and up to
retry_spread percent later, so that a queue that failed as a whole does not come back as a whole. Expiry is looked at
when an attempt has failed, so a message that expired in the queue is still tried, unless never_attempt_expired_messages
is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from quillon.mail import reply as replies
from quillon.mail.message import Message
from quillon.mail.outcome import Delivered, Outcome, PermanentFailure, Stage
from quillon.mail.reply import Reply

_SCATTER = 2654435761  # Knuth, The Art of Computer Programming 6.4: neighbours end up far apart


@dataclass(frozen=True, slots=True)
class Remove:
    """The message is done."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The message waits until `at`."""

    at: float


@dataclass(frozen=True, slots=True)
class Fail:
    """The message is given up; a notification is due. `outcome` is what the log and the sender are told, `last` what
    the last attempt ended with where it was given up for that."""

    outcome: PermanentFailure
    last: str = ""


Settled = Remove | Delay | Fail


class RetrySettings(Protocol):
    """The part of the delivery settings that rules retries. Times in seconds."""

    @property
    def retry_interval(self) -> int: ...
    @property
    def max_retry_interval(self) -> int: ...
    @property
    def retry_spread(self) -> int: ...
    @property
    def max_retries(self) -> str: ...
    @property
    def message_expiration(self) -> int: ...
    @property
    def delay_dsn_retry_interval(self) -> int: ...
    @property
    def delay_dsn_max_retry_interval(self) -> int: ...
    @property
    def never_retry(self) -> bool: ...
    @property
    def never_attempt_expired_messages(self) -> bool: ...


def delay(settings: RetrySettings, retry: int) -> int:
    """Seconds before retry number `retry`, which counts from 1."""
    doubled = settings.retry_interval << min(retry - 1, 40)
    return min(doubled, max(settings.max_retry_interval, 1))


def spread(settings: RetrySettings, message: Message) -> float:
    """By how much the delay of a message is longer than `delay` says, from 1 up to 1 + retry_spread percent. The same
    for all recipients of a batch, so that they stay together."""
    fraction = (message.batch.id.number + message.tries) * _SCATTER % 2**32 / 2**32
    return 1.0 + settings.retry_spread / 100 * fraction


def notices_due(settings: RetrySettings, age: float) -> int:
    """How many notifications that it is late are due for a message of an age in seconds: the first after
    delay_dsn_retry_interval, the others in intervals that double up to delay_dsn_max_retry_interval (0: without
    end)."""
    most = settings.delay_dsn_max_retry_interval
    interval = max(min(settings.delay_dsn_retry_interval, most or settings.delay_dsn_retry_interval), 1)
    count, at = 0, interval
    while at <= age:
        count += 1
        if most and interval * 2 >= most:
            return count + int((age - at) // max(most, 1))
        interval *= 2
        at += interval
    return count


def retry_limit(settings: RetrySettings) -> int | None:
    """How many retries a message gets; None for as many as fit. `auto` counts those that fit into its lifetime."""
    if settings.never_retry:
        return 0
    if settings.max_retries == "none":
        return None
    if settings.max_retries != "auto":
        return int(settings.max_retries)
    if settings.retry_interval <= 0:
        return None
    total, count = 0, 0
    while total < settings.message_expiration:
        count += 1
        total += delay(settings, count)
    return count


def give_up(settings: RetrySettings, message: Message, now: float) -> Reply | None:
    """Why a message whose attempt just failed is not tried again; None if it is. `tries` counts that attempt."""
    limit = retry_limit(settings)
    if limit is not None and message.tries > limit:
        return replies.MAX_RETRIES
    if now >= message.batch.received_at + settings.message_expiration:
        return replies.MAX_TIME
    return None


def unattempted(settings: RetrySettings, message: Message, now: float) -> PermanentFailure | None:
    """The failure of a message that expired in the queue and is not to be tried any more."""
    expired = now >= message.batch.received_at + settings.message_expiration
    if settings.never_attempt_expired_messages and expired:
        return PermanentFailure(replies.EXPIRED_UNATTEMPTED, Stage.NOT_CONNECTED)
    return None


def settle(
    message: Message,
    outcome: Outcome,
    now: float,
    settings: Callable[[], RetrySettings],
    choose: Callable[[float], float] = lambda when: when,
) -> Settled:
    """What becomes of a message whose attempt ended; counts the attempt. `settings` is asked where it is to be tried
    again, and `choose` may put the next attempt at another time, though not behind its expiry."""
    message.tries += 1
    if isinstance(outcome, Delivered):
        return Remove()
    message.last_reply = str(outcome.reply)
    if isinstance(outcome, PermanentFailure):
        return Fail(outcome)
    rules = settings()
    reason = give_up(rules, message, now)
    if reason is not None:
        failure = PermanentFailure(reason, outcome.stage, outcome.remote_ip, outcome.cause, outcome.sent)
        return Fail(failure, message.last_reply)
    due = now + delay(rules, message.tries) * spread(rules, message)
    message.next_at = min(choose(due), max(message.batch.received_at + rules.message_expiration, due))
    return Delay(message.next_at)
