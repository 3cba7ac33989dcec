"""Alerts of the node: each condition is told once, again every so often while it holds, and once when it is over,
whatever the number of workers that see it. Pure: `now` comes in."""

from __future__ import annotations

from dataclasses import dataclass, field

from quillon.mail.alert import Alert

MOST = 1000  # conditions that hold at a time and are told of


@dataclass
class _Condition:
    alert: Alert
    told_at: float
    workers: set[int] = field(default_factory=set)


class Alerts:
    """`every` are the seconds after which what still holds is told again."""

    def __init__(self, every: float) -> None:
        self.every = every
        self._holding: dict[str, _Condition] = {}

    def heard(self, worker: int, alert: Alert, now: float) -> Alert | None:
        """A worker sees that a condition holds, or no longer does; gives what is to be told, if anything."""
        known = self._holding.get(alert.key)
        if alert.on:
            if known is None:
                if len(self._holding) >= MOST:
                    return None
                self._holding[alert.key] = _Condition(alert, now, {worker})
                return alert
            known.workers.add(worker)
            if now - known.told_at < self.every:
                return None
            known.alert, known.told_at = alert, now
            return alert
        if known is None:
            return None
        # one delivery that went well says it for all workers, a disk or a queue is a worker's own
        known.workers.discard(worker)
        if known.workers and not alert.key.startswith("tls "):
            return None
        del self._holding[alert.key]
        return alert

    def gone(self, worker: int) -> None:
        """A worker has ended: what only it saw is forgotten, and told anew if its successor sees it too."""
        for key, condition in list(self._holding.items()):
            condition.workers.discard(worker)
            if not condition.workers:
                del self._holding[key]

    def current(self) -> list[Alert]:
        """What holds."""
        return [condition.alert for condition in self._holding.values()]
