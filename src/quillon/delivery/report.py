"""What waits for delivery and what runs, as rows for the console."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any

from quillon.config.model import Config
from quillon.delivery import override, reasons
from quillon.delivery.connection import Connection
from quillon.delivery.halts import Halts
from quillon.delivery.reasons import Reason
from quillon.mail.message import Message
from quillon.net.slices import in_slices
from quillon.queue.destination import DestinationQueue, Key, QueueState
from quillon.queue.limit import UNLIMITED
from quillon.queue.ready import Queues

Row = dict[str, Any]
MOST_DOMAINS = 1000  # that are listed


async def largest(queues: Queues[Connection], count: int) -> list[tuple[str, str, int, int]]:
    """The largest destinations: binding with its group, domain, messages that may leave and that are delayed; and a
    row without a domain, of `count` and the totals."""
    sizes: Counter[tuple[str, str]] = Counter()
    delayed: Counter[tuple[str, str]] = Counter()
    async for queue in in_slices(queues):
        if not queue.waiting and not queue.delayed:
            continue  # nothing is left but an idle connection
        name = (binding_of(queue.key), queue.key.domain)
        sizes[name] += queue.waiting + queue.delayed
        delayed[name] += queue.delayed
    rows = [(*name, size - delayed[name], delayed[name]) for name, size in sizes.most_common(count)]
    return [*rows, (str(count), "", sizes.total() - delayed.total(), delayed.total())]


async def totals(queues: Queues[Connection]) -> tuple[int, int]:
    """How many messages may leave, and how many are delayed."""
    active = delayed = 0
    async for queue in in_slices(queues):
        active += queue.waiting
        delayed += queue.delayed
    return active, delayed


async def census(queues: Queues[Connection], now: float) -> tuple[int, int, Counter[str]]:
    """As `totals`, and how many destinations there are by what they wait for."""
    active = delayed = 0
    states = Counter({state.name.lower(): 0 for state in QueueState})
    async for queue in in_slices(queues):
        active += queue.waiting
        delayed += queue.delayed
        states[queue.state(now).name.lower()] += 1
    return active, delayed, states


async def larger(queues: Queues[Connection], which: str, over: int) -> list[Row]:
    """Domains with so many messages that are active or delayed, the largest first, and the totals."""
    found: dict[str, list[int]] = {}
    total = [0, 0]
    async for queue in in_slices(queues):
        row = found.setdefault(queue.key.domain, [0, 0, 0])
        for place, count in enumerate((queue.waiting, queue.delayed, queue.standing + queue.connecting)):
            row[place] += count
        total = [total[0] + queue.waiting, total[1] + queue.delayed]
    place = 0 if which == "active" else 1
    listed = heapq.nlargest(MOST_DOMAINS, ((sizes[place], name) for name, sizes in found.items() if sizes[place]))
    names = ("active", "delayed", "connections")
    rows: list[Row] = [{"domain": name, **dict(zip(names, found[name], strict=True))} for _, name in listed]
    return [*rows, {"active": total[0], "delayed": total[1], "over": over, "which": which}]


async def bindings(queues: Queues[Connection]) -> list[Row]:
    """What each binding has: destinations, messages, connections."""
    found: dict[str, Counter[str]] = {}
    async for queue in in_slices(queues):
        row = found.setdefault(binding_of(queue.key), Counter())
        row["domains"] += 1
        row["active"] += queue.waiting
        row["delayed"] += queue.delayed
        row["connections"] += queue.standing + queue.connecting
    return [{"binding": name, **row} for name, row in found.items()]


def describe(queues: Queues[Connection], domain: str, config: Config, halts: Halts, now: float) -> list[Row]:
    """Each queue of a routing domain, or of mail that goes to another one in its place, and why it waits."""
    found = []
    for queue in queues:
        if domain not in (queue.key.domain, queue.key.via):
            continue
        first = next(queue.messages(), None)
        key = queue.key
        found.append(
            {
                "binding": binding_of(key),
                "domain": key.domain,
                "via": key.via,
                "request": key.request,
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
                "reasons": as_rows(reasons.of_queue(queue, config, halts.of(key, now), now)),
            }
        )
    return found


def as_rows(found: Iterable[Reason]) -> list[Row]:
    """Reasons as JSON has them."""
    return [reason._asdict() for reason in found]


def binding_of(key: Key) -> str:
    """A binding with its group, as the manual writes it."""
    return f"{key.binding_group}/{key.binding}"


def message(one: Message, queue: DestinationQueue[Connection] | None, now: float) -> Row:
    """A message; `queue` is None while it is being delivered."""
    batch = one.batch
    return {
        "id": str(one.id),
        "batch": str(batch.id),
        "state": "in delivery" if queue is None else "delayed" if one.next_at > now else "active",
        "created": batch.received_at,
        "next_at": one.next_at,
        "tries": one.tries,
        "received_via": f"{batch.origin.protocol} {batch.origin.source_ip}".strip(),
        "sender": str(batch.sender),
        "recipient": str(one.recipient),
        "domain": one.destination,
        "binding_group": one.binding_group,
        "binding": one.binding,
        "last_reply": one.last_reply,
        "size": batch.size,
        "demand": str(one.demand) if one.demand is not None else "",
        "request": batch.tls_request,
    }


def connections(found: Iterable[tuple[Connection, DestinationQueue[Connection]]]) -> list[Row]:
    """Connections that stand, with what they are about."""
    return [
        {
            "binding": binding_of(queue.key),
            "domain": queue.key.domain,
            "host": connection.host_name,
            "peer": f"{connection.remote_ip} port {connection.host.port}" if connection.host is not None else "",
            "local": connection.local_ip,
            "tls": connection.facts.protocol if connection.facts is not None else "",
            "state": "idle" if connection in queue.idle else "delivering",
            "messages": len(connection.carried),
            "delivered": connection.delivered,
            "since": connection.since,
        }
        for connection, queue in found
    ]


def _demanded(key: Key, message: Message | None) -> str:
    """What is demanded of the way of a destination's messages, with where that is written."""
    if isinstance(key.override, override.Held):
        return key.override.words
    if message is None or message.demand is None:
        return ""
    place = message.demand.places[0]
    return f"{message.demand} ({place})" if place else str(message.demand)
