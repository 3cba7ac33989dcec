"""Why a destination, or one message, waits: the reasons in the order in which they hold, each with the place of the
option behind it. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from quillon.config.model import Config
from quillon.delivery.halts import Halt
from quillon.delivery.override import Held
from quillon.mail.message import Message
from quillon.queue.destination import DestinationQueue, QueueState
from quillon.queue.limit import UNLIMITED


class Reason(NamedTuple):
    """`until` is a time, 0 where something else ends it. `option` is what rules it, and `place` the file, line and
    column that set it, empty where its default holds."""

    words: str
    until: float = 0.0
    option: str = ""
    place: str = ""


def of_message(
    message: Message, queue: DestinationQueue[Any], config: Config, halt: Halt | None, now: float
) -> list[Reason]:
    """Why a message of a queue has not left. `halt` is what keeps the whole destination from sending."""
    found = []
    if message.next_at > now:
        words = f"its next attempt is due, after {message.tries} that failed" if message.tries else "it was put off"
        found.append(_ruled("retry_interval", words, queue, config, message.next_at))
    found += of_queue(queue, config, halt, now)
    ahead = queue.waiting - 1
    if message.next_at <= now and not found:
        found.append(Reason(f"it is its turn soon: {ahead} others of its destination may leave"))
    return found


def of_queue(queue: DestinationQueue[Any], config: Config, halt: Halt | None, now: float) -> list[Reason]:
    """Why nothing of a destination leaves, or no more than does; empty if nothing keeps it."""
    key, found = queue.key, []
    if isinstance(key.override, Held):
        found.append(Reason(key.override.words))
    elif isinstance(key.override, str):
        found.append(Reason(f"policy: {key.override}"))
    if queue.rules.suspended:
        option = "suspend_delivery" if queue.rules.settings.suspend_delivery else "default_binding"
        found.append(_ruled(option, "delivery is suspended by the configuration", queue, config))
    if halt is not None:
        found.append(Reason(halt.why, halt.until))
    elif queue.paused_until > now:
        option = "host_failure_retry" if "rest" in queue.why_paused or "reached" in queue.why_paused else ""
        found.append(_ruled(option, queue.why_paused, queue, config, queue.paused_until))
    if queue.waiting and queue.state(now) is QueueState.AT_LIMIT:
        found += _limits(queue, config)
    return found


def _limits(queue: DestinationQueue[Any], config: Config) -> list[Reason]:
    """Which number of connections keeps a destination from one more."""
    if queue.connecting and queue.connecting >= queue.groups:
        return [Reason("connections are being opened for all that waits")]
    found = []
    site, *caps = queue.limits
    if site.used >= site.most:
        words = f"{site.used} connections, as many as it may have"
        found.append(_ruled("max_outbound_connections", words, queue, config))
    elif site.used >= queue.allowed:
        found.append(Reason(f"{site.used} connections; more when mail is delivered over them, fewer have failed"))
    found += [Reason(f"{cap.name}: {cap.used} of {min(cap.most, UNLIMITED)} connections") for cap in caps if cap.full]
    return found


def _ruled(option: str, words: str, queue: DestinationQueue[Any], config: Config, until: float = 0.0) -> Reason:
    if not option:
        return Reason(words, until)
    key = queue.key
    entry = config.outbound.option(option, key.binding_group, key.binding, key.domain).entry
    return Reason(words, until, option, str(entry.position) if entry is not None else "")
