"""When a message is tried again, and when it is given up (manual: retry_interval, max_retries, message_expiration).

Retry n (1 is the first) comes min(retry_interval x 2^(n-1), max_retry_interval) after the attempt before it. Expiry is
looked at when an attempt has failed, so a message that expired in the queue is still tried, unless
never_attempt_expired_messages is set.
"""

from __future__ import annotations

from typing import Protocol

from quillon.mail import reply as replies
from quillon.mail.message import Message
from quillon.mail.reply import Reply


class RetrySettings(Protocol):
    """The part of the delivery settings that rules retries. Times in seconds."""

    @property
    def retry_interval(self) -> int: ...
    @property
    def max_retry_interval(self) -> int: ...
    @property
    def max_retries(self) -> str: ...
    @property
    def message_expiration(self) -> int: ...
    @property
    def never_retry(self) -> bool: ...
    @property
    def never_attempt_expired_messages(self) -> bool: ...


def delay(settings: RetrySettings, retry: int) -> int:
    """Seconds before retry number `retry`, which counts from 1."""
    doubled = settings.retry_interval << min(retry - 1, 40)
    return min(doubled, max(settings.max_retry_interval, 1))


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


def expired_unattempted(settings: RetrySettings, message: Message, now: float) -> bool:
    """Whether a message at the head of its queue is to fail without an attempt."""
    return settings.never_attempt_expired_messages and now >= message.batch.received_at + settings.message_expiration
