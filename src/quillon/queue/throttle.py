"""Rates: at most `count` events in `seconds` seconds, spread evenly with a burst of one period.

A counter belongs to the stanza that set the throttle, so all that fall back to it share it (manual, fallback page).
"""

from __future__ import annotations


class Bucket:
    """A token bucket. `count` may be a fraction: a worker's share of the node's rate."""

    def __init__(self, count: float, seconds: float) -> None:
        self._rate = count / seconds
        self._size = max(count, 1.0)
        self._tokens = self._size
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Use one token if there is one."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def ready_at(self, now: float) -> float:
        """When the next token is there."""
        self._fill(now)
        return now if self._tokens >= 1.0 else now + (1.0 - self._tokens) / self._rate

    def _fill(self, now: float) -> None:
        if self._at:
            self._tokens = min(self._size, self._tokens + max(now - self._at, 0.0) * self._rate)
        self._at = now
