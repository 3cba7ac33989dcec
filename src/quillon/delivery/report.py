"""What waits for delivery, for the console: the largest destinations, and all about one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from quillon.delivery import override
from quillon.delivery.connection import Connection
from quillon.mail.message import Message
from quillon.net.turns import in_slices
from quillon.queue.destination import Key
from quillon.queue.limit import UNLIMITED
from quillon.queue.ready import Queues


async def largest(queues: Queues[Connection], count: int) -> list[tuple[str, str, int, int]]:
    """The largest destinations: binding with its group, domain, messages that may leave and that are delayed; and a
    row without a domain, of `count` and the totals."""
    sizes: Counter[tuple[str, str]] = Counter()
    delayed: Counter[tuple[str, str]] = Counter()
    async for queue in in_slices(queues):
        if not queue.waiting and not queue.delayed:
            continue  # nothing is left but an idle connection
        name = (f"{queue.key.binding_group}/{queue.key.binding}", queue.key.domain)
        sizes[name] += queue.waiting + queue.delayed
        delayed[name] += queue.delayed
    rows = [(*name, size - delayed[name], delayed[name]) for name, size in sizes.most_common(count)]
    return [*rows, (str(count), "", sizes.total() - delayed.total(), delayed.total())]


def describe(queues: Queues[Connection], domain: str, now: float) -> list[dict[str, Any]]:
    """Each queue of a routing domain, or of mail that goes to another one in its place, and why it waits."""
    found = []
    for queue in queues:
        if domain not in (queue.key.domain, queue.key.via):
            continue
        first = next(queue.messages(), None)
        key = queue.key
        found.append(
            {
                "binding": f"{key.binding_group}/{key.binding}",
                "domain": key.domain,
                "via": key.via,
                "state": queue.state(now).value,
                "paused_until": max(queue.paused_until, queue.silent_until),
                "why": queue.why_paused,
                "active": queue.waiting,
                "delayed": queue.delayed,
                "next_at": queue.due(now),
                "busy": queue.busy,
                "idle": len(queue.idle),
                "connecting": queue.connecting,
                "allowed": min(queue.allowed, UNLIMITED),
                "shared_limits": {cap.name: [cap.used, min(cap.most, UNLIMITED)] for cap in queue.shared_limits},
                "demand": _demanded(key, first),
                "last_reply": first.last_reply if first is not None else "",
            }
        )
    return found


def _demanded(key: Key, message: Message | None) -> str:
    """What is demanded of the way of a destination's messages, with where that is written."""
    if isinstance(key.override, override.Held):
        return key.override.words
    if message is None or message.demand is None:
        return ""
    place = message.demand.places[0]
    return f"{message.demand} ({place})" if place else str(message.demand)
